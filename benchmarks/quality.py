"""How good the circuits of every method are, at equal size, on the same held-out pairs.

    python benchmarks/quality.py measure --model smollm2 --tasks ioi ioi:split_names=false greater_than gender_pronoun \\
        --out benchmarks/results/quality/smollm2.json
    python benchmarks/quality.py page benchmarks/results/quality --out docs/quality.md

`measure` makes a sweep for each task (`circuitsieve sweep` makes the same ones) under --runs, where it goes on if it was stopped,
and writes JSON with the machine, the versions and the command. The seed draws the pairs and all that is random in the search. A
task may be given options after a colon. `page` makes the tables of such files: one of all that they have of a model and a task.
"""

import argparse
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from surroundings import surroundings, write_results

# isort: split

from circuitsieve.cli.progress import RichReporter
from circuitsieve.config import DiscoveryConfig
from circuitsieve.runs.folder import RunFolder
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Method
from circuitsieve.workflow.finding import Job
from circuitsieve.workflow.sweep import Sweep, run_sweep
from finished import options_of
from pages import command_line, read_results, refuse_repeated, sources, spread

METHODS = tuple(map(str, Method))
SIZES = (0.16, 0.08, 0.04, 0.02)
RIVAL = "integrated_gradients"
COLUMNS = {
    "KL, nats": ("kl", ".3g"),
    "KL, training pairs": ("training_kl", ".3g"),
    "accuracy": ("accuracy", ".3f"),
    "faithfulness": ("faithfulness", ".2f"),
    "heads": ("heads", ".0f"),
    "head dims": ("head_dims", ",.0f"),
    "MLP neurons": ("mlp_neurons", ",.0f"),
    "parameters": ("parameters", ".1%"),
    "seconds": ("seconds", ".0f"),
}
"""Of the tables: a figure and its format."""
SPREAD = ("kl",)
"""Figures that are shown with the lowest and the highest over the seeds."""
FEW = 6
"""Layers: of so many each is shown."""
Points = list[dict[str, Any]]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser, run, page = command_line(__doc__, "quality")
    run.add_argument("--methods", nargs="+", default=METHODS)
    run.add_argument("--sizes", nargs="+", type=float, default=SIZES)
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    page.add_argument("--remarks", type=Path, help="a file for the end of the introduction")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The points of every task, and where in the model the kept units lie."""
    begun, tasks = surroundings(), {}
    for task in options.tasks:
        folder = options.runs / f"{Path(options.model).name}-{task.replace(':', '-')}"
        name, data = options_of(task)
        settings = tuple(map(DiscoveryConfig, options.methods))
        job = Job(options.model, name, str(folder), settings[0], data)
        sweep = Sweep(job, settings, tuple(options.sizes), tuple(options.seeds))
        with RichReporter() as reporter:
            points = run_sweep(sweep, reporter)
        runs = sorted(run for seed in sweep.seeds for run in sweep.runs(seed))
        layers = {run: units_by_layer(folder / "runs" / run) for run in runs}
        tasks[task] = {"points": [vars(point) for point in points], "units by layer": layers}
    return {**begun, "model": options.model, "tasks": tasks}


def units_by_layer(run: Path) -> dict[str, list[int]]:
    """Kept head dims and MLP neurons of the circuit of a run, layer by layer."""
    circuit, _ = RunFolder.open(run).read_circuit()
    return {str(g): circuit.masks[g].sum(1).tolist() for g in sorted(UNIT_GRANULARITIES)}


PAGE = """# Quality: every method at equal size

Medians over seeds (the lowest and the highest in brackets); each seed draws other words, other pairs and another search. All
figures but those on training pairs are of test pairs, which are in no other split. Of `ioi` their names are in none either; of
`ioi:split_names=false` all splits share them, as published IOI data do. Size is the kept share of the read-site units; all
methods rank the same units, with the same baselines, through the same masks, and are cut at exactly the same sizes (those that
learn also close out dims where that helps, which no size counts). Scores that are not learned look at 384 of the training
pairs, integrated gradients at 4 points each. The last column compares the seeds that both have. Seconds are those
of the search (a method that does not learn is run once for all sizes).

