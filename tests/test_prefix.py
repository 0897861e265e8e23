"""The prefix of both prompts, run once: the same logits and gradients as without it."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.data.batching import PairBatch, collate
from circuitsieve.data.pairs import Pair
from circuitsieve.data.tokenising import Example
from circuitsieve.disk.store import Store
from circuitsieve.models.instrument import answer_logits, masked
from circuitsieve.models.prefix import shared_tokens
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.search.references import Reference, References
from circuitsieve.vocabulary import Ablation, Granularity
from models import LAYERS, VOCABULARY, assert_differs, assert_same, each_family, fresh, random_masks, shared

LENGTHS = [9, 7, 8]


def examples(shared_by: list[int]) -> list[Example]:
    """Prompts of several lengths; the tokens of each pair differ from a position on."""
    rng = random.Random(0)
    made = []
    for length, same in zip(LENGTHS, shared_by, strict=True):
        clean = tuple(rng.randrange(VOCABULARY) for _ in range(length))
        corrupted = clean[:same] + tuple((token + 1 + rng.randrange(5)) % VOCABULARY for token in clean[same:])
        made.append(Example(Pair("", "", (), ()), clean, corrupted, (1,), (2,)))
    return made


def run(subject: Subject, batch: PairBatch, reference: Reference, checkpointed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Logits under soft masks, and the gradients of the masks."""
    masks = {g: mask.requires_grad_() for g, mask in random_masks(subject.space, 3, soft=True).items()}
    with masked(subject, subject.space.compose(masks), reference.baselines, checkpointed=checkpointed):
        logits = answer_logits(subject, batch.clean, batch.positions, reference.prefix)
    logits.square().sum().backward()
    return logits.detach(), [mask.grad for mask in masks.values() if mask.grad is not None]


@each_family
def test_logits_gradients_and_what_is_measured_are_the_same(family: str) -> None:
    """In float64: float32 rounds what gradients are made of to bfloat16. Some families compute parts in float32 even so."""
    batch = collate(examples([4, 6, 4]), "cpu")
    assert batch.shared == 4
    subject = Subject.of(fresh(shared(family, torch.float64)))
    if getattr(subject.model.config, "sliding_window", None) is not None:
        subject.model.config.sliding_window = max(LENGTHS)
    with frozen(subject.model):
        quick = References(subject, Ablation.CORRUPTED)(batch)
        whole = References(subject, Ablation.CORRUPTED)(replace(batch, shared=0))
        assert quick.prefix is not None
        assert quick.prefix.tokens == 4
        assert whole.prefix is None
        assert_same(quick.full.float(), whole.full.float())
        for one, other in zip(quick.empty, whole.empty, strict=True):
            assert_same(one.nan_to_num().float(), other.nan_to_num().float())
        for site, activation in quick.baselines.items():
            tokens = whole.baselines[site].reshape(len(batch), -1, activation.shape[-1])[:, 4:]
            assert_same(activation.reshape(tokens.shape).float(), tokens.float())
        (logits, gradients), (expected, others) = run(subject, batch, quick), run(subject, batch, whole)
        again = run(subject, batch, quick, checkpointed=LAYERS)
    assert torch.equal(again[0], logits)
    assert all(torch.equal(one, other) for one, other in zip(again[1], gradients, strict=True))
    assert_same(logits.float(), expected.float())
    assert_differs(logits.float(), whole.full.float())
    assert len(gradients) == len(Granularity)
    for gradient, other in zip(gradients, others, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(("memory", "file"), [(1 << 30, 0), (0, 1 << 30), (0, 0)])
def test_kept_with_its_prefix_or_made_anew_it_is_the_same(memory: int, file: int) -> None:
    subject, batch = shared("llama"), collate(examples([4, 6, 4]), "cpu")
    circuit = Circuit(subject.space, random_masks(subject.space, 4), Ablation.CORRUPTED)
    references = References(subject, Ablation.CORRUPTED, store=Store(memory, file))
    seen = []
    for _ in range(2):
        reference = references(batch)
        with torch.no_grad(), masked(subject, circuit.site_masks(), reference.baselines):
            seen.append(answer_logits(subject, batch.clean, batch.positions, reference.prefix))
    assert torch.equal(*seen)


@pytest.mark.parametrize(("shared_by", "expected"), [([9, 7, 8], 6), ([0, 5, 5], 0), ([1, 2, 3], 1), ([9, 0, 9], 0)])
def test_every_prompt_keeps_a_token_of_its_own(shared_by: list[int], expected: int) -> None:
    assert collate(examples(shared_by), "cpu").shared == expected


def test_a_prefix_is_shared_where_it_is_worth_it() -> None:
    batch = collate(examples([4, 6, 4]), "cpu")
    assert shared_tokens(shared("llama"), batch) == 4
    assert shared_tokens(shared("llama"), replace(batch, shared=0)) == 0
    long = replace(batch, clean=batch.clean.repeat(1, 10), corrupted=batch.corrupted.repeat(1, 10))
    assert shared_tokens(shared("llama"), long) == 0


def test_not_where_a_sliding_window_is_shorter_than_the_prompts() -> None:
    batch, subject = collate(examples([4, 6, 4]), "cpu"), Subject.of(fresh(shared("mistral")))
    for window, expected in ((8, 0), (9, 4), (None, 4)):
        subject.model.config.sliding_window = window
        assert shared_tokens(subject, batch) == expected


@pytest.mark.parametrize("ablation", [a for a in Ablation if not a.is_run], ids=str)
def test_not_where_constants_are_mixed_in_at_the_prefix_too(ablation: Ablation) -> None:
    subject, batch = shared("llama"), collate(examples([4, 6, 4]), "cpu")
    constants = {site: torch.zeros(1) for site in subject.architecture.sites()}
    assert References(subject, ablation, constants=constants)(batch).prefix is None
