"""Mixing an activation with its baseline, with the least memory for the backward pass."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def mix(
    baseline: Float[Tensor, "*#shape _"],
    activation: Float[Tensor, "*shape n"],
    mask: Float[Tensor, "*#shape _"] | Bool[Tensor, "*#shape _"],
) -> Float[Tensor, "*shape n"]:
    """`lerp(baseline, activation, mask)` in the activation's dtype: exact at 0 and at 1.

    The backward pass keeps the difference of activation and baseline, and nothing at all where the mask is constant. The
    baseline itself may go. Differences of float32 are kept in bfloat16: the mask's gradient sums over tokens and examples, so
    that roundings of 2**-9 average out, while gradients of activations stay exact. It is summed in float32.
    """
    mixed: Tensor = _Mix.apply(baseline, activation, mask)  # type: ignore[no-untyped-call]
    return mixed


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, baseline: Tensor, activation: Tensor, mask: Tensor) -> Tensor:
        at_site = baseline.to(activation)
        ctx.baseline = baseline.shape, baseline.dtype
        ctx.save_for_backward(mask, _narrow(activation - at_site) if ctx.needs_input_grad[2] else None)
        return torch.lerp(at_site.expand_as(activation), activation, mask.to(activation))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        mask, difference = ctx.saved_tensors
        to_baseline = to_activation = to_mask = None
        if ctx.needs_input_grad[0]:
            shape, dtype = ctx.baseline
            to_baseline = _summed(gradient * (1 - mask.to(gradient)), shape).to(dtype)
        if ctx.needs_input_grad[1]:
            to_activation = gradient * mask.to(gradient)
        if ctx.needs_input_grad[2]:
            to_mask = _summed(gradient * difference.to(gradient), mask.shape).to(mask)
        return to_baseline, to_activation, to_mask


def _narrow(difference: Tensor) -> Tensor:
    return difference.bfloat16() if difference.dtype == torch.float32 else difference


def _summed(gradient: Tensor, shape: torch.Size) -> Tensor:
    """The sum over the dimensions along which a tensor of a shape was broadcast; in float32 at least."""
    padded = (1,) * (gradient.dim() - len(shape)) + tuple(shape)
    along = [i for i, (have, want) in enumerate(zip(gradient.shape, padded, strict=True)) if want == 1 and have != 1]
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    return (gradient.sum(along, keepdim=True, dtype=dtype) if along else gradient).view(shape)
