"""Discoveries one after the other in one process, for half an hour: does anything stay behind, is memory flat?

    python benchmarks/soak.py --minutes 30 --out benchmarks/results/soak.json

The bundled model and tiny random ones of several families are searched in turn, by every kind of method, ablation and store.
Most searches are saved, judged and let go; every fifth is interrupted, and every seventh raises, in the middle of a forward
pass. After each, what could be left is counted (`leftovers.py`), and compared with what was there when every kind had run
once. Prints a table over time and the slope of the resident size, writes JSON with the machine, the versions and the command.
Exit status 1 if something was left or the resident size grew. The cycle of jobs begins anew until the time is over.
"""

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surroundings import surroundings, write_results  # before all that reads the environment when it is imported

# isort: split

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from circuitsieve import DiscoveryConfig, EvaluationConfig, TaskOptions, discover, evaluate, load_model, load_task
from circuitsieve.data.tokenising import Pairs
from circuitsieve.runs.folder import RunFolder
from circuitsieve.vocabulary import Method
from families import TINY, config_of, random_model, token_pairs
from leftovers import Left, count, grown, steady, trend

FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox", "opt")
WAYS = (
    {"method": "hard_concrete", "max_kl": 0.5},
    {"method": "nested", "size": 0.3},
    {"method": "attribution", "size": 0.3},
    {"method": "hard_concrete", "ablation": "mean", "shrinking": "on", "max_kl": 0.5},
    {"method": "nested", "ablation": "resample", "max_kl": 0.5},
    {"method": "integrated_gradients", "ablation": "mean", "size": 0.3},
    {"method": "hard_concrete", "ablation": "optimal", "size": 0.4},
)
STORES = (
    {"memory": "1GB"},
    {"memory": "0GB", "disk": "1GB"},
    {"memory": "0GB", "checkpointing": "all"},
)
CARD = EvaluationConfig(random_circuits=2, random_pairs=16, batch_size=8)
BREAKS_IN_PASS = 20
"""The forward pass in which a search is stopped: some steps after its start."""


class Broken(RuntimeError):
    """What a search is made to raise."""


@dataclass(frozen=True)
class Job:
    """One discovery."""

    model: str
    settings: Mapping[str, Any]
    ending: type[BaseException] | None = None
    """What is raised in the middle of a forward pass."""

    @property
    def name(self) -> str:
        """What was asked, in short."""
        ending = "" if self.ending is None else f", {self.ending.__name__}"
        return f"{self.model}: {' '.join(str(value) for value in self.settings.values())}{ending}"


