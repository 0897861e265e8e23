"""Run folders of a random circuit of the tiny model, for the tests of what is written and read."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.data.batching import batches
from circuitsieve.errors import RunError
from circuitsieve.models.ablations import constants
from circuitsieve.models.subject import Subject
from circuitsieve.runs.folder import PairRecord, RunFolder
from circuitsieve.vocabulary import Ablation, Granularity
from tiny import name_pairs, tiny_gpt2, tiny_pairs

SUBJECT = Subject.of(tiny_gpt2())
BATCHES = batches(tiny_pairs().test, 4)


class Found(NamedTuple):
    circuit: Circuit
    ranking: Ranking | None


def random_found(ablation: Ablation = Ablation.CORRUPTED, seed: int = 0) -> Found:
    """A random circuit with half its head dims and neurons, and random scores."""
    generator = torch.Generator().manual_seed(seed)
    masks = SUBJECT.space.full()
    for granularity in (Granularity.HEAD_DIM, Granularity.MLP_NEURON, Granularity.MLP_OUT_DIM):
        masks[granularity] = torch.rand(SUBJECT.space.shape(granularity), generator=generator) > 0.5
    scores = {
        g: torch.randn(SUBJECT.space.shape(g), generator=generator) for g in (Granularity.HEAD, Granularity.MLP_NEURON)
    }
    return Found(
        Circuit(SUBJECT.space, masks, ablation, constants(SUBJECT, BATCHES, ablation)), Ranking(SUBJECT.space, scores)
    )


def saved(path: Path, found: Found) -> RunFolder:
    folder = RunFolder.claim(path)
    folder.write_json("config.json", {})
    folder.write_pairs([PairRecord(pair, "test") for pair in name_pairs(2)])
    folder.write_circuit(*found, {"load": 0.5})
    return folder


def complaint(action: Callable[[], object]) -> str:
    with pytest.raises(RunError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)
