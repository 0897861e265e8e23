"""What a phase leaves out of its passes: units that its masks have closed, and how long they stay so."""

from collections.abc import Iterable

import torch

from circuitsieve.circuits.masks import BoolMasks
from circuitsieve.circuits.nodes import chains
from circuitsieve.models.lean import Lean
from circuitsieve.search.problem import Problem
from circuitsieve.search.states import State
from circuitsieve.vocabulary import Granularity, SiteKind

EVERY = 25
"""Steps: so often a phase looks at what is closed."""
UNITS_OF = {Granularity.HEAD_DIM: SiteKind.ATTN_READ, Granularity.MLP_NEURON: SiteKind.MLP_READ}


class Shrinking:
    """The units that are computed, and the passes without the others."""

    def __init__(self, problem: Problem, drawn: Iterable[Granularity]) -> None:
        """All units are computed.

        Args:
            problem: what is searched.
            drawn: whose masks the phase draws.
        """
        self.problem = problem
        self.on = problem.train.shrinks
        self.lean: Lean | None = None
        """The passes; None where all is computed."""
        masked = problem.site_masks({g: torch.ones(problem.space.shape(g)) for g in drawn})
        self.left: BoolMasks = {
            leaf: torch.ones(problem.space.shape(leaf), dtype=torch.bool)
            for leaf in chains(problem.granularities)
            if leaf in UNITS_OF and UNITS_OF[leaf] in masked
        }
        """By granularity, on the CPU: the units that are computed. Those whose site has no mask of its own, because only that of
        their block is drawn and cannot be folded into it, are all computed."""

    def due(self, step: int) -> bool:
        """Whether after this step of the phase it is time to look."""
        return self.on and (step + 1) % EVERY == 0

    def leave(self, units: BoolMasks) -> None:
        """Compute these units, and no others, from now on.

        Args:
            units: boolean masks; granularities other than units are passed over.
        """
        left = {leaf: units[leaf].cpu() for leaf in self.left}
        if any((left[leaf] != before).any() for leaf, before in self.left.items()):
            self._set(left)

    def state(self) -> State:
        """All that is needed to go on."""
        return {str(leaf): units for leaf, units in self.left.items()}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self._set({leaf: state[str(leaf)] for leaf in self.left})

    def _set(self, left: BoolMasks) -> None:
        self.left = left
        if self.on:
            self.lean = None  # its matrices go before others come
            self.lean = Lean(self.problem.train.subject, {UNITS_OF[leaf]: units for leaf, units in left.items()})
