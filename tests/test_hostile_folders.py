"""Run folders with links in them, half-written files and files of absurd size: nothing outside is written, nothing is lost."""

import json
import os
import shutil
from pathlib import Path

import pytest

from circuitsieve.disk import files
from circuitsieve.disk.jsontext import LARGEST
from circuitsieve.errors import CircuitsieveError, RunError
from circuitsieve.runs.folder import RunFolder
from circuitsieve.vocabulary import Ablation
from damage import assert_one_line_at_most, command, contents
from tiny_runs import complaint, random_found, saved


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be spoilt."""
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


# --- links --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["card.json", "report.html", "exhibits.json", ".partial-card.json", ".lock"])
def test_what_a_link_points_to_is_not_written(run: Path, tmp_path: Path, name: str):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(precious)
    said = command("evaluate", run)
    assert precious.read_text() == "mine"
    assert said is None or str(run) in said
    (run / name).unlink(missing_ok=True)
    assert command("evaluate", run) is None


def test_files_that_are_written_replace_a_link(tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for link in (tmp_path / "new.json", tmp_path / ".partial-new.json"):
        link.symlink_to(precious)
        files.write_json(tmp_path / "new.json", {"a": 1})
        assert files.read_json(tmp_path / "new.json")["a"] == 1
        assert not (tmp_path / "new.json").is_symlink()
        assert precious.read_text() == "mine"


def test_a_run_is_cleared_without_following_links(tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder = saved(tmp_path / "run", random_found())
    (folder.path / "circuit.json").unlink()
    (folder.path / "circuit.json").symlink_to(precious)
    folder.clear()
    assert precious.read_text() == "mine"
    assert list(folder.path.iterdir()) == []


# --- files that are no files, cannot be read, or are half there -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["config.json", "pairs.jsonl", "masks.safetensors", "circuit.json", "history.jsonl", "card.json"]
)
@pytest.mark.parametrize("kind", ["empty", "folder", "dangling link", "half written"])
def test_whatever_stands_in_the_place_of_a_file(run: Path, name: str, kind: str):
    path = run / name
    content = path.read_bytes()
    path.unlink()
    match kind:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "dangling link":
            path.symlink_to("nowhere")
        case "half written":
            files.partial(path).write_bytes(content[: len(content) // 2])
    before = contents(run)
    for words in (["show", run], ["evaluate", run], ["report", run], ["compare", run, run.parent / "run"]):
        said = command(*words)
        assert said is None or str(run) in said or "compare: found one run twice" in said
    after = contents(run)
    written = ("card.json", ".partial-card.json", "report.html", "exhibits.json")
    assert all(after[file] == before[file] for file in before if file not in written)


def test_a_folder_where_a_file_belongs_is_not_replaced(run: Path):
    """Writing a file there fails in one line, and leaves nothing behind."""
    (run / "card.json").unlink()
    (run / "card.json").mkdir()
    (run / "card.json" / "mine").touch()
    assert f"{run}/card.json: cannot be written (" in str(command("evaluate", run))
    assert (run / "card.json" / "mine").exists()
    assert not files.partial(run / "card.json").exists()


# --- sizes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "circuit.json", "card.json", "pairs.jsonl", "history.jsonl"])
def test_files_beyond_all_measure_are_not_read(run: Path, name: str):
    """Sparse: they take no room on the disk, and would take it in memory."""
    os.truncate(run / name, 2 * LARGEST)
    folder = RunFolder(run)
    reads = {"pairs.jsonl": folder.read_pairs, "history.jsonl": folder.read_history}
    assert complaint(reads.get(name, lambda: folder.read_json(name))).startswith(
        f"{run / name}: cannot be read (it has 2,048 MB, more than 1,024 MB), expected"
    )


@pytest.mark.parametrize("fact", ["layers", "heads", "kv_heads", "head_dim", "neurons", "width", "mlp_inputs"])
@pytest.mark.parametrize("value", [10**12, 10**400, 0, -1, 2.0, True, None, "2"])
def test_the_shape_of_a_model_is_not_believed(tmp_path: Path, fact: str, value: object):
    folder = saved(tmp_path, random_found(Ablation.MEAN))
    about = json.loads((tmp_path / "circuit.json").read_text())
    about["space"][fact] = value
    (tmp_path / "circuit.json").write_text(json.dumps(about))
    assert str(tmp_path) in complaint(folder.read_circuit)


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("biases", ["q", "x"]),
        ("biases", "q"),
        ("biases", [["q"]]),
        ("post_norm", 1),
        ("joint_qk_norm", None),
        ("new", 1),
    ],
)
def test_nor_is_what_else_it_says(tmp_path: Path, fact: str, value: object):
    folder = saved(tmp_path, random_found())
    about = json.loads((tmp_path / "circuit.json").read_text())
    about["space"][fact] = value
    (tmp_path / "circuit.json").write_text(json.dumps(about))
    assert "circuit.json: found no valid space and ablation (space" in complaint(folder.read_circuit)


def header(shape: list[int], size: int, dtype: str = "BOOL") -> bytes:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": {"format_version": "1"}, "mask.head": entry}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        header([10**12, 10**6], 10**18),
        header([10**12, 10**6], 4),
        header([2**32, 2**32], 0),
        header([0, 0], 0),
        header([2, 2], 4) + b"\1\1\1\2",
        (2**63).to_bytes(8, "little") + b"{}",
        (10**9).to_bytes(8, "little") + b"{}",
    ],
    ids=[
        "beyond the file",
        "more than its bytes",
        "overflowing",
        "nothing",
        "neither 0 nor 1",
        "header",
        "long header",
    ],
)
def test_headers_of_tensors_are_not_believed(tmp_path: Path, content: bytes):
    folder = saved(tmp_path, random_found())
    (tmp_path / "masks.safetensors").write_bytes(content)
    assert str(tmp_path / "masks.safetensors") in complaint(folder.read_circuit)


def test_no_tensor_of_another_shape_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """4 GB of a sparse file, with a header that is true of it."""
    folder = saved(tmp_path, random_found())
    path = tmp_path / "masks.safetensors"
    begin = header([1 << 16, 1 << 16], 1 << 32)
    path.write_bytes(begin)
    os.truncate(path, len(begin) + (1 << 32))
    read: list[str] = []
    original = files.safetensors.safe_open

    class Watched:
        def __init__(self, *given: object) -> None:
            self.file = original(*given)

        def __enter__(self) -> "Watched":
            return self

        def __exit__(self, *_: object) -> None:
            self.file = None

        def __getattr__(self, name: str) -> object:
            read.append(name)
            return getattr(self.file, name)

    monkeypatch.setattr(files.safetensors, "safe_open", Watched)
    assert "mask.attn_block: found nothing" in complaint(folder.read_circuit)
    assert "get_tensor" not in read


# --- messages -----------------------------------------------------------------------------------------------------------


def test_messages_are_one_line_of_a_length_that_can_be_read():
    said = str(CircuitsieveError("a\nb\x1b[2Jc\u2028d" + "x" * 10**6 + " expected this"))
    assert said.startswith("a b [2Jc dxxx")
    assert said.endswith("xxx expected this")
    assert len(said) < 11_000
    assert assert_one_line_at_most(lambda: (_ for _ in ()).throw(RunError("one\r\ntwo")), "one") == "one  two"
