"""What a search does on the host, whatever the model runs on: it draws gates, cuts rankings, keeps checkpoints, hashes weights.

Measured on models that have all the nodes of large ones and next to no weights, for their residual stream is as wide as they
have heads.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from circuitsieve import DiscoveryConfig
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.runs.provenance import fingerprint
from circuitsieve.search.phases import first_phase, next_phase
from circuitsieve.search.problem import Problem
from circuitsieve.search.resuming import Checkpoints
from circuitsieve.search.training import Training
from cost_model import nodes
from families import Sizes, config_of, random_model, token_pairs

SIZE = 0.1
"""At which rankings are cut."""
HASHED = 1 << 28
"""Weights whose hashing is timed."""
Timer = Callable[[dict[str, Callable[[], object]]], dict[str, float]]


def host_side(sizes: Sizes, timer: Timer) -> dict[str, float]:
    """Seconds of what is done once a step, a candidate, a checkpoint or a gigabyte, with the nodes of a model.

    Args:
        sizes: of the model.
        timer: seconds of calls by name.
    """
    config = config_of("llama", replace(sizes, width=sizes.heads, vocabulary=64))
    config.head_dim = sizes.width // sizes.heads
    model = random_model(config, torch.bfloat16)
    asked = DiscoveryConfig(
        "hard_concrete", size=SIZE, steps=4, ranking_share=0.5, ranking_looks=0, batch_size=2, training_dtype="model"
    )
    with frozen(model), tempfile.TemporaryDirectory() as folder:
        problem = Problem.of(Subject.of(model), token_pairs(64, 4, 8, 4), asked)
        training = Training(problem)
        training.begin(first_phase(problem))
        gates = next_phase(training.phase, training.problem_now)
        assert gates is not None
        training.begin(gates)
        training.step(0, problem.train.batches[0])
        ranking = training.phase.ranking()
        training.checks.run(problem, 0, ranking)
        checkpoints = Checkpoints(folder, "scale")
        taken = timer(
            {
                "drawing gates": lambda: gates.draw(0),
                "cutting a ranking": lambda: problem.circuit(ranking.cut(ranking.threshold_at(SIZE))).site_masks(),
                "a checkpoint": lambda: checkpoints.keep(0, training.state()),
            }
        )
        (kept,) = Path(folder).iterdir()
        return {"nodes": nodes(problem.space), **taken, "bytes of a checkpoint": kept.stat().st_size}


def hashing(timer: Timer) -> float:
    """Seconds for the fingerprint of a gigabyte of weights."""
    layer = nn.Linear(1, HASHED // 2, bias=False, dtype=torch.bfloat16)
    return timer({"hashing": lambda: fingerprint(layer)})["hashing"] / (layer.weight.nbytes / 1e9)
