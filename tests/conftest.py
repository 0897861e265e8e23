"""Fixtures that several test files use, the order of the files, and which tests run again with checks of types."""

from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest
import torch
from transformers import GPT2LMHeadModel

from circuitsieve.models.subject import Subject
from circuitsieve.search.discovery import Discovery
from models import FAMILIES, shared
from planted import make_planted, search
from tiny_cli import complaint, make_home

Complaint = Callable[..., str]


DEAR = ("smollm2", "slow")
"""Markers of tests that take long, the dearest first."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts files with dear tests first, so that processes that share the files end together.

    With `--jaxtyping-packages`, which checks types and shapes at every call and doubles the time of a test, only a ninth of
    the tests run that are not dear, drawn by their names, so that families of models take turns.
    """
    places: dict[Path, int] = {}
    for item in items:
        places[item.path] = min(_place(item), places.get(item.path, len(DEAR)))
    items.sort(key=lambda item: places[item.path])
    if config.getoption("--jaxtyping-packages"):
        drawn: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            drawn[crc32(item.nodeid.encode()) % 9 == 0 and _place(item) == len(DEAR)].append(item)
        config.hook.pytest_deselected(items=drawn[False])
        items[:] = drawn[True]


def _place(item: pytest.Item) -> int:
    """Of its dearest marker among the dear ones; beyond them where it has none."""
    return next((place for place, name in enumerate(DEAR) if item.get_closest_marker(name)), len(DEAR))


@pytest.fixture(params=FAMILIES)
def subject(request: pytest.FixtureRequest) -> Subject:
    """A tiny float32 model of each family; tests leave it as it is."""
    return shared(request.param, torch.float32)


@pytest.fixture(scope="module")
def planted() -> GPT2LMHeadModel:
    """A model whose circuit is known; tests leave it as it is."""
    return make_planted()


@pytest.fixture(scope="module", params=["hard_concrete", "nested", "gates alone"])
def found(planted: GPT2LMHeadModel, request: pytest.FixtureRequest) -> Discovery:
    """Its circuit, by each method."""
    return search(planted, request.param)


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
