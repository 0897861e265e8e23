"""What nodes write, in words: read through the model's own final norm and unembedding (nostalgebraist 2020, the logit lens).

A direct effect is what a head's output does to the answer by itself, past all later layers: the logit difference of the full
model minus that with the head's output at the answer position replaced by the ablated one in the last residual stream alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitsieve.circuits.nodes import Activations
from circuitsieve.data.batching import PairBatch
from circuitsieve.models.instrument import answer_logits, record
from circuitsieve.models.placement import weight
from circuitsieve.models.projections import is_input_major
from circuitsieve.models.subject import Subject
from circuitsieve.objective import PerPair, Targets, logit_difference
from circuitsieve.vocabulary import Site, SiteKind

LARGE = 1e3
"""A direction is read at this length: far above the epsilon of any norm."""
ROWS = 1024
"""Directions that are held against the vocabulary at a time."""


class Words(NamedTuple):
    """Token ids, the strongest first."""

    promoted: Int[Tensor, "n k"]
    demoted: Int[Tensor, "n k"]


class HeadEffects(NamedTuple):
    """Of some heads of one layer."""

    direct: Float[Tensor, "heads pairs"]
    """What replacing a head's output by the ablated one takes off the logit difference, by the direct path alone."""
    directions: Float[Tensor, "heads width"]
    """The mean of what that changes in the residual stream."""


@dataclass(frozen=True)
class Lens:
    """The end of a model: the final norm and the unembedding."""

    subject: Subject
    norm: nn.Module

    @classmethod
    def of(cls, subject: Subject) -> "Lens | None":
        """The lens of a model; None where a residual stream is normed at every layer, so that no part of it stands alone."""
        norm = subject.architecture.final_norm
        return None if norm is None or subject.architecture.norms_residual else cls(subject, norm)

    def logits(self, residual: Float[Tensor, "*n width"], tokens: Int[Tensor, " k"]) -> Float[Tensor, "*n k"]:
        """What the model says of some tokens with this last residual stream, before any cap."""
        unembedding = self.subject.architecture.unembedding
        matrix = weight(unembedding, "weight")
        rows = tokens.to(matrix.device)
        bias = None if getattr(unembedding, "bias", None) is None else weight(unembedding, "bias")[rows]
        return nn.functional.linear(self.norm(residual).to(matrix), matrix[rows], bias).to(residual.device)

    @torch.no_grad()
    def words(self, directions: Float[Tensor, "n width"], k: int) -> Words:
        """The tokens that directions in the residual stream make more likely, and less likely.

        Args:
            directions: of any length.
            k: tokens of each kind.
        """
        matrix = weight(self.subject.architecture.unembedding, "weight")
        promoted, demoted = [], []
        for part in torch.split(_linear(self.norm, directions.to(matrix)).to(matrix), ROWS):
            scores = part @ matrix.T
            promoted.append(scores.topk(k).indices.cpu())
            demoted.append(scores.topk(k, largest=False).indices.cpu())
        return Words(torch.cat(promoted), torch.cat(demoted))

    @torch.no_grad()
    def neurons(self, layer: int) -> Float[Tensor, "neurons width"]:
        """What each MLP neuron of a layer writes where it is active."""
        module = self.subject.architecture.read_module(Site(SiteKind.MLP_READ, layer))
        matrix = weight(module, "weight")
        directions = matrix if is_input_major(module) else matrix.T
        behind = self.subject.architecture.write_module(Site(SiteKind.MLP_WRITE, layer))
        return directions if behind is module else _linear(behind, directions)

    @torch.no_grad()
    def heads(
        self, heads: Mapping[int, Sequence[int]], batches: Iterable[PairBatch], constants: Activations | None
    ) -> dict[int, HeadEffects]:
        """What heads write at the answer position, and what it does there by itself.

        Args:
            heads: of each layer.
            batches: pairs.
            constants: what is ablated to; the corrupted prompts of the pairs where there are none.
        """
        found = [self._heads(heads, batch, constants) for batch in batches]
        joined = {}
        for layer in heads:
            direct = [part[layer].direct for part in found]
            sums = [part[layer].directions * each.shape[1] for part, each in zip(found, direct, strict=True)]
            pairs = sum(each.shape[1] for each in direct)
            joined[layer] = HeadEffects(torch.cat(direct, 1), torch.stack(sums).sum(0) / pairs)
        return joined

    def _heads(
        self, heads: Mapping[int, Sequence[int]], batch: PairBatch, constants: Activations | None
    ) -> dict[int, HeadEffects]:
        sites = list(self.subject.architecture.sites())
        clean = self._at_answers(batch.clean, batch, sites)
        read = [Site(SiteKind.ATTN_READ, layer) for layer in heads]
        ablated = (
            self._at_answers(batch.corrupted, batch, read)
            if constants is None
            else {site: _at(constants[site], batch.positions) for site in read}
        )
        writing = (SiteKind.EMBED, SiteKind.ATTN_WRITE, SiteKind.MLP_WRITE)
        residual = torch.stack([clean[site] for site in sites if site.kind in writing]).sum(0)
        full = self._difference(residual, batch.targets)
        found = {}
        for layer, chosen in heads.items():
            site = Site(SiteKind.ATTN_READ, layer)
            other = ablated[site].to(clean[site]).expand_as(clean[site])
            written, changes = self._written(layer, clean[site]), []
            for head in chosen:
                own = slice(head * self.subject.space.head_dim, (head + 1) * self.subject.space.head_dim)
                variant = clean[site].clone()
                variant[:, own] = other[:, own]
                changes.append(written - self._written(layer, variant))
            direct = [full - self._difference(residual - change, batch.targets) for change in changes]
            found[layer] = HeadEffects(torch.stack(direct).cpu(), torch.stack(changes).mean(1))
        return found

    def _difference(self, residual: Float[Tensor, "batch width"], targets: Targets) -> PerPair:
        """The logit difference, computed of no other tokens than those that it compares."""
        wanted = (targets.answers, targets.wrong_answers)
        ids, places = torch.unique(torch.cat(wanted, 1), return_inverse=True)
        answers, wrong = places.masked_fill(ids[places] < 0, -1).split([each.shape[1] for each in wanted], 1)
        return logit_difference(self.logits(residual, ids.clamp_min(0)), Targets(answers, wrong))

    def _at_answers(self, ids: Int[Tensor, "batch tokens"], batch: PairBatch, sites: Sequence[Site]) -> Activations:
        with record(self.subject, sites) as recorded:
            answer_logits(self.subject, ids, batch.positions)
        rows = torch.arange(len(batch), device=ids.device)
        return {
            site: activation[rows.to(activation.device), batch.positions.to(activation.device)].to(ids.device)
            for site, activation in recorded.items()
        }

    def _written(self, layer: int, heads: Float[Tensor, "batch n"]) -> Float[Tensor, "batch width"]:
        """What attention adds to the residual stream, from what its projection reads."""
        projection = self.subject.architecture.read_module(Site(SiteKind.ATTN_READ, layer))
        behind = self.subject.architecture.write_module(Site(SiteKind.ATTN_WRITE, layer))
        written: Tensor = projection(heads)
        return (written if behind is projection else behind(written)).to(heads.device)


