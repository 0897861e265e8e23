"""Masking does to a stock model what it says."""

import pytest
import torch
from torch import Tensor

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.masks import Masks
from circuitsieve.circuits.nodes import Activations
from circuitsieve.data.batching import PairBatch, batches, collate
from circuitsieve.models import ablations
from circuitsieve.models.instrument import answer_logits, masked, record
from circuitsieve.models.subject import Subject
from circuitsieve.objective import measure
from circuitsieve.search.references import References
from circuitsieve.vocabulary import Ablation, Granularity, Site, SiteKind
from models import (
    FAMILIES,
    OUTPUT_BIAS,
    POST_NORM,
    WIDTH,
    assert_differs,
    assert_same,
    each_dtype,
    each_family,
    fresh,
    module,
    random_examples,
    random_ids,
    random_masks,
    shared,
    weight,
)

CLEAN, CORRUPTED = random_ids(0), random_ids(1)
each_pre_norm_family = pytest.mark.parametrize("family", [family for family in FAMILIES if family != "opt_post_norm"])
"""All but OPT with norms after the residual additions: there the residual stream is no sum of what blocks add."""
ZERO = torch.zeros(1)


@torch.no_grad()
def logits(
    subject: Subject, masks: Masks | None = None, baselines: Activations | None = None, ids: Tensor = CLEAN
) -> Tensor:
    with masked(subject, subject.space.compose(masks or {}), baselines or {}):
        found: Tensor = subject.model(ids).logits
    return found


@torch.no_grad()
def corrupted_run(subject: Subject) -> tuple[Activations, Tensor]:
    with record(subject, subject.architecture.sites()) as baselines:
        found = subject.model(CORRUPTED).logits
    return baselines, found


def zero(subject: Subject) -> Activations:
    return dict.fromkeys(subject.architecture.sites(), ZERO)


def closed(subject: Subject, *granularities: Granularity) -> Masks:
    return {g: torch.zeros(subject.space.shape(g)) for g in granularities}


def without(subject: Subject, granularity: Granularity, layer: int, index: int) -> Masks:
    mask = torch.ones(subject.space.shape(granularity))
    mask[layer, index] = 0
    return {granularity: mask}


# --- 1: all masks open, all masks closed ---------------------------------------------------------------------------------


@each_dtype
@each_family
def test_open_masks_change_no_bit(family: str, dtype: torch.dtype):
    subject = shared(family, dtype)
    untouched = logits(subject)
    assert untouched.dtype == dtype
    baselines, _ = corrupted_run(subject)
    ones = {g: torch.ones(subject.space.shape(g)) for g in Granularity}
    assert set(subject.space.compose(ones)) == set(SiteKind)
    assert torch.equal(logits(subject, ones, baselines), untouched)
    assert torch.equal(logits(subject, subject.space.full(), baselines), untouched)
    for granularity in Granularity:
        assert_differs(logits(subject, {granularity: 0 * ones[granularity]}, baselines), untouched)


@each_dtype
@each_family
def test_closed_masks_give_the_corrupted_run(family: str, dtype: torch.dtype):
    subject = shared(family, dtype)
    baselines, corrupted = corrupted_run(subject)
    assert torch.equal(logits(subject, closed(subject, *Granularity), baselines), corrupted)
    assert torch.equal(logits(subject, closed(subject, Granularity.EMBED), baselines), corrupted)
    assert_differs(corrupted, logits(subject))


CLOSINGS = {
    "layers": (Granularity.LAYER,),
    "blocks": (Granularity.ATTN_BLOCK, Granularity.MLP_BLOCK),
    "out dims": (Granularity.ATTN_OUT_DIM, Granularity.MLP_OUT_DIM),
    "heads and neurons": (Granularity.HEAD, Granularity.MLP_NEURON),
    "head dims and neurons": (Granularity.HEAD_DIM, Granularity.MLP_NEURON),
}


@pytest.mark.parametrize("closing", CLOSINGS)
@each_pre_norm_family
@torch.no_grad()
def test_embedding_alone_rides_on_the_corrupted_writes(family: str, closing: str):
    """Closed by the reads or by the writes, the residual stream is the clean embedding plus what blocks add when corrupted."""
    subject = shared(family)
    baselines, _ = corrupted_run(subject)
    writes = [b for site, b in baselines.items() if site.kind in (SiteKind.ATTN_WRITE, SiteKind.MLP_WRITE)]
    with record(subject, [Site(SiteKind.EMBED, 0)]) as clean:
        subject.model(CLEAN)
    expected = by_hand(subject, clean[Site(SiteKind.EMBED, 0)] + torch.stack(writes).sum(0))
    assert_same(logits(subject, closed(subject, *CLOSINGS[closing]), baselines), expected)
    assert_differs(expected, logits(subject))


