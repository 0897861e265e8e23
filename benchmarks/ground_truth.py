"""How well every method finds circuits that are known, head by head and neuron by neuron.

    python benchmarks/ground_truth.py --out benchmarks/results/ground-truth.json --page docs/ground-truth.md

Trains the models of `circuitsieve.evaluation.groundtruth` (a minute or two each on two cores), searches the circuit of each of
their tasks by each method with its defaults, and compares it with what is known. Prints a table (means over tasks and seeds, the
lowest in brackets), writes JSON with the machine, the versions and the command, and replaces the tables of the page.
Each model is trained and searched on one thread; `--jobs` of them run at a time.
"""

import argparse
import itertools
import math
import multiprocessing
import statistics
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from surroundings import surroundings, write_results

# isort: split

import torch
from rich.console import Console

from circuitsieve.config import DiscoveryConfig
from circuitsieve.evaluation.groundtruth import LADDER
from circuitsieve.evaluation.recovery import recovered
from circuitsieve.search.discovery import discover

METHODS = ("nested", "hard_concrete", "integrated_gradients", "attribution", "activation_difference", "random")
SCORES = ("auroc", "average_precision", "precision", "recall")
BEGIN, END = "<!-- tables -->\n", "<!-- end -->"
Rows = list[dict[str, Any]]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", nargs="+", default=list(LADDER), choices=list(LADDER))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max-kl", type=float, default=0.1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    return parser.parse_args()


def measured(options: argparse.Namespace, level: str, seed: int) -> Rows:
    """Every method on every task of a model."""
    model, rows = LADDER[level](seed), []
    for circuit in model.circuits:
        known = {str(g): int(mark.sum()) for g, mark in circuit.truth.items()}
        for method in options.methods:
            config = DiscoveryConfig(method=method, max_kl=options.max_kl, seed=seed)
            found = discover(model.model, circuit.pairs, config)
            scores = {
                g: {name: None if math.isnan(value) else value for name, value in of.items()}
                for g, of in recovered(found.circuit, found.ranking, circuit.truth).items()
            }
            rows.append(
                {"level": level, "seed": seed, "task": circuit.name, "method": method, "known": known, "scores": scores}
            )
    return rows


def tables(rows: Rows) -> str:
    """A table for each level: a row for each method, means over tasks and seeds with the lowest."""
    parts = []
    for level in dict.fromkeys(row["level"] for row in rows):
        same = [row for row in rows if row["level"] == level]
        granularities = list(same[0]["known"])
        counts = ", ".join(f"{statistics.mean(row['known'][g] for row in same):.1f} {g}" for g in granularities)
        models, n = len({row["seed"] for row in same}), len({(row["seed"], row["task"]) for row in same})
        parts.append(f"**{level}**: {models} models, {n} circuits, known nodes of each on average: {counts}.\n")
        headings = [f"{g}: {score.replace('_', ' ')}" for g in granularities for score in SCORES]
        lines = ["| method | " + " | ".join(headings) + " |", "| --- |" + " ---: |" * len(headings)]
        for method in dict.fromkeys(row["method"] for row in same):
            cells = []
            for granularity in granularities:
                for score in SCORES:
                    values = [row["scores"][granularity][score] for row in same if row["method"] == method]
                    values = [value for value in values if value is not None]
                    cells.append(f"{statistics.mean(values):.2f} ({min(values):.2f})")
            lines.append(f"| {method.replace('_', ' ')} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def main() -> None:
    """Train, search, compare; results are written after each model."""
    options = arguments()
    models = list(itertools.product(options.levels, options.seeds))
    found: dict[tuple[str, int], Rows] = {}
    # Spawned, not forked: a forked child hangs in the threads of its parent's torch.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, torch.set_num_threads, (1,)) as pool:
        jobs: dict[Future[Rows], tuple[str, int]] = {pool.submit(measured, options, *model): model for model in models}
        for job in as_completed(jobs):
            found[jobs[job]] = job.result()
            rows = [row for model in models for row in found.get(model, ())]
            write_results(options.out, {**surroundings(), "rows": rows})
            Console(stderr=True).print(f"{jobs[job][0]}, seed {jobs[job][1]}: done")
    text = tables(rows)
    Console().print(text, highlight=False, soft_wrap=True)
    if options.page:
        page = options.page.read_text()
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        about = f"Written by `{surroundings()['command']}`."
        options.page.write_text(before + BEGIN + text + f"\n{about}\n" + END + after)


if __name__ == "__main__":
    main()
