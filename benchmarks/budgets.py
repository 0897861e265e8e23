"""Is what was asked for met, and how closely: every budget, method and task, with the same defaults.

    python benchmarks/budgets.py --model demo --out benchmarks/results/budgets-demo.json

Prints, for each, the load of the circuit on validation pairs (1 at the limit of the budget, above it beyond) and the size; writes
JSON with the machine, the versions and the command. A load well below 1 is no fault where the accuracy guard or the next smaller
circuit decides; beyond 1 the budget is missed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from surroundings import surroundings

# isort: split

from rich.console import Console
from rich.table import Table

from circuitsieve.cli.progress import RichReporter
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.loaders import TaskOptions
from circuitsieve.models.loading import load_model
from circuitsieve.workflow.finding import Job, search, usable_pairs

BUDGETS: dict[str, dict[str, Any]] = {
    "max_kl 0.1": {"max_kl": 0.1},
    "max_kl 0.3": {"max_kl": 0.3},
    "min_faithfulness 0.95": {"min_faithfulness": 0.95},
    "size 0.3": {"size": 0.3},
    "size 0.3 by parameters": {"size": 0.3, "size_by": "parameters"},
}
METHODS = ("hard_concrete", "nested", "integrated_gradients", "attribution", "activation_difference", "random")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tasks", nargs="+", default=["ioi", "greater_than", "gender_pronoun"])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Search for each, print the loads, write the results."""
    options, rows = arguments(), []
    loaded = load_model(options.model)
    table = Table("task", "method", *options.budgets, title=f"{options.model}: load on validation pairs, size")
    with RichReporter() as reporter:
        for task in options.tasks:
            job = Job(options.model, task, "", DiscoveryConfig(seed=options.seed), TaskOptions(seed=options.seed))
            pairs = usable_pairs(job, loaded, reporter)
            for method in options.methods:
                cells = []
                for budget in options.budgets:
                    config = job.config.replaced(method=method, **BUDGETS[budget])
                    found = search(Job(job.model, task, "", config, job.data), loaded, pairs, reporter)
                    row = {"task": task, "method": method, "budget": budget, "met": found.budget_met}
                    row |= {"size": found.circuit.size, **found.check.summary(), "steps": len(found.history)}
                    rows.append(row)
                    cells.append(f"{found.check.load:.3f}, {found.circuit.size:.1%}")
                    options.out.write_text(json.dumps({**surroundings(), "rows": rows}, indent=1) + "\n")
                table.add_row(task, method, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
