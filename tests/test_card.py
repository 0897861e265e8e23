"""What the card holds, and the random circuits that it holds a circuit against."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.errors import ConfigError, DataError
from circuitsieve.evaluation.card import evaluate
from circuitsieve.evaluation.controls import matched_random
from circuitsieve.evaluation.harness import EvaluationConfig
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import Granularity
from damage import examples
from tiny import tiny_gpt2, tiny_pairs

MODEL = tiny_gpt2()
SPACE = Subject.of(MODEL).space
PAIRS = tiny_pairs()
FEW = EvaluationConfig(random_circuits=3, batch_size=4)
SECTIONS = ("test", "full", "empty", "complement", "random", "validation")
METRICS = ("kl", "kl_p95", "accuracy", "argmax_accuracy", "prob_diff", "logit_diff", "faithfulness", "exact_match", "n")


def random_circuit(seed: int, density: float = 0.6) -> Circuit:
    generator = torch.Generator().manual_seed(seed)
    masks = {g: torch.rand(SPACE.shape(g), generator=generator) < density for g in Granularity}
    return Circuit(SPACE, {**masks, Granularity.EMBED: torch.ones(1, 1, dtype=torch.bool)})


CIRCUIT = random_circuit(3)


# --- random circuits ----------------------------------------------------------------------------------------------------


def shape_of(circuit: Circuit) -> dict[str, Any]:
    """What a matched random circuit must share, counted node by node."""
    masks = {g: mask.tolist() for g, mask in circuit.masks.items()}
    dims = [
        [row[h * SPACE.head_dim : (h + 1) * SPACE.head_dim] for h in range(SPACE.heads)]
        for row in masks[Granularity.HEAD_DIM]
    ]
    counted = (Granularity.HEAD, Granularity.MLP_NEURON, Granularity.ATTN_OUT_DIM, Granularity.MLP_OUT_DIM)
    equal = (Granularity.LAYER, Granularity.ATTN_BLOCK, Granularity.MLP_BLOCK, Granularity.EMBED)
    return {
        "counts by layer": {g: [sum(row) for row in masks[g]] for g in counted},
        "the same nodes": {g: masks[g] for g in equal},
        "dims of the heads of a layer": [Counter(sum(head) for head in layer) for layer in dims],
    }


@examples(40)
@given(st.integers(0, 10**6), st.floats(0.2, 1.0), st.integers(0, 10**6))
def test_matched_random_circuit_has_the_shape_of_the_circuit(seed, density, draw):
    circuit = random_circuit(seed, density)
    control = matched_random(circuit, draw)
    assert shape_of(control) == shape_of(circuit)
    assert control.size == circuit.size
    assert control.ablation is circuit.ablation
    heads = control.masks[Granularity.HEAD].repeat_interleave(SPACE.head_dim, 1)
    assert not (control.masks[Granularity.HEAD_DIM] & ~heads).any(), "head dims move with their head"


def test_matched_random_circuits_differ_but_follow_the_seed():
    def nodes(seed: int) -> frozenset[str]:
        return frozenset(matched_random(CIRCUIT, seed).nodes())

    drawn = [nodes(seed) for seed in range(20)]
    assert len(set(drawn)) > 15
    assert drawn[:3] == [nodes(seed) for seed in range(3)]
    assert frozenset(CIRCUIT.nodes()) not in drawn


def often(circuit: Circuit, granularity: Granularity) -> torch.Tensor:
    """How often each node is kept by 200 random circuits."""
    draws = [matched_random(circuit, seed).masks[granularity] for seed in range(200)]
    return torch.stack(draws).float().mean(0)


@pytest.mark.parametrize(
    ("granularity", "kept", "share"),
    [
        (Granularity.HEAD, [True, False], 0.5),
        (Granularity.HEAD_DIM, [True, False, False, False] * 2, 0.25),
        (Granularity.MLP_NEURON, [True] * 3 + [False] * 9, 0.25),
        (Granularity.ATTN_OUT_DIM, [True] * 2 + [False] * 6, 0.25),
        (Granularity.MLP_OUT_DIM, [True] * 2 + [False] * 6, 0.25),
    ],
)
def test_every_unit_is_drawn_as_often_as_its_neighbours(granularity, kept, share):
    mask = torch.tensor([kept] * SPACE.layers)
    assert often(Circuit(SPACE, {granularity: mask}), granularity).sub(share).abs().max() < 0.15


# --- the card -----------------------------------------------------------------------------------------------------------


def test_card_has_every_section_and_metric():
    card = evaluate(MODEL, CIRCUIT, PAIRS.test, validation=PAIRS.validation, config=FEW)
    assert {*SECTIONS, "kept", "size", "parameters", "layers", "intervals", "reasons"} == set(card)
    for section in SECTIONS:
        extra = {"circuits", "beaten", "circuit_accuracy"} if section == "random" else set()
        assert set(card[section]) == {*METRICS, *extra}
        assert set(card["intervals"][section]) == {*METRICS} - {"n"}
    assert set(card["kept"]) == {str(g) for g in Granularity}
    assert set(card["layers"]) == {"0", "1"}
    assert card["test.n"] == len(PAIRS.test)
    assert card["validation.n"] == len(PAIRS.validation)


def test_card_without_validation_pairs_has_no_such_section():
    card = evaluate(MODEL, CIRCUIT, PAIRS.test, config=FEW)
    assert "validation" not in card.values
    assert "validation" not in card["intervals"]


def leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield path + key, value


@pytest.mark.parametrize("examples", [PAIRS.test, PAIRS.test[:1]], ids=["ten pairs", "one pair"])
def test_every_value_is_a_plain_number_or_null_with_a_reason(examples):
    card = evaluate(MODEL, CIRCUIT, examples, config=FEW)
    for path, value in leaves(
        {key: value for key, value in card.values.items() if key not in ("intervals", "reasons")}
    ):
        if value is None:
            section, metric = path.split(".")
            assert isinstance(card["reasons"][section][metric], str)
        else:
            assert type(value) in (int, float), path
            assert math.isfinite(value)
    for path, bounds in leaves(card["intervals"]):
        if bounds is None:
            section, metric = path.split(".")
            assert {metric, "intervals"} & card["reasons"][section].keys()
        else:
            low, high = bounds
            assert low <= high
            assert path.startswith("random.") or low <= card[path] <= high
    assert json.loads(json.dumps(card.values, allow_nan=False)) == json.loads(json.dumps(card.values))


def test_card_counts_what_the_circuit_keeps():
    nodes = Counter(name.split(".")[1] if "." in name else name for name in CIRCUIT.nodes())
    card = evaluate(MODEL, CIRCUIT, PAIRS.test, config=FEW)
    assert {g: row["kept"] for g, row in card["kept"].items()} == {str(g): nodes[g] for g in Granularity}
    assert card["kept.head_dim.total"] == 16
    assert card["kept.embed"] == {"kept": 1, "total": 1}
    assert card["size"] == pytest.approx((nodes["head_dim"] + nodes["mlp_neuron"]) / (16 + 24), abs=1e-6)
    for layer, row in card["layers"].items():
        for kind in ("head", "head_dim", "mlp_neuron"):
            assert row[kind] == sum(name.startswith(f"L{layer}.{kind}.") for name in CIRCUIT.nodes())


def test_random_section_is_about_the_random_circuits():
    found = evaluate(MODEL, CIRCUIT, PAIRS.test, config=FEW)
    each = [evaluate(MODEL, matched_random(CIRCUIT, seed), PAIRS.test, config=FEW)["test"] for seed in range(3)]
    for metric in ("kl", "accuracy", "logit_diff", "kl_p95"):
        assert found[f"random.{metric}"] == pytest.approx(sum(test[metric] for test in each) / 3, rel=1e-5)
    assert found["random.circuits"] == 3
    assert found["random.circuit_accuracy"] == pytest.approx(found["test.accuracy"])  # all pairs are few enough here
    assert found["random.beaten"] == pytest.approx(sum(test["kl"] > found["test.kl"] for test in each) / 3)


def test_evaluation_follows_the_seed_and_the_batch_size_changes_nothing():
    first, second = (evaluate(MODEL, CIRCUIT, PAIRS.test, config=FEW).values for _ in range(2))
    assert first == second
    other = evaluate(MODEL, CIRCUIT, PAIRS.test, config=EvaluationConfig(random_circuits=3, batch_size=3))
    for metric in set(METRICS) - {"faithfulness"}:
        assert other["test"][metric] == pytest.approx(first["test"][metric], rel=1e-4, abs=1e-6)


def test_progress_counts_up_to_the_end():
    calls: list[tuple[str, int, int]] = []
    evaluate(MODEL, CIRCUIT, PAIRS.test, validation=PAIRS.validation, config=FEW, progress=lambda *c: calls.append(c))
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert calls[-1] == ("done", 7, 7)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("random_circuits", -1, 0),
        ("null_nodes", -2, 0),
        ("memory_gb", float("nan"), 0),
        ("batch_size", 0, 1),
        ("random_pairs", 0, 1),
    ],
)
def test_settings_of_an_evaluation_that_make_no_sense_are_refused(name: str, value: float, least: int):
    with pytest.raises(ConfigError, match=f"^{name}: found {value}, expected at least {least}$"):
        EvaluationConfig(**{name: value})


def test_no_pairs_are_refused():
    with pytest.raises(DataError, match=r"^pairs: found none, expected at least one to judge a circuit by$"):
        evaluate(MODEL, CIRCUIT, ())
