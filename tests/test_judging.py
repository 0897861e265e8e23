"""What is remembered of an evaluation, and when it no longer counts."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from circuitsieve.data.loaders import TaskOptions
from circuitsieve.errors import DataError, RunError
from circuitsieve.evaluation import robustness, stability
from circuitsieve.evaluation.card import Card
from circuitsieve.evaluation.full import SECTIONS
from circuitsieve.evaluation.harness import EvaluationConfig
from circuitsieve.runs.folder import RunFolder
from circuitsieve.runs.provenance import versions
from circuitsieve.workflow import judging
from circuitsieve.workflow.judging import evaluate_run
from tiny import name_pairs, write_jsonl
from tiny_cli import call

FEW = EvaluationConfig(random_circuits=2, tested_circuits=3, subsets=2, finer_nodes=4, null_nodes=4)
NAMES = {name for section in SECTIONS for name in section.names}


class Listener:
    """A reporter that remembers what it was told."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(text)

    def look(self, done: int, total: int) -> None: ...

    def step(self, entry: object, config: object) -> None: ...

    def evaluation(self, what: str, *_: int) -> None:
        self.ran += [what] if what != "done" else []

    def exhibit(self, what: str, done: int, total: int) -> None: ...


@pytest.fixture(autouse=True)
def short_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is repeated is not what these tests are about."""
    monkeypatch.setattr(stability, "STEPS", 6)


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


def judge(run: Path, **options: object) -> tuple[dict, Listener]:
    listener = Listener()
    _, card = evaluate_run(str(run), listener, config=options.pop("config", FEW), **options)
    return card.values, listener


def test_the_full_card_has_every_section_and_is_remembered(run: Path):
    card, listener = judge(run, full=True)
    assert card.keys() >= NAMES | {"verdicts", "test", "random", "kept", "budget_met"}
    assert json.loads((run / "card.json").read_text()).keys() == card.keys() | {"format_version"}
    assert any(said.startswith(f"{len(listener.ran) - 3 - 3} circuits to run, about ") for said in listener.said)
    again, second = judge(run, full=True)
    assert (second.ran, second.said) == ([], [])
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(card))
    quick, third = judge(run)
    assert third.ran == []
    assert json.loads(json.dumps(quick)) == json.loads(json.dumps(card))


def test_measuring_again_when_asked(run: Path):
    card, first = judge(run)
    assert not NAMES & card.keys()
    again, second = judge(run, fresh=True)
    assert second.ran == first.ran != []
    assert again == card


def test_the_quick_card_measured_again_leaves_the_full_sections(run: Path):
    full, first = judge(run, full=True)
    again, second = judge(run, fresh=True)
    assert second.ran == first.ran[: len(second.ran)] != []
    assert len(second.ran) < len(first.ran) / 2
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(full))
    assert json.loads((run / "card.json").read_text()).keys() == full.keys() | {"format_version"}
    assert judge(run, full=True)[1].ran == []
    whole, third = judge(run, full=True, fresh=True)
    assert third.ran == first.ran
    assert json.loads(json.dumps(whole)) == json.loads(json.dumps(full))


def test_what_is_not_finite_is_remembered(run: Path, monkeypatch: pytest.MonkeyPatch):
    def spoiled(*arguments: object, **options: object) -> Card:
        card = judging_evaluate(*arguments, **options)
        return Card({**card.values, "test": {**card.values["test"], "kl": float("nan")}})

    judging_evaluate = judging.evaluate
    monkeypatch.setattr(judging, "evaluate", spoiled)
    card, _ = judge(run)
    assert card["test"]["kl"] is None
    again, listener = judge(run)
    assert listener.ran == []
    assert again == card


@pytest.mark.slow
def test_a_card_that_was_stopped_goes_on_where_it_stopped(run: Path):
    whole, _ = judge(run, full=True)
    (run / "sections.json").unlink()

    class Stopping(Listener):
        def evaluation(self, what: str, *_: int) -> None:
            super().evaluation(what)
            if what == "necessity":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_run(str(run), Stopping(), full=True, config=FEW)
    card, listener = judge(run, full=True)
    assert json.loads(json.dumps(card)) == json.loads(json.dumps(whole))
    assert {"necessity", "ranking", "minimality"} < set(listener.ran)
    assert not {"circuit", "equivalence", "sufficiency"} & set(listener.ran)


def other_masks(run: Path) -> None:
    folder = RunFolder.open(run)
    circuit, ranking = folder.read_circuit()
    found = json.loads((run / "circuit.json").read_text())["found"]
    folder.write_circuit(circuit.complement(), ranking, found)


def other_scores(run: Path) -> None:
    folder = RunFolder.open(run)
    circuit, ranking = folder.read_circuit()
    found = json.loads((run / "circuit.json").read_text())["found"]
    reverse = type(ranking)(ranking.space, {g: -score for g, score in ranking.scores.items()})
    folder.write_circuit(circuit, reverse, found)


def damaged(run: Path) -> None:
    (run / "sections.json").write_text((run / "sections.json").read_text()[:-40])


def tampered(run: Path) -> None:
    content = json.loads((run / "sections.json").read_text())
    content["parts"]["quick"]["test"]["kl"] = 0.0
    (run / "sections.json").write_text(json.dumps(content))


def test_other_constants_and_libraries_are_measured_anew(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "mean"
    words = ["--model", home / "model", "--task", home / "pairs.jsonl", "--out", run, "--steps", 3, "--batch-size", 4]
    assert call(capsys, "discover", *words, "--ablation", "mean", "--size", 0.4).status == 0
    card, _ = judge(run)
    assert judge(run)[1].ran == []
    folder = RunFolder.open(run)
    circuit, ranking = folder.read_circuit()
    assert circuit.constants is not None
    stronger = {site: 3 * constant + 1 for site, constant in circuit.constants.items()}
    folder.write_circuit(replace(circuit, constants=stronger), ranking, folder.read_json("circuit.json")["found"])
    again, listener = judge(run)
    assert listener.ran != []
    assert again["test"]["kl"] != pytest.approx(card["test"]["kl"])
    assert judge(run)[1].ran == []
    monkeypatch.setattr(judging, "versions", lambda: {**versions(), "torch": "0"})
    assert judge(run)[1].ran != []


@pytest.mark.parametrize("change", [other_masks, other_scores, damaged, tampered])
def test_what_changed_is_measured_anew(run: Path, change: Callable[[Path], None]):
    card, _ = judge(run)
    change(run)
    again, listener = judge(run)
    assert listener.ran != []
    assert (again["test"]["kl"] == card["test"]["kl"]) == (change is not other_masks)


def test_other_settings_and_another_program_are_measured_anew(run: Path, monkeypatch: pytest.MonkeyPatch):
    judge(run)
    _, listener = judge(run, config=EvaluationConfig(random_circuits=1))
    assert listener.ran != []
    _, listener = judge(run, config=EvaluationConfig(random_circuits=1))
    assert listener.ran == []
    monkeypatch.setattr(judging, "_hash_of_files", lambda paths: str(len(paths)))
    _, listener = judge(run, config=EvaluationConfig(random_circuits=1))
    assert listener.ran != []


def test_other_pairs_are_judged_in_full_and_nothing_is_written(run: Path, tmp_path: Path):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    seen = {record.pair.clean for record in RunFolder.open(run).read_pairs()}
    new = [pair for pair in name_pairs(12, seed=5) if pair.clean not in seen][:6]
    card, _ = judge(run, full=True, data=str(write_jsonl(tmp_path / "other.jsonl", new)))
    assert card.keys() >= NAMES
    assert card["equivalence"]["n"] == 6
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_pairs_that_the_search_has_seen_are_no_evidence(run: Path, tmp_path: Path):
    """Given back with others they are left out, and counted; alone they are refused."""
    records = RunFolder.open(run).read_pairs()
    seen, held_out = ([r.pair for r in records if (r.split == "test") is held] for held in (False, True))
    new = name_pairs(6, seed=5)
    card, listener = judge(run, data=str(write_jsonl(tmp_path / "mixed.jsonl", [*seen, *held_out, *new])))
    again = sum(pair.clean in {other.clean for other in seen} for pair in new)
    assert card["test"]["n"] == len(held_out) + len(new) - again
    assert card["dropped_pairs"] == len(seen) + again
    assert (
        f"dropped {len(seen) + again} pairs: the circuit was searched or chosen with their clean prompts"
        in listener.said
    )
    with pytest.raises(DataError, match=r"seen.jsonl: found only pairs that the circuit was searched or chosen with"):
        judge(run, data=str(write_jsonl(tmp_path / "seen.jsonl", seen)))


def test_pairs_that_were_dropped_from_training_were_not_seen(run: Path, tmp_path: Path):
    """As those whose prompt stands in the test split, too."""
    records = [json.loads(line) for line in (run / "pairs.jsonl").read_text().splitlines()]
    held_out = [record for record in records if record["split"] == "test"]
    dropped = [
        {**record, "split": "train", "dropped": "its prompt stands in the test split"} for record in held_out[:2]
    ]
    (run / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*records, *dropped]))
    pairs = [r.pair for r in RunFolder.open(run).read_pairs() if r.dropped]
    assert len(pairs) == 2
    card, _ = judge(run, data=str(write_jsonl(tmp_path / "other.jsonl", pairs)))
    assert card["test"]["n"] == 2
    assert card["dropped_pairs"] == 0


def test_a_run_that_was_made_in_python_is_judged_in_full(run: Path):
    config = json.loads((run / "config.json").read_text())
    config["data"] = {name: config["data"][name] for name in ("usable", "dropped", "hash")}
    (run / "config.json").write_text(json.dumps(config))
    card, _ = judge(run, full=True)
    assert card["robustness"].keys() == {"unchanged", "typos", "distractors"}
    assert card["published"]["jaccard"] is None


@pytest.mark.parametrize(("fact", "value"), [("seed", "one"), ("options", ["a"]), ("chat", 3)])
def test_a_config_that_was_edited_by_hand_is_one_clear_line(run: Path, fact: str, value: object):
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"task": "ioi", fact: value}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match=rf"config.json: found .*data.{fact} {re.escape(repr(value))}.*expected"):
        judge(run, full=True)


def test_a_model_of_the_hub_is_the_one_of_its_commit(run: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever a branch stands for by now."""
    config = json.loads((run / "config.json").read_text())
    config["model"] |= {"revision": "main", "commit": "0123abc"}
    (run / "config.json").write_text(json.dumps(config))
    asked: list[object] = []
    monkeypatch.setattr(judging, "load_model", lambda _, **options: asked.append(options["revision"]))
    with pytest.raises(AttributeError):  # nothing was loaded
        judge(run)
    assert asked == ["0123abc"]


