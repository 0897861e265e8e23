"""What the command line prints, and how it fails: tables or one JSON document on stdout, one line on stderr."""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from cyclopts import CycloptsError
from rich.console import Console
from rich.text import Text

from circuitsieve.disk.jsontext import finite
from circuitsieve.errors import CircuitsieveError, RunError
from circuitsieve.exhaustion import exhaustion_named
from circuitsieve.launching import is_helper

PATIENCE = 5.0
"""Seconds that a helping process leaves to the first one, which may have found the same; torchrun ends it meanwhile."""

MOMENT, MOMENTS = 0.05, 6
"""Seconds for which the machine is watched before a command starts, and how often before it counts as shared: most of what runs
for a single moment (a process that ends, a kernel's own work) is gone in the next."""
BUSY = 0.5
"""Cores in use in each of these moments."""


def print_json(document: Mapping[str, Any]) -> None:
    """One document on stdout; a number that is not finite becomes null."""
    print(json.dumps(finite(document), indent=2, allow_nan=False))  # noqa: T201


def print_run(summary: Mapping[str, Any], card: Mapping[str, Any] | None, path: str, as_json: bool) -> None:
    """The tables of a run and where it lies; as JSON, its card alone."""
    if as_json:
        print_json(card or {})
        return
    from circuitsieve.report.terminal import run_view

    console = Console()
    console.print(run_view(summary, card))
    console.print(Text(f"Run folder: {path}"), soft_wrap=True)
    report = Path(path) / "report.html"
    if report.is_file():
        console.print(Text(f"Report: {report}"), soft_wrap=True)


@contextmanager
def damage_named(run: str, files: str = "circuit.json or card.json") -> Iterator[None]:
    """What a run's JSON files should hold and do not is the fault of the files; what fails while a model computes is not.

    Args:
        run: the folder.
        files: those of it that are used inside.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        if _computed(error):
            raise
        raise RunError(
            f"{run}: found {files} damaged ({type(error).__name__}: {error}), expected the files of a run"
        ) from error


def _computed(error: Exception) -> bool:
    """Whether a model was computing when it was raised."""
    places = (str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(place.startswith("torch.nn.modules.") for place in places)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can cause into one line on stderr and exit status 2."""
    try:
        with exhaustion_named("more of it; give a smaller --memory or --batch-size, or --dtype bfloat16"):
            yield
    except (CircuitsieveError, CycloptsError) as error:
        if is_helper():
            time.sleep(PATIENCE)
        message = " ".join(str(error).split())
        print(f"circuitsieve: {message}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        if not is_helper():
            print(f"circuitsieve: {str(interrupt) or 'interrupted'}", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output, such as `head`, has gone: what is left of it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)  # as rich does


def end_like_an_interrupt() -> None:
    """Let SIGTERM do what Ctrl-C does: what was found is saved, and nothing is half-written."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt("ended by SIGTERM")

    signal.signal(signal.SIGTERM, interrupt)


def set_up_libraries() -> None:
    """What they read when they are first imported: no bars and advice between ours; on a machine that is shared, threads that
    wait spin only briefly."""
    if "torch" not in sys.modules and "GOMP_SPINCOUNT" not in os.environ and others_compute():
        os.environ["GOMP_SPINCOUNT"] = "1000"
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("ACCELERATE_LOG_LEVEL", "error")


def others_compute() -> bool:
    """Whether other work keeps a core of this machine busy.

    There a thread that spins takes the core from one that it waits for, for a scheduler's slice at a time; where nothing else
    runs, a thread that does not has to be woken up at nearly every operation.
    """
    cores = psutil.cpu_count() or 1
    return all(psutil.cpu_percent(interval=MOMENT) / 100 * cores > BUSY for _ in range(MOMENTS))
