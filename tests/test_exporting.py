"""Exports: what networkx, a parser of DOT and a reader of MIB's files find in them is what the circuit keeps."""

import io
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.circuits.graph import EdgeCircuit, Graph
from circuitsieve.circuits.mib import importances, read_mib
from circuitsieve.circuits.nodes import NodeSpace
from circuitsieve.circuits.wholes import Wholes
from circuitsieve.cli.outputs import export as export_command
from circuitsieve.errors import ConfigError, RunError
from circuitsieve.evaluation.areas import SIZES
from circuitsieve.runs.folder import RunFolder
from circuitsieve.vocabulary import Granularity
from circuitsieve.workflow.exporting import FORMATS, dot, export_run, graph_of, graphml
from models import random_masks
from tiny_cli import call, complaint
from tiny_runs import random_found, saved

SPACE = NodeSpace(
    layers=3, heads=4, kv_heads=2, head_dim=2, neurons=5, width=6, mlp_inputs=1, biases=frozenset(), post_norm=False
)
GPT2 = replace(SPACE, layers=12, heads=12, kv_heads=12)
STRING = r'"((?:[^"\\]|\\.)*)"'


def random_circuit(seed: int, space: NodeSpace = SPACE) -> Circuit:
    """One that keeps the embedding."""
    return Circuit(space, {**random_masks(space, seed), Granularity.EMBED: torch.ones(1, 1, dtype=torch.bool)})


def random_ranking(seed: int, space: NodeSpace = SPACE, *, above: float = -torch.inf) -> Ranking:
    generator = torch.Generator().manual_seed(seed)
    searched = (Granularity.ATTN_BLOCK, Granularity.HEAD, Granularity.HEAD_DIM, Granularity.MLP_NEURON)
    scores = {g: torch.randn(space.shape(g), generator=generator) for g in searched}
    return Ranking(space, {g: score.exp() if above == 0 else score for g, score in scores.items()})


def random_edges(circuit: Circuit, seed: int, *, parallel: bool = False) -> EdgeCircuit:
    """A third of the circuit's edges, with scores of both signs."""
    graph, generator = Graph(circuit.space, parallel), torch.Generator().manual_seed(seed)
    among = graph.among(circuit.masks)
    masks = {r: mask & (torch.rand(mask.shape, generator=generator) < 0.33) for r, mask in among.items()}
    return EdgeCircuit(
        graph, masks, {r: torch.randn(mask.shape, generator=generator) * mask for r, mask in among.items()}
    )


def names_of(circuit: Circuit) -> set[str]:
    """The kept nodes, from the names of the units that are kept."""
    found = {"input", "logits"}
    for layer, granularity, index in re.findall(r"L(\d+)\.(head|mlp_neuron)\.(\d+)", "\n".join(circuit.nodes())):
        found.add(f"a{layer}.h{index}" if granularity == "head" else f"m{layer}")
    return found


def expected_edges(circuit: Circuit, edges: EdgeCircuit) -> dict[str, float]:
    """Names and scores of the kept edges, one for every head that shares keys and values."""
    names, each, found = names_of(circuit), SPACE.heads // SPACE.kv_heads, {}
    for edge in edges.graph.edges(edges.masks):
        score = float(edges.scores[edge.receiver][edge.layer, edge.place, edge.source_index])
        group = re.fullmatch(r"a(\d+)\.kv(\d+)<(.)>", edge.target)
        heads = range(each * int(group[2]), each * int(group[2]) + each) if group else ()
        targets = [f"a{group[1]}.h{head}<{group[3]}>" for head in heads] if group else [edge.target]
        found |= {f"{edge.source}->{target}": score for target in targets if target.partition("<")[0] in names}
    return found


def mib_folder(path: Path, wholes: Wholes) -> Path:
    path.mkdir()
    (path / "importances.json").write_text(json.dumps(importances(wholes), allow_nan=False))
    return path


