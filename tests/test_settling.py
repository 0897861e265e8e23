"""When a phase ends: on readings whose course is known."""

import numpy as np
import pytest

from circuitsieve.search.settling import GAIN, NEAR, WINDOW, Reading, Settling, gain


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n)


def settled_after(readings: list[Reading]) -> int | None:
    settling = Settling()
    return next((n for n, reading in enumerate(readings, start=1) if settling.follow(reading)), None)


def test_a_gain_is_the_difference_of_the_means_where_sizes_are_equal() -> None:
    heights = noise(40)
    assert gain(heights, np.full(40, -2.0)) == pytest.approx(heights[:20].mean() - heights[20:].mean())


@pytest.mark.parametrize("gained", [0.3, 0.0, -0.1])
def test_what_sizes_explain_is_no_gain(gained: float) -> None:
    log_sizes = np.sort(noise(60))  # the second half draws the larger ones
    heights = 1.0 - 0.8 * log_sizes + 0.2 * log_sizes**2 - np.repeat([0.0, gained], 30)
    assert gain(heights, log_sizes) == pytest.approx(gained)
    assert abs(gain(heights, 0 * log_sizes) - gained) > 0.3


def test_what_falls_goes_on_and_what_stays_ends_as_soon_as_it_can_be_told() -> None:
    falls = [Reading(-2 * GAIN * step / WINDOW) for step in range(5 * WINDOW)]
    assert settled_after(falls) is None
    stays = [Reading(-1 + 1e-3 * value) for value in noise(5 * WINDOW)]
    assert settled_after(stays) == 2 * WINDOW


def test_what_falls_and_then_stays_ends_a_while_later() -> None:
    course = [Reading(-0.01 * min(step, 200)) for step in range(600)]
    ended = settled_after(course)
    assert ended is not None
    assert 200 + WINDOW < ended < 200 + 2 * WINDOW


@pytest.mark.parametrize("load", [1 + 2 * NEAR, 1 - 2 * NEAR, 0.0])
def test_away_from_its_limit_nothing_has_settled(load: float) -> None:
    assert settled_after([Reading(-1.0, load=load)] * 400) is None
    arriving = [Reading(-1.0, load=load)] * 300 + [Reading(-1.0, load=1.0)] * 200
    ended = settled_after(arriving)
    assert ended is not None
    assert 300 + WINDOW < ended <= 300 + 2 * WINDOW


def test_what_rose_on_its_way_to_the_limit_may_fall_there() -> None:
    above = [Reading(-0.85, load=1.3)] * 200
    falls = [Reading(-0.8 - 2 * GAIN * step / WINDOW) for step in range(300)]
    assert settled_after(above + falls) is None
    assert settled_after(above + [Reading(-0.8)] * 300) is not None