@dataclass(frozen=True)
class Subjects:
    """The models, and pairs for each."""

    models: Mapping[str, nn.Module]
    pairs: Mapping[str, Pairs]

    @classmethod
    def of(cls, train: int) -> "Subjects":
        """The bundled model on IOI, and tiny random models on random tokens.

        Args:
            train: so many training pairs, and half as many validation and test pairs.
        """
        model, tokenizer = load_model("demo")
        models: dict[str, nn.Module] = {"demo": model}
        pairs = {"demo": load_task("ioi", tokenizer, TaskOptions(train=train, validation=train // 2, test=train // 2))}
        for family in FAMILIES:
            models[family] = random_model(config_of(family, TINY))
            pairs[family] = token_pairs(TINY.vocabulary, 8, train, train // 2)
        return cls(models, pairs)


def cycle(steps: int) -> list[Job]:
    """Every way with every store, on one model after the other; some end badly."""
    models = itertools.cycle(("demo", *FAMILIES))
    endings = itertools.cycle((None, None, None, None, KeyboardInterrupt, None, Broken))
    jobs = []
    for store, way in itertools.product(STORES, WAYS):
        length = {"steps": steps} if Method(way["method"]).learns else {}
        settings = {**way, **store, **length, "batch_size": 8, "max_accuracy_drop": 1.0}
        jobs.append(Job(next(models), settings, next(endings)))
    return jobs


@contextmanager
def breaking(model: nn.Module, ending: type[BaseException] | None) -> Iterator[None]:
    """Raise something when a forward pass has come as far as the head, as a Ctrl-C or a full card would."""
    passes = itertools.count(1)

    def stop(*_: object) -> None:
        if next(passes) == BREAKS_IN_PASS:
            raise ending("stopped by the soak")  # type: ignore[misc]

    handles = [] if ending is None else [model.get_output_embeddings().register_forward_pre_hook(stop)]  # type: ignore[operator]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def do(job: Job, subjects: Subjects, folder: Path) -> bool:
    """Search, save, judge, let go; whether the search was stopped as it should be, or ended as it should."""
    model, pairs = subjects.models[job.model], subjects.pairs[job.model]
    config = DiscoveryConfig.from_dict(dict(job.settings))
    try:
        with breaking(model, job.ending):
            found = discover(model, pairs, config)
    except (KeyboardInterrupt, Broken) as stopped:
        return type(stopped) is job.ending
    run = found.save(folder, overwrite=True)
    if found.interrupted:
        return job.ending is KeyboardInterrupt
    card = evaluate(model, found.circuit, pairs.test, validation=pairs.validation, config=CARD)
    with run.locked():
        run.write_json("card.json", card.values)
    RunFolder.open(folder).read_circuit()
    return job.ending is None


def soak(seconds: float, jobs: list[Job], subjects: Subjects) -> Iterator[Left]:
    """Do jobs in turn until the time is over, and count what each leaves.

    Args:
        seconds: for so long, but at least two cycles.
        jobs: of one cycle.
        subjects: models and pairs.
    """
    start, own = time.monotonic(), Path(tempfile.gettempdir())
    folder, before = own / "run", count(subjects.models.values(), own)
    for done in itertools.count(1):
        job = jobs[(done - 1) % len(jobs)]
        as_asked = do(job, subjects, folder)
        strays = sorted(path.name for path in folder.glob(".partial*"))
        shutil.rmtree(folder, ignore_errors=True)
        after = count(subjects.models.values(), own)
        yield Left.between(before, after, done, time.monotonic() - start, job.name, as_asked, strays)
        before = after
        if done >= 2 * len(jobs) and time.monotonic() - start > seconds:
            return


def table_of(rows: list[Left], shown: int = 12) -> Table:
    """Some of the rows, evenly spread."""
    table = Table(title="After discoveries, one after the other in one process", title_justify="left")
    for heading in ("minute", "searches", "MB", "tensors", "MB", "hooks", "open", "mapped", "threads"):
        table.add_column(heading, justify="right")
    for row in rows[:: max(1, len(rows) // shown)]:
        state = row.state
        figures = (
            state.tensors,
            f"{state.tensor_bytes / 2**20:.1f}",
            state.hooks,
            state.open_files,
            state.mapped_files,
        )
        place = (f"{row.seconds / 60:.1f}", row.done, f"{state.resident / 2**20:.1f}")
        table.add_row(*map(str, (*place, *figures, state.threads)))
    return table


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Soak, print the table, write the results; exit status 1 if anything was left."""
    options = arguments()
    jobs, about = cycle(options.steps), surroundings()
    with tempfile.TemporaryDirectory() as own:
        tempfile.tempdir = own  # where the program's own temporary files go, too
        rows = list(soak(60 * options.minutes, jobs, Subjects.of(options.pairs)))
        tempfile.tempdir = None
    complaints = steady(rows, len(jobs)) + grown(rows, len(jobs))
    found = {"discoveries": len(rows), "jobs": [job.name for job in jobs], **trend(rows, len(jobs))}
    Console().print(table_of(rows))
    for name, value in found.items():
        if name != "jobs":
            print(f"{name}: {value}")
    print("\n".join(complaints) or "nothing was left")
    every = max(1, len(rows) // 200)
    results = {**about, **found, "complaints": complaints, "rows": [asdict(row) for row in rows[::every]]}
    write_results(options.out, results)
    sys.exit(bool(complaints))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
