"""Whole discoveries, validation and final cut included, against as many bare forward and backward passes as they have steps.

    python benchmarks/end_to_end.py --max-kl 0.5 --ways shrinking=off shrinking=on --out benchmarks/results/end-to-end.json
    python benchmarks/end_to_end.py --ways training_dtype=auto training_dtype=model --out benchmarks/results/precision.json

A way is settings of the configuration, as NAME=VALUE[,NAME=VALUE]; all are run with every seed, one after the other, and
compared in cost and in what they find. Bare passes are timed in the same process before each run, on training batches spread over
all lengths, in the model's own dtype and in that of the training. Prints a table, writes JSON with the machine, the versions
and the command.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

from surroundings import surroundings, write_results  # before all that reads the environment when it is imported

# isort: split

from rich.console import Console
from rich.table import Table
from torch import nn

from circuitsieve import DiscoveryConfig, TaskOptions, discover, load_model, load_task
from circuitsieve.data.tokenising import Pairs
from circuitsieve.evaluation.card import evaluate
from circuitsieve.models.loading import LoadedModel
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.search.problem import Problem
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
    parser.add_argument("--ways", nargs="+", default=["shrinking=off", "shrinking=on"])
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


def configured(way: str, max_kl: float, seed: int) -> DiscoveryConfig:
    """The configuration of a way."""
    settings: dict[str, Any] = {"max_kl": max_kl, "seed": seed}
    for word in way.split(","):
        name, _, value = word.partition("=")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return DiscoveryConfig.from_dict(settings, source=f"way {way}")


def one_run(loaded: LoadedModel, pairs: Pairs, config: DiscoveryConfig, device: str) -> dict[str, Any]:
    """One discovery: its cost, and its circuit on test pairs."""
    bare = bare_seconds(loaded.model, pairs, config, device)
    start = time.perf_counter()
    found = discover(loaded.model, pairs, config)
    took = time.perf_counter() - start
    steps = found.history
    card = evaluate(loaded.model, found.circuit, pairs.test)
    return {
        "seconds": took,
        "seconds_of_steps": steps[-1]["seconds"] - steps[0]["seconds"],
        "bare": bare,
        "ratios": {dtype: took / (config.steps * each) for dtype, each in bare.items()},
        "size": found.circuit.size,
        "validation_kl": float(found.check.signals.kl),
        "test_kl": card["test.kl"],
        "test_accuracy": card["test.accuracy"],
    }


def main() -> None:
    """Run every search, print the table, write the results after each."""
    options = arguments()
    loaded = load_model(options.model, device=options.device)
    about, rows = surroundings(), []
    table = Table(title=f"{options.model}, {options.task}, max KL {options.max_kl}", title_justify="left")
    for heading in ("seed", "way", "seconds", "against steps x bare, by dtype", "size", "test KL", "accuracy"):
        table.add_column(heading, justify="right")
    for seed, way in itertools.product(options.seeds, options.ways):
        pairs = load_task(options.task, loaded.tokenizer, TaskOptions(seed=seed))
        found = one_run(loaded, pairs, configured(way, options.max_kl, seed), options.device)
        rows.append({"seed": seed, "way": way, **found})
        ratios = ", ".join(f"{ratio:.2f} ({dtype})" for dtype, ratio in found["ratios"].items())
        figures = [f"{found[name]:.3f}" for name in ("size", "test_kl", "test_accuracy")]
        table.add_row(str(seed), way, f"{found['seconds']:.0f}", ratios, *figures)
        write_results(options.out, {**about, "runs": rows})
    Console().print(table)


if __name__ == "__main__":
    main()
