"""Modules of a compact model: projections without what a circuit closed, with its constants in their place.

Plain PyTorch: they know neither circuits nor families. All that they learn or keep are parameters; which inputs and outputs are
left is set when they are made.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class CutProjection(nn.Module):
    """An affine map of some of its inputs to some of its outputs; the other outputs are constants.

    y[outputs] = weight x[inputs] + bias, y[others] = rest[others].
    """

    inputs: Int[Tensor, " in"] | None
    outputs: Int[Tensor, " out"] | None

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        *,
        inputs: Int[Tensor, " in"] | None = None,
        outputs: Int[Tensor, " out"] | None = None,
        rest: Float[Tensor, " all_outputs"] | None = None,
    ) -> None:
        """
        Args:
            weight: of what is left.
            bias: of the outputs that are left.
            inputs: where they lie in what the module is given; None if that is all of it.
            outputs: where they lie in what it returns; None if that is all of it.
            rest: what it returns elsewhere; needed with `outputs`.
        """
        super().__init__()
        self.weight = nn.Parameter(weight.clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.to(weight), requires_grad=False)
        self.rest = None if rest is None else nn.Parameter(rest.to(weight), requires_grad=False)
        self.register_buffer("inputs", inputs, persistent=False)
        self.register_buffer("outputs", outputs, persistent=False)

    def forward(self, x: Float[Tensor, "*shape _"]) -> Float[Tensor, "*shape _"]:
        """Map the last dimension."""
        if self.inputs is not None:
            x = x.index_select(-1, self.inputs)
        y = nn.functional.linear(x, self.weight, self.bias)
        if self.outputs is None or self.rest is None:
            return y
        return self.rest.expand(*y.shape[:-1], -1).index_copy(-1, self.outputs, y)


class ConstantAttention(nn.Module):
    """Attention of which nothing is left: the same vector at every token, whatever is read."""

    def __init__(self, value: Float[Tensor, " width"], layer: int) -> None:
        """
        Args:
            value: what it writes.
            layer: its own, as caches count them.
        """
        super().__init__()
        self.value = nn.Parameter(value, requires_grad=False)
        self.layer_idx = layer

    def forward(self, hidden_states: Float[Tensor, "batch tokens width"], *_: Any, **named: Any) -> tuple[Tensor, None]:
        """Called as the attention of any family is. A cache is told of the tokens: models read their number off its layers."""
        cache = named.get("past_key_values", named.get("layer_past"))
        if cache is not None:
            nothing = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(nothing, nothing, self.layer_idx)
        return self.value.expand_as(hidden_states), None


class PartlyConstant(nn.Module):
    """A norm of which some outputs are constants."""

    open: Bool[Tensor, " n"]

    def __init__(self, norm: nn.Module, open_: Bool[Tensor, " n"], rest: Float[Tensor, " n"]) -> None:
        """
        Args:
            norm: the whole of it.
            open_: the outputs that are its own.
            rest: the others.
        """
        super().__init__()
        self.norm, self.rest = norm, nn.Parameter(rest, requires_grad=False)
        self.register_buffer("open", open_, persistent=False)

    def forward(self, x: Float[Tensor, "*shape n"]) -> Float[Tensor, "*shape n"]:
        """Norm the last dimension."""
        return torch.where(self.open, self.norm(x), self.rest)
