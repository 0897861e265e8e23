"""A run repeated from its folder: the same model, pairs and settings, and whether the same circuit comes out, bit for bit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.config import DiscoveryConfig
from circuitsieve.errors import RunError
from circuitsieve.runs.folder import RunFolder
from circuitsieve.search.discovery import discover
from circuitsieve.workflow.judging import load_run_model, run_pairs
from circuitsieve.workflow.reporting import Reporter


@dataclass(frozen=True)
class Repetition:
    """What came of repeating a run."""

    differing: dict[str, int]
    """How many nodes of each granularity are kept in one circuit and not in the other, where any are."""
    scores: float
    """The largest difference between the scores of the two rankings; 0 where neither has any."""
    constants: float
    """The same of what ablated nodes take, where the circuits hold it."""
    sizes: tuple[float, float]
    """Of the circuit in the folder, and of the repeated one."""
    versions: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """What another version is in use of now: then, and now."""

    @property
    def same(self) -> bool:
        """Whether masks, scores and constants are equal, bit for bit."""
        return not self.differing and self.scores == self.constants == 0


def repeat(path: str, reporter: Reporter) -> Repetition:
    """Repeat the search of a run; its folder is left as it is.

    Args:
        path: the run folder.
        reporter: is told of every step.

    Raises:
        RunError: the folder is damaged, its search was interrupted, or the model has other weights now.
        ModelError: the model cannot be loaded.
    """
    folder = RunFolder.open(path)
    if folder.look_up("circuit.json", "found").get("interrupted"):
        raise RunError(f"{path}: found a run that was interrupted, expected one that ended by itself")
    config = DiscoveryConfig.from_dict(folder.look_up("config.json", "discovery"), str(folder.path / "config.json"))
    circuit, ranking = folder.read_circuit()
    loaded = load_run_model(folder)
    found = discover(
        loaded.model,
        run_pairs(folder, loaded),
        config,
        on_step=lambda entry: reporter.step(entry, config),
        on_look=reporter.look,
    )
    if found.interrupted:
        raise KeyboardInterrupt
    then, now = folder.look_up("config.json", "versions"), found.provenance["versions"]
    return compared(circuit, ranking, found.circuit, found.ranking, then, now)


def compared(
    circuit: Circuit,
    ranking: Ranking | None,
    again: Circuit,
    ranking_again: Ranking,
    then: Mapping[str, Any],
    now: Mapping[str, Any],
) -> Repetition:
    """How two circuits of one model differ, and their rankings, and the versions that made them."""
    counts = {str(g): int((mask != again.masks[g]).sum()) for g, mask in circuit.masks.items()}
    return Repetition(
        differing={granularity: count for granularity, count in counts.items() if count},
        scores=_largest_difference({} if ranking is None else ranking.scores, ranking_again.scores),
        constants=_largest_difference(circuit.constants or {}, again.constants or {}),
        sizes=(circuit.size, again.size),
        versions={name: (then.get(name), now[name]) for name in now if then.get(name) != now[name]},
    )


def _largest_difference(one: Mapping[Any, Tensor], two: Mapping[Any, Tensor]) -> float:
    if one.keys() != two.keys():
        return torch.inf
    differences = [(values.cpu() - two[name].cpu()).abs() for name, values in one.items()]
    # Equal infinities differ by nan.
    return max((float(d.nan_to_num(0.0, posinf=torch.inf).max()) for d in differences), default=0.0)
