"""Importances as the circuit localization track of MIB takes them (Mueller et al. 2025, "MIB"), written and read back.

MIB cuts a ranking by its signed scores or by their absolute values, in single precision; ours has one order. So scores that
are not all above 0 are written as places in that order, from the lowest up, and every cut keeps the same. A node without a
score has no such key: MIB keeps it always. An edge always has one.
"""

import json
import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from circuitsieve.circuits.graph import EdgeCircuit, EdgeMasks, EdgeScores, Graph, Receiver
from circuitsieve.circuits.nodes import NodeSpace
from circuitsieve.circuits.wholes import Wholes, of_heads
from circuitsieve.disk.jsontext import text_of
from circuitsieve.errors import RunError

IMPORTANCES = "importances.json"
"""The only file of a submission's folder."""


# --- writing ------------------------------------------------------------------------------------------------------------


def importances(wholes: Wholes) -> dict[str, Any]:
    """What importances.json says of a circuit: every node and every edge of the full model, kept or not.

    Edges that were searched have their own scores; otherwise an edge has the score of its source, as a kept node keeps all
    its edges to kept nodes.
    """
    graph, space = wholes.graph, wholes.space
    scored = ~wholes.scores.isnan()
    scores = wholes.scores.masked_scatter(scored, _above_zero(wholes.scores[scored]))
    nodes = {
        graph.source_name(index): {"in_graph": kept} | ({} if math.isnan(score) else {"score": score})
        for index, (kept, score) in enumerate(zip(wholes.kept.tolist(), scores.tolist(), strict=True))
    }
    return {
        "cfg": {
            "n_layers": space.layers,
            "n_heads": space.heads,
            "parallel_attn_mlp": graph.parallel,
            "d_model": space.width,
        },
        "nodes": {**nodes, "logits": {"in_graph": True}},
        "edges": _edges(wholes, _edge_scores(wholes, scores)),
    }


def _edges(wholes: Wholes, scores: EdgeScores) -> dict[str, dict[str, float | bool]]:
    """Every edge by name."""
    values = {receiver: rows.tolist() for receiver, rows in scores.items()}
    masks = {receiver: rows.tolist() for receiver, rows in wholes.edges.masks.items()}
    found = {}
    for edge in wholes.graph.edges(wholes.graph.every()):
        score, kept = (each[edge.receiver][edge.layer][edge.place][edge.source_index] for each in (values, masks))
        found[str(edge)] = {"score": score, "in_graph": kept}
    return found


def _edge_scores(wholes: Wholes, of_nodes: Float[Tensor, " sources"]) -> dict[Receiver, Tensor]:
    """Finite scores of all edges; 0 for those that were not searched, as a node at their ends is closed."""
    graph, own = wholes.graph, wholes.edges.scores
    if not own:
        of_sources = _always_scored(of_nodes, wholes.kept)
        return {receiver: of_sources.expand(graph.shape(receiver)) for receiver in Receiver}
    scored = {receiver: mask & own[receiver].isfinite() for receiver, mask in _between(graph, wholes.kept).items()}
    values = iter(_above_zero(torch.cat([own[receiver][mask].double() for receiver, mask in scored.items()])).tolist())
    found = {receiver: torch.zeros(mask.shape, dtype=torch.float64) for receiver, mask in scored.items()}
    for receiver, mask in scored.items():
        found[receiver][mask] = torch.tensor(list(islice(values, int(mask.sum()))), dtype=torch.float64)
    return found


def _always_scored(scores: Float[Tensor, " sources"], kept: Bool[Tensor, " sources"]) -> Float[Tensor, " sources"]:
    """What has no score gets the highest one: it goes last. Where nothing has a score, what is kept has 1."""
    found = scores[~scores.isnan()]
    return scores.nan_to_num(float(found.max())) if len(found) else kept.double()


def _between(graph: Graph, kept: Bool[Tensor, " sources"]) -> dict[Receiver, Bool[Tensor, "layers receivers sources"]]:
    """The edges between kept nodes."""
    by_layer = kept[1:].view(graph.space.layers, graph.per_layer)
    heads, mlps = by_layer[:, :-1, None], by_layer[:, -1:, None]
    reads = {Receiver.Q: heads, Receiver.K: heads, Receiver.V: heads, Receiver.MLP: mlps}
    return {r: every & kept & reads[r] if r in reads else every & kept for r, every in graph.every().items()}


def _above_zero(scores: Float[Tensor, " scored"]) -> Float[Tensor, " scored"]:
    """In the same order, all above 0."""
    return scores if (scores > 0).all() else torch.from_numpy(rankdata(scores.numpy(), "dense")).double()


# --- reading ------------------------------------------------------------------------------------------------------------


def read_mib(path: Path, space: NodeSpace) -> Wholes:
    """Read a submission.

    `areas` takes the `ranking` of what is returned, and measures the CPR and CMD of a submission that ranks nodes.

    Args:
        path: its folder.
        space: of the model that it is about.

    Raises:
        RunError: there is none, it is damaged, or it is about a model of another shape.
    """
    file = path / IMPORTANCES
    try:
        content = json.loads(text_of(file))
        graph = _graph(file, content["cfg"], space)
        rows = [content["nodes"][graph.source_name(index)] for index in range(graph.sources)]
        kept = torch.tensor([_truth(row["in_graph"]) for row in rows])
        scores = torch.tensor([_number(row.get("score")) for row in rows], dtype=torch.float64)
        return Wholes(space, graph, kept, scores, EdgeCircuit(graph, *_read_edges(graph, content["edges"])))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise RunError(f"{file}: cannot be read ({problem}), expected importances as MIB takes them") from error


def _graph(file: Path, config: Mapping[str, Any], space: NodeSpace) -> Graph:
    found = tuple(config[name] for name in ("n_layers", "n_heads", "d_model"))
    expected = (space.layers, space.heads, space.width)
    if found != expected:
        raise RunError(
            f"{file}: found {found} layers, heads and residual dims, expected {expected}, those of the model; "
            "read it with the space of that one"
        )
    return of_heads(space, _truth(config["parallel_attn_mlp"]))


def _read_edges(graph: Graph, rows: Mapping[str, Mapping[str, Any]]) -> tuple[EdgeMasks, EdgeScores]:
    """Masks and scores of the edges; there must be all of them and no others."""
    masks = {receiver: torch.zeros(graph.shape(receiver), dtype=torch.bool).numpy() for receiver in Receiver}
    scores = {receiver: torch.zeros(graph.shape(receiver), dtype=torch.float64).numpy() for receiver in Receiver}
    edges = {str(edge): edge for edge in graph.edges(graph.every())}
    if odd := sorted(edges.keys() ^ rows.keys()):
        raise ValueError(f"the edge {odd[0]!r} is missing or unknown")
    for name, edge in edges.items():
        place = (edge.layer, edge.place, edge.source_index)
        masks[edge.receiver][place] = _truth(rows[name]["in_graph"])
        scores[edge.receiver][place] = _number(rows[name]["score"])
    return {r: torch.from_numpy(m) for r, m in masks.items()}, {r: torch.from_numpy(s) for r, s in scores.items()}


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _number(value: object) -> float:
    """A score; NaN where there is none."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no score")
    return float(value)
