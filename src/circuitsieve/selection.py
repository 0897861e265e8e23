"""Choosing the circuit: checks on validation pairs during the run, and the final cut.

Checks may cost a fixed share of the passes that training makes, counted, not timed; the final cut tries about six
sizes. What is returned is the smallest feasible circuit seen, or else the one nearest to its budget.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from circuitsieve.circuit import Circuit, Ranking
from circuitsieve.control import Signals
from circuitsieve.data import PairBatch
from circuitsieve.problem import Problem

VALIDATION_SHARE = 0.05
"""Share of the forward and backward passes of the training that checks may cost."""
CHECK_PAIRS = 128
"""A check during the run looks at so many validation pairs, always the same."""
FIRST_STRIDE = 1.25
"""By which ratio the search for a feasible size first leaves its start."""
CUT_PRECISION = 1.04
"""The ratio of the returned size to one that was found too small."""
TYPICAL_SIZE = 0.3
"""Where the search for the start of a phase begins."""
START_PRECISION = 1.15
"""The same ratio for it."""
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
    batches = check_batches(problem)

    def affordable(size: float) -> bool:
        return try_cut(problem, ranking, ranking.threshold_at(size), 0, batches).load <= load

    return smallest_feasible(affordable, TYPICAL_SIZE, 1 / problem.space.units, START_PRECISION)


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
    """The circuit to return: the last ranking, or that of the best check, cut where the budget is just met.

    All validation pairs are looked at. Without a budget the last ranking is cut at 0. When `quick`, no other cuts are tried than
    that one and the best check's own.
    """
    steps, budgeted = problem.config.steps, problem.config.pressure is None
    chosen = try_cut(problem, ranking, 0.0, steps)
    if not budgeted:
        return chosen
    starts = [(problem, chosen)]
    if best is not None and best.feasible:
        then = problem.with_constants(best.circuit.constants)
        starts.append((then, _measure(then, best.circuit, best.ranking, best.step)))
    if not quick:
        starts = [(then, _smallest_cut(then, start)) for then, start in starts]
    for _, check in starts:
        if check.better_than(chosen):
            chosen = check
    return chosen


def _smallest_cut(problem: Problem, start: Check) -> Check:
    """The best of the cuts of a ranking around a first one."""
    chosen = start

    def feasible(size: float) -> bool:
        nonlocal chosen
        check = try_cut(problem, start.ranking, start.ranking.threshold_at(size), start.step)
        if check.better_than(chosen):
            chosen = check
        return check.feasible

    smallest_feasible(feasible, start.circuit.size, 1 / problem.space.units, CUT_PRECISION, known=start.feasible)
    return chosen


def smallest_feasible(
    feasible: Callable[[float], bool], start: float, least: float, precision: float, *, known: bool | None = None
) -> float:
    """About the smallest feasible size: strides from a start that double until they have passed it, then halving.

    Args:
        feasible: whether a size is; taken to be true of the whole model.
        start: the first size to try.
        least: no smaller size is looked at.
        precision: the ratio of a feasible size to an infeasible one at which the search ends.
        known: whether the start is feasible, where that was tried before.
    """
    size, stride = min(1.0, max(start, least)), FIRST_STRIDE
    downwards = feasible(size) if known is None else known
    low, high = (least, size) if downwards else (size, 1.0)
    while low < high:
        size = max(least, high / stride) if downwards else min(1.0, low * stride)
        enough, stride = feasible(size), stride**2
        low, high = (low, size) if enough else (size, high)
        if enough != downwards:
            break
    while high / low > precision:
        size = math.sqrt(low * high)
        low, high = (low, size) if feasible(size) else (size, high)
    return high
