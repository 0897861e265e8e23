"""Tests of hypotheses about circuits: what can be told from chance, and what cannot.

After Shi et al. 2024, "Hypothesis testing the circuit hypothesis in LLMs". Everything here is a pure function of numbers: how
often one thing did better than another, or the scores of two things on the same pairs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import pdist, squareform

BAND = 0.1
"""Two models are as good as each other if the chance that one beats the other lies so near to 1/2."""
SHARE = 0.9
"""A circuit is special if it beats more than this share of random ones."""
LEVEL = 0.05
"""Of significance, after the correction."""
PERMUTATIONS = 1000

Values = NDArray[np.float64]


def wins(first: Values, second: Values) -> int:
    """On how many pairs the first score is higher; ties count half, an odd one goes to the second."""
    return int((first > second).sum() + (first == second).sum() // 2)


def unequal(won: int, n: int, band: float = BAND) -> float:
    """The p-value of "the chance to win lies within `band` of 1/2"; small: one of the two is better.

    At the border of the null hypothesis a count as far from n / 2, in either direction, is as likely as it gets.
    """
    away = abs(won - n / 2)
    counts = np.arange(n + 1)
    return float(stats.binom.pmf(counts[abs(counts - n / 2) >= away], n, 0.5 + band).sum())


def equal(won: int, n: int, band: float = BAND) -> float:
    """The p-value of "the chance to win lies `band` or more from 1/2" (two one-sided tests); small: neither is better."""
    above = stats.binomtest(won, n, 0.5 - band, alternative="greater").pvalue
    below = stats.binomtest(won, n, 0.5 + band, alternative="less").pvalue
    return float(max(above, below))


def beats_most(won: int, n: int, share: float = SHARE) -> float:
    """The p-value of "it beats at most this share of the others"; small: it beats more."""
    return float(stats.binomtest(won, n, share, alternative="greater").pvalue)


def dependent(first: Values, second: Values, seed: int, permutations: int = PERMUTATIONS) -> tuple[float, float]:
    """Whether two scores of the same pairs have anything to do with each other, however bent.

    Returns:
        The Hilbert-Schmidt independence criterion, with Gaussian kernels as wide as the median distance, and the p-value of "they
        are independent" from permutations of the pairs.
    """
    kernels = [_centred(_gaussian(values)) for values in (first, second)]
    rng, n = np.random.default_rng(seed), len(first)
    found = float((kernels[0] * kernels[1]).sum() / n**2)
    orders = (rng.permutation(n) for _ in range(permutations))
    shuffled = [float((kernels[0][order][:, order] * kernels[1]).sum() / n**2) for order in orders]
    as_large = sum(value >= found for value in shuffled)
    return found, (1 + as_large) / (1 + permutations)


def corrected(p_values: Sequence[float]) -> list[float]:
    """p-values of several hypotheses, corrected so that the chance of any false rejection keeps its level (Holm)."""
    order = np.argsort(p_values, kind="stable")
    steps = len(p_values) - np.arange(len(p_values))
    raised = np.maximum.accumulate(np.asarray(p_values, float)[order] * steps).clip(max=1.0)
    found = np.empty(len(p_values))
    found[order] = raised
    return [float(p) for p in found]


def _gaussian(values: Values) -> Values:
    distances = pdist(values[:, None])
    positive = distances[distances > 0]
    if not len(positive):
        return np.ones((len(values), len(values)))
    kernel: Values = np.exp(-0.5 * squareform(distances / np.median(positive)) ** 2)
    return kernel


def _centred(kernel: Values) -> Values:
    centred: Values = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    return centred
