"""Metrics over pairs, with 95 % bootstrap intervals over pairs.

Means are over pairs; the definitions of the per-pair values are in `objective`. Faithfulness is the ratio after
averaging, (m(C) - m(empty)) / (m(full) - m(empty)), m = logit difference.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from circuitsieve.circuit import Circuit
from circuitsieve.data import PairBatch
from circuitsieve.instrument import answer_logits, masked
from circuitsieve.objective import PairMetrics, measure
from circuitsieve.references import Reference, References

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


def run_circuit(circuit: Circuit, references: References, batches: Sequence[PairBatch]) -> Outcome:
    """Run a circuit on every pair."""

    def one(batch: PairBatch) -> PairMetrics:
        reference = references(batch)
        with torch.no_grad(), masked(references.subject, circuit.site_masks(), reference.baselines):
            logits = answer_logits(references.subject, batch.clean, batch.positions, reference.prefix)
        return measure(reference.full, logits, batch.targets)

    return Outcome.join(one(batch) for batch in batches)


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


def summarise(outcome: Outcome, anchors: Anchors, seed: int = 0) -> Summary:
    """Means, the 95th percentile of the KL and faithfulness, each with its interval."""
    means = [*MEANS, *(name for name in WHERE_NAMED if np.isfinite(outcome.values[name]).all())]
    values: dict[str, int | float | None] = {name: outcome.mean(name) for name in means}
    values["kl_p95"] = float(np.percentile(outcome.values["kl"], 95))
    values["n"] = len(outcome)
    intervals = {name: interval([outcome.values[name]], _mean, seed) for name in means}
    intervals["kl_p95"] = interval([outcome.values["kl"]], _p95, seed)
    values["faithfulness"], intervals["faithfulness"], reason = _faithfulness(outcome, anchors, seed)
    reasons = {"faithfulness": reason} if reason else {}
    if len(outcome) < 2:
        reasons["intervals"] = "an interval needs two pairs"
    elif values["faithfulness"] is not None and intervals["faithfulness"] is None:
        reasons["intervals"] = (
            "in some resamples the full model equals the empty circuit, so faithfulness has no interval"
        )
    return Summary(values, intervals, reasons)


def _faithfulness(
    outcome: Outcome, anchors: Anchors, seed: int
) -> tuple[float | None, tuple[float, float] | None, str | None]:
    circuit, full, empty = (o.values["metric"] for o in (outcome, anchors.full, anchors.empty))
    reachable = interval([full, empty], lambda f, e, axis=-1: f.mean(axis) - e.mean(axis), seed)
    if reachable is None or reachable[0] <= 0 <= reachable[1]:
        return None, None, "the full model is not distinguishable from the empty circuit on these pairs"

    def ratio(c: Values, f: Values, e: Values, axis: int = -1) -> Values | np.float64:
        gained: Values | np.float64 = (c.mean(axis) - e.mean(axis)) / (f.mean(axis) - e.mean(axis))
        return gained

    return float(ratio(circuit, full, empty)), interval([circuit, full, empty], ratio, seed), None


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
