"""Exact parameter counts, by two independent routes: weight surgery spelled out in loops, and the gradient of the logits."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.costs import ParameterCount, parameters, soft_share
from circuitsieve.models.instrument import masked
from circuitsieve.models.projections import Projection
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import Granularity, SiteKind
from models import POST_NORM, WIDTH, each_type, fresh, random_ids, random_masks, shared

G = Granularity


def outputs_of(
    subject: Subject, layer: int, name: str, values: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """A projection's part of a (fused) module's weight, as [outputs, inputs], and of its bias where it has one."""
    module = subject.architecture.projection(layer, projections(subject)[name])
    for kind, parameter in module.named_parameters():
        whole = values(parameter).T if isinstance(module, Conv1D) and kind == "weight" else values(parameter)
        yield kind, whole if name.endswith("_out") else whole[subject.rows(name).flatten()]


def keep_by_surgery(subject: Subject, masks: dict[Granularity, Tensor]) -> dict[tuple[int, str, str], Tensor]:
    """Walk over every row and column of every projection and decide by hand whether a reduced copy would hold it."""
    config = subject.model.config
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    kept = {kind: mask.tolist() for kind, mask in subject.space.kept_units(masks).items()}
    found = {}
    for layer in range(config.num_hidden_layers):
        dims, neurons = kept[SiteKind.ATTN_READ][layer], kept[SiteKind.MLP_READ][layer]
        attn_out, mlp_out = kept[SiteKind.ATTN_WRITE][layer], kept[SiteKind.MLP_WRITE][layer]
        if config.model_type in POST_NORM:  # the norm behind a projection reads all that the projection writes
            attn_out, mlp_out = [any(attn_out)] * WIDTH, [any(mlp_out)] * WIDTH
        head_dim = len(dims) // heads
        of_head = [dims[head * head_dim : (head + 1) * head_dim] for head in range(heads)]
        of_group = [of_head[g * heads // groups : (g + 1) * heads // groups] for g in range(groups)]
        together = config.model_type in ("olmo2", "olmo3") and any(dims)  # its norms of Q and K run over all heads
        rows_and_columns = {
            "q": ([any(of_head[i // head_dim]) or together for i in range(heads * head_dim)], [True] * WIDTH),
            "k": (
                [any(map(any, of_group[i // head_dim])) or together for i in range(groups * head_dim)],
                [True] * WIDTH,
            ),
            "v": (
                [any(h[i % head_dim] for h in of_group[i // head_dim]) for i in range(groups * head_dim)],
                [True] * WIDTH,
            ),
            "attn_out": (attn_out, dims),
            **{name: (neurons, [True] * WIDTH) for name in ("mlp_in", "gate", "up")},
            "mlp_out": (mlp_out, neurons),
        }
        for name in projections(subject):
            rows, columns = rows_and_columns[name]
            for kind, values in outputs_of(subject, layer, name, Tensor.detach):
                entries = [[row and column for column in columns] for row in rows] if kind == "weight" else rows
                found[layer, name, kind] = torch.tensor(entries)
                assert found[layer, name, kind].shape == values.shape, (layer, name, kind)
    return found


def rotated(subject: Subject) -> Tensor:
    """Which rows of K are rotated by their position."""
    config, space = subject.model.config, subject.space
    without = {"gpt2": 0.0, "opt": 0.0, "phi": 0.5, "gpt_neox": 0.5}
    dims = torch.arange(space.head_dim) < without.get(config.model_type, 1.0) * space.head_dim
    return dims.repeat(space.kv_heads)


def projections(subject: Subject) -> dict[str, Projection]:
    family = subject.architecture.family
    inputs = dict(zip(("mlp_in",) if len(family.mlp_in) == 1 else ("gate", "up"), family.mlp_in, strict=True))
    named = {"q": family.q, "k": family.k, "v": family.v, "attn_out": family.attn_out}
    return {**named, **inputs, "mlp_out": family.mlp_out}


def total(subject: Subject) -> int:
    """Parameters of the blocks that are no norm's."""
    return sum(
        parameter.numel()
        for block in subject.architecture.blocks
        for name, parameter in block.named_parameters()
        if "norm" not in name and "ln_" not in name
    )


@each_type
def test_count_equals_surgery(family: str):
    subject = shared(family)
    counted = []
    for seed in range(6):
        masks = random_masks(subject.space, seed)
        counted.append(sum(int(entries.sum()) for entries in keep_by_surgery(subject, masks).values()))
        assert parameters(subject.space, masks) == ParameterCount(counted[-1], total(subject))
    assert len(set(counted)) > 3
    assert parameters(subject.space, {}) == ParameterCount(total(subject), total(subject))
    assert parameters(subject.space, subject.space.full(False)).kept == 0


def test_soft_shares_meet_the_exact_ones_and_never_fall(subject: Subject):
    space = subject.space
    for seed in range(4):
        leaves = {g: random_masks(space, seed)[g].float() for g in (G.HEAD_DIM, G.MLP_NEURON)}
        if seed % 2:  # out dims, too
            leaves |= {g: random_masks(space, seed)[g].float() for g in (G.ATTN_OUT_DIM, G.MLP_OUT_DIM)}
        circuit = Circuit(space, {g: mask.bool() for g, mask in leaves.items()})
        closed = {g: leaves[g] * circuit.masks[g] for g in leaves}  # what clean-up closes counts for nothing
        for measure in ("units", "parameters"):
            exact = circuit.share(measure)
            assert float(soft_share(space, closed, measure)) == pytest.approx(exact, rel=1e-6)
        soft = {g: (0.2 + 0.6 * mask).requires_grad_() for g, mask in leaves.items()}
        for measure in ("units", "parameters"):
            found = torch.autograd.grad(soft_share(space, soft, measure), list(soft.values()), materialize_grads=True)
            assert all((gradient >= 0).all() for gradient in found)
            assert found[0].sum() > 0


@each_type
def test_kept_parameters_are_those_that_matter(family: str):
    """Under zero ablation the logits depend on an entry exactly if it is counted, so slices of fused modules are right too.

    Key biases are an exception where no rotation follows: they shift all scores of a softmax alike.
    """
    subject = Subject.of(fresh(shared(family)).double().requires_grad_(True))
    counted = []
    for seed in (1, 3, 4, 5):
        masks = random_masks(subject.space, seed)
        masks[G.EMBED][:] = True
        subject.model.zero_grad()
        zeros = dict.fromkeys(subject.architecture.sites(), torch.zeros(1))
        with masked(subject, subject.space.compose(masks), zeros):
            logits = subject.model(random_ids(seed)).logits
        (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))).sum().backward()
        kept = keep_by_surgery(subject, masks)
        for layer in range(subject.space.layers):
            for name in projections(subject):
                for kind, gradient in outputs_of(subject, layer, name, lambda parameter: parameter.grad):
                    matters = kept[layer, name, kind]
                    if (name, kind) == ("k", "bias"):
                        matters = matters & rotated(subject)
                    assert torch.equal(gradient.abs() > 1e-13, matters), (layer, name, kind)
        counted.append(parameters(subject.space, masks).kept)
        assert counted[-1] == sum(int(entries.sum()) for entries in kept.values())
    assert max(counted) > 0.2 * total(subject)
