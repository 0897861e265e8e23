"""The phases of a search: how each draws masks, what it minimises and how hard it prunes.

`hard_concrete` first ranks all nodes (a warm start that the paper does not have), then learns hard-concrete gates under a
pressure. `nested` ranks in the same way, then focuses: masks of the size at which the budget is just met become hard.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from circuitsieve.circuits.circuit import Ranking
from circuitsieve.circuits.masks import Masks, Scores
from circuitsieve.models.lean import Lean
from circuitsieve.search.averages import Averages
from circuitsieve.search.control import BudgetController, Signals
from circuitsieve.search.gates import HardConcrete
from circuitsieve.search.phase import Facts, Phase, SteeredPhase
from circuitsieve.search.problem import Problem
from circuitsieve.search.ranking import TEMPERATURE, RankingPhase
from circuitsieve.search.selection import affordable_size
from circuitsieve.search.shrinking import Shrinking
from circuitsieve.search.states import State, part, under
from circuitsieve.vocabulary import Method, Sampling

NOISE_FALLS = (0.3, 0.7)
"""The shares of a phase between which the sampling noise falls."""
RANKED_NOISE = 0.5
"""The sampling noise with which gates start that were ranked before: the order is known, only the border is open."""
RANKED_REACH = 4.0
"""The largest log_alpha with which a ranked gate starts."""
HARDENING = 0.9
"""The share of a focus over which its masks harden."""
SHARPEST = 0.05
"""The last temperature of a focus, over the first: all but a few masks are then 0 or 1."""
NO_MASK = 8.0
"""So many temperatures below the border a mask is 0.0003: a focus may leave the unit out."""
NEAR = 2.0
"""So near to the border, in units of the score, none is left out: the border moves with the size, and units on their own."""
MARGIN = 1e-3
"""Of log_alpha: how near to the lowest start is as low."""
RANKED_PRESSURE = 0.1
"""The pressure at which ranked gates start."""
RANKED_GAP = math.log(1.1)
"""The log of the load on validation pairs over that in training, at least: it grows while gates learn, and what was closed too
much comes back too late."""
SIZE_RATE = 0.01
"""The largest change of the log size per step: the masks need time to make up for what a new size changes."""


def first_phase(problem: Problem) -> Phase:
    """What a search begins with."""
    return RankingPhase(problem) if problem.config.ranking_steps else HardConcretePhase(problem, None)


def next_phase(phase: Phase, now: Callable[[], Problem]) -> Phase | None:
    """What follows a phase, from where it ended; None after the last.

    Args:
        phase: the one that has ended.
        now: the problem with the constants learned so far, for choosing where the next one starts.
    """
    if not isinstance(phase, RankingPhase):
        return None
    return _second_phase(phase, affordable_size(now(), phase.ranking()))


def phase_to_restore(problem: Problem, name: str) -> Phase:
    """A phase that has not begun and has nothing to begin with: its state is still to be restored."""
    first = first_phase(problem)
    return _second_phase(first, 1.0) if isinstance(first, RankingPhase) and name != type(first).__name__ else first


def _second_phase(ranked: RankingPhase, start: float) -> Phase:
    """What follows the ranking; it starts at a size, not beyond: gates closed too early find no way back."""
    if Method(ranked.config.method) is Method.NESTED:
        return FocusPhase(ranked.problem, ranked, start)
    return HardConcretePhase(ranked.problem, ranked.leaves(start))


def _expected_gap(problem: Problem) -> float:
    return BudgetController.smallest_gap if problem.config.size is not None else RANKED_GAP


class FocusPhase(SteeredPhase):
    """Nested masks of one size, which a controller moves to where the budget is just met; they harden on the way."""

    def __init__(self, problem: Problem, ranked: RankingPhase, start: float) -> None:
        steps = problem.config.steps - problem.config.ranking_steps
        controller = BudgetController(
            problem.budget,
            steps,
            start=1 / start,
            slack=1.0,
            smallest_gap=_expected_gap(problem),
            lowest=1.0,
            rise=SIZE_RATE,
            fall=SIZE_RATE,
        )
        super().__init__(problem, steps, ranked.nested, controller)
        self.nested = ranked.nested
        self.nested.start_at(ranked.averages.scores)
        self.averages = Averages(self.nested.scores())
        self.shrinking = Shrinking(problem)

    @override
    def draw(self, step: int) -> Masks:
        return self.nested.draw(self._size(), self.temperature(step))

    @property
    @override
    def lean(self) -> Lean | None:
        """Without the units that are far below the border."""
        return self.shrinking.lean

    def temperature(self, step: int) -> float:
        """Of the masks at a step: falls geometrically, and then stays."""
        return TEMPERATURE * math.pow(SHARPEST, min(1.0, step / (HARDENING * self.steps)))

    @override
    def after(self, step: int, signals: Signals) -> Facts:
        self.averages.follow(self.nested.scores())
        if self.shrinking.due(step):
            below = -max(NEAR, NO_MASK * self.temperature(step))
            self.shrinking.leave({g: scores > below for g, scores in self.ranking().scores.items()})
        return self.steer(step, signals)

    @override
    def reading(self, entry: Mapping[str, int | float]) -> None:
        """None: what still hardens has not settled, however little it gains."""

    @override
    def ranking(self) -> Ranking:
        return Ranking(self.problem.space, self.nested.ranking(self._size(), self.averages.scores))

    @override
    def state(self) -> State:
        return super().state() | under("averages", self.averages.state()) | under("left", self.shrinking.state())

    @override
    def restore(self, state: State) -> None:
        super().restore(state)
        self.averages.restore(part("averages", state))
        self.shrinking.restore(part("left", state))

    def _size(self) -> Tensor:
        return 1 / self.control.effort


class HardConcretePhase(SteeredPhase):
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
        if ranked is not None:
            controller = replace(controller, start=RANKED_PRESSURE, slack=1.0, smallest_gap=_expected_gap(problem))
            self.gates.start_at(problem.space.lifted(ranked, problem.granularities), RANKED_REACH)
        super().__init__(problem, steps, self.gates, controller)
        self.clip, self.ranked = config.clip, ranked
        self.first_noise = 1.0 if ranked is None else RANKED_NOISE
        self.averages = Averages(self.gates.scores())
        self.shrinking = Shrinking(problem)
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
        """By log_alpha. After a ranking: by its moving average, as far as that is in doubt.

        What it closes, and what it opens as far as a gate may start or further, has the order of the ranking: gates are
        pushed until they are decided, and how far beyond says little.
        """
        if self.ranked is None:
            return Ranking(self.problem.space, self.gates.ranking())
        averages = self.problem.space.lowest({g: average.cpu() for g, average in self.averages.scores.items()})
        highest = max(float(leaf.max()) for leaf in self.ranked.values())
        lowest = min(float(leaf.min()) for leaf in self.ranked.values())
        scores = {}
        for g, leaf in self.ranked.items():
            opened = torch.where(averages[g] >= RANKED_REACH, RANKED_REACH + (leaf - lowest), averages[g])
            scores[g] = torch.where(averages[g] > 0, opened, leaf - highest - 1)
        return Ranking(self.problem.space, scores)

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
        pressure = self.control.effort if fixed is None else torch.tensor(fixed, device=self.problem.subject.device)
        return pressure * min(1.0, (step + 1) / max(1, self.config.warmup))
