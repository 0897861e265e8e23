"""What became of a circuit as a model of its own, for the terminal: what it says, and what it saves."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from circuitsieve.wording import METRICS, number

_SAYS = {
    "circuit": "the circuit, other nodes ablated as it was found ({found_with})",
    "constants": "the same nodes, the others at constants ({ablation})",
    "compact": "the compact model",
    "recovered": "its constants tuned for {recover_steps} steps",
}
"""Whose answers were measured."""
_COSTS = {
    "projections": "parameters of attention and MLPs",
    "parameters": "parameters in all",
    "bytes": "bytes in memory",
    "forward": "seconds, {prompts} prompts x {tokens} tokens",
    "token": "seconds, one more token",
}


def compact_view(about: Mapping[str, Any]) -> RenderableType:
    """Two tables.

    Args:
        about: what compact.json says.
    """
    quality, cost = about["quality"], about["cost"]
    said = Table(title=f"On {quality['pairs']} held-out pairs", box=box.SIMPLE_HEAD, title_justify="left")
    said.add_column("")
    metrics = [metric for metric in METRICS if metric in quality["compact"]]
    for metric in metrics:
        said.add_column(METRICS[metric][0], justify="right")
    for section, label in _SAYS.items():
        if section in quality:
            values = [number(quality[section][metric], METRICS[metric][1]) for metric in metrics]
            said.add_row(label.format(**about), *values)
    saves = Table(title="What it saves", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("", "full", "compact", "full / compact"):
        saves.add_column(heading, justify="right" if heading else "left")
    for name, label in _COSTS.items():
        full, compact = cost[name]["full"], cost[name]["compact"]
        digits = ".4f" if isinstance(full, float) else ",d"
        times = f"{full / max(compact, 1e-9):.2f} x"
        saves.add_row(label.format(**cost["timed"]), f"{full:{digits}}", f"{compact:{digits}}", times)
    when = "Before its constants were tuned its logits were" if "recovered" in quality else "Its logits are"
    note = f"{when} those of the masked model to {quality['difference']:.1e} of the largest."
    return Group(said, saves, Text(note))
