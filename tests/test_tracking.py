"""Tracking: what the trackers' own files hold is what the run folder holds, nothing leaves the machine, and no tracker's
trouble costs a circuit.
"""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from circuitsieve.search.nested import Nested
from circuitsieve.workflow.tracking import Tracked, tracker_of
from tiny import name_pairs, tiny_folder, write_jsonl
from tiny_cli import Output, call

STEPS = 10
Called = Callable[..., Output]


class Kept(NamedTuple):
    """What a tracker's files say of a run."""

    config: dict[str, Any]
    steps: list[tuple[int, dict[str, float]]]
    summary: dict[str, float]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a file of pairs."""
    home = tmp_path_factory.mktemp("inputs")
    tiny_folder(home / "model")
    write_jsonl(home / "pairs.jsonl", name_pairs(40))
    return home


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where trackio writes; it reads its folder when it is first imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        import trackio

        yield Path(trackio.TRACKIO_DIR) / "circuitsieve.db"


@pytest.fixture(autouse=True)
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Is logged in at the hub, has set nothing else, and works in `tmp_path`."""
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_NAME", "WANDB_ERROR_REPORTING", "TRACKIO_SPACE_ID"):
        monkeypatch.setenv(name, "")  # so that what the code sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_user")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def discover(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Called:
    """A short discovery into a folder with a name of its own."""
    words = ("discover", "--model", inputs / "model", "--task", inputs / "pairs.jsonl", "--batch-size", 4)
    return lambda out, *more: call(capsys, *words, "--out", tmp_path / out, "--steps", STEPS, *more)


def in_trackio(database: Path, name: str) -> Kept:
    """A run as trackio's database has it: the row without the KL of a step is the summary."""
    with sqlite3.connect(database) as connection:
        ((config,),) = connection.execute("select config from configs where run_name = ?", (name,)).fetchall()
        rows = connection.execute("select step, metrics from metrics where run_name = ? order by step", (name,))
        steps = [(step, json.loads(metrics)) for step, metrics in rows]
    connection.close()
    summary = steps.pop() if "size" in steps[-1][1] else (len(steps), {})
    assert summary[0] == len(steps)
    return Kept({k: v for k, v in json.loads(config).items() if not k.startswith("_")}, steps, summary[1])


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a log of LevelDB's format after seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, record, block = path.read_bytes(), 7, b"", 1 << 15
    while position < len(content):
        if block - position % block < 7:  # no header fits: padding
            position += block - position % block
            continue
        size, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        record += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, last
            yield Record.FromString(record)
            record = b""


