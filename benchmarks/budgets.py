"""Is what was asked for met, and how closely: every budget, method and task, with the same defaults.

    python benchmarks/budgets.py measure --model demo --out benchmarks/results/budgets/demo.json
    python benchmarks/budgets.py page benchmarks/results/budgets --out docs/budgets.md

`measure` writes JSON with the machine, the versions and the command. What was found before by the same command and commit is not
searched again; checkpoints of what was stopped lie under --runs. `page` makes the tables.
"""

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from surroundings import surroundings, write_results

# isort: split

from circuitsieve.cli.progress import RichReporter
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.pairs import TaskRequest
from circuitsieve.data.tokenising import Pairs
from circuitsieve.models.loading import LoadedModel, load_model
from circuitsieve.vocabulary import Method
from circuitsieve.workflow.finding import Job, search, usable_pairs
from finished import options_of
from pages import command_line, read_results, refuse_repeated, sources

BUDGETS: dict[str, dict[str, Any]] = {
    "max_kl 0.1": {"max_kl": 0.1},
    "max_kl 0.3": {"max_kl": 0.3},
    "min_faithfulness 0.95": {"min_faithfulness": 0.95},
    "size 0.3": {"size": 0.3},
    "size 0.3 by parameters": {"size": 0.3, "size_by": "parameters"},
}
METHODS = tuple(map(str, Method))
Row = dict[str, Any]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser, run, _ = command_line(__doc__, "budgets")
    run.add_argument("--methods", nargs="+", default=METHODS)
    run.add_argument("--budgets", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    run.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> None:
    """Search for every task, method and budget; the results are written after each."""
    about = {**surroundings(), "model": options.model}
    earlier = json.loads(options.out.read_text()) if options.out.exists() else {}
    rows: list[Row] = earlier["rows"] if all(earlier.get(fact) == about[fact] for fact in ("command", "commit")) else []
    made = {(row["task"], row["method"], row["budget"]) for row in rows}
    loaded = load_model(options.model)
    with RichReporter() as reporter:
        for task in options.tasks:
            name, data = options_of(task, options.seed)
            job = Job(options.model, name, str(options.runs), DiscoveryConfig(), data)
            pairs = usable_pairs(job, loaded, reporter)
            for asked in itertools.product([task], options.methods, options.budgets):
                if asked not in made:
                    rows.append(one_search(options, job, loaded, pairs, reporter, *asked))
                    write_results(options.out, {**about, "rows": rows})


def one_search(
    options: argparse.Namespace,
    job: Job,
    loaded: LoadedModel,
    pairs: Pairs,
    reporter: RichReporter,
    task: str,
    method: str,
    budget: str,
) -> Row:
    """What was found on validation pairs, and what the circuit keeps. Test pairs have no say in a budget: no card is made."""
    config = DiscoveryConfig(method=method, seed=options.seed, **BUDGETS[budget])
    words = (Path(options.model).name, task.replace(":", "-"), method, budget.replace(" ", "-"), str(options.seed))
    checkpoints = options.runs / "-".join(words)
    found = search(replace(job, config=config), loaded, pairs, reporter, checkpoints=checkpoints)
    if found.interrupted:
        sys.exit(130)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return {
        "task": task,
        "method": method,
        "budget": budget,
        **{name: value for name, value in found.check.summary().items() if name != "step"},
        "met": found.budget_met,
        "size": found.circuit.size,
        "asked by": config.size_by,
        "share": found.circuit.share(config.size_by),
    }


PAGE = """# Budgets: what was asked for, and what came out

Methods with every budget, with the same defaults, one seed. The *load* is the share of the budget that the circuit uses up on
validation pairs: 1 at its limit, beyond 1 it is missed. Of a KL, a load between 0.95 and 1 is within 5 % of what was asked
for; one well below stands where the next smaller circuit that was tried misses the budget. The load is that of accuracy where
that is the nearer limit: at most {drop} of it may be lost, so {lost} of {pairs} pairs, a load of {load:.3f}. Of a size, the
share that was kept is shown, of the units or of the parameters.

{tables}
Written by `{command}`, from the results of
{commands}.
"""


def page(files: Iterable[Path], command: str) -> str:
    """The page of some files of results."""
    results = read_results(files)
    rows: dict[tuple[str, str], list[Row]] = {}
    for result in results:
        for row in result["rows"]:
            rows.setdefault((result["model"], row["task"]), []).append(row)
    refuse_repeated((*where, row["method"], row["budget"]) for where, found in rows.items() for row in found)
    tables = [f"## {model}, {task}\n\n{table(together)}" for (model, task), together in rows.items()]
    drop, pairs = DiscoveryConfig().max_accuracy_drop, TaskRequest.validation
    lost = int(drop * pairs)
    return PAGE.format(
        drop=drop,
        lost=lost,
        pairs=pairs,
        load=lost / pairs / drop,
        tables="\n".join(tables),
        command=command,
        commands=sources(results),
    )


def table(rows: list[Row]) -> str:
    """A row for every method, a column for every budget."""
    budgets = [budget for budget in BUDGETS if any(row["budget"] == budget for row in rows)]
    lines = ["| load, units kept | " + " | ".join(budgets) + " |", "| --- |" + " ---: |" * len(budgets)]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = {row["budget"]: cell(row) for row in rows if row["method"] == method}
        lines.append(f"| {method.replace('_', ' ')} | " + " | ".join(cells.get(b, "") for b in budgets) + " |")
    return "\n".join(lines) + "\n"


def cell(row: Row) -> str:
    """The load and the units; of a size the share that was kept, of what it was asked in."""
    if row["budget"].startswith("size"):
        return f"{row['share']:.1%}"
    return f"{row['load']:.3f}, {row['size']:.1%}{'' if row['met'] else ', missed'}"


def main() -> None:
    """Measure, or write the page."""
    options = arguments()
    if options.command == "measure":
        measure(options)
    else:
        options.out.write_text(page(options.results, surroundings()["command"]))


if __name__ == "__main__":
    main()
