"""Nested masks: one score per node, and from the same scores a mask of any size.

A unit's score is the sum over the nodes that contain it. At size k its mask is `sigmoid((score - t) / T)`, with the threshold
t for which the masks keep the share k of the model, by whatever measure. Masks of one ranking are nested: what a small one
keeps, every larger one keeps.

Out dims and the embedding are no units: no size asks for fewer of them. Their masks have a threshold of their own, 0, at every
size, so that they close only where that does the behaviour good.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitsieve.circuits.masks import Masks, Scores, apart
from circuitsieve.search.states import State, part, under
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Granularity

BISECTIONS = 30
"""Halvings of the interval that the threshold lies in: from scores of hundreds to beyond the last bits of float32."""
OPEN = 4.0
"""Where nodes start that are no units: open by 98 %."""
REACH = 20.0
"""So many temperatures beyond the extreme scores a threshold is looked for: a mask there is 2e-9 from 0 or 1."""
SMALLEST_START = 1e-3
"""Standard deviation of the scores at the start: enough that no two tie, too little to matter."""

Size = float | Float[Tensor, ""]
Summed = Callable[[Scores], Scores]
"""From the scores of nodes to those of units and of what else has no children (`NodeSpace.summed`)."""
Share = Callable[[Masks], Float[Tensor, ""]]
"""What the masks of the nodes without children keep of the model (`costs.soft_share`)."""
ROUNDING = 1e-6
"""By which share of it a size may be passed: that of float32."""


class Nested(nn.Module):
    """The scores, and the masks that they give at a size."""

    def __init__(
        self,
        shapes: Mapping[Granularity, tuple[int, int]],
        summed: Summed,
        *,
        share: Share,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make the scores: all but equal, and those of nodes that are no units open.

        Args:
            shapes: [layers, n] of each granularity; one of them at least contains units.
            summed: adds up scores along the hierarchy.
            share: what a size means; it never falls when a mask rises. What has no scores is always kept.
            seed: of the start.
            device: where the scores live.
        """
        super().__init__()
        self.summed, self.share = summed, share
        self._generator = torch.Generator().manual_seed(seed)
        self.score = nn.ParameterDict()
        for granularity, shape in shapes.items():
            self.score[granularity] = nn.Parameter(self._nearly_equal(shape).to(device))
        _, others = self._leaves(self.scores())
        self.start_at({g: torch.full_like(score, OPEN) for g, score in others.items()})

    def scores(self) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """Scores by granularity, not summed; the same tensors that are learned."""
        return {Granularity(g): score for g, score in self.score.items()}

    @torch.no_grad()
    def start_at(self, scores: Scores) -> None:
        """Start from scores of some nodes, instead of nearly equal ones; ties are broken at random."""
        for granularity, start in scores.items():
            own = self.score[granularity]
            own.copy_(start.to(own) + self._nearly_equal(own.shape).to(own))

    def state(self) -> State:
        """The scores, and where the random numbers of starts have got to."""
        return under("learned", self.state_dict()) | {"generator": self._generator.get_state()}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.load_state_dict(part("learned", state))
        self._generator.set_state(state["generator"])

    def _nearly_equal(self, shape: Sequence[int]) -> Tensor:
        return SMALLEST_START * torch.randn(tuple(shape), generator=self._generator)

    def _leaves(self, scores: Scores) -> tuple[Scores, Scores]:
        """Scores of the units, summed, and of the other nodes without children, their own."""
        summed = self.summed(scores)
        units = {g: score for g, score in summed.items() if g in UNIT_GRANULARITIES}
        return units, {g: scores[g] for g in summed if g not in units}

    def prices(self) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """What keeping a little more of each unit adds to the size, where the masks of all are equal."""
        units, _ = self._leaves(self.scores())
        return self._prices({g: torch.full_like(score, 0.5) for g, score in units.items()})

    def draw(self, size: Size, temperature: float) -> Masks:
        """Masks of units (and out dims, where they have scores) at a size; differentiable. Never waits for the device.

        Args:
            size: the share of the model that the masks keep.
            temperature: how soft they are, in units of the score.
        """
        units, others = self._leaves(self.scores())
        beside = _soft(others, 0.0, temperature)
        with torch.no_grad():
            found = self._bisected(units, beside, size, temperature)
        threshold = self._at_threshold(units, beside, found, temperature)
        return {**_soft(units, threshold, temperature), **beside}

    @torch.no_grad()
    def ranking(self, size: Size, scores: Scores | None = None) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """Summed scores on the CPU, shifted so that the cut at 0 has the size, or is the largest below it.

        What is no unit is moved out of reach of any other cut, up or down, as it is open or closed.

        Args:
            size: the share of the model that the cut keeps.
            scores: by granularity, not summed; its own where none are given.
        """
        units, others = self._leaves({g: s.cpu() for g, s in (self.scores() if scores is None else scores).items()})
        best = torch.cat([s.flatten() for s in units.values()]).sort(descending=True).values
        # Half way between the last score that is kept and the first that is not; 1 beyond the extreme where all are or none is.
        bounded = torch.cat([best[:1] + 2, best, best[-1:] - 2])
        thresholds = (bounded[:-1] + bounded[1:]) / 2
        open_ = {g: (s > 0).to(s) for g, s in others.items()}

        def kept(count: int) -> float:
            return float(self.share({g: (s > thresholds[count]).to(s) for g, s in units.items()} | open_))

        count = max(0, bisect_right(range(len(thresholds)), float(size) * (1 + ROUNDING), key=kept) - 1)
        beyond = float(bounded[0] - bounded[-1])
        return {g: s - thresholds[count] for g, s in units.items()} | apart(others, beyond)

    def _bisected(self, units: Scores, others: Masks, size: Size, temperature: float) -> Float[Tensor, ""]:
        """Where soft masks of the units, beside those of the other nodes, keep the size."""
        extremes = [torch.stack([score.min(), score.max()]) for score in units.values()]
        low = torch.stack(extremes).amin() - REACH * temperature
        high = torch.stack(extremes).amax() + REACH * temperature
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            too_many = self.share({**_soft(units, middle, temperature), **others}) > size
            low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
        return (low + high) / 2

    def _at_threshold(
        self, units: Scores, others: Masks, threshold: Float[Tensor, ""], temperature: float
    ) -> Float[Tensor, ""]:
        """The threshold, with its gradient.

        share(sigmoid((s - t) / T), others) = k defines t as a function of the scores of the units and the masks of the other
        nodes. By the implicit-function theorem dt/ds_i = w_i / sum of w, where w_i is the slope of the i-th unit's mask times
        what it adds to the share, and dt/dm_j is what the j-th of the other masks adds to the share, over the same sum.
        """
        masks = _soft({g: score.detach() for g, score in units.items()}, threshold, temperature)
        prices = self._prices({**masks, **others})
        slopes = {g: prices[g] * masks[g] * (1 - masks[g]) / temperature for g in units}
        total = torch.stack([slope.sum() for slope in slopes.values()]).sum()
        total = total.clamp_min(torch.finfo(total.dtype).tiny)
        changes = [(slopes[g] / total * (score - score.detach())).sum() for g, score in units.items()]
        changes += [(prices[g] / total * (mask - mask.detach())).sum() for g, mask in others.items()]
        return threshold + torch.stack(changes).sum()

    @torch.enable_grad()
    def _prices(self, masks: Masks) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """What each mask adds to the share."""
        leaves = {g: mask.detach().requires_grad_() for g, mask in masks.items()}
        prices = torch.autograd.grad(self.share(leaves), list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, prices, strict=True))


def _soft(scores: Scores, threshold: float | Float[Tensor, ""], temperature: float) -> Masks:
    return {g: torch.sigmoid((score - threshold) / temperature) for g, score in scores.items()}
