"""Discovery: masks of every granularity learned in one run (arXiv 2512.10903).

Each step:
1. take a batch of pairs and its reference (full and empty answer logits, baselines), computed once per batch;
2. draw one sample of every mask, compose the masks of the sites;
3. run the clean prompts with the baselines mixed in, as far as the answer positions;
4. minimise KL(full || circuit), an optional hinge, and pressure x penalty, with respect to the gates alone;
5. let the controller move the pressure (with a budget), and now and then try the circuit on validation pairs.

At the end the ranking that the gates hold is cut where the budget is just met on validation pairs. The smallest feasible
circuit seen is returned, never just the last one.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from circuitsieve.ablations import OptimalConstants
from circuitsieve.circuit import Circuit, Ranking
from circuitsieve.config import DiscoveryConfig
from circuitsieve.control import PressureController, Signals
from circuitsieve.data import PairBatch, Pairs
from circuitsieve.errors import ModelError
from circuitsieve.gates import HardConcrete
from circuitsieve.instrument import Subject, frozen, quick_attention
from circuitsieve.objective import hinge, logit_difference
from circuitsieve.problem import Problem
from circuitsieve.provenance import describe_model, describe_pairs, records
from circuitsieve.runs import RunFolder
from circuitsieve.selection import Check, Checks, final_cut
from circuitsieve.vocabulary import Ablation, Sampling

ADAM_BETAS = (0.9, 0.98)
"""The second moment must follow gradients that shrink by orders of magnitude while a gate closes."""
CONSTANTS_LR = 0.02
"""Learning rate of the constants of the optimal ablation, in units of their site's size."""
NOISE_FALLS = (0.3, 0.7)
"""The shares of the run between which the sampling noise falls."""
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


OnStep = Callable[[Mapping[str, int | float]], None]
"""Called after every step with its entry of the history."""


