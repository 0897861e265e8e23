"""The command line from the first flag to the last table, on a tiny random model and a file of pairs."""

import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

import circuitsieve
from circuitsieve.circuits.nodes import NodeSpace
from circuitsieve.cli import app
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.loaders import split_by_hash
from circuitsieve.data.pairs import SPLITS, Pair, TaskRequest
from circuitsieve.data.sources import read_pairs
from circuitsieve.runs.folder import RunFolder
from circuitsieve.search.gates import HardConcrete
from circuitsieve.search.nested import Nested
from tiny import name_pairs, write_jsonl
from tiny_cli import Output, call, make_home, make_wired

Called = Callable[..., Output]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a file of pairs and a finished run; tests leave them as they are."""
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


@pytest.fixture
def called(capsys: pytest.CaptureFixture[str]) -> Called:
    return lambda *words: call(capsys, *words)


@pytest.fixture
def discover(home: Path, tmp_path: Path, called: Called) -> Called:
    """A short discovery into the folder `new`."""
    words = ["discover", "--model", home / "model", "--out", tmp_path / "new"]
    return lambda *more, task=home / "pairs.jsonl", steps=3: called(*words, "--task", task, "--steps", steps, *more)


def document(output: Output) -> dict:
    """The one JSON document on stdout."""
    assert output.status == 0
    return json.loads(output.out)


# --- the whole way ------------------------------------------------------------------------------------------------------


def test_discovery_leaves_a_run(home):
    run = home / "run"
    names = {
        "config.json",
        "pairs.jsonl",
        "masks.safetensors",
        "circuit.json",
        "history.jsonl",
        "card.json",
        "exhibits.json",
        "report.html",
    }
    assert {path.name for path in run.iterdir()} - {".lock"} == names
    config = json.loads((run / "config.json").read_text())
    assert DiscoveryConfig.from_dict(config["discovery"]) == DiscoveryConfig(steps=3, batch_size=4)
    assert config["model"]["name"] == str(home / "model")
    assert config["data"]["task"] == str(home / "pairs.jsonl")
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history] == [0, 1, 2]
    assert all({"seconds", "kl"} <= entry.keys() for entry in history)
    records = RunFolder.open(run).read_pairs()
    assert {record.pair.clean for record in records} == {pair.clean for pair in name_pairs(40)}
    card = json.loads((run / "card.json").read_text())
    assert card["test"]["n"] == sum(record.split == "test" for record in records)
    assert card["budget_met"] == int(json.loads((run / "circuit.json").read_text())["found"]["load"] <= 1)
    assert card["dropped_pairs"] == 0
    assert card["seconds"] > 0
    assert card["peak_memory_bytes"] > 1 << 20


def test_json_is_one_document_and_the_saved_card(discover, tmp_path):
    card = document(discover("--json"))
    saved = json.loads((tmp_path / "new/card.json").read_text())
    assert {"format_version": 1, **card} == saved


def test_the_same_words_give_the_same_circuit(home, discover, tmp_path):
    discover("--batch-size", 4)
    for name in ("masks.safetensors", "circuit.json", "pairs.jsonl"):
        assert (tmp_path / "new" / name).read_bytes() == (home / "run" / name).read_bytes()


def test_show_prints_tables_nodes_or_json(called, home):
    tables = called("show", home / "run")
    assert tables.status == 0
    summary = json.loads((home / "run/circuit.json").read_text())
    card = json.loads((home / "run/card.json").read_text())
    for shown in ("What the circuit keeps", f"{summary['parameters']['kept']:,}", "Where it lies", "held-out pairs"):
        assert shown in tables.out
    assert tables.err == ""
    assert document(called("show", home / "run", "--json")) == {"circuit": summary, "card": card}
    nodes = called("show", home / "run", "--nodes")
    assert nodes.out.splitlines() == summary["nodes"]
    space = NodeSpace(**{**summary["space"], "biases": frozenset(summary["space"]["biases"])})
    assert [str(space.parse(name)) for name in nodes.out.splitlines()] == summary["nodes"]


def test_evaluating_again_gives_the_same_card(called, run):
    before = json.loads((run / "card.json").read_text())
    (run / "card.json").unlink()
    card = document(called("evaluate", run, "--json"))
    measured = {"seconds", "peak_memory_bytes", "reasons", "format_version"}
    assert {k: v for k, v in card.items() if k not in measured} == {
        k: v for k, v in before.items() if k not in measured
    }
    assert card["seconds"] is card["peak_memory_bytes"] is None
    assert {"seconds", "peak_memory_bytes"} <= card["reasons"].keys()
    assert json.loads((run / "card.json").read_text()) == {"format_version": 1, **card}


def test_evaluating_on_other_pairs_leaves_the_card_as_it_is(called, run, tmp_path):
    before = (run / "card.json").read_bytes()
    seen = {record.pair.clean for record in RunFolder.open(run).read_pairs()}
    new = tuple(pair for pair in name_pairs(20, seed=5) if pair.clean not in seen)
    good, bad = new[:6], new[6:8]
    spoiled = tuple(type(pair)(pair.clean, "short", pair.answers, pair.wrong_answers) for pair in bad)
    output = called("evaluate", run, "--data", write_jsonl(tmp_path / "other.jsonl", good + spoiled), "--json")
    card = document(output)
    assert (card["test"]["n"], card["dropped_pairs"]) == (6, 2)
    assert "warning: dropped 2 pairs: clean and corrupted prompts do not align word by word in tokens\n" in output.err
    assert (run / "card.json").read_bytes() == before


def test_other_pairs_are_asked_in_the_form_of_the_run(called, home, tmp_path):
    model = Path(shutil.copytree(home / "model", tmp_path / "model"))
    (model / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}gave ")
    words = ["--model", model, "--task", home / "pairs.jsonl", "--chat", "some {prompt} later ", "--steps", 3]
    assert called("discover", *words, "--out", tmp_path / "told").status == 0
    own = json.loads((tmp_path / "told/card.json").read_text())
    output = called("evaluate", tmp_path / "told", "--data", home / "pairs.jsonl", "--json")
    card = document(output)
    dropped = 40 - own["test"]["n"]
    assert f"dropped {dropped} pairs: the circuit was searched or chosen with their clean prompts" in output.err
    assert card["test"]["n"] == own["test"]["n"] > 5
    assert card["test"]["kl"] == pytest.approx(own["test"]["kl"], rel=1e-4)


def test_other_pairs_may_call_their_columns_otherwise(called, run, tmp_path):
    rows = [(p.clean, p.corrupted, p.answers[0], p.wrong_answers[0]) for p in name_pairs(60, seed=5)[40:]]
    with (tmp_path / "other.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("good", "bad", "answers", "wrong_answers"), *rows])
    words = ["evaluate", run, "--data", tmp_path / "other.csv"]
    refused = called(*words)
    assert refused.status == 2
    assert "--column" in refused.err
    card = document(called(*words, "--column", "clean=good", "corrupted=bad", "--json"))
    assert card["test"]["n"] == 20
    assert "--column: found columns without --data" in called("evaluate", run, "--column", "clean=good").err


def test_edges_of_the_run_are_on_its_own_card_alone(called, home, tmp_path):
    run = make_wired(home, tmp_path / "wired")
    other = write_jsonl(tmp_path / "other.jsonl", name_pairs(60, seed=5)[40:])
    assert "edges" not in document(called("evaluate", run, "--data", other, "--json"))
    assert document(called("evaluate", run, "--json"))["edges"]["test"]["n"] > 5


def test_names_of_nodes_as_json(called, run):
    lines = called("show", run, "--nodes").out.splitlines()
    assert document(called("show", run, "--nodes", "--json")) == {"nodes": lines}


def test_run_is_replaced_when_asked(discover, tmp_path):
    discover("--ablation", "mean")
    assert (tmp_path / "new/baselines.safetensors").exists()
    output = discover("--overwrite")
    assert output.status == 0
    assert not (tmp_path / "new/baselines.safetensors").exists()
    assert json.loads((tmp_path / "new/circuit.json").read_text())["ablation"] == "corrupted"


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["mean", "mean_positional", "zero", "resample"])
def test_every_ablation_goes_the_whole_way(called, discover, tmp_path, ablation):
    first = document(discover("--ablation", ablation, "--json"))
    again = document(called("evaluate", tmp_path / "new", "--json"))
    assert again["test"] == pytest.approx(first["test"])


def test_nested_masks_go_the_whole_way(called, discover, tmp_path):
    first = document(discover("--method", "nested", "--ranking-share", 0.4, "--json", steps=10))
    again = document(called("evaluate", tmp_path / "new", "--json"))
    assert again["test"] == pytest.approx(first["test"])
    history = [json.loads(line) for line in (tmp_path / "new/history.jsonl").read_text().splitlines()]
    assert all(0 < entry["drawn_size"] <= 1 for entry in history)
    assert ["smoothed_kl" in entry for entry in history] == [False] * 4 + [True] * 6


def test_flags_come_on_top_of_a_file(discover, tmp_path):
    (tmp_path / "settings.json").write_text(
        '{"granularities": ["head", "mlp_neuron"], "lr": 0.5, "pressure": 1, "method": "hard_concrete"}'
    )
    output = discover("--config", tmp_path / "settings.json", "--lr", 0.25, "--penalty", "head=2", "mlp_neuron=0.5")
    assert output.status == 0
    config = DiscoveryConfig.from_dict(json.loads((tmp_path / "new/config.json").read_text())["discovery"])
    assert config == DiscoveryConfig(
        method="hard_concrete",
        granularities=("head", "mlp_neuron"),
        lr=0.25,
        pressure=1.0,
        steps=3,
        penalty={"head": 2.0, "mlp_neuron": 0.5},
    )
    card = json.loads((tmp_path / "new/card.json").read_text())
    assert card["budget_met"] is None
    assert "fixed pressure" in card["reasons"]["budget_met"]


def test_paths_are_printed_as_they_are(called, home, tmp_path):
    strange = tmp_path / "[/bold] run"
    words = ["--model", home / "model", "--task", home / "pairs.jsonl", "--out", strange, "--steps", 1]
    output = called("discover", *words)
    assert output.status == 0
    assert f"Run folder: {strange}\n" in output.out
    output = called("report", strange)
    assert output.status == 0
    assert f"Report: {strange}/report.html\n" in output.out


# --- warnings -----------------------------------------------------------------------------------------------------------


def test_model_that_cannot_do_the_task_is_a_warning(discover, tmp_path):
    output = discover(task=write_jsonl(tmp_path / "many.jsonl", name_pairs(200)))
    assert output.status == 0
    assert "the model hardly does this task, so a circuit for it will mean little\n" in output.err


def test_strict_budget_gives_a_large_circuit(discover, tmp_path):
    (tmp_path / "settings.json").write_text('{"method": "hard_concrete", "init": [-5, -4], "max_kl": 1e-6}')
    card = document(discover("--config", tmp_path / "settings.json", "--json"))
    assert card["budget_met"] == 1
    assert card["size"] > 0.5


def test_only_correct_counts_what_it_drops(discover, tmp_path):
    card = document(discover("--only-correct", "--json"))
    records = RunFolder.open(tmp_path / "new").read_pairs()
    wrong = [record for record in records if record.dropped == "the full model gets it wrong"]
    assert card["full"]["accuracy"] == 1
    assert card["dropped_pairs"] == len(wrong) > 0
    assert len(records) == 40


# --- interrupts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drawing", "draws", "done"),
    [(Nested, 2, 0), (Nested, 8, 2), (HardConcrete, 2, 6)],
    ids=["looks", "ranking", "gates"],
)
def test_interrupted_search_leaves_a_run_to_evaluate(called, discover, tmp_path, monkeypatch, drawing, draws, done):
    """Two batches are looked at three times; of ten steps the first four rank."""
    draw, calls = drawing.draw, itertools.count()

    def interrupted(self: object, *words: object, **others: object) -> object:
        if next(calls) == draws:
            raise KeyboardInterrupt
        return draw(self, *words, **others)

    monkeypatch.setattr(drawing, "draw", interrupted)
    output = discover("--method", "hard_concrete", "--ranking-share", 0.4, steps=10)
    assert output.status == 130
    assert (
        f"interrupted after {done} of 10 steps; the circuit so far lies in {tmp_path}/new: evaluate it with"
        in output.err
    )
    assert len((tmp_path / "new/history.jsonl").read_text().splitlines()) == done
    assert not (tmp_path / "new/card.json").exists()
    assert "Not evaluated yet" in called("show", tmp_path / "new").out
    assert document(called("evaluate", tmp_path / "new", "--json"))["test"]["kl"] >= 0
    assert "held-out pairs" in called("show", tmp_path / "new").out


def test_interrupt_before_the_search_leaves_no_run(discover, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("circuitsieve.workflow.finding.load_task", interrupted)
    output = discover()
    assert (output.status, output.out, output.err) == (130, "", "circuitsieve: interrupted\n")
    assert {path.name for path in (tmp_path / "new").iterdir()} <= {".lock"}


def test_disk_that_fills_up_is_one_line(discover, tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        output = discover()
    assert output.status == 2
    assert re.fullmatch(
        rf"circuitsieve: {re.escape(str(tmp_path))}/new/checkpoint/\d+-\w+\.safetensors: "
        r"cannot be written \(No space left on device\)",
        output.err.splitlines()[-1],
    )
    assert discover().status == 0


# --- help and imports ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", "discover", "evaluate", "show", "tasks", "check", "data check", "demo"])
def test_help(called, command):
    output = called(*command.split(), "--help")
    assert (output.status, output.err) == (0, "")
    assert "Usage: circuitsieve" in output.out
    if command == "discover":
        flags = {"--" + item.name.replace("_", "-") for item in fields(DiscoveryConfig)}
        assert {flag for flag in flags if flag not in output.out} == set()
        words = " ".join(output.out.replace("│", " ").split())
        for split in SPLITS:
            assert f"[default: {getattr(TaskRequest, split)} of a task, all of a file]" in words


def test_tasks_are_listed(called):
    known = document(called("tasks", "--json"))
    assert known["ioi"]["options"].keys() == {"corruption", "split_names", "split_templates", "sentences"}
    assert all(name in called("tasks").out for name in known)


def test_data_check_shows_what_is_dropped_and_how_words_align(called, home, tmp_path):
    crooked = Pair("When Mary went to", "When Mary and John went", (" the",), (" store",))
    path = write_jsonl(tmp_path / "pairs.jsonl", (*name_pairs(30), crooked))
    output = called("data", "check", path, "--model", home / "model")
    assert output.status == 0
    reason = "clean and corrupted prompts do not align word by word in tokens"
    assert "dropped: clean and corrupted prompts" in output.out
    assert re.search(r"full model: accuracy [01]\.\d{3} on clean prompts, [01]\.\d{3} on corrupted ones", output.out)
    assert "0 and 1 tokens" in output.out
    checked = document(called("data", "check", path, "--model", home / "model", "--json"))
    assert sum(checked["usable"].values()) == 30
    assert checked["dropped"] == {reason: 1}
    (dropped,) = (pair for pair in checked["pairs"] if pair["reason"] is not None)
    assert dropped["words"] == [
        [["When"], ["When"]], [["Mary"], ["Mary"]], [["went"], ["and"]], [["to"], ["John"]], [[], ["went"]]
    ]  # fmt: skip


def test_data_check_of_too_few_for_three_splits(called, home, tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", name_pairs(5))
    output = called("data", "check", path, "--model", home / "model")
    assert output.status == 1
    assert "accuracy" in output.out
    assert output.err.endswith(
        f"circuitsieve: {path}: found no usable pair in the train split, expected some in each; give more pairs, or a file "
        "for each split\n"
    )


def test_data_check_of_nothing_usable(called, home, tmp_path):
    path = write_jsonl(tmp_path / "pairs.jsonl", (Pair("When Mary", "When", (" went",), (" to",)),))
    output = called("data", "check", path, "--model", home / "model")
    assert output.status == 1
    assert "accuracy" not in output.out


def test_columns_of_other_names_go_the_whole_way(discover, tmp_path):
    rows = [f'"{p.clean}","{p.corrupted}",{p.answers[0]},{p.wrong_answers[0]}' for p in name_pairs(30)]
    (tmp_path / "pairs.csv").write_text("\n".join(["prompt,other,target,foil", *rows]))
    columns = ["clean=prompt", "corrupted=other", "answers=target", "wrong_answers=foil"]
    assert discover("--column", *columns, task=tmp_path / "pairs.csv").status == 0
    about = json.loads((tmp_path / "new/config.json").read_text())["data"]
    assert about["columns"]["clean"] == "prompt"
    assert sum(about["usable"].values()) == 30


def test_run_is_evaluated_from_another_folder_and_on_a_named_device(called, home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    words = ["discover", "--model", "model", "--task", "pairs.jsonl", "--out", tmp_path / "new", "--steps", 3]
    assert called(*words).status == 0
    monkeypatch.chdir(tmp_path)
    assert called("evaluate", "new", "--device", "cpu").status == 0
    output = called("evaluate", "new", "--device", "abacus")
    assert (output.status, output.out) == (2, "")
    assert output.err.startswith("circuitsieve: device: found 'abacus', which this machine does not offer (")


def test_check_needs_no_prompts(called, home):
    checks = document(called("check", home / "model", "--json"))["checks"]
    assert checks
    assert all(check["passed"] for check in checks)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("code", ["", "try: app.main(['discover', '--help'])\nexcept SystemExit: pass"])
def test_help_loads_neither_torch_nor_transformers(code):
    heavy = "{'torch', 'transformers', 'numpy', 'scipy'} & set(sys.modules)"
    assert python(f"import sys\nfrom circuitsieve.cli import app\n{code}\nprint({heavy})") == "set()"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["show", "run"], ["show", "run", "--nodes"], ["compare", "run", "same"]])
def test_what_only_reads_runs_does_not_load_transformers(home, tmp_path, words):
    """It takes longer to load than they take."""
    shutil.copytree(home / "run", tmp_path / "same")
    places = {"run": str(home / "run"), "same": str(tmp_path / "same")}
    words = [places.get(word, word) for word in words]
    code = f"from circuitsieve.cli import app\ntry: app.main({words})\nexcept SystemExit as end: assert not end.code"
    assert python(f"import sys\n{code}\nprint({{'transformers'}} & set(sys.modules))") == "set()"


@pytest.mark.slow
def test_real_process_prints_one_document_and_no_noise(home, tmp_path):
    words = f"discover --model {home}/model --task {home}/pairs.jsonl --out {tmp_path}/new --steps 2 --json".split()
    done = subprocess.run([sys.executable, "-m", "circuitsieve", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["test"]["n"] > 0
    ours = re.compile(
        r"\d+ training, \d+ validation|warning: the full model's|step \d+ of \d+, |look |discover |evaluate |report "
    )
    assert [line for line in done.stderr.splitlines() if not ours.match(line)] == []


def test_public_names_are_exactly_those():
    assert sorted(circuitsieve.__all__) == dir(circuitsieve)
    documented = set(
        re.findall(r"^::: circuitsieve\.(\w+)$", (Path(__file__).parents[1] / "docs/api.md").read_text(), re.MULTILINE)
    )
    assert documented - {"frames", "figures"} == set(circuitsieve.__all__)  # these are modules
    assert all(getattr(circuitsieve, name).__name__ == name for name in circuitsieve.__all__)
    with pytest.raises(AttributeError, match="module 'circuitsieve' has no attribute 'discovered'"):
        circuitsieve.discovered  # noqa: B018


def test_splits_of_the_run_are_those_of_the_file(home):
    records = RunFolder.open(home / "run").read_pairs()
    by_hash = {name: getattr(split_by_hash(read_pairs(home / "pairs.jsonl")), name) for name in SPLITS}
    assert {(r.pair.clean, r.split) for r in records} == {(p.clean, s) for s, pairs in by_hash.items() for p in pairs}


def test_the_program_is_called_circuitsieve():
    assert app.app.name == ("circuitsieve",)


# --- what it will cost --------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(discover, tmp_path, called, home):
    dry = document(discover("--dry-run", "--json"))
    planned = document(
        called("plan", "--model", home / "model", "--task", home / "pairs.jsonl", "--steps", 3, "--json")
    )
    for found in (dry, planned):
        assert found["total_seconds"] == pytest.approx(sum(found["seconds"].values()))
        assert found["total_seconds"] > 0
        assert found["peak_memory_bytes"] == sum(found["memory"].values()) > 1 << 20
        assert found["kept"] == 1
    assert dry["memory"].keys() == planned["memory"].keys()
    assert not (tmp_path / "new").exists()
    table = discover("--dry-run")
    assert table.status == 0
    assert "in all, about" in table.out
