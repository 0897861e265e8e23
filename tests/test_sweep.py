"""Sweeps: what is made once is not made again, tables agree with each other and with the runs, the knee is where it must be."""

import csv
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from circuitsieve.cli import app
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.loaders import TaskOptions, load_task
from circuitsieve.errors import RunError
from circuitsieve.evaluation.card import evaluate
from circuitsieve.models.loading import load_model
from circuitsieve.runs.folder import RunFolder
from circuitsieve.workflow import sweep
from circuitsieve.workflow.points import Point, knee, medians, write_tables

SMALL = "--batch-size 8 --train-pairs 24 --validation-pairs 16 --test-pairs 12"
FEW = f"--steps 5 {SMALL}"
WORDS = f"sweep --model demo --task ioi --methods nested attribution --sizes 0.2 0.4 --seeds 0 1 {FEW}"
ONE = f"sweep --model demo --task ioi --methods nested --sizes 0.4 --seeds 0 {FEW}"


def run(out: Path, *more: str, words: str = WORDS) -> int:
    with pytest.raises(SystemExit) as stopped:
        app.main([*words.split(), "--out", str(out), *more])
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep") / "sweep"
    assert run(out) == 0
    return out


@pytest.mark.slow
def test_every_method_has_every_size_and_seed(swept: Path) -> None:
    content = json.loads((swept / "sweep.json").read_text())
    found = {(point["method"], point["asked"], point["seed"]) for point in content["points"]}
    assert found == {(m, size, seed) for m in ("nested", "attribution") for size in (0.2, 0.4) for seed in (0, 1)}
    for point in content["points"]:
        assert 0.9 * point["asked"] < point["size"] <= point["asked"]
        assert point["kl_low"] <= point["kl"] <= point["kl_high"]
        assert (point["validation_kl"] is None) == (point["method"] == "attribution" and point["asked"] == 0.2)
    runs = sorted(path.name for path in (swept / "runs").iterdir())
    assert runs == sorted(
        [f"nested-{seed}-{size}" for seed in (0, 1) for size in (0.2, 0.4)] + ["attribution-0-0.4", "attribution-1-0.4"]
    )


@pytest.mark.slow
def test_the_tables_hold_the_same(swept: Path) -> None:
    points = json.loads((swept / "sweep.json").read_text())["points"]
    rows = list(csv.DictReader((swept / "sweep.csv").read_text().splitlines()))
    assert [{k: "" if v is None else str(v) for k, v in point.items()} for point in points] == rows
    drawn = "".join(ElementTree.parse(swept / "sweep.svg").getroot().itertext())
    assert all(word in drawn for word in ("nested", "attribution", "20%", "40%", "KL to the full model", "demo, ioi"))


@pytest.mark.slow
def test_points_are_what_the_card_of_their_run_says(swept: Path) -> None:
    model, tokenizer = load_model("demo")
    pairs = load_task("ioi", tokenizer, TaskOptions(train=24, validation=16, test=12, seed=1))
    folder = RunFolder.open(swept / "runs/nested-1-0.2")
    about = folder.read_json("config.json")
    assert (about["model"]["name"], about["data"]["task"], about["data"]["seed"]) == ("demo", "ioi", 1)
    circuit, _ = folder.read_circuit()
    card = evaluate(model, circuit, pairs.test)
    (point,) = (
        point
        for point in json.loads((swept / "sweep.json").read_text())["points"]
        if (point["method"], point["seed"], point["asked"]) == ("nested", 1, 0.2)
    )
    assert point["kl"] == pytest.approx(card["test.kl"], rel=1e-6)
    assert point["faithfulness"] == pytest.approx(card["test.faithfulness"], rel=1e-6)
    assert point["full_accuracy"] == card["full.accuracy"]
    assert point["training_kl"] == pytest.approx(evaluate(model, circuit, pairs.train[:12])["test.kl"], rel=1e-6)
    assert point["heads"] == card["kept.head.kept"]
    assert point["parameters"] == pytest.approx(card["parameters.kept"] / card["parameters.total"])


