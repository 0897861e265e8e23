"""What a step computes, launches, moves and holds, counted while the real code runs, on models with or without weights.

Without weights (`weightless`) tensors have shapes and no content, so that a step of a model of 70 billion parameters is counted
in seconds, in no memory. Attention takes the fused kernel there, as it does on a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, masking_utils

import circuitsieve.models.subject
from circuitsieve import DiscoveryConfig
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.search.footprint import Footprint
from circuitsieve.search.phases import first_phase
from circuitsieve.search.problem import Problem
from circuitsieve.search.training import Training
from families import token_pairs
from memory import Allocations

PLENTY = {"memory": "99999GB", "checkpointing": "none"}
SIDES: dict[str, dict[str, object]] = {
    "kept": PLENTY,
    "ranking": {**PLENTY, "ranking_share": DiscoveryConfig().ranking_share},
    "computed anew": {"memory": "0GB", "checkpointing": "none"},
    "layers again": {"memory": "0GB", "checkpointing": "all"},
}
"""Settings of a step: of gates with corrupted activations kept, the same while ranking, of gates with them computed anew, and
that with all layers run again in the backward pass."""


@dataclass(frozen=True)
class Counted:
    """What one call does."""

    flops: int
    """Of matrix products, attention's among them: two for a multiplication and an addition."""
    launches: int
    """Operations that compute something: what a GPU would be asked for one by one."""
    moved: int
    """Bytes that they read and write."""
    peak: int
    """The most bytes of tensors that it makes and that are alive together."""


class Tally(Allocations):
    """Counts operations and the bytes that they touch, beside those that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        touched = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if touched and func.namespace == "aten" and not _only_looks(func):
            self.launches += 1
            self.moved += sum(tensor.numel() * tensor.itemsize for tensor in touched)
        return result


def _only_looks(func: Any) -> bool:
    """Whether an operation returns its argument in another shape, or as it is."""
    return any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)


def counted(call: Callable[[], object]) -> Counted:
    """Count a call that was made before; it is made twice. Its products of attention are counted as if not fused."""
    with Tally() as tally:
        call()
    with FlopCounterMode(display=False) as products, sdpa_kernel(SDPBackend.MATH):
        call()
    return Counted(products.get_total_flops(), tally.launches, tally.moved, tally.peak)


@contextmanager
def weightless() -> Iterator[None]:
    """Whatever is made meanwhile has a shape and no content."""
    with (
        FakeTensorMode(),
        mock.patch.object(masking_utils, "find_packed_sequence_indices", return_value=None),  # it reads the content
        mock.patch.object(circuitsieve.models.subject, "SHORT", 0),
    ):
        yield


class Bench:
    """A model with pairs of random tokens, ready for steps."""

    def __init__(self, model: PreTrainedModel, pairs: int, tokens: int, side: str) -> None:
        """Form one batch, and keep what is to be kept of it.

        Args:
            model: frozen.
            pairs: a batch.
            tokens: of each prompt.
            side: one of `SIDES`.
        """
        config = DiscoveryConfig(
            "hard_concrete", batch_size=pairs, ranking_share=0.0, ranking_looks=0, training_dtype="model"
        ).replaced(**SIDES[side])
        examples = token_pairs(model.config.vocab_size, tokens, 2 * pairs, pairs)
        self.problem = Problem.of(Subject.of(model), examples, config)
        self.training = Training(self.problem)
        self.training.begin(first_phase(self.problem))
        self.batch = self.problem.train.batches[0]
        self.step()

    def step(self) -> dict[str, torch.Tensor]:
        """A step of the search, not waited for."""
        return self.training.step(0, self.batch)

    def reference(self) -> object:
        """The corrupted run and the full model's, nothing kept."""
        return self.problem.train.references.keeping_nothing()(self.batch)

    @property
    def footprint(self) -> Footprint:
        """What the program itself counts before a search."""
        return self.problem.footprint


def counts(model: PreTrainedModel, pairs: int, tokens: int) -> tuple[dict[str, Counted], Footprint]:
    """A reference and a step of every side, counted; and the program's own count of a step."""
    found = {}
    with frozen(model):
        for side in SIDES:
            bench = Bench(model, pairs, tokens, side)
            if not found:
                found["reference"] = counted(bench.reference)
            found[side] = counted(bench.step)
    return found, bench.footprint