# --- 2: zero ablation is weight surgery ----------------------------------------------------------------------------------


def surgery(subject: Subject, role: str, layer: int, rows: slice, columns: slice) -> Tensor:
    """Logits of a copy of the model with some weights of a projection (and the rows' biases) at 0."""
    model = fresh(subject)
    projection = module(model, role, layer)
    weight(projection)[rows, columns] = 0
    if rows != slice(None) and getattr(projection, "bias", None) is not None:
        projection.bias.data[rows] = 0
    with torch.no_grad():
        found: Tensor = model(CLEAN).logits
    return found


@each_dtype
@each_family
def test_zero_ablated_head_is_zeroed_columns(family: str, dtype: torch.dtype):
    subject = shared(family, dtype)
    width = weight(module(subject.model, "attn_out")).shape[1] // subject.model.config.num_attention_heads
    for layer in range(subject.space.layers):
        for head in range(subject.model.config.num_attention_heads):
            found = logits(subject, without(subject, Granularity.HEAD, layer, head), zero(subject))
            assert_same(
                found, surgery(subject, "attn_out", layer, slice(None), slice(head * width, (head + 1) * width))
            )
            assert_differs(found, logits(subject))


@pytest.mark.parametrize(
    ("granularity", "role"), [(Granularity.HEAD_DIM, "attn_out"), (Granularity.MLP_NEURON, "mlp_out")], ids=str
)
@each_family
def test_zero_ablated_unit_is_a_zeroed_column(family: str, granularity: Granularity, role: str):
    subject = shared(family)
    for layer in range(subject.space.layers):
        for unit in (0, 1, 7, subject.space.shape(granularity)[1] - 1):
            found = logits(subject, without(subject, granularity, layer, unit), zero(subject))
            assert_same(found, surgery(subject, role, layer, slice(None), slice(unit, unit + 1)))
            assert_differs(found, logits(subject))


@pytest.mark.parametrize("block", ["attn", "mlp"])
@each_dtype
@each_family
def test_zero_ablated_out_dim_is_a_zeroed_row(family: str, dtype: torch.dtype, block: str):
    subject = shared(family, dtype)
    granularity = Granularity(f"{block}_out_dim")
    for layer in range(subject.space.layers):
        for dim in (0, 5, WIDTH - 1):
            found = logits(subject, without(subject, granularity, layer, dim), zero(subject))
            if family in POST_NORM:
                model = fresh(subject)
                weights = module(model, f"{block}_post_norm", layer).weight.data
                weights[dim] = 0 if family == "olmo2" else -1  # Gemma's norms scale by 1 + weight
                with torch.no_grad():
                    expected = model(CLEAN).logits
            else:
                expected = surgery(subject, f"{block}_out", layer, slice(dim, dim + 1), slice(None))
            assert_same(found, expected)
            assert_differs(found, logits(subject))


# --- 3: nothing but the embedding ----------------------------------------------------------------------------------------


def by_hand(subject: Subject, residual: Tensor) -> Tensor:
    """The final norm and the head, with Gemma's cap."""
    found: Tensor = subject.model.get_output_embeddings()(module(subject.model, "final_norm")(residual))
    cap = getattr(subject.model.config, "final_logit_softcapping", None)
    return found if cap is None else cap * torch.tanh(found / cap)


def embedded(subject: Subject) -> Tensor:
    """What enters the first block."""
    decoder, tokens = subject.model.get_decoder(), CLEAN.shape[1]
    found: Tensor = subject.model.get_input_embeddings()(CLEAN)
    match subject.model.config.model_type:
        case "gpt2":
            found = found + decoder.wpe.weight[:tokens]
        case "opt":  # its positions begin at 2
            found = found + decoder.embed_positions.weight[2 : tokens + 2]
    return found


@each_dtype
@each_pre_norm_family
@torch.no_grad()
def test_embedding_alone_under_zero_ablation(family: str, dtype: torch.dtype):
    subject = shared(family, dtype)
    expected = by_hand(subject, embedded(subject))
    assert_same(logits(subject, closed(subject, *set(Granularity) - {Granularity.EMBED}), zero(subject)), expected)
    assert_differs(expected, logits(subject))
    by_reads = logits(subject, closed(subject, Granularity.HEAD, Granularity.MLP_NEURON), zero(subject))
    (assert_differs if family in OUTPUT_BIAS else assert_same)(by_reads, expected)