@pytest.mark.slow
def test_only_what_is_missing_damaged_or_other_is_made_again(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, made = (swept / "sweep.json").read_text(), []
    search = sweep.search
    monkeypatch.setattr(sweep, "search", lambda job, *rest: (made.append(job.config), search(job, *rest))[1])
    (swept / "points/nested-0-0.4.json").unlink()
    (swept / "points/attribution-1-0.4.json").write_text("{")
    assert run(swept) == 0
    assert [(config.method, config.seed) for config in made] == [("nested", 0), ("attribution", 1)]
    again = json.loads((swept / "sweep.json").read_text())["points"]
    for new, old in zip(again, json.loads(before)["points"], strict=True):
        assert {**new, "seconds": 0} == {**old, "seconds": 0}
    made.clear()
    assert run(swept, "--sizes", "0.1") == 0  # one more: scores are cut there too, though their run is the same
    assert {(config.method, config.size) for config in made} == {("nested", 0.1), ("attribution", 0.4)}
    points = json.loads((swept / "sweep.json").read_text())["points"]
    assert {point["asked"] for point in points if point["method"] == "attribution"} == {0.1, 0.2, 0.4}
    made.clear()
    assert run(swept, "--lr", "0.1") == 0
    assert len(made) == 6
    assert {(c.method, c.lr) for c in made} == {("nested", 0.1), ("attribution", DiscoveryConfig().lr)}


def test_each_run_is_asked_for_once_with_what_its_method_has_use_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[sweep.Sweep] = []
    monkeypatch.setattr(sweep, "run_sweep", lambda job, _: (asked.append(job), [])[1])
    (tmp_path / "settings.json").write_text('{"method": "hard_concrete", "pressure": 2.0}')
    words = f"sweep --model demo --task ioi --config {tmp_path}/settings.json --sizes 0.2 0.4 --seeds 1 1 --methods"
    methods = ["hard_concrete", "nested", "integrated_gradients", "nested"]
    more = ["--penalty", "head=1", "--integration-points", "8", "--lr", "0.1", "--size-by", "parameters", "--out"]
    with pytest.raises((SystemExit, RunError)):  # there is nothing to show
        app.main([*words.split(), *methods, *more, str(tmp_path / "sweep")])
    configs = [config for seed in asked[0].seeds for config in asked[0].configs(seed)]
    assert [(c.method, c.size) for c in configs] == [
        ("hard_concrete", 0.4), ("hard_concrete", 0.2), ("nested", 0.4), ("nested", 0.2), ("integrated_gradients", 0.4),
    ]  # fmt: skip
    assert {(c.seed, c.size_by, c.pressure) for c in configs} == {(1, "parameters", None)}
    assert [c.penalty.get("head") for c in configs] == [1.0, 1.0, None, None, None]
    assert [c.integration_points for c in configs] == [4, 4, 4, 4, 8]
    assert [c.lr for c in configs] == [0.1] * 4 + [DiscoveryConfig().lr]


@pytest.mark.slow
def test_what_was_measured_before_stays_in_the_tables_of_a_sweep_that_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"sweep --model demo --task ioi --sizes 0.4 --seeds 0 {SMALL} --methods"
    assert run(tmp_path / "sweep", words=f"{words} random") == 0
    made: list[str] = []
    search = sweep.search

    def stopped(job, *rest):
        made.append(job.config.method)
        if len(made) == 2:
            raise KeyboardInterrupt
        return search(job, *rest)

    monkeypatch.setattr(sweep, "search", stopped)
    assert run(tmp_path / "sweep", words=f"{words} attribution activation_difference random") == 130
    points = json.loads((tmp_path / "sweep/sweep.json").read_text())["points"]
    assert made == ["attribution", "activation_difference"]
    assert [point["method"] for point in points] == ["attribution", "random"]


@pytest.mark.slow
def test_a_search_that_was_stopped_is_gone_on_with_unless_another_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path / "whole", words=ONE) == 0
    steps: list[int] = []
    stop_at: list[int] = [3]
    search = sweep.search

    def watched(job, loaded, pairs, reporter, on_step, checkpoints):
        def told(entry):
            steps.append(entry["step"])
            if entry["step"] in stop_at:
                raise KeyboardInterrupt
            on_step(entry)

        return search(job, loaded, pairs, reporter, told, checkpoints)

    monkeypatch.setattr(sweep, "search", watched)
    monkeypatch.setattr("circuitsieve.search.training.KEPT_EVERY", 2)
    for out in (tmp_path / "same", tmp_path / "other"):
        assert run(out, words=ONE) == 130
    assert steps == 2 * [0, 1, 2, 3]
    stop_at.clear()
    steps.clear()
    assert run(tmp_path / "same", words=ONE) == 0
    assert steps == [2, 3, 4]
    assert not RunFolder(tmp_path / "same/runs/nested-0-0.4").unfinished
    point, expected = (
        json.loads((tmp_path / out / "sweep.json").read_text())["points"][0] for out in ("same", "whole")
    )
    assert {**point, "seconds": 0} == {**expected, "seconds": 0}
    assert point["seconds"] > 0
    (tmp_path / "same/points/nested-0-0.4.json").unlink()
    steps.clear()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sweep, "measure_circuits", interrupted)
        assert run(tmp_path / "same", words=ONE) == 130
    assert steps == [0, 1, 2, 3, 4]
    assert run(tmp_path / "same", words=ONE) == 0
    assert steps == [0, 1, 2, 3, 4]  # only what was to be measured is left
    (again,) = json.loads((tmp_path / "same/sweep.json").read_text())["points"]
    assert {**again, "seconds": 0} == {**expected, "seconds": 0}
    steps.clear()
    assert run(tmp_path / "other", "--lr", "0.1", words=ONE) == 0
    assert steps == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--methods", "nestled"], "method: found 'nestled', expected one of hard_concrete, nested"),
        (["--max-kl", "0.1"], "max_kl: found 0.1, expected none: a sweep has --methods, --sizes and --seeds"),
        (["--seed", "3"], "seed: found 3, expected none: a sweep has"),
        (["--integration-points", "2"], "method nested: found integration_points 2, which it has no use for"),
        (["--sizes", "0.2", "2"], "size: found 2.0, expected a number between 0 and 1"),
        (["--sizes", "nan", "0.2"], "size: found nan, expected a number between 0 and 1"),
        (["--seeds", "0", "-1"], "seed: found -1, expected a whole number of at least 0"),
        (["--penalty", "head=1"], "method nested: found penalty {'head': 1.0}, which it has no use for"),
        (["--size-by", "weight"], "size_by: found 'weight', expected one of units, parameters"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert run(tmp_path / "new", *words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([(0.8, 0.1), (0.4, 0.1), (0.2, 0.12), (0.1, 2.0)], 0.2),  # flat, then steep
        ([(0.8, 0.0), (0.4, 1.0), (0.2, 2.0), (0.1, 3.0)], None),  # straight in log size
        ([(0.8, 0.0), (0.4, 2.9), (0.2, 3.0)], None),  # never below the line
        ([(0.8, 0.1), (0.1, 2.0)], None),
        ([(0.8, 2.0), (0.4, 1.0), (0.2, 0.5)], None),  # falls
    ],
)
def test_the_knee_is_the_point_farthest_below_the_line(
    curve: list[tuple[float, float]], expected: float | None
) -> None:
    assert knee(curve) == expected


