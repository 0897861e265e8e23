"""Moving averages of what is learned: single steps are mostly noise."""

import torch

from circuitsieve.circuits.masks import Scores
from circuitsieve.search.states import State, number
from circuitsieve.vocabulary import Granularity

DECAY = 0.97
"""Per step, once there have been enough of them."""
EARLY = 10
"""Of the first steps the average holds nearly all: after n of them the decay is (1 + n) / (EARLY + n)."""


class Averages:
    """Scores by granularity, averaged over the last steps."""

    def __init__(self, scores: Scores) -> None:
        """Start at scores."""
        self.scores: Scores = {granularity: score.detach().clone() for granularity, score in scores.items()}
        self._steps = 0

    @torch.no_grad()
    def follow(self, scores: Scores) -> None:
        """Take in the scores after a step."""
        decay = min(DECAY, (1 + self._steps) / (EARLY + self._steps))
        for granularity, now in scores.items():
            self.scores[granularity].lerp_(now, 1 - decay)
        self._steps += 1

    def state(self) -> State:
        """All that is needed to go on."""
        return {**{str(g): score for g, score in self.scores.items()}, "steps": number(self._steps)}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self._steps = int(state["steps"])
        self.scores = {Granularity(g): state[str(g)].to(score) for g, score in self.scores.items()}
