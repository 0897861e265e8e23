"""The loop: masks of every granularity, learned together.

Before the first step the effects of single nodes are measured (`effects`), which is where their ranking starts. Each step:
1. take a batch of pairs and its reference (what the full and the empty circuit say, baselines);
2. draw masks as the phase does it (`phases`), compose the masks of the sites;
3. run the clean prompts with the baselines mixed in, as far as the answer positions;
4. minimise KL(full || circuit), an optional hinge, and what the phase adds, with respect to its gates or scores alone;
5. let the phase's controller follow the budget, and now and then try the circuit on validation pairs;
6. end the phase where it gains no more (`settling`).

Now and then all that is needed to go on is kept (`resuming`), so that a run that was killed ends as it would have ended.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from circuitsieve.data.batching import PairBatch
from circuitsieve.errors import Diverged, RunError
from circuitsieve.models.ablations import OptimalConstants
from circuitsieve.models.subject import quick_attention
from circuitsieve.objective import hinge, logit_difference
from circuitsieve.search.checks import Checks
from circuitsieve.search.control import Signals
from circuitsieve.search.itinerary import journey
from circuitsieve.search.phase import Phase
from circuitsieve.search.phases import first_phase, next_phase, phase_to_restore
from circuitsieve.search.problem import Problem
from circuitsieve.search.resuming import Checkpoints
from circuitsieve.search.settling import Settling
from circuitsieve.search.states import State, document, of_optimizer, part, read_document, restore_optimizer, under
from circuitsieve.vocabulary import Ablation

ADAM_BETAS = (0.9, 0.98)
"""The second moment must follow gradients that shrink by orders of magnitude while a gate closes."""
CONSTANTS_LR = 0.02
"""Learning rate of the constants of the optimal ablation, in units of their site's size."""
ADAM_EPS = 1e-15
"""The gradient of one MLP neuron's gate may be as small as 1e-10, and means as much as any other."""

KEPT_EVERY = 25
"""Steps: so often a checkpoint is kept, besides at the beginning and the end of every phase."""

OnLook = Callable[[int, int], None]
"""Called with how many batches were looked at, and how many there are."""
OnStep = Callable[[Mapping[str, int | float]], None]
"""Called after every step with its entry of the history."""


