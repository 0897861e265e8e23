"""The focus: nested masks of one size, which moves to where the budget is just met, become hard."""

import math
from collections.abc import Mapping

from torch import Tensor
from typing_extensions import override

from circuitsieve.circuits.circuit import Ranking
from circuitsieve.circuits.masks import Masks
from circuitsieve.circuits.nodes import chains
from circuitsieve.models.lean import Lean
from circuitsieve.search.averages import Averages
from circuitsieve.search.control import BudgetController, Signals
from circuitsieve.search.phase import Facts, SteeredPhase, expected_gap
from circuitsieve.search.problem import Problem
from circuitsieve.search.ranking import TEMPERATURE, RankingPhase
from circuitsieve.search.shrinking import Shrinking
from circuitsieve.search.states import State, part, under

HARDENING = 0.9
"""The share of a focus over which its masks harden."""
SHARPEST = 0.05
"""The last temperature of a focus, over the first: all but a few masks are then 0 or 1."""
NO_MASK = 8.0
"""So many temperatures below the border a mask is 0.0003: a focus may leave the unit out."""
NEAR = 2.0
"""So near to the border, in units of the score, none is left out: the border moves with the size, and units on their own."""
SIZE_RATE = 0.01
"""The largest change of the log size per step: the masks need time to make up for what a new size changes."""


class FocusPhase(SteeredPhase):
    """Nested masks of one size, which a controller moves to where the budget is just met; they harden on the way."""

    def __init__(self, problem: Problem, ranked: RankingPhase, start: float) -> None:
        steps = problem.config.steps - problem.config.ranking_steps
        controller = BudgetController(
            problem.budget,
            steps,
            start=1 / start,
            slack=1.0,
            smallest_gap=expected_gap(problem),
            lowest=1.0,
            rise=SIZE_RATE,
            fall=SIZE_RATE,
        )
        super().__init__(problem, steps, ranked.nested, controller)
        self.nested = ranked.nested
        self.nested.start_at(ranked.averages.scores)
        self.averages = Averages(self.nested.scores())
        self.shrinking = Shrinking(problem, chains(problem.granularities))

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
        return 1 / self.controller.effort(self.control)
