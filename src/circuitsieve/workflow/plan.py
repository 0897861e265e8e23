"""What a discovery will cost: peak memory and time, predicted from a few passes before anything is spent.

Time: a step, a reference and a validation pass are made and timed on a batch of middling length. How often each comes is known,
but for the search of the final cut, which is taken to be as long as searches are. Memory: what is there now, what a step takes
(`footprint`), and what is kept between steps.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.batching import PairBatch, batches
from circuitsieve.data.tokenising import Pairs
from circuitsieve.evaluation.harness import EvaluationConfig
from circuitsieve.models.placement import offloaded_bytes, whereabouts
from circuitsieve.models.subject import Subject, frozen, quick_attention
from circuitsieve.search.attribution import points
from circuitsieve.search.checks import Checks
from circuitsieve.search.focus import FocusPhase
from circuitsieve.search.itinerary import looked_at, order
from circuitsieve.search.phases import first_phase, next_phase
from circuitsieve.search.problem import Problem
from circuitsieve.search.selection import TYPICAL_SIZE, glimpsed
from circuitsieve.search.training import Training
from circuitsieve.vocabulary import Granularity, Method

ROUNDS = 3
"""Passes that are timed, after one that is not."""
TRIES, GLANCES = 4, 3
"""Sizes that the search for a border tries on all pairs, and at a glance, as a rule."""
LEFT = 2.0
"""The units that a focus computes, over those of its circuit: on average over its steps, measured on SmolLM2 IOI at 16 %."""


@dataclass(frozen=True)
class Plan:
    """The prediction."""

    seconds: Mapping[str, float]
    """By what they are spent on."""
    memory: Mapping[str, int]
    """Bytes, by what takes them; the peak is their sum."""
    kept: float
    """The share of the corrupted activations of training pairs that is kept between steps, in memory or in a file."""
    checkpointed: int
    """So many layers are run again in the backward pass."""
    dispatched: str | None = None
    """How much of the weights is where, if the model is dispatched over devices."""

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON, with the sums."""
        return {
            "total_seconds": sum(self.seconds.values()),
            "peak_memory_bytes": sum(self.memory.values()),
            **asdict(self),
        }


def predict(
    model: nn.Module,
    pairs: Pairs,
    config: DiscoveryConfig,
    resident: Callable[[], int],
    card: EvaluationConfig = EvaluationConfig(),
) -> Plan:
    """Predict what `discover` and the card will cost on this machine.

    Args:
        model: the model; it is left as it was.
        pairs: those of the discovery.
        config: of the discovery.
        resident: tells how many bytes the process has now.
        card: how the circuit will be evaluated.

    Raises:
        CircuitsieveError: what `discover` would raise before its first step.
    """
    with frozen(model):
        problem = Problem.of(Subject.of(model), pairs, config)
        before = resident()
        in_memory, kept = _kept_shares(problem)
        times = _Times.of(problem)
        test = batches(pairs.test, card.batch_size)
        seconds = {
            "references": times.reference * _visited(problem) + (1 - kept) * times.run * _visited_again(problem),
            "effects of single nodes": times.step * _looks(problem),
            "steps": times.step * config.ranking_steps + times.later_step * (_steps(config) - config.ranking_steps),
            "checks and final cut": times.check * _check_passes(problem),
            "card": times.check * _card_passes(problem, test, card),
        }
        memory = {
            "model, libraries and pairs": before,
            **_fetched(problem.subject),
            "what the full model says": problem.footprint.said,
            "corrupted activations, kept": int(in_memory * _lasting_activations(problem)),
            "corrupted activations, validation": _validation_bytes(problem),
            **({"matrices without what is closed": problem.footprint.narrowed} if problem.train.shrinks else {}),
            "a step": problem.footprint.step(problem.train.checkpointed),
            "card (allocators give little back before)": _card_bytes(
                problem, [*test, *problem.validation.batches], card
            ),
        }
        dispatched = whereabouts(model) if problem.subject.is_dispatched else None
    return Plan(seconds, memory, kept, problem.train.checkpointed, dispatched)


def _fetched(subject: Subject) -> dict[str, int]:
    """Bytes of offloaded weights while they are needed: those of the head and of one layer."""
    layers, head = map(offloaded_bytes, subject.architecture.blocks), offloaded_bytes(subject.architecture.unembedding)
    return {"weights that are fetched": max(layers) + head} if subject.is_offloaded else {}


