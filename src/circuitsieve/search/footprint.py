"""How much memory a training step takes, and how the memory that the user allows is divided.

What a step keeps for its backward pass is counted on one pair, not assumed: it depends on the family, on the attention kernel
and on the masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from circuitsieve.circuits.nodes import SiteMasks
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.batching import PairBatch
from circuitsieve.models.instrument import answer_logits, masked
from circuitsieve.models.lean import Lean
from circuitsieve.models.subject import Subject, quick_attention
from circuitsieve.objective import kl, log_probs
from circuitsieve.search.references import Reference, References
from circuitsieve.vocabulary import Granularity


@dataclass(frozen=True)
class Footprint:
    """Bytes, of the largest batch."""

    layers: int
    layer: int
    """What a layer keeps for its backward pass."""
    layer_input: int
    """What it keeps when it is run again instead."""
    rest: int
    """What the step keeps beside the layers: above all, logits."""
    baselines: int
    """The corrupted activations of one batch."""
    narrow_baselines: int
    """The same, in fewer bits (`narrowest`)."""
    said: int
    """What the full model says about the training pairs that come up more than once."""
    narrowed: int = 0
    """At most: the smaller matrices of passes that leave out what is closed."""
    lasting: int = 0
    """The corrupted activations of the training pairs that come up more than once."""

    def all_kept(self, rounded: bool) -> int:
        """What it takes to keep the corrupted activations of all pairs that come up more than once, also in fewer bits."""
        return self.lasting * self.narrow_baselines // self.baselines if rounded and self.lasting else self.lasting

    def step(self, checkpointed: int) -> int:
        """The peak of a step above what is there between steps, with so many layers run again in the backward pass."""
        kept = (self.layers - checkpointed) * self.layer + checkpointed * self.layer_input
        under_way = self.layer if checkpointed == 0 else 2 * self.layer
        return kept + under_way + self.rest + (self.narrow_baselines if checkpointed else self.baselines)


def narrowest(dtype: torch.dtype) -> torch.dtype:
    """What corrupted activations are kept in where memory is short: bfloat16 for float32."""
    return torch.bfloat16 if dtype == torch.float32 else dtype


def needs(footprint: Footprint, config: DiscoveryConfig) -> str:
    """What a search needs beside the model, and what would need less, in words."""
    whole, least = (f"{footprint.step(n) / 1e9:.2g} GB" for n in (0, footprint.layers))
    return (
        f"{config.memory} beside the model (--memory; of it a step of {config.batch_size} pairs takes {whole}, and {least} with "
        "all layers run again); give a smaller --memory, --checkpointing all, a smaller --batch-size or --dtype bfloat16"
    )


@dataclass(frozen=True)
class Division:
    """What the allowed memory is used for."""

    checkpointed: int
    """So many layers are run again in the backward pass."""
    kept: int
    """Bytes for corrupted activations between steps."""
    narrowed: int = 0
    """Bytes for the smaller matrices; 0 where nothing is to be left out, or where there is no room for them."""
    rounded: bool = False
    """Whether corrupted activations are kept in fewer bits (`narrowest`)."""


def divide(footprint: Footprint, allowed: int, checkpointing: str = "auto", disk: int = 0) -> Division:
    """As few layers run again as fit, and smaller matrices if none is; what is then left keeps corrupted activations.

    They are rounded where only some of them find room, and where layers are run again.

    Args:
        footprint: of a step.
        allowed: bytes above the weights. Where even the least does not fit, the least is taken.
        checkpointing: auto, or none or all of the layers, whatever fits.
        disk: bytes in files that keep corrupted activations, too.
    """
    left = allowed - footprint.said
    counts = {"none": [0], "all": [footprint.layers]}.get(checkpointing, range(footprint.layers + 1))
    checkpointed = next((n for n in counts if footprint.step(n) <= left), counts[-1])
    left -= footprint.step(checkpointed)
    narrowed = footprint.narrowed if checkpointed == 0 and footprint.narrowed <= left else 0
    kept = max(0, left - narrowed)
    return Division(checkpointed, kept, narrowed, checkpointed > 0 or 0 < kept + disk < footprint.lasting)


def footprint_of(
    references: References,
    batches: Sequence[PairBatch],
    revisited: Sequence[PairBatch],
    site_masks: SiteMasks,
    *,
    shrinks: bool = False,
) -> Footprint:
    """Count what steps keep, on the first pair of the batch with the most tokens.

    Args:
        references: of the training pairs; nothing is added to what they keep.
        batches: all training batches.
        revisited: those that come up more than once.
        site_masks: those of a step, differentiable.
        shrinks: whether passes are to leave out what is closed; they do not where weights are offloaded.
    """
    subject = references.subject
    largest = max(batches, key=lambda batch: batch.clean.numel())
    pair = _first_pair(largest)
    reference = references.keeping_nothing()(pair)
    # Without running layers again, a pass would keep what is fetched of all offloaded weights: there, it is of one layer.
    counted = 1 if subject.is_offloaded else subject.space.layers
    kept = [
        _kept(subject, pair, reference, site_masks, n) for n in (subject.space.layers - counted, subject.space.layers)
    ]
    _, width = subject.space.shape(Granularity.ATTN_OUT_DIM)
    tokens = pair.clean.shape[1] - (reference.prefix.tokens if reference.prefix else 0)
    baselines = sum(tensor.nbytes for tensor in reference.baselines.values()) if references.ablation.is_run else 0
    dtype = subject.model.dtype
    pairs = len(largest)
    return Footprint(
        layers=subject.space.layers,
        layer=pairs * (kept[0] - kept[1]) // counted,
        layer_input=pairs * tokens * width * dtype.itemsize,
        rest=pairs * kept[1],
        baselines=pairs * baselines,
        narrow_baselines=pairs * baselines * narrowest(dtype).itemsize // dtype.itemsize,
        said=sum(map(len, revisited)) * reference.full.nbytes,
        narrowed=Lean.most_bytes(subject) if shrinks and not subject.is_offloaded else 0,
        lasting=pairs * baselines * sum(batch.clean.numel() for batch in revisited) // largest.clean.numel(),
    )


def _first_pair(batch: PairBatch) -> PairBatch:
    candidates = batch.targets.candidates
    first = None if candidates is None else candidates[:1]
    targets = batch.targets._replace(candidates=first, cutoff=None)
    targets = targets._replace(answers=targets.answers[:1], wrong_answers=targets.wrong_answers[:1])
    positions = batch.positions[:1]
    return replace(batch, clean=batch.clean[:1], corrupted=batch.corrupted[:1], positions=positions, targets=targets)


def _kept(subject: Subject, pair: PairBatch, reference: Reference, site_masks: SiteMasks, checkpointed: int) -> int:
    """Bytes that autograd keeps of a forward pass and its loss, each storage once, without what is there anyway and weights."""
    offloaded = subject.is_offloaded
    there = {_storage(tensor) for tensor in (*reference.baselines.values(), *site_masks.values())}
    there |= {_storage(tensor) for tensor in (*subject.model.parameters(), *subject.model.buffers())}
    sizes: dict[StorageWeakRef, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if (storage := _storage(tensor)) not in there and not (offloaded and _is_weight(subject, storage)):
            sizes[storage] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # a step that held its own output would never go

    context = masked(subject, site_masks, reference.baselines, checkpointed=checkpointed)
    with quick_attention(subject, pair.clean.shape[1]), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        with context:
            logits = answer_logits(subject, pair.clean, pair.positions, reference.prefix)
        loss = kl(log_probs(reference.full), log_probs(logits)).mean()
    assert loss.requires_grad  # until here, all that was noted is alive
    return sum(sizes.values())


def _storage(tensor: Tensor) -> StorageWeakRef:
    """Which storage a tensor lies in; not at which address, which tensors without content do not have."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _is_weight(subject: Subject, storage: StorageWeakRef) -> bool:
    """Whether a weight that has been fetched lies there now."""
    return any(_storage(parameter) == storage for parameter in subject.model.parameters())
