"""JSON from and for other people: of a size that can be read, objects where they are expected, finite numbers. A leaf."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitsieve.errors import CircuitsieveError

LARGEST = 1 << 30
"""Bytes of a file that is read as a whole: ten times what the largest model's run folder holds."""


def text_of(path: Path) -> str:
    """The text of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large to be what it should be, or no UTF-8.
    """
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"it has {size >> 20:,} MB, more than {LARGEST >> 20:,} MB")
    return path.read_text("utf-8-sig")  # with or without a byte order mark


def json_object(text: str | bytes, where: str, expected: str, failure: type[CircuitsieveError]) -> dict[str, Any]:
    """The object that a text holds.

    Args:
        text: JSON.
        where: what the complaint names: a file, a line of one.
        expected: what the complaint says should be there.
        failure: the kind of error.

    Raises:
        CircuitsieveError: of the given kind: the text is not JSON, or not an object.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise failure(f"{where}: found malformed JSON ({error}), expected {expected}") from error
    if not isinstance(content, dict):
        raise failure(f"{where}: found {type(content).__name__}, expected {expected}")
    return content


def finite(value: Any) -> Any:
    """The value with null for every number that is not finite: JSON has none."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
