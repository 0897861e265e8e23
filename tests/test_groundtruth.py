"""Models whose circuits are known: that they are, and that they are found."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.config import DiscoveryConfig
from circuitsieve.evaluation.card import evaluate
from circuitsieve.evaluation.groundtruth import SYMBOLS, KnownModel, Level, confined, planted
from circuitsieve.evaluation.harness import EvaluationConfig
from circuitsieve.evaluation.recovery import auroc, average_precision, recovered
from circuitsieve.models.subject import Subject
from circuitsieve.search.discovery import discover
from circuitsieve.vocabulary import Granularity
from damage import examples

LEVEL = Level(tasks=1, heads=2, neurons=5, layers=2, steps=500)
G = Granularity


@pytest.fixture(scope="module")
def known() -> KnownModel:
    return confined(LEVEL)


@pytest.mark.slow
def test_the_known_nodes_do_the_task_and_nothing_else_does(known: KnownModel):
    """By the plain model on corrupted prompts, and with the nodes alone."""
    space = Subject.of(known.model).space
    (circuit,) = known.circuits
    masks = {**circuit.truth, G.HEAD_DIM: circuit.truth[G.HEAD].repeat_interleave(space.head_dim, 1)}
    card = evaluate(known.model, Circuit(space, masks), circuit.pairs.test, config=EvaluationConfig(random_circuits=0))
    assert card["full.accuracy"] >= 0.98
    assert card["test.accuracy"] >= 0.98
    assert card["complement.accuracy"] <= 0.02
    with torch.no_grad():
        for example in circuit.pairs.test[:20]:
            clean, corrupted = (
                known.model(torch.tensor([ids])).logits[0, -1] for ids in (example.clean, example.corrupted)
            )
            assert clean[:SYMBOLS].argmax() == example.answers[0]
            assert corrupted[:SYMBOLS].argmax() == example.wrong_answers[0]


@pytest.mark.slow
def test_each_known_node_is_needed(known: KnownModel):
    space = Subject.of(known.model).space
    circuit = known.circuits[0]
    whole = {**circuit.truth, G.HEAD_DIM: circuit.truth[G.HEAD].repeat_interleave(space.head_dim, 1)}

    def kl(masks: dict) -> float:
        card = evaluate(
            known.model, Circuit(space, masks), circuit.pairs.test, config=EvaluationConfig(random_circuits=0)
        )
        return card["test.kl"]

    before = kl(whole)
    for granularity, mark in circuit.truth.items():
        for layer, index in mark.nonzero().tolist():
            fewer = {g: mask.clone() for g, mask in whole.items()}
            fewer[granularity][layer, index] = False
            assert kl(fewer) > before + 0.02, f"L{layer}.{granularity}.{index}"


@pytest.mark.slow
def test_the_search_finds_what_is_known(known: KnownModel):
    for circuit in known.circuits:
        assert {str(g): int(mark.sum()) for g, mark in circuit.truth.items()} == {"head": 2, "mlp_neuron": 5}
        found = discover(known.model, circuit.pairs, DiscoveryConfig(method="nested", max_kl=0.1, steps=300))
        for scores in recovered(found.circuit, found.ranking, circuit.truth).values():
            assert scores["recall"] == 1
            assert scores["auroc"] >= 0.98
            assert scores["average_precision"] >= 0.85


@pytest.mark.slow
def test_planted_nodes_alone_write_and_are_found():
    """All else can be taken out of the weights; without one planted node the model says something else."""
    known = planted(seed=1)
    (circuit,) = known.circuits
    space = Subject.of(known.model).space
    assert {g: int(mark.sum()) for g, mark in circuit.truth.items()} == {G.HEAD: 3, G.MLP_NEURON: 8}
    ids = torch.tensor([example.clean for example in circuit.pairs.test[:8]])
    before = known.model(ids).logits
    for granularity, projection, each in ((G.HEAD, "attn", space.head_dim), (G.MLP_NEURON, "mlp", 1)):
        for layer, block in enumerate(known.model.transformer.h):
            weight = getattr(block, projection).c_proj.weight.data
            kept = weight.clone()
            rows = circuit.truth[granularity][layer].repeat_interleave(each)
            weight[~rows] = 0
            assert torch.equal(known.model(ids).logits, before)
            for row in rows.nonzero().flatten()[::each].tolist():
                weight[row : row + each] = 0
                assert (known.model(ids).logits - before).abs().max() > 0.01
                weight.copy_(kept)
    found = discover(known.model, circuit.pairs, DiscoveryConfig(method="nested", max_kl=0.02, steps=200))
    for scores in recovered(found.circuit, found.ranking, circuit.truth).values():
        assert scores == {"precision": 1, "recall": 1, "auroc": 1, "average_precision": 1}


def test_where_nothing_is_known_nothing_can_be_found():
    space = Subject.of(planted(0).model).space
    generator = torch.Generator().manual_seed(0)
    ranking = Ranking(
        space, {g: torch.rand(space.shape(g), generator=generator) for g in (Granularity.HEAD, Granularity.MLP_NEURON)}
    )
    truth = {g: torch.zeros(space.shape(g), dtype=torch.bool) for g in ranking.scores}
    truth[Granularity.HEAD][0, 1] = True
    scores = recovered(Circuit(space, {}), ranking, truth)
    assert scores["head"]["recall"] == 1
    assert all(math.isnan(value) for value in scores["mlp_neuron"].values())


def test_the_same_seed_gives_the_same_model():
    short = Level(1, 2, 4, 2, steps=3)
    state = torch.get_rng_state()
    first, second, other = (confined(short, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert not torch.equal(first.model.transformer.wte.weight, other.model.transformer.wte.weight)
    assert first.circuits[0].pairs == second.circuits[0].pairs


VALUES = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=12)


@examples(200)
@given(VALUES)
def test_areas_by_their_definitions(rows: list[tuple[int, bool]]):
    scores, marks = np.array([float(score) for score, _ in rows]), np.array([mark for _, mark in rows])
    inside, outside = scores[marks], scores[~marks]
    if len(inside) and len(outside):
        won = [(a > b) + (a == b) / 2 for a, b in itertools.product(inside, outside)]
        assert auroc(scores, marks) == pytest.approx(sum(won) / len(won))
    else:
        assert math.isnan(auroc(scores, marks))
    if len(inside):
        cuts = [[mark for score, mark in rows if score >= own] for own in inside]
        assert average_precision(scores, marks) == pytest.approx(np.mean([np.mean(cut) for cut in cuts]))
    else:
        assert math.isnan(average_precision(scores, marks))
