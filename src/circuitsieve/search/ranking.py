"""The phase that ranks all nodes: by their effects, and then with nested soft masks of every size."""

import itertools
import math
import random
from collections.abc import Callable, Mapping

from torch import Tensor
from typing_extensions import override

from circuitsieve.circuits.circuit import Ranking
from circuitsieve.circuits.masks import Masks, Scores
from circuitsieve.search.averages import Averages
from circuitsieve.search.control import Signals
from circuitsieve.search.effects import by_node, effects, log_prices, log_scores
from circuitsieve.search.itinerary import looked_at
from circuitsieve.search.nested import Nested
from circuitsieve.search.phase import Facts, Phase, falling
from circuitsieve.search.problem import Problem
from circuitsieve.search.settling import Reading
from circuitsieve.search.states import State, part, under

KL_FLOOR = 0.05
"""Of the ranking's objective log(KL + this), nats: every size counts alike, and pairs without any loss do not explode."""
EFFECT_SCALE = 3.0
"""What a score starts with is this times the log of the node's effect: so steep that only nodes near the threshold learn."""
TEMPERATURE = 1.0
"""Of the soft masks; the scale of the scores."""


class RankingPhase(Phase):
    """Soft nested masks of a random size at each step: one run ranks every unit at every size."""

    tries_circuits = False

    def __init__(self, problem: Problem) -> None:
        config = problem.config
        self.nested = Nested(
            {g: problem.space.shape(g) for g in problem.granularities},
            problem.space.summed,
            share=problem.share,
            seed=config.seed,
            device=problem.subject.device,
        )
        super().__init__(problem, config.ranking_steps, self.nested)
        self.averages = Averages(self.nested.scores())
        self.rng = random.Random(f"sizes {config.seed}")
        self.least = problem.least_size
        self.bounds = config.sizes_ranked(self.least)
        self.sizes = [self._random_size() for _ in range(self.steps)]

    @override
    def begin(self, on_look: Callable[[int, int], None]) -> None:
        """Start where nodes stand by themselves, seen first among equals, then in masks of the ranking that this gives."""
        batches = looked_at(self.problem.train.batches, self.config)
        seen = itertools.count(1)

        def masks() -> Masks:
            return self.nested.draw(self._random_size(), TEMPERATURE)

        def looked() -> None:
            on_look(next(seen), self.config.ranking_looks * len(batches))

        for _ in range(self.config.ranking_looks):
            found = effects(self.problem, batches, masks, looked)
            dear = log_prices(by_node(self.problem.space, self.problem.granularities, self.nested.prices()))
            logs = log_scores({g: found[g] for g in dear})
            self.nested.start_at({g: EFFECT_SCALE * (log - dear[g]) for g, log in logs.items()})
        self.averages = Averages(self.nested.scores())

    @override
    def learning_rate(self, step: int) -> float:
        first = self.config.ranking_lr
        return falling("linear", first, first / 4, step, self.steps)

    @override
    def draw(self, step: int) -> Masks:
        return self.nested.draw(self.sizes[step], TEMPERATURE)

    @override
    def objective(self, step: int, loss: Tensor, masks: Masks) -> tuple[Tensor, Facts]:
        return (loss + KL_FLOOR).log(), {}

    @override
    def after(self, step: int, signals: Signals) -> Facts:
        self.averages.follow(self.nested.scores())
        return {}

    @override
    def reading(self, entry: Mapping[str, int | float]) -> Reading | None:
        """None with a hinge, which the history does not tell."""
        if self.config.hinge is not None:
            return None
        return Reading(math.log(entry["kl"] + KL_FLOOR), math.log(entry["drawn_size"]))

    @override
    def state(self) -> State:
        return under("nested", self.nested.state()) | under("averages", self.averages.state())

    @override
    def restore(self, state: State) -> None:
        self.nested.restore(part("nested", state))
        self.averages.restore(part("averages", state))

    def leaves(self, size: float) -> Scores:
        """Scores of the nodes without children, shifted so that the cut at 0 has the size."""
        return self.nested.ranking(size, self.averages.scores)

    @override
    def ranking(self) -> Ranking:
        return Ranking(self.problem.space, self.leaves(math.sqrt(math.prod(self.bounds))))

    def _random_size(self) -> float:
        """Log-uniform in what the searched nodes can close."""
        closable = 1 - self.least
        low, high = (math.log((size - self.least) / closable) for size in self.bounds)
        return self.least + closable * math.exp(self.rng.uniform(low, high))
