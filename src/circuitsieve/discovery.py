"""Discovery: masks of every granularity learned in one run (arXiv 2512.10903).

Before the first step the effects of single nodes are measured (`effects`), which is where their ranking starts. Each step:
1. take a batch of pairs and its reference (full and empty answer logits, baselines), computed once per batch;
2. draw masks as the phase does it (`phases`), compose the masks of the sites;
3. run the clean prompts with the baselines mixed in, as far as the answer positions;
4. minimise KL(full || circuit), an optional hinge, and what the phase adds, with respect to its gates or scores alone;
5. let the phase's controller follow the budget, and now and then try the circuit on validation pairs.

At the end the ranking that the gates hold is cut where the budget is just met on validation pairs. The smallest feasible
circuit seen is returned, never just the last one.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from circuitsieve.ablations import OptimalConstants
from circuitsieve.circuit import Circuit, Ranking
from circuitsieve.config import DiscoveryConfig
from circuitsieve.control import Signals
from circuitsieve.data import PairBatch, Pairs
from circuitsieve.errors import ModelError
from circuitsieve.instrument import Subject, frozen, quick_attention
from circuitsieve.objective import hinge, logit_difference
from circuitsieve.phase import Phase
from circuitsieve.phases import phases
from circuitsieve.problem import Problem
from circuitsieve.provenance import describe_model, describe_pairs, records
from circuitsieve.runs import RunFolder
from circuitsieve.selection import Check, Checks, final_cut
from circuitsieve.vocabulary import Ablation

ADAM_BETAS = (0.9, 0.98)
"""The second moment must follow gradients that shrink by orders of magnitude while a gate closes."""
CONSTANTS_LR = 0.02
"""Learning rate of the constants of the optimal ablation, in units of their site's size."""
ADAM_EPS = 1e-15
"""The gradient of one MLP neuron's gate may be as small as 1e-10, and means as much as any other."""


@dataclass(frozen=True, eq=False)
class Discovery:
    """What a discovery found."""

    circuit: Circuit
    ranking: Ranking
    check: Check
    """The circuit on the validation pairs."""
    config: DiscoveryConfig
    pairs: Pairs = field(repr=False)
    history: list[dict[str, int | float]] = field(repr=False)
    """One entry per step: step, seconds since the start of the loop, kl, pressure and more."""
    provenance: dict[str, Any] = field(repr=False)
    """The model's family, weights and the versions of the libraries."""
    interrupted: bool = False

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
            folder.clear()
            sections = {**self.provenance, "data": describe_pairs(self.pairs)}
            for name, facts in (about or {}).items():
                sections[name] = {**sections.get(name, {}), **facts}
            folder.write_json("config.json", {"discovery": self.config.to_dict(), **sections})
            folder.write_pairs(records(self.pairs))
            folder.write_lines("history.jsonl", self.history)
            folder.write_circuit(self.circuit, self.ranking, self.check.summary())
        return folder


OnLook = Callable[[int, int], None]
"""Called with how many batches were looked at, and how many there are."""
OnStep = Callable[[Mapping[str, int | float]], None]
"""Called after every step with its entry of the history."""


def discover(
    model: nn.Module,
    pairs: Pairs,
    config: DiscoveryConfig = DiscoveryConfig(),
    *,
    on_step: OnStep | None = None,
    on_look: OnLook | None = None,
) -> Discovery:
    """Find the smallest circuit that does what the pairs show.

    Args:
        model: any causal language model of transformers whose family is in the table; it is left as it was.
        pairs: training pairs teach the masks, validation pairs choose the circuit; test pairs are not touched.
        config: the budget and everything else.
        on_step: called after every step.
        on_look: called after every batch that is looked at before the first step.

    Returns:
        The circuit, the ranking it was cut from and the history. An interrupt (Ctrl-C) ends the search early and still
        returns the best circuit so far.

    Raises:
        UnsupportedModel: the model's family is not supported.
        HookNotFired: the model does not run a module that the table names.
        DataError: the model cannot read a pair, or a faithfulness is asked for that means nothing on these pairs.
    """
    with frozen(model):
        subject = Subject.of(model)
        problem = Problem.of(subject, pairs, config)
        training = _Training(problem, on_step or (lambda _: None), on_look or (lambda *_: None))
        interrupted = training.run()
        check = final_cut(training.problem_now(), training.phase.ranking(), training.checks.best, quick=interrupted)
    provenance = describe_model(subject.model)
    provenance["model"]["trained_in"] = str(problem.train.subject.model.dtype).removeprefix("torch.")
    return Discovery(
        circuit=check.circuit,
        ranking=check.ranking,
        check=check,
        config=config,
        pairs=pairs,
        history=training.history,
        provenance=provenance,
        interrupted=interrupted,
    )


