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
"""Bytes: where a tensor begins in the room of its group is a multiple of this."""


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
        """Copies to be held on to; None if there is no room for them. Those in files are on the CPU."""
        needed = sum(tensor.nbytes for tensor in tensors.values())
        if needed <= self.memory_bytes:
            self.memory_bytes -= needed
            return Kept(aside(tensors), needed, 0)
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


def aside(tensors: Mapping[K, Tensor]) -> dict[K, Tensor]:
    """Copies that lie together, in memory that the C library's heap has no part in; those of an accelerator, and those without
    content (which have a type of their own), as they are.

    Left where they are, among what every step allocates and frees, they cut the heap into pieces among which the library looks
    for room ever longer.
    """
    if any(tensor.device.type != "cpu" or type(tensor) is not Tensor for tensor in tensors.values()):
        return dict(tensors)
    starts, size = _layout(tensors)
    room = mmap.mmap(-1, size, access=mmap.ACCESS_COPY)
    together = _views(torch.frombuffer(room, dtype=torch.uint8), tensors, starts)
    for key, tensor in tensors.items():
        together[key].copy_(tensor)
    return together


def _mapped(tensors: Mapping[K, Tensor]) -> dict[K, Tensor]:
    """Copies in a file without a name that is mapped into memory."""
    starts, size = _layout(tensors)
    with tempfile.TemporaryFile() as file:
        for key, tensor in tensors.items():
            file.seek(starts[key])
            file.write(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        file.truncate(size)
        file.flush()
        content = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    return _views(torch.frombuffer(content, dtype=torch.uint8), tensors, starts)


def _layout(tensors: Mapping[K, Tensor]) -> tuple[dict[K, int], int]:
    """Where each tensor begins, and where the last one ends, in bytes."""
    starts, end = {}, 0
    for key, tensor in tensors.items():
        starts[key] = end + -end % ALIGNMENT
        end = starts[key] + tensor.nbytes
    return starts, end


def _views(room: Tensor, tensors: Mapping[K, Tensor], starts: Mapping[K, int]) -> dict[K, Tensor]:
    """The bytes of a room as tensors of the same types and shapes."""
    return {
        key: room[starts[key] : starts[key] + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for key, tensor in tensors.items()
    }
