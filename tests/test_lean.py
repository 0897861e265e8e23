"""Passes without what is closed: the logits and gradients of masking it by 0, from smaller matrices."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from circuitsieve.circuits.nodes import SiteMasks
from circuitsieve.data.batching import batches
from circuitsieve.models import lean as lean_passes
from circuitsieve.models.ablations import constants
from circuitsieve.models.instrument import answer_logits, masked
from circuitsieve.models.lean import WORTH, Lean
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.search.bench import Bench
from circuitsieve.search.references import Reference, References
from circuitsieve.vocabulary import Ablation, Granularity, Site, SiteKind
from models import LAYERS, assert_differs, assert_same, each_family, each_type, fresh, random_examples, shared

(BATCH,) = batches(random_examples([6, 5, 6]), 3)
READS = (SiteKind.ATTN_READ, SiteKind.MLP_READ)


def open_units(subject: Subject, seed: int) -> dict[SiteKind, Tensor]:
    """Less than half of the units of every layer; in the last one, no unit of the first of several key/value groups."""
    generator = torch.Generator().manual_seed(seed)
    space = subject.space
    dims, neurons = (space.shape(g)[1] for g in (Granularity.HEAD_DIM, Granularity.MLP_NEURON))
    attention, mlp = (torch.rand(LAYERS, n, generator=generator) < 0.3 for n in (dims, neurons))
    attention[:, -1] = mlp[:, -1] = True
    if space.kv_heads > 1:
        attention[-1, : dims // space.kv_heads] = False
    return {SiteKind.ATTN_READ: attention, SiteKind.MLP_READ: mlp}


def mostly_open(subject: Subject) -> SiteMasks:
    """Soft masks of all sites, near 1."""
    generator = torch.Generator().manual_seed(3)
    composed = subject.space.compose({g: mask.float() for g, mask in subject.space.full().items()})
    return {kind: 1 - 0.3 * torch.rand(mask.shape, generator=generator) for kind, mask in composed.items()}


def run(
    subject: Subject, masks: SiteMasks, reference: Reference, lean: Lean | None, of_a_run: bool = False
) -> tuple[Tensor, dict[SiteKind, Tensor | None]]:
    """Logits, and the gradients of the masks."""
    learned = {kind: mask.clone().requires_grad_() for kind, mask in masks.items()}
    with masked(subject, learned, reference.baselines, lean=lean, of_a_run=of_a_run):
        logits = answer_logits(subject, BATCH.clean, BATCH.positions)
    logits.square().sum().backward()
    return logits.detach(), {kind: mask.grad for kind, mask in learned.items()}


def crowded(subject: Subject) -> dict[SiteKind, Tensor]:
    """As many units of MLPs as are worth leaving others out, and one of every key/value group but the first of several."""
    space = subject.space
    dims, neurons = (space.shape(g)[1] for g in (Granularity.HEAD_DIM, Granularity.MLP_NEURON))
    attention = torch.arange(dims) % (dims // space.kv_heads) == 0
    attention[0] = space.kv_heads == 1
    mlp = torch.arange(neurons) < WORTH * neurons
    return {SiteKind.ATTN_READ: attention.repeat(LAYERS, 1), SiteKind.MLP_READ: mlp.repeat(LAYERS, 1)}


@pytest.mark.parametrize("left", [lambda subject: open_units(subject, 1), crowded], ids=["random", "crowded"])
@each_family
def test_copies_take_no_more_than_is_set_aside_for_them(
    family: str, left: Callable[[Subject], dict[SiteKind, Tensor]]
) -> None:
    subject = shared(family)
    lean = Lean(subject, left(subject))
    weights = {parameter.untyped_storage().data_ptr() for parameter in subject.model.parameters()}
    copies: dict[int, int] = {}
    for site in lean.sites.values():
        tensors = [value for narrowed in (*site.inputs, site.reading) for value in narrowed.attributes.values()]
        for tensor in (*(value for value in tensors if isinstance(value, Tensor)), site.weight):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                copies[storage.data_ptr()] = storage.nbytes()
    assert 0 < sum(copies.values()) <= Lean.most_bytes(subject)
    assert all(site.weight.untyped_storage().data_ptr() in weights for site in lean.sites.values())


@pytest.mark.parametrize(
    ("ablation", "of_a_run"),
    [*((ablation, False) for ablation in Ablation), *((ablation, True) for ablation in Ablation if ablation.is_run)],
)
@each_type
def test_logits_and_gradients_are_those_of_masks_of_0(family: str, ablation: Ablation, of_a_run: bool) -> None:
    subject = shared(family)
    with frozen(subject.model):
        reference = References(subject, ablation, constants=constants(subject, [BATCH], ablation))(BATCH)
        left = open_units(subject, 1)
        masks = mostly_open(subject)
        closed = {kind: mask * left[kind] if kind in READS else mask for kind, mask in masks.items()}
        lean = Lean(subject, left)
        assert len(lean.sites) == 2 * LAYERS
        expected, their_gradients = run(subject, closed, reference, None)
        logits, gradients = run(subject, masks, reference, lean, of_a_run)  # whatever the masks of closed units are
        assert_same(logits, expected)
        assert_differs(logits, run(subject, masks, reference, None)[0])
        for kind, gradient in gradients.items():
            theirs = their_gradients[kind]
            assert gradient is not None
            assert theirs is not None
            if kind in READS:
                assert not gradient[~left[kind]].any()
                theirs = theirs * left[kind]
            torch.testing.assert_close(gradient, theirs, rtol=2**-8, atol=2**-10 * float(theirs.abs().max()))


@each_family
def test_what_is_closed_is_not_computed(family: str) -> None:
    """Counted in the modules: outputs of the input projections, inputs of the output projection."""
    subject = Subject.of(fresh(shared(family)))
    architecture, space = subject.architecture, subject.space
    left, widths = open_units(subject, 1), {}
    seen: dict[tuple[str, int], int] = {}
    roles = [*"qkv", *(("gate", "up") if len(architecture.family.mlp_in) == 2 else ("mlp_in",))]
    for layer in range(LAYERS):
        for role in roles:
            module = architecture.projection(layer, architecture.family.projection(role))
            module.register_forward_hook(lambda _, __, output, at=(role, layer): seen.update({at: output.shape[-1]}))
            widths[role] = module.weight.shape[1 if type(module).__name__ == "Conv1D" else 0]
        for kind in READS:
            architecture.read_module(Site(kind, layer)).register_forward_hook(
                lambda _, args, __, at=(str(kind), layer): seen.update({at: args[0].shape[-1]})
            )
    masks = mostly_open(subject)
    with torch.no_grad(), frozen(subject.model):
        reference = References(subject, Ablation.CORRUPTED)(BATCH)
        with masked(subject, masks, reference.baselines, lean=Lean(subject, left)):
            answer_logits(subject, BATCH.clean, BATCH.positions)
    for layer in range(LAYERS):
        for kind in READS:
            assert seen[str(kind), layer] == int(left[kind][layer].sum())
        neurons = int(left[SiteKind.MLP_READ][layer].sum())
        for role in roles[3:]:
            assert seen[role, layer] == widths[role] * neurons // space.neurons
        groups = int(left[SiteKind.ATTN_READ][layer].view(space.kv_heads, -1).any(1).sum())
        shrinks = architecture.family.head_count is not None
        for role in roles[:3]:
            assert seen[role, layer] == (widths[role] * groups // space.kv_heads if shrinks else widths[role])


@pytest.mark.parametrize("seed", [2, 4])
@pytest.mark.parametrize("of_a_run", [False, True])
@each_family
def test_matrices_may_be_filled_up(family: str, of_a_run: bool, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a multiple, by columns that say nothing; but not where hardly anything would be left out."""
    monkeypatch.setattr(lean_passes, "TILE", 4)
    subject = shared(family)
    masks, left = mostly_open(subject), open_units(subject, seed)
    closed = {kind: mask * left[kind] if kind in READS else mask for kind, mask in masks.items()}
    with frozen(subject.model):
        lean, reference = Lean(subject, left), References(subject, Ablation.CORRUPTED)(BATCH)
        expected, their_gradients = run(subject, closed, reference, None)
        logits, gradients = run(subject, masks, reference, lean, of_a_run)
    filled = 0
    for site, cut in lean.sites.items():
        total, count = left[site.kind].shape[1], int(left[site.kind][site.layer].sum())
        most = -(-count // 4) * 4
        assert len(cut.open) == (most if most <= WORTH * total else count)
        assert cut.open.tolist() == sorted(cut.open.tolist())
        filled += len(cut.open) - count
    assert filled
    assert_same(logits, expected)
    for kind in READS:
        found, theirs = gradients[kind], their_gradients[kind]
        assert found is not None
        assert theirs is not None
        theirs = theirs * left[kind]
        torch.testing.assert_close(found, theirs, rtol=2**-8, atol=2**-10 * float(theirs.abs().max()))


@each_family
def test_a_group_may_be_filled_up_to_its_own_width(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many columns as are computed need not be the same ones."""
    subject = shared(family)
    space, masks = subject.space, mostly_open(subject)
    dims = space.shape(Granularity.HEAD_DIM)[1]
    width = dims // max(space.kv_heads, 2)
    monkeypatch.setattr(lean_passes, "TILE", width)
    units = torch.zeros(LAYERS, dims, dtype=torch.bool)
    units[:, :width] = torch.arange(width) != width // 2
    left = {SiteKind.ATTN_READ: units}
    reference = References(subject, Ablation.CORRUPTED)(BATCH)
    with torch.no_grad():
        lean = Lean(subject, left)
        assert all(len(site.open) == width for site in lean.sites.values())
        with masked(subject, {**masks, SiteKind.ATTN_READ: masks[SiteKind.ATTN_READ] * units}, reference.baselines):
            expected = answer_logits(subject, BATCH.clean, BATCH.positions)
        with masked(subject, masks, reference.baselines, lean=lean):
            assert_same(answer_logits(subject, BATCH.clean, BATCH.positions), expected)


@each_family
def test_of_a_run_no_baseline_of_what_is_closed_is_read(family: str) -> None:
    """They are spoilt, and nothing changes: what the run wrote is known. Where a norm comes before that, they are needed."""
    subject = shared(family)
    left, masks = open_units(subject, 1), mostly_open(subject)
    with frozen(subject.model):
        lean, reference = Lean(subject, left), References(subject, Ablation.CORRUPTED)(BATCH)
        expected, _ = run(subject, masks, reference, lean, of_a_run=True)
        for kind in READS:
            for layer in range(LAYERS):
                reference.baselines[Site(kind, layer)][..., ~left[kind][layer]] = torch.nan
        logits, _ = run(subject, masks, reference, lean, of_a_run=True)
    if subject.space.post_norm:
        assert logits.isnan().all()
    else:
        assert_same(logits, expected)


@pytest.mark.parametrize("raises", [False, True])
@each_family
def test_the_model_is_as_before(family: str, raises: bool) -> None:
    subject = Subject.of(fresh(shared(family)))

    def state() -> list[tuple[object, ...]]:
        return [
            (name, *sorted(vars(module)), len(module._forward_hooks), getattr(module, "nf", None), *counts(module))
            for name, module in subject.model.named_modules()
        ]

    def counts(module: nn.Module) -> tuple[object, ...]:
        return tuple(getattr(module, name, None) for name in ("split_size", "num_heads"))

    before, weights = state(), {name: id(p) for name, p in subject.model.named_parameters()}
    masks = mostly_open(subject)
    reference = References(subject, Ablation.CORRUPTED)(BATCH)
    ids = BATCH.clean + 10**6 if raises else BATCH.clean
    try:
        with masked(subject, masks, reference.baselines, lean=Lean(subject, open_units(subject, 1))):
            answer_logits(subject, ids, BATCH.positions)
    except IndexError:
        assert raises
    assert state() == before
    assert {name: id(p) for name, p in subject.model.named_parameters()} == weights


def test_sites_that_are_mostly_open_stay_whole() -> None:
    subject = shared("llama")
    left = open_units(subject, 1)
    left[SiteKind.MLP_READ][0] = True
    lean = Lean(subject, left)
    assert Site(SiteKind.MLP_READ, 0) not in lean.sites
    assert Site(SiteKind.MLP_READ, 1) in lean.sites


@pytest.mark.parametrize("kind", READS, ids=str)
@each_family
def test_a_site_may_be_closed_altogether(family: str, kind: SiteKind) -> None:
    subject = shared(family)
    masks = mostly_open(subject)
    left = {kind: torch.zeros_like(masks[kind], dtype=torch.bool)}
    reference = References(subject, Ablation.CORRUPTED)(BATCH)
    with torch.no_grad():
        with masked(subject, {**masks, kind: torch.zeros_like(masks[kind])}, reference.baselines):
            expected = answer_logits(subject, BATCH.clean, BATCH.positions)
        with masked(subject, masks, reference.baselines, lean=Lean(subject, left)):
            assert_same(answer_logits(subject, BATCH.clean, BATCH.positions), expected)


@each_family
def test_a_prefix_is_narrowed_with_the_groups(family: str) -> None:
    """Prompts that share their first tokens, through the way that training goes."""
    subject = shared(family)
    examples = [
        replace(example, corrupted=(*example.clean[:3], *example.corrupted[3:])) for example in random_examples([6] * 3)
    ]
    (batch,) = batches(examples, 3)
    with frozen(subject.model):
        references = References(subject, Ablation.CORRUPTED)
        reference, bench = references(batch), Bench(subject, references, [batch])
        masks, left = mostly_open(subject), open_units(subject, 1)
        closed = {kind: mask * left[kind] if kind in READS else mask for kind, mask in masks.items()}
        lean = Lean(subject, left)
        window = getattr(subject.model.config, "sliding_window", None)
        assert (reference.prefix is None) == (window is not None and window < 6)
        assert bool(lean.groups) == (subject.space.kv_heads > 1 and subject.architecture.family.head_count is not None)
        with torch.no_grad():
            expected = bench.logits(closed, batch, reference)
            assert_same(bench.logits(masks, batch, reference, lean=lean), expected)
