"""A discovery made ready: the model under study, its pairs in batches, their references, the budget and the prices.

What training and selection share. Nothing here learns.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.costs import soft_share
from circuitsieve.circuits.masks import BoolMasks, Masks
from circuitsieve.circuits.nodes import COMPOSITION, WRITE_OF_READ, Activations, NodeSpace, SiteMasks, chains, finest
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.batching import batches
from circuitsieve.data.tokenising import Pairs
from circuitsieve.disk.store import Store
from circuitsieve.errors import ConfigError, DataError, shown
from circuitsieve.models import ablations
from circuitsieve.models.placement import whereabouts
from circuitsieve.models.subject import Subject
from circuitsieve.parallel import ALONE, Processes
from circuitsieve.search.bench import Bench
from circuitsieve.search.control import Budget
from circuitsieve.search.footprint import Footprint, divide, footprint_of, narrowest
from circuitsieve.search.itinerary import revisited
from circuitsieve.search.references import References
from circuitsieve.search.screening import check_fit
from circuitsieve.settings import bytes_of
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Ablation, Granularity, SiteKind

SMALLEST_EFFECT = 1e-3
"""Of the metric: a full model nearer than this to the empty circuit leaves no faithfulness to ask for."""
LARGE = 20_000_000
"""Parameters: a smaller model gains nothing from a lower precision."""
VALIDATION_MEMORY = 0.1
"""The share of the memory that is for validation pairs."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that stays the same while masks are learned."""

    subject: Subject
    """The model as it was given: validation runs on it."""
    config: DiscoveryConfig
    train: Bench
    """Its model may be a copy of lower precision."""
    validation: Bench
    constants: Activations | None
    footprint: Footprint
    """Of a training step."""

    @classmethod
    def of(cls, subject: Subject, pairs: Pairs, config: DiscoveryConfig, processes: Processes = ALONE) -> "Problem":
        """Prepare a discovery. Batches are formed once; references are computed when first needed.

        Raises:
            DataError: the model cannot read a pair, or asking for a faithfulness means nothing on these pairs.
            ConfigError: the configuration needs a model that is whole on one device, and it is not; or a size below one unit.
        """
        _check_size(subject.space, config)
        ablation = Ablation(config.ablation)
        check_fit(subject.model, (*pairs.train, *pairs.validation))
        train, validation = (
            processes.portions(
                batches(
                    ablations.with_counterfactuals(pairs.split(split), ablation, config.seed),
                    config.batch_size,
                    device=subject.device,
                    seed=config.seed,
                )
            )
            for split in ("train", "validation")
        )
        constants = ablations.constants(subject, train, ablation, processes)

        def references(on: Subject) -> References:
            return References(on, ablation, constants=constants, kinds=_kinds(subject.space, config))

        learner = subject if (dtype := training_dtype(subject, config)) is None else subject.in_dtype(dtype)
        learning, judging = references(learner), references(subject)
        again = revisited(train, config)
        footprint = footprint_of(learning, train, again, _soft_masks(subject, config), shrinks=config.shrinks)
        memory, disk = (bytes_of(name, getattr(config, name)) for name in ("memory", "disk"))
        room, files = (int((1 - VALIDATION_MEMORY) * allowed) for allowed in (memory, disk))
        division = divide(footprint, room, _checkpointing(subject, config), files)
        if division.rounded:
            learning.dtype = narrowest(learner.model.dtype)
        learning.store = Store(division.kept, files)
        judging.store = Store(int(VALIDATION_MEMORY * memory), int(VALIDATION_MEMORY * disk))
        problem = cls(
            subject,
            config,
            Bench(learner, learning, train, division.checkpointed, bool(division.narrowed), processes=processes),
            Bench(subject, judging, validation, size_by=config.size_by, processes=processes),
            constants,
            footprint,
        )
        if config.min_faithfulness is not None:
            problem._require_effect()
        return problem

    @property
    def space(self) -> NodeSpace:
        """The nodes of the model."""
        return self.subject.space

    @property
    def ablation(self) -> Ablation:
        """What ablated units are replaced by."""
        return Ablation(self.config.ablation)

    @property
    def granularities(self) -> tuple[Granularity, ...]:
        """The granularities that are searched."""
        return tuple(Granularity(name) for name in self.config.searched)

    @property
    def budget(self) -> Budget:
        """What the circuit may cost."""
        config = self.config
        return Budget(config.max_kl, config.min_faithfulness, config.size, config.max_accuracy_drop)

    def prices(self, masks: Masks) -> dict[Granularity, Float[Tensor, "#layers _"]]:
        """What each node costs while these masks are in force.

        The coefficient of its granularity, more for early layers where the depth factor says so, and nothing inside a
        container that is closed: there a node does nothing, so that it neither costs nor learns.
        """
        depth = torch.linspace(1, 0, self.space.layers, device=self.subject.device)[:, None]
        factors = 1 + self.config.depth_factor * depth
        prices = {
            g: self._price(g) * (factors if g is not Granularity.EMBED else torch.ones_like(factors[:1]))
            for g in self.granularities
        }
        if self.config.charge == "open":
            prices |= {g: prices[g] * product.detach() for g, product in self.space.containers_open(masks).items()}
        return prices

    def _price(self, granularity: Granularity) -> float:
        """The coefficient of a granularity. Under a size of units, what it does not count by itself is free, unless a price was
        given: closing a head for its own sake would cost behaviour and leave room for nothing."""
        config = self.config
        counted = {g for leaf, g in finest(self.granularities).items() if leaf in UNIT_GRANULARITIES}
        free = config.size is not None and config.size_by == "units" and granularity not in counted
        return config.penalty.get(granularity, 0.0) if free else config.price(granularity)

    def site_masks(self, masks: Masks) -> SiteMasks:
        """What masks of the searched granularities mean at the sites of a training pass."""
        return self.space.fold(self.space.compose(masks), self.ablation)

    def share(self, leaves: Masks) -> Float[Tensor, ""]:
        """What masks of the nodes without children keep, by the measure that sizes are asked for in; differentiable."""
        return soft_share(self.space, leaves, self.config.size_by)

    def drawn_size(self, masks: Masks) -> Float[Tensor, ""]:
        """What masks keep while they are in force, by the same measure."""
        return self.share(self.space.along({g: mask.detach() for g, mask in masks.items()}, torch.mul))

    @property
    def least_size(self) -> float:
        """The size, by the same measure, with all closed that is searched: above 0 where only heads are, for instance."""
        return _least_size(self.space, self.config)

    def with_constants(self, constants: Activations | None) -> "Problem":
        """The same problem with other constants, for validation and for the circuits to come."""
        if constants is self.constants:
            return self
        references = self.validation.references.with_constants(constants)
        return replace(self, constants=constants, validation=replace(self.validation, references=references))

    def circuit(self, masks: BoolMasks) -> Circuit:
        """The circuit of boolean masks."""
        return Circuit(self.space, masks, self.ablation, self.constants)

    def _require_effect(self) -> None:
        """Refuse a budget on the faithfulness where ablating everything changes nothing: it would be 0 / 0."""
        full = self.validation.measure(self.circuit(self.space.full()))
        if abs(float(full.reachable)) < SMALLEST_EFFECT:
            raise DataError(
                "pairs: found the same metric with everything ablated as in the full model, expected a "
                "difference, without which faithfulness means nothing; check the corrupted prompts, or ask for --max-kl"
            )


