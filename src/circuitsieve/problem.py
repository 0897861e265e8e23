"""A discovery made ready: the model under study, its pairs in batches, their references, the budget and the prices.

What training and selection share. Nothing here learns.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsieve import ablations
from circuitsieve.ablations import References
from circuitsieve.circuit import Circuit
from circuitsieve.config import DiscoveryConfig
from circuitsieve.control import Budget, Signals
from circuitsieve.data import PairBatch, Pairs, batches
from circuitsieve.instrument import Subject, answer_logits, masked
from circuitsieve.masks import BoolMasks, Masks
from circuitsieve.nodes import COMPOSITION, Activations, NodeSpace
from circuitsieve.objective import kl, log_probs, logit_difference
from circuitsieve.vocabulary import Ablation, Granularity, SiteKind


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that stays the same while masks are learned."""

    subject: Subject
    config: DiscoveryConfig
    train: list[PairBatch]
    validation: list[PairBatch]
    references: References
    constants: Activations | None

    @classmethod
    def of(cls, subject: Subject, pairs: Pairs, config: DiscoveryConfig) -> "Problem":
        """Prepare a discovery. Batches are formed once; references are computed when first needed."""
        ablation = Ablation(config.ablation)

        def prepared(split: str) -> list[PairBatch]:
            examples = ablations.with_counterfactuals(pairs.split(split), ablation, config.seed)
            return batches(examples, config.batch_size, device=subject.device, seed=config.seed)

        train = prepared("train")
        constants = ablations.constants(subject, train, ablation)
        references = References(
            subject,
            ablation,
            constants=constants,
            kinds=_kinds(subject.space, config),
            memory_bytes=int(config.memory_gb * 2**30),
        )
        return cls(subject, config, train, prepared("validation"), references, constants)

    @property
    def space(self) -> NodeSpace:
        """The nodes of the model."""
        return self.subject.space

    @property
    def ablation(self) -> Ablation:
        """What ablated units are replaced by."""
        return self.references.ablation

    @property
    def granularities(self) -> tuple[Granularity, ...]:
        """The granularities that are searched."""
        return tuple(Granularity(name) for name in self.config.granularities)

    @property
    def budget(self) -> Budget:
        """What the circuit may cost."""
        return Budget(self.config.max_kl, self.config.min_faithfulness, self.config.max_accuracy_drop)

    def prices(self, masks: Masks) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """What each node costs while these masks are in force.

        The coefficient of its granularity, more for early layers where the depth factor says so, and nothing inside a
        container that is closed: there a node does nothing, so that it neither costs nor learns.
        """
        depth = torch.linspace(1, 0, self.space.layers, device=self.subject.device)[:, None]
        factors = 1 + self.config.depth_factor * depth
        prices = {
            g: self.config.price(g) * (factors if g is not Granularity.EMBED else torch.ones_like(factors[:1]))
            for g in self.granularities
        }
        if self.config.charge == "open":
            prices |= {g: prices[g] * product.detach() for g, product in self.space.containers_open(masks).items()}
        return prices

    def order(self) -> Iterator[PairBatch]:
        """The training batches, reshuffled every epoch, as many as there are steps."""
        generator = random.Random(self.config.seed)
        queue: list[PairBatch] = []
        for _ in range(self.config.steps):
            if not queue:
                queue = list(self.train)
                generator.shuffle(queue)
            yield queue.pop()

    def logits(self, masks: Masks, batch: PairBatch) -> Float[Tensor, "batch vocab"]:
        """Answer logits of the clean prompts under masks of the searched granularities."""
        site_masks = self.space.fold(self.space.compose(masks), self.ablation)
        with masked(self.subject, site_masks, self.references(batch).baselines):
            return answer_logits(self.subject, batch.clean, batch.positions)

    def circuit(self, masks: BoolMasks) -> Circuit:
        """The circuit of boolean masks."""
        return Circuit(self.space, masks, self.ablation, self.constants)

    def signals(self, logits: Float[Tensor, "batch vocab"], batch: PairBatch) -> Signals:
        """What the budget looks at, from one batch of answer logits."""
        reference = self.references(batch)
        circuit, full, empty = (
            logit_difference(values, batch.targets) for values in (logits, reference.full, reference.empty)
        )
        candidates = batch.targets.candidates
        return Signals(
            kl=kl(log_probs(reference.full, candidates), log_probs(logits, candidates)).mean(),
            gained=(circuit - empty).mean(),
            reachable=(full - empty).mean(),
            accuracy_drop=((full > 0).float() - (circuit > 0).float()).mean(),
        )

    def validate(self, circuit: Circuit, bench: Iterable[PairBatch]) -> Signals:
        """The signals of a circuit over all pairs of some batches."""
        weighted: list[Tensor] = []
        pairs = 0
        with torch.no_grad():
            for batch in bench:
                with masked(self.subject, circuit.site_masks(), self.references(batch).baselines):
                    logits = answer_logits(self.subject, batch.clean, batch.positions)
                weighted.append(torch.stack(self.signals(logits, batch)) * len(batch))
                pairs += len(batch)
        return Signals(*(torch.stack(weighted).sum(0) / pairs).unbind())


def _kinds(space: NodeSpace, config: DiscoveryConfig) -> tuple[SiteKind, ...]:
    """The sites that the search or a circuit cut from it will mix.

    Its masks need those that folding leaves. Clean-up needs more: with a block it closes the heads and neurons inside, and
    with them the block, which cannot be folded across a norm.
    """
    shapes = {
        Granularity(name): torch.zeros(space.shape(Granularity(name)), dtype=torch.bool)
        for name in config.granularities
    }
    needed = set(space.fold(space.compose(shapes), Ablation(config.ablation)))
    for read, write in ((SiteKind.ATTN_READ, SiteKind.ATTN_WRITE), (SiteKind.MLP_READ, SiteKind.MLP_WRITE)):
        if write in needed:
            needed.add(read)
        elif read in needed and space.post_norm:
            needed.add(write)
    return tuple(kind for kind in COMPOSITION if kind in needed)
