"""The computation graph between whole heads and MLPs: what can read what, how edges are named and counted.

Sources write to the residual stream: the embedding, every query head, every MLP. Receivers read from it: Q of every query head, K
and V of every key/value group, every MLP, the logits. There is an edge from every source to every receiver that comes after it.
Pure shapes: nothing here runs a model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from circuitsieve.circuits.masks import BoolMasks
from circuitsieve.circuits.nodes import NodeSpace
from circuitsieve.errors import ConfigError
from circuitsieve.vocabulary import Granularity, SiteKind


class Receiver(StrEnum):
    """What reads the residual stream."""

    Q = "q"
    K = "k"
    V = "v"
    MLP = "mlp"
    LOGITS = "logits"


EdgeMasks = Mapping[Receiver, Bool[Tensor, "layers receivers sources"]]
"""1 = keep: which sources each receiver reads; all layers in one tensor, the logits in one row."""
EdgeScores = Mapping[Receiver, Float[Tensor, "layers receivers sources"]]


class Edge(NamedTuple):
    """One edge, by name: `input->a3.h2<q>`, `m4->logits`."""

    source: str
    target: str
    receiver: Receiver
    layer: int
    place: int
    """Of the receiver in its layer."""
    source_index: int

    def __str__(self) -> str:
        return f"{self.source}->{self.target}"


@dataclass(frozen=True)
class Graph:
    """The sources, receivers and edges of a model."""

    space: NodeSpace
    parallel: bool = False
    """Whether attention and MLP of a layer read the same residual stream, so that no head feeds the MLP beside it."""

    @property
    def sources(self) -> int:
        """The embedding, then layer by layer the heads and the MLP."""
        return 1 + self.space.layers * self.per_layer

    @property
    def per_layer(self) -> int:
        """Sources of a layer."""
        return self.space.heads + 1

    def head(self, layer: int, head: int) -> int:
        """The index of a head among the sources."""
        return 1 + layer * self.per_layer + head

    def mlp(self, layer: int) -> int:
        """The index of an MLP among the sources."""
        return 1 + layer * self.per_layer + self.space.heads

    def before(self, receiver: Receiver, layer: int) -> int:
        """How many sources a receiver can read: the first ones."""
        match receiver:
            case Receiver.LOGITS:
                return self.sources
            case Receiver.MLP if not self.parallel:
                return self.mlp(layer)
            case _:
                return 1 + layer * self.per_layer

    def shape(self, receiver: Receiver) -> tuple[int, int, int]:
        """Layers x receivers of a layer x sources."""
        space = self.space
        match receiver:
            case Receiver.Q:
                return (space.layers, space.heads, self.sources)
            case Receiver.K | Receiver.V:
                return (space.layers, space.kv_heads, self.sources)
            case Receiver.MLP:
                return (space.layers, 1, self.sources)
            case Receiver.LOGITS:
                return (1, 1, self.sources)

    def every(self) -> dict[Receiver, Bool[Tensor, "layers receivers sources"]]:
        """Every edge of the full model."""
        found = {}
        for receiver in Receiver:
            layers, n, sources = self.shape(receiver)
            first = torch.tensor([self.before(receiver, layer) for layer in range(layers)])
            found[receiver] = (torch.arange(sources) < first[:, None, None]).expand(layers, n, sources).clone()
        return found

    def among(self, masks: BoolMasks) -> dict[Receiver, Bool[Tensor, "layers receivers sources"]]:
        """The edges between nodes of a circuit.

        Args:
            masks: of every granularity.
        """
        heads, mlps = self.kept(masks)
        writes = as_sources(masks[Granularity.EMBED], heads, mlps)
        groups = heads.view(self.space.layers, self.space.kv_heads, -1).any(-1)
        reads = {
            Receiver.Q: heads,
            Receiver.K: groups,
            Receiver.V: groups,
            Receiver.MLP: mlps[:, None],
            Receiver.LOGITS: torch.ones(1, 1, dtype=torch.bool),
        }
        return {receiver: mask & reads[receiver][..., None] & writes for receiver, mask in self.every().items()}

    def kept(self, masks: BoolMasks) -> tuple[Bool[Tensor, "layers heads"], Bool[Tensor, " layers"]]:
        """Heads and MLPs of which a circuit keeps anything."""
        kept = self.space.kept_units({**self.space.full(), **masks})
        dims = kept[SiteKind.ATTN_READ].view(self.space.layers, self.space.heads, self.space.head_dim)
        return dims.any(-1), kept[SiteKind.MLP_READ].any(-1)

    def alive(self, masks: EdgeMasks) -> dict[Receiver, Bool[Tensor, "layers receivers sources"]]:
        """Without the edges that change nothing: from nodes that nothing reaches, and into those that reach no logits."""
        while True:
            found = self._alive_once(masks)
            if all(torch.equal(found[receiver], masks[receiver]) for receiver in Receiver):
                return found
            masks = found

    def _alive_once(self, masks: EdgeMasks) -> dict[Receiver, Bool[Tensor, "layers receivers sources"]]:
        each = self.space.heads // self.space.kv_heads
        reached = {receiver: mask.any(-1) for receiver, mask in masks.items()}
        groups = reached[Receiver.K] | reached[Receiver.V]
        heads = reached[Receiver.Q] | groups.repeat_interleave(each, 1)
        reaching = as_sources(torch.ones(1, dtype=torch.bool), heads, reached[Receiver.MLP])
        used = torch.stack([mask.flatten(0, 1).any(0) for mask in masks.values()]).any(0)[1:]
        used = used.view(self.space.layers, self.per_layer)
        in_group = used[:, :-1].reshape(self.space.layers, self.space.kv_heads, -1).any(-1)
        reads = {Receiver.Q: used[:, :-1], Receiver.K: in_group, Receiver.V: in_group, Receiver.MLP: used[:, -1:]}
        return {
            receiver: mask & reaching & (reads[receiver][..., None] if receiver in reads else True)
            for receiver, mask in masks.items()
        }

    # --- names ------------------------------------------------------------------------------------------------------

    def source_name(self, index: int) -> str:
        """`input`, `a3.h2` or `m3`."""
        if index == 0:
            return "input"
        layer, place = divmod(index - 1, self.per_layer)
        return f"m{layer}" if place == self.space.heads else f"a{layer}.h{place}"

    def target_name(self, receiver: Receiver, layer: int, index: int) -> str:
        """`a3.h2<q>`, `a3.h2<k>` (where several heads share keys: `a3.kv0<k>`), `m3` or `logits`."""
        match receiver:
            case Receiver.LOGITS:
                return "logits"
            case Receiver.MLP:
                return f"m{layer}"
            case Receiver.K | Receiver.V if self.space.kv_heads != self.space.heads:
                return f"a{layer}.kv{index}<{receiver}>"
            case _:
                return f"a{layer}.h{index}<{receiver}>"

    def edges(self, masks: EdgeMasks) -> Iterator[Edge]:
        """The kept edges, receiver by receiver."""
        for receiver in Receiver:
            for layer, index, source in masks[receiver].nonzero().tolist():
                target = self.target_name(receiver, layer, index)
                yield Edge(self.source_name(source), target, receiver, layer, index, source)

    def readers(self, edge: Edge) -> list[str]:
        """The nodes that an edge leads to: of shared keys or values, every head of the group."""
        if edge.receiver in (Receiver.K, Receiver.V):
            each = self.space.heads // self.space.kv_heads
            return [f"a{edge.layer}.h{head}" for head in range(edge.place * each, (edge.place + 1) * each)]
        return [edge.target.partition("<")[0]]

    def check(self, masks: EdgeMasks) -> None:
        """Refuse masks of another shape, or of edges that there are not.

        Raises:
            ConfigError: they are.
        """
        for receiver, every in self.every().items():
            if receiver not in masks or masks[receiver].shape != every.shape or bool((masks[receiver] & ~every).any()):
                raise ConfigError(
                    f"edges into {receiver}: found masks that do not fit the model, expected {tuple(every.shape)}"
                )


@dataclass(frozen=True, eq=False)
class EdgeCircuit:
    """A circuit's edges: which are kept, and what each is worth."""

    graph: Graph
    masks: EdgeMasks
    scores: EdgeScores
    """What keeping an edge gains, by gradients of the KL, nats (what cutting it alone costs may be several times that); 0 where
    the circuit has no such edge."""

    def __post_init__(self) -> None:
        self.graph.check(self.masks)

    @property
    def kept(self) -> int:
        """How many edges are kept."""
        return count(self.masks)

    @property
    def total(self) -> int:
        """How many edges the full model has."""
        return count(self.graph.every())


def count(masks: EdgeMasks) -> int:
    """How many edges are kept."""
    return sum(int(mask.sum()) for mask in masks.values())


def as_sources(embed: Tensor, heads: Shaped[Tensor, "layers heads"], mlps: Tensor) -> Shaped[Tensor, " sources"]:
    """What is known of the embedding, of heads and of as many MLPs as layers, in the order of a graph's sources."""
    return torch.cat([embed.flatten(), torch.cat([heads, mlps.view(-1, 1)], 1).flatten()])