def _least_size(space: NodeSpace, config: DiscoveryConfig) -> float:
    closed = {g: torch.zeros(space.shape(g)) for g in map(Granularity, config.searched)}
    if set(UNIT_GRANULARITIES) <= chains(closed).keys():
        return 0.0  # without reading a number, which tensors without content do not have
    return float(soft_share(space, space.lowest(closed), config.size_by))


def _check_size(space: NodeSpace, config: DiscoveryConfig) -> None:
    """Refuse a share of the units that is less than one of them, and sizes that closing all that is searched does not reach.

    Raises:
        ConfigError: it is.
    """
    least = _least_size(space, config)
    asked = {"size": config.size, "ranking_sizes": config.ranking_sizes and config.ranking_sizes[0]}
    for name, size in asked.items():
        if size is not None and 0 < least >= size:
            raise ConfigError(
                f"{name}: found {shown(size)}, which no circuit of {', '.join(config.searched)} has, expected more than "
                f"{least:.3g}, what is left with all of them closed, or other granularities"
            )
    if config.size is not None and config.size_by == "units" and config.size < 1 / space.units:
        raise ConfigError(
            f"size: found {shown(config.size)}, less than one unit of the model, expected at least 1 / {space.units}"
        )


def training_dtype(subject: Subject, config: DiscoveryConfig) -> torch.dtype | None:
    """The precision of the training passes; None where it is the model's own.

    `auto` is bfloat16 for float32 models that are large enough to gain from it, on devices that compute in it, and for float16
    models, whose gradients are too small for their own; never for models that are dispatched, because there is no room for a
    copy of what is too large already.

    Raises:
        ConfigError: bfloat16 is asked for, and the model is dispatched.
    """
    if subject.is_dispatched:
        if config.training_dtype == "bfloat16" and subject.model.dtype != torch.bfloat16:
            raise ConfigError(
                f"training_dtype: found 'bfloat16' with a model that is dispatched over devices ({whereabouts(subject.model)}), "
                "expected 'auto' or 'model': a copy would need room beside it; load it with --dtype bfloat16"
            )
        return None
    if subject.model.dtype == torch.bfloat16 or config.training_dtype == "model":
        return None
    if config.training_dtype == "bfloat16" or subject.model.dtype == torch.float16:
        return torch.bfloat16
    parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    return torch.bfloat16 if parameters >= LARGE and computes_in_bfloat16(subject.device) else None


