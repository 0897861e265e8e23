"""Runs that are stopped from outside: by a kill at any moment, by SIGTERM, by another run in the same folder."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import name_pairs, tiny_folder, write_jsonl
from tiny_cli import call, complaint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("inputs")
    tiny_folder(home / "model")
    write_jsonl(home / "pairs.jsonl", name_pairs(40))
    said = f"discover --model {home}/model --task {home}/pairs.jsonl --steps 90 --early-stopping off --batch-size 5"
    return said.split()


def start(words: list[str], out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "circuitsieve", *words, "--out", str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> str:
    out, said = process.communicate(timeout=250)
    assert process.returncode == 0, said
    return out


def steps_kept(out: Path) -> int:
    return max((int(path.name.split("-")[0]) for path in (out / "checkpoint").glob("[0-9]*")), default=-1)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not ready():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    finish(start(words, out))
    return out


def test_a_run_that_is_killed_at_several_moments_ends_with_the_same_bytes(
    words: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "killed"
    for steps in (0, 50):
        process = start(words, out, "--resume")
        wait_until(lambda steps=steps: steps_kept(out) >= steps, process)  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (out / "masks.safetensors").exists()
    finish(start(words, out, "--resume"))
    assert not (out / "checkpoint").exists()
    for name in ("masks.safetensors", "pairs.jsonl", "circuit.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    timed = [(path / "card.json").read_text() for path in (whole, out)]
    first, second = ({k: v for k, v in json.loads(t).items() if k not in TIMED} for t in timed)
    assert first == second
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "Run folder" in call(capsys, *words, "--out", out, "--resume").out  # nothing is done again
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    other = complaint(capsys, *words, "--out", out, "--resume", "--seed", "1")
    assert "finished run with discovery seed 0" in other
    wider = complaint(capsys, *words, "--out", out, "--resume", "--dtype", "bfloat16")
    assert "finished run with model dtype 'float32', expected 'bfloat16'" in wider


TIMED = ("seconds", "peak_memory_bytes")


def test_sigterm_saves_what_was_found_and_the_run_goes_on(
    words: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ended"
    process = start(words, out)
    wait_until(lambda: steps_kept(out) >= 50, process)
    process.send_signal(signal.SIGSTOP)
    assert "found a run in progress" in complaint(capsys, *words, "--out", out, "--resume")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert (out / "masks.safetensors").exists()
    assert "--resume" in complaint(capsys, *words, "--out", out)
    finish(start(words, out, "--resume"))
    assert (out / "masks.safetensors").read_bytes() == (whole / "masks.safetensors").read_bytes()


def test_a_run_repeated_from_its_folder_is_the_same_and_a_changed_one_is_not(whole: Path) -> None:
    def rerun() -> tuple[int, dict[str, object]]:
        command = [sys.executable, "-m", "circuitsieve", "rerun", str(whole), "--json"]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        return done.returncode, json.loads(done.stdout)

    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    status, found = rerun()
    assert (status, found["same"], found["differing"], found["constants"]) == (0, True, {}, 0)
    assert before == {path.name: path.read_bytes() for path in whole.iterdir()}
    about = json.loads((whole / "config.json").read_text())
    about["discovery"]["seed"] = 1
    (whole / "config.json").write_text(json.dumps(about))
    status, found = rerun()
    assert (status, found["same"]) == (1, False)
    assert found["differing"]
