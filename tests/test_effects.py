"""Effects of single nodes, against finite differences of one mask at a time; masks of single examples."""

import itertools
import math

import pytest
import torch

from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.tokenising import Pairs
from circuitsieve.models.instrument import answer_logits
from circuitsieve.search import effects
from circuitsieve.search.problem import Problem
from circuitsieve.vocabulary import DEFAULT_GRANULARITIES, Ablation, Granularity
from models import LAYERS, each_family, random_examples, random_masks, shared

G = Granularity
PAIRS = Pairs(*(tuple(random_examples([5, 6, 6], seed)) for seed in (1, 2, 3)))


def problem_of(family: str, granularities: tuple[Granularity, ...], ablation: Ablation = Ablation.CORRUPTED) -> Problem:
    config = DiscoveryConfig(granularities=tuple(map(str, granularities)), ablation=str(ablation), batch_size=3)
    return Problem.of(shared(family, torch.float64), PAIRS, config)


@pytest.mark.parametrize("ablation", [Ablation.CORRUPTED, Ablation.MEAN], ids=str)
@each_family
def test_masks_of_single_examples(family: str, ablation: Ablation):
    """Each example of a batch runs under its own masks as it does under the same masks for all."""
    problem = problem_of(family, tuple(G), ablation)
    (batch,) = problem.train.batches
    own = [random_masks(problem.space, seed, soft=True) for seed in range(len(batch))]
    together = {g: torch.stack([masks[g] for masks in own], dim=1)[:, :, None] for g in G}
    reference = problem.train.references(batch)
    found = problem.train.logits(problem.site_masks(together), batch, reference)
    for example, masks in enumerate(own):
        torch.testing.assert_close(
            found[example], problem.train.logits(problem.site_masks(masks), batch, reference)[example]
        )


@pytest.mark.parametrize("granularities", [DEFAULT_GRANULARITIES, (G.HEAD, G.MLP_BLOCK), (G.LAYER,), tuple(G)], ids=len)
@each_family
def test_effects_are_those_of_finite_differences(family: str, granularities: tuple[Granularity, ...]):
    """Moving the masks of all leaves of one node together changes the log-probability of the same tokens as much."""
    problem, step = problem_of(family, granularities), 1e-3
    space, deciding = problem.space, effects.finest(granularities)
    soft = {g: mask.double() for g, mask in random_masks(space, 5, soft=True).items() if g in deciding}
    found = effects.effects(problem, problem.train.batches, lambda: soft)
    (batch,) = problem.train.batches
    reference = problem.train.references(batch)
    full = answer_logits(problem.subject, batch.clean, batch.positions).softmax(-1)
    tokens = torch.multinomial(full.float(), 1, generator=torch.Generator().manual_seed(problem.config.seed))
    assert set(found) == set(deciding.values())
    for node, effect in found.items():
        layers, n = space.shape(node)
        for layer, index in {(0, 0), (layers - 1, n - 1), (layers // 2, n // 2)}:
            sides = []
            for change in (step, -step):
                masks = {g: mask.clone() for g, mask in soft.items()}
                for leaf in [leaf for leaf, decider in deciding.items() if decider is node]:
                    masks[leaf][layer].view(n, -1)[index] += change
                sides.append(
                    problem.train.logits(problem.site_masks(masks), batch, reference)
                    .log_softmax(-1)
                    .gather(1, tokens)[:, 0]
                )
            gradient = (sides[0] - sides[1]) / (2 * step)
            expected = gradient.square().mean().sqrt() + gradient.mean()
            assert float(effect[layer, index]) == pytest.approx(float(expected), rel=5e-3, abs=2e-4)


@pytest.mark.parametrize(
    ("searched", "expected"),
    [
        (DEFAULT_GRANULARITIES, {G.HEAD_DIM, G.MLP_NEURON}),
        ((G.LAYER, G.MLP_NEURON), {G.LAYER, G.MLP_NEURON}),
        ((G.LAYER,), {G.LAYER}),
        ((G.MLP_BLOCK, G.MLP_OUT_DIM), {G.MLP_BLOCK, G.MLP_OUT_DIM}),
        ((G.HEAD, G.EMBED), {G.HEAD, G.EMBED}),
        (tuple(G), {G.HEAD_DIM, G.MLP_NEURON, G.ATTN_OUT_DIM, G.MLP_OUT_DIM, G.EMBED}),
    ],
)
def test_finest(searched: tuple[Granularity, ...], expected: set[Granularity]):
    assert set(effects.finest(searched).values()) == expected


def test_log_scores_keep_the_order_and_stay_finite():
    values = torch.rand(shared("gpt2").space.shape(G.MLP_NEURON), generator=torch.Generator().manual_seed(0)) + 0.01
    values[0, :3] = 0
    scores = effects.log_scores({G.MLP_NEURON: values, G.HEAD: torch.full((LAYERS, 4), 0.5)})
    flat = torch.cat([score.flatten() for score in scores.values()])
    assert flat.isfinite().all()
    assert float(flat.mean()) == pytest.approx(0, abs=1e-5)
    neurons = scores[G.MLP_NEURON]
    assert torch.equal(neurons.flatten()[3:].argsort(), values.flatten()[3:].argsort())
    assert neurons[0, :3].max() < neurons.flatten()[3:].min()
    nothing = {G.HEAD: torch.zeros(LAYERS, 4)}
    assert torch.equal(effects.log_scores(nothing)[G.HEAD], nothing[G.HEAD])


def test_log_prices_are_told_from_their_mean_and_what_is_free_stays_where_it_is():
    found = effects.log_prices({G.MLP_NEURON: torch.tensor([[1.0, 4.0]]), G.ATTN_OUT_DIM: torch.zeros(1, 3)})
    torch.testing.assert_close(found[G.MLP_NEURON], torch.tensor([[-math.log(2), math.log(2)]]))
    assert torch.equal(found[G.ATTN_OUT_DIM], torch.zeros(1, 3))


def test_a_head_that_is_searched_whole_has_the_sum_over_its_dims():
    subject = shared("gpt2")
    generator = torch.Generator().manual_seed(0)
    leaves = {g: torch.rand(subject.space.shape(g), generator=generator) for g in (G.HEAD_DIM, G.MLP_NEURON)}
    found = effects.by_node(subject.space, (G.HEAD, G.MLP_NEURON), leaves)
    assert torch.equal(found[G.MLP_NEURON], leaves[G.MLP_NEURON])
    size = subject.space.head_dim
    for layer, head in itertools.product(range(LAYERS), range(subject.space.heads)):
        dims = leaves[G.HEAD_DIM][layer, head * size : (head + 1) * size]
        assert float(found[G.HEAD][layer, head]) == pytest.approx(float(dims.sum()))