def _checkpointing(subject: Subject, config: DiscoveryConfig) -> str:
    """Which layers are run again: all where weights are offloaded, whose backward pass would keep every weight in memory.

    Raises:
        ConfigError: none are to be, and weights are offloaded.
    """
    if not subject.is_offloaded:
        return config.checkpointing
    if config.checkpointing == "none":
        raise ConfigError(
            f"checkpointing: found 'none' with a model whose weights are offloaded ({whereabouts(subject.model)}), expected "
            "'auto' or 'all': without running layers again the backward pass keeps all weights in memory"
        )
    return "all"


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _soft_masks(subject: Subject, config: DiscoveryConfig) -> SiteMasks:
    """Masks of a step, differentiable."""
    space = subject.space
    halves = {
        g: torch.full(space.shape(g), 0.5, device=subject.device, requires_grad=True)
        for g in map(Granularity, config.searched)
    }
    return space.fold(space.compose(halves), Ablation(config.ablation))


def _kinds(space: NodeSpace, config: DiscoveryConfig) -> tuple[SiteKind, ...]:
    """The sites that the search or a circuit cut from it will mix.

    Its masks need those that folding leaves. Clean-up needs more: with a block it closes the heads and neurons inside, and
    with them the block, which cannot be folded across a norm.
    """
    shapes = {
        Granularity(name): torch.zeros(space.shape(Granularity(name)), dtype=torch.bool) for name in config.searched
    }
    needed = set(space.fold(space.compose(shapes), Ablation(config.ablation)))
    for read, write in WRITE_OF_READ.items():
        if write in needed:
            needed.add(read)
        elif read in needed and space.post_norm:
            needed.add(write)
    return tuple(kind for kind in COMPOSITION if kind in needed)
