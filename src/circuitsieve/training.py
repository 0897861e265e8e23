"""The loop: masks of every granularity, learned together.

Before the first step the effects of single nodes are measured (`effects`), which is where their ranking starts. Each step:
1. take a batch of pairs and its reference (what the full and the empty circuit say, baselines);
2. draw masks as the phase does it (`phases`), compose the masks of the sites;
3. run the clean prompts with the baselines mixed in, as far as the answer positions;
4. minimise KL(full || circuit), an optional hinge, and what the phase adds, with respect to its gates or scores alone;
5. let the phase's controller follow the budget, and now and then try the circuit on validation pairs;
6. end the phase where it gains no more (`settling`).
"""

import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from circuitsieve.ablations import OptimalConstants
from circuitsieve.control import Signals
from circuitsieve.data import PairBatch
from circuitsieve.errors import ModelError
from circuitsieve.itinerary import journey
from circuitsieve.objective import hinge, logit_difference
from circuitsieve.phase import Phase
from circuitsieve.phases import phases
from circuitsieve.problem import Problem
from circuitsieve.selection import Checks
from circuitsieve.settling import Settling
from circuitsieve.subject import quick_attention
from circuitsieve.vocabulary import Ablation

ADAM_BETAS = (0.9, 0.98)
"""The second moment must follow gradients that shrink by orders of magnitude while a gate closes."""
CONSTANTS_LR = 0.02
"""Learning rate of the constants of the optimal ablation, in units of their site's size."""
ADAM_EPS = 1e-15
"""The gradient of one MLP neuron's gate may be as small as 1e-10, and means as much as any other."""

OnLook = Callable[[int, int], None]
"""Called with how many batches were looked at, and how many there are."""
OnStep = Callable[[Mapping[str, int | float]], None]
"""Called after every step with its entry of the history."""


class Training:
    """The loop and its state: phase, optimisers, constants, history, checks."""

    def __init__(self, problem: Problem, on_step: OnStep = lambda _: None, on_look: OnLook = lambda *_: None) -> None:
        """Prepare the loop; nothing is computed yet.

        Args:
            problem: what is searched.
            on_step: called after every step.
            on_look: called after every batch that is looked at before the first step.
        """
        self.problem, self.on_step, self.on_look = problem, on_step, on_look
        self.constants: OptimalConstants | None = None
        self.constants_optimizer: Optimizer | None = None
        if problem.ablation is Ablation.OPTIMAL and problem.constants is not None:
            self.constants = OptimalConstants(problem.constants, problem.train.references.kinds)
            self.constants_optimizer = torch.optim.Adam(self.constants.parameters(), lr=CONSTANTS_LR)
        self.checks = Checks(problem)
        self.history: list[dict[str, int | float]] = []
        self.phase: Phase
        self.optimizer: Optimizer

    def problem_now(self) -> Problem:
        """The problem with the constants learned so far, where any are learned."""
        return self.problem if self.constants is None else self.problem.with_constants(self.constants.now())

    def run(self) -> bool:
        """Train until every phase has settled or had its steps; True if the user interrupted it."""
        start, batches = time.monotonic(), journey(self.problem.train.batches, self.problem.config)
        try:
            for phase in phases(self.problem, self.problem_now):
                self.begin(phase)
                settling = Settling()
                for step in range(phase.steps):
                    done = len(self.history)
                    measured = self.step(step, *next(batches))
                    entry = {"step": done, "seconds": time.monotonic() - start, **_numbers(measured, done)}
                    self.history.append(entry | self._check(done))
                    self.on_step(self.history[-1])
                    if self._settled(settling):
                        break
        except KeyboardInterrupt:
            return True
        return False

    def begin(self, phase: Phase) -> None:
        """Enter a phase."""
        self.phase = phase
        phase.begin(self.on_look)
        self.optimizer = torch.optim.Adam(phase.learned.parameters(), betas=ADAM_BETAS, eps=ADAM_EPS)

    def step(self, step: int, batch: PairBatch, again: bool = True) -> dict[str, Tensor]:
        """One step of the phase; what was measured, not waited for.

        Args:
            step: its number in the phase.
            batch: the training pairs.
            again: whether a later step takes them again.
        """
        masks = self.phase.draw(step)
        with quick_attention(self.problem.train.subject, batch.clean.shape[1]):
            reference = self.problem.train.references(batch, again=again)
            constants = None if self.constants is None else self.constants()
            logits = self.problem.train.logits(
                self.problem.site_masks(masks), batch, reference, constants, last=True, lean=self.phase.lean
            )
            signals = self.problem.train.signals(logits, batch, reference, self.problem.drawn_size(masks))
            loss, margin = signals.kl, self.problem.config.hinge
            if margin is not None:
                loss = loss + hinge(logit_difference(logits, batch.targets), margin).mean()
            objective, facts = self.phase.objective(step, loss, masks)
            self._descend(step, objective)
        measured = Signals(*(signal.detach() for signal in signals))
        seen = {"kl": measured.kl, "accuracy_drop": measured.accuracy_drop, "drawn_size": measured.size}
        return {**seen, **facts, **self.phase.after(step, measured)}

    def _descend(self, step: int, objective: Tensor) -> None:
        optimizers = [self.optimizer] + ([self.constants_optimizer] if self.constants_optimizer else [])
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(objective)
        torch.nn.utils.clip_grad_norm_(self.phase.learned.parameters(), self.phase.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.phase.learning_rate(step)
        for optimizer in optimizers:
            optimizer.step()

    def _settled(self, settling: Settling) -> bool:
        """Whether the phase gains no more."""
        reading = self.phase.reading(self.history[-1])
        return self.problem.config.early_stopping == "on" and reading is not None and settling.follow(reading)

    def _check(self, step: int) -> dict[str, float]:
        """Now and then: how the circuit so far does on validation pairs."""
        if not (self.phase.tries_circuits and self.checks.due(step)):
            return {}
        check = self.checks.run(self.problem_now(), step, self.phase.ranking())
        self.phase.checked(check.signals)
        return {"validation_kl": float(check.signals.kl), "size": check.circuit.size}


def _numbers(measured: Mapping[str, Tensor], step: int) -> dict[str, int | float]:
    """Plain numbers of a step: here alone the loop waits for the device.

    Raises:
        ModelError: the loss is not finite.
    """
    values = dict(zip(measured, torch.stack(list(measured.values())).tolist(), strict=True))
    if not math.isfinite(values["kl"]):
        raise ModelError(
            f"step {step}: found a KL of {values['kl']}, expected a finite one; the model's logits overflow (try another dtype)"
        )
    return values
