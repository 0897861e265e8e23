"""Where the time of a training step goes, beside a bare forward and backward pass, and how far both are from their arithmetic.

    python benchmarks/step_profile.py --model smollm2 --out benchmarks/results/step-profile.json

Self times of PyTorch's operations, summed by what they are for. The arithmetic: 2 x tokens x weights of the projections
multiply-adds, for a forward pass and a backward pass to the activations, at the rate that the machine reaches on a projection
of the model's own shape. Prints a table, writes JSON with the machine, the versions and the command.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from surroundings import surroundings, write_results  # before all that reads the environment when it is imported

# isort: split

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from circuitsieve import DiscoveryConfig, load_model
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.search.problem import Problem
from step_cost import Case, bare_step, random_pairs, training_step

ROUNDS = 5
KINDS = {
    "matrix products": ("mm", "linear", "addmm", "bmm", "matmul"),
    "attention": ("attention", "softmax"),
    "mixing": ("lerp", "_Mix"),
    "sums": ("sum", "mean"),
    "copies": ("copy_", "clone", "cat", "_to_copy", "contiguous", "index", "gather"),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def by_kind(step: Callable[[], None]) -> dict[str, float]:
    """Milliseconds of self time by kind of operation, a step."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(ROUNDS):
            step()
    found: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages():
        kind = next((kind for kind, words in KINDS.items() if any(word in event.key for word in words)), "the rest")
        found[kind] += event.self_cpu_time_total / 1e3 / ROUNDS
    return dict(found)


def arithmetic(problem: Problem, tokens: int) -> float:
    """Milliseconds of the projections' multiply-adds at the rate of one of them, forward and backward."""
    circuit = problem.circuit(problem.space.full())
    weights = circuit.parameters.total
    weight = problem.train.subject.architecture.read_module(next(iter(problem.train.references.sites))).weight
    x = torch.randn(tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        times.append(time.perf_counter() - start)
    rate = tokens * weight.numel() / sorted(times)[len(times) // 2]
    return 1e3 * 2 * tokens * weights / rate


def main() -> None:
    """Profile both sides in every dtype, print the table, write the results."""
    options = arguments()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for dtype in options.dtype:
        case = Case(options.batch, options.length, dtype=dtype)
        model = load_model(options.model, dtype=dtype).model
        config = DiscoveryConfig("hard_concrete", batch_size=case.batch, training_dtype="model", ranking_share=0.0)
        with frozen(model):
            problem = Problem.of(Subject.of(model), random_pairs(case, model.config.vocab_size, 2), config)
            sides = {"bare": bare_step(problem.subject, problem.train.batches[0]), "step": training_step(case, problem)}
            found[dtype] = {side: by_kind(step) for side, step in sides.items()}
            found[dtype]["arithmetic"] = {"matrix products": arithmetic(problem, case.batch * case.length)}
    table = Table(title=f"{options.model}: milliseconds of self time", title_justify="left")
    table.add_column("")
    columns = [(dtype, side) for dtype in found for side in found[dtype]]
    for dtype, side in columns:
        table.add_column(f"{side}, {dtype}", justify="right")
    for kind in (*KINDS, "the rest"):
        table.add_row(kind, *(f"{found[dtype][side].get(kind, 0):.0f}" for dtype, side in columns))
    table.add_row("in all", *(f"{sum(found[dtype][side].values()):.0f}" for dtype, side in columns))
    Console().print(table)
    write_results(options.out, {**surroundings(), "milliseconds": found})


if __name__ == "__main__":
    main()
