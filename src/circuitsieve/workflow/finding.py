"""The whole way from names to a run folder, as the command line and the benchmarks go it: load, screen, discover,
evaluate, save. What is shown to people on the way is the caller's business (`Reporter`).
"""

import json
import os
import resource
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from circuitsieve.config import DiscoveryConfig
from circuitsieve.data import tasks
from circuitsieve.data.loaders import TaskOptions, load_task
from circuitsieve.data.pairs import SPLITS
from circuitsieve.data.tokenising import Pairs
from circuitsieve.errors import Diverged, RunError
from circuitsieve.evaluation.card import Card, evaluate
from circuitsieve.models.loading import BUNDLED, LoadedModel, load_model
from circuitsieve.parallel import ALONE, Processes
from circuitsieve.runs.folder import RunFolder, summary
from circuitsieve.runs.provenance import describe_model, describe_run
from circuitsieve.search.discovery import Discovery, discover
from circuitsieve.search.screening import check_fit, keep_correct, screen
from circuitsieve.search.training import OnStep
from circuitsieve.vocabulary import Method
from circuitsieve.workflow.judging import with_run_facts
from circuitsieve.workflow.plan import Plan, predict
from circuitsieve.workflow.reporting import Reporter
from circuitsieve.workflow.tracking import Tracked, Tracker, tracker_of


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
    resume: bool = False
    """Whether a run that was stopped in the folder is gone on with."""
    track: str | None = None
    """The experiment tracker that is told of it."""
    max_memory: Mapping[str, str] = field(default_factory=dict)
    """With the device `auto`: how much of the weights may go to each device."""

    def load(self) -> LoadedModel:
        """The model and its tokenizer.

        Raises:
            CircuitsieveError: what `load_model` raises.
        """
        return load_model(
            self.model, dtype=self.dtype, device=self.device, revision=self.revision, max_memory=self.max_memory
        )


@dataclass(frozen=True)
class Finished:
    """A discovery with its folder, and its card unless it was interrupted."""

    folder: RunFolder
    loaded: LoadedModel
    discovery: Discovery
    card: Card | None


def run(job: Job, reporter: Reporter, processes: Processes = ALONE) -> Finished:
    """Discover a circuit, save it, evaluate it on the test pairs.

    Where several processes share the search, this is for the first of them; the others `assist`.

    Raises:
        CircuitsieveError: whatever is wrong with the model, the data or the folder.
    """
    tracker = tracker_of(job.track)
    folder = RunFolder.claim(job.out, overwrite=job.overwrite, resume=job.resume)
    with folder.locked():
        return _run(job, folder, tracker, reporter, processes)


def assist(job: Job, reporter: Reporter, processes: Processes) -> None:
    """Share the search of the first process, which writes and evaluates what is found.

    Raises:
        CircuitsieveError: whatever is wrong with the model or the data.
    """
    loaded = job.load()
    pairs = usable_pairs(job, loaded, reporter)
    processes.wait()
    search(job, loaded, pairs, reporter, checkpoints=RunFolder(Path(job.out)).checkpoints, distributed=True)


def _run(job: Job, folder: RunFolder, tracker: Tracker | None, reporter: Reporter, processes: Processes) -> Finished:
    start, distributed = time.monotonic(), processes.count > 1
    loaded = job.load()
    pairs = usable_pairs(job, loaded, reporter)
    if not job.resume:
        folder.forget_checkpoints()
    processes.wait()  # until then the others do not look into the folder
    with tracked_run(tracker, job, loaded, pairs, reporter) as tracked:
        discovery = search(
            job, loaded, pairs, reporter, tracked.step, checkpoints=folder.checkpoints, distributed=distributed
        )
        discovery.write(folder, facts_of(job))
        tracked.conclude(found_by(discovery))
        if discovery.failure is not None:
            raise Diverged(
                f"{discovery.failure}; the circuit of the first {len(discovery.history)} steps lies in {job.out}: see it with "
                f"`circuitsieve evaluate {job.out}`"
            )
        if discovery.interrupted:
            return Finished(folder, loaded, discovery, None)
        folder.forget_checkpoints()
        card = evaluate(
            loaded.model, discovery.circuit, pairs.test, validation=pairs.validation, progress=reporter.evaluation
        )
        seconds = discovery.earlier_seconds + time.monotonic() - start
        spent = {"seconds": seconds, "peak_memory_bytes": _peak_memory()}
        card = with_run_facts(card, folder, spent, len(pairs.dropped))
        folder.write_json("card.json", card.values)
        tracked.conclude(card.values, completed=True)
    return Finished(folder, loaded, discovery, card)


