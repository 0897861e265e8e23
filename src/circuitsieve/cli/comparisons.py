"""Commands that compare: several methods at several sizes, finished runs, and a run with its repetition."""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.text import Text

from circuitsieve.cli.console import damage_named, print_json
from circuitsieve.cli.flags import AS_TYPED, JOB_FLAGS, JobFlags, Wholes, configs_of
from circuitsieve.cli.progress import RichReporter


def sweep(
    *,
    model: str,
    task: str,
    out: str,
    methods: Annotated[tuple[str, ...], AS_TYPED] = (
        "hard_concrete",
        "nested",
        "integrated_gradients",
        "attribution",
        "random",
    ),
    sizes: Annotated[tuple[float, ...], AS_TYPED] = (0.16, 0.08, 0.04, 0.02),
    seeds: Wholes = (0,),
    flags: JobFlags = JOB_FLAGS,
    track: str | None = None,
    json: bool = False,
) -> int:
    """Draw size against KL, accuracy and faithfulness for several methods: tables and a figure in one folder.

    A sweep that was stopped goes on where it stopped when the same command is given again. Method, budget and seed are the
    sweep's; all other settings are those of `discover`.

    Parameters
    ----------
    model
        As for `discover`.
    task
        As for `discover`.
    out
        The folder: sweep.csv, sweep.json and sweep.svg, with the runs below it.
    methods
        Methods of `discover`. Those that learn are run once for every size.
    sizes
        Kept shares, of the units or, with --size-by parameters, of those.
    seeds
        Each draws its own pairs.
    track
        As for `discover`; each search is a tracked run of its own.
    json
        Print the content of sweep.json.
    """
    settings = configs_of(flags.settings, flags.config, methods)
    job = flags.job(model, task, out, track=track, config=settings[0])
    from circuitsieve.report.terminal import sweep_table
    from circuitsieve.workflow.points import read_sweep
    from circuitsieve.workflow.sweep import Sweep, run_sweep

    with RichReporter() as reporter:
        points = run_sweep(Sweep(job, settings, sizes, seeds), reporter)
    if json:
        print_json(read_sweep(out))
    else:
        Console().print(sweep_table(points))
        Console().print(Text(f"figure and tables: {out}"), soft_wrap=True)
    return 0


def compare(*runs: str, html: Path | None = None, json: bool = False) -> int:
    """Show how runs differ: their sizes and metrics side by side, what their circuits share, and what only one has.

    Parameters
    ----------
    runs
        The folders of two or more runs on models of the same shape.
    html
        Also write it as a page with the circuits drawn, into this file; it opens offline.
    json
        Print one JSON document.
    """
    from circuitsieve.disk.files import write_bytes
    from circuitsieve.report.comparison import comparison_page
    from circuitsieve.report.terminal import comparison_view
    from circuitsieve.runs.overlap import compared

    with damage_named(" ".join(runs), "config.json, circuit.json or card.json"):
        found = compared(runs)
        if html is not None:
            write_bytes(html, comparison_page(found).encode())
        if json:
            print_json(found)
        else:
            Console().print(comparison_view(found))
    return 0


def rerun(run: str, /, *, json: bool = False) -> int:
    """Repeat a run from its folder and say whether the same circuit comes out, bit for bit; the folder is left as it is.

    Exit status 0 if it does, 1 if it does not.

    Parameters
    ----------
    run
        The folder of the run.
    json
        Print one JSON document.
    """
    from dataclasses import asdict

    from circuitsieve.report.terminal import repetition_view
    from circuitsieve.workflow.repeating import repeat

    with RichReporter() as reporter, damage_named(run):
        found = repeat(run, reporter)
    if json:
        print_json({"same": found.same, **asdict(found)})
    else:
        Console().print(repetition_view(found))
    return 0 if found.same else 1
