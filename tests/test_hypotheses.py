"""Tests of hypotheses on cases whose answer is known, and against other ways to compute them."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from circuitsieve.evaluation.hypotheses import beats_most, corrected, dependent, equal, unequal, wins


def binomial(n: int, won: int, p: float) -> float:
    return math.comb(n, won) * p**won * (1 - p) ** (n - won)


def test_ties_count_half():
    ones, mixed = np.ones(7), np.array([0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0])
    assert wins(ones, ones) == 3
    assert wins(ones, mixed) == 2 + 1
    assert wins(mixed, ones) == 2 + 1


@pytest.mark.parametrize(("won", "n"), [(0, 10), (3, 10), (5, 10), (6, 11), (11, 11)])
def test_p_values_are_sums_of_binomial_terms(won: int, n: int):
    far = [k for k in range(n + 1) if abs(k - n / 2) >= abs(won - n / 2)]
    assert unequal(won, n, 0.1) == pytest.approx(sum(binomial(n, k, 0.6) for k in far))
    at_least = sum(binomial(n, k, 0.4) for k in range(won, n + 1))
    at_most = sum(binomial(n, k, 0.6) for k in range(won + 1))
    assert equal(won, n, 0.1) == pytest.approx(max(at_least, at_most))
    assert beats_most(won, n, 0.9) == pytest.approx(sum(binomial(n, k, 0.9) for k in range(won, n + 1)))


def test_not_rejected_is_no_evidence():
    """Of ten pairs neither hypothesis can be rejected, of a thousand one of the two."""
    assert unequal(5, 10) > 0.05
    assert equal(5, 10) > 0.05
    assert unequal(500, 1000) > 0.05
    assert equal(500, 1000) < 1e-6
    assert unequal(700, 1000) < 1e-6
    assert equal(700, 1000) > 0.05


@pytest.mark.parametrize("share", [0.4, 0.5, 0.6])
def test_the_level_is_kept_within_the_null_hypothesis(share: float):
    n = 200
    chance = sum(binomial(n, won, share) for won in range(n + 1) if unequal(won, n) < 0.05)
    assert chance <= 0.05 + 1e-9


def test_dependence_is_found_also_where_it_is_bent_and_not_where_there_is_none():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=120), rng.normal(size=120)
    assert abs(np.corrcoef(x, x**2 - 1)[0, 1]) < 0.25
    assert dependent(x, x**2 + 0.3 * noise, seed=1)[1] < 0.01
    assert dependent(x, 3 * x + noise, seed=1)[1] < 0.01
    p_values = [dependent(rng.normal(size=40), rng.normal(size=40), seed=i, permutations=99)[1] for i in range(100)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert dependent(x, np.ones(120), seed=0)[1] == 1.0


def test_the_criterion_is_that_of_its_definition():
    """E[k l] + E[k] E[l] - 2 E[E[k] E[l]] over all pairs of examples, one by one."""
    x, y = np.array([0.0, 1.0, 3.0, 3.5]), np.array([2.0, 2.0, 0.0, -1.0])

    def kernel(values: np.ndarray) -> list[list[float]]:
        apart = [abs(a - b) for a, b in itertools.combinations(values, 2) if a != b]
        return [[math.exp(-0.5 * ((a - b) / np.median(apart)) ** 2) for b in values] for a in values]

    k, m, n = kernel(x), kernel(y), len(x)
    both = sum(k[i][j] * m[i][j] for i in range(n) for j in range(n)) / n**2
    apart = sum(map(sum, k)) * sum(map(sum, m)) / n**4
    cross = sum(sum(k[i]) * sum(m[i]) for i in range(n)) / n**3
    assert dependent(x, y, seed=0, permutations=9)[0] == pytest.approx(both + apart - 2 * cross)


def test_holm_by_hand_and_by_its_guarantee():
    assert corrected([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert corrected([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert corrected([]) == []
    rng = np.random.default_rng(0)
    false = [min(corrected(list(rng.uniform(size=20)))) < 0.05 for _ in range(2000)]
    assert np.mean(false) < 0.065
