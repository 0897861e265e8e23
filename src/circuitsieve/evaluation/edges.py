"""Which edges among the nodes of a circuit matter, and how few of them do the same.

1. Every edge between kept nodes gets a mask; single neurons stay masked as the circuit says.
2. Integrated gradients (Sundararajan et al. 2017; Hanna et al. 2024): the gradient of -KL(full || circuit) with respect to each
   edge's mask, averaged over points between "no edge" and "every edge", all edges moving together.
3. The edges that matter most, for good or bad, are kept: as few as leave faithfulness and accuracy on validation pairs within a
   bound of the circuit's. (By what they gain alone the few that work against the task would go first, and its calibration with
   them.)
4. What an edge matters depends on which others are left: round by round all are scored again around the kept ones, and a quarter
   is cut. The smallest choice that stays within the bound is taken; a round that does not may be followed by one that does.
5. Edges that lie on no path from the embedding to the logits change nothing and go.

Memory: what the sources write on one batch, and what each receiver reads of it for the backward pass.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.graph import EdgeCircuit, EdgeMasks, Graph, Receiver, count
from circuitsieve.data.batching import PairBatch
from circuitsieve.data.tokenising import Pairs
from circuitsieve.errors import ConfigError
from circuitsieve.evaluation.harness import EvaluationConfig, Harness, Sample
from circuitsieve.evaluation.metrics import Outcome, Summary, point_values
from circuitsieve.models.instrument import answer_logits, masked
from circuitsieve.models.rewiring import SoftEdges, graph_of, rewired
from circuitsieve.models.subject import fitting, frozen
from circuitsieve.objective import PairMetrics, kl, log_probs, measure
from circuitsieve.search.references import References

Progress = Callable[[str, int, int], None]
STAYS = 0.75
"""Of the edges, each round."""
AROUND = (0.4, 0.8, 1.0)
"""Masks of the kept edges at which all are scored again."""


@dataclass(frozen=True)
class EdgeConfig:
    """How edges are chosen."""

    max_change: float = 0.05
    """How far the faithfulness on validation pairs may move from the circuit's, and how far the accuracy may fall."""
    points: int = 5
    """At which gradients are taken."""
    train_pairs: int = 64
    """By which edges are scored."""
    validation_pairs: int = 64
    """By which the number of edges is chosen."""
    rounds: int = 12
    """How often edges are scored again at most."""
    round_pairs: int = 24
    """Training pairs by which they are."""
    batch_size: int = 8
    """Pairs that are run at once: memory grows with it."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.max_change < 1:
            raise ConfigError(f"max-change: found {self.max_change}, expected a change of faithfulness between 0 and 1")
        for name in ("points", "train_pairs", "validation_pairs", "rounds", "round_pairs", "batch_size"):
            if getattr(self, name) < (lowest := int(name != "rounds")):
                raise ConfigError(f"{name.replace('_', '-')}: found {getattr(self, name)}, expected at least {lowest}")


@dataclass(frozen=True, eq=False)
class FoundEdges:
    """The edges of a circuit, and what they do on test pairs."""

    edges: EdgeCircuit
    among: int
    """Edges between the nodes of the circuit."""
    test: Summary
    """With the kept edges alone."""
    nodes: Summary
    """The circuit with all its edges, on the same pairs."""

    def to_dict(self) -> dict[str, Any]:
        """For edges.json and the card."""
        kept, total = self.edges.kept, self.edges.total
        return {
            "kept": kept,
            "among": self.among,
            "total": total,
            "gone": 1 - kept / total,
            "test": self.test.values,
            "nodes": self.nodes.values,
            "intervals": self.test.intervals,
        }


def find_edges(
    model: nn.Module,
    circuit: Circuit,
    pairs: Pairs,
    config: EdgeConfig = EdgeConfig(),
    progress: Progress = lambda *_: None,
) -> FoundEdges:
    """Find the edges among the nodes of a circuit that it needs.

    Args:
        model: the model that the circuit was found in; it is left as it was.
        circuit: the circuit.
        pairs: training pairs score the edges, validation pairs choose how many are kept, test pairs judge.
        config: how.
        progress: called after every pass over pairs.

    Raises:
        UnsupportedModel: there is no family row, or heads of this family do not add up.
        ModelError: the circuit is one of a model with other nodes.
        ConfigError: the circuit is empty.
    """
    subject = fitting(model, circuit.space)
    graph = graph_of(subject)
    among = graph.alive(graph.among(circuit.masks))
    if not count(among):
        raise ConfigError("circuit: found no path from the embedding to the logits, expected a circuit with edges")
    with frozen(model):
        train, validation, test = (
            Harness(subject, circuit, some, EvaluationConfig(batch_size=config.batch_size, seed=config.seed))
            for some in (pairs.train, pairs.validation[: config.validation_pairs], pairs.test)
        )
        search = _Search(graph, circuit, among, train, validation, config, progress)
        search.bisect()
        search.narrow()
        scores = {receiver: score.float() for receiver, score in search.scores.items()}
        found = EdgeCircuit(graph, search.masks, scores)
        progress("test pairs", 0, 1)
        with_edges = test.all.summary(run_edges(circuit, among, search.masks, test.references, test.all.batches))
        whole = test.all.summary(test.run(circuit, test.all, "circuit"))
        progress("test pairs", 1, 1)
    return FoundEdges(found, count(among), with_edges, whole)


def edge_scores(
    circuit: Circuit,
    among: EdgeMasks,
    references: References,
    batches: Sequence[PairBatch],
    points: Sequence[float],
    *,
    kept: EdgeMasks | None = None,
    progress: Progress = lambda *_: None,
) -> dict[Receiver, Tensor]:
    """Integrated gradients: what keeping each edge gains in nats of KL, to first order, averaged over pairs and points.

    Args:
        circuit: the nodes.
        among: the edges between them.
        references: of the circuit's ablation.
        batches: the pairs.
        points: the masks of the kept edges at which gradients are taken.
        kept: edges that are not cut; all if not given.
        progress: called after every pass.

    Returns:
        [layers, receivers, sources], 0 outside the circuit.
    """
    kept = kept or among
    sums = {receiver: torch.zeros(mask.shape, dtype=torch.float64) for receiver, mask in among.items()}
    for done, batch in enumerate(batches):
        for place, point in enumerate(points):
            soft = {
                receiver: (mask * point).float().to(references.subject.device).requires_grad_()
                for receiver, mask in kept.items()
            }
            logits, reference = _logits(circuit, among, soft, references, batch)
            candidates = batch.targets.candidates
            gain = -kl(log_probs(reference, candidates), log_probs(logits, candidates)).sum()
            # What receives nothing (no head or no MLP is kept) is in no sum.
            gradients = torch.autograd.grad(gain, list(soft.values()), allow_unused=True, materialize_grads=True)
            for receiver, gradient in zip(soft, gradients, strict=True):
                sums[receiver] += gradient.double().cpu()
            progress("gradients of edges", done * len(points) + place + 1, len(batches) * len(points))
    pairs = sum(map(len, batches))
    return {
        receiver: torch.where(among[receiver], total / (len(points) * pairs), 0) for receiver, total in sums.items()
    }


def run_edges(
    circuit: Circuit, among: EdgeMasks, edges: EdgeMasks, references: References, batches: Sequence[PairBatch]
) -> Outcome:
    """Run a circuit with some of its edges on every pair.

    Args:
        circuit: the nodes.
        among: the edges between them.
        edges: those that are kept.
        references: of the circuit's ablation.
        batches: the pairs.
    """
    found: list[PairMetrics] = []
    for batch in batches:
        with torch.no_grad():
            logits, full = _logits(circuit, among, edges, references, batch)
        found.append(measure(full, logits, batch.targets))
    return Outcome.join(found)


def _logits(
    circuit: Circuit, among: EdgeMasks, edges: SoftEdges, references: References, batch: PairBatch
) -> tuple[Tensor, Tensor]:
    """Answer logits with these edges, and the full model's."""
    subject, site_masks, reference = references.subject, circuit.site_masks(), references(batch)
    baselines = reference.baselines
    with masked(subject, site_masks, baselines), rewired(subject, among, edges, site_masks, baselines):
        return answer_logits(subject, batch.clean, batch.positions, reference.prefix), reference.full


