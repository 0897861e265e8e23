"""Choosing the circuit: checks on validation pairs during the run, and the final cut.

Checks may cost a fixed share of the passes that training makes, counted, not timed; the final cut costs about as much again.
Sizes that are far from the border are told by a glance at a few pairs. What is returned is the smallest feasible circuit seen
on all pairs, or else the one nearest to its budget.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from circuitsieve.circuit import Circuit, Ranking
from circuitsieve.control import Signals, within
from circuitsieve.data import PairBatch, spread
from circuitsieve.problem import Problem
from circuitsieve.states import State, document, number, part, read_document, under
from circuitsieve.vocabulary import Granularity

VALIDATION_SHARE = 0.05
"""Share of the forward and backward passes of the training that checks may cost; the final cut narrows its border down while it
has cost no more than that either."""
LEAST_LOOKS = 6
"""So many looks at all validation pairs the final cut may always take, however short the training was."""
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
GLANCE = 4
"""A glance looks at one in so many batches."""
CLEAR = 2.5
"""A load is clear at a glance if it is beyond the limit, or within, by this factor: with 32 pairs, three more errors than the
full model makes."""


@dataclass(frozen=True)
class Check:
    """A circuit tried on validation pairs."""

    step: int
    circuit: Circuit
    ranking: Ranking
    signals: Signals
    load: float
    """How much of the budget is used up: 1 at the limit; nan without a budget."""
    spent: float
    """What is to be as small as possible: the circuit's size, or its KL where the size is given."""
    at_a_glance: bool = False
    """Whether a few pairs have told enough."""

    @property
    def feasible(self) -> bool:
        """Whether the budget is met (never without one)."""
        return within(self.load)

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
        """Feasible before infeasible; among feasible ones the cheaper, among others the one nearer to the budget."""
        if other is None or self.feasible != other.feasible:
            return other is None or self.feasible
        return self.spent < other.spent if self.feasible else self.load < other.load


def try_cut(
    problem: Problem, ranking: Ranking, threshold: float, step: int, batches: Sequence[PairBatch] | None = None
) -> Check:
    """Cut a ranking and measure the circuit on all validation pairs, or those of some batches."""
    return _measure(problem, problem.circuit(ranking.cut(threshold)), ranking, step, batches)


def _measure(
    problem: Problem, circuit: Circuit, ranking: Ranking, step: int, batches: Sequence[PairBatch] | None = None
) -> Check:
    return _checked(problem, circuit, ranking, step, problem.validation.measure(circuit, batches))


def _checked(problem: Problem, circuit: Circuit, ranking: Ranking, step: int, signals: Signals) -> Check:
    load = float(problem.budget.load(signals)) if problem.config.pressure is None else math.nan
    return Check(step, circuit, ranking, signals, load, float(problem.budget.spent(signals)))


