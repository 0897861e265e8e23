"""Moving averages of scores, against the same recursion written out."""

import pytest
import torch

from circuitsieve.search.averages import Averages
from circuitsieve.vocabulary import Granularity


def test_first_steps_count_at_once_and_later_ones_for_the_last_thirty_or_so() -> None:
    generator = torch.Generator().manual_seed(0)
    path = [torch.randn(2, 3, generator=generator) for _ in range(400)]
    expected, averages = path[0].clone(), Averages({Granularity.HEAD: path[0]})
    for step, now in enumerate(path[1:]):
        decay = min(0.97, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * now
        averages.follow({Granularity.HEAD: now})
        assert torch.allclose(averages.scores[Granularity.HEAD], expected, atol=1e-6)
        if step == 0:
            assert torch.allclose(averages.scores[Granularity.HEAD], 0.1 * path[0] + 0.9 * path[1], atol=1e-6)
    assert float(averages.scores[Granularity.HEAD].std()) < 0.3, "noise averages out"


def test_what_is_learned_stays_as_it_is() -> None:
    learned = torch.zeros(1, 2, requires_grad=True)
    averages = Averages({Granularity.HEAD: learned})
    with torch.no_grad():
        learned += 1
    assert averages.scores[Granularity.HEAD].tolist() == [[0, 0]]
    averages.follow({Granularity.HEAD: learned})
    assert averages.scores[Granularity.HEAD].tolist() == [[pytest.approx(0.9)] * 2]
    assert not averages.scores[Granularity.HEAD].requires_grad
    assert learned.tolist() == [[1, 1]]
