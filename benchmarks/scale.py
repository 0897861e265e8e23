"""What a search costs on models that do not fit here: formulas, held against what the code does, and what they predict.

    python benchmarks/scale.py --out benchmarks/results/scale.json --page docs/scale.md

Five parts, each made anew unless --parts names others; what is not made is taken from the results:
families  matrix products and memory of a step, counted on two random models of every family, against the formulas;
times     processor seconds of bare passes and steps on random Llamas of four sizes: three coefficients fitted on two of them,
          predicted for the others;
shapes    what a step of 1B, 8B and 70B does, counted while the real code runs on tensors without content;
passes    how many passes a default search makes;
host      processor seconds of what the host does by itself, with the nodes of 1B, 8B and 70B.
Predictions for GPUs follow from the last three (`predictions.py`), without any measurement on one: none was at hand. Writes JSON
with the machine, the versions and the command of every part, and the tables between the marks of the page.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from surroundings import surroundings, write_results  # before all that reads the environment when it is imported

# isort: split

import numpy as np
import torch
from scipy.optimize import nnls

from circuitsieve import DiscoveryConfig
from circuitsieve.data.pairs import TaskRequest
from circuitsieve.models.architectures import supported_model_types
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.workflow import plan
from cost_model import nodes, saved_bytes, work
from counting import Bench, counted, counts, weightless
from families import MEDIUM, TINY, Sizes, config_of, random_model, token_pairs
from host_side import hashing, host_side
from scale_page import tables, with_tables
from step_cost import bare_step

PAIRS = 16
LENGTHS = (20, 512)
"""Tokens of a short task, such as IOI, and of a long one."""
SHARED_BY = 8
"""Devices that share a batch."""
SHAPES = {
    "1B": Sizes(width=2048, layers=16, heads=32, kv_heads=8, neurons=8192, vocabulary=128256),
    "8B": Sizes(width=4096, layers=32, heads=32, kv_heads=8, neurons=14336, vocabulary=128256),
    "70B": Sizes(width=8192, layers=80, heads=64, kv_heads=8, neurons=28672, vocabulary=128256),
}
"""Those of Llama 3.2 1B, Llama 3 8B and Llama 3 70B."""
TIMED = {
    "10M": Sizes(width=320, layers=6, heads=5, kv_heads=5, neurons=864, vocabulary=8192),
    "50M": Sizes(width=640, layers=8, heads=10, kv_heads=5, neurons=1728, vocabulary=16384),
    "135M": Sizes(width=576, layers=30, heads=9, kv_heads=3, neurons=1536, vocabulary=49152),
    "400M": Sizes(width=1024, layers=24, heads=16, kv_heads=8, neurons=2816, vocabulary=49152),
}
FITTED = ("10M", "135M")
"""The others are held out."""
CASES = ((4, 24), (16, 24), (4, 96))
"""Pairs and tokens."""
TERMS = ("flops", "moved", "launches")
Rows = list[dict[str, Any]]


def families() -> Rows:
    """A step of every family on a tiny and a larger random model: counted, and by the formulas."""
    rows = []
    for family in supported_model_types():
        for name, sizes in (("tiny", TINY), ("medium", MEDIUM)):
            model = random_model(config_of(family, sizes))
            found, footprint = counts(model, 4, 24)
            formula = work(Subject.of(model), 4, 24)
            rows.append(
                {
                    "family": family,
                    "sizes": name,
                    "counted": {side: one.flops for side, one in found.items()},
                    "formula": {side: formula.of(side) for side in found},
                    "peak": {side: found[side].peak for side in ("computed anew", "layers again")},
                    "footprint": {"computed anew": footprint.step(0), "layers again": footprint.step(sizes.layers)},
                }
            )
            print(family, name, flush=True)
    return rows


def processor_seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Medians over rounds in which all calls take turns; the first round only warms up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def times(rounds: int) -> Rows:
    """Bare passes, references and steps of random Llamas: seconds, and what is to explain them."""
    rows = []
    for size, sizes in TIMED.items():
        model = random_model(config_of("llama", sizes))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        with frozen(model):
            for pairs, tokens in CASES:
                kept, anew = (Bench(model, pairs, tokens, side) for side in ("kept", "computed anew"))
                calls: dict[str, Callable[[], object]] = {
                    "bare": bare_step(kept.problem.subject, kept.batch),
                    "reference": kept.reference,
                    "kept": kept.step,
                    "computed anew": anew.step,
                }
                taken = processor_seconds(calls, rounds)
                about = {"size": size, "parameters": parameters, "pairs": pairs, "tokens": tokens}
                for side, call in calls.items():
                    rows.append({**about, "side": side, "seconds": taken[side], **asdict(counted(call))})
                print(size, pairs, tokens, {side: round(took, 2) for side, took in taken.items()}, flush=True)
    return fitted(rows)


def fitted(rows: Rows) -> Rows:
    """With seconds predicted from coefficients that make relative errors on the sizes fitted smallest; none below 0."""
    terms = np.array([[float(row[term]) for term in TERMS] for row in rows])
    taken = np.array([row["seconds"] for row in rows])
    of_fit = np.array([row["size"] in FITTED for row in rows])
    relative = terms[of_fit] / taken[of_fit, None]
    scale = relative.max(axis=0)
    coefficients = nnls(relative / scale, np.ones(len(relative)))[0] / scale
    return [
        {
            **row,
            "fitted": row["size"] in FITTED,
            "predicted": float(terms[i] @ coefficients),
            "coefficients": dict(zip(TERMS, coefficients.tolist(), strict=True)),
        }
        for i, row in enumerate(rows)
    ]


def shapes() -> Rows:
    """What is counted of a model without weights, in bfloat16, with a whole batch and with a share of it."""
    rows = []
    for name, sizes in SHAPES.items():
        with weightless():
            model = random_model(config_of("llama", sizes), torch.bfloat16)
            subject = Subject.of(model)
            parameters = sum(parameter.numel() for parameter in model.parameters())
            for tokens in LENGTHS:
                for pairs in (PAIRS, PAIRS // SHARED_BY):
                    found, footprint = counts(model, pairs, tokens)
                    formula = work(subject, pairs, tokens)
                    rows.append(
                        {
                            "shape": name,
                            "parameters": parameters,
                            "width": subject.space.width,
                            "nodes": nodes(subject.space),
                            "pairs": pairs,
                            "tokens": tokens,
                            "counted": {side: asdict(one) for side, one in found.items()},
                            "formula": {side: formula.of(side) for side in found},
                            "footprint": asdict(footprint),
                            "saved": saved_bytes(subject.space, pairs * tokens, model.dtype.itemsize),
                        }
                    )
                    print(name, tokens, pairs, flush=True)
    return rows


def passes() -> dict[str, float]:
    """Batches that a search with gates runs, by what for, where all corrupted activations are kept.

    The plan of a search whose passes all take a second; of a step, it takes off the corrupted run.
    """
    asked, config = TaskRequest, DiscoveryConfig("hard_concrete")
    model = random_model(config_of("llama", TINY))
    found = token_pairs(TINY.vocabulary, LENGTHS[0], asked.train, asked.test)
    found = type(found)(found.train, found.validation[: asked.validation], found.test)
    reference, run, step, check = 1.0, 1.0, 2.0, 1.0
    with mock.patch.object(plan, "_timed", mock.Mock(side_effect=(reference, run, step, check))):
        planned = dict(plan.predict(model, found, config, lambda: 0).seconds)
    gates = planned.pop("steps") - config.ranking_steps
    return {**planned, "steps, ranking": config.ranking_steps, "steps, gates": gates}


def host(rounds: int) -> dict[str, dict[str, float]]:
    """What the host does by itself, by shape."""

    def timer(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
        return processor_seconds(calls, rounds)

    hashed = hashing(timer)
    return {name: {**host_side(sizes, timer), "hashing, s/GB": hashed} for name, sizes in SHAPES.items()}


PARTS: dict[str, Callable[[int], Any]] = {
    "families": lambda _: families(),
    "times": times,
    "shapes": lambda _: shapes(),
    "passes": lambda _: passes(),
    "host": host,
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    return parser.parse_args()


def main() -> None:
    """Make the parts, write the results after each, print the tables and put them into the page."""
    options = arguments()
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    for part in options.parts:
        results[part] = {**surroundings(), "rows": PARTS[part](options.rounds)}
        write_results(options.out, results)
    for name, table in tables(results).items():
        print(f"\n{name}\n{table}")
    if options.page is not None:
        options.page.write_text(with_tables(options.page.read_text(), results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
