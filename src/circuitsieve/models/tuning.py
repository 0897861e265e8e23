"""The constants of a compact model, tuned: what closed nodes leave behind need not be their mean.

All else stays as it is. The objective is that of discovery without its price: KL(full || compact) at the answer position, over
training pairs; the constants with the lowest KL on validation pairs are taken (optimal ablation, Li and Janson 2024, on the
outputs of blocks).
"""

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from circuitsieve.data.batching import PairBatch, batches
from circuitsieve.data.tokenising import Example, Pairs
from circuitsieve.models.instrument import answer_logits
from circuitsieve.models.narrow import ConstantAttention, CutProjection, PartlyConstant
from circuitsieve.models.subject import Subject
from circuitsieve.objective import kl, log_probs

LR = 0.02
"""Of a constant, in units of its own size."""
LOOKS = 10
"""How often validation pairs are asked."""
BATCH_SIZE = 16


def tune(
    smaller: Subject,
    full: Subject,
    pairs: Pairs,
    steps: int,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> None:
    """Tune, in place, the constants that a compact model has in the place of what is gone.

    Args:
        smaller: a compact model.
        full: the model that it was made of.
        pairs: training pairs teach, validation pairs choose.
        steps: of one batch each.
        progress: called after every step.
    """
    tuned = list(_constants(smaller))
    start = [constant.detach().float() for constant in tuned]
    offsets = [torch.zeros_like(constant, requires_grad=True) for constant in start]
    scales = [constant.square().mean().sqrt().clamp_min(1e-6) for constant in start]
    optimiser = torch.optim.Adam(offsets, lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    some = random.Random(0).sample(pairs.train, min(len(pairs.train), steps * BATCH_SIZE))
    train, validation = _told(full, some), _told(full, pairs.validation)
    random.Random(0).shuffle(train)  # batches come in the order of their lengths

    def put(into: Sequence[Tensor]) -> None:
        """Let the constants be what they would be with these offsets."""
        for parameter, constant, scale, offset in zip(tuned, start, scales, into, strict=True):
            parameter.data = (constant + scale * offset.detach()).to(parameter)

    lowest, best = _mean_kl(smaller, validation), [offset.detach().clone() for offset in offsets]
    for step in range(steps):
        batch, said = train[step % len(train)]
        for parameter in tuned:
            parameter.requires_grad_(True).grad = None
        torch.autograd.backward(divergence(smaller, batch, said).mean())
        for offset, parameter, scale in zip(offsets, tuned, scales, strict=True):
            assert parameter.grad is not None
            offset.grad = parameter.grad.float() * scale
        optimiser.step()
        schedule.step()
        put(offsets)
        if (step + 1) % max(1, steps // LOOKS) == 0 and (found := _mean_kl(smaller, validation)) < lowest:
            lowest, best = found, [offset.detach().clone() for offset in offsets]
        progress("constants", step + 1, steps)
    put(best)
    for parameter in tuned:
        parameter.requires_grad_(False).grad = None


def _constants(smaller: Subject) -> Iterator[nn.Parameter]:
    """What the blocks write whatever they read."""
    family = smaller.architecture.family
    for block in smaller.architecture.blocks:
        for projection in (family.attn_out, family.mlp_out):
            if isinstance(module := block.get_submodule(projection.owner), ConstantAttention):
                yield module.value
            elif isinstance(module := block.get_submodule(projection.path), CutProjection):
                yield from (own for own in (module.bias, module.rest) if own is not None)
        for path in (family.attn_post_norm, family.mlp_post_norm):
            if path is not None and isinstance(norm := block.get_submodule(path), PartlyConstant):
                yield norm.rest


Told = list[tuple[PairBatch, Tensor]]
"""Batches, each with the log-probabilities of the full model."""


@torch.no_grad()
def _told(full: Subject, examples: Sequence[Example]) -> Told:
    found = []
    for batch in batches(examples, BATCH_SIZE, device=full.device):
        logits = answer_logits(full, batch.clean, batch.positions)
        found.append((batch, log_probs(logits, batch.targets.candidates)))
    return found


def divergence(smaller: Subject, batch: PairBatch, said: Tensor) -> Tensor:
    """KL(full || compact) of every pair, nats."""
    logits = answer_logits(smaller, batch.clean, batch.positions)
    return kl(said, log_probs(logits, batch.targets.candidates))


@torch.no_grad()
def _mean_kl(smaller: Subject, told: Told) -> float:
    return float(torch.cat([divergence(smaller, batch, said) for batch, said in told]).mean())
