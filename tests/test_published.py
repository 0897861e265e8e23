"""Overlap with published circuits, counted by hand."""

import pytest

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.nodes import NodeSpace
from circuitsieve.evaluation import published as room
from circuitsieve.evaluation.harness import EvaluationConfig, Harness
from circuitsieve.evaluation.published import GREATER_THAN, IOI, overlap, published
from circuitsieve.models.subject import Subject
from tiny import tiny_gpt2, tiny_pairs

SMALL = NodeSpace(
    layers=12,
    heads=12,
    kv_heads=12,
    head_dim=64,
    neurons=3072,
    width=768,
    mlp_inputs=1,
    biases=frozenset(),
    post_norm=False,
)


def test_the_lists_are_those_of_the_papers():
    heads = [head for words in IOI.values() for head in words.split()]
    assert len(heads) == len(set(heads)) == 26
    assert len(GREATER_THAN["heads"].split()) == 9
    circuit = Circuit.from_nodes(SMALL, [f"L{layer}.head.{head}" for layer, head in (h.split(".") for h in heads)])
    found = overlap(circuit, "ioi")
    assert (found["jaccard"], found["recall"], found["precision"]) == (1, 1, 1)
    assert set(found["roles"].values()) == {1}


def test_overlap_by_hand():
    nodes = ["L9.head.9", "L10.head.0", "L5.head.5", "L1.head.1", "L0.mlp_block", "L5.mlp_block"]
    circuit = Circuit.from_nodes(SMALL, nodes)
    ioi = overlap(circuit, "ioi")
    assert ioi["jaccard"] == pytest.approx(3 / 27)
    assert (ioi["recall"], ioi["precision"]) == (pytest.approx(3 / 26), pytest.approx(3 / 4))
    assert ioi["roles"]["name movers"] == pytest.approx(2 / 3)
    assert ioi["roles"]["induction"] == pytest.approx(1 / 4)
    assert 0 < ioi["chance"] < ioi["jaccard"]
    years = overlap(circuit, "greater_than")
    assert years["recall"] == pytest.approx(1 / 9)
    assert (years["mlp_recall"], years["mlp_precision"]) == (pytest.approx(1 / 8), pytest.approx(1 / 2))
    assert overlap(Circuit.from_nodes(SMALL, []), "ioi")["jaccard"] == 0


def test_other_models_and_other_tasks_have_none(monkeypatch: pytest.MonkeyPatch):
    model = tiny_gpt2()
    space = Subject.of(model).space
    harness = Harness(Subject.of(model), Circuit(space, space.full()), tiny_pairs().test, EvaluationConfig())
    found = published(harness, "ioi")
    assert found.values == {"jaccard": None}
    assert found.reasons == {"jaccard": "published circuits are known of GPT-2 small alone"}
    monkeypatch.setattr(room, "SHAPE", (space.layers, space.heads, space.width))
    assert (
        published(harness, "ioi").values["recall"] == 1 / 26
    )  # of the tiny model's four heads, 0.1 is a published one
    for task in ("capitals", None):
        assert published(harness, task).reasons == {
            "jaccard": "published circuits are known of ioi and greater_than alone"
        }
