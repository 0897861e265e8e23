"""What a training step costs against a bare forward and backward pass of the same clean batch.

    python benchmarks/step_cost.py --model smollm2 --out benchmarks/results/step-cost.json

Bare: the model as transformers runs it, logits at the answer positions only, gradients of activations only. A step: masks drawn,
baselines mixed in, the same passes, gates moved. Both in one process, in the same dtype, one after the other in turn; ratios of
medians. Prompts are random tokens: the cost does not depend on what they say. Prints a table, writes JSON with the machine, the
versions and the command. Around the base case, one thing is varied at a time; --only NAME... picks cases.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from surroundings import surroundings, write_results  # before all that reads the environment when it is imported

# isort: split

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from circuitsieve import DiscoveryConfig, load_model
from circuitsieve.data.batching import PairBatch
from circuitsieve.data.pairs import Pair
from circuitsieve.data.tokenising import Example, Pairs
from circuitsieve.models.instrument import answer_logits
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.search.focus import FocusPhase
from circuitsieve.search.phases import first_phase, next_phase
from circuitsieve.search.problem import Problem
from circuitsieve.search.training import Training
from circuitsieve.vocabulary import DEFAULT_GRANULARITIES, OUT_DIMS, Ablation, Granularity


@dataclass(frozen=True)
class Case:
    """What is measured."""

    batch: int = 16
    length: int = 24
    ablation: str = "corrupted"
    dtype: str = "float32"
    method: str = "hard_concrete"
    granularities: tuple[str, ...] = tuple(map(str, DEFAULT_GRANULARITIES))
    kept: bool = True
    """Corrupted activations are kept, not computed anew."""
    left: float = 1.0
    """The share of the units that a focus computes, chosen at random."""


BASE = Case()
NESTED = replace(BASE, method="nested", granularities=tuple(map(str, (*DEFAULT_GRANULARITIES, *OUT_DIMS))))
ALL = tuple(map(str, Granularity))
CASES = {
    "base": BASE,
    "recomputed": replace(BASE, kept=False),
    "bfloat16": replace(BASE, dtype="bfloat16"),
    "bfloat16, recomputed": replace(BASE, dtype="bfloat16", kept=False),
    "ranking": replace(BASE, method="ranking"),
    "nested": NESTED,
    "nested, a tenth left": replace(NESTED, left=0.1),
    "nested, three tenths left": replace(NESTED, left=0.3),
    "nested, six tenths left": replace(NESTED, left=0.6),
    "bfloat16, nested, a tenth left": replace(NESTED, dtype="bfloat16", left=0.1),
    "all 9 granularities": replace(BASE, granularities=ALL),
    "2 granularities": replace(BASE, granularities=("head", "mlp_neuron")),
    "1 granularity": replace(BASE, granularities=("mlp_neuron",)),
    **{
        str(ablation): replace(BASE, ablation=str(ablation))
        for ablation in Ablation
        if ablation is not Ablation.CORRUPTED
    },
    "4 pairs": replace(BASE, batch=4),
    "48 tokens": replace(BASE, length=48),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def random_pairs(case: Case, vocabulary: int, batches: int) -> Pairs:
    """Pairs of random tokens, all of one length."""
    rng = random.Random(0)

    def prompt() -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(case.length))

    pair = Pair("", "", (), ())
    train = tuple(Example(pair, prompt(), prompt(), (1,), (2,)) for _ in range(batches * case.batch))
    return Pairs(train, train[: case.batch], ())


def bare_step(subject: Subject, batch: PairBatch) -> Callable[[], None]:
    """Forward and backward pass of the untouched model on the clean prompts of a batch."""
    target: Tensor = batch.clean[:, :1]

    def start(_: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].detach().requires_grad_(), *args[1:])

    def step() -> None:
        handle = subject.architecture.blocks[0].register_forward_pre_hook(start)
        try:
            logits = answer_logits(subject, batch.clean, batch.positions)
        finally:
            handle.remove()
        torch.autograd.backward(logits.float().log_softmax(-1).gather(1, target).sum())

    return step


def training_step(case: Case, problem: Problem) -> Callable[[], None]:
    """A step of the search on the same batch, at the start of a phase."""
    training = Training(problem)
    training.begin(first_phase(problem))
    if case.method != "ranking" and (second := next_phase(training.phase, lambda: problem)) is not None:
        training.begin(second)
    if isinstance(training.phase, FocusPhase) and case.left < 1:
        shrinking = training.phase.shrinking
        shrinking.leave({leaf: torch.rand(units.shape) < case.left for leaf, units in shrinking.left.items()})

    def step() -> None:
        measured = training.step(0, problem.train.batches[0])
        torch.stack(list(measured.values())).tolist()

    return step


def seconds(side: Callable[[], None], device: str) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    side()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def measured(model: PreTrainedModel, case: Case, options: argparse.Namespace) -> dict[str, float]:
    """Medians of both sides and their ratio."""
    config = DiscoveryConfig(
        method="nested" if case.method == "nested" else "hard_concrete",
        ablation=case.ablation,
        granularities=case.granularities,
        batch_size=case.batch,
        training_dtype="model",
        ranking_share=0.6 if case.method != "hard_concrete" else 0.0,
        ranking_looks=0,
        memory="8GB" if case.kept else "0GB",
        checkpointing="none",
    )
    with frozen(model):
        problem = Problem.of(Subject.of(model), random_pairs(case, model.config.vocab_size, 2), config)
        sides = {"bare": bare_step(problem.subject, problem.train.batches[0]), "step": training_step(case, problem)}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for i in range(options.rounds + 2):
            for side, call in sides.items():
                took = seconds(call, options.device)
                if i >= 2:  # the first rounds warm caches and keep references
                    times[side].append(took)
    medians = {side: statistics.median(values) for side, values in times.items()}
    ratios = [step / bare for step, bare in zip(times["step"], times["bare"], strict=True)]
    return {**medians, "ratio": medians["step"] / medians["bare"], "lowest": min(ratios), "highest": max(ratios)}


def main() -> None:
    """Measure every case, print the table, write the results."""
    options = arguments()
    models: dict[str, PreTrainedModel] = {}
    rows: dict[str, dict[str, float]] = {}
    for name in options.only:
        case = CASES[name]
        if case.dtype not in models:
            models[case.dtype] = load_model(options.model, dtype=case.dtype, device=options.device).model
        rows[name] = measured(models[case.dtype], case, options)
        print(f"{name}: {rows[name]['ratio']:.2f}", flush=True)
    table = Table(title=f"{options.model}: a step against bare passes", title_justify="left")
    for heading in ("case", "bare, ms", "step, ms", "ratio", "of single rounds"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for name, row in rows.items():
        spread = f"{row['lowest']:.2f}..{row['highest']:.2f}"
        table.add_row(name, f"{1e3 * row['bare']:.0f}", f"{1e3 * row['step']:.0f}", f"{row['ratio']:.2f}", spread)
    Console().print(table)
    results = {**surroundings(), "cases": {name: {**asdict(CASES[name]), **row} for name, row in rows.items()}}
    write_results(options.out, results)


if __name__ == "__main__":
    main()
