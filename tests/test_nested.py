"""Nested masks: their sum, their order, their gradient, and the hierarchy that they add up along."""

import itertools

import pytest
import torch

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.circuits.costs import soft_share
from circuitsieve.circuits.masks import Masks
from circuitsieve.circuits.nodes import NodeSpace
from circuitsieve.models.subject import Subject
from circuitsieve.search.nested import Nested
from circuitsieve.vocabulary import OUT_DIMS, UNIT_GRANULARITIES, Granularity
from models import random_masks, shared

G = Granularity
SEARCHED = [
    (G.ATTN_BLOCK, G.MLP_BLOCK, G.HEAD, G.HEAD_DIM, G.MLP_NEURON),
    (G.HEAD, G.MLP_NEURON),
    (G.LAYER,),
    (G.MLP_BLOCK,),
    tuple(G),
]


def nested_at_random(
    space: NodeSpace, granularities: tuple[Granularity, ...], seed: int = 0, measure: str = "units"
) -> Nested:
    """Scores of the spread that learning ends with."""

    def share(masks: Masks) -> torch.Tensor:
        return soft_share(space, masks, measure)

    nested = Nested(
        {g: space.shape(g) for g in granularities},
        space.summed,
        share=share,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for score in nested.score.values():
            score.copy_(2 * torch.randn(score.shape, generator=generator))
    return nested


def kept_units(masks: dict[Granularity, torch.Tensor]) -> float:
    return sum(mask.detach().double().sum().item() for g, mask in masks.items() if g in UNIT_GRANULARITIES)


@pytest.mark.parametrize("granularities", [*SEARCHED[:3], tuple(G)], ids=len)
@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_soft_masks_sum_to_the_size(granularities: tuple[Granularity, ...], temperature: float):
    nested = nested_at_random(shared("llama").space, granularities)
    for share in (0.001, 0.1, 0.5, 0.99):
        masks = nested.draw(share, temperature)
        assert kept_units(masks) == pytest.approx(share * shared("llama").space.units, rel=1e-4)
        assert all(((mask > 0) & (mask < 1)).all() for mask in masks.values()) or temperature < 1


def test_sharp_masks_keep_the_best_units(subject: Subject):
    nested = nested_at_random(subject.space, SEARCHED[0])
    scores = torch.cat([s.flatten() for s in subject.space.summed(nested.scores()).values()]).detach()
    units = subject.space.units
    for kept in (0, 1, 7, 30, units - 1, units, units + 5):
        flat = torch.cat([mask.flatten() for mask in nested.draw(kept / units, 1e-6).values()]).detach()
        best = scores.argsort(descending=True)[:kept]
        assert set((flat > 0.5).nonzero().flatten().tolist()) == set(best.tolist())
        assert ((flat < 1e-3) | (flat > 1 - 1e-3)).all()


def test_masks_of_larger_sizes_contain_those_of_smaller_ones():
    nested = nested_at_random(shared("gpt2").space, tuple(G))
    sizes = [0.05, 0.2, 0.6, 0.9]
    for smaller, larger in itertools.pairwise(nested.draw(s, 0.7) for s in sizes):
        assert all((smaller[g] <= larger[g]).all() for g in smaller)


def test_a_start_keeps_its_order_and_leaves_no_ties(subject: Subject):
    nested = nested_at_random(subject.space, SEARCHED[0])
    before = {g: score.detach().clone() for g, score in nested.scores().items()}
    start = torch.arange(subject.space.shape(G.MLP_NEURON)[1]).float().div(2).floor().expand(subject.space.layers, -1)
    nested.start_at({G.MLP_NEURON: start})
    neurons = nested.scores()[G.MLP_NEURON].detach()
    torch.testing.assert_close(neurons, start, atol=0.01, rtol=0)
    assert len(neurons.unique()) == neurons.numel()
    assert all(torch.equal(score, before[g]) for g, score in nested.scores().items() if g is not G.MLP_NEURON)


@pytest.mark.parametrize("granularities", SEARCHED, ids=len)
def test_scores_add_up_along_the_hierarchy(subject: Subject, granularities: tuple[Granularity, ...]):
    """Against the sum written out unit by unit."""
    space = subject.space
    scores = {g: score.double() for g, score in random_masks(space, 3, soft=True).items() if g in granularities}
    summed = space.summed(scores)

    def score(granularity: Granularity, layer: int, index: int) -> float:
        return float(scores[granularity][layer, index]) if granularity in scores else 0.0

    for layer in range(space.layers):
        attn = score(G.LAYER, layer, 0) + score(G.ATTN_BLOCK, layer, 0)
        mlp = score(G.LAYER, layer, 0) + score(G.MLP_BLOCK, layer, 0)
        for i in range(space.heads * space.head_dim if G.HEAD_DIM in summed else 0):
            expected = attn + score(G.HEAD, layer, i // space.head_dim) + score(G.HEAD_DIM, layer, i)
            assert float(summed[G.HEAD_DIM][layer, i]) == pytest.approx(expected)
        for i in range(space.neurons if G.MLP_NEURON in summed else 0):
            assert float(summed[G.MLP_NEURON][layer, i]) == pytest.approx(mlp + score(G.MLP_NEURON, layer, i))
        for dims, block in ((G.ATTN_OUT_DIM, attn), (G.MLP_OUT_DIM, mlp)):
            for i in range(space.width if dims in summed else 0):
                assert float(summed[dims][layer, i]) == pytest.approx(block + score(dims, layer, i))
    leaves = {leaf for leaf in (G.ATTN_OUT_DIM, G.MLP_OUT_DIM, G.EMBED) if leaf in granularities}
    attention = {G.LAYER, G.ATTN_BLOCK, G.HEAD, G.HEAD_DIM} & set(granularities)
    mlps = {G.LAYER, G.MLP_BLOCK, G.MLP_NEURON} & set(granularities)
    assert set(summed) == leaves | ({G.HEAD_DIM} if attention else set()) | ({G.MLP_NEURON} if mlps else set())


@pytest.mark.parametrize("granularities", SEARCHED, ids=len)
def test_lifted_scores_cut_to_the_same_units(subject: Subject, granularities: tuple[Granularity, ...]):
    """Whatever the granularities of a ranking are, its circuits are those of the scores of the units."""
    space = subject.space
    nested = nested_at_random(space, granularities, seed=4)
    leaves = nested.ranking(0.4)
    lifted = space.lifted(leaves, granularities)
    assert {g: tuple(score.shape) for g, score in lifted.items()} == {g: space.shape(g) for g in granularities}
    for threshold in (-2.0, -0.5, 0.0, 0.7, 2.5):
        circuits = [Circuit(space, Ranking(space, scores).cut(threshold)) for scores in (leaves, lifted)]
        assert all(torch.equal(circuits[0].masks[g], circuits[1].masks[g]) for g in G)
    sizes = [Circuit(space, Ranking(space, lifted).cut(t)).size for t in (-2.0, 2.5)]
    assert sizes[0] > sizes[1]


@pytest.mark.parametrize("measure", ["units", "parameters"])
def test_what_is_no_unit_is_open_or_closed_at_every_size(measure: str):
    """Soft masks by their own scores alone; cuts at any threshold by the signs of these."""
    space = shared("llama").space
    nested = nested_at_random(space, tuple(G), measure=measure)
    others = (*OUT_DIMS, G.EMBED)
    signs = {g: nested.scores()[g].detach() > 0 for g in others}
    assert all(0 < sign.sum() < sign.numel() for g, sign in signs.items() if g in OUT_DIMS)
    for size in (0.05, 0.4, 0.9):
        masks, leaves = nested.draw(size, 0.5), nested.ranking(size)
        for g in others:
            torch.testing.assert_close(masks[g], torch.sigmoid(nested.scores()[g] / 0.5))
        for threshold in (min(float(leaves[g].min()) for g in UNIT_GRANULARITIES) - 0.1, 0.0, 100.0):
            cut = Ranking(space, leaves).cut(min(threshold, max(float(leaves[g].max()) for g in UNIT_GRANULARITIES)))
            assert all(torch.equal(cut[g], signs[g]) for g in others)


def test_what_is_no_unit_starts_open():
    space = shared("llama").space
    nested = Nested({g: space.shape(g) for g in G}, space.summed, share=lambda _: torch.zeros(()), seed=0)
    for g in (*OUT_DIMS, G.EMBED):
        assert (torch.sigmoid(nested.scores()[g]) > 0.97).all()


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_ranking_cut_at_zero_keeps_so_many_units(subject: Subject, share: float):
    nested = nested_at_random(subject.space, SEARCHED[0])
    ranking = Ranking(subject.space, nested.ranking(share))
    kept = sum(int(mask.sum()) for mask in ranking.cut(0.0).values())
    assert kept == int(share * subject.space.units)


@pytest.mark.parametrize("share", [0.15, 0.5, 0.9])
def test_a_size_can_be_a_share_of_the_parameters(subject: Subject, share: float):
    """Sharp masks against the exact count of a circuit; one unit more would be too much."""
    space = subject.space
    nested = nested_at_random(space, SEARCHED[0], measure="parameters")
    leaves = nested.ranking(share)

    def parameters(units: dict[Granularity, torch.Tensor]) -> float:
        count = Circuit(space, {**space.full(), **units}).parameters
        return count.kept / count.total

    circuit = Ranking(space, leaves).cut(0.0)
    assert parameters(circuit) <= share * (1 + 1e-6)
    next_best = float(torch.cat([score[score <= 0] for score in leaves.values()]).max())
    assert parameters(Ranking(space, leaves).cut(next_best - 1e-6)) > share
    sharp = nested.draw(share, 1e-6)
    assert sum(int((mask.cpu() > 0.5).ne(circuit[g]).sum()) for g, mask in sharp.items()) <= 1
    soft = nested.draw(share, 1.0)
    assert float(soft_share(space, soft, "parameters").detach()) == pytest.approx(share, rel=1e-4)


def test_prices_are_what_a_unit_takes_of_the_size():
    space = shared("gpt2").space
    units, parameters = (nested_at_random(space, SEARCHED[0], measure=m).prices() for m in ("units", "parameters"))
    for price in units.values():
        torch.testing.assert_close(price, torch.full_like(price, 1 / space.units))
    total = Circuit(space, {}).parameters.total
    row, dims = space.width + 1, space.heads * space.head_dim
    neuron = (
        row + space.width + space.width / space.neurons
    )  # what the bias of the block comes to for each of its neurons
    torch.testing.assert_close(parameters[G.MLP_NEURON], torch.full((space.layers, space.neurons), neuron / total))
    dim = 3 * row + space.width + space.width / dims  # Q, K, V and O
    torch.testing.assert_close(parameters[G.HEAD_DIM], torch.full((space.layers, dims), dim / total))


@pytest.mark.parametrize("measure", ["units", "parameters"])
@pytest.mark.parametrize("granularities", SEARCHED, ids=len)
def test_gradients_pass_through_the_threshold(
    granularities: tuple[Granularity, ...], measure: str, monkeypatch: pytest.MonkeyPatch
):
    """float64, central differences of a random linear function of the masks, by every score."""
    monkeypatch.setattr("circuitsieve.search.nested.BISECTIONS", 60)
    space = shared("llama").space
    nested = nested_at_random(space, granularities, seed=1, measure=measure).double()
    generator = torch.Generator().manual_seed(2)
    weights = {
        g: torch.randn(space.shape(g), dtype=torch.float64, generator=generator) for g in space.summed(nested.scores())
    }

    def value() -> torch.Tensor:
        masks = nested.draw(0.6, 1.3)
        return torch.stack([(masks[g] * weights[g]).sum() for g in weights]).sum()

    value().backward()
    step = 1e-4
    for score in nested.score.values():
        indices = torch.randperm(score.numel(), generator=generator)[:15]
        for index in indices.tolist():
            flat = score.data.view(-1)
            original = flat[index].item()
            flat[index] = original + step
            above = value().item()
            flat[index] = original - step
            below = value().item()
            flat[index] = original
            found = score.grad.view(-1)[index].item()
            assert found == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-7)


def test_moving_scores_changes_what_is_kept_and_not_how_much():
    nested = nested_at_random(shared("llama").space, SEARCHED[0])
    sum(mask.sum() for mask in nested.draw(0.3, 1.0).values()).backward()
    assert all(score.grad.abs().max() < 1e-4 for score in nested.score.values())
    nested.zero_grad()
    nested.draw(0.3, 1.0)[G.MLP_NEURON][0, 3].backward()
    grad = nested.score[G.MLP_NEURON].grad
    assert grad[0, 3] > 0
    assert (grad < 0).sum() > grad.numel() / 2  # it presses on all others


def test_units_without_scores_are_kept_and_counted():
    """Of two halves, heads and neurons, only the second is searched: no size below the first half can be reached."""
    space = shared("llama").space
    nested = nested_at_random(space, (G.MLP_NEURON,))
    neurons, units = space.layers * space.neurons, space.units
    fixed = units - neurons
    for size in (0.1, fixed / units, 0.8, 1.0):
        circuit = Circuit(space, Ranking(space, nested.ranking(size)).cut(0.0))
        assert circuit.size == pytest.approx(max(size, fixed / units), abs=1 / units)
        soft = nested.draw(size, 1.0)[G.MLP_NEURON].sum().item()
        assert soft == pytest.approx(max(size * units - fixed, 0), abs=1e-2)
