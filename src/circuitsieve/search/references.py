"""The two runs that every circuit is measured against, batch by batch: the full model and the empty circuit.

Neither depends on the masks, so each is made once per example. Of a batch that will come up again, what the full model says is
always kept. The activations of the ablated run are large: they are kept while there is room, and else computed anew whenever the
batch comes up again. Of a batch that will not, nothing is kept.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsieve.circuits.circuit import constants_needed
from circuitsieve.circuits.nodes import Activations
from circuitsieve.data.batching import PairBatch
from circuitsieve.disk.store import Kept, Store, aside
from circuitsieve.models.instrument import answer_logits, masked, record
from circuitsieve.models.prefix import Prefix, shared_tokens
from circuitsieve.models.subject import Subject
from circuitsieve.objective import PairMetrics, measure
from circuitsieve.vocabulary import Ablation, SiteKind


@dataclass(frozen=True)
class Reference:
    """What one batch is measured against."""

    full: Float[Tensor, "batch vocab"]
    """Answer logits of the untouched model."""
    empty: PairMetrics
    """Of the empty circuit: everything ablated, `embed` included."""
    baselines: Activations
    """Broadcast to [batch, tokens, n]; without the tokens of the prefix."""
    prefix: Prefix | None
    """Of both prompts, where nothing at it can be ablated."""
    lasting: bool
    """Whether the baselines belong to others too: are kept, or constants."""


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
        dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            subject: the model under study.
            ablation: what ablated units are replaced by.
            constants: the baselines of every site where the ablation is no run.
            kinds: the sites at which baselines will be needed.
            store: where activations are kept between calls; they are not kept without one.
            dtype: what activations are rounded to; as they are without one.
        """
        self.subject, self.ablation, self.constants, self.kinds = subject, ablation, constants, tuple(kinds)
        self.sites = [site for site in subject.architecture.sites() if site.kind in kinds]
        self.store, self.dtype = store or Store(0), dtype
        self._full: dict[PairBatch, Tensor] = {}
        self._empty: dict[PairBatch, PairMetrics] = {}
        self._kept: dict[PairBatch, tuple[_Run, Kept[Hashable]]] = {}

    @torch.no_grad()
    def __call__(self, batch: PairBatch, *, again: bool = True) -> Reference:
        """The reference of a batch, without autograd history.

        Args:
            batch: the pairs.
            again: whether the batch will come up again; if not, all that was kept of it is let go.
        """
        baselines, prefix = self._run(batch, again) if self.ablation.is_run else self._at_positions(batch)
        if again:
            return Reference(self._full[batch], self._empty[batch], baselines, prefix, lasting=batch in self)
        if batch in self._kept:
            self.store.give_back(self._kept.pop(batch)[1])
        full, empty = self._full.pop(batch), self._empty.pop(batch)
        return Reference(full, empty, baselines, prefix, lasting=not self.ablation.is_run)

    def __contains__(self, batch: PairBatch) -> bool:
        """Whether the activations of a batch are kept."""
        return batch in self._kept or not self.ablation.is_run

    def keeping_nothing(self) -> "References":
        """The same, without what is kept and without room for it."""
        return References(self.subject, self.ablation, constants=self.constants, kinds=self.kinds, dtype=self.dtype)

    def with_constants(self, constants: Activations | None) -> "References":
        """The same with other constants."""
        other = References(
            self.subject, self.ablation, constants=constants, kinds=self.kinds, store=self.store, dtype=self.dtype
        )
        other._full = self._full
        return other

    def _run(self, batch: PairBatch, again: bool) -> "_Run":
        """The activations of the other prompts."""
        if batch in self._kept:
            return self._kept[batch][0]
        shared = shared_tokens(self.subject, batch)
        prefix = Prefix.of(self.subject, batch.clean[:, :shared]) if shared else None
        with record(self.subject, self.sites, self.dtype) as baselines:
            logits = answer_logits(self.subject, batch.corrupted, batch.positions, prefix)
        run = _Run(baselines, prefix)
        if batch not in self._full:
            self._say(batch, logits, prefix)
            if again and (kept := self.store.keep(run.tensors())) is not None:
                run = run.with_tensors(kept.tensors)
                self._kept[batch] = run, kept
        return run

    def _say(self, batch: PairBatch, empty: Tensor, prefix: Prefix | None) -> None:
        """Note what the full and the empty circuit say."""
        if batch not in self._full:
            self._full |= aside({batch: answer_logits(self.subject, batch.clean, batch.positions, prefix)})
        self._empty[batch] = measure(self._full[batch], empty, batch.targets)

    def _at_positions(self, batch: PairBatch) -> "_Run":
        """The constants at the positions of the batch."""
        tokens = batch.clean.shape[1]
        constants = constants_needed(self.ablation, self.constants)
        baselines = {site: _rows(constant, tokens) for site, constant in constants.items()}
        if batch not in self._empty:
            closed = {
                kind: torch.zeros(1 if kind is SiteKind.EMBED else self.subject.space.layers, 1)
                for kind in (SiteKind.EMBED, SiteKind.ATTN_WRITE, SiteKind.MLP_WRITE)
            }
            with masked(self.subject, closed, baselines):
                logits = answer_logits(self.subject, batch.clean, batch.positions)
            self._say(batch, logits, None)
        return _Run(baselines, None)


class _Run(NamedTuple):
    """What ablated units take."""

    baselines: Activations
    prefix: Prefix | None

    def tensors(self) -> dict[Hashable, Tensor]:
        """All that can be kept."""
        tensors: dict[Hashable, Tensor] = {}
        tensors.update(self.baselines.items())
        if self.prefix:
            tensors.update(self.prefix.tensors.items())
        return tensors

    def with_tensors(self, tensors: Mapping[Hashable, Tensor]) -> "_Run":
        """The same with other tensors of the same content."""
        prefix = self.prefix and replace(self.prefix, tensors={key: tensors[key] for key in self.prefix.tensors})
        return _Run({site: tensors[site] for site in self.baselines}, prefix)


def _rows(constant: Tensor, tokens: int) -> Tensor:
    """A constant [n], or the first rows of a positional one [positions, n]; its last row stands for later positions."""
    if constant.dim() == 1:
        return constant
    if tokens <= constant.shape[0]:
        return constant[:tokens]
    rows = torch.arange(tokens, device=constant.device).clamp_max(constant.shape[0] - 1)
    return constant[rows]
