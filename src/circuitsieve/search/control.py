"""Controllers: pure functions from what was measured to how hard to press.

The user asks for a budget; the effort (the multiplier of the sparsity penalty, or one over the size) follows the smoothed
constraint in log space. Everything is a 0-dimensional tensor, so that nothing here waits for a device.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsieve.search.states import State, number

Scalar = Float[Tensor, ""]


class Signals(NamedTuple):
    """Means over pairs of what a budget looks at."""

    kl: Scalar
    gained: Scalar
    """The circuit's metric above the empty circuit's."""
    reachable: Scalar
    """The full model's metric above the empty circuit's."""
    accuracy_drop: Scalar
    """The full model's accuracy minus the circuit's."""
    size: Scalar
    """The kept share, by the measure that was asked for."""

    @property
    def faithfulness(self) -> Scalar:
        """The ratio after averaging: 0 = as the empty circuit, 1 = as the full model."""
        return self.gained / self.reachable


def within(load: float) -> bool:
    """Whether a load keeps the budget, up to the rounding of float32."""
    return load <= 1 + 1e-6


@dataclass(frozen=True)
class Budget:
    """What a circuit may cost: in behaviour, or in size. The load is 1 at the limit, above it beyond.

    A budget on the KL alone can be met by a circuit that fails the task, so accuracy is watched with every budget on behaviour.
    """

    max_kl: float | None = None
    min_faithfulness: float | None = None
    size: float | None = None
    max_accuracy_drop: float = 0.03

    def load(self, signals: Signals) -> Scalar:
        """How much of the budget is used up, by the constraint that is nearest to its limit."""
        if self.size is not None:
            return signals.size / self.size
        loads = [signals.accuracy_drop / self.max_accuracy_drop]
        if self.max_kl is not None:
            loads.append(signals.kl / self.max_kl)
        if self.min_faithfulness is not None:
            loads.append((1 - signals.faithfulness).abs() / (1 - self.min_faithfulness))
        return torch.stack(loads).amax()

    def spent(self, signals: Signals) -> Scalar:
        """What is to be as small as possible within the budget: the size, or the KL where the size is given."""
        return signals.size if self.size is None else signals.kl


class ControlState(NamedTuple):
    """The state of the controller."""

    smoothed: Signals
    """Moving averages of the signals, not yet corrected for their start at 0."""
    weight: float
    """How much of a full average they hold."""
    log_effort: Scalar
    """Of the effort, without its answer to the load."""
    log_gap: Scalar
    """Log of the load on validation pairs over the load in training, as last seen."""

    def state(self) -> State:
        """All of it, as tensors."""
        rest = {"weight": number(self.weight), "log_effort": self.log_effort, "log_gap": self.log_gap}
        return {**self.smoothed._asdict(), **rest}

    @classmethod
    def of_state(cls, state: State, device: torch.device | str) -> "ControlState":
        """The same again, on a device."""
        smoothed = Signals(**{name: state[name].to(device) for name in Signals._fields})
        return cls(smoothed, float(state["weight"]), state["log_effort"].to(device), state["log_gap"].to(device))

    @property
    def signals(self) -> Signals:
        """The smoothed signals, corrected for the start at 0."""
        return Signals(*(signal / self.weight for signal in self.smoothed))


@dataclass(frozen=True)
class BudgetController:
    """Integral control in log space: an effort that rises while the load is below 1 and falls while it is above (the other way
    round where the load is a size, which effort makes smaller).

    The load of the sampled masks on training pairs is measured at every step, that of the circuit on validation pairs now
    and then. The controller follows the first, corrected by the ratio of the two when both were last seen.
    """

    budget: Budget
    steps: int
    """How many steps the run has."""
    start: float = 1.0
    """The first effort."""
    slack: float = 1.5
    """The load that is allowed at the start; it tightens geometrically to 1 over the first part of the run. Gates that are
    closed early on little evidence can come back while the effort falls."""
    tightening: float = 0.8
    """The share of the run over which the slack goes."""
    rise: float = 0.02
    """Largest rise of the log effort per step: slow, because a gate needs tens of steps to close, and the KL answers late."""
    fall: float = 0.05
    """Largest fall of the log effort per step."""
    answer: float = 0.0
    """Of a size: the power of the load by which the effort is multiplied at once. Gates take tens of steps to answer, so that an
    effort which only adds up loads swings around the limit."""
    lowest: float = 1e-3
    """What adds up never falls below: an early overshoot would else take as long to undo as it took to build up."""
    smoothing: float = 0.9
    """Decay of the moving average of the signals, per step."""
    smallest_gap: float = -1.5
    """Smallest correction of the log load; above 0 where it is known that circuits will generalise worse than they train."""
    largest_gap: float = 1.5
    """Largest correction of the log load."""

    def initial(self, device: torch.device | str = "cpu") -> ControlState:
        """The state before the first step."""
        zero = torch.zeros((), device=device)
        return ControlState(
            Signals(zero, zero, zero, zero, zero), 0.0, zero + math.log(self.start), zero + max(0.0, self.smallest_gap)
        )

    def step(self, step: int, measured: Signals, state: ControlState) -> ControlState:
        """The next state, from the signals of one step."""
        keep = self.smoothing
        smoothed = Signals(*(keep * old + (1 - keep) * new for old, new in zip(state.smoothed, measured, strict=True)))
        after = state._replace(smoothed=smoothed, weight=keep * state.weight + 1 - keep)
        room = self.log_allowed(step) - self._log_load(after.signals) - state.log_gap
        if self.budget.size is not None:
            room = -room
        change = torch.where(room > 0, self.rise, self.fall) * room.clamp(-1, 1)
        return after._replace(log_effort=(state.log_effort + change).clamp_min(math.log(self.lowest)))

    def effort(self, state: ControlState) -> Scalar:
        """How hard to prune."""
        added_up = state.log_effort.exp()
        return added_up * self.load(state) ** self.answer if self.answer and state.weight else added_up

    def load(self, state: ControlState) -> Scalar:
        """The load that is to be expected on validation pairs."""
        return (self._log_load(state.signals) + state.log_gap).exp()

    def log_allowed(self, step: int) -> float:
        """Log of the load that is allowed at a step."""
        return math.log(self.slack) * max(0.0, 1 - step / (self.tightening * self.steps))

    def checked(self, validation: Signals, state: ControlState) -> ControlState:
        """The state after a check of the circuit on validation pairs."""
        gap = self._log_load(validation) - self._log_load(state.signals)
        return state._replace(log_gap=gap.clamp(self.smallest_gap, self.largest_gap))

    def _log_load(self, signals: Signals) -> Scalar:
        return self.budget.load(signals).clamp_min(1e-6).log()
