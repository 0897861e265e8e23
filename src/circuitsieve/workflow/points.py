"""The points of a sweep: circuits as they were measured, the files that keep them, and the curves through them."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from circuitsieve import figures, frames
from circuitsieve.disk import files
from circuitsieve.errors import RunError, shown

_BEYOND = 1e18
"""No value of a point is as large, and no figure could show it."""


@dataclass(frozen=True)
class Point:
    """One circuit on test pairs."""

    method: str
    seed: int
    asked: float
    """The size that was asked for."""
    size: float
    """The kept share of the units."""
    parameters: float
    """The kept share of the parameters."""
    heads: int
    head_dims: int
    mlp_neurons: int
    kl: float
    kl_low: float | None
    """The lower end of the 95 % bootstrap interval over pairs."""
    kl_high: float | None
    accuracy: float
    full_accuracy: float
    """Of the full model."""
    exact_match: float
    faithfulness: float | None
    validation_kl: float | None
    """Of the run's own circuit."""
    training_kl: float
    """On as many training pairs: the gap to `kl` is what does not generalise."""
    seconds: float
    """Of the search. Where it was stopped and gone on with: of its steps, and of all that came after."""


def kept_points(path: Path, key: Mapping[str, Any]) -> list[Point] | None:
    """The points of an earlier run, if it was the same; a file that is damaged counts as none."""
    try:
        content = files.read_json(path)
        return [_point(values) for values in content["points"]] if content["key"] == key else None
    except (RunError, KeyError, TypeError):
        return None


def _point(values: Mapping[str, Any]) -> Point:
    """A point of JSON.

    Raises:
        TypeError: a value is missing, unknown or none that was measured.
    """
    point = Point(**values)
    for field in fields(Point):
        value = getattr(point, field.name)
        kinds = (str,) if field.type is str else (int,) if field.type is int else (int, float)
        missing = value is None and field.type == float | None
        if not missing and (type(value) not in kinds or (str not in kinds and not abs(value) < _BEYOND)):
            raise TypeError(f"{field.name}: found {shown(value)}, expected {field.type}")
    return point


def medians(points: Iterable[Point]) -> dict[str, list[tuple[float, float]]]:
    """By method: (size, median KL over seeds), largest size first."""
    grouped: dict[str, dict[float, list[Point]]] = {}
    for point in points:
        grouped.setdefault(point.method, {}).setdefault(point.asked, []).append(point)
    return {
        method: [
            (statistics.median(p.size for p in same), statistics.median(p.kl for p in same))
            for _, same in sorted(by_size.items(), reverse=True)
        ]
        for method, by_size in grouped.items()
    }


def knee(curve: Sequence[tuple[float, float]]) -> float | None:
    """The size at which a curve of (size, KL) lies farthest below the line between its ends; None where none does.

    Sizes are compared by their logarithms, and both axes by the range that they span.
    """
    curve = [(size, kl) for size, kl in curve if size > 0]  # the empty circuit has no logarithm
    if len(curve) < 3:
        return None
    xs, ys = [math.log(size) for size, _ in curve], [kl for _, kl in curve]
    width, height = xs[0] - xs[-1], ys[-1] - ys[0]
    if width <= 0 or height <= 0:
        return None
    below = [(xs[0] - x) / width - (y - ys[0]) / height for x, y in zip(xs, ys, strict=True)]
    best = max(range(len(curve)), key=below.__getitem__)
    return curve[best][0] if below[best] > 1e-9 else None


def read_sweep(out: str) -> dict[str, Any]:
    """The content of `sweep.json`.

    Raises:
        RunError: it is missing or damaged.
    """
    return files.read_json(Path(out) / "sweep.json")


def write_tables(out: Path, points: Sequence[Point], title: str) -> None:
    """Write `sweep.json` (with medians and knees), `sweep.csv` and `sweep.svg`."""
    rows = [asdict(point) for point in points]
    curves = medians(points)
    knees = {method: knee(curve) for method, curve in curves.items()}
    summary = {method: {"curve": curve, "knee": knees[method]} for method, curve in curves.items()}
    files.write_json(out / "sweep.json", {"title": title, "points": rows, "methods": summary})
    points_frame = frames.sweep({"points": rows})
    figures.save(figures.sweep(points_frame, knees, title), points_frame, out / "sweep.svg")
