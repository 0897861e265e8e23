"""Circuits tried on validation pairs: how much of the budget each uses up, and the checks during a run.

Checks may cost a fixed share of the passes that training makes, counted, not timed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.data.batching import PairBatch, spread
from circuitsieve.search.control import Signals, within
from circuitsieve.search.problem import Problem
from circuitsieve.search.states import State, document, number, part, read_document, under
from circuitsieve.vocabulary import Ablation, Granularity

VALIDATION_SHARE = 0.05
"""Share of the forward and backward passes of the training that checks may cost; the final cut narrows its border down while it
has cost no more than that either."""
CHECK_PAIRS = 128
"""A check during the run looks at so many validation pairs, always the same."""
MAX_CHECKS = 12
"""So many checks during a run are enough."""


@dataclass(frozen=True)
class Check:
    """A circuit tried on validation pairs."""

    step: int
    """How many steps had been made."""
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
    return measured(problem, problem.circuit(ranking.cut(threshold)), ranking, step, batches)


def measured(
    problem: Problem, circuit: Circuit, ranking: Ranking, step: int, batches: Sequence[PairBatch] | None = None
) -> Check:
    """A circuit of a ranking, measured on all validation pairs, or those of some batches."""
    return checked(problem, circuit, ranking, step, problem.validation.measure(circuit, batches))


def checked(problem: Problem, circuit: Circuit, ranking: Ranking, step: int, signals: Signals) -> Check:
    """A circuit of a ranking, with what was measured of it."""
    load = float(problem.budget.load(signals)) if problem.config.pressure is None else math.nan
    return Check(step, circuit, ranking, signals, load, float(problem.budget.spent(signals)))


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
        check = try_cut(problem, ranking, 0.0, step + 1, self.batches)
        if check.better_than(self.best):
            self.best = check
        return check

    def state(self) -> State:
        """The best one, if any; its circuit is the cut of its ranking at 0."""
        if self.best is None:
            return {}
        scores = {str(g): scores for g, scores in self.best.ranking.scores.items()}
        learns = self.problem.ablation is Ablation.OPTIMAL  # other constants are as they were
        own = (self.best.circuit.constants or {}) if learns else {}
        constants = {site.key: constant for site, constant in own.items()}
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
        device, constants, then = self.problem.subject.device, part("constants", state), self.problem
        if self.problem.ablation is Ablation.OPTIMAL and self.problem.constants is not None:
            then = then.with_constants({site: constants[site.key].to(device) for site in self.problem.constants})
        order = map(Granularity, read_document(state["order"])["granularities"])
        ranking = Ranking(then.space, {g: state[f"scores.{g}"] for g in order})
        signals = Signals(*(part("signals", state)[name].to(device) for name in Signals._fields))
        self.best = checked(then, then.circuit(ranking.cut(0.0)), ranking, int(state["step"]), signals)
