"""Metrics over pairs, with 95 % bootstrap intervals over pairs.

Means are over pairs; the definitions of the per-pair values are in `objective`. Faithfulness is the ratio after
averaging, (m(C) - m(empty)) / (m(full) - m(empty)), m = logit difference.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.data.batching import PairBatch
from circuitsieve.models.hooks import blocks_recorded, resumed
from circuitsieve.models.instrument import answer_logits, masked
from circuitsieve.objective import PairMetrics, measure
from circuitsieve.search.references import Reference, References

RESAMPLES = 1000
CONFIDENCE = 0.95
MEANS = ("kl", "accuracy", "argmax_accuracy", "prob_diff", "logit_diff", "exact_match")
WHERE_NAMED = ("cutoff_sharpness",)
"""Further means, where all pairs have what they need."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """Per-pair metrics of one circuit, [pairs] each, on the CPU in float64."""

    values: dict[str, Values]

    @classmethod
    def join(cls, batches: Iterable[PairMetrics]) -> "Outcome":
        """The outcome of all batches, in their order."""
        parts = zip(*batches, strict=True)
        joined = {
            name: torch.cat(part).double().cpu().numpy() for name, part in zip(PairMetrics._fields, parts, strict=True)
        }
        return cls(joined)

    def __len__(self) -> int:
        return len(self.values["kl"])

    def mean(self, name: str) -> float:
        """The mean over pairs."""
        return float(self.values[name].mean())


@dataclass(frozen=True)
class Anchors:
    """The full and the empty circuit on the same pairs: the 1 and the 0 of faithfulness."""

    full: Outcome
    empty: Outcome

    @functools.cached_property
    def differ(self) -> bool:
        """Whether the full model's metric can be told from the empty circuit's: else there is nothing to be faithful to."""
        reachable = interval([self.full.values["metric"] - self.empty.values["metric"]], _mean, 0)
        return reachable is not None and not reachable[0] <= 0 <= reachable[1]

    @property
    def alike(self) -> str:
        """Why there is no faithfulness where they do not differ."""
        if len(self.full) < 2:
            return "telling the full model from the empty circuit takes two pairs"
        return "the full model is not distinguishable from the empty circuit on these pairs"


Begun = Mapping[PairBatch, Sequence[Any]]
"""What every block returned, batch by batch, when a circuit was run (`begin`)."""


def run_circuit(
    circuit: Circuit, references: References, batches: Sequence[PairBatch], begun: Begun | None = None, first: int = 0
) -> Outcome:
    """Run a circuit on every pair.

    Args:
        circuit: what is run.
        references: of its ablation.
        batches: the pairs.
        begun: the passes of another circuit that is the same before the layer `first`, which need not be made again.
        first: the first layer where the two differ.
    """
    subject, masks = references.subject, circuit.site_masks()

    def one(batch: PairBatch) -> PairMetrics:
        reference = references(batch)
        start = nullcontext() if begun is None else resumed(subject, begun[batch], first)
        layer = 0 if begun is None else first
        with torch.no_grad(), start, masked(subject, masks, reference.baselines, first=layer):
            logits = answer_logits(subject, batch.clean, batch.positions, reference.prefix)
        return measure(reference.full, logits, batch.targets)

    return Outcome.join(one(batch) for batch in batches)


def begin(circuit: Circuit, references: References, batches: Sequence[PairBatch]) -> Begun:
    """Run a circuit and keep what every block returns."""
    begun = {}
    for batch in batches:
        with blocks_recorded(references.subject) as outputs:
            run_circuit(circuit, references, [batch])
        begun[batch] = outputs
    return begun


def run_anchors(references: References, batches: Sequence[PairBatch]) -> Anchors:
    """The untouched model, and everything ablated, on every pair."""
    full, empty = zip(*(_anchors(references(batch), batch) for batch in batches), strict=True)
    return Anchors(full=Outcome.join(full), empty=Outcome.join(empty))


def _anchors(reference: Reference, batch: PairBatch) -> tuple[PairMetrics, PairMetrics]:
    return measure(reference.full, reference.full, batch.targets), reference.empty


@dataclass(frozen=True)
class Summary:
    """Plain numbers by metric; intervals beside them; the reason beside each null."""

    values: dict[str, Any]
    """Numbers, null, or objects of these."""
    intervals: dict[str, Any]
    reasons: dict[str, Any]

    def mean(self, name: str) -> float:
        """A value that is always known; nan if it is not."""
        value = self.values[name]
        return float("nan") if value is None else float(value)


def point_values(outcome: Outcome, anchors: Anchors) -> dict[str, int | float | None]:
    """Means, the 95th percentile of the KL and faithfulness, without their intervals."""
    values: dict[str, int | float | None] = {name: outcome.mean(name) for name in _means(outcome)}
    values["kl_p95"] = float(np.percentile(outcome.values["kl"], 95))
    values["n"] = len(outcome)
    values["faithfulness"] = float(_ratio(*_metrics(outcome, anchors))) if anchors.differ else None
    return values


def summarise(outcome: Outcome, anchors: Anchors, seed: int = 0) -> Summary:
    """The same, each with its interval."""
    values = point_values(outcome, anchors)
    intervals = {name: interval([outcome.values[name]], _mean, seed) for name in _means(outcome)}
    intervals["kl_p95"] = interval([outcome.values["kl"]], _p95, seed)
    intervals["faithfulness"] = interval(_metrics(outcome, anchors), _ratio, seed) if anchors.differ else None
    reasons = {} if anchors.differ else {"faithfulness": anchors.alike}
    if len(outcome) < 2:
        reasons["intervals"] = "an interval needs two pairs"
    elif anchors.differ and intervals["faithfulness"] is None:
        reasons["intervals"] = (
            "in some resamples the full model equals the empty circuit, so faithfulness has no interval"
        )
    return Summary(values, intervals, reasons)


def _means(outcome: Outcome) -> list[str]:
    return [*MEANS, *(name for name in WHERE_NAMED if np.isfinite(outcome.values[name]).all())]


def _metrics(outcome: Outcome, anchors: Anchors) -> tuple[Values, Values, Values]:
    """What faithfulness is the ratio of: the metric of the circuit, the full model and the empty circuit."""
    return outcome.values["metric"], anchors.full.values["metric"], anchors.empty.values["metric"]


def _ratio(circuit: Values, full: Values, empty: Values, axis: int = -1) -> Values | np.float64:
    gained: Values | np.float64 = (circuit.mean(axis) - empty.mean(axis)) / (full.mean(axis) - empty.mean(axis))
    return gained


def interval(
    samples: Sequence[Values], statistic: Callable[..., Values | np.float64], seed: int
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of a statistic of paired samples.

    None for fewer than two pairs, and where a resample has no finite value (a ratio without a denominator).
    """
    if len(samples[0]) < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        result = stats.bootstrap(
            tuple(samples),
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    low, high = (float(bound) for bound in result.confidence_interval)
    return (low, high) if np.isfinite([low, high]).all() else None


def _mean(values: Values, axis: int = -1) -> Values:
    mean: Values = values.mean(axis)
    return mean


def _p95(values: Values, axis: int = -1) -> Values:
    percentile: Values = np.percentile(values, 95, axis=axis)
    return percentile
