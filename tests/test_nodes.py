"""The node space: names, the product rule, folding. Costs are in test_costs.py."""

import pytest
import torch
from torch import Tensor

from circuitsieve.circuits.masks import cut
from circuitsieve.circuits.nodes import Node, NodeSpace, SiteMasks
from circuitsieve.data.batching import collate
from circuitsieve.errors import ConfigError
from circuitsieve.models import ablations
from circuitsieve.models.instrument import answer_logits, masked
from circuitsieve.models.subject import Subject
from circuitsieve.search.references import References
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Ablation, Granularity, SiteKind
from models import (
    OUTPUT_BIAS,
    POST_NORM,
    assert_differs,
    assert_same,
    each_family,
    random_examples,
    random_masks,
    shared,
)

G = Granularity

# --- names ---------------------------------------------------------------------------------------------------------------

SPELLINGS = {
    G.LAYER: "L{0}.layer",
    G.ATTN_BLOCK: "L{0}.attn_block",
    G.MLP_BLOCK: "L{0}.mlp_block",
    G.HEAD: "L{0}.head.{1}",
    G.HEAD_DIM: "L{0}.head_dim.{1}",
    G.MLP_NEURON: "L{0}.mlp_neuron.{1}",
    G.ATTN_OUT_DIM: "L{0}.attn_out_dim.{1}",
    G.MLP_OUT_DIM: "L{0}.mlp_out_dim.{1}",
    G.EMBED: "embed",
}


def test_every_name_reads_back(subject: Subject):
    config = subject.model.config
    mlp = next(n for name in ("intermediate_size", "ffn_dim", "n_inner") if (n := getattr(config, name, None)))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    expected = {
        G.HEAD: config.num_attention_heads,
        G.HEAD_DIM: config.num_attention_heads * head_dim,
        G.MLP_NEURON: mlp,
        G.ATTN_OUT_DIM: config.hidden_size,
        G.MLP_OUT_DIM: config.hidden_size,
    }
    for granularity, mask in subject.space.full().items():
        rows = 1 if granularity is G.EMBED else config.num_hidden_layers
        assert tuple(mask.shape) == (rows, expected.get(granularity, 1)) == subject.space.shape(granularity)
        names = list(subject.space.names({granularity: mask}))
        assert names == [SPELLINGS[granularity].format(*index) for index in mask.nonzero().tolist()]
        for name, index in zip(names, mask.nonzero().tolist(), strict=True):
            assert subject.space.parse(name) == Node(granularity, *index)
            assert str(subject.space.parse(name)) == name
    assert subject.space.units == config.num_hidden_layers * (expected[G.HEAD_DIM] + mlp)


def test_names_of_kept_nodes_only():
    space = shared("llama").space
    masks = space.full(False)
    masks[G.HEAD][1, 3] = masks[G.EMBED][0, 0] = masks[G.MLP_BLOCK][0, 0] = True
    assert sorted(space.names(masks)) == ["L0.mlp_block", "L1.head.3", "embed"]


