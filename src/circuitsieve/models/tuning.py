"""The constants of a compact model, tuned: what closed nodes leave behind need not be their mean.

All else stays as it is. The objective is that of discovery without its price: KL(full || compact) at the answer position, over
training pairs; the constants with the lowest KL on validation pairs are taken (optimal ablation, Li and Janson 2024, on the
outputs of blocks).
"""

import random
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from circuitsieve.data.batching import PairBatch, batches
from circuitsieve.data.tokenising import Example, Pairs
from circuitsieve.models.instrument import answer_logits, record
from circuitsieve.models.narrow import ConstantAttention, CutProjection, PartlyConstant
from circuitsieve.models.subject import Subject
from circuitsieve.objective import kl, log_probs
from circuitsieve.vocabulary import Site, SiteKind

LR = 0.02
"""Of a constant, in units of its own size; of one that is nearly 0, of what its block writes in the full model."""
NEARLY_0 = 0.01
"""Of what the block writes."""
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
    found = list(_constants(smaller))
    if not found:
        return
    tuned = [constant for _, constant in found]
    start = [constant.detach().float() for constant in tuned]
    offsets = [torch.zeros_like(constant, requires_grad=True) for constant in start]
    written = _sizes_written(full, pairs.train[:BATCH_SIZE])
    scales = [_scale(constant, written[site]) for (site, _), constant in zip(found, start, strict=True)]
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
        looks = (step + 1) % max(1, steps // LOOKS) == 0 or step + 1 == steps
        if looks and (reached := _mean_kl(smaller, validation)) < lowest:
            lowest, best = reached, [offset.detach().clone() for offset in offsets]
        progress("constants", step + 1, steps)
    put(best)
    for parameter in tuned:
        parameter.requires_grad_(False).grad = None


def _constants(smaller: Subject) -> Iterator[tuple[Site, nn.Parameter]]:
    """What the blocks write whatever they read, and where."""
    family = smaller.architecture.family
    for layer, block in enumerate(smaller.architecture.blocks):
        for kind, projection, post_norm in (
            (SiteKind.ATTN_WRITE, family.attn_out, family.attn_post_norm),
            (SiteKind.MLP_WRITE, family.mlp_out, family.mlp_post_norm),
        ):
            if isinstance(module := block.get_submodule(projection.owner), ConstantAttention):
                yield Site(kind, layer), module.value
            elif isinstance(module := block.get_submodule(projection.path), CutProjection):
                yield from ((Site(kind, layer), own) for own in (module.bias, module.rest) if own is not None)
            if post_norm is not None and isinstance(norm := block.get_submodule(post_norm), PartlyConstant):
                yield Site(kind, layer), norm.rest


def _size(values: Tensor) -> float:
    """The root mean square of some numbers."""
    return float(values.square().mean().sqrt())


def _scale(constant: Tensor, written: float) -> float:
    """The unit in which a constant is tuned, given the size of what its block writes."""
    size = _size(constant)
    return size if size > NEARLY_0 * written else written


@torch.no_grad()
def _sizes_written(full: Subject, examples: Sequence[Example]) -> dict[Site, float]:
    """The root mean square of what each block writes on some prompts."""
    sizes: dict[Site, list[float]] = {}
    sites = [site for site in full.architecture.sites() if site.kind in (SiteKind.ATTN_WRITE, SiteKind.MLP_WRITE)]
    for batch in batches(examples, BATCH_SIZE, device=full.device):
        with record(full, sites) as written:
            answer_logits(full, batch.clean, batch.positions)
        for site, values in written.items():
            sizes.setdefault(site, []).append(_size(values.float()))
    return {site: fmean(each) for site, each in sizes.items()}


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
