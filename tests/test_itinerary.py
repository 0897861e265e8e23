"""Which batches come up when, and which come up again: counted from the journey itself."""

from collections import Counter

import pytest

from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.batching import batches
from circuitsieve.search.itinerary import journey, looked_at, revisited
from models import random_examples

BATCHES = batches(random_examples([5] * 800), 80)


def config(steps: int, **settings: object) -> DiscoveryConfig:
    return DiscoveryConfig(steps=steps, batch_size=80).replaced(**settings)


@pytest.mark.parametrize("steps", [3, 10, 14, 20])
def test_a_batch_comes_again_until_its_last_visit(steps: int) -> None:
    walked = list(journey(BATCHES, config(steps)))
    assert len(walked) == steps
    for step, (batch, again) in enumerate(walked):
        assert again == (batch in [later for later, _ in walked[step + 1 :]])


def test_every_epoch_takes_each_batch_once_in_another_order() -> None:
    first, second = (tuple(batch for batch, _ in journey(BATCHES, config(20)))[i : i + 10] for i in (0, 10))
    assert set(first) == set(second) == set(BATCHES)
    assert first != second


@pytest.mark.parametrize(("steps", "looks"), [(3, 0), (3, 1), (3, 2), (10, 0), (10, 1), (14, 2), (30, 0)])
def test_revisited_are_those_that_steps_and_looks_take_twice(steps: int, looks: int) -> None:
    asked = config(steps, ranking_looks=looks)
    visits = Counter(batch for batch, _ in journey(BATCHES, asked))
    for _ in range(looks):
        visits.update(looked_at(BATCHES, asked))
    assert len(looked_at(BATCHES, asked)) == 4
    assert revisited(BATCHES, asked) == [batch for batch in BATCHES if visits[batch] > 1]


def test_scores_that_are_not_learned_take_every_batch_once() -> None:
    assert revisited(BATCHES, config(30, method="attribution")) == []