def in_wandb(folder: Path) -> tuple[Kept, int, str]:
    """A run as wandb's file has it, with its exit status and its name."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    config, steps, summary, status, name = {}, [], {}, -1, ""
    for record in wandb_records(path):
        for item in (*record.run.config.update, *record.config.update):
            config[item.key] = json.loads(item.value_json)
        name = record.run.display_name or name
        if record.HasField("history"):
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            steps.append((row["_step"], {k: v for k, v in row.items() if not k.startswith("_")}))
        for item in record.summary.update:
            summary[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        status = record.exit.exit_code if record.HasField("exit") else status
    return Kept({k: v for k, v in config.items() if k != "_wandb"}, steps, summary), status, name


def read(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / name).read_text())


def in_history(run: Path) -> list[tuple[int, dict[str, float]]]:
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [(row.pop("step"), row) for row in rows]


def in_config(run: Path) -> dict[str, Any]:
    """What of config.json is known before the search."""
    config = read(run, "config.json")
    del config["format_version"], config["model"]["trained_in"], config["model"]["processes"]
    return config


def in_card(run: Path) -> dict[str, float]:
    card = read(run, "card.json")
    counts = {f"kept.{g}.{part}": n for g, row in card["kept"].items() for part, n in row.items()}
    test = {f"test.{name}": value for name, value in card["test"].items() if value is not None}
    parameters = {f"parameters.{part}": n for part, n in card["parameters"].items()}
    plain = {name: card[name] for name in ("size", "budget_met", "peak_memory_bytes")}
    return {**counts, **test, **parameters, **plain}


# --- what is tracked ----------------------------------------------------------------------------------------------------


def test_trackio_holds_what_the_run_holds(discover, database, tmp_path):
    output = discover("whole", "--track", "trackio", "--json")
    assert output.status == 0
    assert {"format_version": 1, **json.loads(output.out)} == read(tmp_path / "whole", "card.json")
    assert f"tracked by trackio: {database.parent}\n" in output.err
    run = tmp_path / "whole"
    assert in_trackio(database, "whole") == (in_config(run), in_history(run), in_card(run))
    assert len(in_history(run)) == STEPS


@pytest.mark.slow
def test_wandb_holds_what_the_run_holds(discover, tmp_path):
    import wandb

    output = discover("whole", "--track", "wandb", "--json")
    wandb.teardown()
    assert output.status == 0
    assert {"format_version": 1, **json.loads(output.out)} == read(tmp_path / "whole", "card.json")
    assert not any(line.startswith("wandb") for line in output.err.splitlines())
    run = tmp_path / "whole"
    kept, status, name = in_wandb(tmp_path)
    assert (status, name) == (0, "whole")
    assert kept.config == in_config(run)
    assert kept.steps == in_history(run)
    assert {k: v for k, v in kept.summary.items() if k in in_card(run)} == in_card(run)


def test_every_search_of_a_sweep_is_a_run(inputs, database, tmp_path, capsys):
    words = ["sweep", "--model", inputs / "model", "--task", inputs / "pairs.jsonl", "--out", tmp_path / "sweep"]
    flags = ["--methods", "nested", "attribution", "--sizes", 0.4, 0.6, "--steps", 4, "--batch-size", 4]
    assert call(capsys, *words, *flags, "--track", "trackio", "--json").status == 0
    points = read(tmp_path / "sweep", "sweep.json")["points"]
    for name in ("nested-0-0.4", "nested-0-0.6", "attribution-0-0.6"):
        kept, run = in_trackio(database, name), tmp_path / "sweep/runs" / name
        assert kept.steps == in_history(run)
        assert kept.config["discovery"] == read(run, "config.json")["discovery"]
        method, _, asked_size = name.split("-")
        (point,) = (p for p in points if (p["method"], p["asked"]) == (method, float(asked_size)))
        assert (kept.summary["size"], kept.summary["test.kl"]) == (point["size"], point["kl"])
    with sqlite3.connect(database) as connection:
        ((count,),) = connection.execute("select count(*) from configs where run_name like '%-0-0._'")
    connection.close()
    assert count == 3


# --- what goes wrong ----------------------------------------------------------------------------------------------------


def test_an_interrupted_search_is_tracked_as_far_as_it_went(discover, database, tmp_path, monkeypatch):
    draw, calls = Nested.draw, iter(range(100))

    def interrupted(self: object, *words: object, **others: object) -> object:
        if next(calls) == 17:  # fifteen are looks
            raise KeyboardInterrupt
        return draw(self, *words, **others)

    monkeypatch.setattr(Nested, "draw", interrupted)
    assert discover("interrupted", "--track", "trackio", "--ranking-share", 0.4).status == 130
    kept, circuit = in_trackio(database, "interrupted"), read(tmp_path / "interrupted", "circuit.json")
    assert kept.steps == in_history(tmp_path / "interrupted") != []
    assert kept.summary["size"] == circuit["size"]
    assert kept.summary["parameters.kept"] == circuit["parameters"]["kept"]
    assert not any(name.startswith("test.") for name in kept.summary)


def test_a_tracker_that_fails_is_warned_about_once_and_costs_nothing(discover, database, tmp_path, monkeypatch):
    import trackio

    log, calls = trackio.Run.log, iter(range(100))

    def failing(self: object, *words: object, **others: object) -> None:
        if next(calls) >= 2:
            raise OSError("no space\nleft")
        log(self, *words, **others)

    monkeypatch.setattr(trackio.Run, "log", failing)
    output = discover("failing", "--track", "trackio")
    assert output.status == 0
    assert (
        output.err.count("warning: tracking failed (OSError: no space left); the run goes on, the rest of it is not")
        == 1
    )
    run = tmp_path / "failing"
    assert "kl" in read(run, "card.json")["test"]
    assert in_trackio(database, "failing").steps == in_history(run)[:2]
    assert trackio.context_vars.current_run.get() is None  # closed all the same


@pytest.mark.parametrize("stop", [None, RuntimeError("broken"), KeyboardInterrupt()], ids=["end", "error", "interrupt"])
def test_the_trackers_run_is_closed_however_the_search_ends(stop):
    told: list[object] = []

    class Listener:
        def begin(self, name: str, config: Mapping[str, Any]) -> str:
            told.append((name, config))
            return "here"

        def log(self, step: int, numbers: Mapping[str, int | float]) -> None:
            told.append((step, numbers))

        def finish(self, summary: Mapping[str, int | float], *, completed: bool) -> None:
            told.append((summary, completed))

    def search() -> None:
        with Tracked(Listener(), Quiet(), "name", {"seed": 1}) as tracked:
            tracked.step({"step": 0, "kl": 0.5})
            tracked.conclude({"size": 0.25})
            if stop is not None:
                raise stop
            tracked.conclude({"size": 0.5, "test": {"kl": None, "n": 4}, "layers": {"0": 1}}, completed=True)

    if stop is None:
        search()
    else:
        with pytest.raises(type(stop)):
            search()
    last = ({"size": 0.5, "test.n": 4}, True) if stop is None else ({"size": 0.25}, False)
    assert told == [("name", {"seed": 1}), (0, {"kl": 0.5}), last]


class Quiet:
    """A reporter that shows nothing."""

    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def look(self, done: int, total: int) -> None: ...
    def step(self, entry: object, config: object) -> None: ...
    def evaluation(self, what: str, done: int, total: int) -> None: ...
    def exhibit(self, what: str, done: int, total: int) -> None: ...


@pytest.mark.parametrize("folder", [False, True], ids=["", "folder"])
@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_missing_library_is_one_line_before_anything_is_done(discover, tmp_path, monkeypatch, name, folder):
    """Also where the working directory, searched by `python -m`, holds the folder that wandb leaves there."""
    monkeypatch.setitem(sys.modules, name, None)
    if folder:
        (tmp_path / name).mkdir()
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        monkeypatch.delitem(sys.modules, name)
    output = discover("missing", "--track", name)
    assert (output.status, output.out) == (2, "")
    (line,) = output.err.splitlines()
    assert line.startswith(f"circuitsieve: track {name}: found no usable package {name} (")
    assert line.endswith(f'), expected it; install it with `pip install "circuitsieve[{name}]"`')
    assert not (tmp_path / "missing").exists()


def test_an_unknown_tracker_is_one_line(discover, tmp_path):
    output = discover("unknown", "--track", "wand")
    assert output.err == "circuitsieve: track: found 'wand', expected one of trackio, wandb; did you mean 'wandb'?\n"
    assert not (tmp_path / "unknown").exists()


@pytest.mark.usefixtures("database")
def test_a_tracker_that_cannot_begin_is_one_line(discover, monkeypatch):
    import trackio

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(trackio, "init", refused)
    output = discover("refused", "--track", "trackio")
    assert output.status == 2
    assert output.err.splitlines()[-1] == (
        "circuitsieve: track: found trackio unable to begin a run (PermissionError: read-only), expected one; see to it or "
        "leave out --track"
    )


# --- offline by default -------------------------------------------------------------------------------------------------

LISTENING = """
import socket, sys