# --- the graph ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_graph_has_the_kept_nodes_with_their_units(seed: int) -> None:
    circuit = random_circuit(seed)
    drawn = graph_of(circuit, Wholes.of(circuit, None, None))
    assert set(drawn) == names_of(circuit)
    assert drawn.number_of_edges() == 0
    units = Counter[str]()
    for layer, granularity, index in re.findall(r"L(\d+)\.(head_dim|mlp_neuron)\.(\d+)", "\n".join(circuit.nodes())):
        units[f"a{layer}.h{int(index) // 2}" if granularity == "head_dim" else f"m{layer}"] += 1
    assert {name: data["kept"] for name, data in drawn.nodes(data=True) if "kept" in data} == dict(units)
    for name, data in drawn.nodes(data=True):
        if match := re.fullmatch(r"a(\d)\.h\d|m(\d)", name):
            kind, total = ("head", SPACE.head_dim) if match[1] else ("mlp", SPACE.neurons)
            layer = int(match[1] or match[2])
            assert data == {"kind": kind, "layer": layer, "kept": units[name], "total": total}
        else:
            assert data == {"kind": name}


@pytest.mark.parametrize("seed", range(4))
def test_edges_go_to_every_kept_head_that_shares_keys(seed: int) -> None:
    circuit = random_circuit(seed)
    edges = random_edges(circuit, seed)
    drawn = graph_of(circuit, Wholes.of(circuit, None, edges))
    expected = expected_edges(circuit, edges)
    assert len(expected) > 20
    found = {}
    for source, target, data in drawn.edges(data=True):
        receiver = f"<{data['receiver']}>" if target.startswith("a") else ""
        assert receiver or data["receiver"] == ("logits" if target == "logits" else "mlp")
        found[f"{source}->{target}{receiver}"] = data["score"]
    assert found == expected
    assert {key for _, _, key in drawn.edges(keys=True)} == expected.keys()


def test_a_node_scores_the_highest_of_its_units() -> None:
    ranking = random_ranking(3)
    circuit = Circuit(SPACE, SPACE.full())
    drawn = graph_of(circuit, Wholes.of(circuit, ranking, None))
    scores = ranking.scores
    for layer in range(3):
        block = float(scores[Granularity.ATTN_BLOCK][layer, 0])
        for head in range(4):
            dims = scores[Granularity.HEAD_DIM][layer, 2 * head : 2 * head + 2].tolist()
            by_hand = max(min(block, float(scores[Granularity.HEAD][layer, head]), dim) for dim in dims)
            assert drawn.nodes[f"a{layer}.h{head}"]["score"] == by_hand
        assert drawn.nodes[f"m{layer}"]["score"] == max(scores[Granularity.MLP_NEURON][layer].tolist())
    assert "score" not in drawn.nodes["input"]


# --- formats ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with edges."""
    found = random_found()
    folder = saved(tmp_path / "run", found)
    folder.write_edges(random_edges(found.circuit, 1), {})
    return folder


@pytest.fixture
def drawn(run: RunFolder) -> nx.MultiDiGraph:
    circuit, ranking = run.read_circuit()
    found = graph_of(circuit, Wholes.of(circuit, ranking, run.read_edges()))
    parallel = [pair for pair, count in Counter(found.edges()).items() if count > 1]
    assert parallel  # edges to q, k and v of one head
    return found


def exported(run: RunFolder, kind: str) -> Path:
    out = run.path.parent / "exports" / kind
    export_run(str(run.path), out, kind)
    return out


def assert_same(found: nx.MultiDiGraph, expected: nx.MultiDiGraph) -> None:
    assert isinstance(found, nx.MultiDiGraph)
    assert dict(found.nodes(data=True)) == dict(expected.nodes(data=True))
    assert sorted(found.edges(data=True, keys=True)) == sorted(expected.edges(data=True, keys=True))


def test_graphml_is_read_back(run: RunFolder, drawn: nx.MultiDiGraph) -> None:
    found = nx.read_graphml(exported(run, "graphml"))
    for _, _, data in found.edges(data=True):
        data.pop("id", None)
    assert_same(found, drawn)
    assert found.graph["ablation"] == "corrupted"


def test_node_link_json_is_read_back(run: RunFolder, drawn: nx.MultiDiGraph) -> None:
    assert_same(nx.node_link_graph(json.loads(exported(run, "json").read_text()), edges="edges"), drawn)


def test_cytoscape_json_is_read_back(run: RunFolder, drawn: nx.MultiDiGraph) -> None:
    found = nx.cytoscape_graph(json.loads(exported(run, "cytoscape").read_text()))
    for name, data in found.nodes(data=True):
        assert [data.pop(key) for key in ("id", "name", "value")] == [name] * 3
    for source, target, key, data in found.edges(data=True, keys=True):
        assert [data.pop(name) for name in ("source", "target", "key")] == [source, target, key]
    assert_same(found, drawn)


