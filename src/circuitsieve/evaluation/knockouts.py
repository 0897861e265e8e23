"""Does the circuit do it, does nothing else do it, and would any circuit of this shape do as well?

- Sufficiency: the circuit against random circuits of its shape, everything else ablated.
- Necessity: the model without the circuit against the model without as many other units. That a model fails without a circuit
  says little: without as many units at the same sites it may fail as well. So knock-outs of the circuit's shape stand beside it,
  and uniformly random ones, and the same with layer 0 left alone, which most circuits keep nearly whole.
- Completeness: what is left of the task without the circuit, and whether the circuit and the model miss parts of it alike
  (Wang et al. 2022, arXiv 2211.00593).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.evaluation.controls import anywhere, from_layer, kept, matched_random, some_of, whole, without
from circuitsieve.evaluation.harness import Harness
from circuitsieve.evaluation.hypotheses import SHARE, beats_most
from circuitsieve.evaluation.metrics import Outcome, Summary, Values, interval


def sufficiency(harness: Harness) -> Summary:
    """The circuit among random circuits of its shape, by the KL."""
    n = harness.config.tested_circuits
    own = harness.run(harness.circuit, harness.few, "sufficiency").mean("kl")
    randoms = harness.each(_matched(harness, n), "sufficiency")
    beaten = sum(outcome.mean("kl") > own for outcome in randoms)
    others = harness.spread(randoms)
    values = {
        "circuits": n,
        "beaten": beaten / n,
        "share_asked": SHARE,
        "p": beats_most(beaten, n),
        "kl": own,
        "random": others.values,
    }
    return Summary(values, {"random": others.intervals}, {})


def necessity(harness: Harness) -> Summary:
    """The model without the circuit, beside the model without other units."""
    circuit, config = harness.circuit, harness.config
    full, units, size = whole(circuit), kept(circuit), sum(int(mask.sum()) for mask in kept(circuit).values())
    own = harness.run(without(full, units), harness.few, "necessity")
    matched = [kept(random) for random in _matched(harness, config.tested_circuits)]
    uniform = [anywhere(circuit, size, harness.generator(i)) for i in range(config.random_circuits)]
    knocked = {
        "matched": harness.each((without(full, other) for other in matched), "necessity"),
        "uniform": harness.each((without(full, other) for other in uniform), "necessity"),
    }
    later = harness.run(without(full, from_layer(units, 1)), harness.few, "necessity")
    others = (without(full, from_layer(other, 1)) for other in matched[: config.random_circuits])
    knocked["later"] = harness.each(others, "necessity")
    sections = {name: harness.spread(outcomes) for name, outcomes in knocked.items()}
    less = {name: _hurt_less(outcomes, own) for name, outcomes in knocked.items()}
    less["later"] = _hurt_less(knocked["later"], later)
    alone = harness.few.summary(later)
    values = {
        **harness.few.summary(own).values,
        "p": beats_most(round(less["matched"] * len(matched)), len(matched)),
        "share_asked": SHARE,
        "matched": {**sections["matched"].values, "hurt_less": less["matched"]},
        "uniform": {**sections["uniform"].values, "hurt_less": less["uniform"]},
        "without_layer_0": {
            **alone.values,
            "matched": {**sections["later"].values, "hurt_less": less["later"]},
        },
    }
    intervals = {
        **harness.few.summary(own).intervals,
        "matched": sections["matched"].intervals,
        "uniform": sections["uniform"].intervals,
        "without_layer_0": {**alone.intervals, "matched": sections["later"].intervals},
    }
    return Summary(values, intervals, {})


def completeness(harness: Harness) -> Summary:
    """What the complement still does, and |m(C without K) - m(full without K)| for random parts K of the circuit."""
    circuit, full = harness.circuit, whole(harness.circuit)
    complement = harness.few.summary(harness.run(circuit.complement(), harness.few, "completeness"))
    generator, gaps = harness.generator(), []
    for _ in range(harness.config.subsets):
        part = some_of(kept(circuit), float(torch.rand((), generator=generator)), generator)
        ours, theirs = harness.each((without(circuit, part), without(full, part)), "completeness")
        gaps.append(ours.values["metric"] - theirs.values["metric"])
    whole_metric = abs(harness.few.anchors.full.mean("metric"))
    each = np.array([abs(gap.mean()) for gap in gaps])
    values = {
        "faithfulness": complement.values["faithfulness"],
        "subsets": len(gaps),
        "gap": float(each.mean()),
        "largest_gap": float(each.max()),
        "relative_gap": float(each.mean() / whole_metric) if whole_metric else None,
    }
    intervals = {"faithfulness": complement.intervals["faithfulness"], "gap": interval(gaps, _mean_gap, 0)}
    reasons = {} if whole_metric else {"relative_gap": "the full model's metric is 0"}
    return Summary(values, intervals, {**complement.reasons, **reasons})


def _matched(harness: Harness, n: int) -> Iterator[Circuit]:
    return (matched_random(harness.circuit, harness.config.seed + i) for i in range(n))


def _hurt_less(outcomes: Sequence[Outcome], own: Outcome) -> float:
    """The share of knock-outs that leave more of the metric than one's own."""
    return float(np.mean([outcome.mean("metric") > own.mean("metric") for outcome in outcomes]))


def _mean_gap(*gaps: Values, axis: int = -1) -> Values:
    mean: Values = np.mean([np.abs(gap.mean(axis)) for gap in gaps], axis=0)
    return mean
