"""Predicted cost: the counts of passes against passes counted in a real search and card; sums; nothing written."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.tokenising import Pairs
from circuitsieve.evaluation.card import evaluate
from circuitsieve.evaluation.harness import EvaluationConfig
from circuitsieve.models.subject import Subject
from circuitsieve.search.discovery import discover
from circuitsieve.workflow import plan
from models import fresh, random_examples, shared

LENGTH = 7
PAIRS = Pairs(*(tuple(random_examples([LENGTH] * n, seed)) for seed, n in enumerate((48, 16, 32))))
CONFIG = DiscoveryConfig(max_kl=0.5, max_accuracy_drop=1.0, steps=40, batch_size=8, training_dtype="model")
CARD = EvaluationConfig(random_circuits=3, random_pairs=16, batch_size=8)


@contextmanager
def passes(subject: Subject) -> Iterator[dict[str, int]]:
    """Forward passes of the model, with and without gradients."""
    counted = {"training": 0, "other": 0}

    def count(*_: object) -> None:
        counted["training" if torch.is_grad_enabled() else "other"] += 1

    handle = subject.model.register_forward_pre_hook(count)
    try:
        yield counted
    finally:
        handle.remove()


@pytest.mark.parametrize("method", ["hard_concrete", "nested", "integrated_gradients", "activation_difference"])
def test_as_many_passes_are_predicted_as_are_made(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_timed", lambda call: (call(), 1.0)[1])  # seconds are counts
    config = CONFIG.replaced(method=method)
    counts = plan.predict(shared("llama").model, PAIRS, config, lambda: 0, CARD).seconds
    subject = Subject.of(fresh(shared("llama")))
    with passes(subject) as made:
        found = discover(subject.model, PAIRS, config)
    training = counts["steps"] + counts["effects of single nodes"]
    assert made["training"] == training + 2  # the footprint
    references = 2 * counts["references"] + 2 * len(PAIRS.validation) / 8 + 2
    predicted = references + counts["checks and final cut"]
    assert predicted == pytest.approx(made["other"], rel=0.25, abs=8)
    with passes(subject) as made:
        evaluate(subject.model, found.circuit, PAIRS.test, validation=PAIRS.validation, config=CARD)
    assert made["other"] == counts["card"]
    assert made["training"] == 0


def arithmetic(call: Callable[[], object]) -> float:
    """Floating-point operations."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def test_a_focus_that_leaves_out_most_units_is_predicted_to_be_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_timed", arithmetic)
    config = CONFIG.replaced(method="nested", ranking_share=0.5)

    def steps(size: float, shrinking: str) -> float:
        asked = config.replaced(size=size, shrinking=shrinking)
        return plan.predict(shared("llama").model, PAIRS, asked, lambda: 0, CARD).seconds["steps"]

    small, large, whole = steps(0.05, "on"), steps(0.4, "on"), steps(0.05, "off")
    assert whole / 2 < small < large < whole
    assert small < 0.8 * whole
    assert steps(0.4, "off") == whole


def test_a_search_without_steps_to_focus_is_predicted() -> None:
    predicted = plan.predict(shared("llama").model, PAIRS, CONFIG.replaced(method="nested", steps=1), lambda: 0, CARD)
    assert predicted.seconds["steps"] > 0


def test_where_nothing_is_kept_every_step_makes_the_corrupted_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_timed", lambda call: (call(), 3.0)[1])
    model = shared("llama").model
    tight = plan.predict(model, PAIRS, CONFIG.replaced(memory="0MB"), lambda: 1000, CARD)
    ample = plan.predict(model, PAIRS, CONFIG, lambda: 1000, CARD)
    on_disk = plan.predict(model, PAIRS, CONFIG.replaced(memory="0MB", disk="1GB"), lambda: 1000, CARD)
    assert (tight.kept, ample.kept, on_disk.kept) == (0.0, 1.0, 1.0)
    assert (tight.checkpointed, ample.checkpointed) == (subject_layers(), 0)
    assert tight.memory["corrupted activations, kept"] == 0
    assert ample.memory["corrupted activations, kept"] > 0
    assert on_disk.memory["corrupted activations, kept"] == 0
    whole = tight.to_dict()
    assert whole["peak_memory_bytes"] == sum(tight.memory.values()) > 1000
    assert whole["total_seconds"] == sum(tight.seconds.values())
    assert ample.to_dict()["peak_memory_bytes"] > whole["peak_memory_bytes"]


def subject_layers() -> int:
    return shared("llama").space.layers
