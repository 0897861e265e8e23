"""Rows of the user's own data: JSON lines, CSV and Hugging Face data sets, each row one pair.

A row has the columns of `Pair`; a mapping says where a file calls them otherwise. Every complaint names the file and the line.
"""

import csv
import itertools
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from circuitsieve.data.pairs import LISTS, SPLITS, Pair
from circuitsieve.disk.jsontext import json_object
from circuitsieve.errors import DataError, one_of, shown

TEXTS = ("clean", "corrupted")
LABELS = ("id", "template")
COLUMNS = TEXTS + LISTS + LABELS
_NEEDED_LISTS = ("answers", "wrong_answers")
NEEDED = TEXTS + _NEEDED_LISTS
SEPARATOR = "|"
"""Between several answers in one cell of a CSV file."""
_VALIDATION = ("val", "dev", "valid")
"""What data sets call the validation split otherwise."""
LONGEST_LINE = 1 << 24
"""Characters: two prompts that fill the largest contexts there are."""

Columns = Mapping[str, str]
"""Column of a pair -> what the file calls it."""
Row = tuple[str, Mapping[str, Any]]
"""Where a row stands, for complaints, and what is in it."""


def read_pairs(path: Path, columns: Columns | None = None) -> tuple[Pair, ...]:
    """The pairs of a `.csv` file, or of JSON lines in any other.

    With a mapping, columns of the file that nothing is mapped to are left aside; without one they are complained about.

    Raises:
        DataError: the file cannot be read or is empty, a row is malformed, or the mapping names a column that pairs do not
            have.
    """
    is_csv = path.suffix.lower() == ".csv"
    try:
        pairs = pairs_of(_csv(path), columns, separator=SEPARATOR) if is_csv else pairs_of(_jsonl(path), columns)
    except (OSError, UnicodeDecodeError) as error:
        kind = "CSV" if is_csv else "JSON lines"
        raise DataError(f"{path}: cannot be read ({error}), expected pairs as {kind} in UTF-8") from error
    if not pairs:
        expected = "a header and one pair a line" if is_csv else "one JSON object a line"
        raise DataError(f"{path}: found no pairs, expected {expected}")
    return pairs


def pairs_of(rows: Iterable[Row], columns: Columns | None = None, *, separator: str | None = None) -> tuple[Pair, ...]:
    """The pairs of rows. A text where a list belongs is its only member, or members between separators.

    Raises:
        DataError: a row is malformed, or the mapping names a column that pairs do not have.
    """
    for name in columns or {}:
        if name not in COLUMNS:
            raise DataError(one_of("column of a pair", name, list(COLUMNS)))
    return tuple(_pair(_listed(_renamed(row, columns, where), separator), where) for where, row in rows)


def _lines(path: Path, newline: str) -> Generator[str]:
    """The lines of a file, never more of it in memory than the longest line that a pair may take."""
    with path.open(encoding="utf-8-sig", newline=newline) as file:  # with or without a byte order mark
        for number in itertools.count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise DataError(
                    f"{path}, line {number}: found more than {LONGEST_LINE:,} characters, expected one pair a line"
                )
            yield line


