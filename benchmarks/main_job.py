"""The main job on any tasks, over several seeds: what the README and docs/tasks.md quote.

    python benchmarks/main_job.py --model smollm2 --max-kl 0.16 --seeds 0 --out benchmarks/results/smollm2-ioi-nested-seed-0.json
    python benchmarks/main_job.py --model smollm2 --method hard_concrete --min-faithfulness 0.95 --out smollm2-tasks.json \\
        --tasks gender_pronoun greater_than agreement capitals docstring --markdown docs/tasks.md

The seed draws the pairs, the gates, their noise and the order of the batches. Prints a table for each task (median, lowest
and highest over seeds), writes JSON with the machine, the versions and the command. Run folders lie under --runs. A run that
was finished before by the same command and commit is not made again.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from surroundings import surroundings, write_results  # before all that reads the environment when it is imported

# isort: split

from rich.console import Console
from rich.table import Table

from circuitsieve.cli.progress import RichReporter
from circuitsieve.config import DiscoveryConfig
from circuitsieve.limits import MEASURES
from circuitsieve.vocabulary import Method
from circuitsieve.workflow.finding import Job, run
from finished import options_of
from pages import spread

ROWS = {
    "size": "size",
    "parameters kept": "parameters.kept",
    "heads kept": "kept.head.kept",
    "head dims kept": "kept.head_dim.kept",
    "MLP neurons kept": "kept.mlp_neuron.kept",
    "test KL": "test.kl",
    "validation KL": "validation.kl",
    "test accuracy": "test.accuracy",
    "full model's accuracy": "full.accuracy",
    "test exact match": "test.exact_match",
    "test faithfulness": "test.faithfulness",
    "complement KL": "complement.kl",
    "complement accuracy": "complement.accuracy",
    "random KL": "random.kl",
    "random accuracy": "random.accuracy",
    "random faithfulness": "random.faithfulness",
    "empty KL": "empty.kl",
    "empty accuracy": "empty.accuracy",
    "budget met": "budget_met",
    "seconds, card included": "seconds",
    "peak memory, bytes": "peak_memory_bytes",
}
SHOWN = {
    "size, read-site units kept": ("size", ".1%"),
    "heads kept": ("heads kept", ".0f"),
    "MLP neurons kept": ("MLP neurons kept", ",.0f"),
    "faithfulness": ("test faithfulness", ".3f"),
    "faithfulness, random circuits": ("random faithfulness", ".2f"),
    "KL, nats": ("test KL", ".3f"),
    "KL, random circuits": ("random KL", ".2f"),
    "KL, complement": ("complement KL", ".2f"),
    "KL, empty circuit": ("empty KL", ".2f"),
    "accuracy": ("test accuracy", ".3f"),
    "accuracy, full model": ("full model's accuracy", ".3f"),
    "accuracy, random circuits": ("random accuracy", ".3f"),
    "accuracy, complement": ("complement accuracy", ".3f"),
    "accuracy, empty circuit": ("empty accuracy", ".3f"),
    "seconds, card included": ("seconds, card included", ".0f"),
}
"""The rows of the page: a figure and its format."""
Results = dict[str, float]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tasks", nargs="+", default=["ioi"])
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--max-kl", type=float)
    budget.add_argument("--min-faithfulness", type=float)
    parser.add_argument("--method", default=DiscoveryConfig().method, choices=list(map(str, Method)))
    parser.add_argument("--size-by", default=DiscoveryConfig().size_by, choices=MEASURES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/main_job"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--markdown", type=Path, help="also write the tables here")
    return parser.parse_args()


def one_run(options: argparse.Namespace, task: str, seed: int) -> Results:
    """One discovery with its card; peak memory is that of the whole process so far."""
    name, data = options_of(task, seed)
    job = Job(
        model=options.model,
        task=name,
        out=str(options.runs / f"{Path(options.model).name}-{task.replace(':', '-')}-{seed}"),
        config=DiscoveryConfig(
            method=options.method,
            max_kl=options.max_kl,
            min_faithfulness=options.min_faithfulness,
            size_by=options.size_by,
            seed=seed,
        ),
        data=data,
        overwrite=True,
    )
    with RichReporter() as reporter:
        finished = run(job, reporter)
    if finished.card is None:
        sys.exit(130)
    return {row: finished.card[path] for row, path in ROWS.items()}


def summary(runs: dict[str, Results]) -> list[tuple[str, ...]]:
    """One line a figure: median, lowest and highest over the seeds."""
    lines = []
    for row in ROWS:
        values = [result[row] for result in runs.values() if result[row] is not None]
        figures = (statistics.median(values), min(values), max(values)) if values else ()
        lines.append((row, *(f"{value:,.4g}" for value in figures)))
    return lines


def title(options: argparse.Namespace, task: str) -> str:
    """What was asked for."""
    budget = f"max KL {options.max_kl}" if options.max_kl else f"min faithfulness {options.min_faithfulness}"
    return f"{options.model}, {task}, {options.method}, {budget}, few {options.size_by}, {len(options.seeds)} seeds"


PAGE = """# Tasks, measured

