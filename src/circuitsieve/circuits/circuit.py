"""Circuits and rankings: frozen results, and the clean-up that never changes what a circuit computes.

A circuit holds one boolean mask for every granularity (1 = keep), whether or not that granularity was searched. A ranking
holds a score for every searched node; cutting it anywhere gives a circuit.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitsieve import display
from circuitsieve.circuits.costs import ParameterCount, parameters, share
from circuitsieve.circuits.masks import BoolMasks, Scores, counts, cut, equal
from circuitsieve.circuits.nodes import Activations, NodeSpace, SiteMasks
from circuitsieve.errors import ConfigError
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Ablation, Granularity, SiteKind
from circuitsieve.wording import kept_rows, number, percent

SIZES_SHOWN = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
"""At which a ranking is shown."""
ROUNDING = 1e-9
"""By which share a size may be passed: a share of whole units is no exact number."""


def constants_needed(ablation: Ablation, constants: Activations | None) -> Activations:
    """The constants of a circuit whose ablation takes them.

    Raises:
        ConfigError: there are none.
    """
    if constants is None:
        raise ConfigError(
            f"ablation {ablation}: found a circuit without constants, expected those of every site, which a search makes"
        )
    return constants


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """A frozen set of kept nodes, and the baseline that every other node is replaced by."""

    space: NodeSpace
    masks: BoolMasks
    """Every granularity, [layers, n], on the CPU; cleaned up when the circuit is made."""
    ablation: Ablation = Ablation.CORRUPTED
    constants: Activations | None = None
    """The constant baselines of every site, where the ablation is no run."""

    def __post_init__(self) -> None:
        masks = {g: self.masks.get(g, torch.ones(self.space.shape(g), dtype=torch.bool)) for g in Granularity}
        for granularity, mask in masks.items():
            if tuple(mask.shape) != self.space.shape(granularity):
                raise ConfigError(
                    f"mask of {granularity}: found the shape {tuple(mask.shape)}, expected {self.space.shape(granularity)}"
                )
        object.__setattr__(self, "masks", clean_up(masks, self.space, self.ablation))

    @classmethod
    def from_nodes(
        cls,
        space: NodeSpace,
        names: Iterable[str],
        *,
        ablation: Ablation = Ablation.CORRUPTED,
        constants: Activations | None = None,
    ) -> "Circuit":
        """The circuit that keeps the named nodes with all that they contain, and nothing else.

        Naming out dims of a block keeps only those of what it writes. The embedding always stays.

        Raises:
            ConfigError: a name is malformed or lies outside the model.
        """
        masks = space.full(False)
        masks[Granularity.EMBED][:] = True
        for name in names:
            node = space.parse(name)
            masks[node.granularity][node.layer, node.index] = True
        _open_below(masks, space)
        return cls(space, masks, ablation, constants)

    def site_masks(self) -> SiteMasks:
        """Boolean masks of the sites that need one, block masks folded into reads where that changes nothing."""
        partial = {g: mask for g, mask in self.masks.items() if not (mask | ~self._block_of(g)).all()}
        return self.space.fold(self.space.compose(partial), self.ablation)

    def _block_of(self, granularity: Granularity) -> Bool[Tensor, "#layers 1"]:
        """Whether the block of out dims is open: within a closed block they need no mask of their own."""
        match granularity:
            case Granularity.ATTN_OUT_DIM:
                return self.masks[Granularity.ATTN_BLOCK]
            case Granularity.MLP_OUT_DIM:
                return self.masks[Granularity.MLP_BLOCK]
            case _:
                return torch.ones(1, 1, dtype=torch.bool)

    def complement(self) -> "Circuit":
        """Keep every read-site unit but the circuit's; out dims and the embedding stay."""
        kept = self.space.kept_units(self.masks)
        masks = {
            Granularity.HEAD_DIM: ~kept[SiteKind.ATTN_READ],
            Granularity.MLP_NEURON: ~kept[SiteKind.MLP_READ],
        }
        return Circuit(self.space, masks, self.ablation, self.constants)

    @property
    def size(self) -> float:
        """The kept share of the head dims and MLP neurons."""
        return self.space.size(self.masks)

    def share(self, measure: str) -> float:
        """The kept share of all units or of all parameters.

        Args:
            measure: units (as `size`) or parameters.
        """
        return share(self.space, self.masks, measure)

    @property
    def counts(self) -> dict[Granularity, tuple[int, int]]:
        """Kept and total nodes of each granularity."""
        return counts(self.masks)

    @property
    def parameters(self) -> ParameterCount:
        """Exact parameters of the projections that a surgically reduced copy would keep, and all of them."""
        return parameters(self.space, self.masks)

    @property
    def head_dims(self) -> list[list[int]]:
        """Kept dims of every head, layer by layer."""
        dims = self.space.kept_units(self.masks)[SiteKind.ATTN_READ]
        return dims.view(*self.space.shape(Granularity.HEAD), -1).sum(-1).tolist()

    @property
    def mlp_neurons(self) -> list[int]:
        """Kept MLP neurons of every layer."""
        return self.space.kept_units(self.masks)[SiteKind.MLP_READ].sum(1).tolist()

    def nodes(self, *granularities: Granularity) -> list[str]:
        """Names of the kept nodes of the given granularities (all of them by default)."""
        return list(self.space.names({g: self.masks[g] for g in granularities or Granularity}))

    def __repr__(self) -> str:
        kept = (f"{self.counts[g][0]:,} of {self.counts[g][1]:,} {g}s" for g in (Granularity.HEAD, *UNIT_GRANULARITIES))
        return f"Circuit({percent(self.size)} of the units: {', '.join(kept)}; ablation {self.ablation})"

    def _repr_html_(self) -> str:
        """For notebooks: the map of heads and MLPs, and what is kept of each granularity."""
        rows = kept_rows({str(g): count for g, count in self.counts.items()}, self.size, self.parameters)
        space = self.space
        picture = display.circuit_map(self.head_dims, space.head_dim, self.mlp_neurons, space.neurons, repr(self))
        return display.paragraph(repr(self)) + picture + display.table(rows)


