"""Checkpoints of a search: files that a killed run goes on from. Nothing here knows what their tensors mean.

Each is one file, `<steps>-<checksum>.safetensors`, written as a whole; the checksum is that of its bytes. The last few are
kept. A checkpoint that is torn or of another search is passed over, and the one before it is used.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from circuitsieve.disk import files
from circuitsieve.errors import OtherSearch, RunError
from circuitsieve.search.states import State

KEPT = 2
"""So many checkpoints are kept: should the last one be damaged, there is one before it."""
LARGEST_BYTES = 8 << 30
"""A file beyond this size is no checkpoint of ours."""
_IDENTITY = "identity"


class Checkpoints:
    """The checkpoints of one search in a folder of their own."""

    def __init__(self, folder: str | Path, identity: str, warn: Callable[[str], None] = lambda _: None) -> None:
        """Nothing is read or written yet.

        Args:
            folder: of the checkpoints; made when a search begins.
            identity: of the search: equal where a checkpoint of the one may go on in the other.
            warn: is told of every checkpoint that is passed over.
        """
        self.folder, self.identity, self.warn = Path(folder), identity, warn

    def keep(self, steps: int, state: State) -> None:
        """Write a checkpoint, then remove all but the last few.

        Args:
            steps: how many were made.
            state: all that is needed to go on.

        Raises:
            RunError: it cannot be written; those before it are still there.
        """
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        tensors[_IDENTITY] = torch.frombuffer(bytearray(self.identity.encode()), dtype=torch.uint8)
        content = safetensors.torch.save(tensors, metadata={"format_version": str(files.FORMAT_VERSION)})
        self.prepare()
        files.write_bytes(self.folder / f"{steps:09d}-{_checksum(content)}.safetensors", content)
        for old in self._paths()[:-KEPT]:
            old.unlink(missing_ok=True)

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            RunError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be written ({error.strerror or error})") from error

    def latest(self) -> State | None:
        """The state of the last whole checkpoint of this search; None where there is none.

        Raises:
            OtherSearch: all whole checkpoints are of another search.
        """
        foreign = None
        for path in reversed(self._paths()):
            state = _read(path)
            if state is None:
                self.warn(f"{path}: found a damaged checkpoint; going on from the one before it")
            elif bytes(state.pop(_IDENTITY, torch.zeros(0)).tolist()) != self.identity.encode():
                foreign = path
                self.warn(f"{path}: found a checkpoint of another search; it is passed over")
            else:
                return state
        if foreign is not None:
            raise OtherSearch(
                f"{foreign}: found a checkpoint of another search (other settings, pairs, weights or library versions), "
                "expected one of this search; repeat the command that began it, or replace the run with --overwrite"
            )
        return None

    def _paths(self) -> list[Path]:
        """From the first to the last."""
        return sorted(path for path in self.folder.glob("[0-9]*-*.safetensors") if path.is_file())


def identity_of(facts: Mapping[str, object]) -> str:
    """A hash of what makes a search the same search."""
    return hashlib.blake2b(repr(sorted(facts.items())).encode(), digest_size=16).hexdigest()


def _checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _read(path: Path) -> State | None:
    """The tensors of a checkpoint; None where it is damaged."""
    try:
        if path.stat().st_size > LARGEST_BYTES:
            return None
        content = path.read_bytes()
        if path.stem.split("-")[1] != _checksum(content):
            return None
        return safetensors.torch.load(content)
    except (OSError, SafetensorError, ValueError):
        return None