@dataclass(frozen=True)
class _Times:
    """Seconds of one batch of the mean length."""

    step: float
    later_step: float
    """After the ranking."""
    run: float
    """The corrupted run."""
    reference: float
    """Corrupted run and full model."""
    check: float
    """A validation pass."""

    @classmethod
    def of(cls, problem: Problem) -> "_Times":
        batch = problem.train.batches[len(problem.train.batches) // 2]
        scale = statistics.mean(b.clean.numel() for b in problem.train.batches) / batch.clean.numel()
        anew = problem.train.references.keeping_nothing()
        with quick_attention(problem.train.subject, batch.clean.shape[1]):  # as in a step
            reference = _timed(lambda: problem.train.references.keeping_nothing()(batch))
            run = _timed(lambda: anew(batch))
        training = _unseen(problem)
        step = later = _timed(lambda: float(training.step(0, batch)["kl"]))
        focuses = Method(problem.config.method) is Method.NESTED and problem.config.ranking_steps < problem.config.steps
        if focuses and problem.train.shrinks:
            focused = _focused(problem)
            later = _timed(lambda: float(focused.step(0, batch)["kl"]))
        again = 0.0 if batch in problem.train.references else run
        circuit = problem.circuit(problem.space.full())
        judged = problem.validation.batches[len(problem.validation.batches) // 2]
        check = _timed(lambda: problem.validation.measure(circuit, [judged]))
        return cls((step - again) * scale, (later - again) * scale, run * scale, reference * scale, check)


def _unseen(problem: Problem) -> Training:
    """A training in its first phase, which starts anywhere."""
    config = problem.config
    unseen = replace(problem, config=config.replaced(ranking_looks=0) if config.ranking_steps else config)
    training = Training(unseen)
    training.begin(first_phase(unseen))
    return training


def _focused(problem: Problem) -> Training:
    """A training that focuses on the size that is asked for, or on a typical one, and computes some of the units."""
    size = problem.config.size or TYPICAL_SIZE
    training = _unseen(replace(problem, config=problem.config.replaced(size=size)))
    focus = next_phase(training.phase, lambda: training.problem)
    assert isinstance(focus, FocusPhase)
    training.begin(focus)
    generator = torch.Generator().manual_seed(0)
    left = focus.shrinking.left
    focus.shrinking.leave({g: torch.rand(units.shape, generator=generator) < LEFT * size for g, units in left.items()})
    return training


def _timed(call: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _visited(problem: Problem) -> int:
    """Different training batches that come up."""
    steps = order(problem.train.batches, problem.config)[: _steps(problem.config)]
    looks = _looks(problem) or Method(problem.config.method) is Method.ACTIVATION_DIFFERENCE
    return len({*steps, *(_looked_at(problem) if looks else ())})


def _visited_again(problem: Problem) -> int:
    """How often batches come up that had come up before."""
    return max(0, _steps(problem.config) + _looks(problem) - _visited(problem))


def _looked_at(problem: Problem) -> Sequence[PairBatch]:
    return looked_at(problem.train.batches, problem.config)


def _steps(config: DiscoveryConfig) -> int:
    return config.steps if Method(config.method).learns else 0


def _looks(problem: Problem) -> int:
    """Forward and backward passes before the first step, or instead of all."""
    config = problem.config
    each = config.ranking_looks if config.ranking_steps else 0 if Method(config.method).learns else len(points(problem))
    return each * len(_looked_at(problem))


def _check_passes(problem: Problem) -> int:
    """Batches of validation pairs that are run while a circuit is chosen."""
    config, checks = problem.config, Checks(problem)
    done = sum(checks.due(step) for step in range(config.ranking_steps, _steps(config)))
    if config.pressure is not None:
        return done * len(checks.batches) + len(problem.validation.batches)
    if config.size is not None:
        return done * len(checks.batches) + 2 * len(problem.validation.batches)
    start = _search_passes(checks.batches) if config.ranking_steps else 0
    judged = problem.validation.batches
    return done * len(checks.batches) + start + _search_passes(judged) + 2 * len(judged)  # two rankings as they are


def _search_passes(batches: Sequence[PairBatch]) -> int:
    few, _ = glimpsed(batches)
    return TRIES * len(batches) + GLANCES * len(few)


def _card_passes(problem: Problem, test: Sequence[PairBatch], card: EvaluationConfig) -> int:
    """Batches that the card runs: two anchors, circuit and complement; the first three on validation pairs; on some pairs the
    circuit and the random ones, and the anchors of these where they are not all.
    """
    pairs = sum(batch.pairs for batch in test)
    some = min(pairs, card.random_pairs)
    own_anchors = 2 if some < pairs else 0
    random = (card.random_circuits + 1 + own_anchors) * math.ceil(some / card.batch_size)
    return 4 * len(test) + 3 * len(problem.validation.batches) + random


def _card_bytes(problem: Problem, judged: Sequence[PairBatch], card: EvaluationConfig) -> int:
    """Bytes of the corrupted activations that the card keeps: of all sites, in the model's own dtype."""
    if not problem.ablation.is_run:
        return 0
    space, itemsize = problem.space, problem.subject.model.dtype.itemsize
    units = [space.shape(Granularity.HEAD_DIM), space.shape(Granularity.MLP_NEURON)]
    per_token = itemsize * sum(layers * n for layers, n in (*units, (2 * space.layers + 1, space.width)))
    return min(int(card.memory_gb * 2**30), per_token * sum(batch.clean.numel() for batch in judged))


def _lasting_activations(problem: Problem) -> int:
    """Bytes of the corrupted activations of the training pairs that come up more than once, as they are kept."""
    return problem.footprint.all_kept(rounded=problem.train.references.dtype is not None)


def _kept_shares(problem: Problem) -> tuple[float, float]:
    """The share of the corrupted activations of training pairs that has room in memory, and in memory or in a file."""
    store, needed = problem.train.references.store, _lasting_activations(problem)
    if needed == 0:
        return 1.0, 1.0
    return min(1.0, store.memory_bytes / needed), min(1.0, (store.memory_bytes + store.file_bytes) / needed)


def _validation_bytes(problem: Problem) -> int:
    """Bytes of the corrupted activations of validation pairs, in the model's own dtype."""
    train, own = problem.train.subject.model.dtype, problem.subject.model.dtype
    largest = max(batch.clean.numel() for batch in problem.train.batches)
    tokens = sum(batch.clean.numel() for batch in problem.validation.batches)
    needed = problem.footprint.baselines * tokens * own.itemsize // (largest * train.itemsize)
    return min(needed, problem.validation.references.store.memory_bytes)
