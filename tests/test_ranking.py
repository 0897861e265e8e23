"""Rankings: cutting one at a size keeps that share of the units."""

import math

import pytest
import torch

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.errors import ConfigError
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import Granularity
from models import random_masks, shared

G = Granularity


def test_size_is_hit_exactly_where_units_have_scores_of_their_own(subject: Subject):
    scores = random_masks(subject.space, 8, soft=True)
    ranking = Ranking(subject.space, {g: scores[g] for g in (G.HEAD_DIM, G.MLP_NEURON)})
    assert len(ranking.unit_scores().unique()) == subject.space.units
    sizes = []
    for size in (0.01, 0.1, 0.25, 0.5, 0.77, 0.999, 1.0):
        circuit = Circuit(subject.space, ranking.cut(ranking.threshold_at(size)))
        sizes.append(circuit.size)
        assert circuit.size == pytest.approx(math.floor(size * subject.space.units + 1e-6) / subject.space.units)
    assert sizes == sorted(sizes)


def test_circuits_of_one_ranking_are_nested_and_never_exceed_the_size(subject: Subject):
    """With parents, units tie at their parent's score and fall out together."""
    scores = random_masks(subject.space, 8, soft=True)
    ranking = Ranking(subject.space, {g: s for g, s in scores.items() if g not in (G.ATTN_OUT_DIM, G.MLP_OUT_DIM)})
    smaller = Circuit(subject.space, subject.space.full(False))
    for size in (0.02, 0.1, 0.3, 0.5, 0.8, 1.0):
        circuit = Circuit(subject.space, ranking.cut(ranking.threshold_at(size)))
        assert circuit.size <= size * (1 + 1e-9)
        assert all(not (smaller.masks[g] & ~circuit.masks[g]).any() for g in G)
        smaller = circuit
    assert smaller.size == 1


def test_what_is_not_ranked_stays_at_every_size(subject: Subject):
    """However small the size that is asked for: it is what is ranked that goes."""
    scores = random_masks(subject.space, 8, soft=True)[G.HEAD]
    scores[0, 0] = math.inf
    ranking = Ranking(subject.space, {G.HEAD: scores, G.EMBED: torch.full((1, 1), math.inf)})
    for size in (0.5, 1e-3, 1e-6):
        masks = ranking.cut(ranking.threshold_at(size))
        assert masks[G.EMBED].all()
        assert masks[G.HEAD][0, 0]
    assert masks[G.HEAD].sum() == 1


@pytest.mark.parametrize("size", [0.05, 0.3, 0.7, 1.0])
def test_a_share_of_the_parameters_is_the_largest_that_any_cut_has(subject: Subject, size: float):
    scores = random_masks(subject.space, 8, soft=True)
    ranking = Ranking(subject.space, {g: scores[g] for g in (G.HEAD_DIM, G.MLP_NEURON)})
    every = [-math.inf, *ranking.unit_scores().tolist()]
    shares = [Circuit(subject.space, ranking.cut(threshold)).share("parameters") for threshold in every]
    found = Circuit(subject.space, ranking.cut(ranking.threshold_at(size, "parameters")))
    assert found.share("parameters") == max(share for share in shares if share <= size)
    assert found.share("parameters") == found.parameters.kept / found.parameters.total


def test_unit_scores_are_minima():
    space = shared("llama").space
    ranking = Ranking(
        space,
        {
            G.LAYER: torch.tensor([[0.9], [0.2]]),
            G.HEAD: torch.tensor([[0.5, 0.95, 0.1, 0.99], [0.5, 0.1, 0.5, 0.5]]),
            G.MLP_BLOCK: torch.tensor([[0.4], [0.8]]),
        },
    )
    first, second = [0.5, 0.9, 0.1, 0.9], [0.2, 0.1, 0.2, 0.2]
    expected = [score for head in first + second for score in [head] * 6] + [0.4] * 20 + [0.2] * 20
    assert ranking.unit_scores().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("size", [0.0, -0.1, 1.01, float("nan")])
def test_wrong_size(size: float):
    space = shared("llama").space
    ranking = Ranking(space, {G.HEAD: torch.zeros(2, 4)})
    with pytest.raises(ConfigError, match=rf"^size: found {size}, expected a fraction above 0 and at most 1$"):
        ranking.threshold_at(size)


def test_out_dims_are_cut_at_the_same_threshold_and_counted(subject: Subject):
    """A block whose out dims have all fallen has no units left, so the asked size is an upper bound that is met from below."""
    scores = random_masks(subject.space, 8, soft=True)
    ranking = Ranking(subject.space, {g: scores[g] for g in (G.HEAD_DIM, G.MLP_NEURON, G.MLP_OUT_DIM)})
    for size in (0.1, 0.5, 0.8):
        threshold = ranking.threshold_at(size)
        assert Circuit(subject.space, ranking.cut(threshold)).size <= size + 0.5 / subject.space.units
        below = max(
            (score for score in ranking.unit_scores().unique().tolist() if score < threshold), default=-torch.inf
        )
        assert Circuit(subject.space, ranking.cut(below)).size > size - 1 / subject.space.units


def test_a_size_that_no_cut_reaches_gives_the_smallest_circuit_there_is(subject: Subject) -> None:
    """Where neurons alone are ranked, head dims always count."""
    space = subject.space
    generator = torch.Generator().manual_seed(0)
    ranking = Ranking(space, {G.MLP_NEURON: torch.randn(space.shape(G.MLP_NEURON), generator=generator)})
    circuit = Circuit(space, ranking.cut(ranking.threshold_at(1e-3)))
    assert int(circuit.masks[G.MLP_NEURON].sum()) == 0
    assert bool(circuit.masks[G.HEAD_DIM].all())
