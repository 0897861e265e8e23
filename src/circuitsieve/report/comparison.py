"""Finished runs side by side: rows for the terminal, and a page that opens offline."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from circuitsieve import display
from circuitsieve.report.templates import rendered
from circuitsieve.wording import METRICS, Rows, number, percent


def comparison_page(found: Mapping[str, Any]) -> str:
    """The comparison as HTML; nothing in it is fetched.

    Args:
        found: what `overlap.compared` gives.
    """
    pairs = [{**pair, "jaccard": jaccard_rows(pair["jaccard"])} for pair in found["overlap"]]
    runs = [{"name": name, "picture": _picture(name, facts)} for name, facts in found["runs"].items()]
    return rendered("comparison.html.jinja", script="", facts=fact_rows(found["runs"]), runs=runs, pairs=pairs)


def fact_rows(runs: Mapping[str, Mapping[str, Any]]) -> Rows:
    """A column for each run: what it is of, what it keeps, how it does."""
    every = runs.values()
    rows = [
        ["", *runs],
        *([fact, *map(_named, (facts[fact] for facts in every))] for fact in ("model", "task", "method", "seed")),
        *([fact, *(percent(facts[fact]) for facts in every)] for fact in ("size", "parameters")),
        *([f"kept: {g}", *(f"{facts['kept'][g]:,}" for facts in every)] for g in ("head", "head_dim", "mlp_neuron")),
    ]
    for metric, (label, digits) in METRICS.items():
        cards = [facts["test"] or {} for facts in every]
        if any(metric in card for card in cards):
            rows.append([label, *(number(card.get(metric), digits) for card in cards)])
    rows.append(["random: KL, nats", *(number((facts["random"] or {}).get("kl"), 3) for facts in every)])
    return rows


def _named(value: object) -> str:
    return "-" if value is None else str(value)


def jaccard_rows(jaccard: Mapping[str, Mapping[str, float | None]]) -> Rows:
    """What two circuits share of each granularity, beside what chance would give."""
    rows = [[name, number(row["jaccard"], 3), number(row["chance"], 3)] for name, row in jaccard.items()]
    return [["shared", "Jaccard", "by chance"], *rows]


def _picture(name: str, facts: Mapping[str, Any]) -> Markup:
    space = facts["space"]
    drawn = display.circuit_map(facts["head_dims"], space["head_dim"], facts["mlp_neurons"], space["neurons"], name)
    return Markup(drawn)