MALFORMED = r"^node: found '{}', expected a name like embed, L3.attn_block, L3.head.7 or L3.head_dim.455$"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (name, MALFORMED.format(name.replace("+", r"\+")))
        for name in (
            "",
            "head",
            "L.head.1",
            "l0.head.1",
            "L0.head.-1",
            "L0.head.1.2",
            "L0.embed",
            "embed.0",
            "L+1.layer",
        )
    ]
    + [
        ("L0.heads.1", r"^granularity of node 'L0.heads.1': found 'heads', expected one of .*; did you mean 'head'\?$"),
        ("L2.head.0", r"^node: found 'L2.head.0', expected one from L0.head.0 to L1.head.3$"),
        ("L0.head.4", r"^node: found 'L0.head.4', expected one from L0.head.0 to L1.head.3$"),
        ("L0.head", r"^node: found 'L0.head', expected one from L0.head.0 to L1.head.3$"),
        ("L0.head_dim.24", r"^node: found 'L0.head_dim.24', expected one from L0.head_dim.0 to L1.head_dim.23$"),
        ("L0.layer.0", r"^node: found 'L0.layer.0', expected one from L0.layer to L1.layer$"),
        ("L00.layer", r"^node: found 'L00.layer', expected one from L0.layer to L1.layer$"),
        ("L0.head.01", r"^node: found 'L0.head.01', expected one from L0.head.0 to L1.head.3$"),
    ],
)
def test_wrong_names(name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        shared("llama").space.parse(name)


# --- 6: the product rule -------------------------------------------------------------------------------------------------


def by_brute_force(
    space: NodeSpace, masks: dict[Granularity, Tensor], kind: SiteKind, layer: int, unit: int
) -> list[float]:
    """The mask values of every node that contains one unit of a site; an absent granularity contains nothing."""
    containing = {
        SiteKind.EMBED: [(G.EMBED, 0, 0)],
        SiteKind.ATTN_READ: [(G.HEAD, layer, unit // space.head_dim), (G.HEAD_DIM, layer, unit)],
        SiteKind.ATTN_WRITE: [(G.LAYER, layer, 0), (G.ATTN_BLOCK, layer, 0), (G.ATTN_OUT_DIM, layer, unit)],
        SiteKind.MLP_READ: [(G.MLP_NEURON, layer, unit)],
        SiteKind.MLP_WRITE: [(G.LAYER, layer, 0), (G.MLP_BLOCK, layer, 0), (G.MLP_OUT_DIM, layer, unit)],
    }[kind]
    return [float(masks[g][row, index]) for g, row, index in containing if g in masks]


def site_widths(space: NodeSpace) -> dict[SiteKind, int]:
    return {
        SiteKind.EMBED: 1,
        SiteKind.ATTN_READ: space.heads * space.head_dim,
        SiteKind.ATTN_WRITE: space.width,
        SiteKind.MLP_READ: space.neurons,
        SiteKind.MLP_WRITE: space.width,
    }


@pytest.mark.parametrize(
    "searched",
    [tuple(G), (G.HEAD,), (G.LAYER, G.HEAD_DIM), (G.ATTN_BLOCK, G.MLP_BLOCK, G.MLP_OUT_DIM), (G.MLP_NEURON, G.EMBED)],
    ids=lambda searched: "+".join(searched),
)
def test_composed_masks_are_products(subject: Subject, searched: tuple[Granularity, ...]):
    space = subject.space
    masks = {g: mask for g, mask in random_masks(space, 2, soft=True).items() if g in searched}
    composed = space.compose(masks)
    for kind, width in site_widths(space).items():
        touched = bool(by_brute_force(space, masks, kind, 0, 0))
        assert (kind in composed) == touched
        if touched:
            rows = 1 if kind is SiteKind.EMBED else space.layers
            found = composed[kind].expand(rows, width)
            for layer in range(rows):
                for unit in range(width):
                    product = 1.0
                    for value in by_brute_force(space, masks, kind, layer, unit):
                        product *= value
                    assert float(found[layer, unit]) == pytest.approx(product, rel=1e-6)


def kept_by_brute_force(space: NodeSpace, masks: dict[Granularity, Tensor]) -> dict[SiteKind, list[list[bool]]]:
    """Site by site, layer by layer: which units survive; a read also needs an open out dim of its block."""
    kept = {
        kind: [
            [all(by_brute_force(space, masks, kind, layer, i)) for i in range(width)] for layer in range(space.layers)
        ]
        for kind, width in site_widths(space).items()
        if kind is not SiteKind.EMBED
    }
    for read, write in ((SiteKind.ATTN_READ, SiteKind.ATTN_WRITE), (SiteKind.MLP_READ, SiteKind.MLP_WRITE)):
        kept[read] = [[unit and any(out) for unit in units] for units, out in zip(kept[read], kept[write], strict=True)]
    return kept


def test_kept_units_and_size(subject: Subject):
    space = subject.space
    sizes = []
    for seed in range(6):
        masks = random_masks(space, seed)
        expected = kept_by_brute_force(space, masks)
        assert {kind: mask.tolist() for kind, mask in space.kept_units(masks).items()} == expected
        units = [unit for kind in (SiteKind.ATTN_READ, SiteKind.MLP_READ) for layer in expected[kind] for unit in layer]
        sizes.append(sum(units) / len(units))
        assert space.size(masks) == pytest.approx(sizes[-1])
    assert len(set(sizes)) > 3
    assert space.size({}) == 1


@pytest.mark.parametrize(
    "searched", [tuple(G), (G.HEAD, G.MLP_BLOCK), (G.LAYER,), (G.HEAD_DIM, G.ATTN_OUT_DIM)], ids=str
)
def test_lowest_scores_commute_with_the_cut(subject: Subject, searched: tuple[Granularity, ...]):
    """A unit's score is above a threshold exactly if the cut at the threshold keeps it (out dims apart)."""
    space = subject.space
    scores = {g: s for g, s in random_masks(space, 9, soft=True).items() if g in searched}
    units = space.lowest(scores)
    gating = {g: s for g, s in scores.items() if g not in (G.ATTN_OUT_DIM, G.MLP_OUT_DIM)}
    reads = dict(zip(UNIT_GRANULARITIES, (SiteKind.ATTN_READ, SiteKind.MLP_READ), strict=True))
    outcomes = set()
    for threshold in (0.0, 0.05, 0.2, 0.4, 0.7, 1.0):
        kept = kept_by_brute_force(space, {g: mask.float() for g, mask in cut(gating, threshold).items()})
        for unit, read in reads.items():
            above = (
                (units[unit] > threshold).tolist() if unit in units else torch.ones(space.shape(unit)).bool().tolist()
            )
            assert above == kept[read]
            outcomes |= {value for layer in above for value in layer}
    assert outcomes == {True, False}


# --- folding -------------------------------------------------------------------------------------------------------------

FOLDABLE = (G.LAYER, G.ATTN_BLOCK, G.MLP_BLOCK, G.HEAD, G.HEAD_DIM, G.MLP_NEURON, G.EMBED)
EXAMPLES = random_examples([6, 4, 6, 5])


def logits_under(subject: Subject, ablation: Ablation, site_masks: SiteMasks) -> Tensor:
    batch = collate(ablations.with_counterfactuals(EXAMPLES, ablation), "cpu")
    references = References(subject, ablation, constants=ablations.constants(subject, [batch], ablation))
    baselines = references(batch).baselines
    with torch.no_grad(), masked(subject, site_masks, baselines):
        return answer_logits(subject, batch.clean, batch.positions)


@pytest.mark.parametrize("ablation", Ablation, ids=str)
@each_family
def test_folding_changes_no_logits(family: str, ablation: Ablation):
    subject = shared(family)
    unsafe = family in POST_NORM or ablation is Ablation.OPTIMAL
    unsafe |= ablation is Ablation.ZERO and family in OUTPUT_BIAS
    for searched in (FOLDABLE, (G.ATTN_BLOCK, G.MLP_BLOCK), (G.LAYER, G.HEAD)):
        masks = {g: mask for g, mask in random_masks(subject.space, 5, soft=True).items() if g in searched}
        composed = subject.space.compose(masks)
        folded = subject.space.fold(composed, ablation)
        if unsafe:
            assert folded is composed
        else:
            assert not {SiteKind.ATTN_WRITE, SiteKind.MLP_WRITE} & folded.keys()
            expected = logits_under(subject, ablation, composed)
            assert_same(logits_under(subject, ablation, folded), expected)
            reads = {kind: mask for kind, mask in composed.items() if "write" not in kind}
            assert_differs(logits_under(subject, ablation, reads), expected)


def test_out_dims_are_not_folded(subject: Subject):
    masks = random_masks(subject.space, 5, soft=True)
    composed = subject.space.compose({g: masks[g] for g in (G.ATTN_OUT_DIM, G.ATTN_BLOCK, G.MLP_BLOCK, G.MLP_OUT_DIM)})
    folded = subject.space.fold(composed, Ablation.CORRUPTED)
    assert folded.keys() == composed.keys() == {SiteKind.ATTN_WRITE, SiteKind.MLP_WRITE}
    assert all(folded[kind] is composed[kind] for kind in composed)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text"])
def test_folding_would_be_wrong_where_it_is_refused(family: str):
    """With an output bias under zero ablation, and across a norm, an emptied block is no closed block."""
    subject = shared(family)
    ablation = Ablation.ZERO if family == "gpt2" else Ablation.MEAN
    by_writes = subject.space.compose({g: torch.zeros(2, 1) for g in (G.ATTN_BLOCK, G.MLP_BLOCK)})
    by_reads = subject.space.compose({G.HEAD: torch.zeros(2, 4), G.MLP_NEURON: torch.zeros(2, 20)})
    assert not subject.space.reads_decide(ablation)
    assert_differs(logits_under(subject, ablation, by_reads), logits_under(subject, ablation, by_writes))


def test_containers_open_is_the_product_of_all_that_contains_a_node(subject: Subject):
    space = subject.space
    masks = random_masks(space, 3)
    products = space.containers_open(masks)
    assert G.LAYER not in products
    assert G.EMBED not in products
    for layer in range(space.layers):
        in_layer, attn, mlp = (bool(masks[g][layer, 0]) for g in (G.LAYER, G.ATTN_BLOCK, G.MLP_BLOCK))
        for dim in range(space.heads * space.head_dim):
            head = bool(masks[G.HEAD][layer, dim // space.head_dim])
            assert bool(products[G.HEAD_DIM][layer, dim]) == (in_layer and attn and head)
        for g, expected in (
            (G.ATTN_BLOCK, in_layer),
            (G.MLP_NEURON, in_layer and mlp),
            (G.ATTN_OUT_DIM, in_layer and attn),
        ):
            assert bool(products[g][layer].all()) == expected
            assert bool(products[g][layer].any()) == expected
    assert set(space.containers_open({g: masks[g] for g in (G.HEAD_DIM, G.MLP_NEURON)})) == set()
