"""Circuits and rankings: clean-up never changes the function, naming, cutting."""

import pytest
import torch
from torch import Tensor

from circuitsieve.circuits.circuit import Circuit, clean_up
from circuitsieve.circuits.masks import BoolMasks, equal
from circuitsieve.circuits.nodes import SiteMasks
from circuitsieve.data.batching import PairBatch, collate
from circuitsieve.errors import ConfigError
from circuitsieve.models import ablations
from circuitsieve.models.instrument import answer_logits, masked
from circuitsieve.models.subject import Subject
from circuitsieve.search.references import References
from circuitsieve.vocabulary import Ablation, Granularity, SiteKind
from models import (
    LAYERS,
    NEURONS,
    OUTPUT_BIAS,
    POST_NORM,
    assert_differs,
    assert_same,
    difference,
    each_family,
    random_examples,
    random_masks,
    shared,
)

G = Granularity
EXAMPLES = random_examples([6, 4, 6, 5])
READS = (SiteKind.ATTN_READ, SiteKind.MLP_READ)


class Bench:
    """One batch under one ablation."""

    def __init__(self, subject: Subject, ablation: Ablation) -> None:
        self.subject, self.ablation = subject, ablation
        self.batch: PairBatch = collate(ablations.with_counterfactuals(EXAMPLES, ablation), "cpu")
        self.constants = ablations.constants(subject, [self.batch], ablation)
        self.reference = References(subject, ablation, constants=self.constants)(self.batch)

    def logits(self, site_masks: SiteMasks) -> Tensor:
        with torch.no_grad(), masked(self.subject, site_masks, self.reference.baselines):
            return answer_logits(self.subject, self.batch.clean, self.batch.positions)

    def circuit(self, masks: BoolMasks) -> Circuit:
        return Circuit(self.subject.space, masks, self.ablation, self.constants)


# --- 6: clean-up ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", Ablation, ids=str)
@each_family
def test_clean_up_changes_no_logits(family: str, ablation: Ablation):
    bench = Bench(shared(family), ablation)
    space = bench.subject.space
    closed_something, changed_something = 0, 0
    for seed in range(12):
        raw = random_masks(space, seed)
        circuit = bench.circuit(raw)
        expected = bench.logits(space.compose(raw))
        assert_same(bench.logits(space.compose(circuit.masks)), expected)
        assert_same(bench.logits(circuit.site_masks()), expected)
        assert equal(clean_up(circuit.masks, space, ablation), circuit.masks)
        assert all(not (circuit.masks[g] & ~raw[g]).any() for g in G), "clean-up only closes"
        kept = space.kept_units(raw)
        assert all(
            torch.equal(mask, space.kept_units(circuit.masks)[kind]) for kind, mask in kept.items() if kind in READS
        )
        closed_something += not equal(raw, circuit.masks)
        changed_something += difference(expected, bench.reference.full) > 1e-2
    assert min(closed_something, changed_something) > 8


def assert_clean(circuit: Circuit) -> None:
    """No open node lies within a closed one; no open head without dims, block without out dims, layer without blocks."""
    masks, space = circuit.masks, circuit.space
    blocks = (
        (G.ATTN_BLOCK, (G.HEAD, G.ATTN_OUT_DIM), G.ATTN_OUT_DIM),
        (G.MLP_BLOCK, (G.MLP_NEURON, G.MLP_OUT_DIM), G.MLP_OUT_DIM),
    )
    for layer in range(space.layers):
        for block, children, out_dims in blocks:
            assert not masks[block][layer] or masks[G.LAYER][layer]
            assert not masks[block][layer] or masks[out_dims][layer].any()
            assert all(masks[block][layer] or not masks[child][layer].any() for child in children)
        assert not masks[G.LAYER][layer] or masks[G.ATTN_BLOCK][layer] or masks[G.MLP_BLOCK][layer]
        for head in range(space.heads):
            dims = masks[G.HEAD_DIM][layer, head * space.head_dim : (head + 1) * space.head_dim]
            assert bool(masks[G.HEAD][layer, head]) == bool(dims.any())


def test_cleaned_circuits_are_clean(subject: Subject):
    for ablation in Ablation:
        for seed in range(8):
            assert_clean(Circuit(subject.space, random_masks(subject.space, seed), ablation))


