"""What a discovery may leave behind in its process: counted, compared, and its growth over time fitted."""

import gc
import hashlib
import os
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PAGE = os.sysconf("SC_PAGE_SIZE")
EXACT = ("tensors", "tensor_bytes", "hooks", "replaced", "open_files", "mapped_files", "files")
"""What must be as it was when every kind of discovery had run once."""
FLAT = 0.01
"""By which share the resident size may grow from the first to the last quarter of a soak."""


@dataclass(frozen=True)
class State:
    """What there is in the process."""

    resident: int
    """Bytes."""
    tensors: int
    """Those that Python knows of."""
    tensor_bytes: int
    """Of their storages."""
    hooks: int
    """On all modules of the models."""
    replaced: int
    """Attributes that stand before those of the modules' classes: methods and shadowed parameters."""
    open_files: int
    mapped_files: int
    """Mappings of files that have no name any more."""
    threads: int
    files: int
    """In the folder for temporary files."""
    flags: str
    """A hash of all `requires_grad` and `training` flags."""
    random: str
    """A hash of the global random states."""


def count(models: Iterable[nn.Module], folder: Path) -> State:
    """What there is now, after a garbage collection."""
    gc.collect()
    modules = [module for model in models for module in model.modules()]
    tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    flags = [(m.training, [p.requires_grad for p in m.parameters(recurse=False)]) for m in modules]
    return State(
        resident=int(Path("/proc/self/statm").read_text().split()[1]) * PAGE,
        tensors=len(tensors),
        tensor_bytes=sum(storages.values()),
        hooks=sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules),
        replaced=sum(len({"forward", *m._parameters} & vars(m).keys()) for m in modules),
        open_files=_entries("/proc/self/fd"),
        mapped_files=Path("/proc/self/maps").read_text().count("(deleted)"),
        threads=_entries("/proc/self/task"),
        files=sum(1 for _ in folder.rglob("*")),
        flags=hashlib.sha256(repr(flags).encode()).hexdigest(),
        random=_random_states(),
    )


def _entries(folder: str) -> int:
    return sum(1 for _ in Path(folder).iterdir())


def _random_states() -> str:
    states = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    return hashlib.sha256(repr(states).encode()).hexdigest()


@dataclass(frozen=True)
class Left:
    """What there is after one discovery, and what is not as it was before it."""

    done: int
    seconds: float
    job: str
    as_asked: bool
    """Whether it ended as it was meant to."""
    strays: list[str]
    """Files in the run folder that belong to no run."""
    changed: list[str]
    """Flags and random states that are not what they were."""
    state: State

    @classmethod
    def between(
        cls, before: State, after: State, done: int, seconds: float, job: str, as_asked: bool, strays: list[str]
    ) -> "Left":
        """From the states on both sides of a discovery."""
        changed = [name for name in ("flags", "random") if getattr(before, name) != getattr(after, name)]
        return cls(done, seconds, job, as_asked, strays, changed, after)


def steady(rows: Sequence[Left], length: int) -> list[str]:
    """What was left, in words: against the state after the first cycle, in which libraries set themselves up.

    Args:
        rows: after every discovery.
        length: discoveries in a cycle.
    """
    complaints = [f"{row.done}, {row.job}: did not end as asked" for row in rows if not row.as_asked]
    complaints += [f"{row.done}, {row.job}: left {', '.join(row.strays)}" for row in rows if row.strays]
    complaints += [f"{row.done}, {row.job}: changed {', '.join(row.changed)}" for row in rows if row.changed]
    settled = asdict(rows[length - 1].state)
    for row in rows[length:]:
        state = asdict(row.state)
        more = [f"{name} {settled[name]} to {state[name]}" for name in EXACT if state[name] != settled[name]]
        if state["threads"] > settled["threads"]:
            more.append(f"threads {settled['threads']} to {state['threads']}")
        complaints += [f"{row.done}, {row.job}: {', '.join(more)}"] if more else []
    return complaints


def trend(rows: Sequence[Left], length: int) -> dict[str, Any]:
    """How the resident size grows after a warm-up of a cycle, or a fifth of the time where that is longer.

    Args:
        rows: after every discovery.
        length: discoveries in a cycle.
    """
    kept = rows[max(length, len(rows) // 5) :]
    hours = np.array([row.seconds for row in kept]) / 3600
    sizes = np.array([row.state.resident for row in kept]) / 2**20
    slope, error = fitted_slope(hours, sizes)
    each, _ = fitted_slope(np.array([float(row.done) for row in kept]), sizes)
    quarter = max(1, len(kept) // 4)
    return {
        "minutes": rows[-1].seconds / 60,
        "warm_up_discoveries": len(rows) - len(kept),
        "mb_per_hour": slope,
        "standard_error": error,
        "mb_per_discovery": each,
        "first_quarter_mb": statistics.median(sizes[:quarter].tolist()),
        "last_quarter_mb": statistics.median(sizes[-quarter:].tolist()),
    }


def grown(rows: Sequence[Left], length: int) -> list[str]:
    """Whether the resident size grew, in words."""
    found = trend(rows, length)
    if found["last_quarter_mb"] <= (1 + FLAT) * found["first_quarter_mb"]:
        return []
    return [
        f"resident size: found {found['first_quarter_mb']:.0f} MB at first and {found['last_quarter_mb']:.0f} at last"
    ]


def fitted_slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The slope of a least-squares line and its standard error, from independent residuals."""
    away = x - x.mean()
    slope = float(away @ y / (away @ away))
    residuals = y - y.mean() - slope * away
    error = np.sqrt(residuals @ residuals / max(1, len(x) - 2) / (away @ away))
    return slope, float(error)
