"""Masks: one tensor per granularity, [layers, n]. 1 = keep, 0 = ablated; between them lies a mixture of both.

This room knows tensors and granularities, not models: which node contains which is `nodes`' business.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitsieve.vocabulary import Granularity

# "#layers": the embedding is one node, with a single row. "...": nothing, or batch and tokens where examples differ.
Masks = Mapping[Granularity, Float[Tensor, "#layers ... _"] | Bool[Tensor, "#layers _"]]
BoolMasks = Mapping[Granularity, Bool[Tensor, "#layers _"]]
Scores = Mapping[Granularity, Float[Tensor, "#layers _"]]


def equal(a: BoolMasks, b: BoolMasks) -> bool:
    """Whether two sets of masks hold the same granularities and the same nodes."""
    return a.keys() == b.keys() and all(bool((a[g] == b[g]).all()) for g in a)


def cut(scores: Scores, threshold: float) -> dict[Granularity, Bool[Tensor, "#layers _"]]:
    """Keep the nodes that score above the threshold."""
    return {g: score > threshold for g, score in scores.items()}


def apart(scores: Scores, by: float) -> dict[Granularity, Float[Tensor, "#layers _"]]:
    """Scores moved further from 0 by so much, each to its own side: out of reach of any cut that is nearer."""
    return {g: torch.where(score > 0, score + by, score - by) for g, score in scores.items()}


def counts(masks: BoolMasks) -> dict[Granularity, tuple[int, int]]:
    """Kept and total nodes of each granularity."""
    return {g: (int(mask.sum()), mask.numel()) for g, mask in masks.items()}


def with_gradient_of(soft: Float[Tensor, "layers n"], hard: Bool[Tensor, "layers n"]) -> Float[Tensor, "layers n"]:
    """The value of the hard mask, the gradient of the soft one. Exact: soft - soft is 0 in any arithmetic."""
    return hard.to(soft) + (soft - soft.detach())
