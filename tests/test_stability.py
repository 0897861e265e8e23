"""Overlap of circuits, and what chance would give."""

import itertools
import math

import pytest
import torch

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.likeness import chance, jaccards
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.tokenising import Pairs
from circuitsieve.evaluation import stability
from circuitsieve.evaluation.harness import EvaluationConfig, Harness
from circuitsieve.evaluation.stability import consensus
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Granularity
from tiny import tiny_gpt2, tiny_pairs

MODEL = tiny_gpt2()
SUBJECT = Subject.of(MODEL)
SPACE = SUBJECT.space
PAIRS = tiny_pairs()


def circuit_of(seed: int) -> Circuit:
    generator = torch.Generator().manual_seed(seed)
    return Circuit(SPACE, {g: torch.rand(SPACE.shape(g), generator=generator) < 0.6 for g in UNIT_GRANULARITIES})


@pytest.mark.parametrize(("first", "second", "total"), [(2, 3, 5), (1, 1, 4), (4, 4, 4), (0, 2, 4), (3, 1, 6)])
def test_chance_is_the_mean_over_all_sets(first: int, second: int, total: int):
    every = (itertools.combinations(range(total), n) for n in (first, second))
    found = [len({*a} & {*b}) / len({*a} | {*b}) for a, b in itertools.product(*every)]
    assert chance(first, second, total) == pytest.approx(math.fsum(found) / len(found))


def test_two_empty_sets_have_no_overlap():
    assert chance(0, 0, 7) is None
    nothing = Circuit(SPACE, SPACE.full(False))
    assert jaccards(nothing.masks, nothing.masks)["head"] == {"jaccard": None, "chance": None}


def test_overlap_counts_nodes():
    a, b = circuit_of(0), circuit_of(1)
    found = jaccards(a.masks, b.masks)
    for g in (Granularity.HEAD, Granularity.HEAD_DIM, Granularity.MLP_NEURON):
        first, second = ({*circuit.nodes(g)} for circuit in (a, b))
        assert found[str(g)]["jaccard"] == pytest.approx(len(first & second) / len(first | second))
    assert all(value["jaccard"] == 1 for value in jaccards(a.masks, a.masks).values())


def test_the_consensus_is_what_more_than_half_keep():
    circuits = [circuit_of(seed) for seed in range(4)]
    votes = [node for circuit in circuits for node in circuit.nodes(*UNIT_GRANULARITIES)]
    wanted = {node for node in votes if votes.count(node) > 2}
    assert {*consensus(circuits).nodes(*UNIT_GRANULARITIES)} == wanted
    assert {*consensus(circuits[:1]).nodes()} == {*circuits[0].nodes()}


def test_searches_are_repeated_with_other_seeds_and_other_pairs(monkeypatch: pytest.MonkeyPatch):
    made = []

    class Found:
        def __init__(self, pairs: Pairs, config: DiscoveryConfig) -> None:
            made.append((pairs, config))
            self.circuit = circuit_of(config.seed if len(made) <= 2 else 0)

    monkeypatch.setattr(stability, "discover", lambda _, pairs, config: Found(pairs, config))
    config = DiscoveryConfig(size=0.5, seed=3, steps=500)
    with frozen(MODEL):
        harness = Harness(SUBJECT, circuit_of(0), PAIRS.test, EvaluationConfig(batch_size=4))
        found = stability.stability(harness, PAIRS, config).values
    assert [c.seed for _, c in made] == [4, 5, 3, 3]
    assert {c.steps for _, c in made} == {found["steps"]} == {150}
    assert [p.train == PAIRS.train for p, _ in made] == [True, True, False, False]
    for pairs, _ in made[2:]:
        assert len(pairs.train) == len(PAIRS.train)
        assert set(pairs.train) < set(PAIRS.train)
        assert pairs.validation == PAIRS.validation
    assert made[2][0].train != made[3][0].train
    assert found["seeds"] == jaccards(circuit_of(4).masks, circuit_of(5).masks)
    assert found["resamples"]["head_dim"]["jaccard"] == 1
    own = [jaccards(circuit_of(0).masks, circuit_of(seed).masks)["mlp_neuron"]["jaccard"] for seed in (4, 5)]
    assert found["with_the_circuit"]["mlp_neuron"]["jaccard"] == pytest.approx(sum(own) / 2)
    agreed = consensus([circuit_of(seed) for seed in (4, 5, 0, 0)])
    assert found["consensus"]["size"] == agreed.size


def test_without_settings_or_pairs_nothing_is_repeated():
    harness = Harness(SUBJECT, circuit_of(0), PAIRS.test, EvaluationConfig(batch_size=4))
    for pairs, config in ((PAIRS, None), (Pairs((), (), PAIRS.test), DiscoveryConfig())):
        found = stability.stability(harness, pairs, config)
        assert found.values == {"reruns": None}
        assert found.reasons == {"reruns": "repeating the search needs its settings and its pairs"}
    paper = DiscoveryConfig("hard_concrete", pressure=0.1, steps=151)
    assert stability.reruns(PAIRS, paper) == 0
    reason = "a fixed pressure has closed little after the 150 steps of a rerun"
    assert stability.stability(harness, PAIRS, paper).reasons == {"reruns": reason}
    assert stability.reruns(PAIRS, paper.replaced(steps=150)) == 4
