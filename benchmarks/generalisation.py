"""How well rankings do on pairs with words that they were not learned on: what docs/decisions.md says about it.

    python benchmarks/generalisation.py --model smollm2 --task ioi --out benchmarks/results/smollm2-ioi-generalisation.json

Ranks all nodes, starting equal or at the effects of single nodes, with more and fewer steps of learning, and cuts each ranking at
several sizes. Prints the KL on training pairs and on validation pairs, which share no names with them; the test pairs are
not touched. Writes JSON with the machine, the versions and the command.
"""

import argparse
from pathlib import Path

from surroundings import surroundings, write_results  # before all that reads the environment when it is imported

# isort: split

from rich.console import Console
from rich.table import Table

from circuitsieve import DiscoveryConfig, LoadedModel, TaskOptions, load_model, load_task
from circuitsieve.data.tokenising import Pairs
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.search.discovery import discover
from circuitsieve.search.problem import Problem

SIZES = (0.4, 0.31, 0.22)
JUDGED = 256
"""Pairs of each split."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="ioi")
    parser.add_argument(
        "--looks", type=int, nargs="+", default=[0, 2], help="measurements of single nodes at the start"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 225])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def one_ranking(loaded: LoadedModel, pairs: Pairs, looks: int, steps: int, seed: int) -> list[dict[str, float]]:
    """The KL of the cuts of one ranking. The search ends after its ranking but for one step."""
    config = DiscoveryConfig(
        method="nested", steps=steps, ranking_share=(steps - 1) / steps, ranking_looks=looks, seed=seed
    )
    ranking = discover(loaded.model, pairs, config).ranking
    seen = Pairs(pairs.train[:JUDGED], pairs.validation, pairs.test)
    with frozen(loaded.model):
        problem = Problem.of(Subject.of(loaded.model), seen, config.replaced(training_dtype="model"))
        circuits = [problem.circuit(ranking.cut(ranking.threshold_at(size))) for size in SIZES]
        return [
            {
                "looks": looks,
                "steps": steps,
                "seed": seed,
                "size": circuit.size,
                "training_kl": float(problem.train.measure(circuit).kl),
                "validation_kl": float(problem.validation.measure(circuit).kl),
            }
            for circuit in circuits
        ]


def main() -> None:
    """Rank with every start, number of steps and seed; write after each."""
    options = arguments()
    loaded = load_model(options.model)
    rows: list[dict[str, float]] = []
    for seed in options.seeds:
        pairs = load_task(options.task, loaded.tokenizer, TaskOptions(seed=seed, validation=JUDGED))
        for looks in options.looks:
            for steps in options.steps:
                rows += one_ranking(loaded, pairs, looks, steps, seed)
                results = {**surroundings(), "rows": rows}
                write_results(options.out, results)
    table = Table("looks", "steps", "seed", "size", "training KL", "validation KL")
    for row in rows:
        table.add_row(*(f"{value:.3g}" for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
