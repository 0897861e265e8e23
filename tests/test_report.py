"""The report: what it says against the model and the files, and that prompts stay text."""

import base64
import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.config import DiscoveryConfig
from circuitsieve.evaluation.card import evaluate
from circuitsieve.evaluation.harness import EvaluationConfig, Harness
from circuitsieve.models.ablations import with_counterfactuals
from circuitsieve.models.lens import Lens, attention_patterns
from circuitsieve.models.subject import Subject
from circuitsieve.report.command import command
from circuitsieve.report.exhibits import PROMPTS, SIZES, exhibits
from circuitsieve.report.page import RunRecord, page
from circuitsieve.report.terminal import layer_table
from circuitsieve.runs.folder import RunFolder
from circuitsieve.vocabulary import Ablation, Granularity
from circuitsieve.workflow.judging import load_run_model, run_pairs
from tiny_cli import call, complaint
from tiny_runs import Found, saved


@pytest.fixture(scope="module")
def run(home: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder.open(shutil.copytree(home / "run", tmp_path_factory.mktemp("report") / "run"))


def record_of(run: RunFolder, **changes: Any) -> RunRecord:
    circuit, ranking = run.read_circuit()
    facts = {name: run.read_json(f"{name}.json") for name in ("config", "card")}
    facts |= {"summary": run.read_json("circuit.json"), "history": run.read_history(), "pairs": run.read_pairs()}
    return RunRecord(**{"folder": "somewhere", **facts, "circuit": circuit, "ranking": ranking, **changes})


@pytest.fixture(scope="module")
def shown(run: RunFolder) -> dict[str, Any]:
    loaded = load_run_model(run)
    ticks: list[tuple[str, int, int]] = []
    found = exhibits(loaded, *run.read_circuit(), run_pairs(run, loaded).test, lambda *tick: ticks.append(tick))
    assert [done for _, done, _ in ticks] == list(range(ticks[0][2] + 1))  # one after the other, to the end
    return found


class Page(HTMLParser):
    """The texts of a page, its elements and what their attributes ask for."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.wanted: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.wanted += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_discovery_leaves_a_report_that_needs_nothing_else(run: RunFolder):
    content = (run.path / "report.html").read_text()
    read = Page(content)
    assert all(wanted.startswith("#") for wanted in read.wanted)
    assert "@import" not in content
    said = " ".join(" ".join(read.texts).split())
    card, summary = run.read_json("card.json"), run.read_json("circuit.json")
    for fact in (f"{card['test']['kl']:.3f}", f"{summary['size']:.1%}", f"{summary['parameters']['kept']:,}"):
        assert fact in said
    assert len(content) < 3e6


def test_what_prompts_and_tokens_say_is_text(run: RunFolder, shown: dict[str, Any]):
    evil = "</script><img src=x onerror=alert(1)><b>"
    prompts = [{**shown["prompts"][0], "clean": evil, "answers": [evil]}]
    content = page(record_of(run), {**shown, "prompts": prompts, "vocabulary": {0: evil}})
    read, plain = Page(content), Page(page(record_of(run), shown))
    assert "img" not in read.tags
    assert "b" not in read.tags
    assert read.tags.count("script") == plain.tags.count("script")
    assert sum(evil in text for text in read.texts) == 2  # the prompt, and the answer below it
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', content, re.DOTALL)
    assert json.loads(data[1])["vocabulary"]["0"] == evil


def test_answers_are_those_of_the_model(run: RunFolder, shown: dict[str, Any]):
    loaded = load_run_model(run)
    test = run_pairs(run, loaded).test
    assert len(shown["prompts"]) == min(PROMPTS, len(test))
    for prompt, example in zip(shown["prompts"], test, strict=False):
        assert prompt["clean"] == example.pair.clean
        with torch.no_grad():
            said = loaded.model(torch.tensor([example.clean])).logits[0, -1].softmax(-1)
        best = said.argsort(descending=True)[: len(prompt["full"])]
        assert [answer["token"] for answer in prompt["full"]] == [loaded.tokenizer.decode([t]) for t in best]
        assert [answer["probability"] for answer in prompt["full"]] == pytest.approx(said[best].tolist(), abs=1e-4)
    assert any(prompt["circuit"] != prompt["complement"] for prompt in shown["prompts"])


def test_the_curve_has_no_size_twice_where_not_all_is_ranked(run: RunFolder):
    loaded, (circuit, ranking) = load_run_model(run), run.read_circuit()
    neurons = Ranking(ranking.space, {Granularity.MLP_NEURON: ranking.scores[Granularity.MLP_NEURON]})
    curve = exhibits(loaded, circuit, neurons, run_pairs(run, loaded).test)["curve"]
    sizes = [point["size"] for point in curve]
    units = {g: math.prod(circuit.space.shape(g)) for g in (Granularity.HEAD_DIM, Granularity.MLP_NEURON)}
    assert sizes[0] == pytest.approx(units[Granularity.HEAD_DIM] / sum(units.values()))
    assert sizes.count(sizes[0]) == 1


def test_a_circuit_that_keeps_nothing_is_shown(run: RunFolder):
    loaded, (circuit, ranking) = load_run_model(run), run.read_circuit()
    empty = Circuit(circuit.space, circuit.space.full(False), circuit.ablation, circuit.constants)
    found = exhibits(loaded, empty, ranking, run_pairs(run, loaded).test)
    assert len(found["curve"]) == len(SIZES)
    assert found["curve"][-1]["size"] > 0
    assert "<svg" in page(record_of(run, circuit=empty), found)


def test_answers_of_a_circuit_are_those_on_the_prompts_that_it_is_ablated_to(run: RunFolder):
    """With resample: another pair's clean prompt, not the pair's own corrupted one."""
    loaded, (circuit, _) = load_run_model(run), run.read_circuit()
    test = [e for e in run_pairs(run, loaded).test if len(e.clean) == len(run_pairs(run, loaded).test[0].clean)]
    empty = Circuit(circuit.space, circuit.space.full(False), Ablation.RESAMPLE)
    said = exhibits(loaded, empty, None, test)["prompts"]
    for prompt, example in zip(said, with_counterfactuals(test, Ablation.RESAMPLE), strict=False):
        with torch.no_grad():
            likely = loaded.model(torch.tensor([example.corrupted])).logits[0, -1].softmax(-1)
        expected = likely.sort(descending=True).values[: len(prompt["circuit"])]
        assert [answer["probability"] for answer in prompt["circuit"]] == pytest.approx(expected.tolist(), abs=1e-4)
    assert any(
        e.corrupted != o.corrupted for e, o in zip(test, with_counterfactuals(test, Ablation.RESAMPLE), strict=True)
    )


def test_attention_of_long_prompts_is_left_out(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    loaded, (circuit, _) = load_run_model(run), run.read_circuit()
    monkeypatch.setattr("circuitsieve.report.exhibits.LONGEST", 1)
    assert exhibits(loaded, circuit, None, run_pairs(run, loaded).test)["attention"] == []


def test_heads_and_neurons_are_those_that_are_kept(run: RunFolder, shown: dict[str, Any]):
    circuit, _ = run.read_circuit()
    heads = {(layer, head) for layer, found in shown["heads"].items() for head in found}
    assert heads == set(map(tuple, circuit.masks[Granularity.HEAD].nonzero().tolist()))
    subject = Subject.of(load_run_model(run).model)
    lens = Lens.of(subject)
    for layer, kept in enumerate(circuit.masks[Granularity.MLP_NEURON]):
        words = lens.words(lens.neurons(layer), 4)
        assert shown["neurons"][layer]["promoted"] == words.promoted[kept].tolist()
    used = {t for said in shown["neurons"].values() for row in said["promoted"] + said["demoted"] for t in row}
    assert used <= shown["vocabulary"].keys()


def test_effects_and_words_of_a_head_are_its_own(run: RunFolder):
    """Of a circuit whose kept heads are not the first of their layer, each head asked for by itself."""
    loaded = load_run_model(run)
    subject, test = Subject.of(loaded.model), run_pairs(run, loaded).test
    heads = [(layer, subject.space.heads - 1) for layer in range(subject.space.layers)]
    circuit = Circuit.from_nodes(subject.space, ["embed", *(f"L{layer}.head.{head}" for layer, head in heads)])
    found = exhibits(loaded, circuit, None, test)["heads"]
    lens, few = Lens.of(subject), Harness(subject, circuit, test, EvaluationConfig()).few.batches
    for layer, head in heads:
        own = lens.heads({layer: [head]}, few, None)[layer]
        words = lens.words(own.directions, 4)
        assert found[layer][head]["direct"] == pytest.approx(float(own.direct.mean()), abs=1e-4)
        assert found[layer][head]["promoted"][:4] == words.promoted[0].tolist()
        assert found[layer][head]["demoted"][:4] == words.demoted[0].tolist()
        assert set(words.promoted[0].tolist()) != set(words.demoted[0].tolist())


def test_the_curve_of_sizes_is_that_of_cards(run: RunFolder, shown: dict[str, Any]):
    loaded, (circuit, ranking) = load_run_model(run), run.read_circuit()
    few = Harness(Subject.of(loaded.model), circuit, run_pairs(run, loaded).test, EvaluationConfig()).few.batches
    prompts = {tuple(row[: p + 1].tolist()) for b in few for row, p in zip(b.clean, b.positions.tolist(), strict=True)}
    pairs = [example for example in run_pairs(run, loaded).test if example.clean in prompts]
    assert len(shown["curve"]) > 3
    for point in [point for point in shown["curve"] if point["size"] > 0]:
        cut = Circuit(ranking.space, ranking.cut(ranking.threshold_at(point["size"])), circuit.ablation)
        card = evaluate(loaded.model, cut, pairs, config=EvaluationConfig(random_circuits=0))
        assert cut.size == point["size"]
        assert card["test.kl"] == pytest.approx(point["kl"], rel=1e-3, abs=1e-6)
        assert card["test.accuracy"] == pytest.approx(point["accuracy"])


def test_attention_is_packed_without_loss_of_what_can_be_seen(run: RunFolder, shown: dict[str, Any]):
    loaded = load_run_model(run)
    example = run_pairs(run, loaded).test[0]
    (pattern,) = attention_patterns(Subject.of(loaded.model), [torch.tensor(example.clean)])
    first = shown["attention"][0]
    n = len(first["tokens"])
    assert first["tokens"] == [loaded.tokenizer.decode([token]) for token in example.clean]
    for name, packed in first["patterns"].items():
        layer, head = map(int, name.split("."))
        bytes_ = np.frombuffer(base64.b64decode(packed), np.uint8).reshape(n, n)
        assert bytes_ / 255 == pytest.approx(pattern[layer, head].numpy(), abs=1 / 500)


def test_the_command_makes_the_same_circuit_again(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = tmp_path / "first"
    words = "--steps 4 --batch-size 4 --size 0.5 --size-by parameters --method hard_concrete --penalty head=2 --seed 3"
    config = run.read_json("config.json")
    about = ["--model", config["model"]["name"], "--task", config["data"]["task"]]
    assert (
        call(capsys, "discover", *about, "--out", first, *words.split(), "--granularities", "head", "mlp_neuron").status
        == 0
    )
    written = command(RunFolder.open(first).read_json("config.json"))
    program, *again = shlex.split(written.replace("NEW_FOLDER", str(tmp_path / "second")))
    assert program == "circuitsieve"
    assert call(capsys, *again).status == 0
    masks = [(tmp_path / name / "masks.safetensors").read_bytes() for name in ("first", "second")]
    assert masks[0] == masks[1]
    assert (run.path / "masks.safetensors").read_bytes() != masks[0]


def test_exhibits_that_lack_something_are_damage(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    damaged = Path(shutil.copytree(run.path, tmp_path / "damaged"))
    exhibits = json.loads((damaged / "exhibits.json").read_text())
    (damaged / "exhibits.json").write_text(json.dumps({**exhibits, "prompts": [None]}))
    output = call(capsys, "evaluate", damaged)
    assert output.status == 2
    assert "damaged (LookupError: 'None' has no attribute 'clean')" in output.err.splitlines()[-1]


def test_a_run_without_a_card_has_no_report(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bare = Path(shutil.copytree(run.path, tmp_path / "bare"))
    (bare / "card.json").unlink()
    assert complaint(capsys, "report", bare) == (
        f"{bare}: found no card.json, expected an evaluated run; run `circuitsieve evaluate {bare}` first"
    )
    (bare / "history.jsonl").write_text("not a step\n")
    shutil.copy(run.path / "card.json", bare)
    assert complaint(capsys, "report", bare).startswith(f"{bare}/history.jsonl: cannot be read (")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({}, "a KL of at most 0.1 nats."),
        ({"max_kl": 0.2, "size_by": "parameters"}, "a KL of at most 0.2 nats, with as few parameters as can be."),
        ({"min_faithfulness": 0.9}, "a faithfulness of at least 0.9."),
        ({"size": 0.25, "size_by": "parameters"}, "0.25 of the parameters."),
        ({"pressure": 2.0, "method": "hard_concrete"}, "no budget, a fixed pressure of 2."),
    ],
)
def test_what_was_asked_for_is_said(
    run: RunFolder, shown: dict[str, Any], asked: dict[str, Any], sentence: str
) -> None:
    about = run.read_json("config.json") | {"discovery": DiscoveryConfig(**asked).to_dict()}
    assert sentence in " ".join(page(record_of(run, config=about), shown).split())


def results_of_tests(**p_values: float) -> dict[str, Any]:
    """What the tests of a full card say: all in the circuit's favour but those that are given."""
    values = {"equivalence": 0.5, "independence": 0.5, "sufficiency": 0.01, "necessity": 0.01, **p_values}
    return {"verdicts": {name: f"Said of {name}." for name in values}} | {
        name: {"p_corrected": p} for name, p in values.items()
    }


@pytest.mark.parametrize(
    ("changes", "word", "why"),
    [
        ({}, "Provisional", "only the quick card"),
        ({"budget_met": 0}, "Doubt", "the budget is not met"),
        ({"random.beaten": 0.5}, "Doubt", "beats only 50%"),
        ({"random.circuit_accuracy": 0.54}, "Doubt", "random circuits of its shape do the task as well"),
        ({"random.accuracy": 0.97}, "Doubt", "random circuits of its shape do the task as well (accuracy 0.97)"),
        ({"intervals.test": {"kl": [0.11, 0.3]}}, "Doubt", "beyond the 0.1 that were asked for"),
        ({"asked": 0.9, "intervals.test": {"faithfulness": [0.8, 0.91]}}, "Provisional", "only the quick card"),
        (
            {"asked": 0.9, "intervals.test": {"faithfulness": [0.8, 0.89]}},
            "Doubt",
            "further from 1 than the 0.9 asked for",
        ),
        ({"asked": 0.9, "intervals.test": {"faithfulness": [1.09, 1.2]}}, "Provisional", "only the quick card"),
        (
            {"asked": 0.9, "intervals.test": {"faithfulness": [1.11, 1.2]}},
            "Doubt",
            "further from 1 than the 0.9 asked for",
        ),
        ({"test.accuracy": 0.8}, "Doubt", "its accuracy is 0.20 below"),
        (results_of_tests(), "Trust", "nothing against it"),
        (results_of_tests(equivalence=0.01), "Doubt", "said of equivalence"),
        (results_of_tests(independence=0.01), "Doubt", "said of independence"),
        (results_of_tests(sufficiency=0.3), "Doubt", "said of sufficiency"),
        (results_of_tests(necessity=0.3), "Doubt", "said of necessity"),
    ],
)
def test_how_far_to_trust_it(run: RunFolder, shown: dict[str, Any], changes: dict[str, Any], word: str, why: str):
    card = run.read_json("card.json") | {"budget_met": 1}
    card["test"] |= {"accuracy": 1.0, "faithfulness": 0.85}
    card["intervals"]["test"] |= {"kl": [0.05, 0.2]}
    card["full"] |= {"accuracy": 1.0}
    card["random"] |= {"beaten": 1.0, "accuracy": 0.5, "circuit_accuracy": 1.0}
    config = run.read_json("config.json")
    for path, value in changes.items():
        *outer, name = path.split(".")
        (card[outer[0]] if outer else card)[name] = value
    if "asked" in changes:
        config["discovery"] |= {"max_kl": None, "min_faithfulness": changes["asked"]}
    (verdict,) = re.findall(r'<p class="verdict .*?</p>', page(record_of(run, config=config, card=card), shown))
    assert f"<strong>{word}</strong>" in verdict
    assert why in verdict


def test_the_terminal_draws_a_shade_for_every_head(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    layers = {str(i): {"head": i, "head_dim": 1, "mlp_neuron": 0} for i in range(2)} | {
        "2": {"head": 0, "head_dim": 0, "mlp_neuron": 0}
    }
    monkeypatch.setenv("COLUMNS", "120")
    Console().print(layer_table(layers, [[0, 1, 4, 5], [8, 9, 12, 16], [0, 0, 0, 0]], 16))
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert [row[:2] for row in rows] == [["0", "·░░▒"], ["1", "▒▓▓█"]]  # nothing is kept of the last


def test_runs_are_compared_node_by_node(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = RunFolder.open(shutil.copytree(run.path, tmp_path / "other"))
    circuit, ranking = run.read_circuit()
    masks = {g: mask.clone() for g, mask in circuit.masks.items()}
    kept = masks[Granularity.HEAD].nonzero().tolist()
    masks[Granularity.HEAD][kept[0][0], kept[0][1]] = False
    fewer = Circuit(circuit.space, masks, circuit.ablation, circuit.constants)
    other.write_circuit(fewer, ranking, {"load": 1.0})
    found = json.loads(call(capsys, "compare", run.path, other.path, "--json").out)
    (overlap,) = found["overlap"]
    sets = [set(c.nodes(Granularity.HEAD)) for c in (circuit, fewer)]
    assert overlap["jaccard"]["head"]["jaccard"] == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert set(overlap["only"][str(run.path)]) >= {f"L{kept[0][0]}.head.{kept[0][1]}"}
    assert overlap["only"][str(other.path)] == []
    assert found["runs"][str(other.path)]["size"] == fewer.size < circuit.size
    said = call(capsys, "compare", run.path, other.path)
    assert said.status == 0
    assert f"L{kept[0][0]}.head.{kept[0][1]}" in said.out
    assert complaint(capsys, "compare", run.path) == "compare: found 1 runs, expected two or more"
    assert complaint(capsys, "compare", run.path, run.path) == "compare: found one run twice, expected different ones"


def test_runs_of_models_of_another_shape_are_not_compared(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    smaller = Circuit(replace(run.read_circuit()[0].space, neurons=3), {})
    other = saved(tmp_path / "other", Found(smaller, None))
    assert complaint(capsys, "compare", run.path, other.path).startswith(f"{other.path}: found the nodes NodeSpace(")
