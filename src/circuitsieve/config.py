"""The configuration of a discovery: one frozen dataclass that is the API, the command line and the JSON on disk.

A leaf without torch. A configuration checks itself when it is made.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, get_type_hints

from circuitsieve.errors import ConfigError, one_of, shown
from circuitsieve.limits import check_each
from circuitsieve.settings import typed
from circuitsieve.vocabulary import DEFAULT_GRANULARITIES, OUT_DIMS, UNCOUNTED, Method

_PRICES = {"mlp_neuron": 5.0, "head_dim": 2.0}
"""Prices that are not 0.5: `size` counts these units, and the mean over so many of them moves little per unit."""
RANKED_SIZES = (0.05, 0.6)
"""Between which sizes nodes are ranked where no size is asked for."""
RANKED_AROUND = (0.6, 7.5)
"""The same over the size that is asked for: much smaller masks would decide the order at the expense of its own."""
BUDGETS = ("max_kl", "min_faithfulness", "size", "pressure")
_OF_GATES = ("penalty", "charge", "depth_factor", "sampling", "final_noise", "warmup", "clip", "init")
_OF_RANKING = ("ranking_share", "ranking_sizes", "ranking_looks", "ranking_lr")
_OF_LEARNING = ("steps", "early_stopping", "shrinking", "lr", "lr_schedule", "lr_end", "hinge", *_OF_RANKING)
_SIGNED = (Method.ATTRIBUTION, Method.INTEGRATED_GRADIENTS, Method.ACTIVATION_GRADIENT)
_USERS: dict[str, tuple[Method, ...]] = {
    **dict.fromkeys(_OF_GATES, (Method.HARD_CONCRETE,)),
    **dict.fromkeys(_OF_LEARNING, tuple(method for method in Method if method.learns)),
    "score_sign": _SIGNED,
    "integration_points": (Method.INTEGRATED_GRADIENTS,),
}
"""The methods that have a use for a setting; the others have all of them."""
UNITS_EXPECTED = "expected one of layer, attn_block, mlp_block, head, head_dim, mlp_neuron among the granularities"


@dataclass(frozen=True)
class DiscoveryConfig:
    """How a circuit is searched. Give one budget at most; without any it is `max_kl` 0.1."""

    method: str = "nested"
    """How: nested (a ranking at every size, then a focus) or hard_concrete (stochastic gates and a pressure, as the paper). Or
    by scores that are not learned: attribution, integrated_gradients, activation_gradient, activation_difference, random."""

    max_kl: float | None = None
    """Budget: the largest mean KL(full || circuit) on validation pairs, nats."""

    min_faithfulness: float | None = None
    """Budget: the faithfulness f must satisfy |1 - f| <= 1 - this, on validation pairs (circuits overshoot)."""

    size: float | None = None
    """Budget: the kept share, above 0 and below 1; the circuit is the best one of this size."""

    size_by: str = "units"
    """What is to be small: units (head dims and MLP neurons) or parameters (of the projections, counted exactly: heads are dear,
    neurons cheap). `size` is a share of them; another budget is met with as few of them as can be."""

    pressure: float | None = None
    """No budget: a fixed multiplier of the sparsity penalty, as the paper does it; the last circuit is taken."""

    max_accuracy_drop: float = 0.03
    """Beside a budget on behaviour: how much accuracy a circuit may lose against the full model on validation pairs."""

    granularities: tuple[str, ...] | None = None
    """The kinds of node that get a gate: layer attn_block mlp_block head head_dim mlp_neuron attn_out_dim mlp_out_dim embed
    (where not given: attn_block mlp_block head head_dim mlp_neuron; for nested, and for gates under a size,
    attn_out_dim and mlp_out_dim, too)."""

    penalty: dict[str, float] = field(default_factory=dict)
    """Price of a granularity against the others, as NAME=PRICE (where not given: mlp_neuron 5, head_dim 2, the rest 0.5;
    with a size of units, which counts no others, the rest 0, but for what decides about units by itself)."""

    charge: str = "open"
    """What is charged: open (nodes inside a closed head, block or layer cost nothing, so that they stay as they were until it
    opens again) or all (as the paper)."""

    depth_factor: float = 0.0
    """Charges early layers more: the price is multiplied by 1 + this at the first layer, falling to 1 at the last."""

    ablation: str = "corrupted"
    """What ablated nodes are replaced by: corrupted, mean, mean_positional, zero, resample or optimal."""

    ranking_share: float = 0.2
    """The share of the steps that rank all nodes first, by nested soft masks of every size (paper: 0; ignored with a fixed
    pressure, where gates start as the paper does)."""

    ranking_sizes: tuple[float, float] | None = None
    """Between which sizes the masks of the ranking are drawn (where not given: 0.05 and 0.6, or around the size asked for)."""

    ranking_looks: int = 3
    """How often the effects of single nodes are measured: the ranking starts there (0: all nodes start equal)."""

    ranking_lr: float = 0.2
    """Learning rate of the ranking; it falls to a quarter."""

    sampling: str = "hard"
    """How masks are sampled: hard, straight_through (as the paper: the gradient is that of a soft sample) or soft."""

    final_noise: float = 0.5
    """The share of the gates' sampling noise that is left at the end; ranked gates start with a half (paper: 1)."""

    hinge: float | None = None
    """Adds how far the logit difference falls short of this margin to the objective."""

    steps: int = 900
    """Optimiser steps, at most."""

    early_stopping: str = "on"
    """Whether a phase of the search ends before it had its steps where it gains no more: on or off."""

    batch_size: int = 16
    """Pairs per step."""

    score_sign: str = "absolute"
    """What scores that are not learned rank by: absolute (of their mean over pairs) or signed."""

    integration_points: int = 4
    """Between the empty and the full model: where integrated_gradients takes gradients."""

    lr: float = 0.15
    """Learning rate of the gates, and of the scores of nested once they focus (Adam, without weight decay)."""

    lr_schedule: str = "linear"
    """How the learning rate falls: constant, linear or cosine."""

    lr_end: float = 0.01
    """The learning rate at the last step of a falling schedule (at most `lr`)."""

    warmup: int = 0
    """Steps over which the pressure is faded in."""

    clip: float = 1.0
    """Largest norm of the gradient of all gates together."""

    init: tuple[float, float] = (2.5, 3.5)
    """The range in which log_alpha starts, uniformly, where no ranking comes first."""

    seed: int = 0
    """Seeds the gates, their noise and the order of the batches."""

    training_dtype: str = "auto"
    """What training computes in: model (as it was loaded), bfloat16 or auto (bfloat16 for a float32 model of 20 million
    parameters or more, where the device computes in it, and for float16 models, whose gradients are too small for their own).
    Circuits are always chosen and judged in the model's own."""

    memory: str = "8GB"
    """How much memory the search may take above the weights of the model, such as 8GB or 500MB. What steps leave of it keeps
    corrupted activations, those of a float32 training in bfloat16 if all would not fit; what still does not is computed anew.
    Where a step does not fit, layers are run again in its backward pass."""

    disk: str = "0GB"
    """How much more of the corrupted activations may be kept in a temporary file."""

    checkpointing: str = "auto"
    """Which layers are run again in the backward pass, instead of keeping what they computed: auto (as many as the memory
    asks for), none or all. Corrupted activations of a float32 training are then kept in bfloat16."""

    shrinking: str = "auto"
    """Whether training leaves out of its passes what is closed: on, off or auto (nested leaves out what is far below the
    border, for as long as it is; gates would stay closed for good, so that they leave out nothing)."""

    def __post_init__(self) -> None:
        if self.granularities is not None:
            object.__setattr__(self, "granularities", tuple(self.granularities))
        object.__setattr__(self, "init", tuple(map(float, self.init)))
        if self.ranking_sizes is not None:
            object.__setattr__(self, "ranking_sizes", tuple(map(float, self.ranking_sizes)))
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise ConfigError(f"budget: found {' and '.join(budgets)}, expected one of them")
        if not budgets:
            object.__setattr__(self, "max_kl", 0.1)
        check_each(vars(self), self.searched)
        self._check_ranking()
        self._check_uses()

    def _check_ranking(self) -> None:
        sizes = self.sizes_ranked()
        if len(list(sizes)) != 2 or not 0 < sizes[0] <= sizes[1] <= 1:
            raise ConfigError(f"ranking_sizes: found {sizes}, expected two fractions, the lower one first")
        if not 0 <= self.ranking_share < 1:
            raise ConfigError(f"ranking_share: found {self.ranking_share}, expected a number of at least 0 and below 1")
        if self.method != Method.HARD_CONCRETE and self.pressure is not None:
            raise ConfigError(
                f"method {self.method}: found a fixed pressure, expected method hard_concrete, whose gates it presses on, or "
                "another budget"
            )
        if self.size_by != "units" and self.pressure is not None:
            raise ConfigError(
                f"size_by: found {self.size_by} with a fixed pressure, which no size decides, expected a budget"
            )
        if self.method != Method.HARD_CONCRETE and not self._searches_units:
            raise ConfigError(
                f"method {self.method}: found no granularity with units to rank, {UNITS_EXPECTED}, or method hard_concrete"
            )
        if self.size is not None and not self._searches_units:
            raise ConfigError(f"size: found no granularity whose nodes count in it, {UNITS_EXPECTED}")
        if self.method == "nested" and not self.ranking_steps:
            raise ConfigError("method nested: found no steps that rank, expected a ranking_share above 0")
        if self.method == Method.HARD_CONCRETE and self.shrinking == "on" and not self.ranking_steps:
            raise ConfigError(
                "shrinking: found on with gates that start without a ranking, which leave out nothing, expected a ranking_share "
                "above 0 and a budget, or shrinking off"
            )

    def _check_uses(self) -> None:
        for name, usual in _without_use(self.method).items():
            if (value := getattr(self, name)) != usual:
                raise ConfigError(
                    f"method {self.method}: found {name} {shown(value)}, which it has no use for, expected method "
                    f"{' or '.join(_USERS[name])} with it, or no {name}"
                )

    @property
    def searched(self) -> tuple[str, ...]:
        """The granularities that are searched."""
        if self.granularities is not None:
            return self.granularities
        gates_of_a_size = self.method == Method.HARD_CONCRETE and self.size is not None
        others = OUT_DIMS if self.method == Method.NESTED or gates_of_a_size else ()
        return tuple(map(str, (*DEFAULT_GRANULARITIES, *others)))

    @property
    def _searches_units(self) -> bool:
        """Whether any node that is searched is a unit or contains one."""
        return any(name not in map(str, UNCOUNTED) for name in self.searched)

    @property
    def ranking_steps(self) -> int:
        """How many of the steps rank: none where there are no units to rank."""
        if not Method(self.method).learns or not self._searches_units:
            return 0
        if self.pressure is not None:
            return 0
        at_least = 1 if self.method == Method.NESTED and self.ranking_share else 0
        return max(at_least, round(self.ranking_share * self.steps))

    def sizes_ranked(self, least: float = 0.0) -> tuple[float, float]:
        """Between which sizes the masks of the ranking are drawn.

        Args:
            least: the size with all closed that is searched; what sizes are usual lie between it and 1 as they lie above 0.
        """
        if self.ranking_sizes is not None:
            return self.ranking_sizes
        low, high = RANKED_SIZES
        if self.size is not None:
            below, above = RANKED_AROUND
            size = (self.size - least) / (1 - least)
            low, high = below * size, min(above * size, (1 + size) / 2)
        return least + (1 - least) * low, least + (1 - least) * high

    @property
    def shrinks(self) -> bool:
        """Whether passes leave out what is closed."""
        return self.shrinking == "on" or (self.shrinking == "auto" and self.method == Method.NESTED)

    def price(self, granularity: str) -> float:
        """The coefficient of a granularity."""
        return self.penalty.get(granularity, _PRICES.get(granularity, 0.5))

    def to_dict(self) -> dict[str, Any]:
        """A dictionary fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any, source: str = "configuration") -> "DiscoveryConfig":
        """The configuration of a dictionary; what is missing has its default.

        Raises:
            ConfigError: it is no dictionary, a key is unknown or a value has the wrong type.
        """
        hints = get_type_hints(cls)
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: found {shown(values)}, expected an object of settings")
        for key in values:
            if key not in hints:
                raise ConfigError(one_of(f"{source}: setting", str(key), list(hints)))
        return cls(**{key: typed(value, hints[key], f"{source}: {key}") for key, value in values.items()})

    def replaced(self, **changes: Any) -> "DiscoveryConfig":
        """A copy with other values; a new budget takes the place of the old one, and of the old settings a new method has none
        that it has no use for.
        """
        if changes.keys() & BUDGETS:
            changes = {**dict.fromkeys(BUDGETS), **changes}
        if "method" in changes:
            changes = {**_without_use(changes["method"]), **changes}
        return replace(self, **changes)


def useful(setting: str, method: str) -> bool:
    """Whether a method has a use for a setting."""
    return setting not in _USERS or method in _USERS[setting]


def _without_use(method: str) -> dict[str, Any]:
    """The settings that a method has no use for, as they are where they are not given."""
    usual = {item.name: item.default for item in fields(DiscoveryConfig) if not useful(item.name, method)}
    return {name: {} if default is MISSING else default for name, default in usual.items()}
