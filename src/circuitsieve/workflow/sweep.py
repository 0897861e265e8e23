"""Size against behaviour: the circuits of several methods, sizes and seeds, measured on the same held-out pairs.

A method that learns is run once for every size, and once is enough for one that does not: its ranking is cut at every size. Each
run is kept as soon as it is done, and is not made again by the same sweep: `runs/` has its folder, `points/` what was measured. A
search that was stopped is gone on with.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.tokenising import Pairs
from circuitsieve.disk import files
from circuitsieve.errors import ConfigError, Diverged, OtherSearch, RunError
from circuitsieve.evaluation.card import measure_circuits
from circuitsieve.evaluation.metrics import Summary
from circuitsieve.models.loading import LoadedModel
from circuitsieve.runs.folder import RunFolder
from circuitsieve.runs.provenance import fingerprint, hash_of, records
from circuitsieve.search.discovery import Discovery
from circuitsieve.vocabulary import Granularity, Method
from circuitsieve.workflow.finding import Job, facts_of, found_by, search, tracked_run, usable_pairs
from circuitsieve.workflow.points import Point, kept_points, write_tables
from circuitsieve.workflow.reporting import Reporter
from circuitsieve.workflow.tracking import Tracked, tracker_of


@dataclass(frozen=True)
class Sweep:
    """What is compared."""

    job: Job
    """Model, pairs and folder."""
    settings: tuple[DiscoveryConfig, ...]
    """Of each method, everything but budget and seed."""
    sizes: tuple[float, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("sizes", "seeds"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: found none, expected at least one")
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        object.__setattr__(self, "sizes", tuple(sorted(self.sizes, reverse=True)))
        for size in self.sizes:
            self.settings[0].replaced(size=size)
        for seed in self.seeds:
            list(self.configs(seed))  # says what is wrong with them before anything is loaded

    def configs(self, seed: int) -> Iterator[DiscoveryConfig]:
        """The runs with a seed."""
        for config in self.settings:
            sizes = self.sizes if Method(config.method).learns else self.sizes[:1]
            for size in sizes:
                yield config.replaced(size=size, seed=seed)

    def runs(self, seed: int) -> dict[str, DiscoveryConfig]:
        """The same, by the names of their folders."""
        return {f"{config.method}-{seed}-{config.size}": config for config in self.configs(seed)}

    def measured(self, config: DiscoveryConfig) -> list[float]:
        """The sizes at which the ranking of a run is cut."""
        learns = Method(config.method).learns
        return [size for size in self.sizes if not learns or size == config.size]


def run_sweep(sweep: Sweep, reporter: Reporter) -> list[Point]:
    """Make the runs that are missing and measure them; the tables are written after each, with all that is there.

    Raises:
        CircuitsieveError: whatever is wrong with the model, the data or the folder.
    """
    out = Path(sweep.job.out)
    tracker = tracker_of(sweep.job.track)
    _make_folders(sweep.job.out)
    loaded = sweep.job.load()
    asked = _asked(sweep, loaded, reporter)
    found = {one.name: kept_points(one.kept, one.key) for one in asked}

    def tabled() -> list[Point]:
        points = [point for each in found.values() if each is not None for point in each]
        write_tables(out, points, f"{sweep.job.model}, {sweep.job.task}, {sweep.job.config.ablation} ablation")
        return points

    for one in asked:
        if found[one.name] is None:
            reporter.say(f"{one.name}: searching")
            with tracked_run(tracker, one.job, loaded, one.pairs, reporter) as tracked:
                points = _searched(sweep, one.job, loaded, one.pairs, reporter, tracked)
            files.write_json(one.kept, {"key": one.key, "points": [asdict(point) for point in points]})
            RunFolder(Path(one.job.out)).forget_checkpoints()
            found[one.name] = points
            tabled()
    return tabled()


@dataclass(frozen=True)
class _Asked:
    """A run that is asked for."""

    name: str
    job: Job
    pairs: Pairs
    kept: Path
    """The file of what was measured."""
    key: dict[str, Any]
    """What has to be the same for that to count."""


def _asked(sweep: Sweep, loaded: LoadedModel, reporter: Reporter) -> list[_Asked]:
    """The runs of a sweep, with their pairs."""
    out, weights, runs = Path(sweep.job.out), fingerprint(loaded.model), []
    for seed in sweep.seeds:
        job = replace(sweep.job, data=replace(sweep.job.data, seed=seed))
        pairs = usable_pairs(job, loaded, reporter)
        facts = {"model": weights, "pairs": hash_of(records(pairs))}
        for name, config in sweep.runs(seed).items():
            key = {**facts, "config": config.to_dict(), "sizes": sweep.measured(config)}
            key = json.loads(json.dumps(key))  # as it is read back
            one = replace(job, config=config, out=str(out / "runs" / name))
            runs.append(_Asked(name, one, pairs, out / "points" / f"{name}.json", key))
    return runs


def _make_folders(out: str) -> None:
    if not out:
        raise RunError("out: found no name, expected that of a folder for the sweep")
    try:
        for name in ("runs", "points"):
            (Path(out) / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error.strerror}), expected a folder for the sweep") from error


def _searched(
    sweep: Sweep, job: Job, loaded: LoadedModel, pairs: Pairs, reporter: Reporter, tracked: Tracked
) -> list[Point]:
    """Search once, into the job's folder; the points that this gives."""
    folder = RunFolder.claim(job.out, overwrite=True)
    with folder.locked():
        found, seconds = _gone_on_with(job, loaded, pairs, reporter, tracked, folder)
        found.write(folder, facts_of(job))
    tracked.conclude(found_by(found))
    sizes = sweep.measured(job.config)
    circuits = [found.circuit if size == job.config.size else cut_at(found, size) for size in sizes]
    space = found.circuit.space
    all_open = Circuit(space, space.full(), found.circuit.ablation, found.circuit.constants)
    full, *test = measure_circuits(loaded.model, [all_open, *circuits], pairs.test)
    train = measure_circuits(loaded.model, circuits, pairs.train[: len(pairs.test)])
    own = float(found.check.signals.kl)
    tracked.conclude({**found_by(found), "test": test[0].values}, completed=True)  # the largest size is the run's own
    return [
        Point(
            method=job.config.method,
            seed=job.config.seed,
            asked=size,
            **_kept_of(circuit),
            **_behaviour(summary),
            full_accuracy=full.mean("accuracy"),
            validation_kl=own if circuit is found.circuit else None,
            training_kl=on_train.mean("kl"),
            seconds=seconds,
        )
        for size, circuit, summary, on_train in zip(sizes, circuits, test, train, strict=True)
    ]


