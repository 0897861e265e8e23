"""Processes that share a search: each runs its portion of every batch, and what they find is added up.

Gates, optimisers and random numbers are the same in all of them; so are, as all sums are reduced before they are looked at, all
decisions. This room knows torch.distributed; nothing else does, but who starts it.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist

from circuitsieve.data.batching import PairBatch
from circuitsieve.errors import ConfigError, ModelError, RunError
from circuitsieve.launching import started


@dataclass(frozen=True)
class Processes:
    """Those that share a search, and which of them this is."""

    rank: int = 0
    count: int = 1

    @classmethod
    def of_group(cls) -> "Processes":
        """All of the default group of torch.distributed.

        Raises:
            ConfigError: there is none.
        """
        if not dist.is_initialized():
            raise ConfigError(
                "distributed: found no process group, expected one that all processes have joined; call "
                "torch.distributed.init_process_group first, or leave distributed off"
            )
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and tells."""
        return self.rank == 0

    def portions(self, batches: Sequence[PairBatch]) -> list[PairBatch]:
        """Of every batch, what this process runs."""
        return list(batches) if self.count == 1 else [batch.portion(self.rank, self.count) for batch in batches]

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes; without autograd history where there are several."""
        if self.count == 1:
            return value
        return _reduced(value.detach())

    def means(self, values: Sequence[Float[Tensor, " batch"]], batch: PairBatch) -> list[Float[Tensor, ""]]:
        """Means over the pairs of the whole batch.

        Differentiable: the gradient that each process finds, *averaged* over processes, is that of the mean; so is the gradient
        of what does not depend on pairs.
        """
        if self.count == 1:
            return [value.mean() for value in values]
        own = torch.stack([value[: batch.counted].sum() for value in values])
        total: Tensor = _Sum.apply(own)  # type: ignore[no-untyped-call]
        return list((total / batch.pairs).unbind())

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give every process the mean of the gradients of all."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = self.total(torch.cat([gradient.flatten() for gradient in gradients])) / self.count
        for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.count > 1:
            with _all_there():
                dist.barrier()


ALONE = Processes()


@contextmanager
def of_torchrun(device: str) -> Iterator[Processes]:
    """The processes that torchrun has started; only this one where it has not.

    Args:
        device: where the model will be; `cuda` becomes an accelerator for each process.

    Raises:
        ModelError: there are fewer accelerators than processes on this machine, several share one, or the model is to be spread.
    """
    if started() == 1:
        yield ALONE
        return
    if device == "auto":
        raise ModelError(
            f"device: found auto, which spreads one model over all devices, for {started()} processes, expected cuda or cpu; a "
            "search is shared, or its model is spread"
        )
    kind = device.partition(":")[0]
    if kind == "cuda":
        _take_accelerator(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    try:
        yield Processes.of_group()
    finally:
        dist.destroy_process_group()


@contextmanager
def _all_there() -> Iterator[None]:
    """What is done together fails where one process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            "distributed: found that another process of the search has ended, expected all to stay to its end; see what that "
            "one says, and go on by the same command with --resume"
        ) from error


def _reduced(value: Tensor) -> Tensor:
    total = value.clone()
    with _all_there():
        dist.all_reduce(total)
    return total


def _take_accelerator(device: str) -> None:
    local, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device != "cuda":
        raise ModelError(
            f"device: found {device!r} for several processes, expected cuda: each takes an accelerator of its own"
        )
    if local >= available:
        raise ModelError(
            f"device: found {available} accelerators, expected one for each process; start fewer with --nproc-per-node"
        )
    torch.cuda.set_device(local)


class _Sum(torch.autograd.Function):
    """The sum over processes. Each of them differentiates it, and their gradients are averaged later: hence the factor."""

    @staticmethod
    def forward(_: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        return _reduced(value)

    @staticmethod
    def backward(_: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient * dist.get_world_size()
