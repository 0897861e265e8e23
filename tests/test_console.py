"""How threads wait is decided before torch is imported, by what else the machine computes."""

import os
import subprocess
import sys

import pytest

from circuitsieve.cli.console import others_compute

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
