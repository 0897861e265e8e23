"""Run folders: claimed, locked, written as a whole or not at all; damage is found and named, never read as something else."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from filelock import FileLock

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.models.instrument import answer_logits, masked
from circuitsieve.report.terminal import repetition_view
from circuitsieve.runs.folder import PairRecord, RunFolder
from circuitsieve.search.references import References
from circuitsieve.vocabulary import Ablation, Granularity
from circuitsieve.workflow.repeating import compared
from tiny import name_pairs
from tiny_runs import BATCHES, SUBJECT, complaint, random_found, saved

# --- claiming and locking -----------------------------------------------------------------------------------------------


def test_new_folder_is_made_with_its_parents(tmp_path):
    assert RunFolder.claim(tmp_path / "a/b").path.is_dir()
    assert list((tmp_path / "a/b").iterdir()) == []


def test_run_is_only_replaced_when_asked(tmp_path):
    saved(tmp_path, random_found(Ablation.MEAN))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert complaint(lambda: RunFolder.claim(tmp_path)) == (
        f"{tmp_path}: found a run in it; expected a new folder, or --overwrite to replace the run"
    )
    folder = RunFolder.claim(tmp_path, overwrite=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before, "claiming touches nothing"
    folder.clear()
    assert list(tmp_path.iterdir()) == [], "constants of the old run would otherwise outlive it"


def test_foreign_files_are_never_touched(tmp_path):
    saved(tmp_path, random_found())
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        assert complaint(lambda overwrite=overwrite: RunFolder.claim(tmp_path, overwrite=overwrite)) == (
            f"{tmp_path}: found 'thesis.tex', which belongs to no run; expected a new or empty folder"
        )
    RunFolder(tmp_path).clear()
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_lock_and_half_written_files_of_a_killed_process_are_no_hindrance(tmp_path):
    folder = RunFolder.claim(tmp_path)
    with folder.locked():
        (tmp_path / ".partial-masks.safetensors").write_bytes(b"half")
    assert RunFolder.claim(tmp_path) == folder
    folder.clear()
    assert not (tmp_path / ".partial-masks.safetensors").exists()


def test_a_folder_has_a_name():
    assert complaint(lambda: RunFolder.claim("")) == "out: found no name, expected that of a folder for the run"


def test_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/run"):
        assert "cannot be written (" in complaint(lambda path=path: RunFolder.claim(path))


def test_folder_without_permission_to_write(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert complaint(lambda: RunFolder.claim(tmp_path)) == (
        f"{tmp_path}: found a folder without permission to write, expected one for the run"
    )


def test_full_disk_is_seen_before_the_search(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 << 20))
    assert (
        complaint(lambda: RunFolder.claim(tmp_path)) == f"{tmp_path}: found 5 MB of free space, expected at least 64 MB"
    )


def test_folder_is_locked_while_written(tmp_path):
    folder = RunFolder.claim(tmp_path)
    with FileLock(tmp_path / ".lock", is_singleton=False):
        assert complaint(lambda: folder.locked().__enter__()) == (
            f"{tmp_path}: found a run in progress in it, expected a folder that nobody else writes"
        )
    with folder.locked(), folder.locked():  # whoever holds it may lock it again
        pass
    with FileLock(tmp_path / ".lock", is_singleton=False):
        pass


def test_lock_is_released_and_errors_pass_through(tmp_path):
    folder = RunFolder.claim(tmp_path)
    with pytest.raises(OSError, match="mine"), folder.locked():
        raise OSError("mine")
    with folder.locked():
        pass


def test_lock_that_cannot_be_made(tmp_path):
    (tmp_path / ".lock").mkdir()
    assert "cannot be locked for writing (Is a directory)" in complaint(
        lambda: RunFolder(tmp_path).locked().__enter__()
    )


# --- writing ------------------------------------------------------------------------------------------------------------


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("fails", [(os, "fsync"), (Path, "replace")], ids=["while writing", "while renaming"])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, fails):
    folder = saved(tmp_path, random_found())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(*fails, no_space)
    for name, write in (
        ("circuit.json", lambda: folder.write_json("circuit.json", {"new": 1})),
        ("pairs.jsonl", lambda: folder.write_pairs([])),
        ("masks.safetensors", lambda: folder.write_circuit(*random_found(seed=1), {})),
    ):
        assert complaint(write) == f"{tmp_path / name}: cannot be written (No space left on device)"
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    folder = saved(tmp_path, random_found())
    before = (tmp_path / "circuit.json").read_bytes()

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        folder.write_json("circuit.json", {})
    assert (tmp_path / "circuit.json").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


def test_masks_are_the_same_bytes_every_time(tmp_path):
    found = random_found(Ablation.MEAN)
    for name in ("masks.safetensors", "baselines.safetensors"):
        contents = {(saved(tmp_path / f"{name}{i}", found).path / name).read_bytes() for i in range(8)}
        assert len(contents) == 1
        with safetensors.safe_open(tmp_path / f"{name}0" / name, "pt") as file:
            assert file.metadata() == {"format_version": "1"}


def test_what_could_not_be_computed_is_null(tmp_path):
    folder = RunFolder.claim(tmp_path)
    folder.write_json("card.json", {"a": float("nan"), "b": [1.5, float("inf")], "c": (float("-inf"), 2)})
    assert folder.read_json("card.json") == {"format_version": 1, "a": None, "b": [1.5, None], "c": [None, 2]}


def test_files_are_readable_for_whom_the_user_allows(tmp_path):
    previous = os.umask(0o022)
    try:
        folder = saved(tmp_path, random_found())
    finally:
        os.umask(previous)
    assert {file.stat().st_mode & 0o777 for file in folder.path.iterdir()} == {0o644}


# --- reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", [Ablation.CORRUPTED, Ablation.MEAN, Ablation.MEAN_POSITIONAL, Ablation.ZERO])
def test_circuit_ranking_and_constants_survive(tmp_path, ablation):
    found = random_found(ablation)
    circuit, ranking = saved(tmp_path, found).read_circuit()
    assert circuit.space == SUBJECT.space
    assert circuit.ablation is ablation
    assert all(torch.equal(circuit.masks[g], found.circuit.masks[g]) for g in Granularity)
    assert all(torch.equal(ranking.scores[g], found.ranking.scores[g]) for g in found.ranking.scores)
    assert ranking.scores.keys() == found.ranking.scores.keys()
    assert torch.equal(logits(circuit), logits(found.circuit))
    assert not torch.allclose(
        logits(circuit), logits(Circuit(SUBJECT.space, {}, ablation, circuit.constants)), atol=1e-3
    )


def logits(circuit: Circuit) -> torch.Tensor:
    references = References(SUBJECT, circuit.ablation, constants=circuit.constants)
    rows = []
    with torch.no_grad():
        for batch in BATCHES:
            with masked(SUBJECT, circuit.site_masks(), references(batch).baselines):
                rows.append(answer_logits(SUBJECT, batch.clean, batch.positions))
    return torch.cat(rows)


def test_circuit_without_ranking(tmp_path):
    assert saved(tmp_path, random_found()._replace(ranking=None)).read_circuit()[1] is None


def test_pairs_survive(tmp_path):
    first, second = name_pairs(2)
    records = [
        PairRecord(replace(first, candidates=(" a", " b"), id="x", template="t\u2028"), "train"),
        PairRecord(second, "test", "because"),
    ]
    folder = RunFolder.claim(tmp_path)
    folder.write_pairs(records)
    assert folder.read_pairs() == records


def test_folders_without_a_run(tmp_path):
    sentence = "expected the folder of a run (made by `circuitsieve discover`)"
    for path in (tmp_path, tmp_path / "nowhere", Path("x" * 5000)):
        assert complaint(lambda path=path: RunFolder.open(path)) == f"{path}: found no config.json, {sentence}"
    saved(tmp_path, random_found())
    (tmp_path / "masks.safetensors").unlink()
    assert complaint(lambda: RunFolder.open(tmp_path)) == f"{tmp_path}: found no masks.safetensors, {sentence}"


def test_other_format_versions_are_refused(tmp_path):
    folder = saved(tmp_path, random_found())
    (tmp_path / "circuit.json").write_text('{"format_version": 2}')
    assert complaint(folder.read_circuit) == f"{tmp_path}/circuit.json: found format_version 2, expected 1"
    (tmp_path / "circuit.json").write_text("[1]")
    assert complaint(folder.read_circuit) == f"{tmp_path}/circuit.json: found format_version None, expected 1"


def test_values_are_looked_up(tmp_path):
    folder = RunFolder.claim(tmp_path)
    folder.write_json("config.json", {"model": {"name": "demo"}})
    assert folder.look_up("config.json", "model", "name") == "demo"
    for path in (("model", "dtype"), ("data",), ("model", "name", "first")):
        assert complaint(lambda path=path: folder.look_up("config.json", *path)) == (
            f"{tmp_path}/config.json: found no {'.'.join(path)}, expected the file of a run"
        )


# --- a repetition -------------------------------------------------------------------------------------------------------


def test_a_repetition_with_other_constants_is_another_circuit():
    circuit, ranking = random_found(Ablation.MEAN)
    assert ranking is not None
    assert compared(circuit, ranking, circuit, ranking, {}, {}).same
    moved = {site: constant.clone() for site, constant in (circuit.constants or {}).items()}
    next(iter(moved.values()))[0] += 0.25
    found = compared(circuit, ranking, replace(circuit, constants=moved), ranking, {}, {})
    assert (found.same, found.differing, found.scores) == (False, {}, 0)
    assert found.constants == pytest.approx(0.25)
    assert "what ablated nodes take differs by 0.25 at most" in str(repetition_view(found))
