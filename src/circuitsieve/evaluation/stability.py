"""Would the same search have found the same circuit again?

The search is repeated with other seeds (of gates, noise and the order of the batches) and on bootstrap resamples of the training
pairs. Two circuits are compared by the Jaccard index of their nodes, granularity by granularity, against the index of random sets
of the same sizes.
"""

import itertools
import random
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.likeness import COMPARED, jaccards
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.tokenising import Pairs
from circuitsieve.evaluation.harness import Harness
from circuitsieve.evaluation.metrics import Summary
from circuitsieve.search.discovery import discover
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Method

RERUNS = 2
"""With other seeds, and as many on resampled pairs."""
STEPS = 150
"""Of a rerun, at most."""
BATCHES_OF_A_SEARCH = 4 * STEPS
"""About as many batches run forward take as long as a rerun: steps go back as well, and there are looks and a final cut."""


def reruns(pairs: Pairs, config: DiscoveryConfig | None) -> int:
    """How many searches there will be."""
    return 0 if _hindrance(pairs, config) else 2 * RERUNS


def _hindrance(pairs: Pairs, config: DiscoveryConfig | None) -> str | None:
    """Why the search cannot be repeated."""
    if config is None or not pairs.train or not pairs.validation:
        return "repeating the search needs its settings and its pairs"
    if config.pressure is not None and config.steps > STEPS:
        return f"a fixed pressure has closed little after the {STEPS} steps of a rerun"
    return None


def stability(harness: Harness, pairs: Pairs, config: DiscoveryConfig | None) -> Summary:
    """Repeat the search and compare what it finds; a unit of the consensus is kept by more than half of the reruns."""
    if (hindrance := _hindrance(pairs, config)) is not None:
        return Summary({"reruns": None}, {}, {"reruns": hindrance})
    assert config is not None
    seeds = [config.seed + 1 + i for i in range(RERUNS)]
    steps = min(config.steps, STEPS) if Method(config.method).learns else None
    short = config if steps is None else config.replaced(steps=steps)
    searches = [(pairs, short.replaced(seed=seed)) for seed in seeds]
    resampled = [(_resample(pairs, seed), short) for seed in seeds]
    found = []
    for some, again in (*searches, *resampled):
        harness.tick("reruns")
        found.append(discover(harness.subject.model, some, again).circuit)
    by_seed, by_pairs = found[:RERUNS], found[RERUNS:]
    agreed = consensus(found)
    summary = harness.all.summary(harness.run(agreed, harness.all, "consensus"))
    values = {
        "reruns": len(found),
        "steps": steps,
        "seeds": _compared(by_seed),
        "resamples": _compared(by_pairs),
        "with_the_circuit": _mean([jaccards(harness.circuit.masks, other.masks) for other in by_seed]),
        "sizes": {str(i): circuit.size for i, circuit in enumerate(found)},
        "consensus": {**summary.values, "size": agreed.size},
    }
    return Summary(values, {"consensus": summary.intervals}, {})


def consensus(circuits: Sequence[Circuit]) -> Circuit:
    """The units that more than half of some circuits keep."""
    first = circuits[0]
    votes = {g: torch.stack([circuit.masks[g] for circuit in circuits]).float().mean(0) for g in UNIT_GRANULARITIES}
    masks = {g: share > 0.5 for g, share in votes.items()}
    return Circuit(first.space, masks, first.ablation, first.constants)


def _compared(circuits: Sequence[Circuit]) -> dict[str, Any]:
    return _mean([jaccards(a.masks, b.masks) for a, b in itertools.combinations(circuits, 2)])


def _mean(all_of_them: Sequence[dict[str, dict[str, float | None]]]) -> dict[str, Any]:
    def mean(granularity: str, name: str) -> float | None:
        values = [value for one in all_of_them if (value := one[granularity][name]) is not None]
        return statistics.fmean(values) if values else None

    return {str(g): {name: mean(str(g), name) for name in ("jaccard", "chance")} for g in COMPARED}


def _resample(pairs: Pairs, seed: int) -> Pairs:
    """Training pairs drawn from the training pairs, as many, with replacement."""
    rng = random.Random(f"resample {seed}")
    return Pairs(tuple(rng.choices(pairs.train, k=len(pairs.train))), pairs.validation, ())
