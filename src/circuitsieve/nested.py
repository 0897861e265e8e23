"""Nested masks: one score per node, and from the same scores a mask of any size.

A unit's score is the sum over the nodes that contain it. At size k its mask is `sigmoid((score - t) / T)`, with the threshold
t for which the masks keep the share k of the model, by whatever measure. Masks of one ranking are nested: what a small one
keeps, every larger one keeps.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitsieve.masks import Masks, Scores
from circuitsieve.states import State, part, under
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Granularity

BISECTIONS = 40
"""Halvings of the interval that the threshold lies in: from scores of hundreds to beyond the last bits of float32."""
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
        """Make the scores, all but equal.

        Args:
            shapes: [layers, n] of each granularity.
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

    def prices(self) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """What keeping a little more of each node without children adds to the size, where all masks are equal."""
        scores = self.summed(self.scores())
        return self._prices({g: torch.full_like(score, 0.5) for g, score in scores.items()})

    def draw(self, size: Size, temperature: float) -> Masks:
        """Masks of units (and out dims, where they have scores) at a size; differentiable. Never waits for the device.

        Args:
            size: the share of the model that the masks keep.
            temperature: how soft they are, in units of the score.
        """
        scores = self.summed(self.scores())
        with torch.no_grad():
            found = self._bisected(scores, size, temperature)
        threshold = self._at_threshold(scores, found, temperature)
        return _soft(scores, threshold, temperature)

    @torch.no_grad()
    def ranking(self, size: Size, scores: Scores | None = None) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """Summed scores on the CPU, shifted so that the cut at 0 has the size, or is the largest below it.

        Args:
            size: the share of the model that the cut keeps.
            scores: by granularity, not summed; its own where none are given.
        """
        scores = {g: s.cpu() for g, s in self.summed(self.scores() if scores is None else scores).items()}
        best = (
            torch.cat([s.flatten() for g, s in scores.items() if g in UNIT_GRANULARITIES]).sort(descending=True).values
        )
        # Half way between the last score that is kept and the first that is not; 1 beyond the extreme where all are or none is.
        bounded = torch.cat([best[:1] + 2, best, best[-1:] - 2])
        thresholds = (bounded[:-1] + bounded[1:]) / 2

        def kept(count: int) -> float:
            return float(self.share({g: (s > thresholds[count]).to(s) for g, s in scores.items()}))

        count = max(0, bisect_right(range(len(thresholds)), float(size) * (1 + ROUNDING), key=kept) - 1)
        return {g: s - thresholds[count] for g, s in scores.items()}

    def _bisected(self, scores: Scores, size: Size, temperature: float) -> Float[Tensor, ""]:
        """Where soft masks keep the size."""
        extremes = [torch.stack([score.min(), score.max()]) for score in scores.values()]
        low = torch.stack(extremes).amin() - REACH * temperature
        high = torch.stack(extremes).amax() + REACH * temperature
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            too_many = self.share({g: torch.sigmoid((s - middle) / temperature) for g, s in scores.items()}) > size
            low, high = torch.where(too_many, middle, low), torch.where(too_many, high, middle)
        return (low + high) / 2

    def _at_threshold(self, scores: Scores, threshold: Float[Tensor, ""], temperature: float) -> Float[Tensor, ""]:
        """The threshold, with its gradient.

        share(sigmoid((s - t) / T)) = k defines t as a function of the scores; by the implicit-function theorem dt/ds_i =
        w_i / sum of w, where w_i is the slope of the i-th mask times what it adds to the share.
        """
        masks = _soft({g: score.detach() for g, score in scores.items()}, threshold, temperature)
        weights = {g: price * masks[g] * (1 - masks[g]) for g, price in self._prices(masks).items()}
        total = torch.stack([weight.sum() for weight in weights.values()]).sum()
        total = total.clamp_min(torch.finfo(total.dtype).tiny)
        moved = [(weight / total * (scores[g] - scores[g].detach())).sum() for g, weight in weights.items()]
        return threshold + torch.stack(moved).sum()

    @torch.enable_grad()
    def _prices(self, masks: Masks) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """What each mask adds to the share."""
        leaves = {g: mask.detach().requires_grad_() for g, mask in masks.items()}
        prices = torch.autograd.grad(self.share(leaves), list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, prices, strict=True))


def _soft(scores: Scores, threshold: Float[Tensor, ""], temperature: float) -> Masks:
    return {g: torch.sigmoid((score - threshold) / temperature) for g, score in scores.items()}
