"""Edges of a circuit: what their scores add up to, that few of them are enough, and what is written of them."""

import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.graph import EdgeCircuit, Graph, Receiver, count
from circuitsieve.data.loaders import TaskOptions, load_task
from circuitsieve.errors import ConfigError, RunError
from circuitsieve.evaluation.edges import EdgeConfig, edge_scores, find_edges, highest, run_edges
from circuitsieve.evaluation.harness import EvaluationConfig, Harness
from circuitsieve.models.loading import load_model
from circuitsieve.models.rewiring import graph_of
from circuitsieve.models.subject import Subject
from circuitsieve.runs.folder import RunFolder
from circuitsieve.vocabulary import Granularity
from models import random_examples, random_masks, shared
from tiny import tiny_loaded, tiny_pairs
from tiny_cli import EDGE_WORDS, call, complaint, make_wired


def harness_of(subject: Subject, seed: int) -> tuple[Harness, Graph, dict[Receiver, torch.Tensor]]:
    masks = {**random_masks(subject.space, seed), Granularity.EMBED: torch.ones(1, 1, dtype=torch.bool)}
    circuit = Circuit(subject.space, masks)
    graph = graph_of(subject)
    harness = Harness(subject, circuit, random_examples([5, 6, 7, 7]), EvaluationConfig(batch_size=2))
    return harness, graph, graph.alive(graph.among(circuit.masks))


def check_complete(circuit: Circuit, harness: Harness, among: dict[Receiver, torch.Tensor]) -> None:
    """Integrated gradients are complete: in sum they are the difference of their ends (Sundararajan et al. 2017)."""
    references, batches = harness.references, harness.all.batches
    scores = edge_scores(circuit, among, references, batches, [(i + 0.5) / 60 for i in range(60)])
    none = {receiver: torch.zeros_like(mask) for receiver, mask in among.items()}
    gain = [run_edges(circuit, among, edges, references, batches).mean("kl") for edges in (none, among)]
    assert gain[0] - gain[1] == pytest.approx(float(sum(score.sum() for score in scores.values())), rel=0.01, abs=1e-5)
    assert abs(gain[0] - gain[1]) > 1e-3
    assert all((score[~among[receiver]] == 0).all() for receiver, score in scores.items())


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi", "gpt_neox_serial"])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_add_up_to_what_all_edges_gain(family: str, seed: int) -> None:
    harness, _, among = harness_of(shared(family), seed)
    check_complete(harness.circuit, harness, among)


@pytest.mark.parametrize("kept", ["head", "mlp_block", "embed"])
def test_so_they_do_in_circuits_without_heads_or_mlps(kept: str) -> None:
    subject = shared("gpt2")
    masks = subject.space.full()
    for closed in {Granularity.HEAD, Granularity.MLP_BLOCK} - {kept}:
        masks[closed] = torch.zeros_like(masks[closed])
    graph, circuit = graph_of(subject), Circuit(subject.space, masks)
    harness = Harness(subject, circuit, random_examples([5, 6, 7, 7]), EvaluationConfig(batch_size=2))
    check_complete(circuit, harness, graph.alive(graph.among(circuit.masks)))


