"""What the value of each setting of a discovery may be, whatever the others are. A leaf without torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from circuitsieve.errors import ConfigError, one_of, shown
from circuitsieve.settings import bytes_of
from circuitsieve.vocabulary import Ablation, Granularity, Method, Sampling

Settings = Mapping[str, Any]
MEASURES = ("units", "parameters")
_ON_OFF = ("on", "off")
_WORDS = {
    "method": tuple(map(str, Method)),
    "ablation": tuple(map(str, Ablation)),
    "sampling": tuple(map(str, Sampling)),
    "size_by": MEASURES,
    "charge": ("open", "all"),
    "score_sign": ("absolute", "signed"),
    "lr_schedule": ("constant", "linear", "cosine"),
    "training_dtype": ("auto", "model", "bfloat16"),
    "checkpointing": ("auto", "none", "all"),
    "shrinking": ("auto", *_ON_OFF),
    "early_stopping": _ON_OFF,
}
_WHOLE = {
    "steps": (1, 10**8),
    "batch_size": (1, 10**6),
    "integration_points": (1, 10**4),
    "warmup": (0, 10**8),
    "seed": (0, 2**63 - 1),
    "ranking_looks": (0, 10**4),
}
"""The lowest and the highest value of a setting: beyond, it is a slip, and the search would never end or never start."""


def check_each(settings: Settings, searched: Sequence[str]) -> None:
    """Refuse a value that no configuration could have.

    Args:
        settings: the values of a `DiscoveryConfig` by name.
        searched: its granularities.

    Raises:
        ConfigError: a value is none of its words, or beyond its limits.
    """
    _check_words(settings, searched)
    _check_numbers(settings)
    _check_ranges(settings)
    for name in ("memory", "disk"):
        bytes_of(name, settings[name])


def _check_words(settings: Settings, searched: Sequence[str]) -> None:
    granularities = [str(g) for g in Granularity]
    if not searched:
        raise ConfigError(f"granularities: found none, expected at least one of {', '.join(granularities)}")
    for name in searched:
        if name not in granularities:
            raise ConfigError(one_of("granularities", name, granularities))
    for name in settings["penalty"]:
        if name not in granularities:
            raise ConfigError(one_of("penalty", name, granularities))
        if name not in searched:
            raise ConfigError(f"penalty: found a price for {name}, which is not among the granularities searched")
    for setting, words in _WORDS.items():
        if settings[setting] not in words:
            raise ConfigError(one_of(setting, str(settings[setting]), list(words)))


def _check_numbers(settings: Settings) -> None:
    for name, (lowest, highest) in _WHOLE.items():
        value = settings[name]
        if not isinstance(value, int) or value < lowest:
            raise ConfigError(f"{name}: found {value}, expected a whole number of at least {lowest}")
        if value > highest:
            raise ConfigError(f"{name}: found {shown(value)}, expected a whole number of at most {highest:,}")
    for name in ("max_kl", "pressure", "max_accuracy_drop", "lr", "ranking_lr", "clip", "final_noise"):
        value = settings[name]
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{name}: found {value}, expected a finite number above 0")
    for name, value in [
        ("depth_factor", settings["depth_factor"]),
        ("lr_end", settings["lr_end"]),
    ] + [(f"penalty {g}", price) for g, price in settings["penalty"].items()]:
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{name}: found {value}, expected a finite number of at least 0")


def _check_ranges(settings: Settings) -> None:
    for name in ("min_faithfulness", "size"):
        value = settings[name]
        if value is not None and not 0 < value < 1:
            raise ConfigError(f"{name}: found {value}, expected a number between 0 and 1")
    hinge, init = settings["hinge"], settings["init"]
    if hinge is not None and not math.isfinite(hinge):
        raise ConfigError(f"hinge: found {hinge}, expected a finite number")
    if len(list(init)) != 2 or not -math.inf < init[0] <= init[1] < math.inf:
        raise ConfigError(f"init: found {init}, expected two finite numbers, the lower one first")
