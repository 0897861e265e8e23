"""How well a circuit and its ranking recover nodes that are known."""

import numpy as np
from jaxtyping import Bool
from scipy import stats
from torch import Tensor

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.vocabulary import Granularity

Marks = dict[Granularity, Bool[Tensor, "layers n"]]
"""Nodes by granularity."""


def recovered(circuit: Circuit, ranking: Ranking, truth: Marks) -> dict[str, dict[str, float]]:
    """By granularity: precision and recall of a circuit, AUROC and average precision of its ranking.

    The score of a head is the highest of its dims. AUROC flatters where few nodes are in the circuit; average precision does not.
    Where no node is known, nothing can be found: not a number.
    """
    scores = ranking.space.lifted(ranking.space.lowest(ranking.scores), truth)
    found = {}
    for granularity, mark in truth.items():
        kept, known = circuit.masks[granularity], mark.flatten().numpy()
        both = int((kept & mark).sum())
        values = scores[granularity].flatten().double().numpy()
        found[str(granularity)] = {
            "precision": both / max(1, int(kept.sum())) if mark.any() else float("nan"),
            "recall": both / int(mark.sum()) if mark.any() else float("nan"),
            "auroc": auroc(values, known),
            "average_precision": average_precision(values, known),
        }
    return found


def auroc(scores: np.ndarray, known: np.ndarray) -> float:
    """The chance that a known node scores higher than another one; ties count half."""
    positive, negative = int(known.sum()), int((~known).sum())
    if not positive or not negative:
        return float("nan")
    ranks = stats.rankdata(scores)
    return float((ranks[known].sum() - positive * (positive + 1) / 2) / (positive * negative))


def average_precision(scores: np.ndarray, known: np.ndarray) -> float:
    """The mean over known nodes of the precision of a cut that just keeps them; what ties with them is kept, too."""
    if not known.any():
        return float("nan")
    kept = np.array([(scores >= score) for score in scores[known]])
    return float((kept[:, known].sum(1) / kept.sum(1)).mean())