def test_tables_have_a_row_for_each_node_and_edge(run: RunFolder, drawn: nx.MultiDiGraph) -> None:
    folder = exported(run, "csv")
    assert {path.name for path in folder.iterdir()} == {"nodes.csv", "edges.csv"}
    nodes, edges = pd.read_csv(folder / "nodes.csv"), pd.read_csv(folder / "edges.csv")
    assert list(nodes.columns) == ["node", "kind", "layer", "kept", "total", "score"]
    for row in nodes.to_dict("records"):
        known = {name: value for name, value in row.items() if name != "node" and not pd.isna(value)}
        assert known == pytest.approx(drawn.nodes[row["node"]])
    assert len(nodes) == len(drawn)
    found = {(row.source, row.target, row.receiver): row.score for row in edges.itertuples()}
    assert found == pytest.approx(
        {(source, target, data["receiver"]): data["score"] for source, target, data in drawn.edges(data=True)}
    )


def parsed_dot(text: str) -> tuple[dict[str, dict[str, str]], list[tuple[str, str, dict[str, str]]]]:
    """Nodes and edges of a DOT file whose every line is one statement."""
    first, *lines, last = text.splitlines()
    assert (first, last) == ("digraph circuit {", "}")
    nodes, edges = {}, []
    pairs = rf"(?:\w+={STRING}(?:, )?)*"
    for line in (line.strip() for line in lines[2:]):
        match = re.fullmatch(rf"{STRING}(?: -> {STRING})? \[({pairs})\];", line)
        assert match, line
        data = {name: plain(value) for name, value in re.findall(rf"(\w+)={STRING}", match[3])}
        if match[2] is None:
            nodes[plain(match[1])] = data
        else:
            edges.append((plain(match[1]), plain(match[2]), data))
    return nodes, edges


def plain(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], text)


def test_dot_has_the_nodes_and_edges(run: RunFolder, drawn: nx.MultiDiGraph) -> None:
    nodes, edges = parsed_dot(exported(run, "dot").read_text())
    assert nodes == {name: {k: str(v) for k, v in data.items()} for name, data in drawn.nodes(data=True)}
    expected = [
        (source, target, {"label": data["receiver"], **{k: str(v) for k, v in data.items()}})
        for source, target, data in drawn.edges(data=True)
    ]
    assert sorted(edges, key=str) == sorted(expected, key=str)


def test_odd_names_are_escaped() -> None:
    odd = nx.MultiDiGraph()
    names = ['a"]; "b', "back\\", "<b>&amp;", "two\nlines", "é"]
    for name in names:
        odd.add_edge("input", name, key=name, receiver=name)
    nodes, edges = parsed_dot(dot(odd))
    assert set(nodes) == {"input", *names}
    assert [(target, data["receiver"]) for _, target, data in edges] == [(name, name) for name in names]
    assert set(nx.read_graphml(io.BytesIO(graphml(odd)))) == {"input", *names}


# --- MIB ----------------------------------------------------------------------------------------------------------------


