"""Files as nobody should write them: cut, flipped, replaced, of the wrong shape. And what must hold of whoever reads them."""

import contextlib
import copy
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from circuitsieve.cli import app
from circuitsieve.errors import CircuitsieveError
from tiny_cli import quiet_and_offline

SCALE = int(os.environ.get("FUZZ_SCALE", "1"))
"""How many times as many examples are tried; above 1 they are other ones every time."""


def examples(count: int) -> settings:
    """So many examples; fixtures of a function are shared by all of them, which is what is wanted of a valid file."""
    return settings(
        max_examples=count * SCALE,
        deadline=None,
        derandomize=SCALE == 1,
        database=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )


# --- damage -------------------------------------------------------------------------------------------------------------

TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "",
            "\x00",
            "\ud800",
            "\u2028",
            "\ufeff",
            "[/b]",
            "[red]",
            "../../etc/passwd",
            "NaN",
            "<script>",
            "a\r\nb",
            "x" * 5000,
        ]
    ),
)
NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([10**12, 10**18, -(10**18), 2**63, 10**400, -0.0, 1e308, 1e-320, float("nan"), float("inf")]),
    st.floats(),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
"""Whatever JSON may hold, and some of what it may not."""
DEEP = 100_000
ODD_TEXTS = st.sampled_from(
    [
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b"NaN",
        b"1e999",
        b"1" * 5000,
        b'{"format_version": 1}',
        b'{"format_version": 1, "format_version": 2}',
        b'{"format_version": NaN}',
        b"[" * DEEP,
        b"[" * DEEP + b"]" * DEEP,
        b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        b'{"format_version": 1, "a": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'"\\ud800"',
        b"\x00" * 100,
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
    ]
)


@st.composite
def flipped(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bits are others."""
    damaged = bytearray(content)
    for position in draw(st.lists(st.integers(0, max(0, len(content) - 1)), min_size=1, max_size=4)):
        damaged[position] ^= 1 << draw(st.integers(0, 7))
    return bytes(damaged)


@st.composite
def spliced(draw: st.DrawFn, content: bytes) -> bytes:
    """A stretch is replaced by other bytes, nothing or twice itself."""
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    return content[:start] + draw(st.binary(max_size=20) | st.just(content[start:end] * 2)) + content[end:]


def bytes_of(content: bytes) -> SearchStrategy[bytes]:
    """A file that was damaged without regard to what is in it."""
    truncated = st.integers(0, len(content)).map(lambda end: content[:end])
    dressed = st.sampled_from(
        [b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n"), content + b"\x00", content * 2]
    )
    return st.one_of(truncated, flipped(content), spliced(content), st.binary(max_size=60), ODD_TEXTS, dressed)


@st.composite
def edited(draw: st.DrawFn, document: Any) -> bytes:
    """The JSON of a document in which a value is replaced, removed or added somewhere."""
    document = copy.deepcopy(document)
    places = list(_places(document))
    for _ in range(draw(st.integers(1, 2))):
        inside, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
            case "replace":
                inside[key] = draw(VALUES)
            case "remove" if isinstance(inside, dict):
                inside.pop(key, None)
            case "add" if isinstance(inside, dict):
                inside[draw(TEXTS)] = draw(VALUES)
    return json.dumps(document).encode()


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(document) if isinstance(document, dict) else range(min(len(document), 4))
    for key in keys:
        yield document, key
        if isinstance(document[key], dict | list):
            yield from _places(document[key])


def json_of(content: bytes) -> SearchStrategy[bytes]:
    """A damaged file of one JSON object, or another one in its place."""
    document = json.loads(content)
    return st.one_of(edited(document), edited(document), bytes_of(content))


def lines_of(content: bytes) -> SearchStrategy[bytes]:
    """A damaged file of JSON lines: one of the first is edited, or all of it damaged."""
    first, *rest = content.splitlines(keepends=True)
    changed = edited(json.loads(first)).map(lambda line: b"".join([line, b"\n", *rest]))
    return st.one_of(changed, changed, bytes_of(content))


@st.composite
def damaged(draw: st.DrawFn, path: Path) -> bytes:
    """What may become of a file."""
    kinds: dict[str, Callable[[bytes], SearchStrategy[bytes]]] = {".json": json_of, ".jsonl": lines_of}
    return draw(kinds.get(path.suffix, bytes_of)(path.read_bytes()))


# --- what must hold -----------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def assert_one_line_at_most(action: Callable[[], object], *named: object) -> str | None:
    """What an action complains about; it ends well or with one line that names one of these, and never otherwise."""
    try:
        action()
    except CircuitsieveError as error:
        message = str(error)
        assert message.splitlines() == [message]
        assert any(str(name) in message for name in named), message
        return message
    return None


def command(*words: object) -> str | None:
    """What a command complains about; it ends well or with one line and status 2, and never otherwise."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors=errors) for errors in ("strict", "backslashreplace"))
    status: object = None
    with quiet_and_offline(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app.main([str(word) for word in words])
        except SystemExit as stopped:
            status = stopped.code
        out.flush()
        err.flush()
    said = err.buffer.getvalue().decode()
    assert status in (0, 2), said
    if status == 0:
        return None
    last = said.splitlines()[-1]
    assert last.startswith("circuitsieve: ")
    return last.removeprefix("circuitsieve: ")
