"""What the command line asks for: the job that its words mean, the words that a job was, and the status that it ends with."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from circuitsieve.cli import app
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.loaders import TaskOptions
from circuitsieve.models.selfcheck import CheckResult
from circuitsieve.report.command import command
from circuitsieve.workflow.finding import Job, facts_of
from tiny_cli import Output, call

Called = Callable[..., Output]


@pytest.fixture
def called(capsys: pytest.CaptureFixture[str]) -> Called:
    return lambda *words: call(capsys, *words)


def test_a_model_that_fails_a_check_is_status_1(called: Called, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [CheckResult("fine", "the same", 1e-7, 1e-4), CheckResult("broken", "the same", 0.5, 1e-4)]
    monkeypatch.setattr("circuitsieve.models.selfcheck.selfcheck", lambda *_, **__: results)
    output = called("check", home / "model", "--json")
    assert output.status == 1
    assert [check["passed"] for check in json.loads(output.out)["checks"]] == [True, False]
    table = called("check", home / "model")
    assert table.status == 1
    (fine,) = [line for line in table.out.splitlines() if "fine" in line]
    (broken,) = [line for line in table.out.splitlines() if "broken" in line]
    assert fine.replace("fine", "").split()[-1] != broken.replace("broken", "").split()[-1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Job, bool]]:
    """The jobs that the command line would do, and how they are shown."""
    jobs: list[tuple[Job, bool]] = []
    monkeypatch.setattr(app, "_discover", lambda job, *, as_json: (jobs.append((job, as_json)), 0)[1])
    return jobs


def test_the_demo_is_ioi_in_the_bundled_model_with_all_defaults(called: Called, asked: list[tuple[Job, bool]]) -> None:
    assert (
        called("demo").status
        == called("demo", "--out", "there", "--overwrite", "--track", "trackio", "--json").status
        == 0
    )
    plain = Job("demo", "ioi", "runs/demo", DiscoveryConfig())
    assert asked == [(plain, False), (replace(plain, out="there", overwrite=True, track="trackio"), True)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bfloat16"},
        {"device": "cuda:1"},
        {"revision": "v2"},
        {"only_correct": True},
        {"device": "auto", "max_memory": {"0": "20GB", "cpu": "1GB"}},
        {"data": TaskOptions(train=64, validation=32, test=16)},
        {"data": TaskOptions(options={"corruption": "flip", "split_names": "false"})},
        {"data": TaskOptions(columns={"clean": "prompt", "answers": "the target"})},
        {"data": TaskOptions(chat="Complete this: {prompt}")},
        {"data": TaskOptions(chat="- say: {prompt}")},
        {"data": TaskOptions(seed=3), "config": DiscoveryConfig(seed=3)},
        {
            "config": DiscoveryConfig(
                "hard_concrete", size=0.1, penalty={"head": 2.0}, granularities=("head", "mlp_neuron")
            )
        },
        {"config": DiscoveryConfig(min_faithfulness=0.9, size_by="parameters", early_stopping="off")},
        {"config": DiscoveryConfig("integrated_gradients", score_sign="signed", ablation="mean")},
    ],
    ids=str,
)
def test_the_command_of_a_report_asks_for_the_same_job(
    called: Called, asked: list[tuple[Job, bool]], changes: dict[str, Any]
) -> None:
    job = replace(Job("demo", "ioi", "NEW_FOLDER", DiscoveryConfig()), **changes)
    config = json.loads(json.dumps({"discovery": job.config.to_dict(), **facts_of(job)}))
    program, *words = shlex.split(command(config))
    assert program == "circuitsieve"
    assert called(*words).status == 0
    assert asked == [(job, False)]
