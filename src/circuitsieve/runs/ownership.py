"""The folder of a run: who may write into it, what belongs there, whether a search was stopped in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from circuitsieve.disk import files
from circuitsieve.errors import RunError

_LOCK = ".lock"
_CHECKPOINTS = "checkpoint"
_NEEDED_BYTES = 64 << 20
"""What must be free before a run starts: more than a run folder takes."""
_RUN_FILES = (
    "config.json",
    "pairs.jsonl",
    "masks.safetensors",
    "baselines.safetensors",
    "circuit.json",
    "history.jsonl",
    "card.json",
    "sections.json",
    "exhibits.json",
    "edges.safetensors",
    "edges.json",
    "report.html",
)

AnyFolder = TypeVar("AnyFolder", bound="Folder")


@dataclass(frozen=True)
class Folder:
    """A folder for one run."""

    path: Path

    @classmethod
    def claim(cls: type[AnyFolder], path: str | Path, *, overwrite: bool = False, resume: bool = False) -> AnyFolder:
        """A folder that a new run may be written to. Nothing in it is touched yet (see `clear`).

        Args:
            path: of the folder.
            overwrite: whether a run that is there may be replaced.
            resume: whether a run that is there is to be gone on with.

        Raises:
            RunError: the folder holds a run that may be neither replaced nor gone on with, holds other things, or cannot be
                written.
        """
        if not str(path):
            raise RunError("out: found no name, expected that of a folder for the run")
        folder = cls(Path(path))
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            partial = {files.partial(folder.path / name).name for name in _RUN_FILES}
            present = {entry.name for entry in folder.path.iterdir()} - {_LOCK, *partial}
            free = shutil.disk_usage(folder.path).free
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror or error}), expected a folder for the run"
            ) from error
        foreign = sorted(present - {*_RUN_FILES, _CHECKPOINTS})
        if foreign:
            raise RunError(f"{path}: found {foreign[0]!r}, which belongs to no run; expected a new or empty folder")
        if folder.unfinished and not (overwrite or resume):
            raise RunError(
                f"{path}: found a run in it that was stopped; expected a new folder, --resume to go on with it, or "
                "--overwrite to replace it"
            )
        if present - {_CHECKPOINTS} and not (overwrite or resume):
            raise RunError(f"{path}: found a run in it; expected a new folder, or --overwrite to replace the run")
        if not os.access(folder.path, os.W_OK | os.X_OK):
            raise RunError(f"{path}: found a folder without permission to write, expected one for the run")
        if free < _NEEDED_BYTES:
            raise RunError(f"{path}: found {free >> 20} MB of free space, expected at least {_NEEDED_BYTES >> 20} MB")
        return folder

    def clear(self) -> None:
        """Remove the files of an earlier run."""
        for name in _RUN_FILES:
            (self.path / name).unlink(missing_ok=True)
            files.partial(self.path / name).unlink(missing_ok=True)

    @property
    def checkpoints(self) -> Path:
        """Where the state of a search is kept while it lasts."""
        return self.path / _CHECKPOINTS

    @property
    def unfinished(self) -> bool:
        """Whether a search was stopped here."""
        return self.checkpoints.is_dir() and any(self.checkpoints.iterdir())

    def forget_checkpoints(self) -> None:
        """Remove the state of a search."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    @classmethod
    def open(cls: type[AnyFolder], path: str | Path) -> AnyFolder:
        """The folder of an existing run.

        Raises:
            RunError: there is no run.
        """
        folder = cls(Path(path))
        for name in ("config.json", "masks.safetensors", "circuit.json"):
            if not folder.has(name):
                raise RunError(
                    f"{path}: found no {name}, expected the folder of a run (made by `circuitsieve discover`)"
                )
        return folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder while writing into it.

        Raises:
            RunError: another process holds it, or it cannot be written.
        """
        lock = FileLock(self.path / _LOCK, is_singleton=True)  # whoever holds it may lock it again
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                f"{self.path}: found a run in progress in it, expected a folder that nobody else writes"
            ) from error
        except OSError as error:
            raise RunError(f"{self.path}: cannot be locked for writing ({error.strerror or error})") from error
        try:
            yield
        finally:
            lock.release()

    def has(self, name: str) -> bool:
        """Whether the run holds a file of this name."""
        return os.path.isfile(self.path / name)  # noqa: PTH113 (false, not an error, for what cannot be a path)
