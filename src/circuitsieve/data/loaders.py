"""Where pairs come from: a built-in task, a task of the user's own, a file, a folder of three files, a data set.

A file is split 60/20/20 by a hash of its clean prompt, so that one prompt never stands in two splits and adding pairs moves
none of the others.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from circuitsieve.data import sources, tasks
from circuitsieve.data.chat import in_chat_form
from circuitsieve.data.pairs import SPLITS, Pair, TaskRequest, TextSplits
from circuitsieve.data.tokenising import Pairs, check_fast, encode
from circuitsieve.errors import DataError, hint

DATASET = "hf:"
"""What the name of a Hugging Face data set begins with."""
_KINDS = (".jsonl", ".csv")
TRAIN, HELD_OUT = 0.6, 0.2
"""Shares of the pairs of a file: of training, and of each of the two splits that are held out."""


@dataclass(frozen=True)
class TaskOptions:
    """What a task is asked for."""

    train: int | None = None
    """Training pairs at most; a task or file may have fewer. Where not given: as `TaskRequest` has it of a task, all of a
    file."""
    validation: int | None = None
    test: int | None = None
    seed: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    """Of a task, by name."""
    columns: Mapping[str, str] | None = None
    """Of a file or data set: column of a pair -> what the file calls it."""
    chat: str | None = None
    """An instruction, to ask in chat form (`chat.in_chat_form`)."""

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of pairs that are given, by split."""
        return {split: count for split in SPLITS if (count := getattr(self, split)) is not None}


Source = str | tasks.Task | Callable[[], Iterable[Pair]]
"""Where pairs come from: see `load_task`."""


def load_task(source: Source, tokenizer: PreTrainedTokenizerBase, request: TaskOptions = TaskOptions()) -> Pairs:
    """The pairs of a task, a file or a data set.

    Args:
        source: the name of a task, built in or installed; a `Task`; a function that yields pairs (which are then split by a
            hash); a `.jsonl` or `.csv` file; a folder with train, validation and test files; `hf:` and a data set.
        tokenizer: the model's own.
        request: how many pairs, and options.

    Raises:
        ConfigError: the task takes no such option.
        DataError: there is no such task or file, it is malformed (with the line), or no pair in it is usable.
    """
    return encode(load_texts(source, tokenizer, request), tokenizer)


def load_texts(source: Source, tokenizer: PreTrainedTokenizerBase, request: TaskOptions = TaskOptions()) -> TextSplits:
    """The same before any of it is encoded."""
    splits = _texts(source, tokenizer, request)
    return splits if request.chat is None else in_chat_form(splits, tokenizer, request.chat)


def _texts(source: Source, tokenizer: PreTrainedTokenizerBase, request: TaskOptions) -> TextSplits:
    if isinstance(source, str) and source in tasks.names():
        source = tasks.get(source)
    name = source if isinstance(source, str) else getattr(source, "name", "of a function")
    if request.columns and not isinstance(source, str):
        raise DataError(f"task {name}: found names of columns ({', '.join(request.columns)}), which only files have")
    if request.options and not isinstance(source, tasks.Task):
        raise DataError(f"task {name}: found options ({', '.join(request.options)}), which only tasks take")
    if isinstance(source, tasks.Task):
        return _built(source, tokenizer, request)
    found = _read(source, request.columns) if isinstance(source, str) else split_by_hash(tuple(source()))
    return _some(found, request.counts)


def _read(name: str, columns: sources.Columns | None) -> TextSplits:
    """The pairs of a file, a folder or a data set, split."""
    if name.startswith(DATASET):
        return _as_split(sources.read_dataset(name.removeprefix(DATASET), columns))
    # os.path, not pathlib: what cannot be a path at all (too long a name) is no file either.
    if os.path.isdir(name):  # noqa: PTH112
        return TextSplits(*(sources.read_pairs(_file_of(Path(name), split), columns) for split in SPLITS))
    if os.path.isfile(name):  # noqa: PTH113
        return split_by_hash(sources.read_pairs(Path(name), columns))
    if Path(name).suffix.lower() in _KINDS:
        raise DataError(f"task: found no file {name!r}, expected the name of one that holds pairs")
    raise DataError(
        f"task: found {name!r}, expected one of {', '.join(tasks.names())}, a .jsonl or .csv file, a folder with train, "
        f"validation and test files, or {DATASET} and a data set{hint(name, list(tasks.names()))}"
    )


def _file_of(folder: Path, split: str) -> Path:
    """The file of a split."""
    files = [folder / f"{split}{kind}" for kind in _KINDS]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        names = " or ".join(file.name for file in files)
        raise DataError(f"{folder}: found no {names}, expected a file for each split ({', '.join(SPLITS)})")
    return found


def _as_split(found: Mapping[str, tuple[Pair, ...]]) -> TextSplits:
    """As they are, where all three splits are there; a missing one is a quarter of training, so that pairs which are held out
    stay so; all pairs split by the hash where there is one split."""
    splits = dict(found)
    if "train" in splits and len(missing := [split for split in SPLITS if split not in splits]) == 1:
        (lacking,) = missing
        kept: dict[str, list[Pair]] = {"train": [], lacking: []}
        for pair in splits["train"]:
            kept["train" if _place(pair) < TRAIN / (TRAIN + HELD_OUT) else lacking].append(pair)
        splits |= {split: tuple(pairs) for split, pairs in kept.items()}
    if set(SPLITS) <= set(splits):
        return TextSplits(*(splits[split] for split in SPLITS))
    return split_by_hash(tuple(pair for pairs in found.values() for pair in pairs))


def _built(task: tasks.Task, tokenizer: PreTrainedTokenizerBase, request: TaskOptions) -> TextSplits:
    check_fast(tokenizer)

    def pieces(text: str) -> tuple[str, ...]:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return tuple(text[start:end] for start, end in offsets)

    return task.build(
        TaskRequest(
            pieces=pieces,
            seed=request.seed,
            options=dict(request.options),
            **request.counts,
        )
    )


def _some(splits: TextSplits, counts: Mapping[str, int]) -> TextSplits:
    """So many pairs of each split at most, drawn by the hash: a sorted file gives no one-sided sample, and more pairs that are
    asked for come beside the ones that were there."""
    for split, count in counts.items():
        if count < 1:
            raise DataError(f"{split}: found {count} pairs asked for, expected at least 1")
    drawn = {split: sorted(getattr(splits, split), key=_place)[:count] for split, count in counts.items()}
    return replace(splits, **{split: tuple(pairs) for split, pairs in drawn.items()})


def split_by_hash(pairs: tuple[Pair, ...]) -> TextSplits:
    """Split pairs 60/20/20 by a hash of the clean prompt."""
    split: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for pair in pairs:
        place = _place(pair)
        split["train" if place < TRAIN else "validation" if place < TRAIN + HELD_OUT else "test"].append(pair)
    return TextSplits(*(tuple(split[name]) for name in SPLITS))


def _place(pair: Pair) -> float:
    """A number between 0 and 1 that follows from the clean prompt."""
    return int.from_bytes(hashlib.sha256(pair.clean.encode()).digest()[:8]) / 2**64
