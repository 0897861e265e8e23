"""Head-level circuits against circuits of every granularity: which is more faithful, and how much of kept heads and MLPs can go.

    python benchmarks/granularity.py measure --model demo --max-kl 0.1 --out benchmarks/results/granularity/demo.json
    python benchmarks/granularity.py page benchmarks/results/granularity --out docs/granularity.md

For each task and seed four searches: `coarse` keeps or ablates whole heads and MLPs (as head-level circuits do) within the KL;
`coarse_equal` and `fine_equal` search for the lowest KL at that circuit's number of parameters, among whole heads and MLPs and
among nodes of all granularities; `fine_within` searches all granularities within the KL that the coarse circuit has on
validation pairs. `measure` writes JSON with the machine, the versions and the command; run folders lie under --runs, where it
goes on if it was stopped. `page` makes the tables.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from surroundings import surroundings, write_results

# isort: split

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.config import DiscoveryConfig
from circuitsieve.runs.folder import RunFolder
from circuitsieve.vocabulary import Granularity
from circuitsieve.workflow.finding import Job
from finished import finished, options_of
from pages import command_line, read_results, sources, spread

COARSE = ("head", "mlp_block")
ROWS = {
    "kl": ("KL, nats", ".3g"),
    "accuracy": ("accuracy", ".3f"),
    "faithfulness": ("faithfulness", ".2f"),
    "parameters": ("parameters kept", ".1%"),
    "size": ("read-site units kept (size)", ".1%"),
    "heads": ("heads kept", ".0f"),
    "MLPs": ("MLPs kept", ".0f"),
    "head dims inside": ("of the dims inside kept heads", ".0%"),
    "MLP neurons inside": ("of the neurons inside kept MLPs", ".0%"),
}
"""Of the tables: what a figure is called, and its format."""
Row = dict[str, float]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser, run, _ = command_line(__doc__, "granularity")
    run.add_argument("--max-kl", type=float, default=0.3)
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    return parser.parse_args()


def measure(options: argparse.Namespace) -> None:
    """Make the circuits of every task and seed; the results are written after each."""
    about = {**surroundings(), "model": options.model, "max_kl": options.max_kl}
    tasks: dict[str, dict[str, dict[str, Row]]] = {}
    for task in options.tasks:
        for seed in options.seeds:
            tasks.setdefault(task, {})[str(seed)] = four(options, task, seed)
            write_results(options.out, {**about, "tasks": tasks})


def four(options: argparse.Namespace, task: str, seed: int) -> dict[str, Row]:
    """The four circuits of a task and a seed, on its test pairs."""
    name, data = options_of(task, seed)

    def found(which: str, **settings: Any) -> RunFolder:
        out = options.runs / f"{Path(options.model).name}-{task.replace(':', '-')}-{seed}-{which}"
        config = DiscoveryConfig(seed=seed, **settings)
        return finished(Job(options.model, name, str(out), config, data, resume=True))

    coarse = found("coarse", granularities=COARSE, max_kl=options.max_kl)
    equal = {"size": coarse.read_circuit()[0].share("parameters"), "size_by": "parameters"}
    runs = {
        "coarse": coarse,
        "coarse_equal": found("coarse_equal", granularities=COARSE, **equal),
        "fine_equal": found("fine_equal", **equal),
        "fine_within": found("fine_within", max_kl=float(coarse.look_up("circuit.json", "found", "kl"))),
    }
    return {which: row(run) for which, run in runs.items()}


def row(run: RunFolder) -> Row:
    """The figures of a run."""
    circuit, _ = run.read_circuit()
    behaviour = {name: run.look_up("card.json", "test", name) for name in ("kl", "accuracy", "faithfulness")}
    return {**behaviour, "parameters": circuit.share("parameters"), "size": circuit.size, **inside(circuit)}


def inside(circuit: Circuit) -> Row:
    """Kept heads and MLPs, and the kept shares of the dims and neurons inside them."""
    heads, mlps = circuit.masks[Granularity.HEAD], circuit.masks[Granularity.MLP_BLOCK]
    dims, neurons = circuit.masks[Granularity.HEAD_DIM], circuit.masks[Granularity.MLP_NEURON]
    each = dims.shape[1] // heads.shape[1]
    return {
        "heads": float(heads.sum()),
        "MLPs": float(mlps.sum()),
        "head dims inside": float(dims.sum() / (heads.sum() * each).clamp_min(1)),
        "MLP neurons inside": float(neurons.sum() / (mlps.sum() * neurons.shape[1]).clamp_min(1)),
    }


PAGE = """# Whole heads, or what is in them

The paper's claim, tested: are circuits of whole heads and MLPs, as most published ones are, less faithful than circuits of head
dims and neurons, and how much of what they keep could go? Four circuits for each task and seed, all of them searched by the
default method and measured on test pairs: *coarse* keeps or ablates whole heads and MLPs, as few units as it can within a KL on
validation pairs; *coarse, equal* and *fine, equal* have the lowest KL that was found with at most as many parameters as that
one, the former of whole heads and MLPs, the latter of any nodes; *fine, within* keeps as few units as it can, of any nodes,
within the KL that coarse came to. Whole nodes are lumps, so *coarse, equal* may leave some parameters over, and be no better
than coarse. Medians over seeds, the lowest and the highest in brackets.

{tables}
Written by `{command}`, from the results of
{commands}.
"""


def page(files: Iterable[Path], command: str) -> str:
    """The page of some files of results."""
    results = read_results(files)
    tables = [
        f"## {result['model']}, {task}, KL {result['max_kl']:g}\n\n{table(list(seeds.values()))}"
        for result in results
        for task, seeds in result["tasks"].items()
    ]
    return PAGE.format(tables="\n".join(tables), command=command, commands=sources(results))


def table(seeds: list[dict[str, Row]]) -> str:
    """One row for every figure, a column for every kind of circuit."""
    kinds = list(seeds[0])
    lines = [
        f"| seeds: {len(seeds)} | " + " | ".join(kind.replace("_", ", ") for kind in kinds) + " |",
        "| --- |" + " ---: |" * len(kinds),
    ]
    for name, (title, form) in ROWS.items():
        cells = [spread([circuits[kind][name] for circuits in seeds], form) for kind in kinds]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or write the page."""
    options = arguments()
    if options.command == "measure":
        measure(options)
    else:
        options.out.write_text(page(options.results, surroundings()["command"]))


if __name__ == "__main__":
    main()
