"""Models dispatched by accelerate, as a user would do it: on the disk, in part or as a whole, or in main memory."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import accelerate
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from circuitsieve.models.subject import Subject

CPU = torch.device("cpu")


def layer_on_disk(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The second layer on the disk, all else where it was."""
    accelerate.dispatch_model(model, device_map(model, "cpu", "disk"), offload_dir=str(folder))
    return model


def all_on_disk(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Every weight on the disk."""
    accelerate.disk_offload(model, str(folder), execution_device=CPU)
    return model


def all_in_memory(model: PreTrainedModel, _: Path) -> PreTrainedModel:
    """Every weight in main memory, fetched from there."""
    accelerate.cpu_offload(model, execution_device=CPU)
    return model


WAYS: dict[str, Callable[[PreTrainedModel, Path], PreTrainedModel]] = {
    "layer-on-disk": layer_on_disk,
    "all-on-disk": all_on_disk,
    "all-in-memory": all_in_memory,
}


def device_map(model: PreTrainedModel, most: str, second_layer: str) -> dict[str, str]:
    """Where every module goes."""
    second = Subject.of(model).architecture.blocks[1]
    (path,) = (name for name, module in model.named_modules() if module is second)
    places = {}
    for name in [*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers())]:
        inside = name.startswith(f"{path}.")
        places[path if inside else name.rpartition(".")[0]] = second_layer if inside else most
    return places


class Watched(Mapping[str, Tensor]):
    """Weights from which each fetch is a copy of its own, with how many bytes of such copies are alive."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.weights = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
        self.alive = self.peak = 0

    def __getitem__(self, name: str) -> Tensor:
        copy: np.ndarray = self.weights[name].copy()
        self.alive += copy.nbytes
        self.peak = max(self.peak, self.alive)
        weakref.finalize(copy, self._gone, copy.nbytes)  # storage that torch shares with numpy keeps the array alive
        return torch.from_numpy(copy)

    def _gone(self, size: int) -> None:
        self.alive -= size

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def watched(model: PreTrainedModel) -> Watched:
    """Offload every weight of a model, and watch the fetches."""
    weights = Watched(model)
    accelerate.cpu_offload(model, execution_device=CPU, state_dict=weights)  # type: ignore[arg-type]
    return weights
