"""Choosing the circuit: where a phase starts, and the final cut.

The final cut costs about as much as the checks during the run. Sizes that are far from the border are told by a glance at a few
pairs. What is returned is the smallest feasible circuit seen on all pairs, or else the one nearest to its budget.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.data.batching import PairBatch
from circuitsieve.search.checks import VALIDATION_SHARE, Check, check_batches, checked, measured, try_cut
from circuitsieve.search.control import Signals
from circuitsieve.search.problem import Problem

LEAST_LOOKS = 20
"""So many looks at all validation pairs the final cut may always take, however short the training was."""
FIRST_STRIDE = 1.25
"""By which ratio the search for a feasible size first leaves its start."""
CUT_PRECISION = 1.04
"""The ratio of the returned size to one that was found too small, at most."""
CLOSE = 0.95
"""A circuit that uses up this share of its budget is close enough to it; otherwise sizes that differ by less are tried."""
TYPICAL_SIZE = 0.3
"""Where the search for the start of a phase begins."""
START_PRECISION = 1.15
"""The same ratio for it."""
GLANCE = 4
"""A glance looks at one in so many batches."""
CLEAR = 2.5
"""A load is clear at a glance if it is beyond the limit, or within, by this factor: with 32 pairs, three more errors than the
full model makes."""


def _glance(problem: Problem, ranking: Ranking, size: float, step: int, batches: Sequence[PairBatch]) -> Check:
    """A cut measured on a few batches where these are clear, else on all of them."""
    circuit = problem.circuit(ranking.cut(ranking.threshold_at(size, problem.config.size_by)))
    few, rest = glimpsed(batches)
    signals = problem.validation.measure(circuit, few)
    check = checked(problem, circuit, ranking, step, signals)
    if not rest:
        return check
    if not 1 / CLEAR < check.load < CLEAR:
        return replace(check, at_a_glance=True)
    share = sum(batch.pairs for batch in few) / sum(batch.pairs for batch in batches)
    others = problem.validation.measure(circuit, rest)
    pooled = Signals(*(torch.lerp(b, a, share) for a, b in zip(signals, others, strict=True)))
    return checked(problem, circuit, ranking, step, pooled)


def _size(problem: Problem, circuit: Circuit) -> float:
    """The kept share, by the measure that is asked for."""
    return circuit.share(problem.config.size_by)


def sized(problem: Problem, ranking: Ranking) -> float:
    """The threshold at which a ranking has the size that is asked for."""
    assert problem.config.size is not None
    return ranking.threshold_at(problem.config.size, problem.config.size_by)


def glimpsed(batches: Sequence[PairBatch]) -> tuple[list[PairBatch], list[PairBatch]]:
    """The batches of a glance, and the others: none where there are too few for a glance."""
    each = GLANCE if len(batches) >= GLANCE else 1
    return list(batches[::each]), [batch for i, batch in enumerate(batches) if i % each]


def affordable_size(problem: Problem, ranking: Ranking) -> float:
    """About the smallest size at which a cut of a ranking keeps the budget, on the check pairs.

    Where a size is asked for: that. By the measure that is asked for.
    """
    if problem.config.size is not None:
        return problem.config.size
    batches = check_batches(problem)

    def affordable(size: float) -> bool:
        return _glance(problem, ranking, size, 0, batches).feasible

    return smallest_feasible(affordable, TYPICAL_SIZE, 1 / problem.space.units, START_PRECISION)


@dataclass
class Allowance:
    """What a choice may still cost."""

    passes: int
    """Forward passes of a batch."""


def final_cut(problem: Problem, ranking: Ranking, best: Check | None, steps: int, *, quick: bool = False) -> Check:
    """The circuit to return: the last ranking, or that of the best check, cut where the budget is just met.

    All validation pairs are looked at. Without a budget the last ranking is cut at 0.

    Args:
        problem: what is searched.
        ranking: the last one.
        best: of the checks.
        steps: how many were made.
        quick: whether no other cuts are tried than that one and the best check's own.
    """
    config = problem.config
    if config.size is not None:
        last = try_cut(problem, ranking, sized(problem, ranking), steps)
        if best is None:
            return last
        then = problem.with_constants(best.circuit.constants)
        early = try_cut(then, best.ranking, sized(problem, best.ranking), best.step)
        return early if early.better_than(last) else last
    chosen = try_cut(problem, ranking, 0.0, steps)
    if config.pressure is not None:
        return chosen
    allowance = Allowance(max(int(VALIDATION_SHARE * 2 * steps), LEAST_LOOKS * len(problem.validation.batches)))
    if not quick:
        chosen = _smallest_cut(problem, chosen, allowance)
    if best is None:
        return chosen
    then = problem.with_constants(best.circuit.constants)
    if len(check_batches(problem)) < len(problem.validation.batches):
        best = measured(then, best.circuit, best.ranking, best.step)
    if not quick:
        best = _smallest_cut(then, best, allowance, rival=chosen)
    return best if best.better_than(chosen) else chosen


class _Cuts:
    """Cuts of one ranking, looked at one after the other; the best that was measured on all pairs is remembered."""

    def __init__(self, problem: Problem, start: Check, allowance: Allowance) -> None:
        self.problem, self.start, self.allowance, self.best = problem, start, allowance, start
        self.batches = problem.validation.batches
        allowance.passes -= len(self.batches)  # of the first one

    def at_a_glance(self, size: float) -> bool:
        """Whether a size is feasible, by a few pairs where these tell enough."""
        check = _glance(self.problem, self.start.ranking, size, self.start.step, self.batches)
        self.allowance.passes -= len(glimpsed(self.batches)[0] if check.at_a_glance else self.batches)
        return self._note(check)

    def on_all(self, size: float) -> bool:
        """Whether a size is feasible, by all pairs."""
        threshold = self.start.ranking.threshold_at(size, self.problem.config.size_by)
        self.allowance.passes -= len(self.batches)
        return self._note(try_cut(self.problem, self.start.ranking, threshold, self.start.step))

    def _note(self, check: Check) -> bool:
        if not check.at_a_glance and check.better_than(self.best):
            self.best = check
        return check.feasible

    def smallest(self, feasible: Callable[[float], bool], start: float, most: float, *, known: bool) -> float:
        """About the smallest feasible size, no larger than `most`."""
        return smallest_feasible(
            feasible,
            start,
            1 / self.problem.space.units,
            CUT_PRECISION,
            most=most,
            known=known,
            close=lambda: self.best.feasible and self.best.load >= CLOSE,
            used_up=lambda: self.allowance.passes <= 0,
        )


def _smallest_cut(problem: Problem, start: Check, allowance: Allowance, rival: Check | None = None) -> Check:
    """The best of the cuts of a ranking around a first one; where it cannot beat a smaller rival, the first one.

    Args:
        problem: what is searched.
        start: the first cut.
        allowance: once it is used up, the border is not narrowed down further.
        rival: a cut of another ranking.
    """
    cuts, size, known, most = _Cuts(problem, start, allowance), _size(problem, start.circuit), start.feasible, 1.0
    if rival is not None and rival.feasible:
        most = _size(problem, rival.circuit) / CUT_PRECISION
        if not most:  # nothing is smaller
            return cuts.best
        if size > most:
            size, known = most, cuts.at_a_glance(most)
            if not known:
                return cuts.best
    found = cuts.smallest(cuts.at_a_glance, size, most, known=known)
    glanced = found < _size(problem, cuts.best.circuit) or not cuts.best.feasible  # its last look was a glance
    if glanced and not cuts.on_all(found) and found < most:
        # The glance was too kind. On from there with all pairs, up to the smallest that has kept the budget on them.
        if cuts.best.feasible:
            most = min(most, _size(problem, cuts.best.circuit))
        cuts.smallest(cuts.on_all, found, most, known=False)
    return cuts.best


def smallest_feasible(
    feasible: Callable[[float], bool],
    start: float,
    least: float,
    precision: float,
    *,
    most: float = 1.0,
    known: bool | None = None,
    close: Callable[[], bool] = lambda: True,
    used_up: Callable[[], bool] = lambda: False,
) -> float:
    """About the smallest feasible size: strides from a start that double until they have passed it, then halving.

    Args:
        feasible: whether a size is; taken to be true of the largest one.
        start: the first size to try.
        least: no smaller size is looked at, nor sizes that differ by less.
        precision: the ratio of a feasible size to an infeasible one at which the search ends.
        most: no larger size is looked at.
        known: whether the start is feasible, where that was tried before.
        close: whether the smallest feasible size so far is close enough to its budget for the search to end there.
        used_up: whether the border need not be narrowed down further.
    """
    size, stride = min(most, max(start, least)), FIRST_STRIDE
    downwards = feasible(size) if known is None else known
    low, high = (least, size) if downwards else (size, most)
    while low < high:
        size = max(least, high / stride) if downwards else min(most, low * stride)
        enough, stride = feasible(size), stride**2
        low, high = (low, size) if enough else (size, high)
        if enough != downwards:
            break
    while (high / low > precision or (high - low > least and not close())) and not used_up():
        size = math.sqrt(low * high)
        low, high = (low, size) if feasible(size) else (size, high)
    return high
