"""Whether a phase still gains: what it makes small, in its last steps against those before.

Single steps are mostly noise, so windows of many steps are compared. While a ranking is learned the sizes of the masks differ
from step to step, and with them all that is measured; what a parabola in the log of the size explains is no gain.
"""

from typing import NamedTuple

import numpy as np

WINDOW = 80
"""Steps: so many are compared with as many before."""
GAIN = 0.02
"""Of the log of what is made small: a phase that gains no more than this from window to window has settled."""
NEAR = 0.05
"""So near to 1 must the load be, averaged over either window: what still moves to its limit rises, and might yet fall there."""


class Reading(NamedTuple):
    """What a step tells about how far a phase has come."""

    height: float
    """The log of what the phase makes small."""
    log_size: float = 0.0
    """Of the masks, where they differ between steps for no reason but chance."""
    load: float = 1.0
    """How much of the budget is used up: 1 at its limit."""


class Settling:
    """The readings of a phase."""

    def __init__(self) -> None:
        self._readings: list[Reading] = []

    def follow(self, reading: Reading) -> bool:
        """Take in a step.

        Returns:
            Whether the phase has settled: the load stays at its limit, and the height falls no more.
        """
        self._readings.append(reading)
        if len(self._readings) < 2 * WINDOW:
            return False
        heights, log_sizes, loads = np.array(self._readings[-2 * WINDOW :]).T
        away = np.abs(loads.reshape(2, WINDOW).mean(axis=1) - 1).max()
        return bool(away <= NEAR and gain(heights, log_sizes) <= GAIN)


def gain(heights: np.ndarray, log_sizes: np.ndarray) -> float:
    """By how much the second half of some heights lies below the first, at equal sizes (least squares)."""
    later = np.arange(len(heights)) >= len(heights) / 2
    away = log_sizes - log_sizes.mean()
    columns = np.stack([later, np.ones_like(away), away, away**2], axis=1)
    return -float(np.linalg.lstsq(columns, heights, rcond=None)[0][0])
