"""The card against numbers from elsewhere: the plain model on unpadded prompts, weight surgery and numpy."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from by_hand import agreeable, by_hand, plain_logits
from circuitsieve.circuits.circuit import Circuit
from circuitsieve.data.batching import batches
from circuitsieve.data.tokenising import Example
from circuitsieve.errors import ModelError
from circuitsieve.evaluation.card import evaluate
from circuitsieve.evaluation.harness import EvaluationConfig
from circuitsieve.evaluation.metrics import Anchors, Outcome, interval, summarise
from circuitsieve.models.ablations import constants
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import Ablation
from tiny import tiny_gpt2, tiny_pairs

MODEL = tiny_gpt2()
SPACE = Subject.of(MODEL).space
FEW = EvaluationConfig(random_circuits=3, batch_size=4)
NAMED = ("kl", "kl_p95", "accuracy", "argmax_accuracy", "prob_diff", "logit_diff", "faithfulness", "exact_match", "n")


PAIRS = tiny_pairs()
TEST, VALIDATION = agreeable(MODEL, PAIRS.test), agreeable(MODEL, PAIRS.validation)


Logits = Callable[[Example], np.ndarray]


def expected(circuit: Logits, empty: Logits, examples: Sequence[Example]) -> dict[str, float]:
    rows = [by_hand(plain_logits(MODEL, e.clean), circuit(e), e) for e in examples]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    ordered = sorted(row["kl"] for row in rows)
    place = 0.95 * (len(ordered) - 1)
    low = math.floor(place)
    means["kl_p95"] = ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
    metric = "prob_diff" if examples[0].candidates else "logit_diff"
    full, none = (np.mean([by_hand(f(e), f(e), e)[metric] for e in examples]) for f in (clean, empty))
    return {**means, "n": len(rows), "faithfulness": (means[metric] - none) / (full - none)}


def clean(example: Example) -> np.ndarray:
    return plain_logits(MODEL, example.clean)


def corrupted(example: Example) -> np.ndarray:
    return plain_logits(MODEL, example.corrupted)


def nothing(_: Example) -> np.ndarray:
    """The model with a residual stream of zeros at the end."""
    with torch.no_grad():
        return MODEL.lm_head(MODEL.transformer.ln_f(torch.zeros(1, SPACE.width)))[0].double().numpy()


def all_but(*names: str, ablation: Ablation = Ablation.CORRUPTED) -> Circuit:
    masks = SPACE.full()
    for name in names:
        node = SPACE.parse(name)
        masks[node.granularity][node.layer, node.index] = False
    return Circuit(SPACE, masks, ablation, constants(Subject.of(MODEL), batches(TEST, 4), ablation))


def without_head() -> torch.nn.Module:
    """A copy whose second head of the first layer adds nothing: its rows of the output projection are zero."""
    model = copy.deepcopy(MODEL)
    model.transformer.h[0].attn.c_proj.weight.data[SPACE.head_dim :] = 0
    return model


# --- metrics ------------------------------------------------------------------------------------------------------------


def several_answers(examples: Sequence[Example]) -> list[Example]:
    return [
        replace(e, answers=(*e.answers, 2 + i % 3), wrong_answers=(*e.wrong_answers, 12))
        for i, e in enumerate(examples)
    ]


def with_candidates(examples: Sequence[Example]) -> list[Example]:
    return [
        replace(e, candidates=tuple({*e.answers, *e.wrong_answers, 10, *range(i % 2, 2)}))
        for i, e in enumerate(examples)
    ]


def telling(example: Example) -> Example:
    """The pair, with its answers swapped where the full model does worse on it than a model that says nothing."""
    metric = "prob_diff" if example.candidates else "logit_diff"
    full, none = (by_hand(f(example), f(example), example)[metric] for f in (clean, nothing))
    return example if full > none else replace(example, answers=example.wrong_answers, wrong_answers=example.answers)


@pytest.mark.parametrize("variant", [list, several_answers, with_candidates])
def test_metrics_of_a_circuit_without_one_head(variant):
    examples = [telling(example) for example in variant(TEST)]
    card = evaluate(MODEL, all_but("L0.head.1", ablation=Ablation.ZERO), examples, config=FEW)
    model = without_head()
    wanted = expected(lambda e: plain_logits(model, e.clean), nothing, examples)
    assert wanted["kl"] > 0.01
    assert card["test"] == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert set(card["test"]) == set(NAMED)


@pytest.mark.parametrize(
    ("section", "circuit"), [("full", clean), ("empty", corrupted), ("test", corrupted), ("validation", corrupted)]
)
def test_anchors_are_the_plain_model_on_clean_and_on_corrupted_prompts(section, circuit):
    """The circuit that keeps nothing, not even the embedding, is the model on the corrupted prompts."""
    closed = Circuit(SPACE, SPACE.full(False))
    card = evaluate(MODEL, closed, TEST, validation=VALIDATION, config=FEW)
    wanted = expected(circuit, corrupted, VALIDATION if section == "validation" else TEST)
    known = {name: value for name, value in card[section].items() if value is not None}
    assert known == pytest.approx({name: wanted[name] for name in known}, rel=1e-4, abs=1e-6)
    assert {"kl", "logit_diff", "accuracy"} <= known.keys()
    if section != "validation":
        assert wanted["faithfulness"] == pytest.approx(float(section == "full"))
        assert card[section]["faithfulness"] == pytest.approx(float(section == "full"), abs=1e-6)


def test_full_circuit_is_the_model():
    card = evaluate(MODEL, Circuit(SPACE, SPACE.full()), TEST, config=FEW)
    assert [card[f"test.{name}"] for name in ("kl", "kl_p95", "faithfulness", "exact_match")] == [0, 0, 1, 1]
    assert card["test"] == card["full"]
    assert card["intervals.test.faithfulness"] == (1, 1)
    assert (card["size"], card["parameters.kept"]) == (1, card["parameters.total"])


def test_complement_keeps_the_other_units():
    kept = all_but("L0.head.1", "L1.head.0", "L1.mlp_neuron.3")
    others = Circuit.from_nodes(SPACE, ["L0.head.1", "L1.head.0", "L1.mlp_neuron.3"])
    card, mirrored = (evaluate(MODEL, circuit, TEST, config=FEW) for circuit in (kept, others))
    assert card["complement"] == pytest.approx(mirrored["test"])
    assert mirrored["complement"] == pytest.approx(card["test"])


def test_faithfulness_is_null_with_a_reason_where_full_equals_empty():
    same = [replace(example, corrupted=example.clean) for example in TEST]
    card = evaluate(MODEL, all_but("L0.head.1"), same, validation=same, config=FEW)
    for section in ("test", "full", "empty", "complement", "validation", "random"):
        assert card[section]["faithfulness"] is None
        assert card["intervals"][section]["faithfulness"] is None
        assert card["reasons"][section]["faithfulness"] == (
            "the full model is not distinguishable from the empty circuit on these pairs"
        )
    assert card["test.kl"] == pytest.approx(0, abs=1e-6)
    json.dumps(card.values, allow_nan=False)


def test_one_pair_has_no_intervals():
    card = evaluate(MODEL, all_but("L0.head.1"), TEST[:1], config=FEW)
    assert card["test.n"] == 1
    assert set(card["intervals.test"].values()) == {None}
    assert card["reasons.test.intervals"] == "an interval needs two pairs"
    assert card["reasons.test.faithfulness"] == "telling the full model from the empty circuit takes two pairs"
    json.dumps(card.values, allow_nan=False)


def test_model_with_other_nodes_is_refused():
    with pytest.raises(
        ModelError, match=r"model: found the nodes NodeSpace\(layers=3, .*, expected those of the circuit"
    ):
        evaluate(tiny_gpt2(layers=3), Circuit(SPACE, SPACE.full()), TEST, config=FEW)


# --- intervals ----------------------------------------------------------------------------------------------------------


def mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return values.mean(axis)


def test_interval_is_that_of_the_normal_distribution():
    """Of 400 normal values the mean lies within 1.96 / 20 standard deviations, 95 times in 100."""
    values = np.random.default_rng(0).normal(5, 1, size=400)
    low, high = interval([values], mean, seed=1)
    assert low < values.mean() < high
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.02)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert interval([values], mean, seed=1) == (low, high)


def test_interval_shrinks_with_the_number_of_pairs():
    values = np.random.default_rng(0).normal(size=1600)
    widths = [np.ptp(interval([values[:n]], mean, seed=0)) for n in (25, 100, 400, 1600)]
    assert all(0.3 < later / earlier < 0.75 for earlier, later in pairwise(widths))


def test_ratio_without_a_denominator_has_no_interval():
    assert interval([np.ones(9), np.eye(9)[0]], lambda a, b, axis=-1: a.mean(axis) / b.mean(axis), seed=0) is None


def outcome(**values: list[float]) -> Outcome:
    names = (
        "kl",
        "logit_diff",
        "prob_diff",
        "accuracy",
        "argmax_accuracy",
        "exact_match",
        "cutoff_sharpness",
        "metric",
    )
    count = len(next(iter(values.values())))
    return Outcome({name: np.array(values.get(name, [0.0] * count)) for name in names})


def test_cutoff_sharpness_is_on_the_card_where_all_pairs_have_a_border():
    anchors = Anchors(outcome(metric=[4.0, 2.0, 3.0]), outcome(metric=[0.0, 1.0, 0.0]))
    everywhere = summarise(outcome(metric=[4.0, 1.0, 2.0], cutoff_sharpness=[0.5, 0.1, 0.3]), anchors)
    assert everywhere.values["cutoff_sharpness"] == pytest.approx(0.3)
    assert everywhere.intervals["cutoff_sharpness"] is not None
    somewhere = summarise(outcome(metric=[4.0, 1.0, 2.0], cutoff_sharpness=[0.5, np.nan, 0.3]), anchors)
    assert "cutoff_sharpness" not in somewhere.values


def test_faithfulness_is_a_ratio_of_means_not_a_mean_of_ratios():
    full, empty = outcome(metric=[4.0, 2.0, 3.0, 3.0]), outcome(metric=[0.0, 1.0, 0.0, 1.0])
    found = summarise(outcome(metric=[4.0, 1.0, 2.0, 1.0]), Anchors(full, empty))
    assert found.values["faithfulness"] == pytest.approx(6 / 10)
    low, high = found.intervals["faithfulness"]
    assert 0 <= low < 0.6 < high <= 1.01
    assert found.reasons == {}
    overshot = summarise(outcome(metric=[5.0, 3.0, 4.0, 4.0]), Anchors(full, empty))
    assert overshot.values["faithfulness"] == pytest.approx(14 / 10)