def discover(
    model: nn.Module,
    pairs: Pairs,
    config: DiscoveryConfig = DiscoveryConfig(),
    *,
    on_step: OnStep | None = None,
) -> Discovery:
    """Find the smallest circuit that does what the pairs show.

    Args:
        model: any causal language model of transformers whose family is in the table; it is left as it was.
        pairs: training pairs teach the masks, validation pairs choose the circuit; test pairs are not touched.
        config: the budget and everything else.
        on_step: called after every step.

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
        training = _Training(problem, on_step or (lambda _: None))
        interrupted = training.run()
        check = final_cut(training.problem_now(), training.ranking(), training.checks.best, quick=interrupted)
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
    """The loop and its state: gates, optimiser, pressure, history, checks."""

    def __init__(self, problem: Problem, on_step: OnStep) -> None:
        config = problem.config
        self.problem, self.config, self.on_step = problem, config, on_step
        self.gates = HardConcrete(
            {g: problem.space.shape(g) for g in problem.granularities},
            seed=config.seed,
            sampling=Sampling(config.sampling),
            init=config.init,
            device=problem.subject.device,
        )
        self.optimizer = torch.optim.Adam(self.gates.parameters(), lr=config.lr, betas=ADAM_BETAS, eps=ADAM_EPS)
        self.constants: OptimalConstants | None = None
        if problem.ablation is Ablation.OPTIMAL and problem.constants is not None:
            self.constants = OptimalConstants(problem.constants, problem.train.references.kinds)
            self.constants_optimizer = torch.optim.Adam(self.constants.parameters(), lr=CONSTANTS_LR)
        self.controller = PressureController(problem.budget, config.steps)
        self.control = self.controller.initial(problem.subject.device)
        self.checks = Checks(problem)
        self.history: list[dict[str, int | float]] = []

    def ranking(self) -> Ranking:
        """The ranking that the gates hold now."""
        return Ranking(self.problem.space, self.gates.ranking())

    def problem_now(self) -> Problem:
        """The problem with the constants learned so far, where any are learned."""
        return self.problem if self.constants is None else self.problem.with_constants(self.constants.now())

    def run(self) -> bool:
        """Train to the end; True if the user interrupted it."""
        start = time.monotonic()
        try:
            for step, batch in enumerate(self.problem.order()):
                measured = self._step(step, batch)
                entry = {"step": step, "seconds": time.monotonic() - start, **_numbers(measured, step)}
                if self.checks.due(step):
                    check = self.checks.run(self.problem_now(), step, self.ranking())
                    self.control = self.controller.checked(check.signals, self.control)
                    entry |= {"validation_kl": float(check.signals.kl), "size": check.circuit.size}
                self.history.append(entry)
                self.on_step(entry)
        except KeyboardInterrupt:
            return True
        return False

    def _step(self, step: int, batch: PairBatch) -> dict[str, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        noise = noise_scale(self.config, step)
        masks = self.gates.draw(step, noise)
        with quick_attention(self.problem.train.subject, batch.clean.shape[1]):
            logits = self.problem.logits(masks, batch, None if self.constants is None else self.constants())
            signals = self.problem.train.signals(logits, batch)
        loss = signals.kl
        if self.config.hinge is not None:
            loss = loss + hinge(logit_difference(logits, batch.targets), self.config.hinge).mean()
        penalty, pressure = self.gates.penalty(self.problem.prices(masks)), self._pressure(step)
        self.optimizer.zero_grad()
        if self.constants is not None:
            self.constants_optimizer.zero_grad()
        torch.autograd.backward(loss + pressure * penalty)
        torch.nn.utils.clip_grad_norm_(self.gates.parameters(), self.config.clip)
        self.optimizer.step()
        if self.constants is not None:
            self.constants_optimizer.step()
        if self.gates.sampling is Sampling.HARD:
            self.gates.keep_reversible()
        measured = Signals(*(signal.detach() for signal in signals))
        self.control = self.controller.step(step, measured, self.control)
        return {
            "kl": measured.kl,
            "smoothed_kl": self.control.signals.kl,
            "accuracy_drop": measured.accuracy_drop,
            "pressure": pressure,
            "penalty": penalty.detach(),
            **{f"open.{g}": (scores > 0).float().mean() for g, scores in self.gates.scores().items()},
        }

    def _pressure(self, step: int) -> Tensor:
        """The fixed pressure or the controller's, faded in over the warm-up."""
        fixed = self.config.pressure
        pressure = self.control.pressure if fixed is None else torch.tensor(fixed, device=self.problem.subject.device)
        return pressure * min(1.0, (step + 1) / max(1, self.config.warmup))


def learning_rate(config: DiscoveryConfig, step: int) -> float:
    """The learning rate of a step under the configured schedule."""
    done = step / max(1, config.steps - 1)
    match config.lr_schedule:
        case "linear":
            share = 1 - done
        case "cosine":
            share = (1 + math.cos(math.pi * done)) / 2
        case _:
            return config.lr
    return config.lr_end + (config.lr - config.lr_end) * share


def noise_scale(config: DiscoveryConfig, step: int) -> float:
    """The share of the sampling noise at a step: 1 at first, then falling linearly to the final share, which then stays."""
    first, last = NOISE_FALLS
    done = step / max(1, config.steps - 1)
    return 1 - (1 - config.final_noise) * min(1.0, max(0.0, (done - first) / (last - first)))


def _numbers(measured: Mapping[str, Tensor], step: int) -> dict[str, int | float]:
    """Plain numbers of a step: the only place of the loop that waits for the device.

    Raises:
        ModelError: the loss is not finite.
    """
    values = dict(zip(measured, torch.stack(list(measured.values())).tolist(), strict=True))
    if not math.isfinite(values["kl"]):
        raise ModelError(
            f"step {step}: found a KL of {values['kl']}, expected a finite one; the model's logits overflow (try another dtype)"
        )
    return values