def highest(graph: Graph, among: EdgeMasks, scores: dict[Receiver, Tensor], kept: int) -> EdgeMasks:
    """The edges with the largest scores of either sign, without those that change nothing then.

    Args:
        graph: of the model.
        among: the edges to choose from.
        scores: of every edge.
        kept: how many at most.
    """
    sizes = {receiver: scores[receiver].abs() for receiver in Receiver}
    lowest = torch.cat([sizes[receiver][among[receiver]] for receiver in Receiver]).topk(kept).values[-1]
    return graph.alive({receiver: among[receiver] & (sizes[receiver] >= lowest) for receiver in Receiver})


class _Search:
    """As few edges as keep the behaviour on validation pairs."""

    def __init__(
        self,
        graph: Graph,
        circuit: Circuit,
        among: EdgeMasks,
        train: Harness,
        validation: Harness,
        config: EdgeConfig,
        progress: Progress,
    ) -> None:
        self.graph, self.circuit, self.among, self.config, self.progress = graph, circuit, among, config, progress
        self.references, self.validation = train.references, validation
        self.batches = random.Random(config.seed).sample(train.all.batches, len(train.all.batches))
        self.target = _behaviour(validation.run(circuit, validation.all, "circuit"), validation.all)
        self.masks: EdgeMasks = among
        n = config.points
        some = self.batches[: -(-config.train_pairs // config.batch_size)]
        middles = [(i + 0.5) / n for i in range(n)]
        self.scores = edge_scores(circuit, among, self.references, some, middles, progress=progress)

    def holds(self, masks: EdgeMasks) -> bool:
        """Whether a choice of edges stays within the bound."""
        outcome = run_edges(self.circuit, self.among, masks, self.validation.references, self.validation.all.batches)
        (faithfulness, accuracy), (target, right) = _behaviour(outcome, self.validation.all), self.target
        return abs(faithfulness - target) <= self.config.max_change and accuracy >= right - self.config.max_change

    def bisect(self) -> None:
        """The smallest number of edges by the first scores, to a tenth."""
        enough, too_few, steps = count(self.among), 0, 0
        while enough - too_few > max(1, enough // 10):
            middle = round((enough * too_few) ** 0.5) if too_few else enough // 4
            middle = min(max(middle, too_few + 1), enough - 1)
            tried = highest(self.graph, self.among, self.scores, middle)
            if self.holds(tried):
                enough, self.masks = middle, tried
            else:
                too_few = middle
            steps += 1
            self.progress("numbers of edges", steps, max(steps + 1, 8))

    def narrow(self) -> None:
        """Cut a quarter of the edges, round by round, each time by scores around those that are left."""
        masks, scores = self.masks, self.scores
        each = -(-self.config.round_pairs // self.config.batch_size)
        for done in range(self.config.rounds):
            fewer = int(count(masks) * STAYS)
            if not fewer:
                break
            first = done * each % len(self.batches)
            some = (self.batches[first:] + self.batches)[:each]
            fresh = edge_scores(self.circuit, self.among, self.references, some, AROUND, kept=masks)
            scores = {receiver: (fresh[receiver] + scores[receiver]) / 2 for receiver in Receiver}
            masks = highest(self.graph, self.among, scores, fewer)
            if count(masks) and self.holds(masks):
                self.masks, self.scores = masks, scores
            self.progress("rounds", done + 1, self.config.rounds)


def _behaviour(outcome: Outcome, sample: Sample) -> tuple[float, float]:
    """Faithfulness, where it means something, and accuracy."""
    accuracy, faithfulness = outcome.mean("accuracy"), point_values(outcome, sample.anchors)["faithfulness"]
    return (accuracy if faithfulness is None else float(faithfulness)), accuracy
