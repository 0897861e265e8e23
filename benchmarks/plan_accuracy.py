"""How right `circuitsieve plan` is: time and peak memory predicted, then measured, as a user would see them.

    python benchmarks/plan_accuracy.py --out benchmarks/results/plan.json
    python benchmarks/plan_accuracy.py --jobs "gpt2 ioi" "gpt2 ioi --memory 1GB" --out plan.json

A job is a model, a task and further flags of `discover`. Each is planned and then run, card included, in processes of its own;
time and peak memory of the run are those that its card tells. Prints a table, writes JSON with the machine, the versions and
the command.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from surroundings import surroundings, write_results

# isort: split

from rich.console import Console
from rich.table import Table

JOBS = [
    "demo ioi",
    "smollm2 agreement",
    "smollm2 ioi --max-kl 0.16",
    "smollm2 gender_pronoun --memory 1GB --steps 100",
    "smollm2 capitals --method nested --ablation mean --training-dtype model --steps 200",
]
"""Short and long, roomy and narrow, two methods, two ablations, two dtypes."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", default=JOBS)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def told(command: str, *words: str) -> dict[str, Any]:
    """What a command of circuitsieve prints as JSON."""
    line = [sys.executable, "-m", "circuitsieve", command, *words, "--json"]
    document: dict[str, Any] = json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)
    return document


def compared(job: str) -> dict[str, Any]:
    """The prediction of a job beside what it took."""
    model, task, *flags = shlex.split(job)
    words = ["--model", model, "--task", task, *flags]
    predicted = told("plan", *words)
    with tempfile.TemporaryDirectory() as folder:
        card = told("discover", *words, "--out", f"{folder}/run")
    ratios = {
        "time": predicted["total_seconds"] / card["seconds"],
        "memory": predicted["peak_memory_bytes"] / card["peak_memory_bytes"],
    }
    return {
        "job": job,
        "plan": predicted,
        "seconds": card["seconds"],
        "peak_memory_bytes": card["peak_memory_bytes"],
        "ratios": ratios,
    }


def main() -> None:
    """Plan and run every job, print the table, write the results after each."""
    options = arguments()
    about, rows = surroundings(), []
    table = Table(title="planned and measured", title_justify="left")
    for heading in ("job", "minutes planned", "took", "ratio", "GB planned", "took", "ratio"):
        table.add_column(heading, justify="left" if heading == "job" else "right")
    for job in options.jobs:
        row = compared(job)
        rows.append(row)
        minutes = (row["plan"]["total_seconds"] / 60, row["seconds"] / 60, row["ratios"]["time"])
        memory = (row["plan"]["peak_memory_bytes"] / 2**30, row["peak_memory_bytes"] / 2**30, row["ratios"]["memory"])
        table.add_row(job, *(f"{figure:.2f}" for figure in (*minutes, *memory)))
        write_results(options.out, {**about, "jobs": rows})
    Console().print(table)


if __name__ == "__main__":
    main()
