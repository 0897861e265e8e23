"""Gates: the learnable thing that draws masks.

One interface: `draw(step) -> Masks`, `penalty(prices)`, `ranking()`. Gates know no hierarchy and no model, only how many
nodes each granularity has.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitsieve.circuits.masks import Masks, Scores, with_gradient_of
from circuitsieve.vocabulary import Granularity, Sampling

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature and stretch of the hard-concrete distribution (Louizos et al. 2018, as arXiv 2512.10903 uses them)."""

LARGEST = 6.0
"""Bound of log_alpha where `keep_reversible` is used: a gate there opens with probability 1/400 or 399/400."""

_SOFT_SHIFT = BETA * math.log(-GAMMA / ZETA)


class HardConcrete(nn.Module):
    """Hard-concrete gates (Louizos, Welling and Kingma 2018), one log_alpha per node.

    `s = sigmoid((logit(u) + log_alpha) / beta)`, `m = clamp(s * (zeta - gamma) + gamma, 0, 1)`. With straight-through
    sampling the forward pass sees `s > 1/2` and the backward pass the gradient of m; with hard sampling, the default, that of the
    probability of `s > 1/2`. A node is in the circuit if its log_alpha is above 0.

    The noise of a step depends on the seed and the step alone: not on the global random state, the device or the
    steps before.
    """

    def __init__(
        self,
        shapes: Mapping[Granularity, tuple[int, int]],
        *,
        seed: int,
        sampling: Sampling = Sampling.HARD,
        init: tuple[float, float] = (2.5, 3.5),
        device: torch.device | str = "cpu",
    ) -> None:
        """Make the gates.

        Args:
            shapes: [layers, n] of each granularity.
            seed: of the noise and of the start.
            sampling: how masks are drawn.
            init: the range in which log_alpha starts, uniformly.
            device: where the gates live.
        """
        super().__init__()
        self.seed, self.sampling = seed, sampling
        generator, (low, high) = _generator(seed, 0), init
        self.log_alpha = nn.ParameterDict()
        for granularity, shape in shapes.items():
            values = torch.empty(shape).uniform_(low, high, generator=generator)
            self.log_alpha[granularity] = nn.Parameter(values.to(device))

    def scores(self) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """log_alpha by granularity; the same tensors that are learned."""
        return {Granularity(g): log_alpha for g, log_alpha in self.log_alpha.items()}

    def draw(self, step: int, noise_scale: float = 1.0) -> Masks:
        """One sample of every mask, differentiable in log_alpha. It serves a whole batch and all positions.

        With `noise_scale` below 1 the logistic noise is that much smaller and samples come nearer to the cut at 0.
        """
        generator = _generator(self.seed, step + 1)
        masks = {}
        for granularity, log_alpha in self.scores().items():
            noise = torch.empty(log_alpha.shape).uniform_(1e-6, 1 - 1e-6, generator=generator).logit()
            s = torch.sigmoid((noise_scale * noise.to(log_alpha) + log_alpha) / BETA)
            soft = (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
            match self.sampling:
                case Sampling.SOFT:
                    masks[granularity] = soft
                case Sampling.STRAIGHT_THROUGH:
                    masks[granularity] = with_gradient_of(soft, s > 0.5)
                case Sampling.HARD:
                    masks[granularity] = with_gradient_of(torch.sigmoid(log_alpha), s > 0.5)
        return masks

    def penalty(self, prices: Mapping[Granularity, Float[Tensor, "#layers _"]]) -> Float[Tensor, ""]:
        """Sum over granularities of the mean of price x the probability that the forward pass opens the gate.

        The probability is that of the sampling in use at full noise: P(m > 0) when soft, else P(s > 1/2).
        """
        shift = _SOFT_SHIFT if self.sampling is Sampling.SOFT else 0.0
        terms: Sequence[Tensor] = [
            (prices[g] * torch.sigmoid(log_alpha - shift)).mean() for g, log_alpha in self.scores().items()
        ]
        return torch.stack(list(terms)).sum()

    @torch.no_grad()
    def start_at(self, scores: Scores, reach: float) -> None:
        """Start from scores instead of at random: log_alpha is the score, at most `reach` away from 0."""
        for granularity, log_alpha in self.scores().items():
            log_alpha.copy_(scores[granularity].clamp(-reach, reach))

    @torch.no_grad()
    def keep_reversible(self) -> None:
        """Bound log_alpha, so that no gate wanders further away than it can come back from in a few steps."""
        for log_alpha in self.log_alpha.values():
            log_alpha.clamp_(-LARGEST, LARGEST)

    def ranking(self) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """A detached copy of the scores, on the CPU: cutting them at 0 gives the circuit."""
        return {g: log_alpha.detach().cpu().clone() for g, log_alpha in self.scores().items()}


def _generator(seed: int, stream: int) -> torch.Generator:
    """An own generator for every (seed, step), so that a resumed run draws what an undisturbed one would."""
    mixed = (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % (1 << 63)
    return torch.Generator().manual_seed(mixed)
