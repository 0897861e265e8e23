"""The tokens that both prompts of a pair begin with, computed once.

Where ablated units take their activations from another run, nothing at these tokens depends on the masks: a causal model does
the same there in both runs. All that later tokens need of them is their keys and values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache, DynamicCache, DynamicLayer
from typing_extensions import override

from circuitsieve.data.batching import PairBatch
from circuitsieve.models.subject import Subject

WORTH = 0.25
"""A smaller share of the tokens is not worth the mask that attention then needs: measured on SmolLM2, a step gains nothing at
0.18, a sixth at 0.33."""
Key = tuple[Literal["keys", "values"], int]
"""Of a layer."""


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the first tokens."""

    tokens: int
    tensors: dict[Key, Tensor]
    """Each [batch, key/value heads, tokens, head_dim]."""

    @classmethod
    @torch.no_grad()
    def of(cls, subject: Subject, ids: Int[Tensor, "batch tokens"]) -> "Prefix":
        """Run the model on the first tokens of prompts."""
        without_head = subject.model.base_model
        cache = without_head(input_ids=ids, past_key_values=DynamicCache(), use_cache=True).past_key_values
        tensors: dict[Key, Tensor] = {}
        for layer, kept in enumerate(cache.layers):
            tensors["keys", layer], tensors["values", layer] = kept.keys, kept.values
        return cls(ids.shape[1], tensors)

    def of_groups(self, groups: Mapping[int, Int[Tensor, " groups"]]) -> "Prefix":
        """The same for attention that computes only some key/value groups.

        Args:
            groups: by layer, those that it computes; all in layers that are missing.
        """
        tensors = {
            (role, layer): tensor.index_select(1, groups[layer].to(tensor.device)) if layer in groups else tensor
            for (role, layer), tensor in self.tensors.items()
        }
        return replace(self, tensors=tensors)

    def cache(self) -> Cache:
        """As transformers takes it. It does not grow: however often a layer runs, it sees the prefix and its own tokens."""
        layers = range(len(self.tensors) // 2)
        return Cache(layers=[_Fixed(self.tensors["keys", layer], self.tensors["values", layer]) for layer in layers])


def shared_tokens(subject: Subject, batch: PairBatch) -> int:
    """The length of the prefix that is worth sharing; 0 if none is.

    Windows of sliding attention that are shorter than the prompts would need to know which keys to forget.
    """
    tokens, window = batch.clean.shape[1], getattr(subject.model.config, "sliding_window", None)
    too_long = window is not None and tokens > window
    return 0 if too_long or batch.shared < max(1, WORTH * tokens) else batch.shared


class _Fixed(DynamicLayer):  # type: ignore[no-untyped-call]
    """The keys and values of a prefix."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.is_initialized = keys, values, True
        self.dtype, self.device = keys.dtype, keys.device

    @override
    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        keys, values = self.keys.to(key_states), self.values.to(value_states)  # those kept in a file are on the CPU
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)
