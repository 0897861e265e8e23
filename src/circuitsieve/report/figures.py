"""Figures for papers: vector graphics, readable without colour. Each is drawn from the table that lies beside it."""

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MARKERS = "osD^vPX*<>"
PANELS = {"kl": "KL to the full model, nats", "accuracy": "accuracy", "faithfulness": "faithfulness"}
STYLE: Any = {"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def sweep_figure(points: Sequence[Mapping[str, object]], knees: Mapping[str, float | None], title: str) -> bytes:
    """Size against KL, accuracy and faithfulness, as SVG: medians over seeds, bars from the lowest to the highest.

    Args:
        points: rows of the sweep.
        knees: by method, the size at its knee; there the curve has a ring.
        title: what was compared.
    """
    methods = list(dict.fromkeys(str(point["method"]) for point in points))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        for axes, (metric, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            for number, method in enumerate(methods):
                own = [point for point in points if point["method"] == method]
                _curve(axes, own, metric, knees.get(method), number)
            axes.set_xscale("log")
            axes.set_xlabel("size, share of units kept")
            axes.set_ylabel(label)
            asked = sorted({float(str(point["asked"])) for point in points})
            axes.set_xticks(asked, [f"{size:.0%}" if size >= 0.01 else f"{size:.1%}" for size in asked])
            axes.minorticks_off()
            if metric == "kl":
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(lambda kl, _: f"{kl:g}")
                axes.yaxis.set_minor_formatter(lambda kl, _: f"{kl:g}")
            elif metric == "faithfulness":
                axes.axhline(1, color="0.7", linewidth=0.8, zorder=0)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(methods)), frameon=False)
        return _svg(figure)


def curve_figure(curve: Sequence[Mapping[str, float | None]], size: float) -> bytes:
    """Size against KL, accuracy and faithfulness of one ranking, as SVG; a line marks the circuit.

    Args:
        curve: size, kl, accuracy and faithfulness of each cut.
        size: of the circuit.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        for axes, (metric, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            known = [(point["size"], point[metric]) for point in curve if point[metric] is not None]
            axes.plot([x for x, _ in known], [y for _, y in known], marker="o", markersize=3, linewidth=1)
            axes.axvline(size, color="0.5", linestyle="--", linewidth=0.8)
            axes.set_xscale("log")
            axes.set_xlabel("size, share of units kept")
            axes.set_ylabel(label)
            axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}" if share >= 0.01 else f"{share:.1%}")
            axes.minorticks_off()
        return _svg(figure)


def course_figure(history: Sequence[Mapping[str, int | float]]) -> bytes:
    """KL of the drawn masks, and their size where it is known, by step, as SVG."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.6), layout="constrained")
        names = {"kl": "KL, nats", "drawn_size": "size of the drawn masks"}
        for axes, (name, label) in zip(figure.subplots(1, 2), names.items(), strict=True):
            known = [(entry["step"], entry[name]) for entry in history if name in entry]
            axes.plot([x for x, _ in known], [y for _, y in known], linewidth=0.7)
            axes.set_yscale("log")
            axes.set_xlabel("step")
            axes.set_ylabel(label)
        return _svg(figure)


def _svg(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _curve(axes: Axes, own: Sequence[Mapping[str, object]], metric: str, at_knee: float | None, number: int) -> None:
    sizes: dict[float, list[Mapping[str, object]]] = {}
    for point in own:
        sizes.setdefault(float(str(point["asked"])), []).append(point)
    xs, middle, low, high = [], [], [], []
    for _, same in sorted(sizes.items()):
        values = [float(str(p[metric])) for p in same if p[metric] is not None]
        values = [value for value in values if math.isfinite(value)]
        if values:
            xs.append(statistics.median(float(str(p["size"])) for p in same))
            middle.append(statistics.median(values))
            low.append(middle[-1] - min(values))
            high.append(max(values) - middle[-1])
    if not xs:
        return
    name = str(own[0]["method"]).replace("_", " ")
    axes.errorbar(
        xs,
        middle,
        yerr=[low, high],
        marker=MARKERS[number % len(MARKERS)],
        markersize=4,
        linewidth=1,
        capsize=2,
        label=name,
    )
    for x, y in zip(xs, middle, strict=True):
        if x == at_knee:
            axes.plot(
                x, y, marker="o", markersize=11, markerfacecolor="none", markeredgecolor="black", linestyle="none"
            )
