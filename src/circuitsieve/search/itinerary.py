"""In which order the training batches come up, and which of them come up again."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence

from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.batching import PairBatch, spread
from circuitsieve.vocabulary import Method

LOOKED_AT = 384
"""On so many training pairs single nodes are measured."""


def looked_at(batches: Sequence[PairBatch], config: DiscoveryConfig) -> list[PairBatch]:
    """The batches that single nodes are measured on: always the same."""
    return spread(batches, LOOKED_AT // config.batch_size)


def order(batches: Sequence[PairBatch], config: DiscoveryConfig) -> list[PairBatch]:
    """The batches of the steps, reshuffled every epoch."""
    generator = random.Random(config.seed)
    queue: list[PairBatch] = []
    steps: list[PairBatch] = []
    while len(steps) < config.steps:
        if not queue:
            queue = list(batches)
            generator.shuffle(queue)
        steps.append(queue.pop())
    return steps


def journey(batches: Sequence[PairBatch], config: DiscoveryConfig) -> Iterator[tuple[PairBatch, bool]]:
    """The batch of each step, and whether a later step takes it again."""
    steps = order(batches, config)
    last = {batch: step for step, batch in enumerate(steps)}
    for step, batch in enumerate(steps):
        yield batch, last[batch] > step


def revisited(batches: Sequence[PairBatch], config: DiscoveryConfig) -> list[PairBatch]:
    """The batches that come up more than once: in steps, or when single nodes are measured."""
    if not Method(config.method).learns:
        return []
    visits = Counter(order(batches, config))
    if config.ranking_steps:
        for batch in looked_at(batches, config):
            visits[batch] += config.ranking_looks
    return [batch for batch in batches if visits[batch] > 1]
