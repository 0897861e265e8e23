"""Fixtures that several test files use."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from circuitsieve.subject import Subject
from models import FAMILIES, shared
from tiny_cli import complaint, make_home

Complaint = Callable[..., str]


@pytest.fixture(params=FAMILIES)
def subject(request: pytest.FixtureRequest) -> Subject:
    """A tiny float32 model of each family; tests leave it as it is."""
    return shared(request.param, torch.float32)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a file of pairs and a finished run; tests leave them as they are."""
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Complaint:
    """The complaint about words that are refused."""
    return lambda *words: complaint(capsys, *words)


@pytest.fixture
def discover(home: Path, tmp_path: Path, refused: Complaint) -> Complaint:
    """The complaint about a discovery with some of its words replaced."""

    def of(*more: object, model: object = home / "model", task: object = home / "pairs.jsonl", out: str = "out") -> str:
        return refused("discover", "--model", model, "--task", task, "--out", tmp_path / out, *more)

    return of
