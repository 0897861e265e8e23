"""A circuit as other tools know circuits: whole heads and MLPs, kept or not, and edges that end at single query heads.

Finer nodes are lost: a head of which one dim is kept is kept. Keys and values that several heads share become as many
receivers as heads share them, each with the edges and scores of the one. Nothing here runs a model or touches a file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.circuits.graph import EdgeCircuit, Graph, Receiver, as_sources
from circuitsieve.circuits.nodes import NodeSpace
from circuitsieve.vocabulary import Granularity

_LEAF_OF = {
    Granularity.HEAD: Granularity.HEAD_DIM,
    Granularity.MLP_BLOCK: Granularity.MLP_NEURON,
    Granularity.EMBED: Granularity.EMBED,
}
"""What the sources of the graph are scored by."""


@dataclass(frozen=True, eq=False)
class Wholes:
    """Whole nodes and the edges between them; sources in the order of `Graph`."""

    space: NodeSpace
    """Of the model."""
    graph: Graph
    """As if no heads of the model shared keys and values."""
    kept: Bool[Tensor, " sources"]
    scores: Float[Tensor, " sources"]
    """NaN where a node was not scored: it is always kept."""
    edges: EdgeCircuit
    """Without scores where edges were not searched: then all between kept nodes."""

    @classmethod
    def of(
        cls, circuit: Circuit, ranking: Ranking | None, edges: EdgeCircuit | None, *, parallel: bool = False
    ) -> "Wholes":
        """The whole nodes and edges of a circuit.

        Args:
            circuit: its nodes.
            ranking: scores of its nodes, if there are any; a whole node scores the highest of what it contains.
            edges: its edges, if they were searched.
            parallel: whether attention and MLP of a layer read the same residual stream; where edges are given, they say it.
        """
        graph = of_heads(circuit.space, edges.graph.parallel if edges else parallel)
        heads, mlps = graph.kept(circuit.masks)
        kept = as_sources(circuit.masks[Granularity.EMBED], heads, mlps)
        among = graph.among(circuit.masks)
        scores = _scores(circuit.space, ranking)
        if edges is None:
            return cls(circuit.space, graph, kept, scores, EdgeCircuit(graph, among, {}))
        masks = {receiver: mask & among[receiver] for receiver, mask in _unshared(edges.masks, circuit.space).items()}
        return cls(
            circuit.space, graph, kept, scores, EdgeCircuit(graph, masks, _unshared(edges.scores, circuit.space))
        )

    @property
    def ranking(self) -> Ranking:
        """The scores as a ranking of whole heads, MLPs and the embedding: what was not scored stays at every size."""
        scores = self.scores.nan_to_num(torch.inf)
        by_layer = scores[1:].view(self.space.layers, self.graph.per_layer)
        found = {
            Granularity.HEAD: by_layer[:, :-1],
            Granularity.MLP_BLOCK: by_layer[:, -1:],
            Granularity.EMBED: scores[:1, None],
        }
        return Ranking(self.space, found)


def of_heads(space: NodeSpace, parallel: bool) -> Graph:
    """The graph of a model as if every query head had keys and values of its own."""
    return Graph(replace(space, kv_heads=space.heads), parallel)


def _unshared(tensors: Mapping[Receiver, Tensor], space: NodeSpace) -> dict[Receiver, Tensor]:
    """Rows of shared keys and values, once for every head that shares them."""
    each = space.heads // space.kv_heads
    shared = (Receiver.K, Receiver.V)
    return {r: tensor.repeat_interleave(each, 1) if r in shared else tensor for r, tensor in tensors.items()}


def _scores(space: NodeSpace, ranking: Ranking | None) -> Float[Tensor, " sources"]:
    """Scores of the sources; NaN where there is none, or none that a file could hold."""
    leaves = {} if ranking is None else space.lowest(ranking.scores)
    lifted = space.lifted(leaves, [g for g, leaf in _LEAF_OF.items() if leaf in leaves])
    embed, heads, mlps = (
        lifted.get(g, torch.full(space.shape(g), torch.nan)).double()
        for g in (Granularity.EMBED, Granularity.HEAD, Granularity.MLP_BLOCK)
    )
    scores = as_sources(embed, heads, mlps)
    return torch.where(scores.isfinite(), scores, torch.nan)
