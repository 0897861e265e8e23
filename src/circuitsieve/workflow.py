"""The whole way from names to a run folder, as the command line and the benchmarks go it: load, screen, discover,
evaluate, save. What is shown to people on the way is the caller's business (`Reporter`).
"""

import os
import resource
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from circuitsieve import tasks
from circuitsieve.config import DiscoveryConfig
from circuitsieve.control import within
from circuitsieve.data import Pairs, encode, encode_all
from circuitsieve.discovery import Discovery, discover
from circuitsieve.errors import RunError
from circuitsieve.evaluation import Card, evaluate
from circuitsieve.loaders import TaskOptions, load_task
from circuitsieve.models import BUNDLED, LoadedModel, load_model
from circuitsieve.pairs import SPLITS, TextSplits
from circuitsieve.plan import Plan, predict
from circuitsieve.provenance import fingerprint, hash_of
from circuitsieve.runs import PairRecord, RunFolder
from circuitsieve.screening import check_fit, keep_correct, screen
from circuitsieve.sources import read_pairs
from circuitsieve.vocabulary import Method

_SPENT = ("seconds", "peak_memory_bytes")


@runtime_checkable
class Reporter(Protocol):
    """Shows what happens to whoever waits."""

    def say(self, text: str) -> None:
        """A line about what was found."""

    def warn(self, text: str) -> None:
        """A line about what may be wrong."""

    def look(self, done: int, total: int) -> None:
        """A batch is looked at before the search."""

    def step(self, entry: Mapping[str, int | float], config: DiscoveryConfig) -> None:
        """A step of the search is done."""

    def evaluation(self, what: str, done: int, total: int) -> None:
        """A circuit of the evaluation is done."""


@dataclass(frozen=True)
class Job:
    """What is to be discovered, in names."""

    model: str
    task: str
    out: str
    config: DiscoveryConfig
    data: TaskOptions = field(default_factory=TaskOptions)
    dtype: str = "float32"
    device: str = "cpu"
    revision: str | None = None
    only_correct: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Finished:
    """A discovery with its folder, and its card unless it was interrupted."""

    folder: RunFolder
    discovery: Discovery
    card: Card | None


def run(job: Job, reporter: Reporter) -> Finished:
    """Discover a circuit, save it, evaluate it on the test pairs.

    Raises:
        CircuitsieveError: whatever is wrong with the model, the data or the folder.
    """
    start = time.monotonic()
    RunFolder.claim(job.out, overwrite=job.overwrite)
    loaded = load_model(job.model, dtype=job.dtype, device=job.device, revision=job.revision)
    pairs = usable_pairs(job, loaded, reporter)
    discovery = search(job, loaded, pairs, reporter)
    folder = discovery.save(job.out, overwrite=job.overwrite, about=_about(job))
    if discovery.interrupted:
        return Finished(folder, discovery, None)
    card = evaluate(
        loaded.model, discovery.circuit, pairs.test, validation=pairs.validation, progress=reporter.evaluation
    )
    spent = {"seconds": time.monotonic() - start, "peak_memory_bytes": _peak_memory()}
    card = _with_run_facts(card, folder, spent, len(pairs.dropped))
    with folder.locked():
        folder.write_json("card.json", card.values)
    return Finished(folder, discovery, card)


def search(job: Job, loaded: LoadedModel, pairs: Pairs, reporter: Reporter) -> Discovery:
    """Discover a circuit and show how it goes; nothing is written.

    Raises:
        CircuitsieveError: whatever is wrong with the model or the data.
    """
    found = discover(
        loaded.model,
        pairs,
        job.config,
        on_step=lambda entry: reporter.step(entry, job.config),
        on_look=reporter.look,
    )
    made = len(found.history)
    if Method(job.config.method).learns and made < job.config.steps and not found.interrupted:
        reporter.say(f"settled after {made} of {job.config.steps} steps")
    return found


def plan(job: Job, reporter: Reporter) -> Plan:
    """Predict what a job will cost, by a few passes; nothing is written.

    Raises:
        CircuitsieveError: whatever is wrong with the model or the data.
    """
    start = time.monotonic()
    loaded = load_model(job.model, dtype=job.dtype, device=job.device, revision=job.revision)
    pairs = usable_pairs(job, loaded, reporter)
    loading = time.monotonic() - start
    found = predict(loaded.model, pairs, job.config, _resident)
    return replace(found, seconds={"loading model and pairs": loading, **found.seconds})


def usable_pairs(job: Job, loaded: LoadedModel, reporter: Reporter) -> Pairs:
    """The pairs of a job that the model can read; what was dropped, and whether the model does the task, is told.

    Raises:
        CircuitsieveError: whatever is wrong with the data.
    """
    pairs = load_task(job.task, loaded.tokenizer, job.data)
    for split in SPLITS:
        check_fit(loaded.model, pairs.split(split))
    reporter.say(f"{len(pairs.train)} training, {len(pairs.validation)} validation and {len(pairs.test)} test pairs")
    for reason, count in pairs.reasons().items():
        reporter.warn(f"dropped {count} pairs: {reason}")
    if job.only_correct:
        kept = keep_correct(loaded.model, pairs)
        reporter.say(
            f"kept the {len(kept.train)}, {len(kept.validation)} and {len(kept.test)} that the full model gets right"
        )
        pairs = kept
    screened = screen(loaded.model, pairs)
    if screened.is_hopeless:
        reporter.warn(
            f"the full model's accuracy is {screened.full:.2f}, the empty circuit's {screened.empty:.2f}: the model hardly "
            "does this task, so a circuit for it will mean little"
        )
    return pairs


