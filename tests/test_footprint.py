"""What a step takes: counted against a count of our own; and how the allowed memory is divided."""

import gc
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedModel, masking_utils

from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.tokenising import Pairs
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.search.footprint import Division, Footprint, divide, footprint_of
from circuitsieve.search.problem import VALIDATION_MEMORY, Problem
from circuitsieve.search.training import Training
from models import LAYERS, VOCABULARY, WIDTH, each_family, random_examples, shared

EXAMPLES = random_examples([7] * 12)
PAIRS = Pairs(tuple(EXAMPLES), tuple(EXAMPLES[:4]), ())
PAIRS_A_BATCH = 4
NUMBERS = Footprint(layers=10, layer=100, layer_input=7, rest=50, baselines=30, narrow_baselines=15, said=1000)


def problem_of(family: str, **settings: object) -> Problem:
    return problem_on(shared(family).model, **settings)


def problem_on(model: PreTrainedModel, **settings: object) -> Problem:
    config = DiscoveryConfig(batch_size=PAIRS_A_BATCH, training_dtype="model").replaced(**settings)
    return Problem.of(Subject.of(model), PAIRS, config)


@each_family
def test_what_steps_keep_grows_with_the_batch_and_is_counted_on_one_pair(family: str) -> None:
    """Against all that autograd keeps of a whole batch, counted here."""
    with frozen(shared(family).model):
        problem = problem_of(family)
        masks = {g: torch.full(problem.space.shape(g), 0.5, requires_grad=True) for g in problem.granularities}
        site_masks = problem.site_masks(masks)
        found = footprint_of(problem.train.references, problem.train.batches, problem.train.batches[:2], site_masks)
        batch = problem.train.batches[0]
        reference = problem.train.references(batch)
        sizes: dict[int, int] = {}
        weights = {p.data_ptr() for p in (*problem.subject.model.parameters(), *problem.subject.model.buffers())}

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits = problem.train.logits(problem.site_masks(masks), batch, reference)
        there = weights | {b.data_ptr() for b in reference.baselines.values()}
        kept = sum(size for pointer, size in sizes.items() if pointer not in there)
    assert logits.requires_grad
    assert LAYERS * found.layer + found.rest == pytest.approx(kept, rel=0.3)
    assert found.baselines == sum(baseline.nbytes for baseline in reference.baselines.values())
    assert found.layer_input == PAIRS_A_BATCH * 7 * WIDTH * 4
    assert found.said == 2 * PAIRS_A_BATCH * VOCABULARY * 4


