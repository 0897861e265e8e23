"""Projections: linear maps inside of a block, each a module or a part of one, and how their weights lie. Names no module."""

from dataclasses import dataclass
from enum import Enum

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Fusion(Enum):
    """How the outputs of several projections lie in one module."""

    NONE = "the module is one projection"
    STACKED = "one projection after the other: all of Q, all of K, all of V"
    PER_HEAD = "head by head: Q, K and V of the first head, then of the second"


@dataclass(frozen=True)
class Projection:
    """A projection inside a block: a module, or a part of a fused module's outputs."""

    path: str
    fusion: Fusion = Fusion.NONE
    part: int = 0
    """Which of the fused projections: 0, 1 or 2 for Q, K and V; 0 or 1 for gate and up."""

    @property
    def owner(self) -> str:
        """The path of the module that it is part of; empty for the block itself."""
        return self.path.rpartition(".")[0]


def is_input_major(module: nn.Module) -> bool:
    """Whether a projection's weight is [inputs, outputs] (Conv1D of GPT-2) rather than [outputs, inputs]."""
    return isinstance(module, Conv1D)


def in_features(module: nn.Module) -> int:
    """The number of inputs of a projection."""
    weight = module.get_parameter("weight")
    return int(weight.shape[0 if is_input_major(module) else 1])


def has_bias(module: nn.Module) -> bool:
    """Whether a projection adds a bias."""
    return getattr(module, "bias", None) is not None


def weight_of(module: nn.Module) -> Float[Tensor, "outputs inputs"]:
    """The weight of a projection, without a gradient; no copy."""
    weight = module.get_parameter("weight").detach()
    return weight.t() if is_input_major(module) else weight


def bias_of(module: nn.Module) -> Float[Tensor, " outputs"] | None:
    """The bias of a projection that adds one, without a gradient; no copy."""
    return module.get_parameter("bias").detach() if has_bias(module) else None
