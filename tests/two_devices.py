"""Steps over two devices that are pretended: `python two_devices.py FAMILY...` says ok, or what meets across devices.

torch's fake tensors compute shapes, dtypes and devices but no values, and an operation on tensors of two devices is an error. A
program of its own, because a device cannot be unregistered. Families with tied weights or constants in buffers are beyond it.
"""

import sys
import warnings
from collections import Counter
from typing import Any

import torch
from accelerate import dispatch_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from circuitsieve.models.instrument import answer_logits, masked, record
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import Granularity
from models import shared
from placed import device_map

FIRST, SECOND = "pretended:0", "pretended:1"


class Pretended:
    """What torch asks of a device."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 2

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


def move(root: nn.Module, device: str) -> None:
    """accelerate cannot move fake parameters."""
    for module in root.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(parameter.detach().to(device), requires_grad=False)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


class Moves(TorchDispatchMode):
    """The shapes of what goes from one device to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and made.device != args[0].device:
            self.shapes[tuple(made.shape)] += 1
        return made


def step(subject: Subject, masks: dict[Granularity, Tensor], checkpointed: int) -> None:
    """A masked pass against a corrupted one, and its backward pass."""
    ids = torch.zeros(3, 7, dtype=torch.long, device=FIRST)
    positions = torch.tensor([6, 5, 4]).to(FIRST)
    with torch.no_grad(), record(subject, subject.architecture.sites()) as baselines:
        answer_logits(subject, ids, positions)
    assert {str(baseline.device) for site, baseline in baselines.items() if site.layer == 1} == {SECOND}
    site_masks = subject.space.compose(masks)
    with Moves() as moves, masked(subject, site_masks, baselines, checkpointed=checkpointed):
        logits = answer_logits(subject, ids, positions)
    assert str(logits.device) == FIRST
    for mask in site_masks.values():  # as a whole, once; not row by row, nor once more for each use
        assert moves.shapes[tuple(mask.shape)] == [tuple(m.shape) for m in site_masks.values()].count(tuple(mask.shape))
    assert not [shape for shape in moves.shapes if len(shape) == 1 and shape != positions.shape]
    logits.square().sum().backward()
    assert {str(mask.grad.device) for mask in masks.values() if mask.grad is not None} == {FIRST}


def main(family: str) -> None:
    """Steps as they are made: plain, with layers run again, without what is closed."""
    original = shared(family).model
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autograd.set_multithreading_enabled(False):
        model = type(original)(original.config).requires_grad_(False).eval()
        places = device_map(model, FIRST, SECOND)
        move(model, FIRST)
        move(Subject.of(model).architecture.blocks[1], SECOND)
        dispatch_model(model, places, main_device=FIRST)
        subject = Subject.of(model)
        assert [str(device) for device in (subject.device, *subject.devices)] == [FIRST, FIRST, SECOND]
        masks = {g: torch.full(subject.space.shape(g), 0.5, device=FIRST, requires_grad=True) for g in Granularity}
        for checkpointed in (0, 2):
            step(subject, masks, checkpointed)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    _setup_privateuseone_for_python_backend("pretended", Pretended)
    for name in sys.argv[1:]:
        main(name)
    print("ok")  # noqa: T201