def finished_before(job: Job) -> RunFolder | None:
    """The folder of a job that is to be gone on with, where its search was finished before; None where it was not.

    Raises:
        RunError: another search was finished there.
    """
    folder = RunFolder(Path(job.out))
    if not job.resume or folder.unfinished or not folder.has("circuit.json"):
        return None
    about = RunFolder.open(job.out).read_json("config.json")
    if folder.look_up("circuit.json", "found").get("interrupted"):
        return None
    asked = {"discovery": job.config.to_dict(), **facts_of(job)}
    for section, facts in json.loads(json.dumps(asked)).items():
        there = about.get(section, {})
        for name, value in facts.items():
            if there.get(name) != value:
                raise RunError(
                    f"{job.out}: found a finished run with {section} {name} {there.get(name)!r}, expected {value!r} to go on "
                    "with; choose another folder, or replace the run with --overwrite"
                )
    return folder


def tracked_run(tracker: Tracker | None, job: Job, loaded: LoadedModel, pairs: Pairs, reporter: Reporter) -> Tracked:
    """A job's run as its tracker will see it, named after its folder."""
    # Describing a model reads all of its weights.
    config = {} if tracker is None else describe_run(job.config, describe_model(loaded.model), pairs, facts_of(job))
    return Tracked(tracker, reporter, Path(job.out).absolute().name, config)


def found_by(discovery: Discovery) -> dict[str, Any]:
    """What sums up a search before its circuit is evaluated."""
    return {**summary(discovery.circuit), "budget_met": discovery.budget_met}


def search(
    job: Job,
    loaded: LoadedModel,
    pairs: Pairs,
    reporter: Reporter,
    on_step: OnStep = lambda _: None,
    checkpoints: Path | None = None,
    *,
    distributed: bool = False,
) -> Discovery:
    """Discover a circuit and show how it goes; nothing is written but checkpoints, where a folder for them is given.

    `on_step` is told of every step, as the reporter is.

    Raises:
        CircuitsieveError: whatever is wrong with the model or the data.
    """

    def told(entry: Mapping[str, int | float]) -> None:
        reporter.step(entry, job.config)
        on_step(entry)

    find = partial(
        discover,
        loaded.model,
        pairs,
        job.config,
        on_step=told,
        on_look=reporter.look,
        checkpoints=checkpoints,
        on_warning=reporter.warn,
        distributed=distributed,
    )
    try:
        found = find()
    except Diverged as error:
        if checkpoints is None or not any(checkpoints.glob("*.safetensors")):
            raise
        found = replace(find(go_on=False), interrupted=True, failure=str(error))
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
    loaded = job.load()
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


def facts_of(job: Job) -> dict[str, dict[str, Any]]:
    """What a run folder says of a job beside what the model and the pairs say of themselves: how to get both again."""
    return {
        "model": {
            "name": _lasting(job.model, BUNDLED),
            "dtype": job.dtype,
            "revision": job.revision,
            "device": job.device,
            "max_memory": dict(job.max_memory),
        },
        "data": {
            "task": _lasting(job.task, tasks.names()),
            "asked": {split: getattr(job.data, split) for split in SPLITS},
            "seed": job.data.seed,
            "options": dict(job.data.options),
            "columns": None if job.data.columns is None else dict(job.data.columns),
            "chat": job.data.chat,
            "only_correct": job.only_correct,
        },
    }
