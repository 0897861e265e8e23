"""The edges of a circuit for the terminal: how many are kept, what that changes, and the strongest."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from circuitsieve.circuits.graph import Edge, EdgeCircuit
from circuitsieve.wording import METRICS, number, percent

SHOWN = 20
"""Of the edges, the strongest."""
_METRICS = ("kl", "accuracy", "faithfulness")


def edges_view(found: Mapping[str, Any], edges: EdgeCircuit) -> RenderableType:
    """Two tables.

    Args:
        found: what edges.json says.
        edges: of the circuit.
    """
    said = Table(title=f"On {found['test']['n']} held-out pairs", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("", "edges", "gone", *(METRICS[metric][0] for metric in _METRICS)):
        said.add_column(heading, justify="right" if heading else "left")
    for label, kept, section in (
        ("circuit", found["among"], "nodes"),
        ("kept edges alone", found["kept"], "test"),
    ):
        values = [number(found[section][metric], METRICS[metric][1]) for metric in _METRICS]
        said.add_row(label, f"{kept:,}", percent(1 - kept / found["total"]), *values)
    strongest = Table(title="The strongest edges", box=box.SIMPLE_HEAD, title_justify="left")
    strongest.add_column("edge")
    strongest.add_column("score, nats", justify="right")
    for edge, score in ranked(edges)[:SHOWN]:
        strongest.add_row(Text(str(edge)), f"{score:+.4f}")
    return Group(said, strongest, f"The full model has {found['total']:,} edges.")


def ranked(edges: EdgeCircuit) -> list[tuple[Edge, float]]:
    """Kept edges with their scores, the strongest of either sign first."""
    named = [
        (edge, float(edges.scores[edge.receiver][edge.layer, edge.place, edge.source_index]))
        for edge in edges.graph.edges(edges.masks)
    ]
    return sorted(named, key=lambda item: -abs(item[1]))
