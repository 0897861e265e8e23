"""Folders that hold no run, another one, a damaged one or something else: one line on stderr, exit status 2."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from circuitsieve.runs.folder import RunFolder
from tiny import name_pairs, tiny_folder, write_jsonl
from tiny_cli import call

# --- folders of runs ----------------------------------------------------------------------------------------------------


def test_folder_that_holds_a_run_or_something_else(refused, discover, home, tmp_path):
    words = ["discover", "--model", "demo", "--task", "ioi", "--out"]
    assert refused(*words, home / "run") == (
        f"{home}/run: found a run in it; expected a new folder, or --overwrite to replace the run"
    )
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").touch()
    for overwrite in ([], ["--overwrite"]):
        assert discover(*overwrite, out="notes") == (
            f"{tmp_path}/notes: found 'mine.txt', which belongs to no run; expected a new or empty folder"
        )
    assert discover(out="notes/mine.txt").startswith(
        f"{tmp_path}/notes/mine.txt: cannot be written (File exists), expected"
    )


def test_disk_without_space(discover, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    assert discover() == f"{tmp_path}/out: found 1 MB of free space, expected at least 64 MB"


@pytest.mark.parametrize("command", ["evaluate", "show"])
def test_folder_without_a_run(refused, tmp_path, command):
    for path in (tmp_path, tmp_path / "nowhere"):
        assert refused(command, path) == (
            f"{path}: found no config.json, expected the folder of a run (made by `circuitsieve discover`)"
        )


def test_pairs_to_evaluate_on(refused, home, tmp_path):
    missing = tmp_path / "no.jsonl"
    assert refused("evaluate", home / "run", "--data", missing).startswith(
        f"{missing}: cannot be read ([Errno 2] No such"
    )
    seen = {record.pair.clean for record in RunFolder.open(home / "run").read_pairs()}
    new = [pair for pair in name_pairs(12, seed=5) if pair.clean not in seen][:2]
    same = write_jsonl(tmp_path / "same.jsonl", tuple(replace(pair, wrong_answers=pair.answers) for pair in new))
    assert refused("evaluate", home / "run", "--data", same).startswith(
        "pairs: found no usable one among 2 in the test split"
    )


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


def test_other_weights(refused, run, home, tmp_path):
    other = tiny_folder(tmp_path / "model", seed=1)
    config = (run / "config.json").read_text().replace(f"{home}/model", str(other))
    (run / "config.json").write_text(config)
    assert refused("evaluate", run) == (
        f"{run}: found other weights in the model '{other}' than those that the circuit was found in; expected the same "
        "checkpoint"
    )


@pytest.mark.parametrize("name", ["config.json", "circuit.json", "pairs.jsonl", "masks.safetensors"])
def test_damaged_runs(refused, run, name):
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) // 2])
    assert refused("evaluate", run).startswith(f"{run / name}: cannot be read (")


def test_a_damaged_card_is_shown_by_no_command_and_made_anew_by_evaluate(refused, capsys, run):
    whole = (run / "card.json").read_bytes()
    for damaged in (whole[: len(whole) // 2], b""):
        (run / "card.json").write_bytes(damaged)
        assert refused("show", run).startswith(f"{run}/card.json: cannot be read (")
        assert call(capsys, "evaluate", run).status == 0
        assert json.loads((run / "card.json").read_text())["test"] == json.loads(whole)["test"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [("config.json", {"discovery": None}), ("config.json", {"data": 3}), ("circuit.json", {"found": []})],
)
def test_a_damaged_run_is_not_gone_on_with(refused, run, home, name, damage):
    (run / name).write_text(json.dumps({**json.loads((run / name).read_text()), **damage}))
    words = ["--model", home / "model", "--task", home / "pairs.jsonl", "--steps", 3, "--batch-size", 4]
    found = refused("discover", *words, "--out", run, "--resume")
    assert found.startswith(f"{run}: found config.json or circuit.json damaged (")


def test_what_was_stopped_is_not_lost_to_words_that_are_refused(discover, home, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(home / "run", out)
    (out / "checkpoint").mkdir()
    (out / "checkpoint/state").write_text("some")
    before = sorted(out.rglob("*"))
    assert discover("--overwrite", model=tmp_path / "nowhere").startswith("model: found ")
    assert discover("--overwrite", task=tmp_path / "no.jsonl").startswith("task: found no file")
    assert sorted(out.rglob("*")) == before


def test_the_demo_is_gone_on_with_like_any_search(refused, home):
    assert refused("demo", "--resume", "--out", home / "run").startswith(f"{home}/run: found a finished run with ")
    assert refused("demo", "--resume", "--overwrite").startswith("--overwrite and --resume: found both")


@pytest.mark.parametrize(
    ("name", "key"), [("circuit.json", "kept"), ("circuit.json", "parameters"), ("card.json", "layers")]
)
def test_incomplete_runs(refused, run, name, key):
    content = json.loads((run / name).read_text())
    del content[key]
    (run / name).write_text(json.dumps(content))
    assert refused("show", run) == (
        f"{run}: found circuit.json or card.json damaged (KeyError: '{key}'), expected the files of a run"
    )


@pytest.mark.parametrize("section", ["model", "fingerprint"])
def test_config_without_the_model(refused, run, section):
    config = json.loads((run / "config.json").read_text())
    (config if section == "model" else config["model"]).pop(section)
    (run / "config.json").write_text(json.dumps(config))
    assert refused("evaluate", run).startswith(f"{run}/config.json: found no model.")


def test_other_pairs(refused, run):
    lines = (run / "pairs.jsonl").read_text().splitlines(keepends=True)
    (run / "pairs.jsonl").write_text("".join(lines[1:]))
    assert refused("evaluate", run) == (
        f"{run}: found other pairs in pairs.jsonl than those that the run was made with, expected the file as it was written; "
        "to evaluate on other pairs, give their file with --data"
    )
