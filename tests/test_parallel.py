"""Searches that several processes share: what they find is what one finds, and only the first of them writes and speaks."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import safetensors.torch
import torch

import shared_searches
from circuitsieve import DiscoveryConfig, discover
from circuitsieve.cli import app
from circuitsieve.data.batching import batches
from circuitsieve.errors import ConfigError, ModelError
from circuitsieve.parallel import Processes, of_torchrun
from circuitsieve.search.effects import _drawn
from tiny import name_pairs, tiny_folder, tiny_loaded, tiny_pairs, write_jsonl
from tiny_cli import complaint

COUNT = 4
"""More than the cores; of the last pairs one process has none. Two share the runs of the command line below."""
TOLERANCE, OF_SCORES = 1e-3, 0.05
"""Scores are about 10: Adam magnifies the rounding of small gradients."""


def start(count: int, *words: object) -> subprocess.Popen[str]:
    """Processes under torchrun."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launch, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def torchrun(monkeypatch: pytest.MonkeyPatch, processes: int, rank: int = 0) -> None:
    """Makes this process believe that it is one of several."""
    for name, value in {
        "WORLD_SIZE": processes,
        "RANK": rank,
        "LOCAL_RANK": rank,
        "TORCHELASTIC_RUN_ID": "mine",
    }.items():
        monkeypatch.setenv(name, str(value))


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, said = process.communicate(timeout=250)
    return process.returncode, out, said


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What searches come to that are shared."""
    path = tmp_path_factory.mktemp("shared") / "found.safetensors"
    status, _, said = finish(start(COUNT, shared_searches.__file__, path))
    assert status == 0, said
    return safetensors.torch.load_file(path)


@cache
def alone(name: str) -> dict[str, torch.Tensor]:
    return shared_searches.content(shared_searches.search(name, distributed=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", shared_searches.SEARCHES)
def test_several_processes_find_what_one_finds(shared: dict[str, torch.Tensor], name: str) -> None:
    expected = alone(name)
    assert {key.removeprefix(f"{name} ") for key in shared if key.startswith(f"{name} ")} == set(expected)
    for key, value in expected.items():
        allowed = OF_SCORES if key.startswith("score") else TOLERANCE
        torch.testing.assert_close(shared[f"{name} {key}"], value, rtol=TOLERANCE, atol=allowed, msg=key)


@pytest.mark.parametrize("count", range(1, 8))
def test_every_pair_counts_once(count: int) -> None:
    for batch in batches(tiny_pairs(13, 1, 1).train, 5):
        portions = [batch.portion(rank, count) for rank in range(count)]
        assert sum(portion.counted for portion in portions) == len(batch)
        assert {portion.pairs for portion in portions} == {len(batch)}
        rows = torch.cat([portion.clean[: portion.counted] for portion in portions])
        assert torch.equal(rows, batch.clean)
        answers = torch.cat([portion.targets.answers[: portion.counted] for portion in portions])
        assert torch.equal(answers, batch.targets.answers)
        assert all(len(portion) == max(1, portion.counted) for portion in portions)


def test_tokens_are_drawn_as_torch_draws_them_whichever_process_has_the_pair() -> None:
    (batch,) = batches(tiny_pairs(13, 1, 1).train, 13)
    probabilities = torch.rand(13, 50, generator=torch.Generator().manual_seed(0)).softmax(-1)
    expected = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(3))
    portions = [batch, *(batch.portion(rank, 3) for rank in range(3))]
    rows = [slice(0, 13), slice(0, 5), slice(5, 9), slice(9, 13)]
    for portion, own in zip(portions, rows, strict=True):
        drawn = _drawn(probabilities[own], portion, torch.Generator().manual_seed(3))
        assert torch.equal(drawn, expected[own])


def test_a_group_is_needed() -> None:
    with pytest.raises(ConfigError, match="distributed: found no process group, expected one"):
        discover(tiny_loaded().model, tiny_pairs(), DiscoveryConfig(steps=2), distributed=True)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    home = tmp_path_factory.mktemp("inputs")
    tiny_folder(home / "model")
    write_jsonl(home / "pairs.jsonl", name_pairs(40))
    said = ["--model", home / "model", "--task", home / "pairs.jsonl", "--steps", 80, "--early-stopping", "off"]
    return ["-m", "circuitsieve", "discover", *said, "--batch-size", 5]


@pytest.mark.slow
def test_a_shared_run_that_is_killed_goes_on_to_the_same_bytes(
    words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, said = finish(start(2, *words, "--out", tmp_path / "whole", "--json"))
    assert status == 0, said
    assert json.loads(out).items() <= json.loads((tmp_path / "whole" / "card.json").read_text()).items()
    assert said.count("training, ") == 1
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["model"]["processes"] == 2
    assert (tmp_path / "whole" / "report.html").exists()
    killed = tmp_path / "killed"
    process = start(2, *words, "--out", killed, "--resume")
    while not list((killed / "checkpoint").glob("00000005*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, out, said = finish(process)
    assert out == ""
    assert not (killed / "masks.safetensors").exists()
    status, _, said = finish(start(2, *words, "--out", killed, "--resume"))
    assert status == 0, said
    assert (killed / "masks.safetensors").read_bytes() == (tmp_path / "whole" / "masks.safetensors").read_bytes()
    torchrun(monkeypatch, processes=2)
    for rank, times in ((0, 1), (1, 0)):
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(SystemExit) as ended:
            app.main([*map(str, words[2:]), "--out", str(killed), "--resume"])
        assert (ended.value.code, capsys.readouterr().err.count("the search had ended before")) == (0, times)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--max-kl", "-1"), "max_kl: found -1.0"),
        (("--dtype", "float33"), "dtype: found 'float33'"),
        (("--seed", "1"), "which belongs to no run"),
    ],
)
def test_what_is_wrong_is_said_once(words: list[object], tmp_path: Path, more: tuple[str, str], expected: str) -> None:
    """By both processes, or by the first alone, before or while the other waits for it."""
    if "--seed" in more:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes.txt").write_text("mine")
    status, out, said = finish(start(2, *words, *more, "--out", tmp_path / "run"))
    assert (status != 0, out) == (True, "")
    ours = [line for line in said.splitlines() if line.startswith("circuitsieve: ")]
    assert len(ours) == 1, said
    assert expected in ours[0]
    assert not (tmp_path / "run" / "masks.safetensors").exists()


@pytest.mark.parametrize("command", [("tasks",), ("discover", "--dry-run")])
def test_other_commands_are_for_one_process(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torchrun(monkeypatch, processes=2)
    found = complaint(capsys, *command)
    assert found.startswith(f"torchrun: found 2 processes for {command[0]}, expected one")


@pytest.mark.parametrize(
    ("device", "available", "message"),
    [
        ("cuda:0", 8, "device: found 'cuda:0' for several processes, expected cuda"),
        ("auto", 8, "device: found auto, which spreads one model over all devices, for 2 processes"),
        ("cuda", 1, "device: found 1 accelerators, expected one for each process"),
    ],
)
def test_each_process_takes_an_accelerator_of_its_own(
    monkeypatch: pytest.MonkeyPatch, device: str, available: int, message: str
) -> None:
    torchrun(monkeypatch, processes=2, rank=1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: available)
    with pytest.raises(ModelError, match=message), of_torchrun(device):
        pass


def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")  # a scheduler's
    with of_torchrun("cpu") as processes:
        assert processes == Processes(0, 1)
