"""The two runs that every circuit is measured against, batch by batch: the full model and the empty circuit.

Neither depends on the masks, so each is made once per example. What the full model says is always kept. The activations of
the ablated run are large: they are kept while there is room, and else computed anew whenever the batch comes up again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsieve.data import PairBatch
from circuitsieve.instrument import Subject, answer_logits, masked, record
from circuitsieve.nodes import Activations
from circuitsieve.objective import PairMetrics, measure
from circuitsieve.store import Store
from circuitsieve.vocabulary import Ablation, SiteKind


@dataclass(frozen=True)
class Reference:
    """What one batch is measured against."""

    full: Float[Tensor, "batch vocab"]
    """Answer logits of the untouched model."""
    empty: PairMetrics
    """Of the empty circuit: everything ablated, `embed` included."""
    baselines: Activations
    """On the device of each site, broadcast to [batch, tokens, n]."""


class References:
    """The reference of each batch."""

    def __init__(
        self,
        subject: Subject,
        ablation: Ablation,
        *,
        constants: Activations | None = None,
        kinds: Sequence[SiteKind] = tuple(SiteKind),
        store: Store | None = None,
    ) -> None:
        """
        Args:
            subject: the model under study.
            ablation: what ablated units are replaced by.
            constants: the baselines of every site where the ablation is no run.
            kinds: the sites at which baselines will be needed.
            store: where activations are kept between calls; they are not kept without one.
        """
        self.subject, self.ablation, self.constants, self.kinds = subject, ablation, constants, tuple(kinds)
        self.sites = [site for site in subject.architecture.sites() if site.kind in kinds]
        self.store = store or Store(0)
        self._full: dict[PairBatch, Tensor] = {}
        self._empty: dict[PairBatch, PairMetrics] = {}
        self._kept: dict[PairBatch, Activations] = {}

    @torch.no_grad()
    def __call__(self, batch: PairBatch) -> Reference:
        """The reference of a batch, without autograd history."""
        if batch not in self._full:
            self._full[batch] = answer_logits(self.subject, batch.clean, batch.positions)
        baselines = self._run(batch) if self.ablation.is_run else self._at_positions(batch)
        return Reference(self._full[batch], self._empty[batch], baselines)

    def with_constants(self, constants: Activations | None) -> "References":
        """The same with other constants."""
        other = References(self.subject, self.ablation, constants=constants, kinds=self.kinds, store=self.store)
        other._full = self._full
        return other

    def _run(self, batch: PairBatch) -> Activations:
        """The activations of the other prompts."""
        if batch in self._kept:
            return self._kept[batch]
        with record(self.subject, self.sites) as baselines:
            logits = answer_logits(self.subject, batch.corrupted, batch.positions)
        if batch not in self._empty:
            self._empty[batch] = measure(self._full[batch], logits, batch.targets)
            kept = self.store.keep(baselines)
            if kept is not None:
                self._kept[batch] = kept
        return baselines

    def _at_positions(self, batch: PairBatch) -> Activations:
        """The constants at the positions of the batch."""
        if self.constants is None:
            raise ValueError(f"ablation {self.ablation!s} needs the constants of every site")
        tokens = batch.clean.shape[1]
        baselines = {site: _rows(constant, tokens) for site, constant in self.constants.items()}
        if batch not in self._empty:
            closed = {
                kind: torch.zeros(1 if kind is SiteKind.EMBED else self.subject.space.layers, 1)
                for kind in (SiteKind.EMBED, SiteKind.ATTN_WRITE, SiteKind.MLP_WRITE)
            }
            with masked(self.subject, closed, baselines):
                logits = answer_logits(self.subject, batch.clean, batch.positions)
            self._empty[batch] = measure(self._full[batch], logits, batch.targets)
        return baselines


def _rows(constant: Tensor, tokens: int) -> Tensor:
    """A constant [n], or the first rows of a positional one [positions, n]; its last row stands for later positions."""
    if constant.dim() == 1 or constant.shape[0] == tokens:
        return constant
    rows = torch.arange(tokens, device=constant.device).clamp_max(constant.shape[0] - 1)
    return constant[rows]
