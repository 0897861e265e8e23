"""Mixing: values and gradients of lerp, less memory."""

import pytest
import torch
from torch import Tensor

from circuitsieve.models.mixing import mix

SHAPES = {
    "one mask for all": ((5, 7, 4), (4,), (5, 7, 4)),
    "one number for a site": ((5, 7, 4), (1,), (5, 7, 4)),
    "a mask per example": ((5, 7, 4), (5, 1, 4), (5, 7, 4)),
    "a constant baseline": ((5, 7, 4), (4,), (4,)),
    "a baseline per position": ((5, 7, 4), (4,), (7, 4)),
    "a zero baseline": ((5, 7, 4), (4,), (1,)),
}


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("case", SHAPES)
def test_values_and_gradients_are_those_of_lerp(case: str) -> None:
    activation_shape, mask_shape, baseline_shape = SHAPES[case]
    values = drawn(baseline_shape, activation_shape, mask_shape)
    ours, theirs = ([value.clone().requires_grad_() for value in values] for _ in range(2))
    baseline, activation, mask = theirs
    expected = torch.lerp(baseline.expand_as(activation), activation, mask.expand_as(activation))
    found = mix(*ours)
    assert torch.equal(found, expected)
    (weights,) = drawn(activation_shape)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for our, their in zip(ours, theirs, strict=True):
        assert our.grad is not None
        assert their.grad is not None
        torch.testing.assert_close(our.grad, their.grad)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_asked_for_gets_a_gradient(wanted: tuple[bool, bool, bool]) -> None:
    tensors = [
        value.requires_grad_(needed) for value, needed in zip(drawn((3, 4), (2, 3, 4), (4,)), wanted, strict=True)
    ]
    assert torch.autograd.gradcheck(mix, tensors)
    mix(*tensors).sum().backward()
    assert tuple(tensor.grad is not None for tensor in tensors) == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_exact_at_0_and_at_1(dtype: torch.dtype) -> None:
    baseline, activation = (1e4 * value.to(dtype) for value in drawn((6, 50), (6, 50)))
    mask = (torch.arange(50) % 2).float()
    mixed = mix(baseline, activation, mask)
    assert mixed.dtype == dtype
    assert torch.equal(mixed, torch.where(mask.bool(), activation, baseline))


def test_gradients_of_float32_masks_are_right_to_the_rounding_of_bfloat16() -> None:
    """And those of activations to that of float32: they are products of gradient and mask alone."""
    exact, narrow = (
        [value.to(dtype) for value in drawn((64,), (40, 30, 64), (64,))] for dtype in (torch.float64, torch.float32)
    )
    gradients = []
    for values in (exact, narrow):
        learned = [value.requires_grad_() for value in values]
        mix(*learned).square().sum().backward()
        gradients.append([value.grad for value in learned])
    for name, expected, found in zip(("baseline", "activation", "mask"), *gradients, strict=True):
        scale = expected.abs().max()
        worst = float((found.double() - expected).abs().max() / scale)
        assert worst < (2**-9 if name == "mask" else 1e-6), name


def test_gradients_of_bfloat16_are_summed_in_float32() -> None:
    """4,096 summands of 1 would stop at 256 in bfloat16."""
    activation = torch.ones(64, 64, 1, dtype=torch.bfloat16)
    mask = torch.full((1,), 0.5, requires_grad=True)
    mix(torch.zeros(1), activation, mask).sum().backward()
    assert mask.grad is not None
    assert float(mask.grad) == 4096


def test_what_is_kept_for_the_backward_pass() -> None:
    """Counted, in tensors as large as the activation: the difference where the mask learns, else nothing."""
    for learned, large in ((True, 1), (False, 0)):
        baseline, activation, mask = drawn((8, 32), (8, 32), (32,))
        kept: list[int] = []

        def pack(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            mix(baseline, activation.requires_grad_(), mask.requires_grad_(learned))
        assert sorted(kept) == [32] + large * [8 * 32]
