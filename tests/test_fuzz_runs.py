"""Every file of a run folder, damaged in any way: whoever reads it ends well or with one line, and changes nothing."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsieve.runs.folder import RunFolder
from circuitsieve.vocabulary import Ablation
from circuitsieve.workflow.judging import Memory
from damage import assert_one_line_at_most, command, contents, damaged, examples
from tiny_cli import make_wired
from tiny_runs import random_found, saved

JSON = ("config.json", "circuit.json", "card.json", "sections.json", "exhibits.json", "edges.json")
LINES = ("pairs.jsonl", "history.jsonl")
TENSORS = ("masks.safetensors", "edges.safetensors")


@pytest.fixture(scope="module")
def run(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with all the files that a run can have, to be damaged and mended."""
    run = make_wired(home, tmp_path_factory.mktemp("fuzzed") / "run")
    assert command("evaluate", run) is None
    return run


def read_everything(folder: RunFolder) -> None:
    """What Python code reads of a run."""
    for name in JSON:
        assert_one_line_at_most(lambda name=name: folder.read_json(name), folder.path)
    for read in (folder.read_circuit, folder.read_pairs, folder.read_history, folder.read_edges):
        assert_one_line_at_most(read, folder.path)
    Memory(folder, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", [*JSON, *LINES, *TENSORS])
@examples(40)
@given(data=st.data())
def test_readers(run: Path, name: str, data: st.DataObject):
    path = run / name
    valid = path.read_bytes()
    path.write_bytes(data.draw(damaged(path)))
    before = contents(run)
    try:
        read_everything(RunFolder(run))
        assert contents(run) == before
    finally:
        path.write_bytes(valid)


@examples(60)
@given(data=st.data())
def test_constants(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    run = tmp_path_factory.mktemp("constants")
    folder = saved(run, random_found(Ablation.MEAN))
    path = run / "baselines.safetensors"
    path.write_bytes(data.draw(damaged(path)))
    assert_one_line_at_most(folder.read_circuit, run)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*JSON, *LINES, *TENSORS])
@examples(15)
@given(data=st.data())
def test_commands_that_only_look(run: Path, home: Path, name: str, data: st.DataObject):
    path = run / name
    valid = path.read_bytes()
    path.write_bytes(data.draw(damaged(path)))
    before = contents(run)
    out = run.parent / "out"
    try:
        for words in (
            ["show", run],
            ["show", run, "--json"],
            ["show", run, "--nodes"],
            ["compare", run, home / "run", "--html", run.parent / "compared.html"],
            ["export", run, "--out", out, "--format", "graphml"],
        ):
            command(*words)
        assert contents(run) == before
    finally:
        path.write_bytes(valid)
        out.unlink(missing_ok=True)


NEVER_WRITTEN = ("config.json", "pairs.jsonl", "masks.safetensors", "circuit.json", "history.jsonl")
"""By what judges a run and draws it."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*JSON, *LINES, *TENSORS])
@examples(6)
@given(data=st.data())
def test_commands_that_write_into_the_run(run: Path, name: str, data: st.DataObject):
    """What was saved stays, and what is written is whole."""
    word = data.draw(st.sampled_from(["evaluate", "report", "figures", "compact"]))
    content = data.draw(damaged(run / name))
    saved_before = contents(run)
    (run / name).write_bytes(content)
    before = contents(run)
    out = ["--out", run.parent / "out"] if word in ("figures", "compact") else []
    try:
        said = command(word, run, *out)
        after = contents(run)
        assert after.keys() == before.keys()
        assert all(after[file] == before[file] for file in NEVER_WRITTEN)
        if out:
            assert after == before
            assert (run.parent / "out").exists() == (said is None)
        for file in JSON:
            if after[file] != before[file]:
                RunFolder(run).read_json(file)
    finally:
        for file, content in saved_before.items():
            (run / file).write_bytes(content)
        shutil.rmtree(run.parent / "out", ignore_errors=True)
