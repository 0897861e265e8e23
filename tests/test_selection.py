"""The search for the smallest feasible size, on predicates that count how often they are asked."""

import math

import pytest

from circuitsieve.search.selection import smallest_feasible

LEAST = 1e-5


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("start", [0.0, 1e-4, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("border", [1e-3, 0.02, 0.25, 0.31, 0.8, 1.0])
def test_the_border_is_found_to_the_precision(border: float, start: float, known: bool):
    asked: list[float] = []

    def feasible(size: float) -> bool:
        asked.append(size)
        return size >= border

    at_start = max(start, LEAST) >= border
    found = smallest_feasible(feasible, start, LEAST, 1.04, known=at_start if known else None)
    assert border <= found <= 1.04 * border
    assert all(LEAST <= size <= 1 for size in asked)
    distance = abs(math.log(max(start, LEAST) / border))
    assert len(asked) <= 6 + 2 * math.log2(1 + distance / math.log(1.25))


@pytest.mark.parametrize("border", [0.02, 0.25, 0.8])
def test_with_enough_of_it_the_size_is_feasible_but_the_border_is_wider(border: float):
    asked: list[float] = []

    def feasible(size: float) -> bool:
        asked.append(size)
        return size >= border

    exact = smallest_feasible(feasible, 0.3, LEAST, 1.04)
    in_full = len(asked)
    asked.clear()
    hasty = smallest_feasible(feasible, 0.3, LEAST, 1.04, used_up=lambda: len(asked) >= in_full - 2)
    assert len(asked) == in_full - 2
    assert border <= exact <= hasty
    assert hasty in asked


@pytest.mark.parametrize("border", [0.02, 0.25, 0.8])
def test_what_is_not_close_to_its_budget_is_narrowed_down_to_neighbours(border: float):
    def found(enough: float) -> float:
        smallest = 1.0

        def feasible(size: float) -> bool:
            nonlocal smallest
            smallest = min(smallest, size) if size >= border else smallest
            return size >= border

        return smallest_feasible(feasible, 0.3, LEAST, 1.04, close=lambda: smallest <= enough * border)

    assert border <= found(1.0) <= border + LEAST
    assert found(1.0) <= found(1.01) <= 1.01 * border
    assert found(2.0) <= 1.04 * border


@pytest.mark.parametrize("start", [1e-3, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("border", [0.02, 0.25, 0.8])
def test_no_size_beyond_the_largest_is_looked_at(border: float, start: float):
    asked: list[float] = []

    def feasible(size: float) -> bool:
        asked.append(size)
        return size >= border

    found = smallest_feasible(feasible, start, LEAST, 1.04, most=0.3)
    assert max(asked) <= 0.3
    if border < 0.3:
        assert border <= found <= 1.04 * border
    else:
        assert found == 0.3


def test_where_everything_is_feasible_the_least_size_is_returned():
    assert smallest_feasible(lambda _: True, 0.3, LEAST, 1.04) == LEAST


def test_where_nothing_is_the_whole_model_is_tried_and_returned():
    asked: list[float] = []
    assert smallest_feasible(lambda size: bool(asked.append(size)), 0.3, LEAST, 1.04) == 1.0
    assert asked[-1] == 1.0
