"""Discovery: masks of every granularity learned in one run (arXiv 2512.10903).

Masks are learned step by step (`training`), or nodes are scored once (`attribution`). At the end the ranking that this gives is
cut where the budget is just met on validation pairs. The smallest feasible circuit seen is returned, never just the last one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.tokenising import Pairs
from circuitsieve.exhaustion import exhaustion_named
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.parallel import ALONE, Processes
from circuitsieve.runs.folder import RunFolder
from circuitsieve.runs.provenance import describe_model, describe_pairs, describe_run, records
from circuitsieve.search.attribution import attribution
from circuitsieve.search.checks import Check
from circuitsieve.search.footprint import needs
from circuitsieve.search.problem import Problem
from circuitsieve.search.resuming import Checkpoints, identity_of
from circuitsieve.search.selection import final_cut
from circuitsieve.search.training import OnLook, OnStep, Training
from circuitsieve.vocabulary import Method

OF_MEMORY = ("memory", "disk", "checkpointing")
"""Settings that a search which ran out of memory goes on with other values of."""


@dataclass(frozen=True, eq=False)
class Discovery:
    """What a discovery found."""

    check: Check
    """The circuit, the ranking it was cut from, and how it does on the validation pairs."""
    config: DiscoveryConfig
    pairs: Pairs = field(repr=False)
    history: list[dict[str, int | float]] = field(repr=False)
    """One entry per step: step, seconds since the start of the loop, kl, pressure and more."""
    provenance: dict[str, Any] = field(repr=False)
    """The model's family, weights and the versions of the libraries."""
    interrupted: bool = False
    earlier_seconds: float = 0.0
    """Those of the steps that were made before the search was stopped and gone on with."""
    failure: str | None = None
    """Why the search ended before its time; the circuit is that of its last good checkpoint."""

    @property
    def circuit(self) -> Circuit:
        """What is kept."""
        return self.check.circuit

    @property
    def ranking(self) -> Ranking:
        """What the circuit was cut from."""
        return self.check.ranking

    @property
    def budget_met(self) -> bool | None:
        """Whether the circuit keeps its budget on the validation pairs; None without a budget."""
        return None if math.isnan(self.check.load) else self.check.feasible

    def save(self, path: str | Path, *, overwrite: bool = False, about: Mapping[str, Any] | None = None) -> RunFolder:
        """Write a run folder.

        Args:
            path: a new or empty folder.
            overwrite: whether a run that is there may be replaced.
            about: further facts for config.json, by section (`model`, `data`).

        Raises:
            RunError: the folder holds a run, holds other things, or cannot be written.
        """
        folder = RunFolder.claim(path, overwrite=overwrite)
        with folder.locked():
            self.write(folder, about)
            folder.forget_checkpoints()  # of the run that was there
        return folder

    def write(self, folder: RunFolder, about: Mapping[str, Any] | None = None) -> None:
        """Write into a folder that was claimed; what lies there of an earlier run goes.

        Raises:
            RunError: another process writes there, or it cannot be written.
        """
        with folder.locked():
            folder.clear()
            folder.write_json("config.json", describe_run(self.config, self.provenance, self.pairs, about or {}))
            folder.write_pairs(records(self.pairs))
            folder.write_lines("history.jsonl", self.history)
            folder.write_circuit(self.circuit, self.ranking, {**self.check.summary(), "interrupted": self.interrupted})


def discover(
    model: nn.Module,
    pairs: Pairs,
    config: DiscoveryConfig = DiscoveryConfig(),
    *,
    on_step: OnStep = lambda _: None,
    on_look: OnLook = lambda *_: None,
    checkpoints: str | Path | None = None,
    on_warning: Callable[[str], None] = lambda _: None,
    distributed: bool = False,
    go_on: bool = True,
) -> Discovery:
    """Find the smallest circuit that does what the pairs show.

    Args:
        model: any causal language model of transformers whose family is in the table; it is left as it was.
        pairs: training pairs teach the masks, validation pairs choose the circuit; test pairs are not touched.
        config: the budget and everything else.
        on_step: called after every step.
        on_look: called after every batch that is looked at before the first step.
        checkpoints: a folder where the state of the search is kept every few steps. A search that finds its own state
            there goes on from it, and ends as if it had never been stopped. Its caller removes it.
        on_warning: is told of damaged checkpoints.
        distributed: whether all processes of torch.distributed's default group share the search. Each calls this with the
            same arguments, runs its portion of every batch, and returns the same; the first keeps the checkpoints. An
            interrupt ends it without a result.
        go_on: whether the search goes on from its last checkpoint; if not, what it had come to there is returned.

    Returns:
        The circuit, the ranking it was cut from and the history. An interrupt (Ctrl-C) ends the search early and still
        returns the best circuit so far.

    Raises:
        UnsupportedModel: the model's family is not supported.
        HookNotFired: the model does not run a module that the table names.
        DataError: the model cannot read a pair, or a faithfulness is asked for that means nothing on these pairs.
        ConfigError: the search is to be shared, and there is no process group.
        Diverged: a loss or a gradient is not finite; the checkpoints are still good.
        RunError: checkpoints cannot be written, or those in the folder are of another search, or memory ran out.
    """
    processes = Processes.of_group() if distributed else ALONE
    with frozen(model):
        problem = Problem.of(Subject.of(model), pairs, config, processes)
        provenance = _provenance(problem)
        identity = _identity(config, pairs, provenance)
        kept = Checkpoints(checkpoints, identity, on_warning) if checkpoints is not None else None
        training = Training(problem, on_step, on_look, kept)
        with exhaustion_named(needs(problem.footprint, config)):
            check, interrupted = _found(training, go_on=go_on)
    return Discovery(
        check=check,
        config=config,
        pairs=pairs,
        history=training.history,
        provenance=provenance,
        interrupted=interrupted,
        earlier_seconds=training.earlier,
    )


def _found(training: Training, *, go_on: bool) -> tuple[Check, bool]:
    """The circuit that is chosen in the end, and whether the search was interrupted."""
    problem = training.problem
    if not Method(problem.config.method).learns:
        return final_cut(problem, attribution(problem, training.on_look), None, 0), False
    interrupted = training.run() if go_on else training.recall()
    ranking, best, steps = training.phase.ranking(), training.checks.best, len(training.history)
    return final_cut(training.problem_now(), ranking, best, steps, quick=interrupted), interrupted


def _provenance(problem: Problem) -> dict[str, Any]:
    """What is said of the model, and of how the search runs on it."""
    about = describe_model(problem.subject.model)
    about["model"]["processes"] = problem.train.processes.count
    about["model"]["trained_in"] = str(problem.train.subject.model.dtype).removeprefix("torch.")
    return about


def _identity(config: DiscoveryConfig, pairs: Pairs, provenance: Mapping[str, Any]) -> str:
    """Equal for searches that come to the same end on the same machine, but for the roundings that room for memory decides."""
    model = {key: provenance["model"][key] for key in ("dtype", "fingerprint")}
    model["device"] = provenance["model"]["device"].partition(":")[0]  # each process that shares the search has its own
    versions = {name: version for name, version in provenance["versions"].items() if name != "python"}
    settings = {name: value for name, value in config.to_dict().items() if name not in OF_MEMORY}
    return identity_of(
        {"discovery": settings, "data": describe_pairs(pairs)["hash"], "model": model, "versions": versions}
    )
