"""What goes wrong in the middle of a search: losses that are not finite, memory that is not there."""

import json
from pathlib import Path

import pytest
import torch

from circuitsieve import DiscoveryConfig, discover
from circuitsieve.errors import Diverged
from circuitsieve.exhaustion import is_exhaustion
from circuitsieve.runs.folder import RunFolder
from circuitsieve.search.bench import Bench
from circuitsieve.search.training import Training
from tiny import name_pairs, tiny_folder, tiny_loaded, tiny_pairs, write_jsonl
from tiny_cli import call, complaint

STEPS, FAILING = 60, 40


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    tiny_folder(tmp_path / "model")
    write_jsonl(tmp_path / "pairs.jsonl", name_pairs(40))
    said = ["--model", tmp_path / "model", "--task", tmp_path / "pairs.jsonl", "--early-stopping", "off"]
    return ["discover", *said, "--steps", STEPS, "--batch-size", 5, "--out", tmp_path / "run"]


def broken_loss(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """The loss of one training step, and with it all of its gradients, is not finite."""
    step = Training.step

    def broken(self: Training, number: int, *rest: object) -> dict[str, torch.Tensor]:
        if len(self.history) != FAILING:
            return step(self, number, *rest)  # type: ignore[arg-type]
        signals = Bench.signals

        def overflowing(*arguments: object) -> object:
            found = signals(*arguments)  # type: ignore[arg-type]
            return found._replace(kl=found.kl * value)

        with monkeypatch.context() as patch:
            patch.setattr(Bench, "signals", overflowing)
            return step(self, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "step", broken)


def broken_gradient(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """The loss stays finite."""
    backward, calls = torch.autograd.backward, iter(range(STEPS))

    def overflowing(objective: torch.Tensor) -> None:
        backward(objective if next(calls) != FAILING else objective * value)

    monkeypatch.setattr("torch.autograd.backward", overflowing)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("breaks", "what", "value"),
    [(broken_loss, "a KL", float("nan")), (broken_gradient, "a gradient", float("inf"))],
)
@pytest.mark.parametrize("method", ["nested", "hard_concrete"])
def test_a_search_that_diverges_leaves_its_last_good_circuit(
    words: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    breaks: object,
    what: str,
    value: float,
    method: str,
) -> None:
    with monkeypatch.context() as patch:
        breaks(patch, value)  # type: ignore[operator]
        output = call(capsys, *words, "--method", method)
    assert (output.status, output.out) == (2, "")
    (said,) = [line for line in output.err.splitlines() if line.startswith("circuitsieve: ")]
    assert said.startswith(f"circuitsieve: step {FAILING}: found {what} of ")
    folder = RunFolder.open(tmp_path / "run")
    history = [json.loads(line) for line in (folder.path / "history.jsonl").read_text().splitlines()]
    good = len(history)
    assert FAILING - 25 < good < FAILING
    assert f"the circuit of the first {good} steps lies in {tmp_path / 'run'}" in said
    assert all(torch.isfinite(torch.tensor(list(entry.values()))).all() for entry in history)
    _, ranking = folder.read_circuit()
    assert ranking is not None
    assert all(torch.isfinite(scores).all() for scores in ranking.scores.values())
    assert call(capsys, "evaluate", tmp_path / "run").status == 0
    assert call(capsys, *words, "--method", method, "--resume").status == 0  # it goes on, if it was but a passing fault
    assert len((folder.path / "history.jsonl").read_text().splitlines()) == STEPS


def test_without_checkpoints_divergence_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_loss(monkeypatch, float("nan"))
    with pytest.raises(Diverged, match=f"step {FAILING}: found a KL of nan, expected a finite one"):
        discover(tiny_loaded().model, tiny_pairs(), DiscoveryConfig(steps=STEPS, batch_size=5, early_stopping="off"))


# --- memory ---------------------------------------------------------------------------------------------------------


def test_memory_that_runs_out_is_told_from_other_failures() -> None:
    with pytest.raises(RuntimeError) as too_much:
        torch.empty(1 << 55)
    assert is_exhaustion(too_much.value)
    assert is_exhaustion(MemoryError())
    assert is_exhaustion(RuntimeError("can't start new thread"))
    assert is_exhaustion(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."))
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not is_exhaustion(other.value)


def test_a_search_without_memory_says_what_would_need_less(
    words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "step", lambda *_: torch.empty(1 << 55))
    output = call(capsys, *words, "--memory", "3GB")
    (said,) = [line for line in output.err.splitlines() if line.startswith("circuitsieve: ")]
    assert output.status == 2
    assert said.startswith(
        "circuitsieve: memory: found none left, expected 3GB beside the model (--memory; of it a step of 5 "
    )
    assert "--checkpointing all, a smaller --batch-size" in said
    assert not (tmp_path / "run" / "masks.safetensors").exists()


def test_memory_that_runs_out_elsewhere_is_one_line(
    words: list[object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuitsieve.workflow.finding.load_model", lambda *_, **__: torch.empty(1 << 55))
    assert complaint(capsys, *words).startswith("memory: found none left, expected more of it; give a smaller --memory")
