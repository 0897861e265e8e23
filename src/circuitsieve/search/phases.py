"""In which order the phases of a search follow each other.

`hard_concrete` first ranks all nodes (a warm start that the paper does not have), then learns hard-concrete gates under a
pressure. `nested` ranks in the same way, then focuses: masks of the size at which the budget is just met become hard.
"""

from collections.abc import Callable

from circuitsieve.search.focus import FocusPhase
from circuitsieve.search.phase import Phase
from circuitsieve.search.problem import Problem
from circuitsieve.search.pruning import PruningPhase
from circuitsieve.search.ranking import RankingPhase
from circuitsieve.search.selection import affordable_size
from circuitsieve.vocabulary import Method


def first_phase(problem: Problem) -> Phase:
    """What a search begins with."""
    return RankingPhase(problem) if problem.config.ranking_steps else PruningPhase(problem, None)


def next_phase(phase: Phase, now: Callable[[], Problem]) -> Phase | None:
    """What follows a phase, from where it ended; None after the last.

    Args:
        phase: the one that has ended.
        now: the problem with the constants learned so far, for choosing where the next one starts.
    """
    if not isinstance(phase, RankingPhase):
        return None
    return _second_phase(phase, affordable_size(now(), phase.ranking()))


def phase_to_restore(problem: Problem, name: str) -> Phase:
    """A phase that has not begun and has nothing to begin with: its state is still to be restored."""
    first = first_phase(problem)
    return _second_phase(first, 1.0) if isinstance(first, RankingPhase) and name != type(first).__name__ else first


def _second_phase(ranked: RankingPhase, start: float) -> Phase:
    """What follows the ranking; it starts at a size, not beyond: gates closed too early find no way back."""
    if Method(ranked.config.method) is Method.NESTED:
        return FocusPhase(ranked.problem, ranked, start)
    return PruningPhase(ranked.problem, ranked.leaves(start))
