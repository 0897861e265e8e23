"""A short soak: repeated discoveries leave nothing in the process; and what would be left is seen. Counted, not timed."""

import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

import soak
from leftovers import PAGE, Left, State, fitted_slope, grown, steady
from soak import Job, Subjects

JOBS = soak.cycle(8)
SHORT = [*JOBS[:7], JOBS[8], JOBS[14]]
"""Every way, every store, every ending."""


@pytest.fixture(scope="module")
def subjects() -> Subjects:
    return Subjects.of(24)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(random, "getstate", lambda: None)  # beartype draws from Python's own while it checks types


@pytest.mark.slow
def test_repeated_discoveries_leave_nothing(subjects: Subjects) -> None:
    endings = {job.ending for job in SHORT}
    assert endings == {None, KeyboardInterrupt, soak.Broken}
    assert {job.settings["memory"] for job in SHORT} == {"1GB", "0GB"}
    assert {"disk", "checkpointing"} <= {setting for job in SHORT for setting in job.settings}
    rows = list(soak.soak(0, SHORT, subjects))
    assert len(rows) == 2 * len(SHORT)
    assert steady(rows, len(SHORT)) == []
    assert rows[-1].state.tensors > 100
    assert rows[-1].state.resident > 1000 * PAGE


KEPT: list[object] = []


def _keep_a_graph(*_: object) -> None:
    value = torch.ones(3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        value.exp()  # its node keeps the result, which keeps its node


def _wait(*_: object) -> None:
    KEPT.append(stop := threading.Event())
    threading.Thread(target=stop.wait, daemon=True).start()


LEAKS: dict[str, Callable[[nn.Module, Path], object]] = {
    "hooks": lambda model, _: KEPT.append(model.register_forward_hook(lambda *_: None)),
    "replaced": lambda model, _: model.__dict__.update(forward=model.forward),
    "tensors": _keep_a_graph,
    "open_files": lambda *_: KEPT.append(os.open("/dev/null", os.O_RDONLY)),
    "files": lambda _, folder: (folder.parent / "stray").touch(),
    "threads": _wait,
    "changed flags": lambda model, _: model.train(),
    "changed random": lambda *_: torch.rand(1),
    "left .partial-card.json": lambda _, folder: (folder.mkdir(), (folder / ".partial-card.json").touch()),
    "did not end as asked": lambda *_: None,
}


@pytest.fixture
def mended(subjects: Subjects) -> Iterator[None]:
    """What a leak does to the models is undone, and what it holds is let go."""
    with torch.random.fork_rng():
        yield
    for kept in KEPT:
        match kept:
            case threading.Event():
                kept.set()
            case RemovableHandle():
                kept.remove()
            case int():
                os.close(kept)
    KEPT.clear()
    subjects.models["llama"].__dict__.pop("forward", None)
    subjects.models["llama"].eval()


@pytest.mark.slow
@pytest.mark.usefixtures("mended")
@pytest.mark.parametrize("what", LEAKS)
def test_what_is_left_is_seen(what: str, subjects: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Job] = []

    def leaky(job: Job, subjects: Subjects, folder: Path) -> bool:
        done.append(job)
        if len(done) == 2:
            LEAKS[what](subjects.models["llama"], folder)
        return len(done) == 1 or what != "did not end as asked"

    monkeypatch.setattr(soak, "do", leaky)
    (complaint,) = steady(list(soak.soak(0, SHORT[:1], subjects)), 1)
    assert what in complaint


def test_a_slope_and_its_error() -> None:
    x = np.arange(50.0)
    noise = np.tile([1.0, -1.0], 25)
    slope, error = fitted_slope(x, 3 * x + noise)
    assert slope == pytest.approx(3, abs=0.01)
    expected = np.sqrt(np.polyfit(x, 3 * x + noise, 1, cov=True)[1][0, 0])
    assert error == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("last", "flat"), [(1000, True), (1009, True), (1020, False)])
def test_growth_is_told_where_it_is_more_than_a_hundredth(last: int, flat: bool) -> None:
    state = State(0, 0, 0, 0, 0, 0, 0, 0, 0, "", "")
    sizes = [500] * 4 + [1000] * 8 + [last] * 8
    rows = [Left(i, float(i), "", True, [], [], replace(state, resident=size << 20)) for i, size in enumerate(sizes)]
    assert (grown(rows, 4) == []) == flat
