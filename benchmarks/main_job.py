"""The main job over several seeds: what the README quotes.

    python benchmarks/main_job.py --model smollm2 --max-kl 0.16 --seeds 0 1 2 --out benchmarks/results/smollm2-ioi.json

The seed draws the pairs, the gates, their noise and the order of the batches. Prints a table, writes JSON with the machine,
the versions and the command. Run folders lie under --runs.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from circuitsieve.config import DiscoveryConfig
from circuitsieve.loaders import TaskOptions
from circuitsieve.progress import RichReporter
from circuitsieve.workflow import Job, run

ROWS = {
    "size": "size",
    "parameters kept": "parameters.kept",
    "heads kept": "kept.head.kept",
    "MLP neurons kept": "kept.mlp_neuron.kept",
    "test KL": "test.kl",
    "validation KL": "validation.kl",
    "test accuracy": "test.accuracy",
    "test exact match": "test.exact_match",
    "test faithfulness": "test.faithfulness",
    "complement KL": "complement.kl",
    "complement accuracy": "complement.accuracy",
    "random KL": "random.kl",
    "random accuracy": "random.accuracy",
    "empty KL": "empty.kl",
    "budget met": "budget_met",
    "seconds, card included": "seconds",
    "peak memory, bytes": "peak_memory_bytes",
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--max-kl", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/main_job"))
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def one_run(options: argparse.Namespace, seed: int) -> dict[str, float]:
    """One discovery with its card."""
    job = Job(
        model=options.model,
        task=options.task,
        out=str(options.runs / f"{options.model}-{options.task}-{seed}"),
        config=DiscoveryConfig(max_kl=options.max_kl, seed=seed),
        data=TaskOptions(seed=seed),
        overwrite=True,
    )
    with RichReporter() as reporter:
        finished = run(job, reporter)
    if finished.card is None:
        sys.exit(130)
    return {row: finished.card[path] for row, path in ROWS.items()}


def main() -> None:
    """Run every seed, print the table, write the results."""
    options = arguments()
    runs = {seed: one_run(options, seed) for seed in options.seeds}
    table = Table(title=f"{options.model}, {options.task}, max KL {options.max_kl}", title_justify="left")
    for heading in ("", "median", "lowest", "highest"):
        table.add_column(heading, justify="right")
    for row in ROWS:
        values = [result[row] for result in runs.values()]
        table.add_row(row, *(f"{value:,.4g}" for value in (statistics.median(values), min(values), max(values))))
    Console().print(table)
    results = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "runs": {str(seed): result for seed, result in runs.items()},
    }
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