# --- 4: padding and batching ---------------------------------------------------------------------------------------------

EXAMPLES = random_examples([5, 3, 6, 4, 6])


def circuit_logits(circuit: Circuit, subject: Subject, batch: PairBatch, baselines: Activations) -> Tensor:
    with torch.no_grad(), masked(subject, circuit.site_masks(), baselines):
        return answer_logits(subject, batch.clean, batch.positions)


@pytest.mark.parametrize("ablation", Ablation, ids=str)
def test_prompt_alone_equals_prompt_in_a_padded_batch(subject: Subject, ablation: Ablation):
    examples = ablations.with_counterfactuals(EXAMPLES, ablation)
    bucketed = batches(examples, 3)
    assert not all(bool(batch.real.all()) for batch in bucketed), "some prompts must be padded"
    constants = ablations.constants(subject, bucketed, ablation)
    references = References(subject, ablation, constants=constants)
    circuit = Circuit(subject.space, random_masks(subject.space, 4), ablation, constants)
    found = {}
    for batch in bucketed:
        reference = references(batch)
        under = circuit_logits(circuit, subject, batch, reference.baselines)
        for row, ids in enumerate(batch.clean):
            prompt = tuple(ids[: int(batch.positions[row]) + 1].tolist())
            found[prompt] = (
                reference.full[row],
                under[row],
                torch.stack([values[row] for values in reference.empty]).nan_to_num(),
            )
    assert len(found) == len(EXAMPLES)
    for example in examples:
        alone = collate([example], "cpu")
        reference = references(alone)
        under = circuit_logits(circuit, subject, alone, reference.baselines)
        full, of_circuit, empty = found[example.clean]
        with torch.no_grad():
            assert_same(full, subject.model(torch.tensor([example.clean])).logits[0, -1])
            if ablation.is_run:
                other = subject.model(torch.tensor([example.corrupted])).logits[:, -1]
                assert_same(empty, torch.cat(measure(reference.full, other, alone.targets)).nan_to_num())
        assert_same(empty, torch.cat(reference.empty).nan_to_num())
        assert_same(of_circuit, under[0])
        assert_differs(of_circuit, full)


@torch.no_grad()
def test_means_exclude_padding(subject: Subject):
    """Against a loop over single prompts, with the test's own hooks on a read and on a write."""
    runs: dict[Site, list[Tensor]] = {Site(SiteKind.ATTN_READ, 1): [], Site(SiteKind.MLP_WRITE, 0): []}
    post_norm = module(subject.model, "mlp_post_norm", 0) if subject.space.post_norm else None
    handles = [
        module(subject.model, "attn_out", 1).register_forward_pre_hook(
            lambda _, args: runs[Site(SiteKind.ATTN_READ, 1)].append(args[0][0])
        ),
        (post_norm or module(subject.model, "mlp_out", 0)).register_forward_hook(
            lambda _, __, output: runs[Site(SiteKind.MLP_WRITE, 0)].append(output.reshape(-1, WIDTH))  # of one prompt
        ),
    ]
    for example in EXAMPLES:
        subject.model(torch.tensor([example.corrupted]))
    for handle in handles:
        handle.remove()
    bucketed = batches(EXAMPLES, 4)
    mean = ablations.constants(subject, bucketed, Ablation.MEAN)
    positional = ablations.constants(subject, bucketed, Ablation.MEAN_POSITIONAL)
    for site, prompts in runs.items():
        over_all = torch.cat(prompts).mean(0)
        assert_same(mean[site], over_all)
        assert_same(positional[site][-1], over_all)
        assert len(positional[site]) == 1 + max(len(prompt) for prompt in prompts)
        for position in range(len(positional[site]) - 1):
            there = torch.stack([prompt[position] for prompt in prompts if len(prompt) > position]).mean(0)
            assert_same(positional[site][position], there)
            assert_differs(there, over_all)


def test_positions_beyond_the_reference_set_take_the_overall_mean():
    subject = shared("llama")
    constants = ablations.constants(subject, batches(random_examples([4, 3]), 2), Ablation.MEAN_POSITIONAL)
    references = References(subject, Ablation.MEAN_POSITIONAL, constants=constants)
    for length in (2, 4, 5, 7):
        baselines = references(collate(random_examples([length]), "cpu")).baselines
        for site, rows in constants.items():
            assert len(rows) == 5
            for position in range(length):
                assert torch.equal(baselines[site][position], rows[min(position, 4)])