@dataclass(frozen=True, eq=False, repr=False)
class Ranking:
    """A score per searched node; a unit scores the minimum over the nodes that contain it. Higher = kept longer."""

    space: NodeSpace
    scores: Scores

    def cut(self, threshold: float = 0.0) -> dict[Granularity, Bool[Tensor, "#layers _"]]:
        """Masks of the nodes that score above the threshold."""
        return cut(self.scores, threshold)

    def threshold_at(self, size: float, measure: str = "units") -> float:
        """The lowest threshold at which at most a share is kept, of units or of parameters; out dims are cut at the same one.

        Where no cut is as small, because not all units are ranked: the highest one, which keeps none that is.

        Raises:
            ConfigError: size lies outside (0, 1].
        """
        if not 0 < size <= 1:
            raise ConfigError(f"size: found {size}, expected a fraction above 0 and at most 1")
        # No list: of a large model it would hold millions of numbers, which takes seconds.
        scores = self.unit_scores()
        # What is not ranked scores infinity and stays at every size.
        thresholds = torch.cat([torch.tensor([-torch.inf]), scores[scores.isfinite()].sort().values])
        allowed = size * (1 + ROUNDING)

        def fits(i: int) -> bool:
            return self._share_at(float(thresholds[i]), measure) <= allowed

        return float(thresholds[bisect_left(range(len(thresholds) - 1), True, key=fits)])

    def _share_at(self, threshold: float, measure: str) -> float:
        return share(self.space, {**self.space.full(), **self.cut(threshold)}, measure)

    @property
    def share_ranked(self) -> float:
        """The share of the units that it can close."""
        return float((self.unit_scores() < torch.inf).float().mean())

    def unit_scores(self) -> Float[Tensor, " units"]:
        """Scores of all head dims, then of all MLP neurons, layer by layer."""
        scores, always = self.space.lowest(self.scores), torch.tensor(torch.inf)
        return torch.cat([scores.get(g, always.expand(self.space.shape(g))).flatten() for g in UNIT_GRANULARITIES])

    def __repr__(self) -> str:
        return f"Ranking({', '.join(f'{scores.numel():,} {g}s' for g, scores in self.scores.items())})"

    def _repr_html_(self) -> str:
        """For notebooks: what it keeps at several sizes."""
        shown = (Granularity.HEAD, *UNIT_GRANULARITIES)
        rows = [["size", "threshold", *map(str, shown)]]
        for size in SIZES_SHOWN:
            threshold = self.threshold_at(size)
            kept = Circuit(self.space, self.cut(threshold)).counts
            rows.append([f"{size:.0%}", number(threshold, 3), *(f"{kept[g][0]:,}" for g in shown)])
        return display.paragraph(repr(self)) + display.table(rows, "Nodes kept where it is cut at a size")