def test_the_largest_scores_of_either_sign_are_kept() -> None:
    _, graph, among = harness_of(shared("llama"), 0)
    generator = torch.Generator().manual_seed(0)
    scores = {receiver: torch.randn(mask.shape, generator=generator) for receiver, mask in among.items()}
    named = {
        str(edge): abs(float(scores[edge.receiver][edge.layer, edge.place, edge.source_index]))
        for edge in graph.edges(among)
    }
    largest = sorted(named, key=lambda name: -named[name])[: len(named) // 2]
    wanted = {receiver: torch.zeros_like(mask) for receiver, mask in among.items()}
    for edge in graph.edges(among):
        wanted[edge.receiver][edge.layer, edge.place, edge.source_index] = str(edge) in largest
    kept = highest(graph, among, scores, len(largest))
    assert {str(edge) for edge in graph.edges(kept)} == {str(edge) for edge in graph.edges(graph.alive(wanted))}
    assert 0 < count(kept) < len(named)


def test_fewer_edges_within_the_bound() -> None:
    """On the bundled model, which does a task: all of it as the circuit."""
    loaded = load_model("demo")
    pairs = load_task("ioi", loaded.tokenizer, TaskOptions(train=32, validation=24, test=16))
    subject = Subject.of(loaded.model)
    circuit = Circuit(subject.space, subject.space.full())
    ticks: list[str] = []
    config = EdgeConfig(max_change=0.1, points=3, train_pairs=32, validation_pairs=24, rounds=3)
    found = find_edges(loaded.model, circuit, pairs, config, lambda what, *_: ticks.append(what))
    among = graph_of(subject).every()
    assert found.edges.kept < 0.5 * found.among
    assert found.among == count(among) == found.edges.total
    assert {"gradients of edges", "numbers of edges", "rounds", "test pairs"} <= set(ticks)
    validation = Harness(subject, circuit, pairs.validation, EvaluationConfig(batch_size=8))
    outcome = run_edges(circuit, among, found.edges.masks, validation.references, validation.all.batches)
    full, empty = (
        anchor.values["logit_diff"].mean() for anchor in (validation.all.anchors.full, validation.all.anchors.empty)
    )
    faithfulness = (outcome.values["logit_diff"].mean() - empty) / (full - empty)
    assert 0.9 <= faithfulness <= 1.1
    assert found.nodes.values["faithfulness"] == pytest.approx(1)
    assert found.to_dict()["gone"] == pytest.approx(1 - found.edges.kept / found.edges.total)


def test_settings_and_circuits_that_cannot_be() -> None:
    for wrong in ({"max_change": 0.0}, {"points": 0}, {"batch_size": 0}, {"train_pairs": -1}):
        with pytest.raises(ConfigError, match="found"):
            EdgeConfig(**wrong)
    loaded = tiny_loaded()
    subject = Subject.of(loaded.model)
    blind = Circuit(subject.space, {Granularity.EMBED: torch.zeros(1, 1, dtype=torch.bool)})
    with pytest.raises(ConfigError, match="circuit: found no path from the embedding to the logits"):
        find_edges(loaded.model, blind, tiny_pairs())


# --- run folders and the command line -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wired(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with edges; tests copy it."""
    return make_wired(home, tmp_path_factory.mktemp("wired") / "run")


@pytest.fixture
def copy(wired: Path, tmp_path: Path) -> Path:
    return shutil.copytree(wired, tmp_path / "copy")


def test_what_was_found_is_written_shown_and_drawn(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edges, found = RunFolder.open(copy).read_edges(), json.loads((copy / "edges.json").read_text())["found"]
    assert found["kept"] == edges.kept <= found["among"] <= found["total"] == edges.total
    assert json.loads((copy / "card.json").read_text())["edges"] == found
    page = (copy / "report.html").read_text()
    assert f"With the {edges.kept:,} that are kept alone" in page
    drawn = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["edges"]
    assert {edge["name"] for edge in drawn} == {str(edge) for edge in edges.graph.edges(edges.masks)}
    sizes = [abs(edge["score"]) for edge in drawn]
    assert sizes == sorted(sizes, reverse=True)
    again = call(capsys, "edges", copy, *EDGE_WORDS)
    assert again.status == 0
    assert f"The full model has {edges.total:,} edges." in again.out
    said = json.loads(call(capsys, "edges", copy, *EDGE_WORDS, "--json").out)
    assert {name: said[name] for name in ("kept", "among", "total")} == {
        name: found[name] for name in ("kept", "among", "total")
    }


def test_a_new_evaluation_keeps_the_edges_on_the_card(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((copy / "card.json").read_text())["edges"]
    assert call(capsys, "evaluate", copy).status == 0
    assert json.loads((copy / "card.json").read_text())["edges"] == before


def test_edges_that_are_damaged_or_missing_are_one_line(copy: Path, home: Path) -> None:
    with pytest.raises(RunError, match=r"found no edges.json, expected a run with edges; run `circuitsieve edges"):
        RunFolder.open(home / "run").read_edges()
    path = copy / "edges.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["keep.q"]
    safetensors.torch.save_file(tensors, path, metadata={"format_version": "1"})
    with pytest.raises(RunError, match=r"keep\.q: found nothing, expected bool"):
        RunFolder.open(copy).read_edges()
    path.write_bytes(b"")
    with pytest.raises(RunError, match="cannot be read"):
        RunFolder.open(copy).read_edges()


def test_edges_of_another_circuit_are_refused(copy: Path) -> None:
    folder = RunFolder.open(copy)
    edges = folder.read_edges()
    heads, _ = edges.graph.kept(folder.read_circuit()[0].masks)
    every = edges.graph.every()
    folder.write_edges(EdgeCircuit(edges.graph, every, edges.scores), {})
    if heads.all():
        pytest.fail("the circuit of the tiny run keeps every head, so that all edges are its own")
    with pytest.raises(RunError, match="found edges of nodes that the circuit does not keep, expected its own"):
        folder.read_edges()


def test_flags_that_cannot_be(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, "edges", home / "run", "--max-change", 2).startswith("max-change: found 2.0, expected")
    assert complaint(capsys, "edges", home / "nowhere").startswith(f"{home}/nowhere: found no config.json")
