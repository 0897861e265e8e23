"""Rankings by scores that are computed, not learned: the baselines that a learned circuit has to beat.

Every score of a node is read off its own *mask*, through the same hooks as everything else; nodes that contain it are not
added. With m the masks, b the baselines and a mean over training pairs:
- attribution: d(logit difference) / dm at m = 1 (attribution patching, Nanda 2023; Syed et al. 2023);
- integrated gradients: -d KL(full || circuit) / dm, averaged over points m strictly between 0 and 1 (at 1 the KL has no
  gradient), all masks moving together (Sundararajan et al. 2017; Hanna et al. 2024);
- activation x gradient: as attribution, with b = 0;
- activation difference: |clean - b|, averaged over tokens; no gradient at all;
- random.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsieve.circuits.circuit import Ranking
from circuitsieve.circuits.nodes import COMPOSITION, Activations, finest
from circuitsieve.data.batching import PairBatch
from circuitsieve.models.instrument import answer_logits, record
from circuitsieve.models.subject import quick_attention
from circuitsieve.objective import kl, log_probs, logit_difference
from circuitsieve.search.itinerary import looked_at
from circuitsieve.search.problem import Problem
from circuitsieve.vocabulary import Ablation, Granularity, Method

Sums = dict[Granularity, Float[Tensor, "#layers _"]]
OnLook = Callable[[int, int], None]


def attribution(problem: Problem, on_look: OnLook = lambda *_: None) -> Ranking:
    """Rank the nodes of the finest granularities that are searched.

    Args:
        problem: what is searched; its method says by which score.
        on_look: is told how many batches were looked at, of how many.
    """
    method, config = Method(problem.config.method), problem.config
    nodes = sorted(set(finest(problem.granularities).values()))
    if method is Method.RANDOM:
        generator = torch.Generator().manual_seed(config.seed)
        return Ranking(problem.space, {g: torch.rand(problem.space.shape(g), generator=generator) for g in nodes})
    batches = looked_at(problem.train.batches, problem.config)
    sums: Sums = {g: torch.zeros(problem.space.shape(g)) for g in nodes}
    for done, batch in enumerate(batches, 1):
        found = (_differences if method is Method.ACTIVATION_DIFFERENCE else _gradients)(problem, batch)
        for g, score in found.items():
            sums[g] += score.cpu()
        on_look(done, len(batches))
    pairs, processes = sum(batch.pairs for batch in batches), problem.train.processes
    means = {g: processes.total(total) / pairs for g, total in sums.items()}
    return Ranking(problem.space, {g: m.abs() for g, m in means.items()} if config.score_sign == "absolute" else means)


def points(problem: Problem) -> list[float]:
    """The masks at which gradients are taken, if any are."""
    method = Method(problem.config.method)
    if method in (Method.ACTIVATION_DIFFERENCE, Method.RANDOM):
        return []
    if method is not Method.INTEGRATED_GRADIENTS:
        return [1.0]
    n = problem.config.integration_points
    return [(i + 0.5) / n for i in range(n)]


def _gradients(problem: Problem, batch: PairBatch) -> Sums:
    """What opening each node gains, averaged over the points and summed over the pairs of a batch."""
    method, bench = Method(problem.config.method), problem.train
    constants: Activations | None = None
    ablation = problem.ablation
    if method is Method.ACTIVATION_GRADIENT:
        zero = torch.zeros(1, device=problem.subject.device)
        constants, ablation = dict.fromkeys(problem.subject.architecture.sites(), zero), Ablation.ZERO
    at = points(problem)
    sums: Sums = {}
    with quick_attention(bench.subject, batch.clean.shape[1]):
        reference = bench.references(batch, again=False)
        if constants is not None:
            reference = replace(reference, prefix=None)  # which holds what the corrupted run has there, not zero
        for value in at:
            masks = {
                g: torch.full(problem.space.shape(g), value, device=problem.subject.device, requires_grad=True)
                for g in set(finest(problem.granularities).values())
            }
            site_masks = problem.space.fold(problem.space.compose(masks), ablation)
            logits = bench.logits(site_masks, batch, reference, constants)
            if method is Method.INTEGRATED_GRADIENTS:
                candidates = batch.targets.candidates
                gain = -kl(log_probs(reference.full, candidates), log_probs(logits, candidates))
            else:
                gain = logit_difference(logits, batch.targets)
            gradients = torch.autograd.grad(gain[: batch.counted].sum() / len(at), list(masks.values()))
            found = dict(zip(masks, gradients, strict=True))
            sums = {g: sums[g] + gradient for g, gradient in found.items()} if sums else found
    return sums


@torch.no_grad()
def _differences(problem: Problem, batch: PairBatch) -> Sums:
    """How far each node's activations lie from their baselines, summed over its units and the pairs of a batch."""
    bench, nodes = problem.train, finest(problem.granularities)
    reference = bench.references(batch, again=False)
    with record(bench.subject, list(reference.baselines)) as clean:
        answer_logits(bench.subject, batch.clean, batch.positions, reference.prefix)
    shared = reference.prefix.tokens if reference.prefix else 0  # nothing differs there
    real, tokens = batch.real[:, shared:, None], batch.real.sum(1)[:, None]
    found: Sums = {g: torch.zeros(problem.space.shape(g)) for g in nodes.values()}
    for site, baseline in reference.baselines.items():
        if (leaf := COMPOSITION[site.kind][-1]) in nodes:
            distance = (clean[site] - baseline.to(clean[site].device)).float().abs() * real.to(clean[site].device)
            score = (distance.sum(1) / tokens.to(distance))[: batch.counted].sum(0).cpu()
            own = found[nodes[leaf]][site.layer]
            own += score.view(len(own), -1).sum(1)
    return found