def clean_up(masks: BoolMasks, space: NodeSpace, ablation: Ablation) -> dict[Granularity, Bool[Tensor, "#layers _"]]:
    """Close the nodes that no longer do anything, to a fixpoint, without changing what the circuit computes.

    Downward: a closed parent closes its children. Upward: a head without head dims, a block without out dims and a layer
    without blocks close; a block without heads or neurons closes only where `NodeSpace.reads_decide`.
    """
    while True:
        cleaned = _clean_once(masks, space, space.reads_decide(ablation))
        if equal(cleaned, masks):
            return cleaned
        masks = cleaned


def _clean_once(masks: BoolMasks, space: NodeSpace, reads_decide: bool) -> dict[Granularity, Bool[Tensor, "#layers _"]]:
    g = Granularity
    dims_of_heads = masks[g.HEAD_DIM].view(space.layers, space.heads, space.head_dim)
    layer = masks[g.LAYER] & (masks[g.ATTN_BLOCK] | masks[g.MLP_BLOCK])
    attn = masks[g.ATTN_BLOCK] & layer & masks[g.ATTN_OUT_DIM].any(1, keepdim=True)
    mlp = masks[g.MLP_BLOCK] & layer & masks[g.MLP_OUT_DIM].any(1, keepdim=True)
    if reads_decide:
        attn = attn & masks[g.HEAD].any(1, keepdim=True)
        mlp = mlp & masks[g.MLP_NEURON].any(1, keepdim=True)
    head = masks[g.HEAD] & attn & dims_of_heads.any(-1)
    return {
        g.LAYER: layer,
        g.ATTN_BLOCK: attn,
        g.MLP_BLOCK: mlp,
        g.HEAD: head,
        g.HEAD_DIM: masks[g.HEAD_DIM] & head.repeat_interleave(space.head_dim, dim=1),
        g.MLP_NEURON: masks[g.MLP_NEURON] & mlp,
        g.ATTN_OUT_DIM: masks[g.ATTN_OUT_DIM] & attn,
        g.MLP_OUT_DIM: masks[g.MLP_OUT_DIM] & mlp,
        g.EMBED: masks[g.EMBED],
    }


def _open_below(masks: Mapping[Granularity, Bool[Tensor, "#layers _"]], space: NodeSpace) -> None:
    """Open, in place, what the open nodes contain and what contains them."""
    g = Granularity
    masks[g.ATTN_BLOCK].logical_or_(masks[g.LAYER])
    masks[g.MLP_BLOCK].logical_or_(masks[g.LAYER])
    masks[g.HEAD].logical_or_(masks[g.ATTN_BLOCK])
    masks[g.HEAD_DIM].logical_or_(masks[g.HEAD].repeat_interleave(space.head_dim, dim=1))
    masks[g.MLP_NEURON].logical_or_(masks[g.MLP_BLOCK])
    for block, out_dims, units in (
        (g.ATTN_BLOCK, g.ATTN_OUT_DIM, g.HEAD_DIM),
        (g.MLP_BLOCK, g.MLP_OUT_DIM, g.MLP_NEURON),
    ):
        named = masks[out_dims].any(1, keepdim=True)
        alone = named & ~masks[units].any(1, keepdim=True)
        masks[units].logical_or_(alone)
        masks[out_dims].logical_or_(~named)
        masks[block].logical_or_(masks[units].any(1, keepdim=True))
    masks[g.HEAD].logical_or_(masks[g.HEAD_DIM].view(space.layers, space.heads, space.head_dim).any(-1))
    masks[g.LAYER].logical_or_(masks[g.ATTN_BLOCK] | masks[g.MLP_BLOCK])
