"""The command `compact`: from a run folder to the folder of a model, what is said of it and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console, RenderableType
from transformers import GPT2Config, GPT2LMHeadModel

import circuitsieve
from circuitsieve.circuits.circuit import Circuit
from circuitsieve.cli import app
from circuitsieve.models.subject import Subject
from circuitsieve.models.surgery import compact
from circuitsieve.report.compacted import compact_view
from circuitsieve.runs.folder import RunFolder
from circuitsieve.vocabulary import Ablation
from circuitsieve.workflow.compaction import _token_of, saved
from tiny_cli import call, complaint, quiet_and_offline


@pytest.fixture(scope="module")
def compacted(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compact model of the tiny run, its constants tuned."""
    out = tmp_path_factory.mktemp("compacted") / "model"
    with quiet_and_offline(), pytest.raises(SystemExit) as stopped:
        app.main(["compact", str(home / "run"), "--out", str(out), "--recover", "3"])
    assert stopped.value.code == 0
    return out


def text_of(view: RenderableType) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


def test_what_is_written_is_a_smaller_model(compacted: Path, home: Path) -> None:
    about = json.loads((compacted / "compact.json").read_text())
    full, smaller = (circuitsieve.load_model(str(path)).model for path in (home / "model", compacted))
    counts = {
        name: sum(p.numel() for p in model.parameters()) for name, model in (("full", full), ("compact", smaller))
    }
    circuit, _ = RunFolder.open(home / "run").read_circuit()
    assert about["cost"]["parameters"] == counts
    assert about["cost"]["projections"] == {"full": circuit.parameters.total, "compact": circuit.parameters.kept}
    assert (about["ablation"], about["found_with"], about["recover_steps"]) == ("mean", "corrupted", 3)
    assert about["quality"]["compact"]["kl"] == pytest.approx(about["quality"]["constants"]["kl"], rel=1e-4)
    assert about["quality"]["difference"] < 1e-5
    assert {"circuit", "recovered"} <= about["quality"].keys()
    assert smaller(torch.tensor([[1, 2, 3]])).logits.shape == full(torch.tensor([[1, 2, 3]])).logits.shape


def test_what_was_tuned_is_what_is_saved(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a small circuit biases alone are others than without tuning; the KL is that of plain passes of what is loaded."""
    run, untuned, tuned = (tmp_path / name for name in ("run", "untuned", "tuned"))
    words = ["--model", home / "model", "--task", home / "pairs.jsonl", "--out", run, "--steps", 3, "--batch-size", 4]
    assert call(capsys, "discover", *words, "--size", 0.3).status == 0
    for out, more in ((untuned, ()), (tuned, ("--recover", 40))):
        assert call(capsys, "compact", run, "--out", out, *more).status == 0
    before, after = (circuitsieve.load_model(str(out)).model.state_dict() for out in (untuned, tuned))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith("bias") for name in changed)
    quality = json.loads((tuned / "compact.json").read_text())["quality"]
    full, tokenizer = circuitsieve.load_model(str(home / "model"))
    smaller = circuitsieve.load_model(str(tuned)).model
    divergences = []
    for record in RunFolder.open(run).read_pairs():
        if record.split == "test" and record.dropped is None:
            ids = torch.tensor([tokenizer(record.pair.clean)["input_ids"]])
            with torch.no_grad():
                p, q = (model(ids).logits[0, -1].double().log_softmax(-1) for model in (full, smaller))
            divergences.append(float((p.exp() * (p - q)).sum()))
    kl = sum(divergences) / len(divergences)
    assert kl == pytest.approx(quality["recovered"]["kl"], rel=1e-4)
    assert kl != pytest.approx(quality["compact"]["kl"], rel=1e-3)


def test_it_says_what_became_of_the_circuit(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = call(capsys, "compact", home / "run", "--out", tmp_path / "model")
    assert said.status == 0
    assert "was found with the baseline corrupted" in said.err
    assert "the compact model" in said.out
    assert "tuned" not in said.out
    assert "Its logits are those of the masked model to" in said.out
    assert f"Compact model: {tmp_path / 'model'}" in said.out
    as_json = json.loads(call(capsys, "compact", home / "run", "--out", tmp_path / "other", "--json").out)
    assert as_json["quality"]["pairs"] == json.loads((home / "run/card.json").read_text())["test"]["n"]


def test_a_compact_model_is_studied_by_nobody(
    compacted: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("discover", "--model", compacted, "--task", home / "pairs.jsonl", "--out", tmp_path / "run")
    assert complaint(capsys, *words).startswith("model: found a compact model, expected a full one")


def test_there_are_no_steps_below_none(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    assert complaint(capsys, "compact", home / "run", "--out", out, "--recover", "-1") == (
        "recover: found -1, expected at least 0 steps"
    )
    assert not out.exists()


def test_what_is_in_the_way_stays(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    refusal = "expected a new or empty folder for the compact model"
    assert complaint(capsys, "compact", home / "run", "--out", tmp_path / "notes").endswith(refusal)
    assert complaint(capsys, "compact", home / "run", "--out", tmp_path / "notes/mine.txt").endswith(refusal)
    assert (tmp_path / "notes/mine.txt").read_text() == "mine"
    assert complaint(capsys, "compact", tmp_path, "--out", tmp_path / "a").startswith(
        f"{tmp_path}: found no config.json"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_the_working_directory_is_not_replaced(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = (
        ".: found the working directory, which cannot be replaced, expected a new or empty folder for the compact model"
    )
    assert complaint(capsys, "compact", home / "run", "--out", ".") == said


def test_of_tuned_constants_it_says_when_the_logits_were_compared(compacted: Path) -> None:
    about = json.loads((compacted / "compact.json").read_text())
    shown = text_of(compact_view(about))
    assert "Before its constants were tuned its logits were those of the masked model to" in shown
    assert "seconds, 16 prompts x 24 tokens" in shown


def test_times_are_of_as_many_tokens_as_the_model_reads() -> None:
    """And of passes alone: the cache of a token is copied before the clock starts, and stays as long as it was."""
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=20, bos_token_id=0, eos_token_id=0)
    ).eval()
    subject = Subject.of(model)
    circuit = Circuit(subject.space, {}, Ablation.MEAN, {site: torch.zeros(1) for site in subject.architecture.sites()})
    cost = saved(model, compact(model, circuit), circuit)
    assert cost["timed"] == {"prompts": 16, "tokens": 19}
    assert all(cost[name][which] > 0 for name in ("forward", "token") for which in ("full", "compact"))
    prepared = _token_of(model, torch.ones(1, 19, dtype=torch.long))
    with torch.no_grad():
        for _ in range(3):  # a cache that grew would leave no position
            assert prepared()().logits.shape == (1, 1, 30)


def test_a_failure_leaves_nothing_behind(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("circuitsieve.workflow.compaction.save_compact", full)
    failed = call(capsys, "compact", home / "run", "--out", tmp_path / "model")
    assert (failed.status, failed.out) == (2, "")
    said = failed.err.splitlines()[-1]
    assert (
        said
        == f"circuitsieve: {tmp_path}/model: cannot be written (No space left on device), expected a new or empty folder"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_other_weights_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(home / "run", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["model"]["fingerprint"] = "0" * 32
    (run / "config.json").write_text(json.dumps(config))
    assert "found other weights in the model" in complaint(capsys, "compact", run, "--out", tmp_path / "model")
