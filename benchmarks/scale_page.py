"""The tables of docs/scale.md, from the results of `scale.py`."""

import re
from collections.abc import Iterable
from typing import Any

from predictions import SETTINGS, Shape, predict, shapes_of

SIDES = ("reference", "kept", "ranking", "computed anew", "layers again")
Results = dict[str, Any]


def tables(results: Results) -> dict[str, str]:
    """By name, those whose parts were made."""
    made = {"families": _families, "times": _times, "shapes": _shapes, "host": _host}
    found = {name: table(results[name]["rows"]) for name, table in made.items() if name in results}
    if {"shapes", "passes", "host"} <= results.keys():
        found["memory"] = _memory(results)
        found["predictions"] = _predictions(results)
    return found


def with_tables(text: str, results: Results) -> str:
    """A page with the tables between their marks."""
    for name, table in tables(results).items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, found = mark.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        assert found == 1, f"marks of {name}: found {found}, expected 1"
    return text


def _table(head: str, alignment: str, rows: Iterable[Iterable[object]]) -> str:
    rule = "| " + " | ".join({"l": "---", "r": "---:"}[side] for side in alignment) + " |"
    return "\n".join([head, rule, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def _families(rows: list[dict[str, Any]]) -> str:
    def line(family: str) -> Iterable[object]:
        own = [row for row in rows if row["family"] == family]
        off = max(abs(row["counted"][side] / row["formula"][side] - 1) for row in own for side in SIDES)
        ratios = [
            ", ".join(f"{row['footprint'][side] / row['peak'][side]:.2f}" for row in own)
            for side in ("computed anew", "layers again")
        ]
        return (family, f"{off:.1%}", *ratios)

    head = "| family | products, formula off by | memory of a step, said over counted | the same, layers run again |"
    return _table(head, "lrrr", map(line, dict.fromkeys(row["family"] for row in rows)))


def _times(rows: list[dict[str, Any]]) -> str:
    sides = ("bare", "reference", "kept", "computed anew")
    cases = dict.fromkeys((row["size"], row["pairs"], row["tokens"]) for row in rows)

    def line(case: tuple[str, int, int]) -> Iterable[object]:
        own = {row["side"]: row for row in rows if (row["size"], row["pairs"], row["tokens"]) == case}
        size, pairs, tokens = case
        used = "fitted" if own["bare"]["fitted"] else "held out"
        ratios = [f"{own[side]['predicted'] / own[side]['seconds']:.2f}" for side in sides]
        return (f"{size}, {used}", f"{pairs} x {tokens}", f"{own['bare']['seconds']:.2f}", *ratios)

    head = "| random Llama | pairs x tokens | bare pass, s | bare | reference | step, kept | step, computed anew |"
    return _table(head, "lrrrrrr", map(line, cases))


def _shapes(rows: list[dict[str, Any]]) -> str:
    def line(row: dict[str, Any]) -> Iterable[object]:
        kept, ranking = row["counted"]["kept"], row["counted"]["ranking"]
        peaks = [row["counted"][side]["peak"] / 1e9 for side in ("computed anew", "layers again")]
        return (
            row["shape"],
            f"{row['pairs']} x {row['tokens']}",
            _digits(kept["flops"] / 1e12),
            _digits(kept["moved"] / 1e9),
            f"{kept['launches']:,}",
            f"{ranking['launches']:,}",
            *map(_digits, peaks),
        )

    head = (
        "| shape | pairs x tokens | products, 10^12 | read and written, GB | operations | while ranking | "
        "memory, GB | layers run again, GB |"
    )
    return _table(head, "lrrrrrrr", map(line, rows))


def _digits(number: float) -> str:
    """Two digits that count, or all before the point."""
    return f"{number:.2g}" if number < 100 else f"{number:,.0f}"


def _memory(results: Results) -> str:
    def line(shape: Shape) -> Iterable[object]:
        footprint = shape.whole.footprint
        step, again = footprint.step(0), footprint.step(footprint.layers)
        kept = shape.batches("train") * footprint.baselines
        sizes = [_digits(size / 1e9) for size in (shape.weights, step, again, footprint.baselines, kept)]
        gates = results["host"]["rows"][shape.name]["bytes of a checkpoint"]
        return (shape.name, shape.tokens, *sizes, _digits(gates / 1e9))

    head = (
        "| shape | tokens | weights | a step | with layers run again | corrupted activations of a batch | "
        "of all training pairs | gates and their optimiser |"
    )
    return _table(head, "lrrrrrrr", map(line, shapes_of(results["shapes"]["rows"])))


def _host(rows: dict[str, dict[str, float]]) -> str:
    def line(name: str) -> Iterable[object]:
        own = rows[name]
        milliseconds = (1e3 * own[what] for what in ("drawing gates", "cutting a ranking", "a checkpoint"))
        return (
            name,
            f"{own['nodes']:,.0f}",
            *(f"{taken:,.0f}" for taken in milliseconds),
            f"{own['hashing, s/GB']:.2f}",
        )

    head = "| nodes of | gates | drawing them, ms | cutting a ranking, ms | a checkpoint, ms | hashing weights, s/GB |"
    return _table(head, "lrrrrr", map(line, rows))


def _predictions(results: Results) -> str:
    passes, hosts = results["passes"]["rows"], results["host"]["rows"]
    lines = []
    for shape in shapes_of(results["shapes"]["rows"]):
        for setting in SETTINGS:
            if setting.shape != shape.name:
                continue
            about = (shape.name, shape.tokens, setting)
            if (found := predict(shape, setting, passes, hosts[shape.name])) is None:
                lines.append((*about, "does not fit", "", "", "", ""))
                continue
            step = " to ".join(f"{took:.2g}" for took in found.step)
            search = " to ".join(map(_duration, found.search))
            lines.append((*about, found.side, f"{found.held / 1e9:,.0f}", step, search, _duration(found.host)))
    head = "| shape | tokens | on | how a step is made | held by each, GB | a step, s | a search | of it, host |"
    return _table(head, "lrllrrrr", lines)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 5400 else f"{seconds / 3600:.2g} h"
