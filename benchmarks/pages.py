"""What pages of measured results share: where they come from, and how a figure and its spread are written."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def read_results(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The content of files of results."""
    return [json.loads(path.read_text()) for path in files]


def sources(results: Iterable[dict[str, Any]]) -> str:
    """The commands that made results, a line each."""
    return "\n".join(f"- `{result['command']}` (commit {result['commit']})" for result in results)


def spread(values: Sequence[float], form: str) -> str:
    """The median, with the lowest and the highest where they look different."""
    middle, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"
