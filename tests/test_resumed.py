"""Passes that begin at a layer: the same as whole ones, without running what comes before."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.nodes import Node
from circuitsieve.data.batching import batches
from circuitsieve.data.tokenising import Example
from circuitsieve.disk.store import Store
from circuitsieve.evaluation.harness import EvaluationConfig, Harness
from circuitsieve.evaluation.metrics import begin, run_circuit
from circuitsieve.evaluation.minimality import changed
from circuitsieve.models.ablations import constants
from circuitsieve.models.hooks import resumed
from circuitsieve.models.subject import Subject
from circuitsieve.search.references import References
from circuitsieve.vocabulary import Ablation, Granularity
from models import each_family, module, random_examples, random_masks, shared

G = Granularity


def examples(shared_start: bool) -> list[Example]:
    """Pairs that begin alike, so that the prefix is run once, or not."""
    found = random_examples([8, 6, 8, 7])
    return [replace(e, corrupted=e.clean[:3] + e.corrupted[3:]) for e in found] if shared_start else found


def circuit_of(subject: Subject, bench: list, ablation: Ablation) -> Circuit:
    masks = random_masks(subject.space, 5)
    for g in (G.LAYER, G.ATTN_BLOCK, G.MLP_BLOCK):
        masks[g][:] = True
    return Circuit(subject.space, masks, ablation, constants(subject, bench, ablation))


@each_family
@pytest.mark.parametrize("ablation", [Ablation.CORRUPTED, Ablation.MEAN])
@pytest.mark.parametrize("shared_start", [False, True], ids=["", "prefix"])
def test_a_circuit_that_differs_late_begins_there(family: str, ablation: Ablation, shared_start: bool):
    subject = shared(family)
    bench = batches(examples(shared_start), 2)
    circuit = circuit_of(subject, bench, ablation)
    references = References(subject, ablation, constants=circuit.constants, store=Store(1 << 20))
    begun = begin(circuit, references, bench)
    early = module(subject.model, "attn_out", 0)
    for node in (Node(G.HEAD, 1, 0), Node(G.MLP_BLOCK, 1, 0), Node(G.MLP_NEURON, 1, 3), Node(G.HEAD_DIM, 0, 2)):
        for keep in (False, True):
            other = changed(circuit, node, keep=keep)
            calls: list[int] = []
            with torch.no_grad():
                whole = run_circuit(other, references, bench)
                handle = early.register_forward_hook(lambda *_, calls=calls: calls.append(1))
                late = run_circuit(other, references, bench, begun, node.layer)
                handle.remove()
            for name, values in whole.values.items():
                np.testing.assert_allclose(late.values[name], values, rtol=1e-4, atol=1e-6)
            assert len(calls) == (0 if node.layer else len(bench))
    assert all("forward" not in block.__dict__ for block in subject.architecture.blocks)


def test_blocks_are_their_own_again_after_an_error():
    subject = shared("gpt2")
    blocks = subject.architecture.blocks

    def fail() -> None:
        with resumed(subject, [None, None], 2):
            assert all("forward" in block.__dict__ for block in blocks)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all("forward" not in block.__dict__ for block in blocks)


def test_passes_that_do_not_fit_the_memory_are_not_kept():
    subject = shared("gpt2")
    bench = batches(examples(shared_start=False), 4)
    circuit = circuit_of(subject, bench, Ablation.CORRUPTED)
    roomy = Harness(subject, circuit, examples(shared_start=False), EvaluationConfig(batch_size=4))
    kept = roomy.begin()
    assert kept is not None
    assert [len(outputs) for outputs in kept.values()] == [subject.space.layers]
    tight = EvaluationConfig(batch_size=4, memory_gb=1e-6)
    assert Harness(subject, circuit, examples(shared_start=False), tight).begin() is None
