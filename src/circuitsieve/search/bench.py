"""A bench: pairs in batches, the model that they run on, and what they are measured against.

Training has one, validation another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.nodes import Activations, SiteMasks
from circuitsieve.data.batching import PairBatch
from circuitsieve.models.instrument import answer_logits, masked
from circuitsieve.models.lean import Lean
from circuitsieve.models.subject import Subject
from circuitsieve.objective import kl, log_probs, logit_difference, metric
from circuitsieve.parallel import ALONE, Processes
from circuitsieve.search.control import Signals
from circuitsieve.search.references import Reference, References


@dataclass(frozen=True, eq=False)
class Bench:
    """Pairs in batches, the model that they run on, and what they are measured against."""

    subject: Subject
    references: References
    batches: Sequence[PairBatch]
    checkpointed: int = 0
    """So many layers are run again in the backward pass."""
    shrinks: bool = False
    """Whether passes may leave out what is closed."""
    size_by: str = "units"
    """How circuits are sized."""
    processes: Processes = ALONE
    """Those that share the batches."""

    def logits(
        self,
        site_masks: SiteMasks,
        batch: PairBatch,
        reference: Reference,
        constants: Activations | None = None,
        *,
        last: bool = False,
        lean: Lean | None = None,
    ) -> Float[Tensor, "batch vocab"]:
        """Answer logits of the clean prompts with baselines mixed in.

        Args:
            site_masks: by site kind.
            batch: the pairs.
            reference: of the batch.
            constants: other baselines than those of the reference.
            last: the reference will not be used again, so that its baselines may go on the way.
            lean: what need not be computed; None where layers are run again.
        """
        baselines = reference.baselines if constants is None else constants
        consume = last and not reference.lasting and not self.checkpointed
        prefix = reference.prefix
        if lean is not None and prefix is not None:
            prefix = prefix.of_groups(lean.groups)
        with masked(
            self.subject,
            site_masks,
            baselines,
            checkpointed=self.checkpointed,
            consume=consume,
            lean=lean,
            of_a_run=constants is None and self.references.ablation.is_run,
        ):
            return answer_logits(self.subject, batch.clean, batch.positions, prefix)

    def signals(
        self, logits: Float[Tensor, "batch vocab"], batch: PairBatch, reference: Reference, size: Float[Tensor, ""]
    ) -> Signals:
        """What the budget looks at, from one batch of answer logits and the size of the masks: means over all its pairs.

        While constants are learned (`--ablation optimal`), the empty circuit of the training pairs is the one with the means
        that they start at; the controller corrects what that changes by the checks on validation pairs.
        """
        circuit, full = (metric(values, batch.targets) for values in (logits, reference.full))
        empty = reference.empty.metric
        candidates = batch.targets.candidates
        right, expected = (logit_difference(values, batch.targets) > 0 for values in (logits, reference.full))
        divergence = kl(log_probs(reference.full, candidates), log_probs(logits, candidates))
        drops = expected.float() - right.float()
        means = self.processes.means([divergence, circuit - empty, full - empty, drops], batch)
        return Signals(*(*means, size))

    @torch.no_grad()
    def measure(self, circuit: Circuit, batches: Sequence[PairBatch] | None = None) -> Signals:
        """The signals of a circuit over all pairs, or those of some batches."""
        weighted: list[Tensor] = []
        pairs = 0
        size = torch.tensor(circuit.share(self.size_by), device=self.subject.device)
        site_masks = circuit.site_masks()
        for batch in self.batches if batches is None else batches:
            reference = self.references(batch)
            signals = self.signals(self.logits(site_masks, batch, reference), batch, reference, size)
            weighted.append(torch.stack(signals) * batch.pairs)
            pairs += batch.pairs
        return Signals(*(torch.stack(weighted).sum(0) / pairs).unbind())
