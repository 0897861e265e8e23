"""What a training step takes in memory above the weights, against a bare forward and backward pass of the same clean batch.

    python benchmarks/memory.py --model smollm2 --out benchmarks/results/memory.json

Sides, one after the other in one process: the bare pass; a step with its corrupted activations kept in memory, computed anew,
or kept in a mapped file; the same with every layer run again in the backward pass; a step of nested. Two measures of each: the
rise of the peak of the whole process above what is there between steps (Linux), and the most that the tensors of a step take,
summed over their storages. Prompts are random tokens. Prints a table, writes JSON with the machine, the versions and the command.
"""

import argparse
import ctypes
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surroundings import surroundings, write_results  # before all that reads the environment when it is imported

# isort: split

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from circuitsieve import DiscoveryConfig, load_model
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.search.problem import Problem
from step_cost import Case, bare_step, random_pairs, training_step

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
SETTINGS = {
    "kept in memory": {"memory": "16GB", "checkpointing": "none"},
    "computed anew": {"memory": "0GB", "checkpointing": "none"},
    "kept in a file": {"memory": "0GB", "disk": "16GB", "checkpointing": "none"},
    "computed anew, layers run again": {"memory": "0GB", "checkpointing": "all"},
    "kept in a file, layers run again": {"memory": "0GB", "disk": "16GB", "checkpointing": "all"},
    "nested, kept in memory": {
        "method": "nested",
        "memory": "16GB",
        "checkpointing": "none",
        "ranking_share": 0.2,
        "ranking_looks": 0,
    },
}


class Allocations(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage._cdata for storage in storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in storages(result):
            if storage._cdata not in given:  # else a view of what was there
                self._note(storage)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


def storages(values: Any) -> list[torch.UntypedStorage]:
    """The storages of all tensors among some values."""
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def process_rise(step: Callable[[], None]) -> int:
    """How far the peak of a step rises above what is there before it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    step()
    return resident("VmHWM") - before


def tensors_rise(step: Callable[[], None]) -> int:
    """The most that the tensors of a step take together."""
    gc.collect()
    with Allocations() as allocations:
        step()
    return allocations.peak


def measured(step: Callable[[], None], rounds: int) -> dict[str, int]:
    """Both rises of a warm step: the median of several, and one."""
    step()
    rises = sorted(process_rise(step) for _ in range(rounds))
    return {"process": rises[len(rises) // 2], "tensors": tensors_rise(step)}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Measure every side, print the table, write the results."""
    options = arguments()
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)  # so that what is freed leaves the process at once
    case = Case(batch=options.batch, length=options.length, dtype=options.dtype)
    model = load_model(options.model, dtype=options.dtype).model
    pairs = random_pairs(case, model.config.vocab_size, 2)
    rows: dict[str, dict[str, int]] = {}
    with frozen(model):
        for name, settings in SETTINGS.items():
            config = DiscoveryConfig(
                "hard_concrete", batch_size=case.batch, training_dtype="model", ranking_share=0.0
            ).replaced(**settings)
            problem = Problem.of(Subject.of(model), pairs, config)
            if not rows:
                rows["bare"] = measured(bare_step(problem.subject, problem.train.batches[0]), options.rounds)
            rows[name] = measured(training_step(case, problem), options.rounds)
            del problem
    table = Table(title=f"{options.model}: memory above the weights", title_justify="left")
    for heading in ("", "process, MB", "against bare", "tensors, MB", "against bare"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in rows.items():
        cells = [
            f"{row[kind] / 2**20:.0f}" + "|" + f"{row[kind] / rows['bare'][kind]:.2f}"
            for kind in ("process", "tensors")
        ]
        table.add_row(name, *(part for cell in cells for part in cell.split("|")))
    Console().print(table)
    write_results(options.out, {**surroundings(), "bytes": rows})


if __name__ == "__main__":
    main()