def unreachable(host, *words, **others):
    with open(sys.argv[2], "a") as file:
        print(host, file=file)
    raise socket.gaierror("no network")

socket.getaddrinfo = unreachable
from circuitsieve.workflow.tracking import tracker_of
tracker = tracker_of(sys.argv[1])
print(tracker.begin("name", {"seed": 1}))
tracker.log(0, {"kl": 0.5})
tracker.finish({"size": 0.25}, completed=True)
"""
"""A process of its own: some requests are made when it ends. It notes what hosts it looks for."""


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracked_run_looks_for_no_host_and_prints_nothing(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    command = [sys.executable, "-c", LISTENING, name, tmp_path / "hosts"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    folder = tmp_path / "trackio" if name == "trackio" else next(tmp_path.glob("wandb/offline-run-*"))
    assert (done.stdout, done.stderr) == (f"{folder}\n", "")
    assert any(folder.iterdir())
    assert not (tmp_path / "hosts").exists()


@pytest.mark.parametrize(("said", "mode"), [(None, "offline"), ("online", "online"), ("disabled", "disabled")])
def test_wandb_goes_online_only_where_the_user_says_so(monkeypatch, said, mode):
    if said is not None:
        monkeypatch.setenv("WANDB_MODE", said)
    import wandb

    found: list[str] = []

    def init(*, mode: str, **_: object) -> SimpleNamespace:
        found.append(mode)
        return SimpleNamespace(url="address", settings=SimpleNamespace(sync_dir="folder"))

    monkeypatch.setattr(wandb, "init", init)
    assert tracker_of("wandb").begin("name", {}) == ("address" if mode == "online" else "folder")
    assert found == [mode]
