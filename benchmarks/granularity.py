"""Head-level circuits against circuits of every granularity: which is more faithful, and how much of kept heads and MLPs can go.

    python benchmarks/granularity.py --model smollm2 --task ioi --max-kl 0.3 --out benchmarks/results/granularity-smollm2.json

For each seed three searches: `coarse` keeps or ablates whole heads and MLPs (as head-level circuits do) within the KL;
`equal` searches all granularities at exactly the coarse circuit's number of parameters; `within` searches all granularities
at the KL that the coarse circuit has on validation pairs. Prints a table of medians over the seeds, writes JSON with the
machine, the versions and the command.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from surroundings import surroundings

# isort: split

from rich.console import Console
from rich.table import Table

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.cli.progress import RichReporter
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.loaders import TaskOptions
from circuitsieve.evaluation.card import measure_circuits
from circuitsieve.models.loading import LoadedModel, load_model
from circuitsieve.vocabulary import Granularity
from circuitsieve.workflow.finding import Job, search, usable_pairs

COARSE = ("head", "mlp_block")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--max-kl", type=float, default=0.3)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def three(options: argparse.Namespace, loaded: LoadedModel, seed: int) -> dict[str, dict[str, float]]:
    """The three circuits of a seed, on its test pairs."""
    job = Job(options.model, options.task, "", DiscoveryConfig(seed=seed), TaskOptions(seed=seed))
    with RichReporter() as reporter:
        pairs = usable_pairs(job, loaded, reporter)

        def found(**settings: Any) -> tuple[Circuit, float]:
            config = job.config.replaced(**settings)
            discovery = search(Job(job.model, job.task, "", config, job.data), loaded, pairs, reporter)
            return discovery.circuit, float(discovery.check.signals.kl)

        coarse, kl = found(granularities=COARSE, max_kl=options.max_kl)
        circuits = {
            "coarse": coarse,
            "equal": found(size=coarse.share("parameters"), size_by="parameters")[0],
            "within": found(max_kl=kl)[0],
        }
    summaries = measure_circuits(loaded.model, list(circuits.values()), pairs.test)
    return {
        name: {
            "kl": summary.mean("kl"),
            "accuracy": summary.mean("accuracy"),
            "faithfulness": summary.mean("faithfulness"),
            "parameters": circuit.share("parameters"),
            "size": circuit.size,
            **inside(circuit),
        }
        for (name, circuit), summary in zip(circuits.items(), summaries, strict=True)
    }


def inside(circuit: Circuit) -> dict[str, float]:
    """The kept shares of the dims inside kept heads and of the neurons inside kept MLPs."""
    heads, mlps = circuit.masks[Granularity.HEAD], circuit.masks[Granularity.MLP_BLOCK]
    dims, neurons = circuit.masks[Granularity.HEAD_DIM], circuit.masks[Granularity.MLP_NEURON]
    each = dims.shape[1] // heads.shape[1]
    return {
        "heads": float(heads.sum()),
        "MLPs": float(mlps.sum()),
        "head dims inside kept heads": float(dims.sum() / (heads.sum() * each).clamp_min(1)),
        "MLP neurons inside kept MLPs": float(neurons.sum() / (mlps.sum() * neurons.shape[1]).clamp_min(1)),
    }


def main() -> None:
    """Search for every seed, print the medians, write the results."""
    options = arguments()
    loaded, found = load_model(options.model), {}
    for seed in options.seeds:
        found[str(seed)] = three(options, loaded, seed)
        options.out.write_text(json.dumps({**surroundings(), "seeds": found}, indent=2) + "\n")
    names = list(next(iter(found.values())))
    table = Table("", *names, title=f"{options.model}, {options.task}, medians of {len(found)} seeds")
    for row in found[str(options.seeds[0])]["coarse"]:
        medians = (statistics.median(circuits[name][row] for circuits in found.values()) for name in names)
        table.add_row(row, *(f"{value:.4g}" for value in medians))
    Console().print(table)


if __name__ == "__main__":
    main()