def test_gpt2_has_the_nodes_and_edges_that_mib_counts() -> None:
    circuit = random_circuit(0, GPT2)
    content = importances(Wholes.of(circuit, random_ranking(0, GPT2), None))
    assert content["cfg"] == {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": False, "d_model": 6}
    assert len(content["nodes"].keys() - {"logits"}) == 157
    assert len(content["edges"]) == 32_491
    assert {"a0.h0->m1", "input->a3.h2<q>", "m4->logits"} <= content["edges"].keys()
    assert {name for name, row in content["nodes"].items() if row["in_graph"]} == names_of(circuit)
    for name, edge in content["edges"].items():
        source, target = name.split("->")
        target = target.partition("<")[0]
        assert edge["in_graph"] == (content["nodes"][source]["in_graph"] and content["nodes"][target]["in_graph"])
        assert edge["score"] == content["nodes"][source].get("score", edge["score"])


def test_heads_feed_no_mlp_beside_them_where_they_are_parallel() -> None:
    circuit = random_circuit(0)
    names = [importances(Wholes.of(circuit, None, None, parallel=p))["edges"].keys() for p in (False, True)]
    assert names[0] - names[1] == {f"a{layer}.h{head}->m{layer}" for layer in range(3) for head in range(4)}
    assert names[1] <= names[0]


@pytest.mark.parametrize("above", [-torch.inf, 0.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_submission_cuts_to_the_same_circuits(seed: int, above: float, tmp_path: Path) -> None:
    circuit, ranking = random_circuit(seed), random_ranking(seed, above=above)
    wholes = Wholes.of(circuit, ranking, None)
    read = read_mib(mib_folder(tmp_path / "ioi_tiny", wholes), SPACE)
    assert torch.equal(read.kept, wholes.kept)
    assert torch.equal(read.scores.nan_to_num(-1), wholes.scores.nan_to_num(-1)) == (above == 0)
    for receiver, mask in wholes.edges.masks.items():
        assert torch.equal(read.edges.masks[receiver], mask)
    whole = SPACE.lifted(SPACE.lowest(ranking.scores), (Granularity.HEAD, Granularity.MLP_BLOCK))
    kept = set()
    for size in SIZES:
        expected = Ranking(SPACE, whole)
        masks = [SPACE.kept_units(r.cut(r.threshold_at(size))) for r in (expected, read.ranking)]
        for kind, mask in masks[0].items():
            assert torch.equal(mask, masks[1][kind])
        kept.add(sum(int(mask.sum()) for mask in masks[0].values()))
    assert len(kept) > 3


@pytest.mark.parametrize("seed", range(3))
def test_mib_orders_nodes_as_the_ranking_does(seed: int) -> None:
    """It sorts absolute values in single precision; they may not collide, nor be turned around."""
    close = torch.linspace(0, 1, 12).view(3, 4) * 1e-6 + 5.9999
    scores = {Granularity.HEAD: close, Granularity.MLP_BLOCK: torch.tensor([[-30.0], [-2.0], [7.0 + seed]])}
    wholes = Wholes.of(random_circuit(seed), Ranking(SPACE, scores), None)
    nodes = importances(wholes)["nodes"]
    assert {name for name, row in nodes.items() if "score" not in row} == {"input", "logits"}
    found = {name: abs(np.float32(row["score"])) for name, row in nodes.items() if "score" in row}
    exact = {f"a{layer}.h{head}": float(close[layer, head]) for layer in range(3) for head in range(4)}
    exact |= {"m0": -30.0, "m1": -2.0, "m2": 7.0 + seed}
    for one in exact:
        for other in exact:
            assert (found[one] < found[other]) == (exact[one] < exact[other])


@pytest.mark.parametrize("seed", range(3))
def test_edges_that_were_searched_are_read_back_in_their_order(seed: int, tmp_path: Path) -> None:
    circuit = random_circuit(seed)
    edges = random_edges(circuit, seed, parallel=seed == 2)
    wholes = Wholes.of(circuit, random_ranking(seed), edges)
    folder = mib_folder(tmp_path / "ioi_tiny", wholes)
    rows = json.loads((folder / "importances.json").read_text())["edges"]
    expected = expected_edges(circuit, edges)
    assert {name for name, row in rows.items() if row["in_graph"]} == expected.keys()
    assert sorted(expected, key=expected.__getitem__) == sorted(expected, key=lambda name: rows[name]["score"])
    names = names_of(circuit)
    for name, row in rows.items():
        ends = {name.split("->")[0], name.split("->")[1].partition("<")[0]}
        assert (row["score"] > 0) == (ends <= names)
    read = read_mib(folder, SPACE)
    assert {str(edge) for edge in read.graph.edges(read.edges.masks)} == expected.keys()
    assert read.graph.parallel == (seed == 2)
    again = importances(read)
    assert {name: row["score"] for name, row in again["edges"].items()} == {n: row["score"] for n, row in rows.items()}


def test_what_has_no_score_is_always_kept(tmp_path: Path) -> None:
    circuit = random_circuit(0)
    scores = {Granularity.HEAD: torch.arange(12.0).view(3, 4)}
    folder = mib_folder(tmp_path / "ioi_tiny", Wholes.of(circuit, Ranking(SPACE, scores), None))
    file = folder / "importances.json"
    content = json.loads(file.read_text())
    content["nodes"]["m1"]["score"] = None
    file.write_text(json.dumps(content).replace("null", "NaN"))  # as MIB writes it
    read = read_mib(folder, SPACE)
    assert read.scores.isnan().nonzero().flatten().tolist() == [0, 5, 10, 15]
    assert read.ranking.cut(torch.finfo().max)[Granularity.MLP_BLOCK].all()
    assert content["edges"]["m0->logits"]["score"] == content["edges"]["a2.h3->logits"]["score"] == 12


def test_without_a_ranking_the_edges_say_what_is_kept() -> None:
    content = importances(Wholes.of(random_circuit(1), None, None))
    assert not any("score" in row for row in content["nodes"].values())
    for name, row in content["edges"].items():
        assert row["score"] == content["nodes"][name.split("->")[0]]["in_graph"]


def test_damaged_submissions_are_refused(tmp_path: Path) -> None:
    folder = mib_folder(tmp_path / "ioi_tiny", Wholes.of(random_circuit(0), random_ranking(0), None))
    file = folder / "importances.json"
    text = file.read_text()

    def complaint_about(damaged: str, space: NodeSpace = SPACE) -> str:
        file.write_text(damaged)
        with pytest.raises(RunError) as caught:
            read_mib(folder, space)
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(f"{file}: ")

    assert complaint_about(text, GPT2).startswith(
        "found (3, 4, 6) layers, heads and residual dims, expected (12, 12, 6)"
    )
    assert "the edge 'm2->logit' is missing or unknown" in complaint_about(text.replace("m2->logits", "m2->logit"))
    assert "'yes' is neither true nor false" in complaint_about(
        text.replace('"in_graph": true', '"in_graph": "yes"', 1)
    )
    assert "KeyError: 'a0.h3'" in complaint_about(text.replace('"a0.h3": ', '"a0.h4": '))
    for damaged in ("", "[]", text[:-9], "[" * 100_000):
        assert complaint_about(damaged).startswith("cannot be read (")
    file.unlink()
    with pytest.raises(RunError, match="FileNotFoundError"):
        read_mib(folder, SPACE)


# --- the command --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_a_run_without_edges_is_exported_and_never_over_anything(kind: str, home: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / kind
    words = ("export", home / "run", "--format", kind, "--out", out)
    output = call(capsys, *words)
    assert (output.status, output.err) == (0, "")
    assert output.out.split() == ["Export:", str(out)]
    assert [path.name for path in out.parent.iterdir()] == [kind]
    assert out.is_dir() == (kind in ("mib", "csv"))
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    assert complaint(capsys, *words) == (
        f"{out}: found something there already, expected a new path for the export; choose another"
    )
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    assert complaint(capsys, *words[:-1], link).startswith(f"{link}: found something there already")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("kind", ["dot", "csv"])
def test_places_that_cannot_be_written_are_refused(kind: str, home: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "below"
    said = complaint(capsys, "export", home / "run", "--format", kind, "--out", out)
    assert said.startswith(f"{out}: cannot be written (")


def test_formats_of_the_command_are_those_of_the_package(run: RunFolder, tmp_path: Path) -> None:
    assert get_args(get_type_hints(export_command)["kind"]) == FORMATS
    with pytest.raises(ConfigError, match="format: found 'gexf', expected one of mib, graphml"):
        export_run(str(run.path), tmp_path / "out", "gexf")


def test_a_family_of_both_kinds_needs_edges(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", random_found())
    for family, expected in (("phi", True), ("gpt2", False)):
        folder.write_json("config.json", {"model": {"family": family}})
        export_run(str(folder.path), tmp_path / family, "mib")
        content = json.loads((tmp_path / family / "importances.json").read_text())
        assert content["cfg"]["parallel_attn_mlp"] == expected
    folder.write_json("config.json", {"model": {"family": "gpt_neox"}})
    with pytest.raises(RunError, match="run `circuitsieve edges"):
        export_run(str(folder.path), tmp_path / "out", "mib")
    folder.write_edges(random_edges(folder.read_circuit()[0], 1, parallel=True), {})
    export_run(str(folder.path), tmp_path / "out", "mib")
    assert json.loads((tmp_path / "out" / "importances.json").read_text())["cfg"]["parallel_attn_mlp"]
