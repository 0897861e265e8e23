"""Is every node of the circuit needed?

Each kept block and head, and a sample of the kept head dims and MLP neurons, is knocked out of the circuit by itself. What that
changes is held against what nodes outside of the circuit change when they are added to it, each by itself (Shi et al. 2024: a
node that matters no more than most random ones is not needed). Small effects are no proof that a node can go: several may
stand in for one another.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.nodes import Node
from circuitsieve.evaluation.harness import Harness
from circuitsieve.evaluation.hypotheses import LEVEL, SHARE, beats_most, corrected
from circuitsieve.evaluation.metrics import Outcome, Summary
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Granularity

ALL_OF = (Granularity.ATTN_BLOCK, Granularity.MLP_BLOCK, Granularity.HEAD)
"""Granularities of which every kept node is knocked out."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SMALL = 0.01
"""An effect below this share of the full model's metric, of either sign, is small."""


def minimality(harness: Harness) -> Summary:
    """Effects of kept nodes, and how many of them are more than what nodes of the same granularity outside would do."""
    circuit, few = harness.circuit, harness.few
    own = harness.run(circuit, few, "minimality")
    nodes, strangers = chosen_nodes(harness), null_nodes(harness)
    if not (full := abs(few.anchors.full.mean("metric"))):
        return Summary(
            {"needed": None, "compared": 0}, {}, {"needed": "the full model's metric is 0, no measure of effects"}
        )
    begun = harness.begin()

    def turned(node: Node, *, keep: bool) -> Outcome:
        """The circuit with a node changed; what comes before its layer is as in the circuit."""
        return harness.run(changed(circuit, node, keep=keep), few, "minimality", begun, node.layer)

    effects, sizes = {}, {}
    for node in nodes:
        outcome = turned(node, keep=False)
        effects[node], sizes[node] = (own.mean("metric") - outcome.mean("metric")) / full, _moved(own, outcome)
    nulls = {g: [_moved(own, turned(node, keep=True)) for node in some] for g, some in strangers.items()}
    raw = {
        node: beats_most(sum(sizes[node] > null for null in nulls[node.granularity]), len(nulls[node.granularity]))
        for node in nodes
        if node.granularity in nulls
    }
    p_values = dict(zip(raw, corrected(list(raw.values())), strict=True))
    values = {
        **_distribution(list(effects.values())),
        "tested": len(nodes),
        "compared": len(p_values),
        "needed": _share([p < LEVEL for p in p_values.values()]),
        "granularities": {
            str(g): {
                **_distribution([effects[node] for node in nodes if node.granularity is g]),
                "tested": sum(node.granularity is g for node in nodes),
                "needed": _share([p < LEVEL for node, p in p_values.items() if node.granularity is g]),
            }
            for g in (*ALL_OF, *UNIT_GRANULARITIES)
        },
        "nodes": {str(node): effect for node, effect in effects.items()},
    }
    missing = {str(g): _too_few(harness, g, len(nodes)) for g in (*ALL_OF, *UNIT_GRANULARITIES) if g not in nulls}
    return Summary(values, {}, {"needed": missing} if missing else {})


def chosen_nodes(harness: Harness) -> list[Node]:
    """Every kept block and head, and a sample of the kept units."""
    masks = harness.circuit.masks
    coarse = [node for g in ALL_OF for node in _nodes(g, masks[g])]
    return coarse + _sample(
        [n for g in UNIT_GRANULARITIES for n in _nodes(g, masks[g])], harness.config.finer_nodes, harness
    )


def null_nodes(harness: Harness) -> dict[Granularity, list[Node]]:
    """Nodes outside of the circuit, of the granularities of which there are enough."""
    circuit, n = harness.circuit, harness.config.null_nodes
    needed = fewest(len(chosen_nodes(harness)))
    enough = [g for g in (*ALL_OF, *UNIT_GRANULARITIES) if min(n, outside(circuit, g)) >= needed]
    return {g: _sample(list(_nodes(g, ~circuit.masks[g])), n, harness) for g in enough}


def fewest(nodes: int) -> int:
    """With how many others nodes have to be compared: with fewer, one that beats all of them would not be told from chance.

    Args:
        nodes: that are tested together, for which p-values are corrected.
    """
    return math.floor(math.log(LEVEL / max(nodes, 1)) / math.log(SHARE)) + 1


def _too_few(harness: Harness, granularity: Granularity, nodes: int) -> str:
    found = min(harness.config.null_nodes, outside(harness.circuit, granularity))
    return f"found {found} nodes outside of the circuit to compare with, expected at least {fewest(nodes)} for {nodes} nodes"


def outside(circuit: Circuit, granularity: Granularity) -> int:
    """How many nodes of a granularity a circuit does not keep."""
    return int((~circuit.masks[granularity]).sum())


def changed(circuit: Circuit, node: Node, *, keep: bool) -> Circuit:
    """A circuit with a node knocked out, or added with all that contains it and all that it contains."""
    g, space = Granularity, circuit.space
    masks = {name: mask.clone() for name, mask in circuit.masks.items()}
    masks[node.granularity][node.layer, node.index] = keep
    if not keep:
        return Circuit(space, masks, circuit.ablation, circuit.constants)
    layer, attn = node.layer, node.granularity in (g.ATTN_BLOCK, g.HEAD, g.HEAD_DIM)
    masks[g.LAYER][layer] = True
    block, out = (g.ATTN_BLOCK, g.ATTN_OUT_DIM) if attn else (g.MLP_BLOCK, g.MLP_OUT_DIM)
    if not masks[block][layer].any() or node.granularity is block:
        masks[out][layer] = True
    masks[block][layer] = True
    dims = masks[g.HEAD_DIM].view(space.layers, space.heads, space.head_dim)
    match node.granularity:
        case g.ATTN_BLOCK:
            masks[g.HEAD][layer], masks[g.HEAD_DIM][layer] = True, True
        case g.MLP_BLOCK:
            masks[g.MLP_NEURON][layer] = True
        case g.HEAD:
            dims[layer, node.index] = True
        case g.HEAD_DIM:
            masks[g.HEAD][layer, node.index // space.head_dim] = True
    return Circuit(space, masks, circuit.ablation, circuit.constants)


def _nodes(granularity: Granularity, mask: torch.Tensor) -> Iterator[Node]:
    return (Node(granularity, layer, index) for layer, index in mask.nonzero().tolist())


def _sample(nodes: Sequence[Node], n: int, harness: Harness) -> list[Node]:
    order = torch.randperm(len(nodes), generator=harness.generator()).tolist()[:n]
    return [nodes[i] for i in sorted(order)]


def _moved(own: Outcome, other: Outcome) -> float:
    """The mean over pairs of how far the metric moves, in either direction."""
    return float(np.abs(own.values["metric"] - other.values["metric"]).mean())


def _distribution(effects: Sequence[float]) -> dict[str, float | None]:
    names = [f"effect_p{100 * q:.0f}" for q in QUANTILES]
    if not effects:
        return dict.fromkeys([*names, "small"])
    return {
        **{name: float(np.quantile(effects, q)) for name, q in zip(names, QUANTILES, strict=True)},
        "small": _share([abs(effect) < SMALL for effect in effects]),
    }


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
