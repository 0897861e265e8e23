"""The command line in this process: what it prints and the status that it leaves with."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import huggingface_hub.constants
import pytest
import transformers

from circuitsieve.cli import app
from tiny import name_pairs, tiny_folder, write_jsonl


class Output(NamedTuple):
    status: object
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], *words: object) -> Output:
    """Run the command line with these words."""
    capsys.readouterr()
    with quiet_and_offline(), pytest.raises(SystemExit) as stopped:
        app.main([str(word) for word in words])
    return Output(stopped.value.code, *capsys.readouterr())


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What the command line says about words that it refuses: one line and nothing else."""
    output = call(capsys, *words)
    assert output.status == 2
    assert output.out == ""
    (line,) = output.err.splitlines()
    start, text = line[:14], line[14:]
    assert start == "circuitsieve: "
    return text


@contextmanager
def quiet_and_offline() -> Iterator[None]:
    """What the command line asks of the libraries in the environment comes too late in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        transformers.utils.logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers.utils.logging.enable_progress_bar()


def make_home(home: Path) -> Path:
    """A model, a file of pairs and a finished run."""
    tiny_folder(home / "model")
    write_jsonl(home / "pairs.jsonl", name_pairs(40))
    words = f"discover --model {home}/model --task {home}/pairs.jsonl --out {home}/run --steps 3 --batch-size 4"
    with quiet_and_offline(), pytest.raises(SystemExit) as stopped:
        app.main(words.split())
    assert stopped.value.code == 0
    return home


EDGE_WORDS = ("--pairs", 8, "--points", 2, "--batch-size", 4, "--max-change", 0.05)
"""Edges of the tiny run in a moment."""


def make_wired(home: Path, run: Path) -> Path:
    """A copy of the finished run with its edges."""
    shutil.copytree(home / "run", run)
    with quiet_and_offline(), pytest.raises(SystemExit) as stopped:
        app.main(["edges", str(run), *map(str, EDGE_WORDS)])
    assert stopped.value.code == 0
    return run