@torch.no_grad()
def attention_patterns(
    subject: Subject, prompts: Sequence[Int[Tensor, " _"]]
) -> list[Float[Tensor, "layers heads _ _"]]:
    """Where each head of the full model looks, prompt by prompt: [layers, heads, from, to], each row sums to 1.

    transformers leaves hooks of its own on the model; they record nothing in passes that do not ask for it.
    """
    with _eager(subject):
        outputs = [subject.model(input_ids=ids[None], output_attentions=True, use_cache=False) for ids in prompts]
    return [torch.cat([layer.float().cpu() for layer in output.attentions]) for output in outputs]


@contextmanager
def _eager(subject: Subject) -> Iterator[None]:
    """Attention that can tell where it looks."""
    before = subject.model.config._attn_implementation
    try:
        subject.model.set_attn_implementation("eager")
        yield
    finally:
        subject.model.set_attn_implementation(before)


def _at(constant: Tensor, positions: Int[Tensor, " batch"]) -> Tensor:
    """A constant at some positions: its row there where it has any, the last for those beyond."""
    return constant if constant.dim() == 1 else constant[positions.to(constant.device).clamp_max(len(constant) - 1)]


def _linear(norm: nn.Module, directions: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
    """What a norm makes of directions, each up to a positive factor of its own."""
    scaled = LARGE * directions / directions.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(directions.dtype).tiny)
    read: Tensor = norm(scaled) - norm(torch.zeros_like(scaled))
    return read
