"""Tracking: the steps of a search and what it found, told to an experiment tracker while the search goes on.

The libraries are imported when one of them is asked for. They write to this machine unless the user's own variables say
otherwise, and print nothing. A tracker that fails on the way is warned about once; it never stops a search.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib import import_module
from io import StringIO
from types import ModuleType, TracebackType
from typing import Any, Protocol, runtime_checkable

from huggingface_hub import constants

from circuitsieve.errors import ConfigError, one_of
from circuitsieve.workflow.reporting import Reporter

PROJECT = "circuitsieve"
SUMMARY = ("size", "parameters", "kept", "budget_met", "test", "peak_memory_bytes")
"""What of a card, or of circuit.json, sums up a run; no name that a step has too (`seconds`): trackers show its last value."""


@runtime_checkable
class Tracker(Protocol):
    """Keeps runs, one after another; any method may raise whatever its library raises."""

    def begin(self, name: str, config: Mapping[str, Any]) -> str:
        """Open a run; returns where it is kept."""

    def log(self, step: int, numbers: Mapping[str, int | float]) -> None:
        """Keep the numbers of a step."""

    def finish(self, summary: Mapping[str, int | float], *, completed: bool) -> None:
        """Keep what sums up the run, and close it."""


class Trackio:
    """Runs in trackio's database: in TRACKIO_DIR, or beside the Hugging Face cache."""

    def __init__(self) -> None:
        self.library = _library("trackio")
        self.run: Any = None

    def begin(self, name: str, config: Mapping[str, Any]) -> str:
        """Open a run; returns the folder of the database, or the server that the user's variables name."""
        server = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
        with _silence(), nullcontext() if server else _no_hub():
            self.run = self.library.init(
                PROJECT, name, config=dict(config), embed=False, auto_log_cpu=False, auto_log_gpu=False
            )
        return server or str(self.library.TRACKIO_DIR)

    def log(self, step: int, numbers: Mapping[str, int | float]) -> None:
        """Keep the numbers of a step."""
        self.run.log(dict(numbers), step=step)

    def finish(self, summary: Mapping[str, int | float], *, completed: bool) -> None:  # noqa: ARG002 (it keeps no such thing)
        """Keep what sums up the run as one step more (trackio knows no summary), and close it."""
        try:
            if summary:
                self.run.log(dict(summary))
        finally:
            with _silence():
                self.library.finish()


class Wandb:
    """Runs in the files of wandb: in WANDB_DIR, or `wandb` in the working directory; offline unless WANDB_MODE is set."""

    def __init__(self) -> None:
        self.mode = os.environ.get("WANDB_MODE") or "offline"
        if self.mode == "offline":  # what it reports of itself goes online even so; read when it is first used
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self.library = _library("wandb")
        self.run: Any = None

    def begin(self, name: str, config: Mapping[str, Any]) -> str:
        """Open a run; returns its address or, offline, its folder."""
        self.run = self.library.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", name),
            config=dict(config),
            mode=self.mode,
            settings=self.library.Settings(silent=True, console="off", x_disable_stats=True),
        )
        return str(self.run.url if self.mode == "online" else self.run.settings.sync_dir)

    def log(self, step: int, numbers: Mapping[str, int | float]) -> None:
        """Keep the numbers of a step."""
        self.run.log(dict(numbers), step=step)

    def finish(self, summary: Mapping[str, int | float], *, completed: bool) -> None:
        """Keep what sums up the run, and close it: as failed where it is not complete."""
        try:
            self.run.summary.update(dict(summary))
        finally:
            self.run.finish(exit_code=0 if completed else 1)


_TRACKERS: dict[str, Callable[[], Tracker]] = {"trackio": Trackio, "wandb": Wandb}


def tracker_of(name: str | None) -> Tracker | None:
    """The tracker of a name, its library loaded; none without a name.

    Raises:
        ConfigError: there is no such tracker, or its library is missing.
    """
    if name is None:
        return None
    if name not in _TRACKERS:
        raise ConfigError(one_of("track", name, list(_TRACKERS)))
    return _TRACKERS[name]()


class Tracked:
    """One run as its tracker sees it; a context manager, so that the tracker's run is closed however the search ends."""

    def __init__(self, tracker: Tracker | None, reporter: Reporter, name: str, config: Mapping[str, Any]) -> None:
        """Nothing is tracked yet.

        Args:
            tracker: keeps the run; None: nobody does.
            reporter: is told where the run is kept, and of trouble.
            name: of the run.
            config: its configuration, as config.json has it.
        """
        self.tracker, self.reporter, self.name, self.config = tracker, reporter, name, config
        self.summary: dict[str, int | float] = {}
        self.completed = self.failed = False

    def __enter__(self) -> "Tracked":
        """Open the tracker's run.

        Raises:
            ConfigError: the tracker cannot.
        """
        if self.tracker is not None:
            kind = type(self.tracker).__name__.lower()
            try:
                where = self.tracker.begin(self.name, self.config)
            except Exception as error:
                raise ConfigError(
                    f"track: found {kind} unable to begin a run ({_told(error)}), expected one; see to it or leave out --track"
                ) from error
            self.reporter.say(f"tracked by {kind}: {where}")
        return self

    def step(self, entry: Mapping[str, int | float]) -> None:
        """Track a step, as it stands in the history."""
        numbers = {name: value for name, value in entry.items() if name != "step"}
        if not self.failed:
            self._tell(lambda tracker: tracker.log(int(entry["step"]), numbers))

    def conclude(self, found: Mapping[str, Any], *, completed: bool = False) -> None:
        """Say what sums up the run so far; it is tracked at the end.

        Args:
            found: the values of a card or of circuit.json; of these, SUMMARY.
            completed: whether the run did all that it was to do.
        """
        self.summary = dict(_numbers({name: found[name] for name in SUMMARY if name in found}))
        self.completed = completed

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell(lambda tracker: tracker.finish(self.summary, completed=self.completed))

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        if self.tracker is None:
            return
        try:
            what(self.tracker)
        except Exception as error:  # whatever it is, the circuit is worth more
            if not self.failed:
                self.reporter.warn(f"tracking failed ({_told(error)}); the run goes on, the rest of it is not tracked")
            self.failed = True


def _library(name: str) -> ModuleType:
    try:
        library = import_module(name)
        if getattr(library, "__file__", None) is None:  # the folder `wandb` that it leaves in the working directory
            raise ImportError(f"only a folder of that name, {next(iter(library.__path__))}")
        return library
    except ImportError as error:
        raise ConfigError(
            f'track {name}: found no usable package {name} ({error}), expected it; install it with `pip install "'
            f'circuitsieve[{name}]"`'
        ) from error


def _silence() -> redirect_stdout[StringIO]:
    return redirect_stdout(StringIO())


@contextmanager
def _no_hub() -> Iterator[None]:
    """No requests to the hub: trackio asks it for the user's name wherever there is a token."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """Nested numbers by their paths, such as test.kl; what is null is left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield prefix + name, int(value) if isinstance(value, bool) else value


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