{remarks}{tables}
Written by `{command}`, from the results of
{commands}.
"""


def page(files: Iterable[Path], command: str, remarks: str = "") -> str:
    """The page of some files of results."""
    results = read_results(files)
    measured: dict[tuple[str, str], tuple[Points, dict[str, Any]]] = {}
    for result in results:
        for task, found in result["tasks"].items():
            points, layers = measured.setdefault((result["model"], task), ([], {}))
            points += found["points"]
            layers |= found["units by layer"]
    tables = []
    for (model, task), (points, layers) in measured.items():
        refuse_repeated((model, task, point["method"], point["seed"], point["asked"]) for point in points)
        full = statistics.median({point["seed"]: point["full_accuracy"] for point in points}.values())
        heading = f"## {model}, {task}\n\nAccuracy of the full model: {full:.3f}.\n\n"
        tables.append(f"{heading}{table(points)}\n{duel(points)}{where(layers)}")
    return PAGE.format(tables="\n".join(tables), command=command, commands=sources(results), remarks=remarks)


def table(points: Points) -> str:
    """One row for every size and method."""
    lines = [
        "| size | method | seeds | " + " | ".join(COLUMNS) + f" | KL / {RIVAL.replace('_', ' ')} |",
        "| ---: | --- |" + " ---: |" * (len(COLUMNS) + 2),
    ]
    methods = sorted({point["method"] for point in points}, key=METHODS.index)
    for size in sorted({point["asked"] for point in points}, reverse=True):
        rows = {m: [p for p in points if p["method"] == m and p["asked"] == size] for m in methods}
        rival = {p["seed"]: p["kl"] for p in rows.get(RIVAL, [])}
        for method, same in rows.items():
            if not same:
                continue
            cells = [cell(same, name, form) for name, form in COLUMNS.values()]
            cells += [against(same, rival)]
            lines.append(f"| {size:.0%} | {method.replace('_', ' ')} | {len(same)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def against(same: Points, rival: Mapping[int, float]) -> str:
    """The median KL over that of the rival, over the seeds that both have."""
    both = [(point["kl"], rival[point["seed"]]) for point in same if point["seed"] in rival]
    if not both:
        return ""
    own, other = map(statistics.median, zip(*both, strict=True))
    return format(own / other, ".2f" if own < 10 * other else ",.0f")


def duel(points: Points) -> str:
    """How the two methods that learn compare at the same size and seed."""
    kls = {(point["method"], point["asked"], point["seed"]): point["kl"] for point in points}
    ratios = [
        kl / kls["hard_concrete", asked, seed]
        for (method, asked, seed), kl in kls.items()
        if method == "nested" and ("hard_concrete", asked, seed) in kls
    ]
    if not ratios:
        return ""
    smaller = sum(ratio < 1 for ratio in ratios)
    return (
        f"Seed by seed and size by size nested has {min(ratios):.2f} to {max(ratios):.2f} of hard concrete's KL, and the "
        f"smaller one in {smaller} of {len(ratios)} searches.\n\n"
    )


def where(layers: dict[str, dict[str, list[int]]]) -> str:
    """Where in the model the kept units lie: in each layer, or in layer 0 and each third of many layers."""
    groups: dict[str, list[list[int]]] = {}
    for run, by_granularity in layers.items():
        method, _, size = run.rsplit("-", 2)
        both = [sum(units) for units in zip(*by_granularity.values(), strict=True)]
        groups.setdefault(f"{method.replace('_', ' ')}, {float(size):.0%}", []).append(both)
    bounds = parts(len(next(iter(groups.values()))[0]))
    lines = ["| kept units | " + " | ".join(bounds) + " |", "| --- |" + " ---: |" * len(bounds)]
    for name, runs in groups.items():
        cells = [statistics.median(sum(run[a:b]) for run in runs) for a, b in bounds.values()]
        lines.append(f"| {name} | " + " | ".join(f"{value:,.0f}" for value in cells) + " |")
    return "\n".join(lines) + "\n"


def parts(layers: int) -> dict[str, tuple[int, int]]:
    """The first layer and the one after the last of each part of a model that is shown."""
    if layers <= FEW:
        return {f"layer {layer}": (layer, layer + 1) for layer in range(layers)}
    third = -(-layers // 3)
    return {
        "layer 0": (0, 1),
        "first third": (0, third),
        "second": (third, 2 * third),
        "last": (2 * third, layers),
    }


def cell(same: Points, name: str, form: str) -> str:
    """The median of a figure, and its spread where that is shown."""
    values = [point[name] for point in same if point[name] is not None]
    if not values:
        return ""
    return spread(values, form) if name in SPREAD else format(statistics.median(values), form)


def main() -> None:
    """Measure, or write the page."""
    options = arguments()
    if options.command == "measure":
        write_results(options.out, measure(options))
    else:
        remarks = "" if options.remarks is None else options.remarks.read_text() + "\n"
        options.out.write_text(page(options.results, surroundings()["command"], remarks))


if __name__ == "__main__":
    main()
