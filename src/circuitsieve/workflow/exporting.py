"""Circuits for other tools: a graph of whole heads and MLPs, in the formats that graph tools and MIB read.

Nodes are named as in MIB: `input`, `a3.h2`, `m3`, `logits`. What is written is new, and there as a whole or not at all.
"""

import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import networkx as nx
import pandas as pd

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.mib import IMPORTANCES, importances
from circuitsieve.circuits.wholes import Wholes
from circuitsieve.disk import files
from circuitsieve.errors import ConfigError, RunError, one_of
from circuitsieve.models.architectures import FAMILIES
from circuitsieve.runs.folder import RunFolder

FORMATS = ("mib", "graphml", "dot", "json", "cytoscape", "csv")
"""Of mib and csv, a folder is written; of the others, a file."""
_NODE_COLUMNS = ("node", "kind", "layer", "kept", "total", "score")
_EDGE_COLUMNS = ("source", "target", "receiver", "score")
_INTEGERS = dict.fromkeys(("layer", "kept", "total"), "Int64")


def export_run(path: str, out: Path, kind: str) -> None:
    """Write the circuit of a run for other tools, with its edges if they were searched.

    Args:
        path: the run folder.
        out: the new file, or the new folder.
        kind: one of `FORMATS`.

    Raises:
        RunError: the run is damaged, or there is something at `out`, or it cannot be written.
        ConfigError: there is no such format.
    """
    if kind not in FORMATS:
        raise ConfigError(one_of("format", kind, list(FORMATS)))
    folder = RunFolder.open(path)
    if os.path.lexists(out):
        raise RunError(f"{out}: found something there already, expected a new path for the export; choose another")
    circuit, ranking = folder.read_circuit()
    edges = folder.read_edges() if folder.has("edges.json") else None
    parallel = edges is None and kind == "mib" and _parallel(folder)
    _write(out, _content(kind, circuit, Wholes.of(circuit, ranking, edges, parallel=parallel)))


def graph_of(circuit: Circuit, wholes: Wholes) -> nx.MultiDiGraph:
    """The kept nodes, and the kept edges if edges were searched.

    Nodes have a kind (input, head, mlp, logits); heads and MLPs a layer and how many head dims or neurons are kept of how
    many. Edges have a receiver (q, k, v, mlp, logits), and their names (`m1->a3.h2<q>`) as keys. Scores are there where
    they are known.
    """
    drawn = nx.MultiDiGraph(ablation=str(circuit.ablation), size=circuit.size)
    scores, units = wholes.scores.tolist(), _units(circuit)
    for index in wholes.kept.nonzero().flatten().tolist():
        drawn.add_node(wholes.graph.source_name(index), **units[index], **_score(scores[index]))
    drawn.add_node("logits", kind="logits")
    values = {receiver: rows.tolist() for receiver, rows in wholes.edges.scores.items()}
    for edge in wholes.graph.edges(wholes.edges.masks) if values else ():
        value = values[edge.receiver][edge.layer][edge.place][edge.source_index]
        target = edge.target.partition("<")[0]
        drawn.add_edge(edge.source, target, key=str(edge), receiver=str(edge.receiver), **_score(value))
    return drawn


def _units(circuit: Circuit) -> list[dict[str, str | int]]:
    """What every source of the graph is, and how much of it is kept."""
    space = circuit.space
    found: list[dict[str, str | int]] = [{"kind": "input"}]
    for layer, (heads, neurons) in enumerate(zip(circuit.head_dims, circuit.mlp_neurons, strict=True)):
        found += [{"kind": "head", "layer": layer, "kept": dims, "total": space.head_dim} for dims in heads]
        found.append({"kind": "mlp", "layer": layer, "kept": neurons, "total": space.neurons})
    return found


def _score(value: float) -> dict[str, float]:
    return {"score": value} if math.isfinite(value) else {}


def _parallel(folder: RunFolder) -> bool:
    """Whether attention and MLP of a layer read the same stream, as far as the model's family tells.

    Raises:
        RunError: the family has models of both kinds, or config.json does not name it.
    """
    family = folder.look_up("config.json", "model", "family")
    if family == "gpt_neox":
        raise RunError(
            f"{folder.path}: found a gpt_neox model and no edges, expected to know whether its attention and MLPs are parallel; "
            f"run `circuitsieve edges {folder.path}` first"
        )
    return any(family in row.model_types and row.attn_norm == row.mlp_norm for row in FAMILIES)


# --- formats ------------------------------------------------------------------------------------------------------------


def _content(kind: str, circuit: Circuit, wholes: Wholes) -> bytes | dict[str, bytes]:
    """What is written: a file, or the files of a folder by name."""
    if kind == "mib":
        return {IMPORTANCES: _json(importances(wholes))}
    drawn = graph_of(circuit, wholes)
    match kind:
        case "graphml":
            return graphml(drawn)
        case "dot":
            return dot(drawn).encode()
        case "json":
            return _json(nx.node_link_data(drawn, edges="edges"))
        case "cytoscape":
            return _json(nx.cytoscape_data(drawn))
        case _:
            return {name: frame.to_csv(index=False).encode() for name, frame in tables(drawn).items()}


def graphml(drawn: nx.MultiDiGraph) -> bytes:
    """The graph as GraphML; names of edges are their ids."""
    file = io.BytesIO()
    nx.write_graphml_xml(drawn, file)
    return file.getvalue()


def dot(drawn: nx.MultiDiGraph) -> str:
    """The graph in the language of Graphviz, drawn from the input up."""
    lines = ["rankdir=BT;", "node [shape=box];"]
    lines += [f"{_quoted(node)} [{_attributes(data)}];" for node, data in drawn.nodes(data=True)]
    for source, target, data in drawn.edges(data=True):
        shown = {"label": data["receiver"], **data}
        lines.append(f"{_quoted(source)} -> {_quoted(target)} [{_attributes(shown)}];")
    return "\n".join(["digraph circuit {", *(f"  {line}" for line in lines), "}", ""])


def _attributes(data: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_quoted(value)}" for name, value in data.items())


def _quoted(value: object) -> str:
    """A string of the DOT language: of backslashes only the one before a quote has a meaning to it, but labels read all."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'


def tables(drawn: nx.MultiDiGraph) -> dict[str, pd.DataFrame]:
    """The graph as nodes.csv and edges.csv."""
    nodes = ({"node": node, **data} for node, data in drawn.nodes(data=True))
    edges = ({"source": source, "target": target, **data} for source, target, data in drawn.edges(data=True))
    return {
        "nodes.csv": _frame(nodes, _NODE_COLUMNS).astype(_INTEGERS),
        "edges.csv": _frame(edges, _EDGE_COLUMNS),
    }


def _frame(rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(columns))


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _write(out: Path, content: bytes | dict[str, bytes]) -> None:
    if isinstance(content, bytes):
        _make_parent(out)
        files.write_bytes(out, content)
        return
    with files.whole_folder(out) as temporary:
        for name, part in content.items():
            files.write_bytes(temporary / name, part)


def _make_parent(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror or error}), expected a new file") from error
