"""What pages of measured results share: the command line of their scripts, where results come from, how a figure and its spread
are written.
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

TASKS = ("ioi", "greater_than", "gender_pronoun")


def command_line(about: str | None, name: str) -> tuple[argparse.ArgumentParser, ...]:
    """The parser of a script that measures and writes a page of what was measured, and those of its two commands.

    Args:
        about: the script's docstring.
        name: of the folder under runs/ where its runs lie.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="make the runs and measure them")
    measure.add_argument("--model", default="smollm2")
    measure.add_argument("--tasks", nargs="+", default=TASKS, metavar="TASK[:NAME=VALUE,...]")
    measure.add_argument("--runs", type=Path, default=Path("runs") / name)
    measure.add_argument("--out", type=Path, required=True)
    page = commands.add_parser("page", help="write the tables")
    page.add_argument("results", type=results_in, metavar="FOLDER", help="where the results lie, and nothing else")
    page.add_argument("--out", type=Path, required=True)
    return parser, measure, page


def results_in(folder: str) -> list[Path]:
    """The files of results in a folder, in the order of their names."""
    return sorted(Path(folder).glob("*.json"))


def read_results(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The content of files of results."""
    return [json.loads(path.read_text()) for path in files]


def refuse_repeated(searches: Iterable[tuple[object, ...]]) -> None:
    """What stands in two files would count twice, or hide the other: say what, and end."""
    for search, count in Counter(searches).items():
        if count > 1:
            sys.exit(f"{', '.join(map(str, search))}: found {count} times, expected every search in one file")


def sources(results: Iterable[dict[str, Any]]) -> str:
    """The commands that made results, a line each."""
    return "\n".join(f"- `{result['command']}` (commit {result['commit']})" for result in results)


def spread(values: Sequence[float], form: str) -> str:
    """The median, with the lowest and the highest where they look different."""
    middle, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"