{model}, `--method {method} --size-by {measure}`, {budget}, all else as by default, {seeds} seeds, each with its own words, pairs
and gates; two CPU cores. Medians over the seeds, with the lowest and the highest. Everything is measured on test pairs, which
nothing was tuned on: their words stand in no training pair.

{table}

Faithfulness is 1 for the full model and 0 for the empty circuit, where everything is ablated. Random circuits have as many
nodes as the circuit in every layer, head for head, the complement is all but the circuit. The budget is met on validation
pairs, which choose the circuit; test pairs have other words again.

Written by `{command}`.
"""


def markdown(options: argparse.Namespace, found: dict[str, dict[str, Results]], command: str) -> str:
    """A page of documentation: one table, a column a task."""

    def cell(task: str, row: str, form: str) -> str:
        values = [result[row] for result in found[task].values() if result[row] is not None]
        return spread(values, form) if values else ""

    def met(task: str) -> str:
        return f"{sum(result['budget met'] for result in found[task].values()):.0f} of {len(found[task])}"

    rows = {name: [cell(task, row, form) for task in found] for name, (row, form) in SHOWN.items()}
    rows["budget met on validation pairs"] = [met(task) for task in found]
    table = ["| | " + " | ".join(found) + " |", "| --- |" + " ---: |" * len(found)]
    table += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    return PAGE.format(
        model=options.model,
        method=options.method,
        measure=options.size_by,
        budget=f"`--max-kl {options.max_kl}`" if options.max_kl else f"`--min-faithfulness {options.min_faithfulness}`",
        seeds=len(options.seeds),
        table="\n".join(table),
        command=command,
    )


def main() -> None:
    """Run every task and seed, print the tables, write the results after each run."""
    options = arguments()
    about = surroundings()
    earlier = json.loads(options.out.read_text()) if options.out.exists() else {}
    same = all(earlier.get(fact) == about[fact] for fact in ("command", "commit"))
    found: dict[str, dict[str, Results]] = earlier["tasks"] if same else {}
    for task in options.tasks:
        for seed in options.seeds:
            runs = found.setdefault(task, {})
            if str(seed) not in runs:
                runs[str(seed)] = one_run(options, task, seed)
            results = {**about, "tasks": found}
            write_results(options.out, results)
        table = Table(title=title(options, task), title_justify="left")
        for heading in ("", "median", "lowest", "highest"):
            table.add_column(heading, justify="right")
        for line in summary(found[task]):
            table.add_row(*line)
        Console().print(table)
    if options.markdown is not None:
        options.markdown.write_text(markdown(options, found, about["command"]))


if __name__ == "__main__":
    main()
