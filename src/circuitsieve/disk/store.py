"""Tensors kept between steps: in memory while a budget lasts, then in files mapped into memory, then not at all."""

import mmap
import tempfile
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

K = TypeVar("K", bound=Hashable)

ALIGNMENT = 64
"""Bytes: where a tensor in a file begins is a multiple of this."""


@dataclass(frozen=True)
class Kept(Generic[K]):
    """A group of tensors, and the room that it takes."""

    tensors: dict[K, Tensor]
    memory_bytes: int
    file_bytes: int


class Store:
    """A budget in bytes, from which whole groups of tensors are served."""

    def __init__(self, memory_bytes: int, file_bytes: int = 0) -> None:
        """Nothing is kept yet.

        Args:
            memory_bytes: how much may lie in memory.
            file_bytes: how much more may lie in temporary files (in the folder that TMPDIR names). They have no name, so that
                nothing is left of them, whatever happens.
        """
        self.memory_bytes, self.file_bytes = memory_bytes, file_bytes

    def keep(self, tensors: Mapping[K, Tensor]) -> Kept[K] | None:
        """The same tensors, to be held on to; None if there is no room for them. Those in files are on the CPU."""
        needed = sum(tensor.nbytes for tensor in tensors.values())
        if needed <= self.memory_bytes:
            self.memory_bytes -= needed
            return Kept(dict(tensors), needed, 0)
        if needed <= self.file_bytes:
            try:
                mapped = _mapped(tensors)
            except OSError:  # the disk is full: as if no room had been offered
                self.file_bytes = 0
                return None
            self.file_bytes -= needed
            return Kept(mapped, 0, needed)
        return None

    def give_back(self, kept: Kept[K]) -> None:
        """The room of a group that is held on to no longer."""
        self.memory_bytes += kept.memory_bytes
        self.file_bytes += kept.file_bytes


def _mapped(tensors: Mapping[K, Tensor]) -> dict[K, Tensor]:
    """Copies in a file without a name that is mapped into memory."""
    starts = {}
    with tempfile.TemporaryFile() as file:
        for key, tensor in tensors.items():
            file.seek(-file.tell() % ALIGNMENT, 1)
            starts[key] = file.tell()
            file.write(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        file.flush()
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return {
        key: torch.frombuffer(content, dtype=tensor.dtype, count=tensor.numel(), offset=starts[key]).view(tensor.shape)
        for key, tensor in tensors.items()
    }
