"""How alike two circuits are: the Jaccard index of their nodes, granularity by granularity, and what chance would give."""

import numpy as np
from scipy import stats

from circuitsieve.circuits.masks import BoolMasks
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Granularity

COMPARED = (Granularity.ATTN_BLOCK, Granularity.MLP_BLOCK, Granularity.HEAD, *UNIT_GRANULARITIES)


def jaccards(first: BoolMasks, second: BoolMasks) -> dict[str, dict[str, float | None]]:
    """By granularity: the share of the nodes in either circuit that are in both, and what chance would give."""
    found = {}
    for granularity in COMPARED:
        a, b = first[granularity], second[granularity]
        either = int((a | b).sum())
        found[str(granularity)] = {
            "jaccard": int((a & b).sum()) / either if either else None,
            "chance": chance(int(a.sum()), int(b.sum()), a.numel()),
        }
    return found


def chance(first: int, second: int, total: int) -> float | None:
    """The expected Jaccard index of random sets of so many of `total` nodes; None where both are empty."""
    if first + second == 0:
        return None
    both = np.arange(min(first, second) + 1)
    weights = stats.hypergeom.pmf(both, total, first, second)
    return float((weights * both / (first + second - both)).sum())
