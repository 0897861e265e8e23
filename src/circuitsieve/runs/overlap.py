"""Finished runs side by side: sizes, metrics, what their circuits share and what only one of them has."""

import itertools
from collections.abc import Sequence
from typing import Any

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.likeness import jaccards
from circuitsieve.errors import RunError
from circuitsieve.runs.folder import RunFolder
from circuitsieve.vocabulary import Granularity

NAMED = (Granularity.ATTN_BLOCK, Granularity.MLP_BLOCK, Granularity.HEAD)
"""Granularities whose nodes are named."""
SECTIONS = ("test", "full", "empty", "random")
"""Of the cards."""


def compared(paths: Sequence[str]) -> dict[str, Any]:
    """What runs have in common, fit for JSON: their facts by folder, and every two of them.

    Args:
        paths: two or more run folders.

    Raises:
        RunError: there are fewer than two, one of them is no run or damaged, or their models have other nodes.
    """
    if len(paths) < 2:
        raise RunError(f"compare: found {len(paths)} runs, expected two or more")
    if len(set(paths)) < len(paths):
        raise RunError("compare: found one run twice, expected different ones")
    folders = {path: RunFolder.open(path) for path in paths}
    circuits = {path: folder.read_circuit()[0] for path, folder in folders.items()}
    first = paths[0]
    for path, circuit in circuits.items():
        if circuit.space != circuits[first].space:
            raise RunError(
                f"{path}: found the nodes {circuit.space}, expected those of {first}, {circuits[first].space}"
            )
    return {
        "runs": {path: _facts(folders[path], circuit) for path, circuit in circuits.items()},
        "overlap": [_overlap(a, b, circuits) for a, b in itertools.combinations(paths, 2)],
    }


def _facts(folder: RunFolder, circuit: Circuit) -> dict[str, Any]:
    card = folder.read_json("card.json") if folder.has("card.json") else {}
    return {
        "model": folder.look_up("config.json", "model").get("name"),
        "task": folder.look_up("config.json", "data").get("task"),
        "method": folder.look_up("config.json", "discovery", "method"),
        "seed": folder.look_up("config.json", "discovery", "seed"),
        "size": circuit.size,
        "parameters": circuit.share("parameters"),
        "kept": {str(g): kept for g, (kept, _) in circuit.counts.items()},
        "space": {name: getattr(circuit.space, name) for name in ("layers", "heads", "head_dim", "neurons")},
        "head_dims": circuit.head_dims,
        "mlp_neurons": circuit.mlp_neurons,
        **{section: card.get(section) for section in SECTIONS},
    }


def _overlap(a: str, b: str, circuits: dict[str, Circuit]) -> dict[str, Any]:
    only = [
        circuits[a].space.names({g: circuits[own].masks[g] & ~circuits[other].masks[g] for g in NAMED})
        for own, other in ((a, b), (b, a))
    ]
    return {
        "runs": [a, b],
        "jaccard": jaccards(circuits[a].masks, circuits[b].masks),
        "only": dict(zip((a, b), map(list, only), strict=True)),
    }
