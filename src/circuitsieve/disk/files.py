"""Single files of a run: written as a whole or not at all, checked when read. Knows nothing of circuits.

Safetensors carry one metadata key only: with several, their bytes differ from process to process.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from circuitsieve.disk.jsontext import finite, text_of
from circuitsieve.errors import RunError

FORMAT_VERSION = 1

Expected = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""What a file of tensors must hold: by name, the dtype and the last dimensions."""

_CODES = {torch.bool: "BOOL", torch.float32: "F32"}
"""How safetensors calls the dtypes that are expected anywhere."""


def partial(path: Path) -> Path:
    """Where a file lies while it is written; its folder is locked then, so that one name is enough."""
    return path.with_name(f".partial-{path.name}")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file as a whole: a reader sees the old one or the new one.

    Raises:
        RunError: it cannot be written; the old one is as it was.
    """
    try:
        temporary = partial(path)
    except ValueError as error:
        raise RunError(f"{str(path)!r}: found no name of a file, expected one to write to") from error
    try:
        temporary.unlink(missing_ok=True)  # of a process that was killed; a link there would be written through
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_empty(out: Path, use: str) -> None:
    """Refuse a folder that holds things, or cannot be replaced, before any work.

    Args:
        out: where something is to be written.
        use: what.

    Raises:
        RunError: it is no new or empty folder, or the working directory.
    """
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
        here = out.exists() and out.samefile(Path.cwd())
    except OSError as error:
        raise RunError(f"{out}: cannot be read ({error.strerror or error}), expected a new or empty folder") from error
    if taken or here:
        found = "files there" if taken else "the working directory, which cannot be replaced"
        raise RunError(f"{out}: found {found}, expected a new or empty folder for {use}")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside the one that is meant, which takes its place when all of it is written.

    Args:
        out: a new or empty folder.

    Raises:
        RunError: it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(out)
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unwritable(out: Path, error: OSError) -> RunError:
    return RunError(f"{out}: cannot be written ({error.strerror or error}), expected a new or empty folder")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object, with the format version. A number that is not finite could not be computed: it becomes null."""
    text = json.dumps(finite({"format_version": FORMAT_VERSION, **content}), indent=2, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines; a number that is not finite becomes null."""
    write_bytes(path, "".join(json.dumps(finite(row), allow_nan=False) + "\n" for row in rows).encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name, with the format version."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(contiguous, metadata={"format_version": str(FORMAT_VERSION)}))


def read_json(path: Path) -> dict[str, Any]:
    """Read an object.

    Raises:
        RunError: the file is missing, damaged or of another format version.
    """
    try:
        content = json.loads(text_of(path))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read ({error}), expected a JSON object") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise RunError(f"{path}: found format_version {version!r}, expected {FORMAT_VERSION}")
    return dict(content)


def read_tensors(path: Path, needed: Expected, optional: Expected | None = None) -> dict[str, Tensor]:
    """Read tensors by name. What the file says of them is checked before any values are read.

    Raises:
        RunError: the file is missing, damaged or of another format version, or does not hold what is expected.
    """
    known = {**needed, **(optional or {})}
    try:
        with safetensors.safe_open(path, "pt") as file:
            _check_header(path, file, needed, known)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise RunError(f"{path}: cannot be read ({error}), expected safetensors") from error
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and int(tensor.view(torch.uint8).max()) > 1:
            raise RunError(f"{path}: {name}: found values besides 0 and 1, expected a boolean mask")
    return tensors


def _check_header(path: Path, file: Any, needed: Expected, known: Expected) -> None:
    """Raise a RunError where names, dtypes or shapes are others than expected."""
    version = (file.metadata() or {}).get("format_version")
    if version != str(FORMAT_VERSION):
        raise RunError(f"{path}: found format_version {version!r}, expected {str(FORMAT_VERSION)!r}")
    present = set(file.keys())
    for name in sorted({*needed, *present}):
        if name not in known:
            raise RunError(f"{path}: found the unknown tensor {name!r}, expected {', '.join(known)}")
        dtype, shape = known[name]
        wanted = f"{_word(dtype)} of the shape {shape}"
        if name not in present:
            raise RunError(f"{path}: {name}: found nothing, expected {wanted}")
        header = file.get_slice(name)
        found, own = header.get_dtype(), tuple(header.get_shape())
        if found != _CODES[dtype] or len(own) > 2 or own[-len(shape) :] != shape or 0 in own:
            found = {code: _word(dtype) for dtype, code in _CODES.items()}.get(found, found)
            raise RunError(f"{path}: {name}: found {found} of the shape {own}, expected {wanted}")


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
