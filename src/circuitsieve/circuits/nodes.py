"""The node space of a model: which nodes there are, what contains what, how they are named and what they cost.

All hierarchy is here, in one product (`NodeSpace.compose`); gates, circuits and hooks know none. Pure shapes: nothing
here runs a model.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitsieve.circuits.masks import BoolMasks, Masks, Scores
from circuitsieve.errors import ConfigError, one_of
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Ablation, Granularity, Site, SiteKind

Activations = dict[Site, Tensor]
"""The activation at each site: [batch, tokens, n], or anything that broadcasts to it."""

SiteMasks = dict[SiteKind, Float[Tensor, "#layers ... _"] | Bool[Tensor, "#layers _"]]

COMPOSITION: Mapping[SiteKind, tuple[Granularity, ...]] = {
    SiteKind.EMBED: (Granularity.EMBED,),
    SiteKind.ATTN_READ: (Granularity.HEAD, Granularity.HEAD_DIM),
    SiteKind.ATTN_WRITE: (Granularity.LAYER, Granularity.ATTN_BLOCK, Granularity.ATTN_OUT_DIM),
    SiteKind.MLP_READ: (Granularity.MLP_NEURON,),
    SiteKind.MLP_WRITE: (Granularity.LAYER, Granularity.MLP_BLOCK, Granularity.MLP_OUT_DIM),
}
"""The mask of a site is the product of the masks of these granularities."""

CONTAINERS: Mapping[Granularity, tuple[Granularity, ...]] = {
    Granularity.ATTN_BLOCK: (Granularity.LAYER,),
    Granularity.MLP_BLOCK: (Granularity.LAYER,),
    Granularity.HEAD: (Granularity.LAYER, Granularity.ATTN_BLOCK),
    Granularity.HEAD_DIM: (Granularity.LAYER, Granularity.ATTN_BLOCK, Granularity.HEAD),
    Granularity.MLP_NEURON: (Granularity.LAYER, Granularity.MLP_BLOCK),
    Granularity.ATTN_OUT_DIM: (Granularity.LAYER, Granularity.ATTN_BLOCK),
    Granularity.MLP_OUT_DIM: (Granularity.LAYER, Granularity.MLP_BLOCK),
}
"""The granularities whose nodes contain those of a granularity."""

LEAVES = (
    Granularity.HEAD_DIM,
    Granularity.MLP_NEURON,
    Granularity.ATTN_OUT_DIM,
    Granularity.MLP_OUT_DIM,
    Granularity.EMBED,
)
"""The granularities whose nodes contain no others."""


def chains(searched: Iterable[Granularity]) -> dict[Granularity, list[Granularity]]:
    """For each granularity of LEAVES that a search decides about: the searched ones along the way down to it, coarsest first.

    Units are decided about as soon as anything that contains them is searched; out dims and the embedding only if they are
    searched themselves.
    """
    searched = set(searched)
    found = {leaf: [g for g in (*CONTAINERS.get(leaf, ()), leaf) if g in searched] for leaf in LEAVES}
    return {leaf: chain for leaf, chain in found.items() if leaf in searched or (chain and leaf in UNIT_GRANULARITIES)}


def finest(granularities: Iterable[Granularity]) -> dict[Granularity, Granularity]:
    """For each granularity whose nodes have no children: the searched one that decides about them, if any."""
    return {leaf: chain[-1] for leaf, chain in chains(granularities).items()}


WRITE_OF_READ = {SiteKind.ATTN_READ: SiteKind.ATTN_WRITE, SiteKind.MLP_READ: SiteKind.MLP_WRITE}
"""The two sites of attention, and of MLPs: what the output projection reads, and what the block writes."""
_NAME = re.compile(r"L(?P<layer>\d+)\.(?P<granularity>[a-z_]+)(?:\.(?P<index>\d+))?")


@dataclass(frozen=True)
class Node:
    """One node; written `embed`, `L3.attn_block`, `L3.head.7`, `L3.head_dim.455`."""

    granularity: Granularity
    layer: int
    index: int

    def __str__(self) -> str:
        if self.granularity is Granularity.EMBED:
            return "embed"
        if self.granularity in (Granularity.LAYER, Granularity.ATTN_BLOCK, Granularity.MLP_BLOCK):
            return f"L{self.layer}.{self.granularity}"
        return f"L{self.layer}.{self.granularity}.{self.index}"


@dataclass(frozen=True)
class NodeSpace:
    """The shape of a model as far as nodes go. Equal for equal architectures, whatever the weights."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    neurons: int
    """MLP hidden units per layer."""
    width: int
    """Residual dimensions."""
    mlp_inputs: int
    """Input projections of an MLP: 2 where it is gated, else 1."""
    biases: frozenset[str]
    """Which of q, k, v, attn_out, mlp_in, mlp_out add a bias."""
    post_norm: bool
    """Whether a norm stands between the projections and the residual stream."""
    joint_qk_norm: bool = False
    """Whether a norm runs over Q of all heads together, and another over K."""

    # --- shapes and names -------------------------------------------------------------------------------------------

    def shape(self, granularity: Granularity) -> tuple[int, int]:
        """Layers x nodes of a granularity; `embed` is a single node."""
        match granularity:
            case Granularity.EMBED:
                return (1, 1)
            case Granularity.HEAD:
                n = self.heads
            case Granularity.HEAD_DIM:
                n = self.heads * self.head_dim
            case Granularity.MLP_NEURON:
                n = self.neurons
            case Granularity.ATTN_OUT_DIM | Granularity.MLP_OUT_DIM:
                n = self.width
            case _:
                n = 1
        return (self.layers, n)

    def site_width(self, kind: SiteKind) -> int:
        """Units at a site."""
        return self.shape(COMPOSITION[kind][-1])[1] if kind is not SiteKind.EMBED else self.width

    @property
    def units(self) -> int:
        """Head dims and MLP neurons of the whole model: the denominator of `size`."""
        return self.layers * (self.heads * self.head_dim + self.neurons)

    def full(self, value: bool = True) -> dict[Granularity, Bool[Tensor, "#layers _"]]:
        """Masks of every granularity, all open or all closed."""
        return {g: torch.full(self.shape(g), value) for g in Granularity}

    def parse(self, name: str) -> Node:
        """The node of a name.

        Raises:
            ConfigError: the name is malformed or lies outside this model.
        """
        if name == "embed":
            return Node(Granularity.EMBED, 0, 0)
        match = _NAME.fullmatch(name)
        if match is None or match["granularity"] == "embed":
            raise ConfigError(
                f"node: found {name!r}, expected a name like embed, L3.attn_block, L3.head.7 or L3.head_dim.455"
            )
        known = [str(g) for g in Granularity if g is not Granularity.EMBED]
        if match["granularity"] not in known:
            raise ConfigError(one_of(f"granularity of node {name!r}", match["granularity"], known))
        granularity = Granularity(match["granularity"])
        layers, n = self.shape(granularity)
        node = Node(granularity, int(match["layer"]), int(match["index"] or 0))
        if str(node) != name or node.layer >= layers or node.index >= n:
            last = Node(granularity, layers - 1, n - 1)
            raise ConfigError(f"node: found {name!r}, expected one from {Node(granularity, 0, 0)} to {last}")
        return node

    def names(self, masks: BoolMasks) -> Iterable[str]:
        """The names of the kept nodes, granularity by granularity."""
        for granularity, mask in masks.items():
            for layer, index in mask.nonzero().tolist():
                yield str(Node(granularity, layer, index))

    # --- composition ------------------------------------------------------------------------------------------------

    def compose(self, masks: Masks) -> SiteMasks:
        """The product rule: a unit is kept only if every node that contains it is.

        Masks may hold any subset of the granularities; a missing one is open. A site that no mask touches is missing
        in the result. A write mask has one column where only blocks or layers gate it.
        """
        composed: SiteMasks = {}
        for kind, granularities in COMPOSITION.items():
            for granularity in granularities:
                if granularity in masks:
                    mask = masks[granularity]
                    if granularity is Granularity.HEAD:
                        mask = mask.repeat_interleave(self.head_dim, dim=-1)
                    composed[kind] = composed[kind] * mask if kind in composed else mask
        return composed

    def containers_open(
        self, masks: Masks
    ) -> dict[Granularity, Float[Tensor, "#layers _"] | Bool[Tensor, "#layers _"]]:
        """For each granularity in the masks that others in them contain: the product of the masks of the containers."""
        products: dict[Granularity, Tensor] = {}
        for granularity in masks:
            for container in CONTAINERS.get(granularity, ()):
                if container in masks:
                    mask = masks[container]
                    if container is Granularity.HEAD:
                        mask = mask.repeat_interleave(self.head_dim, dim=1)
                    products[granularity] = products[granularity] * mask if granularity in products else mask
        return products

    def along(
        self, scores: Scores, combine: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """Scores of the nodes without children, each combined with those of all nodes that contain it.

        What is missing in the result is not searched (`chains`).
        """
        leaves: dict[Granularity, Tensor] = {}
        for leaf, chain in chains(scores).items():
            terms = [
                scores[g].repeat_interleave(self.head_dim, dim=1) if g is Granularity.HEAD else scores[g] for g in chain
            ]
            leaves[leaf] = functools.reduce(combine, terms).expand(self.shape(leaf))
        return leaves

    def summed(self, scores: Scores) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """Scores of the nodes without children, those of all nodes that contain them added (nested masks)."""
        return self.along(scores, torch.add)

    def lowest(self, scores: Scores) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """Scores of the nodes without children: the lowest of their own and those of all nodes that contain them.

        Cutting them at a threshold keeps the units that the product rule keeps when all nodes are cut there.
        """
        return self.along(scores, torch.minimum)

    def lifted(self, leaves: Scores, granularities: Iterable[Granularity]) -> dict[Granularity, Tensor]:
        """Scores of nodes of any granularity from those of nodes without children: the highest of what a node contains.

        Cut anywhere, they keep the units that the given scores keep, and what contains those.
        """
        lifted: dict[Granularity, Tensor] = {}
        for granularity in granularities:
            inside = [
                score.view(*self.shape(granularity), -1).amax(-1)
                for leaf, score in leaves.items()
                if leaf is granularity or (leaf in UNIT_GRANULARITIES and granularity in CONTAINERS[leaf])
            ]
            lifted[granularity] = torch.stack(inside).amax(0)
        return lifted

    def fold(self, site_masks: SiteMasks, ablation: Ablation) -> SiteMasks:
        """Move block masks from the write sites into the read sites, where that changes no value.

        The projections are affine, so masking the whole of what a block writes equals masking all that its projection
        reads: one site less to mix and to remember. Not so with out dims, nor across a norm.
        """
        if self.post_norm or not self.reads_decide(ablation):
            return site_masks
        folded = dict(site_masks)
        for read, write in WRITE_OF_READ.items():
            if write in folded and folded[write].shape[-1] == 1:
                whole = folded.pop(write)
                _, units = self.shape(COMPOSITION[read][-1])
                folded[read] = folded[read] * whole if read in folded else whole.expand(*whole.shape[:-1], units)
        return folded

    def reads_decide(self, ablation: Ablation) -> bool:
        """Whether a block with all its reads ablated writes its own write baseline.

        True where the baseline is a run (of the same example at all sites), where it is a mean that no norm follows, and
        where it is zero and the output projections add no bias. Elsewhere a block without open heads or neurons still
        differs from a closed one.
        """
        if ablation is Ablation.OPTIMAL:  # what is read and what is written are learned apart
            return False
        if ablation is Ablation.ZERO:
            return not self.biases & {"attn_out", "mlp_out"}
        return ablation.is_run or not self.post_norm

    # --- sizes ------------------------------------------------------------------------------------------------------

    def kept_units(self, masks: BoolMasks) -> dict[SiteKind, Bool[Tensor, "#layers _"]]:
        """The units that survive every node that contains them: per read site, and the out dims per write site."""
        composed = self.compose({**self.full(), **masks})
        kept = {}
        for read, write in WRITE_OF_READ.items():
            reads, writes = composed[read], composed[write]
            kept[read] = reads & writes.any(dim=1, keepdim=True)
            kept[write] = writes
        return kept

    def size(self, masks: BoolMasks) -> float:
        """The kept share of the read-site units, in [0, 1]."""
        kept = self.kept_units(masks)
        return int(kept[SiteKind.ATTN_READ].sum() + kept[SiteKind.MLP_READ].sum()) / self.units
