"""Figures for papers: vector graphics, readable without colour, each drawn from a frame (`frames`) that is saved beside it.

Every function returns a matplotlib figure; `save` writes it with its data, `svg` gives it to a page.
"""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.figure
import pandas as pd
from matplotlib.axes import Axes

from circuitsieve.disk import files
from circuitsieve.errors import ConfigError
from circuitsieve.wording import METRICS

FORMATS = ("svg", "pdf")
MARKERS = "osD^vPX*<>"
PANELS = {"kl": "KL to the full model, nats", "accuracy": "accuracy", "faithfulness": "faithfulness"}
SECTIONS = ("test", "full", "empty", "complement", "random")
"""Of a card, from top to bottom."""
STYLE: Any = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that notebooks show as vector graphics."""

    def _repr_svg_(self) -> str:
        return svg(self).decode()


def circuit_map(heads: pd.DataFrame, layers: pd.DataFrame, neurons: int) -> Figure:
    """Kept dims of every head as shades of grey, and the kept share of every MLP as a bar; the last layer is on top.

    Args:
        heads: `frames.heads`.
        layers: `frames.layers`.
        neurons: MLP neurons of a layer.
    """
    shares = heads.pivot_table(index="layer", columns="head", values="share")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.8 + 0.22 * shares.shape[1], 0.9 + 0.17 * len(shares)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
        drawn = left.pcolormesh(shares, cmap="Greys", vmin=0, vmax=1, edgecolors="0.8", linewidth=0.5)
        figure.colorbar(drawn, ax=right, label="kept share of a head's dims", fraction=0.1, aspect=40)
        right.barh([layer + 0.5 for layer in layers.index], layers["mlp_neuron"] / neurons, height=0.8, color="0.35")
        left.set_xlabel("head")
        left.set_ylabel("layer")
        right.set_xlabel("kept share\nof MLP neurons")
        every = max(1, len(shares) // 12)
        left.set_yticks(
            [layer + 0.5 for layer in shares.index[::every]], [str(layer) for layer in shares.index[::every]]
        )
        left.set_xticks([head + 0.5 for head in shares.columns], [str(head) for head in shares.columns])
        return figure


def controls(card: pd.DataFrame) -> Figure:
    """The circuit beside its controls, with 95 % intervals.

    Args:
        card: `frames.card`.
    """
    panels = [metric for metric in ("kl", "accuracy", "faithfulness", "logit_diff") if metric in set(card["metric"])]
    sections = [section for section in SECTIONS if section in set(card["section"])]
    names = ["circuit" if section == "test" else section for section in sections]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.4 * len(panels), 0.9 + 0.25 * len(sections)), layout="constrained")
        for axes, metric in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
            rows = card[card["metric"] == metric].set_index("section").reindex(sections)
            for place, (_, row) in enumerate(rows.iterrows()):
                if not pd.isna(row["low"]):
                    axes.plot([row["low"], row["high"]], [place, place], color="0.5", linewidth=2)
            axes.plot(rows["value"], range(len(rows)), linestyle="none", marker="o", markersize=4, color="black")
            axes.set_xlabel(METRICS[metric][0])
            axes.set_yticks(range(len(sections)), names)
            axes.grid(axis="x", linewidth=0.4)
        figure.axes[0].invert_yaxis()
        return figure


def curve(sizes: pd.DataFrame, size: float) -> Figure:
    """Size against KL, accuracy and faithfulness of one ranking; a line marks the circuit.

    Args:
        sizes: size, kl, accuracy and faithfulness of each cut.
        size: of the circuit.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        for axes, (metric, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            known = sizes.dropna(subset=[metric])
            axes.plot(known["size"], known[metric], marker="o", markersize=3, linewidth=1)
            if size:  # a circuit that keeps nothing has no place on the axis
                axes.axvline(size, color="0.5", linestyle="--", linewidth=0.8)
            axes.set_xscale("log")
            axes.set_xlabel("size, share of units kept")
            axes.set_ylabel(label)
            axes.xaxis.set_major_formatter(lambda share, _: _percent(share))
            axes.minorticks_off()
        return figure


def course(history: pd.DataFrame) -> Figure:
    """KL of the drawn masks, and their size where it is known, by step.

    Args:
        history: `frames.history`.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 2.6), layout="constrained")
        names = {"kl": "KL, nats", "drawn_size": "size of the drawn masks"}
        for axes, (name, label) in zip(figure.subplots(1, 2), names.items(), strict=True):
            if name in history:
                axes.plot(history.index, history[name], linewidth=0.7)
            axes.set_yscale("log")
            axes.set_xlabel("step")
            axes.set_ylabel(label)
        return figure


def sweep(points: pd.DataFrame, knees: Mapping[str, float | None], title: str) -> Figure:
    """Size against KL, accuracy and faithfulness: medians over seeds, bars from the lowest to the highest.

    Args:
        points: `frames.sweep`.
        knees: by method, the size at its knee; there the curve has a ring.
        title: what was compared.
    """
    asked = sorted(points["asked"].unique())
    methods = list(points["method"].unique())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        for axes, (metric, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            for number, method in enumerate(methods):
                _method(axes, points[points["method"] == method], metric, knees.get(method), MARKERS[number % 10])
            axes.set_xscale("log")
            axes.set_xlabel("size, share of units kept")
            axes.set_ylabel(label)
            axes.set_xticks(asked, [_percent(size) for size in asked])
            axes.minorticks_off()
            if metric == "kl":
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(lambda kl, _: f"{kl:g}")
                axes.yaxis.set_minor_formatter(lambda kl, _: f"{kl:g}")
            elif metric == "faithfulness":
                axes.axhline(1, color="0.7", linewidth=0.8, zorder=0)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(methods)), frameon=False)
        return figure


def svg(figure: Figure) -> bytes:
    """A figure as SVG with its text as text; equal for equal figures."""
    return _drawn(figure, "svg")


def save(figure: Figure, data: pd.DataFrame, path: str | Path) -> None:
    """Write a figure, and beside it, under the same name, its data as CSV.

    Args:
        figure: the figure.
        data: what it was drawn from.
        path: ends in .svg or .pdf.

    Raises:
        ConfigError: it ends in something else.
        RunError: it cannot be written.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise ConfigError(f"figure: found the name {path.name!r}, expected one that ends in .svg or .pdf")
    index = data.index.name is not None
    files.write_bytes(path.with_suffix(".csv"), data.to_csv(index=index, lineterminator="\n").encode())
    files.write_bytes(path, _drawn(figure, kind))


def _drawn(figure: Figure, kind: str) -> bytes:
    content = io.BytesIO()
    when = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context({**STYLE, "svg.hashsalt": "circuitsieve"}):
        figure.savefig(content, format=kind, metadata=when[kind])
    return content.getvalue()


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}"


def _method(axes: Axes, own: pd.DataFrame, metric: str, at_knee: float | None, marker: str) -> None:
    known = own[own[metric].notna() & (own[metric].abs() < math.inf)]
    if known.empty:
        return
    by_size = known.groupby("asked")
    values, xs = by_size[metric], by_size["size"].median()
    middle = values.median()
    axes.errorbar(
        xs,
        middle,
        yerr=[middle - values.min(), values.max() - middle],
        marker=marker,
        markersize=4,
        linewidth=1,
        capsize=2,
        label=str(own["method"].iloc[0]).replace("_", " "),
    )
    ring = middle[xs == at_knee]
    axes.plot(
        xs[xs == at_knee],
        ring,
        marker="o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor="black",
        linestyle="",
    )
