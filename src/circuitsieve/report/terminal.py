"""Tables of a circuit and its card for the terminal, as rich renderables. Nothing here computes anything."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from circuitsieve.report.comparison import fact_rows, jaccard_rows
from circuitsieve.wording import SHADES, Rows, metric_rows, number, shade, summary_rows

if TYPE_CHECKING:
    from circuitsieve.models.selfcheck import CheckResult
    from circuitsieve.workflow.datacheck import CheckedPair, DataReport
    from circuitsieve.workflow.plan import Plan
    from circuitsieve.workflow.points import Point
    from circuitsieve.workflow.repeating import Repetition

NAMED_AT_MOST = 40
"""Nodes that only one of two circuits has."""


def plan_table(plan: "Plan") -> RenderableType:
    """Predicted time and memory, by what takes them."""
    table = Table(title="What it will cost", box=box.SIMPLE_HEAD, title_justify="left", show_footer=True)
    totals = plan.to_dict()
    table.add_column("", "in all, about")
    table.add_column("time", _duration(totals["total_seconds"]), justify="right")
    table.add_column("memory", _gigabytes(totals["peak_memory_bytes"]), justify="right")
    for part, seconds in plan.seconds.items():
        table.add_row(part, _duration(seconds), "")
    for part, size in plan.memory.items():
        table.add_row(part, "", _gigabytes(size))
    notes = [f"{plan.kept:.0%} of the corrupted activations are kept between steps"]
    if plan.checkpointed:
        notes.append(f"{plan.checkpointed} layers are run again in the backward pass")
    if plan.dispatched is not None:
        notes.append(f"the model is dispatched over devices: {plan.dispatched}")
    return Group(table, "; ".join(notes))


def sweep_table(points: "Sequence[Point]") -> RenderableType:
    """Medians over seeds by method and size, and the lowest and highest KL; the rest is in the CSV file."""
    table = Table(
        title="Size against behaviour, on test pairs", box=box.SIMPLE, title_justify="left", padding=(0, 1, 0, 0)
    )
    for heading in ("method", "size", "heads", "KL, nats", "over seeds", "accuracy", "faithful"):
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    grouped: dict[tuple[str, float], list[Point]] = {}
    for point in points:
        grouped.setdefault((point.method, point.asked), []).append(point)
    for (method, _), same in grouped.items():

        def middle(name: str, same: "list[Point]" = same) -> float | None:
            known = [value for point in same if (value := getattr(point, name)) is not None]
            return float(statistics.median(known)) if known else None

        kls = [point.kl for point in same]
        faithfulness = middle("faithfulness")
        table.add_row(
            method.replace("_", " "),
            f"{middle('size'):.1%}",
            f"{middle('heads'):.0f}",
            f"{middle('kl'):.3f}",
            f"{min(kls):.2f}-{max(kls):.2f}" if len(same) > 1 else "",
            f"{middle('accuracy'):.3f}",
            "" if faithfulness is None else f"{faithfulness:.2f}",
        )
    return table


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 100 else f"{seconds:.1f} s"


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.2f} GB"


def data_view(report: "DataReport", shown: int) -> RenderableType:
    """How many pairs are usable, why others are not, what the full model does, and the words of the first few."""
    table = Table(title="Pairs", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("")
    table.add_column("pairs", justify="right")
    for split, count in report.usable.items():
        table.add_row(f"usable, {split}", f"{count:,}")
    for reason, count in report.reasons.items():
        table.add_row(Text(f"dropped: {reason}"), f"{count:,}")
    parts: list[RenderableType] = [table]
    if report.screening is not None:
        full, empty = report.screening.full, report.screening.empty
        parts.append(f"full model: accuracy {full:.3f} on clean prompts, {empty:.3f} on corrupted ones")
    usable = [checked for checked in report.pairs if checked.reason is None][:shown]
    dropped = [checked for checked in report.pairs if checked.reason is not None][:shown]
    return Group(*parts, *(_words_view(checked) for checked in (*usable, *dropped)))


def _words_view(checked: "CheckedPair") -> RenderableType:
    """A pair word by word; a word whose tokens do not align is marked."""
    title = Text(f"{checked.split}: {'usable' if checked.reason is None else checked.reason}")
    answers = f"answers {', '.join(map(repr, checked.pair.answers))}; wrong {', '.join(map(repr, checked.pair.wrong_answers))}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("clean", "corrupted", ""):
        table.add_column(heading)
    for word in checked.words:
        clean, corrupted = ("·".join(piece.strip() for piece in pieces) for pieces in word)
        table.add_row(
            Text(clean), Text(corrupted), "" if word.aligned else f"{len(word.clean)} and {len(word.corrupted)} tokens"
        )
    return Group(table, Text(f"{answers}\n"))


def size_table(summary: Mapping[str, Any]) -> Table:
    """Kept nodes by granularity, read-site units and exact parameters, from the contents of circuit.json."""
    headings, *rows = summary_rows(summary)
    table = Table(title="What the circuit keeps", box=box.SIMPLE_HEAD, title_justify="left")
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="right" if column else "left")
    for row in rows:
        if row is rows[-2]:
            table.add_section()
        table.add_row(*row)
    return table


def layer_table(layers: Mapping[str, Mapping[str, int]], head_dims: Sequence[Sequence[int]], head_dim: int) -> Table:
    """Kept units of every layer that keeps any, with a map of its heads.

    Args:
        layers: counts by layer.
        head_dims: how many dims are kept of each head, layer by layer.
        head_dim: dims of a head.
    """
    table = Table(title="Where it lies", box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.caption = f"{SHADES[0]} none, {SHADES[1:]} up to 1/4, 1/2, 3/4, all of a head's dims\n"
    table.add_column("layer", justify="right")
    table.add_column("heads 0 to " + str(len(head_dims[0]) - 1), no_wrap=True)
    for heading in ("heads", "head dims", "MLP neurons"):
        table.add_column(heading, justify="right")
    for (layer, row), dims in zip(layers.items(), head_dims, strict=True):
        if any(row.values()):
            shades = "".join(shade(kept, head_dim) for kept in dims)
            table.add_row(layer, shades, *(f"{row[name]:,}" for name in ("head", "head_dim", "mlp_neuron")))
    return table


def card_table(card: Mapping[str, Any]) -> Table:
    """Metrics on held-out pairs, the circuit beside its controls."""
    headings, *rows = metric_rows(card)
    fewer = f" (random: {card['random']['n']:.0f})" if "random" in card else ""
    title = f"On {card['test']['n']:.0f} held-out pairs{fewer}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", collapse_padding=True, pad_edge=False)
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def verdict(card: Mapping[str, Any]) -> Text:
    """One line: was the budget met, and does the circuit stand out from random ones."""
    text = Text()
    met = card.get("budget_met")
    if met is not None:
        text.append(
            "Budget met on validation pairs. " if met else "Budget NOT met on validation pairs. ",
            "green" if met else "red",
        )
    if "random" in card:
        text.append(
            f"It beats {100 * card['random']['beaten']:.0f} % of {card['random']['circuits']:.0f} random circuits of the same "
            "shape in KL."
        )
    return text


def run_view(summary: Mapping[str, Any], card: Mapping[str, Any] | None) -> RenderableType:
    """Everything of a run that fits a terminal."""
    if card is None:
        return Group(
            size_table(summary), Text("Not evaluated yet: run `circuitsieve evaluate` on this folder.", "yellow")
        )
    full = [trust_table(card)] if "verdicts" in card else []
    where = layer_table(card["layers"], summary["head_dims"], summary["space"]["head_dim"])
    return Group(size_table(summary), where, card_table(card), *full, verdict(card))


def trust_table(card: Mapping[str, Any]) -> Table:
    """What the full card adds, in words, with the p-values behind them."""
    table = Table(
        title="How far to trust it", box=box.SIMPLE_HEAD, title_justify="left", collapse_padding=True, pad_edge=False
    )
    table.add_column("", no_wrap=True)
    table.add_column("")
    table.add_column("p, corrected", justify="right", no_wrap=True)
    for name, said in card["verdicts"].items():
        table.add_row(name, said, _p_value(card[name].get("p_corrected")))
    later = card["necessity"]["without_layer_0"]
    table.add_row(
        "layer 0 aside",
        f"Without the rest of the circuit accuracy is {later['accuracy']:.2f}, without as much of other circuits of its shape "
        f"{later['matched']['accuracy']:.2f}.",
        "",
    )
    complete = card["completeness"]
    table.add_row(
        "completeness",
        f"Without parts of it, circuit and model differ by {complete['gap']:.2f}, at most by {complete['largest_gap']:.2f}.",
        "",
    )
    table.add_row("robustness", _gaps(card["robustness"]), "")
    stable = card["stability"]
    if stable["reruns"]:
        table.add_row(
            "stability",
            "Searches with other seeds have in common with this circuit (and by chance): "
            + ", ".join(
                f"{name} {number(stable['with_the_circuit'][name]['jaccard'], 2)} "
                f"({number(stable['with_the_circuit'][name]['chance'], 2)})"
                for name in ("head", "head_dim", "mlp_neuron")
            )
            + " (Jaccard).",
            "",
        )
    for name in ("cpr", "cmd"):
        table.add_row(name.upper(), number(card[name]["area"], 3) + " of the ranking, over all sizes", "")
    return table


def _gaps(robustness: Mapping[str, Any]) -> str:
    shifts = {name: value for name, value in robustness.items() if value is not None and name != "unchanged"}
    if not shifts:
        return "The circuit was not tried on other inputs."
    each = (f"{name} {value['kl']:.2f}" for name, value in shifts.items())
    return f"KL on {', '.join(each)}; unchanged {robustness['unchanged']['kl']:.2f}."


def _p_value(p: float | None) -> str:
    if p is None:
        return ""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def comparison_view(found: Mapping[str, Any]) -> RenderableType:
    """Runs side by side, from `overlap.compared`."""
    parts: list[RenderableType] = [_plain(fact_rows(found["runs"]), "Side by side")]
    for pair in found["overlap"]:
        parts.append(_plain(jaccard_rows(pair["jaccard"]), " and ".join(pair["runs"])))
        for run, nodes in pair["only"].items():
            more = f" and {len(nodes) - NAMED_AT_MOST} more" if len(nodes) > NAMED_AT_MOST else ""
            parts.append(Text(f"Only in {run}: {', '.join(nodes[:NAMED_AT_MOST]) or 'no block and no head'}{more}\n"))
    return Group(*parts)


def repetition_view(found: "Repetition") -> RenderableType:
    """Whether a run came out again as it was."""
    if found.same:
        lines = ["the same circuit and the same scores, bit for bit"]
    else:
        before, now = found.sizes
        differing = ", ".join(f"{count} {granularity}" for granularity, count in found.differing.items())
        lines = [
            f"another circuit: {differing} differ" if differing else "the same masks",
            f"size {before:.2%} before, {now:.2%} now; scores differ by {found.scores:.2g} at most",
        ]
        if found.constants:
            lines.append(f"what ablated nodes take differs by {found.constants:.2g} at most")
    lines += [f"{name} was {then}, is {now}" for name, (then, now) in found.versions.items()]
    return Text("\n".join(lines))


def _plain(rows: Rows, title: str) -> Table:
    """A table of rows that are written already; what stands in them is text."""
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, title_justify="left")
    for column, heading in enumerate(rows[0]):
        table.add_column(Text(heading), justify="right" if column else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table


def check_table(results: Sequence["CheckResult"]) -> Table:
    """What `circuitsieve check` found."""
    table = Table(title="Does masking do what it says?", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("check", "must equal"):
        table.add_column(heading)
    for heading in ("difference", "tolerated", ""):
        table.add_column(heading, justify="right")
    for result in results:
        passed = Text("ok", "green") if result.passed else Text("FAILED", "red")
        table.add_row(result.name, result.expectation, f"{result.difference:.1e}", f"{result.tolerance:.1e}", passed)
    return table