def test_a_step_is_counted_on_a_model_without_content_as_on_one_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there are weights, or memory for them."""
    model = shared("llama").model
    with frozen(model):
        expected = problem_of("llama").footprint
    # transformers looks into the positions to tell packed prompts.
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda _: None)
    with FakeTensorMode():
        weightless = AutoModelForCausalLM.from_config(model.config)
        with frozen(weightless):
            found = problem_on(weightless).footprint
    assert found == expected


def test_counting_keeps_nothing_alive() -> None:
    """What autograd saves must not hold itself: no garbage collection sees that."""

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(item), Tensor) for item in gc.get_objects())

    with frozen(shared("llama").model):
        problem_of("llama")
        before = tensors()
        problem_of("llama")
    assert tensors() == before


def test_a_step_of_layers_run_again_keeps_their_inputs_and_one_of_them() -> None:
    assert NUMBERS.step(0) == 10 * 100 + 100 + 50 + 30
    assert NUMBERS.step(4) == 6 * 100 + 4 * 7 + 2 * 100 + 50 + 15
    assert NUMBERS.step(10) == 10 * 7 + 2 * 100 + 50 + 15


@pytest.mark.parametrize(
    ("allowed", "checkpointed", "kept"),
    [
        (5000, 0, 5000 - 1000 - 1180),
        (1000 + 1180, 0, 0),
        (1000 + 1179, 1, 1179 - 1172),  # for its activations are kept in fewer bits
        (1000 + 400, 10, 65),
        (1000 + 10, 10, 0),
        (0, 10, 0),
    ],
)
def test_layers_are_run_again_only_as_far_as_needed_and_the_rest_keeps_activations(
    allowed: int, checkpointed: int, kept: int
) -> None:
    division = divide(NUMBERS, allowed)
    assert (division.checkpointed, division.kept) == (checkpointed, kept)
    for checkpointing, layers in (("none", 0), ("all", 10)):
        division = divide(NUMBERS, allowed, checkpointing)
        assert division.checkpointed == layers
        assert division.kept == max(0, allowed - 1000 - NUMBERS.step(layers))


def test_smaller_matrices_are_made_where_there_is_room_for_them() -> None:
    numbers = replace(NUMBERS, narrowed=200)
    enough = 1000 + numbers.step(0)
    assert divide(numbers, enough + 250) == Division(0, 50, 200)
    assert divide(numbers, enough + 200) == Division(0, 0, 200)
    assert divide(numbers, enough + 199) == Division(0, 199, 0)
    assert divide(numbers, enough - 1).narrowed == 0
    assert divide(numbers, 10**6, "all").narrowed == 0


@pytest.mark.parametrize(
    ("kept", "disk", "rounded"),
    [(600, 0, False), (599, 0, True), (500, 100, False), (500, 99, True), (0, 0, False), (0, 99, True)],
)
def test_corrupted_activations_are_rounded_where_some_of_them_find_room_but_not_all(
    kept: int, disk: int, rounded: bool
) -> None:
    numbers = replace(NUMBERS, lasting=600)
    found = divide(numbers, 1000 + numbers.step(0) + kept, disk=disk)
    assert found == Division(0, kept, rounded=rounded)
    assert (numbers.all_kept(rounded=False), numbers.all_kept(rounded=True)) == (600, 300)
    assert NUMBERS.all_kept(rounded=True) == 0


def test_rounded_activations_are_kept_twice_as_often_and_hardly_change_the_search() -> None:
    """With five eighths of the memory that all of them take, in steps that draw no hard masks."""
    with frozen(shared("llama").model):
        plenty = problem_of("llama", steps=8, ranking_share=0.9)
        batches = plenty.train.batches
        needed = sum(t.nbytes for batch in batches for t in plenty.train.references(batch).baselines.values())
        assert plenty.footprint.lasting == needed
        there = plenty.footprint.said + plenty.footprint.step(0) + plenty.footprint.narrowed
        allowed = (there + needed * 5 / 8) / (1 - VALIDATION_MEMORY)
        tight = problem_of("llama", steps=8, ranking_share=0.9, memory=f"{allowed / 2**20:.9f}MB")
        assert plenty.train.references.dtype is None
        for batch in batches:
            reference = tight.train.references(batch)
            assert reference.lasting
            assert all(baseline.dtype == torch.bfloat16 for baseline in reference.baselines.values())
        searches = [Training(problem) for problem in (tight, plenty)]
        assert not any(search.run() for search in searches)
    for one, other in zip(*(search.history for search in searches), strict=True):
        assert one["kl"] == pytest.approx(other["kl"], rel=2**-8)


@pytest.mark.parametrize(
    ("settings", "shrinks"),
    [
        ({"method": "nested"}, True),
        ({"method": "nested", "shrinking": "off"}, False),
        ({"method": "nested", "memory": "0MB", "checkpointing": "none"}, False),
        ({"method": "hard_concrete"}, False),
        ({"method": "hard_concrete", "shrinking": "on"}, True),
        ({"shrinking": "on", "checkpointing": "all"}, False),
    ],
)
def test_a_search_leaves_out_what_is_closed_if_asked_and_if_there_is_room(
    settings: dict[str, object], shrinks: bool
) -> None:
    with frozen(shared("llama").model):
        assert problem_of("llama", **settings).train.shrinks == shrinks


@pytest.mark.parametrize(("method", "rounding"), [("hard_concrete", 2**-8), ("nested", 2**-7)])
@pytest.mark.parametrize(("checkpointing", "expected"), [("none", 0), ("all", LAYERS), ("auto", LAYERS)])
def test_a_search_without_memory_runs_layers_again_and_finds_the_same(
    checkpointing: str, expected: int, method: str, rounding: float
) -> None:
    """Nested mixes rounded activations at four sites of a layer, gates at two."""
    with frozen(shared("llama").model):
        problem = problem_of("llama", method=method, memory="0MB", checkpointing=checkpointing, steps=3)
        assert problem.train.checkpointed == expected
        plenty = problem_of("llama", method=method, steps=3)
        assert plenty.train.checkpointed == 0
        tight, ample = Training(problem), Training(plenty)
        assert not tight.run()
        assert not ample.run()
    precision = rounding if expected else 1e-5  # activations in bfloat16, or as they are
    for one, other in zip(tight.history, ample.history, strict=True):
        assert one["kl"] == pytest.approx(other["kl"], rel=precision)
    ours, theirs = tight.phase.ranking().scores, ample.phase.ranking().scores
    spread = max(float(scores.max() - scores.min()) for scores in theirs.values())
    assert all(torch.allclose(ours[g], theirs[g], atol=precision * spread) for g in ours)
