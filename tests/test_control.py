"""The controller against a plant whose answer is known: a KL that follows the effort by a power law."""

import math

import pytest
import torch

from circuitsieve.search.control import Budget, BudgetController, ControlState, Signals, within


def signals(kl: float = 0.0, faithfulness: float = 1.0, accuracy_drop: float = 0.0, size: float = 0.5) -> Signals:
    return Signals(*(torch.tensor(value) for value in (kl, 4.0 * faithfulness, 4.0, accuracy_drop, size)))


def settle(controller: BudgetController, plant: float, steps: int = 3000, start: float = 1.5) -> ControlState:
    """Drive a plant with kl = plant * effort."""
    state = controller.initial()._replace(log_effort=torch.tensor(math.log(start)))
    for step in range(steps):
        state = controller.step(step, signals(kl=plant * float(controller.effort(state))), state)
    return state


@pytest.mark.parametrize("plant", [0.02, 0.2, 2.0])
@pytest.mark.parametrize("start", [0.05, 20.0])
def test_the_effort_settles_where_the_kl_is_the_budget(plant: float, start: float) -> None:
    controller = BudgetController(Budget(max_kl=0.1), steps=100)
    state = settle(controller, plant, start=start)
    assert float(controller.effort(state)) == pytest.approx(0.1 / plant, rel=0.02)
    assert float(state.signals.kl) == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("start", [1.0, 50.0])
def test_the_effort_settles_where_the_size_is_the_budget(start: float) -> None:
    controller = BudgetController(Budget(size=0.1), steps=100)
    state = controller.initial()._replace(log_effort=torch.tensor(math.log(start)))
    for step in range(3000):
        state = controller.step(step, signals(kl=9.0, size=0.5 / float(controller.effort(state))), state)
    assert float(controller.effort(state)) == pytest.approx(5.0, rel=0.02)


def loads_of_slow_gates(controller: BudgetController, balance: float = 3.0, steps: int = 720) -> list[float]:
    """A plant that answers late: sizes fall by half a percent a step where the pressure is well above a balance, or rise."""
    state, size, loads = controller.initial(), 0.04, []
    for step in range(steps):
        over = math.log(float(controller.effort(state)) / balance)
        size *= math.exp(-0.005 * math.tanh(over))
        state = controller.step(step, signals(kl=9.0, size=size), state)
        loads.append(size / 0.04)
    return loads


@pytest.mark.parametrize(
    ("rate", "answer", "settles"), [(0.02, 0, False), (0.1, 0, False), (0.02, 6, False), (0.1, 6, True)]
)
def test_slow_gates_come_to_rest_at_a_size_under_a_quick_rate_and_an_answer(
    rate: float, answer: float, settles: bool
) -> None:
    controller = BudgetController(
        Budget(size=0.04), steps=720, start=0.1, slack=1.0, rise=rate, fall=rate, answer=answer
    )
    off = [abs(math.log(load)) for load in loads_of_slow_gates(controller)]
    assert (max(off[360:]) < 0.01) is settles  # of steps that are left: half of them
    assert settles or max(off[600:]) > 0.06


def test_a_gap_between_training_and_validation_moves_the_settling_point() -> None:
    controller = BudgetController(Budget(max_kl=0.1), steps=100)
    state = controller.initial()
    for step in range(3000):
        kl = 0.2 * float(controller.effort(state))
        state = controller.step(step, signals(kl=kl), state)
        if step % 50 == 49:  # on validation pairs the circuit does half as well
            state = controller.checked(signals(kl=2 * kl), state)
    assert float(state.signals.kl) == pytest.approx(0.05, rel=0.05)


def test_the_allowed_load_tightens_to_the_budget_and_stays_there() -> None:
    controller = BudgetController(Budget(max_kl=0.1), steps=100)
    allowed = [math.exp(controller.log_allowed(step)) for step in (0, 40, 80, 99)]
    assert allowed == pytest.approx([controller.slack, math.sqrt(controller.slack), 1, 1])


def test_the_correction_is_bounded() -> None:
    controller = BudgetController(Budget(max_kl=0.1), steps=100)
    state = controller.checked(signals(kl=1e6), controller.step(0, signals(kl=0.1), controller.initial()))
    assert float(state.log_gap) == pytest.approx(controller.largest_gap)


def test_a_gap_that_is_expected_is_kept_to_before_and_after_checks() -> None:
    controller = BudgetController(Budget(max_kl=0.1), steps=100, slack=1.0, smallest_gap=math.log(2))
    assert float(settle(controller, 0.2).signals.kl) == pytest.approx(0.05, rel=0.02)
    checked = controller.checked(signals(kl=0.05), settle(controller, 0.2))  # as good as in training, so far
    assert float(checked.log_gap) == pytest.approx(math.log(2))


def test_the_effort_never_falls_below_its_floor() -> None:
    controller = BudgetController(Budget(max_kl=0.1), steps=100)
    state = settle(controller, plant=1e9, steps=2000)
    assert float(controller.effort(state)) == pytest.approx(controller.lowest)


def test_the_moving_average_is_corrected_for_its_start() -> None:
    controller = BudgetController(Budget(max_kl=0.1), steps=100)
    state = controller.step(0, signals(kl=0.7), controller.initial())
    assert float(state.signals.kl) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("budget", "measured", "load"),
    [
        (Budget(max_kl=0.1), signals(kl=0.05), 0.5),
        (Budget(max_kl=0.1), signals(kl=0.05, accuracy_drop=0.06), 2.0),  # the KL is kept, the task is lost
        (Budget(min_faithfulness=0.9), signals(kl=9.0, faithfulness=0.95), 0.5),
        (Budget(min_faithfulness=0.9), signals(kl=9.0, faithfulness=1.2), 2.0),  # an overshoot is no better
        (Budget(max_kl=0.1, min_faithfulness=0.9), signals(kl=0.3, faithfulness=0.95), 3.0),
        (Budget(size=0.2), signals(kl=9.0, accuracy_drop=1.0, size=0.1), 0.5),
    ],
)
def test_the_load_is_that_of_the_constraint_nearest_to_its_limit(
    budget: Budget, measured: Signals, load: float
) -> None:
    assert float(budget.load(measured)) == pytest.approx(load, rel=1e-5)


def test_what_is_spent_within_a_budget_is_the_size_or_for_a_size_the_kl() -> None:
    measured = signals(kl=0.3, size=0.1)
    assert float(Budget(max_kl=1.0).spent(measured)) == pytest.approx(0.1)
    assert float(Budget(size=0.2).spent(measured)) == pytest.approx(0.3)


def test_a_load_at_the_limit_is_within_it() -> None:
    assert within(1.0)
    assert within(float(torch.tensor(0.1, dtype=torch.float32) / 0.1))
    assert not within(1.001)
    assert not within(math.nan)
