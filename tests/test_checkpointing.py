"""Checkpointed layers: the same logits and gradients, bit for bit, for less memory and one more pass."""

import pytest
import torch
from torch import Tensor

from circuitsieve.models.instrument import answer_logits, masked, record
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.vocabulary import Granularity
from models import LAYERS, each_family, fresh, random_ids, random_masks, shared

CLEAN, CORRUPTED = random_ids(0), random_ids(1)
LAST = torch.tensor([6, 5, 4])


def logits_and_gradients(
    subject: Subject, granularities: list[Granularity], checkpointed: int, *, within: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The backward pass comes after the context has ended, or within it."""
    masks = {g: m.requires_grad_() for g, m in random_masks(subject.space, 3, soft=True).items() if g in granularities}
    with frozen(subject.model):
        with record(subject, subject.architecture.sites()) as baselines:
            answer_logits(subject, CORRUPTED, LAST)
        with masked(subject, subject.space.compose(masks), baselines, checkpointed=checkpointed):
            logits = answer_logits(subject, CLEAN, LAST)
            if within:
                logits.square().sum().backward()
        if not within:
            logits.square().sum().backward()
    gradients = [mask.grad for mask in masks.values() if mask.grad is not None]
    assert len(gradients) == len(masks)
    return logits.detach(), gradients


@pytest.mark.parametrize("granularities", [list(Granularity), [Granularity.HEAD, Granularity.MLP_NEURON]], ids=len)
@each_family
def test_logits_and_gradients_are_the_same(family: str, granularities: list[Granularity]) -> None:
    subject = shared(family)
    plain, expected = logits_and_gradients(subject, granularities, 0)
    for checkpointed in range(1, LAYERS + 1):
        for within in (False, True):
            logits, found = logits_and_gradients(subject, granularities, checkpointed, within=within)
            assert torch.equal(logits, plain)
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_layers_run_once_more_and_keep_less() -> None:
    subject = Subject.of(fresh(shared("llama")))
    runs: list[int] = []
    for layer, block in enumerate(subject.architecture.blocks):
        block.mlp.register_forward_pre_hook(lambda *_, layer=layer: runs.append(layer))
    kept = []
    for checkpointed in range(LAYERS + 1):
        runs.clear()
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits_and_gradients(subject, list(Granularity), checkpointed)
        kept.append(sum(sizes))
        again = list(range(checkpointed))[::-1]
        assert runs == [*range(LAYERS), *range(LAYERS), *again]
    assert kept == sorted(set(kept), reverse=True)
