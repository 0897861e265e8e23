"""How good a ranking is at every size: the areas of MIB's circuit localization track (Mueller et al. 2025, "MIB").

Faithfulness f is measured for cuts of a ranking at ten sizes k. CPR is the area under f, CMD that under |1 - f|, both by the
trapezoid rule over k from 0.001 to 1. A perfect ranking has a CPR of 0.999 (more where circuits overshoot) and a CMD of 0.
"""

from collections.abc import Sequence

import numpy as np
from scipy.integrate import trapezoid

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Kept shares of the scored units."""


def cpr(faithfulness: Sequence[float]) -> float:
    """The area under the faithfulness at `SIZES`."""
    return float(trapezoid(np.asarray(faithfulness, float), SIZES))


def cmd(faithfulness: Sequence[float]) -> float:
    """The area between the faithfulness at `SIZES` and 1."""
    return float(trapezoid(np.abs(1 - np.asarray(faithfulness, float)), SIZES))
