"""Choosing the circuit: checks on validation pairs during the run, and the final cut.

Validation may cost a fixed share of the passes that training makes, counted, not timed: once for the checks, once more for
the final cut. What is returned is the smallest feasible circuit seen, or else the one nearest to its budget.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from circuitsieve.circuit import Circuit, Ranking
from circuitsieve.control import Signals
from circuitsieve.data import PairBatch
from circuitsieve.problem import Problem

VALIDATION_SHARE = 0.05
"""Share of the forward and backward passes of the training that checks may cost, and the final cut again."""
CHECK_PAIRS = 128
"""A check during the run looks at so many validation pairs, always the same."""
BRACKET = 1.6
"""The final cut looks for sizes between the size of the cut at 0 divided and multiplied by this."""
CUTS = (4, 7)
"""So many cuts are tried at least, however short the run was, and at most: each halves what is left of the bracket."""
SMALL = 0.01
"""Where the cut at 0 keeps nothing, larger sizes are tried from here."""
WIDENED_CUTS = 4
"""Cuts that narrow down a size found beyond the bracket."""
AFFORDABLE = (0.02, 1.0)
"""The sizes between which the start of a phase is looked for."""
AFFORDABLE_CUTS = 5
"""Cuts that look for it: to 13 %."""
MAX_CHECKS = 12
"""So many checks during a run are enough."""


@dataclass(frozen=True)
class Check:
    """A circuit tried on validation pairs."""

    step: int
    circuit: Circuit
    ranking: Ranking
    signals: Signals
    load: float
    """How much of the budget is used up: 1 at the limit; nan without a budget."""

    @property
    def feasible(self) -> bool:
        """Whether the budget is met (never without one)."""
        return self.load <= 1

    def summary(self) -> dict[str, int | float | None]:
        """How the circuit did on the validation pairs, as plain numbers."""
        return {
            "step": self.step,
            "load": None if math.isnan(self.load) else self.load,
            "kl": float(self.signals.kl),
            "faithfulness": float(self.signals.faithfulness),
            "accuracy_drop": float(self.signals.accuracy_drop),
        }

    def better_than(self, other: "Check | None") -> bool:
        """Feasible before infeasible; among feasible ones the smaller, among others the one nearer to the budget."""
        if other is None or self.feasible != other.feasible:
            return other is None or self.feasible
        return self.circuit.size < other.circuit.size if self.feasible else self.load < other.load


def try_cut(
    problem: Problem, ranking: Ranking, threshold: float, step: int, batches: Sequence[PairBatch] | None = None
) -> Check:
    """Cut a ranking and measure the circuit on all validation pairs, or those of some batches."""
    return _measure(problem, problem.circuit(ranking.cut(threshold)), ranking, step, batches)


def _measure(
    problem: Problem, circuit: Circuit, ranking: Ranking, step: int, batches: Sequence[PairBatch] | None = None
) -> Check:
    signals = problem.validation.measure(circuit, batches)
    load = float(problem.budget.load(signals)) if problem.config.pressure is None else math.nan
    return Check(step, circuit, ranking, signals, load)


def affordable_size(problem: Problem, ranking: Ranking, load: float) -> float:
    """About the smallest size at which a cut of a ranking costs so much of the budget, on the check pairs.

    Without a budget: the size of the cut at 0.
    """
    if problem.config.pressure is not None:
        return problem.circuit(ranking.cut(0.0)).size
    low, high = AFFORDABLE
    batches = check_batches(problem)
    for _ in range(AFFORDABLE_CUTS):
        size = math.sqrt(low * high)
        enough = try_cut(problem, ranking, ranking.threshold_at(size), 0, batches).load <= load
        low, high = (low, size) if enough else (size, high)
    return high


def check_batches(problem: Problem) -> Sequence[PairBatch]:
    """The validation batches of a check: always the same."""
    batches = problem.validation.batches
    wanted = max(1, CHECK_PAIRS // problem.config.batch_size)
    return batches[:: max(1, len(batches) // wanted)][:wanted]


class Checks:
    """The checks during a run; remembers the best circuit that they saw."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.batches = check_batches(problem)
        allowed = min(MAX_CHECKS, int(VALIDATION_SHARE * 2 * problem.config.steps / len(self.batches)))
        self.every = math.ceil(problem.config.steps / (allowed + 1))
        self.best: Check | None = None

    def due(self, step: int) -> bool:
        """Whether a check follows this step (the last step is followed by the final cut)."""
        return (step + 1) % self.every == 0 and step + 1 < self.problem.config.steps

    def run(self, problem: Problem, step: int, ranking: Ranking) -> Check:
        """Cut the ranking at 0 and measure it on the check pairs."""
        check = try_cut(problem, ranking, 0.0, step, self.batches)
        if check.better_than(self.best):
            self.best = check
        return check


def final_cut(problem: Problem, ranking: Ranking, best: Check | None, *, quick: bool = False) -> Check:
    """The circuit to return: the ranking cut where the budget is just met on all validation pairs, by bisection of the size.

    A smaller circuit from the checks takes its place if it proves feasible on all validation pairs. Where nothing within
    the bracket is feasible, larger cuts are tried. Without a budget, or when `quick`, the ranking is cut at 0.
    """
    steps = problem.config.steps
    chosen = try_cut(problem, ranking, 0.0, steps)
    if problem.config.pressure is not None or quick:
        return chosen
    low, high = chosen.circuit.size / BRACKET, min(1.0, chosen.circuit.size * BRACKET)
    low, high = (low, chosen.circuit.size) if chosen.feasible else (chosen.circuit.size, high)
    fewest, most = CUTS
    for _ in range(min(most, max(fewest, int(VALIDATION_SHARE * 2 * steps / len(problem.validation.batches)))) - 1):
        if low <= 0:
            break
        size = math.sqrt(low * high)
        check = try_cut(problem, ranking, ranking.threshold_at(size), steps)
        low, high = (low, size) if check.feasible else (size, high)
        if check.better_than(chosen):
            chosen = check
    if best is not None and best.feasible and (best.circuit.size < chosen.circuit.size or not chosen.feasible):
        again = _measure(problem.with_constants(best.circuit.constants), best.circuit, best.ranking, best.step)
        if again.better_than(chosen):
            chosen = again
    return chosen if chosen.feasible else _widened(problem, ranking, high)


def _widened(problem: Problem, ranking: Ranking, low: float) -> Check:
    """A feasible cut beyond a size that is too small. There is one: the full model keeps every budget."""
    steps, high = problem.config.steps, low
    while True:
        low, high = high, min(1.0, max(SMALL, high * BRACKET))
        chosen = try_cut(problem, ranking, ranking.threshold_at(high), steps)
        if chosen.feasible or high == 1.0:
            break
    for _ in range(WIDENED_CUTS if low > 0 else 0):
        size = math.sqrt(low * high)
        check = try_cut(problem, ranking, ranking.threshold_at(size), steps)
        low, high = (low, size) if check.feasible else (size, high)
        if check.better_than(chosen):
            chosen = check
    return chosen