def test_pairs_told_otherwise_are_asked_in_the_form_of_the_run(run: Path, monkeypatch: pytest.MonkeyPatch):
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"task": "ioi", "seed": 5, "options": {"names": "shared"}, "chat": "Go on:"}
    (run / "config.json").write_text(json.dumps(config))
    asked: list[tuple[str, TaskOptions]] = []

    def load(task: str, _: object, request: TaskOptions) -> None:
        asked.append((task, request))
        raise DataError("enough")

    monkeypatch.setattr(robustness, "load_task", load)
    judge(run, full=True)
    own, others = [r for t, r in asked if t == "ioi"], [r for t, r in asked if t != "ioi"]
    assert own != []
    assert others != []
    assert all((request.seed, request.chat) == (5, "Go on:") for _, request in asked)
    assert all(request.options["names"] == "shared" for request in own)
    assert all(request.options == {} for request in others)


@pytest.mark.slow
def test_the_command_line_shows_what_the_full_card_says(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "250")
    output = call(capsys, "evaluate", run, "--full")
    assert output.status == 0
    assert "How far to trust it" in output.out
    card = json.loads((run / "card.json").read_text())
    assert set(card["verdicts"]) >= {"equivalence", "sufficiency", "necessity"}
    assert all(said in output.out for said in card["verdicts"].values())
    assert call(capsys, "show", run).out == output.out