def _gone_on_with(
    job: Job, loaded: LoadedModel, pairs: Pairs, reporter: Reporter, tracked: Tracked, folder: RunFolder
) -> tuple[Discovery, float]:
    """The search of a run, from where it was stopped before if it was; and its seconds, those before included."""
    start = time.monotonic()
    try:
        found = search(job, loaded, pairs, reporter, tracked.step, folder.checkpoints)
    except OtherSearch:
        folder.forget_checkpoints()
        found = search(job, loaded, pairs, reporter, tracked.step, folder.checkpoints)
    if found.failure is not None:
        raise Diverged(found.failure)
    if found.interrupted:
        raise KeyboardInterrupt
    return found, found.earlier_seconds + time.monotonic() - start


def cut_at(found: Discovery, size: float) -> Circuit:
    """The circuit of another size that the ranking of a discovery gives."""
    masks = found.ranking.cut(found.ranking.threshold_at(size, found.config.size_by))
    return Circuit(found.circuit.space, masks, found.circuit.ablation, found.circuit.constants)


def _kept_of(circuit: Circuit) -> dict[str, Any]:
    kept = {granularity: n for granularity, (n, _) in circuit.counts.items()}
    return {
        "size": circuit.size,
        "parameters": circuit.share("parameters"),
        "heads": kept[Granularity.HEAD],
        "head_dims": kept[Granularity.HEAD_DIM],
        "mlp_neurons": kept[Granularity.MLP_NEURON],
    }


def _behaviour(summary: Summary) -> dict[str, Any]:
    low, high = summary.intervals["kl"] or (None, None)
    means = {name: summary.mean(name) for name in ("kl", "accuracy", "exact_match")}
    return {**means, "kl_low": low, "kl_high": high, "faithfulness": summary.values["faithfulness"]}