def _resident() -> int:
    """The resident size of this process now, bytes (where the system does not say it: the largest so far)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return _peak_memory()


def _peak_memory() -> int:
    """The largest resident size of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _lasting(name: str, built_in: Collection[str]) -> str:
    """A name that means the same from any working directory."""
    # os.path, not pathlib: what cannot be a path at all (too long a name) is a hub id.
    return name if name in built_in or not os.path.exists(name) else os.path.abspath(name)  # noqa: PTH100, PTH110


def _about(job: Job) -> dict[str, dict[str, Any]]:
    return {
        "model": {"name": _lasting(job.model, BUNDLED), "revision": job.revision, "device": job.device},
        "data": {
            "task": _lasting(job.task, tasks.names()),
            "seed": job.data.seed,
            "options": dict(job.data.options),
            "columns": None if job.data.columns is None else dict(job.data.columns),
            "chat": job.data.chat,
            "only_correct": job.only_correct,
        },
    }


def _with_run_facts(card: Card, folder: RunFolder, spent: Mapping[str, int | float | None], dropped_pairs: int) -> Card:
    """The card with what only the run knows: dropped pairs, whether the budget was met, time and memory."""
    load = folder.look_up("circuit.json", "found", "load")
    reasons = dict(card.values["reasons"])
    if load is None:
        reasons["budget_met"] = "the run had a fixed pressure, not a budget"
    for name in [name for name, value in spent.items() if value is None]:
        reasons[name] = "only measured where a run is discovered and evaluated in one go"
    facts = {
        "dropped_pairs": dropped_pairs,
        "budget_met": None if load is None else int(within(load)),
        **spent,
        "reasons": reasons,
    }
    return Card({**card.values, **facts})


def evaluate_run(path: str, data: str | None, reporter: Reporter, device: str | None = None) -> tuple[RunFolder, Card]:
    """Evaluate the circuit of a run: on its own pairs (the card is saved), or on those of a file (it is not).

    Raises:
        RunError: the folder is damaged, or the model is not the one that the circuit was found in.
        DataError: the pairs of the file cannot be used.
    """
    folder = RunFolder.open(path)
    circuit, _ = folder.read_circuit()
    loaded = load_run_model(folder, device)
    if data is not None:
        examples, dropped = encode_all(read_pairs(Path(data)), loaded.tokenizer)
        for reason, count in Counter(drop.reason for drop in dropped).items():
            reporter.warn(f"dropped {count} pairs: {reason}")
        check_fit(loaded.model, examples)
        card = evaluate(loaded.model, circuit, examples, progress=reporter.evaluation)
        return folder, _with_run_facts(card, folder, dict.fromkeys(_SPENT), len(dropped))
    records = _read_pairs(folder)
    kept = [record for record in records if record.dropped is None]
    pairs = encode(
        TextSplits(*(tuple(record.pair for record in kept if record.split == split) for split in SPLITS)),
        loaded.tokenizer,
    )
    earlier = folder.read_json("card.json") if folder.has("card.json") else {}
    card = evaluate(loaded.model, circuit, pairs.test, validation=pairs.validation, progress=reporter.evaluation)
    card = _with_run_facts(card, folder, {name: earlier.get(name) for name in _SPENT}, len(records) - len(kept))
    with folder.locked():
        folder.write_json("card.json", card.values)
    return folder, card


def _read_pairs(folder: RunFolder) -> list[PairRecord]:
    """The pairs of a run, unless they are others than those that it was made with."""
    records = folder.read_pairs()
    if hash_of(records) != folder.look_up("config.json", "data", "hash"):
        raise RunError(
            f"{folder.path}: found other pairs in pairs.jsonl than those that the run was made with, expected the file as it "
            "was written; to evaluate on other pairs, give their file with --data"
        )
    return records


def load_run_model(folder: RunFolder, device: str | None = None) -> LoadedModel:
    """The model that a run was made with, on the same device or another.

    Raises:
        RunError: config.json does not name it, or its weights are others.
        ModelError: it cannot be loaded.
    """
    name, expected, dtype, first, revision = (
        folder.look_up("config.json", "model", fact) for fact in ("name", "fingerprint", "dtype", "device", "revision")
    )
    loaded = load_model(name, dtype=dtype, device=device or first, revision=revision)
    if fingerprint(loaded.model) != expected:
        raise RunError(
            f"{folder.path}: found other weights in the model {name!r} than those that the circuit was found in; expected the "
            "same checkpoint"
        )
    return loaded