# Learned constants are what is left out: where a block without reads stays open whatever the family.
CONSTANT = [ablation for ablation in Ablation if ablation is not Ablation.OPTIMAL]
STAYS_OPEN = {(family, Ablation.ZERO) for family in OUTPUT_BIAS} | {
    (family, ablation) for family in POST_NORM for ablation in (Ablation.MEAN, Ablation.MEAN_POSITIONAL)
}
"""Output biases under zero ablation; means in front of a norm (which maps zero to zero)."""


@pytest.mark.parametrize("emptied", ["heads", "head dims", "neurons"])
@pytest.mark.parametrize("ablation", CONSTANT, ids=str)
@each_family
def test_emptied_block_closes_only_where_that_is_exact(family: str, ablation: Ablation, emptied: str):
    bench = Bench(shared(family), ablation)
    units, block = {
        "heads": (G.HEAD, G.ATTN_BLOCK),
        "head dims": (G.HEAD_DIM, G.ATTN_BLOCK),
        "neurons": (G.MLP_NEURON, G.MLP_BLOCK),
    }[emptied]
    masks = bench.subject.space.full()
    masks[units][1] = False
    circuit = bench.circuit(masks)
    still_open = (family, ablation) in STAYS_OPEN
    assert circuit.masks[block].flatten().tolist() == [True, still_open]
    closed = {**masks, block: torch.tensor([[True], [False]])}
    (assert_differs if still_open else assert_same)(
        bench.logits(bench.subject.space.compose(masks)), bench.logits(bench.subject.space.compose(closed))
    )
    assert_same(bench.logits(circuit.site_masks()), bench.logits(bench.subject.space.compose(masks)))
    assert_differs(bench.logits(circuit.site_masks()), bench.reference.full)


def test_site_masks_leave_out_what_is_open(subject: Subject):
    full = Circuit(subject.space, {})
    assert full.site_masks() == {}
    assert full.size == 1
    one_head = Circuit(subject.space, {G.HEAD: torch.arange(subject.space.heads).expand(LAYERS, -1) != 0})
    assert one_head.site_masks().keys() == {SiteKind.ATTN_READ}


def test_closed_blocks_need_no_out_dims(subject: Subject):
    """Closing a block closes its out dims too, but one mask is enough; folded into the read where that is exact."""
    circuit = Circuit(subject.space, {G.ATTN_BLOCK: torch.tensor([[True], [False]])})
    assert not circuit.masks[G.ATTN_OUT_DIM][1].any()
    found = circuit.site_masks()
    if subject.space.post_norm:
        assert found.keys() == {SiteKind.ATTN_READ, SiteKind.ATTN_WRITE}
        assert found[SiteKind.ATTN_WRITE].shape == (LAYERS, 1)
    else:
        assert found.keys() == {SiteKind.ATTN_READ}


def test_wrong_shape():
    with pytest.raises(ConfigError, match=r"^mask of head: found the shape \(2, 5\), expected \(2, 4\)$"):
        Circuit(shared("llama").space, {G.HEAD: torch.ones(2, 5, dtype=torch.bool)})


# --- complement ----------------------------------------------------------------------------------------------------------


def test_complement_keeps_every_other_unit(subject: Subject):
    space = subject.space
    for seed in range(6):
        circuit = Circuit(space, random_masks(space, seed))
        complement = circuit.complement()
        kept, rest = space.kept_units(circuit.masks), space.kept_units(complement.masks)
        for read in READS:
            assert torch.equal(rest[read], ~kept[read])
        assert circuit.size + complement.size == pytest.approx(1)
        assert complement.masks[G.EMBED].all()
        assert_clean(complement)
        again = complement.complement()
        assert all(torch.equal(space.kept_units(again.masks)[read], kept[read]) for read in READS)
    assert Circuit(space, {}).complement().size == 0
    assert Circuit(space, space.full(False)).complement().size == 1


# --- naming --------------------------------------------------------------------------------------------------------------


def named(*names: str, ablation: Ablation = Ablation.CORRUPTED) -> Circuit:
    """A circuit of the llama: 2 layers, 4 heads of 6 dims, 20 neurons, width 16."""
    return Circuit.from_nodes(shared("llama").space, names, ablation=ablation)


