"""The paper's table for any model: percent pruned by granularity, accuracy and KL, with the paper's own settings.

    python benchmarks/paper_table.py --model gpt2 --out paper_table.json
    python benchmarks/paper_table.py --model smollm2 --steps 600 --out paper_table.json    # where its steps take a day

As in the paper, only pairs that the full model gets right are used, and a few hundred of them for training. Prints a table,
writes JSON with the machine and the command. Run folders lie under --runs.
"""

import argparse
import sys
from pathlib import Path

from surroundings import surroundings, write_results  # before all that reads the environment when it is imported

# isort: split

from rich.console import Console
from rich.table import Table

from circuitsieve.cli.progress import RichReporter
from circuitsieve.data.loaders import TaskOptions
from circuitsieve.presets import load_config
from circuitsieve.workflow.finding import Job, run

TASKS = ("ioi", "gender_pronoun", "greater_than")
GRANULARITIES = ("attn_block", "mlp_block", "head", "head_dim", "mlp_neuron", "mlp_out_dim")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--steps", type=int, help="instead of the paper's 2,500 to 6,500")
    parser.add_argument("--train-pairs", type=int, default=400)
    parser.add_argument("--runs", type=Path, default=Path("runs/paper"))
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def row_of(options: argparse.Namespace, task: str) -> dict[str, float]:
    """One discovery with the preset of its task: percent pruned by granularity, accuracy and KL on test pairs."""
    config = load_config(f"paper-{task.replace('_', '-')}")
    if options.steps is not None:
        config = config.replaced(steps=options.steps, warmup=min(config.warmup, options.steps // 5))
    job = Job(
        model=options.model,
        task=task,
        out=str(options.runs / f"{Path(options.model).name}-{task}"),
        config=config,
        data=TaskOptions(train=options.train_pairs, seed=config.seed),
        only_correct=True,
        overwrite=True,
    )
    with RichReporter() as reporter:
        finished = run(job, reporter)
    if finished.card is None:
        sys.exit(130)
    kept = finished.card["kept"]
    parameters = finished.card["parameters"]
    return {
        **{name: 100 * (1 - kept[name]["kept"] / kept[name]["total"]) for name in GRANULARITIES},
        "parameters": 100 * (1 - parameters["kept"] / parameters["total"]),
        "accuracy": finished.card["test.accuracy"],
        "kl": finished.card["test.kl"],
        "steps": config.steps,
        "seconds": finished.card["seconds"],
    }


def main() -> None:
    """Run every task, print the table, write the results."""
    options = arguments()
    rows = {task: row_of(options, task) for task in options.tasks}
    table = Table(title=f"{options.model}: percent pruned, accuracy, KL", title_justify="left")
    table.add_column("")
    for task in rows:
        table.add_column(task, justify="right")
    for name in (*GRANULARITIES, "parameters"):
        table.add_row(name, *(f"{row[name]:.1f} %" for row in rows.values()))
    table.add_section()
    for name, form in (("accuracy", ".3f"), ("kl", ".3f"), ("steps", ",.0f"), ("seconds", ",.0f")):
        table.add_row(name, *(format(row[name], form) for row in rows.values()))
    Console().print(table)
    results = {**surroundings(), "rows": rows}
    write_results(options.out, results)


if __name__ == "__main__":
    main()
