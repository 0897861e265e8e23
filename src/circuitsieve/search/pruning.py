"""Pruning: hard-concrete gates, as the paper's, under a pressure (arXiv 2512.10903)."""

from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from circuitsieve.circuits.circuit import Ranking
from circuitsieve.circuits.masks import Masks, Scores, apart
from circuitsieve.models.lean import Lean
from circuitsieve.search.averages import Averages
from circuitsieve.search.control import BudgetController, Signals
from circuitsieve.search.gates import HardConcrete
from circuitsieve.search.phase import Facts, SteeredPhase, expected_gap
from circuitsieve.search.problem import Problem
from circuitsieve.search.shrinking import Shrinking
from circuitsieve.search.states import State, part, under
from circuitsieve.vocabulary import UNCOUNTED, Granularity, Sampling

NOISE_FALLS = (0.3, 0.7)
"""The shares of a phase between which the sampling noise falls."""
RANKED_NOISE = 0.5
"""The sampling noise with which gates start that were ranked before: the order is known, only the border is open."""
RANKED_REACH = 4.0
"""The largest log_alpha with which a ranked gate starts."""
TIED = 0.01
"""Of log_alpha: nodes that are as much in doubt as what contains them differ by so much, at most, in the order of the ranking."""
MARGIN = 1e-3
"""Of log_alpha: how near to the lowest start is as low."""
RANKED_PRESSURE = 0.1
"""The pressure at which ranked gates start."""
SIZE_RATE = 0.1
"""The largest change of the log pressure per step under a size, which has no noise."""
ANSWER = 6.0
"""The power of the size over the one asked for by which the pressure is multiplied at once."""


class PruningPhase(SteeredPhase):
    """Hard-concrete gates under a pressure: fixed, or steered by the budget (arXiv 2512.10903)."""

    def __init__(self, problem: Problem, ranked: Scores | None) -> None:
        """Start at random, as the paper, or from a ranking.

        Args:
            problem: what is searched.
            ranked: scores of the nodes without children; above 0 a gate starts open.
        """
        config = problem.config
        self.gates = HardConcrete(
            {g: problem.space.shape(g) for g in problem.granularities},
            seed=config.seed,
            sampling=Sampling(config.sampling),
            init=config.init,
            device=problem.subject.device,
        )
        steps = config.steps - config.ranking_steps
        controller = BudgetController(problem.budget, steps)
        if config.size is not None:
            controller = replace(controller, rise=SIZE_RATE, fall=SIZE_RATE, answer=ANSWER)
        if ranked is not None:
            controller = replace(controller, start=RANKED_PRESSURE, slack=1.0, smallest_gap=expected_gap(problem))
            self.gates.start_at(problem.space.lifted(ranked, problem.granularities), RANKED_REACH)
        super().__init__(problem, steps, self.gates, controller)
        self.clip, self.ranked = config.clip, ranked
        self.first_noise = 1.0 if ranked is None else RANKED_NOISE
        self.averages = Averages(self.gates.scores())
        self.shrinking = Shrinking(problem, problem.granularities)
        self._close_for_good()

    @override
    def draw(self, step: int) -> Masks:
        return self.gates.draw(step, self.noise_scale(step))

    @override
    def objective(self, step: int, loss: Tensor, masks: Masks) -> tuple[Tensor, Facts]:
        pressure, penalty = self._pressure(step), self.gates.penalty(self.problem.prices(masks))
        return loss + pressure * penalty, {"pressure": pressure, "penalty": penalty.detach()}

    @property
    @override
    def lean(self) -> Lean | None:
        """Without the units that are closed for good."""
        return self.shrinking.lean

    @override
    def after(self, step: int, signals: Signals) -> Facts:
        if self.gates.sampling is Sampling.HARD:
            self.gates.keep_reversible()
        if self.ranked is not None:
            self.averages.follow(self.gates.scores())
        if self.shrinking.due(step):
            self._close_for_good()
        shares = {f"open.{g}": (scores > 0).float().mean() for g, scores in self.gates.scores().items()}
        return self.steer(step, signals) | shares

    @override
    def ranking(self) -> Ranking:
        """By log_alpha. After a ranking: by its moving average, as far as that is in doubt. What no size counts is as open at
        every size."""
        own = scores = self.gates.ranking()
        if self.ranked is not None:
            own = {g: average.cpu() for g, average in self.averages.scores.items()}
            scores = self._in_order(own, {g: leaf for g, leaf in self.ranked.items() if g not in UNCOUNTED})
        beyond = 1 + max(float(score.abs().max()) for score in scores.values())
        others = {g: score for g, score in own.items() if g in UNCOUNTED}
        return Ranking(self.problem.space, {**scores, **apart(others, beyond)})

    def _in_order(self, own: Scores, ranked: Scores) -> dict[Granularity, Tensor]:
        """Scores of units from those of the gates and those of the ranking before.

        What gates close, and what they open as far as a gate may start or further, has the order of the ranking: gates are
        pushed until they are decided, and how far beyond says little. So have the nodes that are in doubt because a head or
        block that contains them is: otherwise all of it would go at once, and no cut would lie between.
        """
        averages = self.problem.space.lowest(own)
        highest = max(float(leaf.max()) for leaf in ranked.values())
        lowest = min(float(leaf.min()) for leaf in ranked.values())
        scores, span = dict[Granularity, Tensor](), max(highest - lowest, MARGIN)
        for g, leaf in ranked.items():
            doubted = averages[g] + TIED * (leaf - lowest) / span
            opened = torch.where(averages[g] >= RANKED_REACH, RANKED_REACH + TIED + (leaf - lowest), doubted)
            scores[g] = torch.where(averages[g] > 0, opened, leaf - highest - 1)
        return scores

    @override
    def state(self) -> State:
        left = under("left", self.shrinking.state())
        ranked = under("ranked", {str(leaf): scores for leaf, scores in (self.ranked or {}).items()})
        return super().state() | under("averages", self.averages.state()) | left | ranked

    @override
    def restore(self, state: State) -> None:
        super().restore(state)
        self.averages.restore(part("averages", state))
        self.shrinking.restore(part("left", state))
        if self.ranked is not None:
            self.ranked = {leaf: state[f"ranked.{leaf}"] for leaf in self.ranked}

    @torch.no_grad()
    def _close_for_good(self) -> None:
        """Leave out of all steps to come what the ranking, or the gates by now, have put as low as a gate may start."""
        if self.ranked is not None and self.shrinking.on:
            lowest, left = self.problem.space.lowest(self.averages.scores), self.shrinking.left
            self.shrinking.leave({leaf: left[leaf] & (lowest[leaf].cpu() > MARGIN - RANKED_REACH) for leaf in left})

    def noise_scale(self, step: int) -> float:
        """The share of the sampling noise at a step: falls linearly from the first to the final share, which then stays."""
        begin, end = NOISE_FALLS
        fallen = min(1.0, max(0.0, (step / max(1, self.steps - 1) - begin) / (end - begin)))
        return self.first_noise + (min(self.config.final_noise, self.first_noise) - self.first_noise) * fallen

    def _pressure(self, step: int) -> Tensor:
        """The fixed pressure or the controller's, faded in over the warm-up."""
        fixed = self.config.pressure
        pressure = (
            self.controller.effort(self.control)
            if fixed is None
            else torch.tensor(fixed, device=self.problem.subject.device)
        )
        return pressure * min(1.0, (step + 1) / max(1, self.config.warmup))