def kept(circuit: Circuit) -> dict[str, list[str]]:
    """Names of all kept nodes by granularity; out dims as '*' where a block keeps all."""
    found = {str(g): circuit.nodes(g) for g in G}
    for g in (G.ATTN_OUT_DIM, G.MLP_OUT_DIM):
        found[str(g)] = [
            f"L{layer}.*" if mask.all() else f"L{layer}.{mask.nonzero().flatten().tolist()}"
            for layer, mask in enumerate(circuit.masks[g])
            if mask.any()
        ]
    return {g: names for g, names in found.items() if names}


def dims(layer: int, *heads: int) -> list[str]:
    return [f"L{layer}.head_dim.{head * 6 + i}" for head in heads for i in range(6)]


def neurons(layer: int) -> list[str]:
    return [f"L{layer}.mlp_neuron.{i}" for i in range(NEURONS)]


def attention(layer: int, out_dims: str = "*") -> dict[str, list[str]]:
    return {
        "layer": [f"L{layer}.layer"],
        "attn_block": [f"L{layer}.attn_block"],
        "attn_out_dim": [f"L{layer}.{out_dims}"],
    }


def mlp(layer: int, out_dims: str = "*") -> dict[str, list[str]]:
    return {"layer": [f"L{layer}.layer"], "mlp_block": [f"L{layer}.mlp_block"], "mlp_out_dim": [f"L{layer}.{out_dims}"]}


EMBED = {"embed": ["embed"]}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), {}),
        (("embed",), {}),
        (("L1.head.2",), attention(1) | {"head": ["L1.head.2"], "head_dim": dims(1, 2)}),
        (("L0.head_dim.7",), attention(0) | {"head": ["L0.head.1"], "head_dim": ["L0.head_dim.7"]}),
        # a head and one of its dims: the head keeps all its dims; a dim of another head stands alone
        (
            ("L0.head.1", "L0.head_dim.7", "L0.head_dim.23"),
            attention(0) | {"head": ["L0.head.1", "L0.head.3"], "head_dim": [*dims(0, 1), "L0.head_dim.23"]},
        ),
        (("L0.mlp_neuron.5",), mlp(0) | {"mlp_neuron": ["L0.mlp_neuron.5"]}),
        (("L0.mlp_block", "L0.mlp_neuron.5"), mlp(0) | {"mlp_neuron": neurons(0)}),
        (
            ("L1.attn_block",),
            attention(1) | {"head": [f"L1.head.{i}" for i in range(4)], "head_dim": dims(1, 0, 1, 2, 3)},
        ),
        (
            ("L1.layer", "L1.head.0", "embed"),
            attention(1)
            | mlp(1)
            | {
                "head": [f"L1.head.{i}" for i in range(4)],
                "head_dim": dims(1, 0, 1, 2, 3),
                "mlp_neuron": neurons(1),
            },
        ),
        # out dims narrow what a block writes; alone they stand for the whole block behind them
        (
            ("L0.head.1", "L0.attn_out_dim.3"),
            attention(0, "[3]") | {"head": ["L0.head.1"], "head_dim": dims(0, 1)},
        ),
        (("L0.mlp_out_dim.3", "L0.mlp_out_dim.9"), mlp(0, "[3, 9]") | {"mlp_neuron": neurons(0)}),
    ],
    ids=lambda value: "+".join(value) or "nothing" if isinstance(value, tuple) else "",
)
def test_named_nodes(names: tuple[str, ...], expected: dict[str, list[str]]):
    circuit = named(*names)
    assert kept(circuit) == expected | EMBED
    assert_clean(circuit)
    leaves = circuit.nodes(G.HEAD_DIM, G.MLP_NEURON, G.ATTN_OUT_DIM, G.MLP_OUT_DIM)
    assert kept(named(*leaves)) == kept(circuit), "the names of its leaves give the circuit back"


def test_named_nodes_without_clean_up_upwards():
    """Zero ablation with output biases: a block that nobody named stays closed."""
    assert kept(named("L1.head.2", ablation=Ablation.ZERO)) == kept(named("L1.head.2"))


def test_wrong_name():
    with pytest.raises(ConfigError, match=r"^node: found 'L2.head.0', expected one from L0.head.0 to L1.head.3$"):
        named("L0.head.0", "L2.head.0")
