"""What every phase of a search does: it draws masks, says what is minimised, and learns from what came of it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor, nn
from typing_extensions import override

from circuitsieve.circuits.circuit import Ranking
from circuitsieve.circuits.masks import Masks
from circuitsieve.models.lean import Lean
from circuitsieve.search.control import BudgetController, ControlState, Signals
from circuitsieve.search.problem import Problem
from circuitsieve.search.settling import Reading
from circuitsieve.search.states import State, part, under

Facts = dict[str, Tensor]
"""What a phase tells about a step, for the history."""
RANKED_GAP = math.log(1.1)
"""The log of the load on validation pairs over that in training, at least: it grows while gates learn, and what was closed too
much comes back too late."""


class Phase(ABC):
    """One part of a search."""

    tries_circuits = True
    """Whether circuits are tried on validation pairs meanwhile."""
    clip = math.inf
    """Largest norm of the gradient of what is learned."""

    def __init__(self, problem: Problem, steps: int, learned: nn.Module) -> None:
        """Prepare a phase.

        Args:
            problem: what is searched.
            steps: of this phase.
            learned: its parameters are what the optimiser moves.
        """
        self.problem, self.config, self.steps, self.learned = problem, problem.config, steps, learned

    def begin(self, on_look: Callable[[int, int], None]) -> None:  # noqa: B027 (not every phase needs it)
        """Look at what the phase starts from, before its first step.

        Args:
            on_look: is told how many batches were looked at, of how many.
        """

    @abstractmethod
    def draw(self, step: int) -> Masks:
        """The masks of a step, differentiable."""

    @abstractmethod
    def ranking(self) -> Ranking:
        """The ranking so far; its cut at 0 is the circuit so far."""

    @abstractmethod
    def after(self, step: int, signals: Signals) -> Facts:
        """Take notice of a step that was made."""

    @abstractmethod
    def state(self) -> State:
        """All that is needed to go on from here, bit for bit, in a phase that has not begun."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """Go on from a state."""

    def learning_rate(self, step: int) -> float:
        """That of a step of the phase."""
        first = self.config.lr
        return falling(self.config.lr_schedule, first, min(self.config.lr_end, first), step, self.steps)

    def objective(self, step: int, loss: Tensor, masks: Masks) -> tuple[Tensor, Facts]:  # noqa: ARG002 (for those that override it)
        """What is minimised, from the loss in behaviour, and what there is to tell about it."""
        return loss, {}

    @property
    def lean(self) -> Lean | None:
        """What need no longer be computed; None if all of it is to be."""
        return None

    def checked(self, signals: Signals) -> None:  # noqa: B027 (not every phase is steered)
        """Take notice of a check on validation pairs."""

    def reading(self, entry: Mapping[str, int | float]) -> Reading | None:  # noqa: ARG002 (for those that override it)
        """How far a step has come, from its entry in the history; None where the phase has no end but its last step."""
        return None


class SteeredPhase(Phase):
    """A phase whose effort follows a budget."""

    def __init__(self, problem: Problem, steps: int, learned: nn.Module, controller: BudgetController) -> None:
        """Prepare a phase.

        Args:
            problem: what is searched.
            steps: of this phase.
            learned: its parameters are what the optimiser moves.
            controller: from what was measured to the effort.
        """
        super().__init__(problem, steps, learned)
        self.controller = controller
        self.control = controller.initial(problem.subject.device)

    @override
    def state(self) -> State:
        return under("learned", self.learned.state_dict()) | under("control", self.control.state())

    @override
    def restore(self, state: State) -> None:
        self.learned.load_state_dict(part("learned", state))
        self.control = ControlState.of_state(part("control", state), self.problem.subject.device)

    def steer(self, step: int, signals: Signals) -> Facts:
        """Let the effort follow a step."""
        self.control = self.controller.step(step, signals, self.control)
        return {"smoothed_kl": self.control.signals.kl, "load": self.controller.load(self.control)}

    @override
    def checked(self, signals: Signals) -> None:
        self.control = self.controller.checked(signals, self.control)

    @override
    def reading(self, entry: Mapping[str, int | float]) -> Reading | None:
        """Of the size, which is to be small within the budget. None where it is given: the KL falls as long as noise does."""
        if self.config.pressure is not None or self.config.size is not None:
            return None
        return Reading(math.log(max(entry["drawn_size"], 1e-9)), load=entry["load"])


def expected_gap(problem: Problem) -> float:
    """The least log gap between validation pairs and training that a phase after a ranking reckons with."""
    return BudgetController.smallest_gap if problem.config.size is not None else RANKED_GAP


def falling(schedule: str, first: float, last: float, step: int, steps: int) -> float:
    """A learning rate between the first and the last of a phase (constant: the first throughout)."""
    done = step / max(1, steps - 1)
    match schedule:
        case "linear":
            share = 1 - done
        case "cosine":
            share = (1 + math.cos(math.pi * done)) / 2
        case _:
            share = 1.0
    return last + (first - last) * share
