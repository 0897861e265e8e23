"""How much every node matters on its own: the root mean square, and the mean, of what its mask does to what the model says.

Around some masks, log p(token) changes by a node's gradient times the change of its mask, for tokens that the full model would
say. The mean over pairs is what opening the node gains. Alone it forgets nodes whose effects cancel over the training pairs:
among other words they do not cancel. The mean square is the node's entry on the diagonal of the Fisher matrix of the masks:
twice the KL that closing it adds where closed nodes do not lean on each other. Their sum, root mean square plus mean, is never
negative, lowest for nodes that do harm on every pair, and highest for those that help on every pair.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitsieve.circuits.masks import Masks
from circuitsieve.circuits.nodes import NodeSpace, finest
from circuitsieve.data.batching import PairBatch
from circuitsieve.errors import Diverged
from circuitsieve.models.subject import quick_attention
from circuitsieve.objective import log_probs
from circuitsieve.search.problem import Problem
from circuitsieve.vocabulary import Granularity

SMALLEST = 1e-4
"""Of the mean effect: what a node without any is given, so that its logarithm stays finite."""

Effects = dict[Granularity, Float[Tensor, "#layers _"]]


def effects(
    problem: Problem,
    batches: Sequence[PairBatch],
    draw: Callable[[], Masks],
    on_look: Callable[[], object] = lambda: None,
) -> Effects:
    """Root mean square plus mean of the effect of every node of the finest granularities searched, in nats.

    Costs a forward and a backward pass of each batch; the answers are not looked at.

    Args:
        problem: what is searched.
        batches: training pairs.
        draw: the masks of the next batch, of all nodes without children that the search decides about.
        on_look: called after every batch.

    Raises:
        Diverged: an effect is not finite.
    """
    generator = torch.Generator().manual_seed(problem.config.seed)
    sums: dict[Granularity, Tensor] = {}
    for batch in batches:
        for granularity, gradient in _gradients(problem, batch, draw(), generator).items():
            own = gradient[:, : batch.counted]
            both = torch.stack([own.square().sum(1), own.sum(1)])
            sums[granularity] = sums[granularity] + both if granularity in sums else both
        on_look()
    pairs, total = sum(batch.pairs for batch in batches), problem.train.processes.total
    means = {granularity: (total(both) / pairs).unbind() for granularity, both in sums.items()}
    if not all(bool(mean.isfinite().all()) for both in means.values() for mean in both):
        raise Diverged(
            "effects of nodes: found some that are not finite, expected finite ones; the model overflows in its precision: try "
            "--dtype float32 or --training-dtype model"
        )
    return {g: (square.sqrt() + mean).clamp_min(0).float() for g, (square, mean) in means.items()}


def log_scores(found: Effects) -> Effects:
    """The logarithm of each effect over their geometric mean."""
    mean = float(torch.cat([effect.flatten() for effect in found.values()]).mean())
    if mean == 0:
        return found
    logs = {g: effect.clamp_min(SMALLEST * mean).log() for g, effect in found.items()}
    middle = torch.cat([log.flatten() for log in logs.values()]).mean()
    return {g: log - middle for g, log in logs.items()}


def log_prices(prices: Effects) -> Effects:
    """The logarithm of what each node costs over the geometric mean; 0 for what costs nothing."""
    positive = torch.cat([price[price > 0] for price in prices.values()])
    middle = positive.log().mean()
    return {g: torch.where(price > 0, price.log() - middle, 0.0) for g, price in prices.items()}


def _gradients(
    problem: Problem, batch: PairBatch, masks: Masks, generator: torch.Generator
) -> dict[Granularity, Float[Tensor, "#layers batch _"]]:
    """What moving all leaves of a node together does to log p(token), example by example.

    Tokens are drawn from the full model.
    """
    each = {g: mask.detach()[:, None, None].repeat(1, len(batch), 1, 1).requires_grad_() for g, mask in masks.items()}
    candidates = batch.targets.candidates
    with quick_attention(problem.train.subject, batch.clean.shape[1]):
        reference = problem.train.references(batch)
        logits = problem.train.logits(problem.site_masks(each), batch, reference, last=True)
        full = log_probs(reference.full, candidates).exp()
        tokens = _drawn(full.cpu(), batch, generator).to(logits.device)
        said = log_probs(logits, candidates).gather(1, tokens).sum()
        gradients = dict(zip(each, torch.autograd.grad(said, list(each.values())), strict=True))
    precise = {leaf: gradient.double().squeeze(2) for leaf, gradient in gradients.items()}
    return by_node(problem.space, problem.granularities, precise)


def _drawn(
    probabilities: Float[Tensor, "batch n"], batch: PairBatch, generator: torch.Generator
) -> Int[Tensor, "batch 1"]:
    """A token of each pair, as `torch.multinomial` draws it; the same for a pair whichever process has it."""
    noise = torch.empty(batch.pairs, probabilities.shape[1]).exponential_(generator=generator)
    first = 0 if batch.of is None else batch.of.first
    return (probabilities / noise[first : first + len(batch)]).argmax(-1, keepdim=True)


def by_node(
    space: NodeSpace, granularities: Iterable[Granularity], leaves: Masks
) -> dict[Granularity, Float[Tensor, "#layers ... _"]]:
    """Sums over those of the leaves that a node of the finest granularities searched decides about."""
    found: dict[Granularity, Tensor] = {}
    for leaf, node in finest(granularities).items():
        if leaf not in leaves:
            continue
        layers, n = space.shape(node)
        value = leaves[leaf].reshape(layers, *leaves[leaf].shape[1:-1], n, -1).sum(-1)
        found[node] = found[node] + value if node in found else value
    return found
