"""The evaluation card: a circuit on held-out pairs, beside the full model, the empty circuit, its complement and random
circuits of the same shape.

Every named value is a plain number; null where it cannot be computed, with the reason under `reasons`; intervals lie under
`intervals` at the same path.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from circuitsieve.ablations import with_counterfactuals
from circuitsieve.circuit import Circuit
from circuitsieve.data import Example, PairBatch, batches
from circuitsieve.errors import ModelError
from circuitsieve.evaluation.controls import matched_random
from circuitsieve.evaluation.metrics import Summary, run_anchors, run_circuit, summarise
from circuitsieve.references import References
from circuitsieve.screening import check_fit
from circuitsieve.store import Store
from circuitsieve.subject import Subject, frozen
from circuitsieve.vocabulary import Granularity, SiteKind

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of the circuits are done, and how many there are."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How a circuit is evaluated."""

    random_circuits: int = 20
    """Matched random circuits to hold it against."""
    random_pairs: int = 48
    """On so many of the pairs, in batches spread over all lengths; all circuits on the same."""
    batch_size: int = 16
    seed: int = 0
    memory_gb: float = 4.0


@dataclass(frozen=True)
class Card:
    """Nested plain numbers; `intervals` and `reasons` mirror their paths."""

    values: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, path: str) -> Any:
        """The value at a path such as `test.kl`."""
        value: Any = self.values
        for part in path.split("."):
            value = value[part]
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)


def evaluate(
    model: nn.Module,
    circuit: Circuit,
    test: Sequence[Example],
    *,
    validation: Sequence[Example] = (),
    config: EvaluationConfig = EvaluationConfig(),
    progress: Progress | None = None,
) -> Card:
    """Evaluate a circuit on held-out pairs.

    Args:
        model: the model that the circuit was found in; it is left as it was.
        circuit: the circuit.
        test: held-out pairs.
        validation: the pairs that chose the circuit, for comparison.
        config: how many controls, on how many pairs.
        progress: called after every circuit.

    Returns:
        The card. KL in nats; sizes as fractions.

    Raises:
        UnsupportedModel: the model's family is not supported.
        ModelError: the circuit is one of a model with other nodes.
        DataError: the model cannot read a pair.
    """
    subject = Subject.of(model)
    if subject.space != circuit.space:
        raise ModelError(f"model: found the nodes {subject.space}, expected those of the circuit, {circuit.space}")
    check_fit(subject.model, (*test, *validation))
    report = progress or (lambda *_: None)
    total = 3 + bool(validation) + config.random_circuits
    with frozen(model):
        store = Store(int(config.memory_gb * 2**30))
        references = References(subject, circuit.ablation, constants=circuit.constants, store=store)
        bench = _bench(references, test, config)
        report("full and empty", 0, total)
        anchors = run_anchors(references, bench)
        report("circuit", 1, total)
        found = run_circuit(circuit, references, bench)
        report("complement", 2, total)
        complement = run_circuit(circuit.complement(), references, bench)
        sections = {
            "test": summarise(found, anchors),
            "full": summarise(anchors.full, anchors),
            "empty": summarise(anchors.empty, anchors),
            "complement": summarise(complement, anchors),
        }
        if validation:
            report("validation", 3, total)
            sections["validation"] = _validation(circuit, references, validation, config)
        if config.random_circuits:
            first = total - config.random_circuits
            sections["random"] = _random(
                circuit, references, bench, config, lambda done: report("random circuits", first + done, total)
            )
        report("done", total, total)
    return Card({**_sections(sections), **_sizes(circuit)})


def measure_circuits(
    model: nn.Module,
    circuits: Sequence[Circuit],
    test: Sequence[Example],
    config: EvaluationConfig = EvaluationConfig(),
) -> list[Summary]:
    """Several circuits of one search on the same held-out pairs, without controls.

    Args:
        model: the model that they were found in; it is left as it was.
        circuits: of one ablation, with the same constants.
        test: held-out pairs.
        config: batch size, seed and memory.
    """
    subject, first = Subject.of(model), circuits[0]
    with frozen(model):
        store = Store(int(config.memory_gb * 2**30))
        references = References(subject, first.ablation, constants=first.constants, store=store)
        bench = _bench(references, test, config)
        anchors = run_anchors(references, bench)
        return [summarise(run_circuit(circuit, references, bench), anchors) for circuit in circuits]


def _bench(references: References, examples: Sequence[Example], config: EvaluationConfig) -> list[PairBatch]:
    prepared = with_counterfactuals(examples, references.ablation, config.seed)
    return batches(prepared, config.batch_size, device=references.subject.device, seed=config.seed)


def _spread(bench: Sequence[PairBatch], n: int) -> list[PairBatch]:
    """At most n batches, evenly spaced: batches are ordered by length."""
    return [bench[i * len(bench) // n] for i in range(n)] if n < len(bench) else list(bench)


def _validation(
    circuit: Circuit, references: References, validation: Sequence[Example], config: EvaluationConfig
) -> Summary:
    bench = _bench(references, validation, config)
    return summarise(run_circuit(circuit, references, bench), run_anchors(references, bench))


def _random(
    circuit: Circuit,
    references: References,
    bench: Sequence[PairBatch],
    config: EvaluationConfig,
    report: Callable[[int], object],
) -> Summary:
    """Means over matched random circuits; the interval is where 95 % of the random circuits lie."""
    chosen = _spread(bench, max(1, config.random_pairs // config.batch_size))
    randoms = []
    for i in range(config.random_circuits):
        report(i)
        randoms.append(run_circuit(matched_random(circuit, config.seed + i), references, chosen))
    found, anchors = run_circuit(circuit, references, chosen), run_anchors(references, chosen)
    each = [summarise(outcome, anchors) for outcome in randoms]
    values: dict[str, int | float | None] = {}
    intervals: dict[str, tuple[float, float] | None] = {}
    for name in each[0].values:
        known = [value for summary in each if (value := summary.values[name]) is not None]
        values[name] = float(np.mean(known)) if known else None
        intervals[name] = (float(np.percentile(known, 2.5)), float(np.percentile(known, 97.5))) if known else None
    del intervals["n"]
    values["circuits"] = len(randoms)
    values["beaten"] = float(np.mean([outcome.mean("kl") > found.mean("kl") for outcome in randoms]))
    return Summary(values, intervals, each[0].reasons)


def _sections(sections: Mapping[str, Summary]) -> dict[str, Any]:
    reasons = {name: summary.reasons for name, summary in sections.items() if summary.reasons}
    return {
        **{name: summary.values for name, summary in sections.items()},
        "intervals": {name: summary.intervals for name, summary in sections.items()},
        "reasons": reasons,
    }


def _sizes(circuit: Circuit) -> dict[str, Any]:
    kept, total = circuit.parameters
    return {
        "kept": {str(g): {"kept": k, "total": n} for g, (k, n) in circuit.counts.items()},
        "size": circuit.size,
        "parameters": {"kept": kept, "total": total},
        "layers": {str(layer): row for layer, row in enumerate(kept_by_layer(circuit))},
    }


def kept_by_layer(circuit: Circuit) -> list[dict[str, int]]:
    """Kept heads, head dims and MLP neurons of every layer."""
    units = circuit.space.kept_units(circuit.masks)
    columns = {
        "head": circuit.masks[Granularity.HEAD].sum(1).tolist(),
        "head_dim": units[SiteKind.ATTN_READ].sum(1).tolist(),
        "mlp_neuron": units[SiteKind.MLP_READ].sum(1).tolist(),
    }
    return [{name: int(column[layer]) for name, column in columns.items()} for layer in range(circuit.space.layers)]