class Training:
    """The loop and its state: phase, optimisers, constants, history, checks."""

    def __init__(
        self,
        problem: Problem,
        on_step: OnStep = lambda _: None,
        on_look: OnLook = lambda *_: None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        """Prepare the loop; nothing is computed yet.

        Args:
            problem: what is searched.
            on_step: called after every step.
            on_look: called after every batch that is looked at before the first step.
            checkpoints: where the state is kept, and gone on from where there is one.
        """
        self.problem, self.on_step, self.on_look, self.checkpoints = problem, on_step, on_look, checkpoints
        self.processes = problem.train.processes
        self.constants: OptimalConstants | None = None
        self.constants_optimizer: Optimizer | None = None
        if problem.ablation is Ablation.OPTIMAL and problem.constants is not None:
            self.constants = OptimalConstants(problem.constants, problem.train.references.kinds)
            self.constants_optimizer = torch.optim.Adam(self.constants.parameters(), lr=CONSTANTS_LR)
        self.checks = Checks(problem)
        self.history: list[dict[str, int | float]] = []
        self.earlier = 0.0
        """Seconds of the steps that a stopped search had made."""
        self.begun = 0
        """Steps that were made before the phase."""
        self.entered = False
        """Whether there is a phase."""
        self.over = False
        """Whether the last phase has ended."""
        self.phase: Phase
        self.optimizer: Optimizer

    def problem_now(self) -> Problem:
        """The problem with the constants learned so far, where any are learned."""
        return self.problem if self.constants is None else self.problem.with_constants(self.constants.now())

    def recall(self) -> bool:
        """Go back to the last checkpoint, without going on; whether the search had not ended there.

        Raises:
            RunError: there is none.
        """
        state = self.checkpoints.latest() if self.checkpoints is not None else None
        if state is None:
            raise RunError("checkpoints: found none, expected one that a search has left")
        self.restore(state)
        return not self.over

    def run(self) -> bool:
        """Train until every phase has settled or had its steps; True if the user interrupted it."""
        state = self.checkpoints.latest() if self.checkpoints is not None else None
        self.processes.wait()  # before the first of them writes another
        try:
            if state is None:
                if self.checkpoints is not None and self.processes.is_first:
                    self.checkpoints.prepare()
                self.begin(first_phase(self.problem))
            else:
                self.restore(state)
            batches = itertools.islice(
                journey(self.problem.train.batches, self.problem.config), len(self.history), None
            )
            start = time.monotonic() - self.earlier
            while not self.over:
                self._train(batches, start)
                following = next_phase(self.phase, self.problem_now)
                if following is None:
                    self.over = True
                    self._keep()
                else:
                    self.begin(following)
        except KeyboardInterrupt:
            # Other processes cannot know, and the circuit so far is to be tried by all; before a phase there is none.
            if self.processes.count > 1 or not self.entered:
                raise
            return True
        return False

    def begin(self, phase: Phase) -> None:
        """Enter a phase."""
        self._enter(phase, len(self.history))
        phase.begin(self.on_look)
        self._keep()

    def restore(self, state: State) -> None:
        """Go on from a state."""
        facts = read_document(state["facts"])
        self.history, self.over = facts["history"], facts["over"]
        self.earlier = float(self.history[-1]["seconds"]) if self.history else 0.0
        phase = phase_to_restore(self.problem, facts["phase"])
        phase.restore(part("phase", state))
        self._enter(phase, facts["begun"])
        restore_optimizer(self.optimizer, part("optimizer", state))
        if self.constants is not None and self.constants_optimizer is not None:
            self.constants.load_state_dict(part("constants", state))
            restore_optimizer(self.constants_optimizer, part("constants_optimizer", state))
        self.checks.restore(part("best", state))

    def state(self) -> State:
        """All that is needed to go on from here."""
        facts = {"phase": type(self.phase).__name__, "begun": self.begun, "over": self.over, "history": self.history}
        state = {"facts": document(facts)} | under("phase", self.phase.state()) | under("best", self.checks.state())
        state |= under("optimizer", of_optimizer(self.optimizer))
        if self.constants is not None and self.constants_optimizer is not None:
            state |= under("constants", self.constants.state_dict())
            state |= under("constants_optimizer", of_optimizer(self.constants_optimizer))
        return state

    def _enter(self, phase: Phase, begun: int) -> None:
        self.phase, self.begun, self.entered = phase, begun, True
        self.optimizer = torch.optim.Adam(phase.learned.parameters(), betas=ADAM_BETAS, eps=ADAM_EPS)

    def _keep(self) -> None:
        if self.checkpoints is not None and self.processes.is_first:
            self.checkpoints.keep(len(self.history), self.state())

    def _train(self, batches: Iterator[tuple[PairBatch, bool]], start: float) -> None:
        """The steps of the phase that are still to be made.

        Args:
            batches: of the steps to come, and whether later ones take them again.
            start: when the loop began, by the monotonic clock.
        """
        settling = Settling()
        for entry in self.history[self.begun :]:
            self._settled(settling, entry)
        for step in range(len(self.history) - self.begun, self.phase.steps):
            done = len(self.history)
            measured = self.step(step, *next(batches))
            entry = {"step": done, "seconds": time.monotonic() - start, **_numbers(measured, done)}
            self.history.append(entry | self._check(done))
            self.on_step(self.history[-1])
            if self._settled(settling, self.history[-1]):
                break
            if len(self.history) % KEPT_EVERY == 0:
                self._keep()

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
                (short,) = self.processes.means([hinge(logit_difference(logits, batch.targets), margin)], batch)
                loss = loss + short
            objective, facts = self.phase.objective(step, loss, masks)
            gradient = self._descend(step, objective)
        measured = Signals(*(signal.detach() for signal in signals))
        seen = {"kl": measured.kl, "accuracy_drop": measured.accuracy_drop, "drawn_size": measured.size}
        seen["gradient_norm"] = gradient
        return {**seen, **facts, **self.phase.after(step, measured)}

    def _descend(self, step: int, objective: Tensor) -> Tensor:
        """Make the step; the norm of the gradient."""
        optimizers = [self.optimizer] + ([self.constants_optimizer] if self.constants_optimizer else [])
        learned = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(objective)
        self.processes.average_gradients(learned)
        norm = torch.nn.utils.clip_grad_norm_(self.phase.learned.parameters(), self.phase.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.phase.learning_rate(step)
        for optimizer in optimizers:
            optimizer.step()
        return norm.detach()

    def _settled(self, settling: Settling, entry: Mapping[str, int | float]) -> bool:
        """Whether the phase gains no more after a step."""
        reading = self.phase.reading(entry)
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
        Diverged: the loss or its gradient is not finite.
    """
    values = dict(zip(measured, torch.stack(list(measured.values())).tolist(), strict=True))
    for name, what in (("kl", "a KL"), ("gradient_norm", "a gradient")):
        if not math.isfinite(values[name]):
            raise Diverged(
                f"step {step}: found {what} of {values[name]}, expected a finite one; the model overflows in its precision: try "
                "--dtype float32 or --training-dtype model"
            )
    del values["gradient_norm"]
    return values