def _jsonl(path: Path) -> Iterator[Row]:
    # Only "\n" ends a line: JSON strings may hold other line separators, such as U+2028, as they are.
    for number, line in enumerate(_lines(path, "\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = json_object(line.removesuffix("\n"), where, f"an object with {', '.join(NEEDED)}", DataError)
        yield where, row


def _csv(path: Path) -> Iterator[Row]:
    with closing(_lines(path, "")) as lines:  # the reader itself sees to line ends, as csv asks
        reader = csv.DictReader(lines, strict=True)
        try:
            yield from _rows(reader, path)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {reader.reader.line_num}: found malformed CSV ({error}), expected RFC 4180"
            ) from error


def _rows(reader: "csv.DictReader[str]", path: Path) -> Iterator[Row]:
    """The rows of a table whose cells are as many as the header's."""
    names = reader.fieldnames or ()
    if len(names) == 1 and (other := next((mark for mark in ";\t" if mark in names[0]), None)):
        raise DataError(f"{path}, line 1: found columns apart by {other!r}, expected commas between them")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{path}, line 1: found the column {twice[0]!r} more than once, expected different names")
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row or None in row.values():
            raise DataError(
                f"{where}: found {len(row.get(None, ())) + sum(v is not None for k, v in row.items() if k)} cells, "
                f"expected {len(names)}, as in the header"
            )
        yield where, row


def _renamed(row: Mapping[str, Any], columns: Columns | None, where: str) -> dict[str, Any]:
    """The row with the columns of a pair."""
    if columns is not None:
        for name, theirs in columns.items():
            if theirs not in row:
                raise DataError(one_of(f"{where}: column for {name}", theirs, list(map(str, row))))
        taken = set(columns.values())
        own = {name: row[theirs] for name, theirs in columns.items()}
        row = own | {name: row[name] for name in COLUMNS if name in row and name not in own and name not in taken}
    unknown = sorted(str(name) for name in set(row) - set(COLUMNS))
    if unknown:
        raise DataError(
            f"{where}: found the unknown column {unknown[0]!r}, expected {', '.join(COLUMNS)}; map columns of other names "
            "with --column NAME=THEIRS"
        )
    missing = [name for name in NEEDED if name not in row]
    if missing:
        raise DataError(
            f"{where}: found no {missing[0]}, expected {', '.join(NEEDED)}; if it has another name, map it with "
            f"--column {missing[0]}=THEIRS"
        )
    return dict(row)


def _listed(row: Mapping[str, Any], separator: str | None) -> dict[str, Any]:
    """The row with a list where a text stands in place of one; an empty text is an empty list."""

    def listed(text: str) -> list[str]:
        return [] if not text else [text] if separator is None else text.split(separator)

    return {name: listed(value) if name in LISTS and isinstance(value, str) else value for name, value in row.items()}


def _pair(row: Mapping[str, Any], where: str) -> Pair:
    clean, corrupted = (_text(row, key, where) for key in TEXTS)
    answers, wrong_answers, candidates, cutoff = (_texts(row, key, where) for key in LISTS)
    identity, template = (_label(row, key, where) for key in LABELS)
    try:
        return Pair(clean, corrupted, answers, wrong_answers, candidates, identity, template, cutoff)
    except DataError as error:
        raise DataError(f"{where}: {str(error).removeprefix('pair: ')}") from error


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not _is_text(value):
        raise DataError(f"{where}: {key}: found {shown(value)}, expected a text")
    return str(value)


def _label(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key, "")
    if value != "" and not _is_text(value) and type(value) is not int:
        raise DataError(f"{where}: {key}: found {shown(value)}, expected a text or a whole number")
    return str(value)


def _is_text(value: object) -> bool:
    """Whether this is a text with something in it; half of a surrogate pair (an escape like \\ud800) is in no text."""
    return isinstance(value, str) and value != "" and not any("\ud800" <= character <= "\udfff" for character in value)


def _texts(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = row.get(key, [])
    if not isinstance(value, list) or not all(map(_is_text, value)):
        raise DataError(f"{where}: {key}: found {shown(value)}, expected a list of texts")
    if not value and key in _NEEDED_LISTS:
        raise DataError(f"{where}: {key}: found an empty list, expected at least one text")
    return tuple(value)


# --- Hugging Face data sets ---------------------------------------------------------------------------------------------


def read_dataset(name: str, columns: Columns | None = None) -> dict[str, tuple[Pair, ...]]:
    """The pairs of a data set by split: a folder that `save_to_disk` wrote, or a hub id.

    Raises:
        DataError: the package `datasets` is missing, there is no such data set, or a row is malformed.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"data set {name}: found no installed package `datasets`, expected it for Hugging Face data sets; install it with "
            "`pip install 'circuitsieve[datasets]'`"
        ) from error
    try:
        loaded = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    except Exception as error:  # whatever its readers raise
        raise DataError(f"data set {name}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    splits = dict(loaded.items()) if isinstance(loaded, Mapping) else {"all": loaded}
    alias = next((name for name in _VALIDATION if name in splits), None)
    if alias is not None and "validation" not in splits:
        splits["validation"] = splits.pop(alias)
    found = {
        split: pairs_of(((f"data set {name}, {split} row {i}", row) for i, row in enumerate(rows)), columns)
        for split, rows in splits.items()
        if split in (*SPLITS, "all") or len(splits) == 1
    }
    if not any(found.values()):
        raise DataError(
            f"data set {name}: found no pairs in the splits {', '.join(splits)}, expected {', '.join(SPLITS)}"
        )
    return found
