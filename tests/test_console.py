"""How threads wait is decided before torch is imported, by what else the machine computes; what damaged files are blamed for."""

import json
import os
import subprocess
import sys

import psutil
import pytest
import torch

from circuitsieve.cli.console import damage_named, others_compute, print_json
from circuitsieve.errors import RunError

SET_UP = """
import os, sys, psutil
from circuitsieve.cli.console import set_up_libraries
psutil.cpu_percent = lambda interval: 100 * float(sys.argv[1]) / psutil.cpu_count()
set_up_libraries()
print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("cores", "before", "after"),
    [("0.1", None, "None"), ("1.0", None, "1000"), ("1.0", "77", "77"), ("0.1", "77", "77")],
)
def test_threads_spin_briefly_only_beside_other_work_and_as_users_say(
    cores: str, before: str | None, after: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if before is not None:
        environment["GOMP_SPINCOUNT"] = before
    said = subprocess.run(
        [sys.executable, "-c", SET_UP, cores], capture_output=True, text=True, env=environment, check=True
    ).stdout
    assert said.split() == [after, "False"], "decided before torch could be imported"


def test_a_busy_process_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            assert any(others_compute() for _ in range(20))
        finally:
            busy.kill()


def test_what_is_over_after_a_moment_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 100.0, 100.0, 0.0])
    monkeypatch.setattr(psutil, "cpu_percent", lambda **_: next(moments))
    assert not others_compute()
    assert not list(moments), "a quiet moment settles it"


def test_files_are_blamed_for_what_they_lack_and_not_for_what_fails_inside_of_a_model() -> None:
    blamed = r"^a/run: found circuit.json or card.json damaged \(KeyError: 'test'\)"
    with pytest.raises(RunError, match=blamed), damage_named("a/run"):
        {}["test"]
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2))
    layers.register_forward_hook(lambda *_: {}["a slip of ours"])
    with pytest.raises(KeyError, match="a slip of ours"), damage_named("a/run"):
        layers(torch.zeros(1, 2))


def test_printed_json_has_no_numbers_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("inf"), 1.5, (float("nan"), {"b": -float("inf")})], "c": 2})
    said = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert said == {"a": [None, 1.5, [None, {"b": None}]], "c": 2}