def test_curves_are_medians_over_seeds_from_the_largest_size_on(tmp_path: Path) -> None:
    kls = {
        ("nested", 0.8): [0.1, 0.1, 0.4],
        ("nested", 0.1): [2.0, 9.0, 1.0],
        ("nested", 0.4): [0.1, 0.0, 0.9],
        ("nested", 0.2): [0.1, 0.12, 5.0],
        ("random", 0.2): [7.0, 8.0, 6.5],
    }
    points = [
        Point(
            method, seed, asked, asked - seed / 100, 0.5, 1, 2, 3, kl, None, None, 1.0, 1.0, 1.0, None, None, 0.3, 1.0
        )
        for (method, asked), values in kls.items()
        for seed, kl in enumerate(values)
    ]
    curves = {"nested": [(0.79, 0.1), (0.39, 0.1), (0.19, 0.12), (0.09, 2.0)], "random": [(0.19, 7.0)]}
    assert medians(points) == {
        method: [(pytest.approx(size), kl) for size, kl in curve] for method, curve in curves.items()
    }
    write_tables(tmp_path, points, "a title")
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert content["methods"]["nested"]["knee"] == pytest.approx(0.19)
    assert content["methods"]["random"]["knee"] is None
    assert [kl for _, kl in content["methods"]["nested"]["curve"]] == [0.1, 0.1, 0.12, 2.0]
