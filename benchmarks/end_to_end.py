"""A whole discovery, validation and final cut included, against as many bare forward and backward passes as it has steps.

    python benchmarks/end_to_end.py --model smollm2 --task ioi --max-kl 0.5 --out benchmarks/results/end-to-end.json

Bare passes are timed in the same process, on training batches spread over all lengths, in the model's own dtype and in that of
the training. Each way of searching is run once per seed. Prints a table, writes JSON with the machine, the versions and the
command.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from surroundings import surroundings  # before all that reads the environment when it is imported

# isort: split

from rich.console import Console
from rich.table import Table
from torch import nn

from circuitsieve import DiscoveryConfig, TaskOptions, discover, load_model, load_task
from circuitsieve.data import Pairs
from circuitsieve.evaluation import evaluate
from circuitsieve.problem import Problem
from circuitsieve.subject import Subject, frozen
from step_cost import bare_step, seconds

SPREAD = 6
"""Batches on which bare passes are timed."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--max-kl", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--shrinking", nargs="+", choices=["on", "off"], default=["on", "off"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def bare_seconds(model: nn.Module, pairs: Pairs, config: DiscoveryConfig, device: str) -> dict[str, float]:
    """The mean over batches of all lengths of a bare forward and backward pass, by dtype."""
    found = {}
    for dtype in ("model", "auto"):
        with frozen(model):
            problem = Problem.of(Subject.of(model), pairs, config.replaced(training_dtype=dtype))
            subject, batches = problem.train.subject, problem.train.batches
            chosen = batches[:: max(1, len(batches) // SPREAD)]
            times = []
            for batch in chosen:
                step = bare_step(subject, batch)
                times.append(statistics.median([seconds(step, device) for _ in range(4)][1:]))
            found[str(subject.model.dtype).removeprefix("torch.")] = statistics.mean(times)
    return found


def main() -> None:
    """Run every search, print the table, write the results."""
    options = arguments()
    loaded = load_model(options.model, device=options.device)
    rows: list[dict[str, object]] = []
    for seed in options.seeds:
        pairs = load_task(options.task, loaded.tokenizer, TaskOptions(seed=seed))
        for shrinking in options.shrinking:
            config = DiscoveryConfig(max_kl=options.max_kl, shrinking=shrinking, seed=seed)
            bare = bare_seconds(loaded.model, pairs, config, options.device)
            start = time.perf_counter()
            found = discover(loaded.model, pairs, config)
            took = time.perf_counter() - start
            card = evaluate(loaded.model, found.circuit, pairs.test)
            ratios = {dtype: took / (config.steps * each) for dtype, each in bare.items()}
            rows.append(
                {
                    "seed": seed,
                    "shrinking": shrinking,
                    "seconds": took,
                    "bare": bare,
                    "ratios": ratios,
                    "size": found.circuit.size,
                    "validation_kl": float(found.check.signals.kl),
                    "test_kl": card["test.kl"],
                    "test_accuracy": card["test.accuracy"],
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    table = Table(title=f"{options.model}, {options.task}, max KL {options.max_kl}", title_justify="left")
    for heading in ("seed", "shrinking", "seconds", "against steps x bare, by dtype", "size", "test KL", "accuracy"):
        table.add_column(heading, justify="right")
    for row in rows:
        ratios = ", ".join(f"{ratio:.2f} ({dtype})" for dtype, ratio in dict(row["ratios"]).items())  # type: ignore[call-overload]
        figures = [f"{row[name]:.3f}" for name in ("size", "test_kl", "test_accuracy")]
        table.add_row(str(row["seed"]), str(row["shrinking"]), f"{row['seconds']:.0f}", ratios, *figures)
    Console().print(table)
    options.out.write_text(json.dumps({**surroundings(), "runs": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
