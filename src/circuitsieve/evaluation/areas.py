"""How good a ranking is at every size: the areas of MIB's circuit localization track (Mueller et al. 2025, "MIB").

Faithfulness f is measured for cuts of a ranking at ten sizes k. CPR is the area under f, CMD that under |1 - f|, both by the
trapezoid rule over k from 0.001 to 1. A perfect ranking has a CPR of 0.999 (more where circuits overshoot) and a CMD of 0.
"""

from collections.abc import Callable

import numpy as np
from scipy.integrate import trapezoid

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.evaluation.harness import Harness
from circuitsieve.evaluation.metrics import Summary, Values, interval, point_values

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Kept shares of the units."""
Area = Values | np.float64
"""One for each row of faithfulnesses."""


def cpr(faithfulness: Values) -> Area:
    """The area under the faithfulness at `SIZES` (its last dimension)."""
    area: Area = trapezoid(faithfulness, SIZES, axis=-1)
    return area


def cmd(faithfulness: Values) -> Area:
    """The area between the faithfulness at `SIZES` (its last dimension) and 1."""
    area: Area = trapezoid(np.abs(1 - faithfulness), SIZES, axis=-1)
    return area


def areas(harness: Harness, ranking: Ranking) -> dict[str, Summary]:
    """CPR and CMD of a ranking, each with the curve that it is the area of.

    Both are of the order that the ranking has: MIB orders signed scores for the one and absolute ones for the other, but a
    ranking that was learned has one order alone.
    """
    found = []
    for size in SIZES:
        masks = ranking.cut(ranking.threshold_at(size)) if size < 1 else ranking.space.full()
        cut = Circuit(ranking.space, masks, harness.circuit.ablation, harness.circuit.constants)
        found.append(harness.run(cut, harness.all, "ranking"))
    anchors = harness.all.anchors
    full, empty = (outcome.values["metric"] for outcome in (anchors.full, anchors.empty))
    curve = [point_values(outcome, anchors)["faithfulness"] for outcome in found]
    if not anchors.differ:
        return {name: Summary({"area": None}, {}, {"area": anchors.alike}) for name in ("cpr", "cmd")}
    samples = [outcome.values["metric"] for outcome in found]

    def area_of(area: Callable[[Values], Area]) -> Callable[..., Area]:
        def statistic(*resampled: Values, axis: int = -1) -> Area:
            *cuts, whole, nothing = (values.mean(axis) for values in resampled)
            return area(np.stack([(c - nothing) / (whole - nothing) for c in cuts], -1))

        return statistic

    points = {f"{size:g}": f for size, f in zip(SIZES, curve, strict=True)}
    return {
        name: Summary(
            {"area": float(area(np.array(curve))), "faithfulness": points},
            {"area": interval([*samples, full, empty], area_of(area), 0)},
            {},
        )
        for name, area in (("cpr", cpr), ("cmd", cmd))
    }
