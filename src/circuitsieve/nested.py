"""Nested masks: one score per node, and from the same scores a mask of any size.

A unit's score is the sum over the nodes that contain it. At size k its mask is `sigmoid((score - t) / T)`, with the threshold
t for which the masks sum to k. Masks of one ranking are nested: what a small one keeps, every larger one keeps.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitsieve.masks import Masks, Scores
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Granularity

BISECTIONS = 60
"""Halvings of the interval that the threshold lies in: from any scores to the last bits of float64."""
REACH = 20.0
"""So many temperatures beyond the extreme scores a threshold is looked for: a mask there is 2e-9 from 0 or 1."""
SMALLEST_START = 1e-3
"""Standard deviation of the scores at the start: enough that no two tie, too little to matter."""

Size = float | Float[Tensor, ""]
Summed = Callable[[Scores], Scores]
"""From the scores of nodes to those of units and of what else has no children (`NodeSpace.summed`)."""


class Nested(nn.Module):
    """The scores, and the masks that they give at a size."""

    def __init__(
        self,
        shapes: Mapping[Granularity, tuple[int, int]],
        summed: Summed,
        *,
        all_units: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make the scores, all but equal.

        Args:
            shapes: [layers, n] of each granularity.
            summed: adds up scores along the hierarchy.
            all_units: the units of the whole model: what a size is a share of. Those without scores are always kept.
            seed: of the start.
            device: where the scores live.
        """
        super().__init__()
        self.summed, self.all_units = summed, all_units
        self._generator = torch.Generator().manual_seed(seed)
        self.score = nn.ParameterDict()
        for granularity, shape in shapes.items():
            self.score[granularity] = nn.Parameter(self._nearly_equal(shape).to(device))

    def scores(self) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """Scores by granularity, not summed; the same tensors that are learned."""
        return {Granularity(g): score for g, score in self.score.items()}

    @torch.no_grad()
    def start_at(self, scores: Scores) -> None:
        """Start from scores of some nodes, instead of nearly equal ones; ties are broken at random."""
        for granularity, start in scores.items():
            own = self.score[granularity]
            own.copy_(start.to(own) + self._nearly_equal(own.shape).to(own))

    def _nearly_equal(self, shape: Sequence[int]) -> Tensor:
        return SMALLEST_START * torch.randn(tuple(shape), generator=self._generator)

    def draw(self, size: Size, temperature: float) -> Masks:
        """Masks of units (and out dims, where they have scores) at a size; differentiable. Never waits for the device.

        Args:
            size: the share of all units that is kept: the masks of the units sum to it.
            temperature: how soft they are, in units of the score.
        """
        scores, units = self._units()
        found = _bisected(units.detach(), self._kept(size, units), temperature)
        threshold = _at_threshold(units, found, temperature)
        return {g: torch.sigmoid((score - threshold) / temperature) for g, score in scores.items()}

    @torch.no_grad()
    def ranking(self, size: Size, scores: Scores | None = None) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """Summed scores on the CPU, shifted so that the cut at 0 has the size.

        Args:
            size: the share of all units that the cut keeps.
            scores: by granularity, not summed; its own where none are given.
        """
        scores, units = self._units(scores)
        threshold = _cut_between(units, self._kept(size, units))
        return {g: (score - threshold).cpu() for g, score in scores.items()}

    def _units(self, scores: Scores | None = None) -> tuple[Scores, Float[Tensor, " units"]]:
        """Summed scores, and those of the units alone in one row."""
        scores = self.summed(self.scores() if scores is None else scores)
        return scores, torch.cat([score.flatten() for g, score in scores.items() if g in UNIT_GRANULARITIES])

    def _kept(self, size: Size, units: Float[Tensor, " units"]) -> Float[Tensor, ""]:
        """How many of the units with scores a size keeps."""
        share = torch.as_tensor(size, dtype=units.dtype, device=units.device)
        return (share * self.all_units - (self.all_units - len(units))).clamp(0, len(units))


def _at_threshold(
    units: Float[Tensor, " units"], threshold: Float[Tensor, ""], temperature: float
) -> Float[Tensor, ""]:
    """The threshold, with its gradient.

    sum of sigmoid((s - t) / T) = k defines t as a function of the scores; by the implicit-function theorem dt/ds_i = w_i / sum
    of w, where w_i is the slope of the i-th mask.
    """
    with torch.no_grad():
        mask = torch.sigmoid((units - threshold) / temperature)
        slopes = mask * (1 - mask)
        shares = slopes / slopes.sum().clamp_min(torch.finfo(slopes.dtype).tiny)
    return threshold + (shares * (units - units.detach())).sum()


def _bisected(units: Float[Tensor, " units"], kept: Float[Tensor, ""], temperature: float) -> Float[Tensor, ""]:
    """Where soft masks sum to `kept`."""
    low, high = units.min() - REACH * temperature, units.max() + REACH * temperature
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_many = torch.sigmoid((units - middle) / temperature).sum() > kept
        low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
    return (low + high) / 2


def _cut_between(units: Float[Tensor, " units"], kept: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Half way between the last score that is kept and the first that is not; 1 beyond the extreme where all are or none is."""
    best = units.sort(descending=True).values
    bounded = torch.cat([best[:1] + 2, best, best[-1:] - 2])
    count = kept.round().long()
    return bounded.index_select(0, torch.stack([count, count + 1])).mean()
