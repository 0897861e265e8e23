"""The state of what learns, as tensors by name: what a checkpoint holds. Names are joined by dots, numbers are float64."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

State = dict[str, Tensor]
"""Tensors by name; all that is needed to go on bit for bit."""


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    """The state under longer names."""
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def part(prefix: str, state: Mapping[str, Tensor]) -> State:
    """What lies under a prefix, by the shorter names."""
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in state.items() if name.startswith(f"{prefix}.")}


def number(value: int | float) -> Tensor:
    """A plain number as a tensor, without loss."""
    return torch.tensor(value, dtype=torch.float64)


def document(content: Mapping[str, Any]) -> Tensor:
    """Plain facts as the bytes of a JSON document; floats come back bit for bit, nan and infinities too."""
    return torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)


def read_document(tensor: Tensor) -> dict[str, Any]:
    """The facts of a document."""
    return dict(json.loads(bytes(tensor.tolist())))


def of_optimizer(optimizer: Optimizer) -> State:
    """What an optimiser has gathered of each parameter."""
    gathered = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, values in gathered.items() for name, value in values.items()}


def restore_optimizer(optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what was gathered of each parameter."""
    gathered: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        index, name = key.split(".")
        gathered.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": gathered})
