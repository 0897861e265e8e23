"""How numbers are called and written, wherever people read them: the terminal, notebooks, reports, figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Rows = list[list[str]]
"""A table: headings, then rows."""
METRICS = {
    "kl": ("KL, nats", 3),
    "kl_p95": ("KL, 95th centile", 3),
    "accuracy": ("accuracy", 3),
    "argmax_accuracy": ("argmax accuracy", 3),
    "exact_match": ("exact match", 3),
    "logit_diff": ("logit difference", 2),
    "prob_diff": ("prob difference", 3),
    "cutoff_sharpness": ("cutoff sharpness", 3),
    "faithfulness": ("faithfulness", 3),
}
"""Metrics of a card: labels and digits."""
CONTROLS = ("full", "empty", "complement", "random")
"""Sections of the card that stand beside the circuit's own."""
SHADES = "·░▒▓█"
"""Of a head: nothing, a quarter, a half, three quarters, all of its dims."""


def number(value: float | None, digits: int) -> str:
    """A number with so many digits; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def interval(bounds: Sequence[float] | None, digits: int) -> str:
    """Both ends with so many digits; a dash where there is none."""
    return "-" if bounds is None else f"{bounds[0]:.{digits}f}..{bounds[1]:.{digits}f}"


def percent(share: float) -> str:
    """A share in [0, 1]."""
    return f"{100 * share:.1f} %"


def shade(kept: int, total: int) -> str:
    """A character for how much of a head is kept: none, or up to each quarter."""
    return SHADES[math.ceil((len(SHADES) - 1) * kept / total)]


def metric_rows(card: Mapping[str, Any]) -> Rows:
    """Metrics on held-out pairs, the circuit beside its controls: headings, then a row for each.

    Args:
        card: the values of a card.
    """
    controls = [section for section in CONTROLS if section in card]
    rows = [["", "circuit", "95 % interval", *controls]]
    for metric, (label, digits) in METRICS.items():
        if metric in card["test"]:
            bounds = interval(card["intervals"]["test"].get(metric), digits)
            others = [number(card[section].get(metric), digits) for section in controls]
            rows.append([label, number(card["test"][metric], digits), bounds, *others])
    return rows


def kept_rows(counts: Mapping[str, tuple[int, int]], size: float, parameters: tuple[int, int]) -> Rows:
    """What a circuit keeps: headings, a row for each granularity, and at last its units and its parameters.

    Args:
        counts: kept and total nodes by granularity.
        size: the kept share of the read-site units.
        parameters: kept and total parameters of the projections.
    """
    rows = [["granularity", "kept", "of", "pruned"]]
    for name, (kept, total) in (*counts.items(), ("parameters", parameters)):
        rows.append([str(name), f"{kept:,}", f"{total:,}", percent(1 - kept / total)])
    rows.insert(-1, ["read-site units (size)", "", percent(size), percent(1 - size)])
    return rows


def summary_rows(summary: Mapping[str, Any]) -> Rows:
    """The same from the content of circuit.json."""
    counts = {name: (row["kept"], row["total"]) for name, row in summary["kept"].items()}
    return kept_rows(counts, summary["size"], (summary["parameters"]["kept"], summary["parameters"]["total"]))