def _glance(problem: Problem, ranking: Ranking, size: float, step: int, batches: Sequence[PairBatch]) -> Check:
    """A cut measured on a few batches where these are clear, else on all of them."""
    circuit = problem.circuit(ranking.cut(ranking.threshold_at(size, problem.config.size_by)))
    few, rest = glimpsed(batches)
    signals = problem.validation.measure(circuit, few)
    check = _checked(problem, circuit, ranking, step, signals)
    if not rest:
        return check
    if not 1 / CLEAR < check.load < CLEAR:
        return replace(check, at_a_glance=True)
    share = sum(batch.pairs for batch in few) / sum(batch.pairs for batch in batches)
    others = problem.validation.measure(circuit, rest)
    pooled = Signals(*(torch.lerp(b, a, share) for a, b in zip(signals, others, strict=True)))
    return _checked(problem, circuit, ranking, step, pooled)


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

    Without a budget: the size of the cut at 0. Where a size is asked for: that. By the measure that is asked for.
    """
    if problem.config.pressure is not None:
        return _size(problem, problem.circuit(ranking.cut(0.0)))
    if problem.config.size is not None:
        return problem.config.size
    batches = check_batches(problem)

    def affordable(size: float) -> bool:
        return _glance(problem, ranking, size, 0, batches).feasible

    return smallest_feasible(affordable, TYPICAL_SIZE, 1 / problem.space.units, START_PRECISION)


def check_batches(problem: Problem) -> Sequence[PairBatch]:
    """The validation batches of a check: always the same."""
    return spread(problem.validation.batches, CHECK_PAIRS // problem.config.batch_size)


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

    def state(self) -> State:
        """The best one, if any; its circuit is the cut of its ranking at 0."""
        if self.best is None:
            return {}
        scores = {str(g): scores for g, scores in self.best.ranking.scores.items()}
        constants = {f"{s.kind}-{s.layer}": constant for s, constant in (self.best.circuit.constants or {}).items()}
        rest = under("scores", scores) | under("constants", constants)
        return {
            "step": number(self.best.step),
            "order": document({"granularities": list(scores)}),
            **under("signals", self.best.signals._asdict()),
            **rest,
        }

    def restore(self, state: State) -> None:
        """Go on from a state."""
        if not state:
            return
        device, constants = self.problem.subject.device, part("constants", state)
        sites = self.problem.constants or {}
        then = self.problem.with_constants({s: constants[f"{s.kind}-{s.layer}"].to(device) for s in sites} or None)
        order = map(Granularity, read_document(state["order"])["granularities"])
        ranking = Ranking(then.space, {g: state[f"scores.{g}"] for g in order})
        signals = Signals(*(part("signals", state)[name].to(device) for name in Signals._fields))
        self.best = _checked(then, then.circuit(ranking.cut(0.0)), ranking, int(state["step"]), signals)


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
    if best is None or not best.feasible:
        return chosen
    then = problem.with_constants(best.circuit.constants)
    if len(check_batches(problem)) < len(problem.validation.batches):
        best = _measure(then, best.circuit, best.ranking, best.step)
    if not quick:
        best = _smallest_cut(then, best, allowance, rival=chosen)
    return best if best.better_than(chosen) else chosen


def _smallest_cut(problem: Problem, start: Check, allowance: Allowance, rival: Check | None = None) -> Check:
    """The best of the cuts of a ranking around a first one; where it cannot beat a smaller rival, the first one.

    Args:
        problem: what is searched.
        start: the first cut.
        allowance: once it is used up, the border is not narrowed down further.
        rival: a cut of another ranking.
    """
    chosen, batches = start, problem.validation.batches
    allowance.passes -= len(batches)  # of the first one

    def note(check: Check) -> bool:
        nonlocal chosen
        if not check.at_a_glance and check.better_than(chosen):
            chosen = check
        return check.feasible

    def feasible(size: float) -> bool:
        check = _glance(problem, start.ranking, size, start.step, batches)
        allowance.passes -= len(glimpsed(batches)[0] if check.at_a_glance else batches)
        return note(check)

    size, known = _size(problem, start.circuit), start.feasible
    if rival is not None and rival.feasible and size > (below := _size(problem, rival.circuit) / CUT_PRECISION):
        size, known = below, feasible(below)
        if not known:
            return chosen
    least = 1 / problem.space.units
    found = smallest_feasible(feasible, size, least, CUT_PRECISION, known=known, used_up=lambda: allowance.passes <= 0)
    if found < _size(problem, chosen.circuit) or not chosen.feasible:  # its last look was a glance
        note(try_cut(problem, start.ranking, start.ranking.threshold_at(found, problem.config.size_by), start.step))
    return chosen


def smallest_feasible(
    feasible: Callable[[float], bool],
    start: float,
    least: float,
    precision: float,
    *,
    known: bool | None = None,
    used_up: Callable[[], bool] = lambda: False,
) -> float:
    """About the smallest feasible size: strides from a start that double until they have passed it, then halving.

    Args:
        feasible: whether a size is; taken to be true of the whole model.
        start: the first size to try.
        least: no smaller size is looked at.
        precision: the ratio of a feasible size to an infeasible one at which the search ends.
        known: whether the start is feasible, where that was tried before.
        used_up: whether the border need not be narrowed down further.
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
    while high / low > precision and not used_up():
        size = math.sqrt(low * high)
        low, high = (low, size) if feasible(size) else (size, high)
    return high
