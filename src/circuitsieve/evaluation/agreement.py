"""Does the circuit score as the model does, pair by pair, and has its complement anything to do with it?

Both tests are those of Shi et al. 2024. A score is the metric of a pair: the logit difference, or the difference of
probabilities.
"""

import numpy as np

from circuitsieve.evaluation.harness import Harness
from circuitsieve.evaluation.hypotheses import BAND, dependent, equal, unequal, wins
from circuitsieve.evaluation.metrics import Summary

MOST = 500
"""Pairs that the test of independence takes at most: it compares every pair with every other, a thousand times."""


def equivalence(harness: Harness) -> Summary:
    """How often the circuit scores higher than the full model: half of the time, if neither is better."""
    own = harness.run(harness.circuit, harness.all, "equivalence").values["metric"]
    full = harness.all.anchors.full.values["metric"]
    n, won = len(own), wins(own, full)
    values = {"n": n, "share": won / n, "band": BAND, "p": unequal(won, n), "p_equal": equal(won, n)}
    return Summary(values, {}, {})


def independence(harness: Harness) -> Summary:
    """Whether the scores of the complement tell anything of those of the full model."""
    complement = harness.run(harness.circuit.complement(), harness.all, "independence").values["metric"]
    full = harness.all.anchors.full.values["metric"]
    if len(full) < 2:
        return Summary({"n": len(full), "hsic": None, "p": None}, {}, {"p": "a test needs two pairs"})
    some = np.random.default_rng(harness.config.seed).permutation(len(full))[:MOST]
    criterion, p = dependent(complement[some], full[some], harness.config.seed)
    return Summary({"n": len(some), "hsic": criterion, "p": p}, {}, {})
