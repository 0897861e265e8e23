"""The evaluation card: a circuit on held-out pairs, beside the full model, the empty circuit, its complement and random
circuits of the same shape.

Every named value is a plain number; null where it cannot be computed, with the reason under `reasons`; intervals lie under
`intervals` at the same path.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from circuitsieve import display
from circuitsieve.circuits.circuit import Circuit
from circuitsieve.data.tokenising import Example
from circuitsieve.evaluation.controls import matched_random
from circuitsieve.evaluation.harness import EvaluationConfig, Harness, Progress
from circuitsieve.evaluation.metrics import Summary
from circuitsieve.models.subject import Subject, fitting, frozen
from circuitsieve.search.screening import check_fit
from circuitsieve.vocabulary import Granularity
from circuitsieve.wording import METRICS, metric_rows, number

SAID = ("kl", "accuracy", "faithfulness")
"""Metrics by which a card is called."""


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        test = self.values["test"]
        said = (f"{METRICS[name][0]} {number(test[name], METRICS[name][1])}" for name in SAID if name in test)
        return f"Card({'; '.join(said)}; {test['n']} pairs)"

    def _repr_html_(self) -> str:
        """For notebooks: the metrics beside their controls and, of a full card, its verdicts."""
        rows = metric_rows(self.values)
        title = f"On {self.values['test']['n']} held-out pairs; intervals hold 95 % of bootstrap samples"
        return display.table(rows, title) + display.definitions(self.values.get("verdicts", {}))


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
        DataError: there are no pairs, or the model cannot read one.
    """
    subject = fitting(model, circuit.space)
    check_fit(subject.model, (*test, *validation))
    ticker = Ticker(progress, 2 + bool(validation) + config.random_circuits + bool(config.random_circuits))
    with frozen(model):
        before = _on_validation(Harness(subject, circuit, validation, config, ticker)) if validation else {}
        harness = Harness(subject, circuit, test, config, ticker)  # what the other kept has gone
        found, every = harness.run(circuit, harness.all, "circuit"), harness.all
        sections = {
            "test": every.summary(found),
            "full": every.summary(every.anchors.full),
            "empty": every.summary(every.anchors.empty),
            "complement": every.summary(harness.run(circuit.complement(), every, "complement")),
        }
        sections |= before
        if config.random_circuits:
            sections["random"] = random_circuits(harness, config.random_circuits)
        ticker.end()
    return Card({**_sections(sections), **_sizes(circuit)})


def _on_validation(harness: Harness) -> dict[str, Summary]:
    return {"validation": harness.all.summary(harness.run(harness.circuit, harness.all, "validation"))}


class Ticker:
    """Counts the circuits that are run."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        """Start at 0 of so many circuits."""
        self.progress, self.total, self.done = progress or (lambda *_: None), total, 0

    def __call__(self, what: str) -> None:
        """Another circuit is about to be run."""
        self.progress(what, self.done, self.total)
        self.done += 1

    def end(self) -> None:
        """All of them were."""
        self.progress("done", self.total, self.total)


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
    with frozen(model):
        harness = Harness(Subject.of(model), circuits[0], test, config)
        return [harness.all.summary(harness.run(circuit, harness.all, "circuit")) for circuit in circuits]


def random_circuits(harness: Harness, n: int) -> Summary:
    """Means over matched random circuits; the interval is where 95 % of the random circuits lie.

    Beside them: how many the circuit itself beats, and its accuracy, on the same pairs.
    """
    seeds = range(harness.config.seed, harness.config.seed + n)
    outcomes = harness.each((matched_random(harness.circuit, seed) for seed in seeds), "random circuits")
    found = harness.run(harness.circuit, harness.few, "random circuits")
    beaten = float(np.mean([outcome.mean("kl") > found.mean("kl") for outcome in outcomes]))
    spread = harness.spread(outcomes)
    beside = {"beaten": beaten, "circuit_accuracy": found.mean("accuracy")}
    return replace(spread, values={**spread.values, **beside})


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
    columns = {
        "head": circuit.masks[Granularity.HEAD].sum(1).tolist(),
        "head_dim": [sum(dims) for dims in circuit.head_dims],
        "mlp_neuron": circuit.mlp_neurons,
    }
    return [{name: int(column[layer]) for name, column in columns.items()} for layer in range(circuit.space.layers)]
