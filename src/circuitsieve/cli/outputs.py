"""Commands that make more of a finished run: edges, figures, files for other tools, a smaller model.

torch and transformers are imported inside, as in `cli`.
"""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from circuitsieve.cli.console import damage_named, print_json
from circuitsieve.cli.flags import Whole
from circuitsieve.cli.progress import RichReporter
from circuitsieve.errors import ConfigError


def edges(
    run: str,
    /,
    *,
    max_change: float = 0.05,
    pairs: Whole = 64,
    points: Whole = 5,
    batch_size: Whole = 8,
    device: str | None = None,
    json: bool = False,
) -> int:
    """Find which edges between the heads and MLPs of a circuit matter; single neurons stay as the circuit has them.

    Parameters
    ----------
    run
        The folder of the run: gets edges.safetensors and edges.json, and a section of the card.
    max_change
        How far faithfulness on validation pairs may move from the circuit's with all its edges, and how far accuracy may fall.
    pairs
        So many training pairs score the edges, and as many validation pairs choose how many are kept.
    points
        At which gradients are taken.
    batch_size
        Pairs that are run at once: memory grows with it.
    device
        Where the model runs; if not given, where the run was made.
    json
        Print what was found as JSON.
    """
    from circuitsieve.evaluation.edges import EdgeConfig
    from circuitsieve.report.edges import edges_view
    from circuitsieve.workflow.publishing import EXHIBITS, renew_report
    from circuitsieve.workflow.wiring import wire_run

    if pairs < 1:
        raise ConfigError(f"--pairs: found {pairs}, expected at least 1")
    config = EdgeConfig(max_change, points, train_pairs=pairs, validation_pairs=pairs, batch_size=batch_size)
    with RichReporter() as reporter, damage_named(run):
        folder, found = wire_run(run, reporter, config, device=device)
        if folder.has(EXHIBITS):
            renew_report(folder)
    if json:
        print_json(found.to_dict())
    else:
        Console().print(edges_view(found.to_dict(), found.edges))
    return 0


def figures(
    run: str, /, *, out: Path, kind: Annotated[Literal["svg", "pdf"], Parameter(name="--format")] = "pdf"
) -> int:
    """Write the figures of a run for a paper: vector graphics, each with its data as CSV beside it.

    Parameters
    ----------
    run
        The folder of the run.
    out
        The folder of the figures.
    kind
        What they are written as.
    """
    from circuitsieve.workflow.publishing import write_figures

    with damage_named(run):
        for path in write_figures(run, out, kind):
            Console().print(Text(str(path)), soft_wrap=True)
    return 0


def export(
    run: str,
    /,
    *,
    out: Path,
    kind: Annotated[Literal["mib", "graphml", "dot", "json", "cytoscape", "csv"], Parameter(name="--format")],
) -> int:
    """Write the circuit of a run for other tools: its heads and MLPs, and the edges between them if they were searched.

    Parameters
    ----------
    run
        The folder of the run.
    out
        The new file; of mib and csv, the new folder.
    kind
        What it is written as: importances of MIB, GraphML, Graphviz's DOT, networkx's node-link JSON, Cytoscape's JSON, tables.
    """
    from circuitsieve.workflow.exporting import export_run

    with damage_named(run):
        export_run(run, out, kind)
    Console().print(Text(f"Export: {out}"), soft_wrap=True)
    return 0


def compact(run: str, /, *, out: Path, recover: Whole = 0, device: str | None = None, json: bool = False) -> int:
    """Write the circuit of a run as a smaller model: what it closed is gone from the weights. `--model` takes its folder.

    A circuit that was found with corrupted prompts has to do without them: closed nodes take their means over the training
    pairs, and what that costs is measured. Search with `--ablation mean` or `optimal` for a circuit that needs no other prompt.

    Parameters
    ----------
    run
        The folder of the run.
    out
        The folder of the model; new or empty.
    recover
        Tune the constants in the place of what is gone for so many steps, on the training pairs.
    device
        Where the model runs; if not given, where the run was made.
    json
        Print what was measured as JSON.
    """
    from circuitsieve.report.compacted import compact_view
    from circuitsieve.workflow.compaction import compact_run

    with RichReporter() as reporter:
        made = compact_run(run, out, reporter, recover_steps=recover, device=device)
    if json:
        print_json(made.about)
    else:
        Console().print(compact_view(made.about))
        Console().print(Text(f"Compact model: {out}"), soft_wrap=True)
    return 0