class _Training:
    """The loop and its state: phase, optimisers, constants, history, checks."""

    def __init__(self, problem: Problem, on_step: OnStep, on_look: OnLook) -> None:
        self.problem, self.on_step, self.on_look = problem, on_step, on_look
        self.constants: OptimalConstants | None = None
        if problem.ablation is Ablation.OPTIMAL and problem.constants is not None:
            self.constants = OptimalConstants(problem.constants, problem.train.references.kinds)
        self.checks = Checks(problem)
        self.history: list[dict[str, int | float]] = []
        self.phase: Phase

    def problem_now(self) -> Problem:
        """The problem with the constants learned so far, where any are learned."""
        return self.problem if self.constants is None else self.problem.with_constants(self.constants.now())

    def run(self) -> bool:
        """Train to the end; True if the user interrupted it."""
        start, batches = time.monotonic(), self.problem.order()
        others: list[Optimizer] = []
        if self.constants is not None:
            others.append(torch.optim.Adam(self.constants.parameters(), lr=CONSTANTS_LR))
        try:
            for phase in phases(self.problem, self.problem_now):
                self.phase = phase
                phase.begin(self.on_look)
                gates = torch.optim.Adam(self.phase.learned.parameters(), betas=ADAM_BETAS, eps=ADAM_EPS)
                for step in range(self.phase.steps):
                    for group in gates.param_groups:
                        group["lr"] = self.phase.learning_rate(step)
                    done = len(self.history)
                    measured = self._step(step, next(batches), [gates, *others])
                    entry = {"step": done, "seconds": time.monotonic() - start, **_numbers(measured, done)}
                    self.history.append(entry | self._check(done))
                    self.on_step(self.history[-1])
        except KeyboardInterrupt:
            return True
        return False

    def _step(self, step: int, batch: PairBatch, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
        masks = self.phase.draw(step)
        with quick_attention(self.problem.train.subject, batch.clean.shape[1]):
            reference = self.problem.train.references(batch)
            baselines = reference.baselines if self.constants is None else self.constants()
            logits = self.problem.logits(masks, batch, baselines)
        signals = self.problem.train.signals(logits, batch, reference)
        loss, margin = signals.kl, self.problem.config.hinge
        if margin is not None:
            loss = loss + hinge(logit_difference(logits, batch.targets), margin).mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        objective, facts = self.phase.objective(step, loss, masks)
        torch.autograd.backward(objective)
        torch.nn.utils.clip_grad_norm_(self.phase.learned.parameters(), self.phase.clip)
        for optimizer in optimizers:
            optimizer.step()
        measured = Signals(*(signal.detach() for signal in signals))
        return {"kl": measured.kl, "accuracy_drop": measured.accuracy_drop, **facts, **self.phase.after(step, measured)}

    def _check(self, step: int) -> dict[str, float]:
        """Now and then: how the circuit so far does on validation pairs."""
        if not (self.phase.tries_circuits and self.checks.due(step)):
            return {}
        check = self.checks.run(self.problem_now(), step, self.phase.ranking())
        self.phase.checked(check.signals)
        return {"validation_kl": float(check.signals.kl), "size": check.circuit.size}


def _numbers(measured: Mapping[str, Tensor], step: int) -> dict[str, int | float]:
    """Plain numbers of a step: here the loop waits for the device (and in `FocusPhase`, whose hard cut needs its size).

    Raises:
        ModelError: the loss is not finite.
    """
    values = dict(zip(measured, torch.stack(list(measured.values())).tolist(), strict=True))
    if not math.isfinite(values["kl"]):
        raise ModelError(
            f"step {step}: found a KL of {values['kl']}, expected a finite one; the model's logits overflow (try another dtype)"
        )
    return values
