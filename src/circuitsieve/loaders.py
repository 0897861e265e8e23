"""Where pairs come from: a built-in task, a JSON-lines file or a folder of three.

A file is split 60/20/20 by a hash of its clean prompt, so that one prompt never stands in two splits and adding pairs moves
none of the others.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from circuitsieve import tasks
from circuitsieve.data import Pairs, encode
from circuitsieve.errors import DataError
from circuitsieve.pairs import SPLITS, Pair, TaskRequest, TextSplits

_TEXTS = ("clean", "corrupted")
_LISTS = ("answers", "wrong_answers", "candidates")
_LABELS = ("id", "template")


@dataclass(frozen=True)
class TaskOptions:
    """What a built-in task is asked for (files have as many pairs as they have)."""

    train: int = 768
    validation: int = 128
    test: int = 192
    seed: int = 0
    options: Mapping[str, str] = field(default_factory=dict)


def load_task(name: str, tokenizer: PreTrainedTokenizerBase, request: TaskOptions = TaskOptions()) -> Pairs:
    """The pairs of a built-in task, of a `.jsonl` file or of a folder with train, validation and test `.jsonl`.

    Raises:
        ConfigError: the task takes no such option.
        DataError: there is no such task or file, it is malformed (with the line), or no pair in it is usable.
    """
    if name in tasks.names():
        return encode(_build(name, tokenizer, request), tokenizer)
    if request.options:
        raise DataError(f"task {name}: found options ({', '.join(request.options)}), which only built-in tasks take")
    # os.path, not pathlib: what cannot be a path at all (too long a name) is no file either.
    if os.path.isdir(name):  # noqa: PTH112
        return encode(TextSplits(*(read_jsonl(Path(name) / f"{split}.jsonl") for split in SPLITS)), tokenizer)
    if os.path.isfile(name):  # noqa: PTH113
        return encode(split_by_hash(read_jsonl(Path(name))), tokenizer)
    raise DataError(
        f"task: found {name!r}, expected one of {', '.join(tasks.names())}, a .jsonl file, or a folder with train.jsonl, "
        "validation.jsonl and test.jsonl"
    )


def _build(name: str, tokenizer: PreTrainedTokenizerBase, request: TaskOptions) -> TextSplits:
    def tokens_in(word: str) -> int:
        return len(tokenizer(word, add_special_tokens=False)["input_ids"])

    return tasks.get(name).build(
        TaskRequest(
            tokens_in=tokens_in,
            train=request.train,
            validation=request.validation,
            test=request.test,
            seed=request.seed,
            options=dict(request.options),
        )
    )


def split_by_hash(pairs: tuple[Pair, ...]) -> TextSplits:
    """Split pairs 60/20/20 by a hash of the clean prompt."""
    split: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for pair in pairs:
        share = int.from_bytes(hashlib.sha256(pair.clean.encode()).digest()[:8]) / 2**64
        split["train" if share < 0.6 else "validation" if share < 0.8 else "test"].append(pair)
    return TextSplits(*(tuple(split[name]) for name in SPLITS))


def read_jsonl(path: Path) -> tuple[Pair, ...]:
    """Read pairs from JSON lines; empty lines are skipped.

    Raises:
        DataError: the file cannot be read or is empty, or a line is malformed.
    """
    try:
        text = path.read_text("utf-8-sig")  # with or without a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}), expected pairs as JSON lines in UTF-8") from error
    # Not splitlines: JSON strings may hold other line separators, such as U+2028, as they are.
    pairs = tuple(
        parse_pair(line, f"{path}, line {number}") for number, line in enumerate(text.split("\n"), 1) if line.strip()
    )
    if not pairs:
        raise DataError(f"{path}: found no pairs, expected one JSON object a line")
    return pairs


def parse_pair(line: str, where: str) -> Pair:
    """The pair of one line; `where` names it in the error.

    Raises:
        DataError: the line is malformed.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: found malformed JSON ({error}), expected an object") from error
    if not isinstance(entry, dict):
        raise DataError(
            f"{where}: found {type(entry).__name__}, expected an object with {', '.join(_TEXTS + _LISTS[:2])}"
        )
    unknown = sorted(set(entry) - {*_TEXTS, *_LISTS, *_LABELS})
    if unknown:
        raise DataError(
            f"{where}: found the unknown column {unknown[0]!r}, expected {', '.join(_TEXTS + _LISTS + _LABELS)}"
        )
    clean, corrupted = (_text(entry, key, where) for key in _TEXTS)
    answers, wrong_answers, candidates = (_texts(entry, key, where) for key in _LISTS)
    identity, template = (_label(entry, key, where) for key in _LABELS)
    return Pair(clean, corrupted, answers, wrong_answers, candidates, identity, template)


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not _is_text(value):
        raise DataError(f"{where}: {key}: found {value!r}, expected a text")
    return str(value)


def _label(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key, "")
    if value != "" and not _is_text(value) and type(value) is not int:
        raise DataError(f"{where}: {key}: found {value!r}, expected a text or a whole number")
    return str(value)


def _is_text(value: object) -> bool:
    """Whether this is a text with something in it; half of a surrogate pair (an escape like \\ud800) is in no text."""
    return isinstance(value, str) and value != "" and not any("\ud800" <= character <= "\udfff" for character in value)


def _texts(entry: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = entry.get(key, [] if key == "candidates" else None)
    if not isinstance(value, list) or not all(map(_is_text, value)):
        raise DataError(f"{where}: {key}: found {value!r}, expected a list of texts")
    if not value and key != "candidates":
        raise DataError(f"{where}: {key}: found an empty list, expected at least one text")
    return tuple(value)
