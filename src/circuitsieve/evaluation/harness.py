"""What circuits of one search are measured with: the same pairs, the same baselines, the same anchors."""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.data.batching import PairBatch, batches, of_all_lengths
from circuitsieve.data.tokenising import Example
from circuitsieve.disk.store import Store
from circuitsieve.errors import ConfigError, DataError
from circuitsieve.evaluation.metrics import (
    Anchors,
    Begun,
    Outcome,
    Summary,
    begin,
    point_values,
    run_anchors,
    run_circuit,
    summarise,
)
from circuitsieve.models.ablations import with_counterfactuals
from circuitsieve.models.subject import Subject
from circuitsieve.search.references import References

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of the circuits are done, and how many there are."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How a circuit is evaluated."""

    random_circuits: int = 20
    """Matched random circuits to hold it against."""
    random_pairs: int = 48
    """Where many circuits are run, each runs on so many of the pairs, of all lengths alike; always the same."""
    tested_circuits: int = 100
    """Matched random circuits, and as many knock-outs, for the tests of sufficiency and necessity."""
    subsets: int = 20
    """Random parts of the circuit that completeness knocks out."""
    finer_nodes: int = 200
    """Kept head dims and neurons that minimality knocks out, besides every kept block and head."""
    null_nodes: int = 100
    """Nodes of each granularity that minimality adds to the circuit, to see what any node would do."""
    batch_size: int = 16
    seed: int = 0
    memory_gb: float = 4.0

    def __post_init__(self) -> None:
        for name in ("random_circuits", "tested_circuits", "subsets", "finer_nodes", "null_nodes", "memory_gb"):
            if not (found := getattr(self, name)) >= 0:
                raise ConfigError(f"{name}: found {found}, expected at least 0")
        for name in ("random_pairs", "batch_size"):
            if (found := getattr(self, name)) < 1:
                raise ConfigError(f"{name}: found {found}, expected at least 1")


class Sample:
    """Some of the pairs."""

    def __init__(self, references: References, batches: Sequence[PairBatch]) -> None:
        """Run nothing yet."""
        self.references, self.batches = references, batches

    @functools.cached_property
    def anchors(self) -> Anchors:
        """The full model and the empty circuit on these pairs."""
        return run_anchors(self.references, self.batches)

    def summary(self, outcome: Outcome) -> Summary:
        """What an outcome on these pairs comes to."""
        return summarise(outcome, self.anchors)


class Harness:
    """A circuit on some pairs, and others like it on the same."""

    def __init__(
        self,
        subject: Subject,
        circuit: Circuit,
        examples: Sequence[Example],
        config: EvaluationConfig,
        tick: Callable[[str], object] = lambda _: None,
    ) -> None:
        """Run nothing yet.

        Args:
            subject: the model that the circuit was found in.
            circuit: the others have its ablation and its constants.
            examples: held-out pairs.
            config: batch size, seed and memory.
            tick: called with what it is for before a circuit is run.

        Raises:
            DataError: there are no pairs.
        """
        if not examples:
            raise DataError("pairs: found none, expected at least one to judge a circuit by")
        self.subject, self.circuit, self.config, self.tick = subject, circuit, config, tick
        store = Store(int(config.memory_gb * 2**30))
        self.references = References(subject, circuit.ablation, constants=circuit.constants, store=store)
        self.examples = with_counterfactuals(examples, circuit.ablation, config.seed)
        """Every pair in its order, with the prompt that the baselines are run on as the corrupted one."""
        every = batches(self.examples, config.batch_size, device=subject.device, seed=config.seed)
        self.all = Sample(self.references, every)
        """Every pair."""
        some = of_all_lengths(self.examples, config.random_pairs, config.seed)
        few = batches(some, config.batch_size, device=subject.device, seed=config.seed)
        self.few = Sample(self.references, few if len(some) < len(self.examples) else every)
        """The pairs for many circuits."""

    def generator(self, seed: int = 0) -> torch.Generator:
        """Randomness that follows from the seed of the configuration."""
        return torch.Generator().manual_seed(self.config.seed + seed)

    def run(self, circuit: Circuit, sample: Sample, what: str, begun: Begun | None = None, first: int = 0) -> Outcome:
        """Run a circuit on some of the pairs.

        Args:
            circuit: of the same search.
            sample: `all` or `few`.
            what: it is for.
            begun: passes on these pairs of a circuit that differs only from the layer `first` on.
            first: the first layer that has to be run then.
        """
        self.tick(what)
        return run_circuit(circuit, self.references, sample.batches, begun, first)

    def begin(self) -> Begun | None:
        """The passes of the circuit on the few pairs, layer by layer, if there is room for them."""
        space, dtype = self.circuit.space, self.subject.model.dtype
        tokens = sum(batch.clean.numel() for batch in self.few.batches)
        if tokens * space.width * space.layers * dtype.itemsize > self.config.memory_gb * 2**30 / 4:
            return None
        return begin(self.circuit, self.references, self.few.batches)

    def each(self, circuits: Iterable[Circuit], what: str) -> list[Outcome]:
        """Run many circuits on the few pairs."""
        return [self.run(circuit, self.few, what) for circuit in circuits]

    def seconds_of_a_run(self) -> float:
        """How long a circuit takes on the few pairs, by a second run of one."""
        run_circuit(self.circuit, self.references, self.few.batches)
        start = time.monotonic()
        run_circuit(self.circuit, self.references, self.few.batches)
        return time.monotonic() - start

    def spread(self, outcomes: Sequence[Outcome]) -> Summary:
        """Means over circuits on the few pairs; the intervals are where 95 % of the circuits lie."""
        each = [point_values(outcome, self.few.anchors) for outcome in outcomes]
        values: dict[str, int | float | None] = {}
        intervals: dict[str, tuple[float, float] | None] = {}
        for name in each[0]:
            known = [value for one in each if (value := one[name]) is not None]
            values[name] = float(np.mean(known)) if known else None
            intervals[name] = (float(np.percentile(known, 2.5)), float(np.percentile(known, 97.5))) if known else None
        del intervals["n"]
        counts = {"n": len(outcomes[0]), "circuits": len(outcomes)}
        return Summary({**values, **counts}, intervals, self.few.summary(outcomes[0]).reasons)
