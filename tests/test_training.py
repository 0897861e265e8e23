"""Steps of the search: none of them waits for the device."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.tokenising import Pairs
from circuitsieve.models.instrument import answer_logits
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.search.phase import Phase
from circuitsieve.search.phases import first_phase, next_phase
from circuitsieve.search.problem import Problem
from circuitsieve.search.training import Training
from models import random_examples, shared

EXAMPLES = random_examples([7] * 16)
PAIRS = Pairs(tuple(EXAMPLES), tuple(EXAMPLES[:4]), ())


class Waits(TorchDispatchMode):
    """Counts how often a tensor becomes a number: there a program waits for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_waiting_is_counted() -> None:
    with Waits() as waits:
        float(torch.ones(3).sum())
        assert torch.ones(1) > 0
    assert waits.times == 2


@pytest.mark.parametrize("method", ["hard_concrete", "nested"])
@pytest.mark.parametrize("ablation", ["corrupted", "mean", "optimal"])
def test_a_step_waits_no_more_than_the_model_itself(
    method: str, ablation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.Adam, "step", lambda _: None)  # it counts steps in tensors on the CPU
    gates = DiscoveryConfig("hard_concrete", ablation=ablation, steps=4, ranking_share=0.5, batch_size=4, warmup=2)
    config = gates.replaced(method=method)
    model = shared("llama").model
    with frozen(model):
        problem = Problem.of(Subject.of(model), PAIRS, config)
        training = Training(problem)
        batch = problem.train.batches[0]
        phase: Phase | None = first_phase(problem)
        while phase is not None:
            training.begin(phase)
            training.step(0, batch)  # makes the reference
            with Waits() as own:
                answer_logits(problem.subject, batch.clean, batch.positions)
            with Waits() as waits:
                measured = training.step(1, batch)
            assert waits.times == own.times
            assert all(torch.isfinite(value) for value in measured.values())
            phase = next_phase(phase, training.problem_now)
