"""How much every node matters on its own: the mean square of what its mask does to what the model says.

Around the full model the KL of a circuit is half the sum, over pairs of closed nodes, of their entries in the Fisher matrix of
the masks. Where closed nodes do not lean on each other only its diagonal is left: for each node the expected square of the
gradient of log p(token) with respect to its mask, for tokens that the full model would say. A *mean* gradient forgets nodes
whose effects cancel over the training pairs; among other words they do not cancel. A mean square remembers them.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsieve.data import PairBatch
from circuitsieve.instrument import quick_attention
from circuitsieve.nodes import CONTAINERS, LEAVES
from circuitsieve.objective import log_probs
from circuitsieve.problem import Problem
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Granularity

LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""What all masks are set to, batch by batch in turn: what matters in the full model may not in a half ablated one."""
PAIRS = 384
"""So many training pairs are looked at."""
SMALLEST = 1e-8
"""Of the mean effect: what a node without any is given, so that its logarithm stays finite."""

Effects = dict[Granularity, Float[Tensor, "#layers _"]]


def finest(granularities: Iterable[Granularity]) -> tuple[Granularity, ...]:
    """Those that decide on their own about the units, out dims or embedding inside: nothing finer is searched there."""
    searched = set(granularities)
    last: dict[Granularity, None] = {}
    for leaf in LEAVES:
        chain = [g for g in (*CONTAINERS.get(leaf, ()), leaf) if g in searched]
        if leaf in searched or (chain and leaf in UNIT_GRANULARITIES):
            last[chain[-1]] = None
    return tuple(last)


def mean_squares(problem: Problem) -> Effects:
    """The mean squared effect of every node of the finest granularities searched, in squared nats.

    Costs a forward and a backward pass of each batch; nothing is learned from its answers.
    """
    generator = torch.Generator().manual_seed(problem.config.seed)
    batches = problem.train.batches[: max(1, PAIRS // problem.config.batch_size)]
    sums: Effects = {}
    for number, batch in enumerate(batches):
        for granularity, gradient in _gradients(problem, batch, LEVELS[number % len(LEVELS)], generator).items():
            squares = gradient.double().square().sum(dim=(1, 2))
            sums[granularity] = sums[granularity] + squares if granularity in sums else squares
    pairs = sum(map(len, batches))
    return {granularity: (total / pairs).float() for granularity, total in sums.items()}


def log_scores(effects: Effects) -> Effects:
    """The logarithm of each effect over their geometric mean."""
    largest = max(float(effect.max()) for effect in effects.values())
    if largest == 0:
        return effects
    mean = torch.cat([effect.flatten() for effect in effects.values()]).mean()
    logs = {g: effect.clamp_min(SMALLEST * float(mean)).log() for g, effect in effects.items()}
    middle = torch.cat([log.flatten() for log in logs.values()]).mean()
    return {g: log - middle for g, log in logs.items()}


def _gradients(
    problem: Problem, batch: PairBatch, level: float, generator: torch.Generator
) -> dict[Granularity, Float[Tensor, "#layers batch 1 _"]]:
    """d log p(token) / d mask for each example. Tokens are drawn from the full model."""
    masks = {
        g: torch.full((layers, len(batch), 1, n), level, device=problem.subject.device, requires_grad=True)
        for g in finest(problem.granularities)
        for layers, n in [problem.space.shape(g)]
    }
    candidates = batch.targets.candidates
    with quick_attention(problem.train.subject, batch.clean.shape[1]):
        logits = problem.logits(masks, batch)
        full = log_probs(problem.train.references(batch).full, candidates).exp()
        tokens = torch.multinomial(full.cpu(), 1, generator=generator).to(logits.device)
        said = log_probs(logits, candidates).gather(1, tokens).sum()
        gradients = torch.autograd.grad(said, list(masks.values()))
    return dict(zip(masks, gradients, strict=True))
