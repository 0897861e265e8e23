"""A discovery made ready: whatever is searched, its masks and every circuit cut from them can be run and mean the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from circuitsieve.circuits.circuit import Ranking
from circuitsieve.circuits.masks import Masks
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.batching import PairBatch
from circuitsieve.data.tokenising import Pairs
from circuitsieve.errors import ConfigError
from circuitsieve.models.instrument import answer_logits, masked, record
from circuitsieve.search.problem import Problem
from circuitsieve.vocabulary import DEFAULT_GRANULARITIES, OUT_DIMS, UNIT_GRANULARITIES, Ablation, Granularity
from models import assert_same, each_family, random_examples, random_masks, shared

G = Granularity
PAIRS = Pairs(*(tuple(random_examples([5, 5, 6], seed)) for seed in (1, 2, 3)))

SEARCHES = {
    "default": DEFAULT_GRANULARITIES,
    "everything": tuple(G),
    "heads": (G.HEAD,),
    "neurons": (G.MLP_NEURON,),
    "layers": (G.LAYER,),
    "blocks": (G.ATTN_BLOCK, G.MLP_BLOCK),
    "out dims": (G.ATTN_OUT_DIM, G.MLP_OUT_DIM),
    "one layer's parts": (G.ATTN_BLOCK, G.MLP_NEURON),
}


@torch.no_grad()
def by_every_site(problem: Problem, masks: Masks, batch: PairBatch) -> Tensor:
    """Answer logits with all baselines at hand and nothing folded or cleaned."""
    subject = problem.subject
    baselines = problem.constants
    if baselines is None:
        with record(subject, subject.architecture.sites()) as baselines:
            answer_logits(subject, batch.corrupted, batch.positions)
    with masked(subject, subject.space.compose(masks), baselines):
        return answer_logits(subject, batch.clean, batch.positions)


@pytest.mark.parametrize("ablation", [Ablation.CORRUPTED, Ablation.MEAN, Ablation.ZERO], ids=str)
@pytest.mark.parametrize("search", SEARCHES)
@each_family
def test_masks_and_their_circuits_run(family: str, search: str, ablation: Ablation):
    searched = SEARCHES[search]
    config = DiscoveryConfig("hard_concrete", granularities=tuple(map(str, searched)), ablation=str(ablation))
    problem = Problem.of(shared(family), PAIRS, config)
    batch = problem.validation.batches[0]
    full = answer_logits(problem.subject, batch.clean, batch.positions)
    for seed in range(2):
        drawn = {g: mask for g, mask in random_masks(problem.space, seed).items() if g in searched}
        if seed == 0:
            drawn = {g: torch.zeros_like(mask) for g, mask in drawn.items()}
        if constants := problem.constants:
            assert set(constants) == set(problem.subject.architecture.sites())
        expected = by_every_site(problem, drawn, batch)
        floats = {g: mask.float() for g, mask in drawn.items()}
        with torch.no_grad():
            assert_same(
                problem.train.logits(problem.site_masks(floats), batch, problem.train.references(batch)), expected
            )
        divergence = torch.nn.functional.kl_div(
            expected.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        found = problem.validation.measure(problem.circuit(drawn), [batch]).kl
        torch.testing.assert_close(found, divergence, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "goes"),
    [
        ({"memory": "0MB", "checkpointing": "none"}, True),
        ({"memory": "0MB", "checkpointing": "all"}, False),
        ({"memory": "1GB"}, False),
        ({"memory": "0MB", "disk": "1GB", "checkpointing": "none"}, False),
        ({"memory": "0MB", "checkpointing": "none", "ablation": "mean"}, False),
    ],
    ids=str,
)
def test_baselines_go_on_the_way_where_nothing_needs_them_later(settings: dict[str, str], goes: bool):
    problem = Problem.of(shared("llama"), PAIRS, DiscoveryConfig().replaced(**settings))
    batch = problem.train.batches[0]
    masks = {g: m for g, m in random_masks(problem.space, 3, soft=True).items() if g in problem.granularities}
    reference = problem.train.references(batch)
    with torch.no_grad():
        first = problem.train.logits(problem.site_masks(masks), batch, reference)
        last = problem.train.logits(problem.site_masks(masks), batch, reference, last=True)
        assert (not reference.baselines) == goes
        again = problem.train.logits(problem.site_masks(masks), batch, problem.train.references(batch), last=True)
    assert torch.equal(first, last)
    assert torch.equal(first, again)


@pytest.mark.parametrize(("method", "roundings"), [("hard_concrete", 8), ("nested", 12)])
@each_family
def test_where_layers_are_run_again_training_keeps_half_the_bits_and_judging_all(
    family: str, method: str, roundings: int
):
    """Nested mixes rounded activations at four sites of a layer, gates at two."""
    config = DiscoveryConfig(method, training_dtype="model")
    whole, half = (
        Problem.of(shared(family), PAIRS, config.replaced(memory="0MB", checkpointing=c)) for c in ("none", "all")
    )
    batch = whole.train.batches[0]
    own = whole.subject.model.dtype
    logits, gradients = [], []
    for problem in (whole, half):
        masks = {
            g: m.requires_grad_()
            for g, m in random_masks(problem.space, 3, soft=True).items()
            if g in problem.granularities
        }
        reference = problem.train.references(batch)
        expected = torch.bfloat16 if problem is half else own
        assert {baseline.dtype for baseline in reference.baselines.values()} == {expected}
        assert {b.dtype for b in problem.validation.references(problem.validation.batches[0]).baselines.values()} == {
            own
        }
        found = problem.train.logits(problem.site_masks(masks), batch, reference)
        found.square().sum().backward()
        logits.append(found.detach())
        gradients.append(torch.cat([m.grad.flatten() for m in masks.values() if m.grad is not None]))
    bits = 2**-8  # of bfloat16
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=8 * bits * float(logits[0].abs().max()))
    torch.testing.assert_close(
        gradients[1], gradients[0], rtol=0, atol=roundings * bits * float(gradients[0].abs().max())
    )
    if own == torch.float32:
        assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("charge", ["open", "all"])
def test_prices_are_higher_in_early_layers_and_nothing_is_paid_inside_of_what_is_closed(charge: str):
    config = DiscoveryConfig("hard_concrete", penalty={"head": 3.0, "attn_block": 0.5}, depth_factor=2.0, charge=charge)
    problem = Problem.of(shared("llama"), PAIRS, config)
    space = problem.space
    masks = {g: torch.ones(space.shape(g)) for g in problem.granularities}
    masks[G.ATTN_BLOCK][-1] = 0
    masks[G.HEAD][0, 0] = 0
    found = problem.prices(masks)
    early, late = 1 + 2.0, 1.0
    assert found[G.ATTN_BLOCK][[0, -1], 0].tolist() == [0.5 * early, 0.5 * late]
    inside = 0.0 if charge == "open" else 1.0
    assert found[G.HEAD].broadcast_to(space.shape(G.HEAD))[0].tolist() == [3.0 * early] * space.heads
    assert found[G.HEAD].broadcast_to(space.shape(G.HEAD))[-1].tolist() == [3.0 * late * inside] * space.heads
    dims = found[G.HEAD_DIM].broadcast_to(space.shape(G.HEAD_DIM))[0].view(space.heads, -1) / config.price("head_dim")
    expected = torch.full_like(dims, early)
    expected[0] *= inside
    torch.testing.assert_close(dims, expected)


@pytest.mark.parametrize(
    ("searched", "counted"),
    [
        (DEFAULT_GRANULARITIES, {G.HEAD_DIM, G.MLP_NEURON}),
        ((*DEFAULT_GRANULARITIES, *OUT_DIMS, G.EMBED), {G.HEAD_DIM, G.MLP_NEURON}),
        ((G.LAYER, G.HEAD), {G.LAYER, G.HEAD}),  # a layer is all that decides about its neurons
        ((G.ATTN_BLOCK, G.MLP_BLOCK, G.MLP_NEURON), {G.ATTN_BLOCK, G.MLP_NEURON}),
    ],
)
def test_under_a_size_of_units_only_what_it_counts_has_a_price(searched: tuple[G, ...], counted: set[G]):
    def priced(**settings: Any) -> set[G]:
        config = DiscoveryConfig("hard_concrete", granularities=tuple(map(str, searched)), **settings)
        problem = Problem.of(shared("llama"), PAIRS, config)
        prices = problem.prices({g: torch.ones(problem.space.shape(g)) for g in searched})
        assert all(float(prices[g].min()) in (0.0, config.price(g)) for g in searched)
        return {g for g in searched if float(prices[g].max()) > 0}

    assert priced(size=0.3) == counted
    assert priced(size=0.3, penalty={str(searched[0]): 7.0}) == counted | {searched[0]}
    assert priced(size=0.3, size_by="parameters") == priced(max_kl=0.1) == set(searched)


@pytest.mark.parametrize("method", ["nested", "hard_concrete", "attribution", "random"])
def test_a_size_is_at_least_one_unit(method: str):
    units = shared("llama").space.units
    with pytest.raises(
        ConfigError, match=rf"size: found .*, less than one unit of the model, expected .* 1 / {units}$"
    ):
        Problem.of(shared("llama"), PAIRS, DiscoveryConfig(method, size=0.99 / units))
    problem = Problem.of(shared("llama"), PAIRS, DiscoveryConfig(method, size=1 / units))
    scores = {g: torch.arange(mask.numel()).reshape(mask.shape) for g, mask in problem.space.full().items()}
    ranking = Ranking(problem.space, {g: scores[g].float() for g in UNIT_GRANULARITIES})
    kept = problem.circuit({**problem.space.full(), **ranking.cut(ranking.threshold_at(1 / units))})
    assert kept.size * units == pytest.approx(1)


@pytest.mark.parametrize("measure", ["units", "parameters"])
@pytest.mark.parametrize(
    "searched", [(G.HEAD,), (G.MLP_NEURON, G.MLP_OUT_DIM), (G.LAYER,), DEFAULT_GRANULARITIES], ids=" ".join
)
def test_a_size_is_more_than_what_the_searched_nodes_leave(searched: tuple[G, ...], measure: str):
    space = shared("llama").space
    closed = {g: torch.zeros(space.shape(g), dtype=torch.bool) if g in searched else m for g, m in space.full().items()}

    def problem(**settings: Any) -> Problem:
        config = DiscoveryConfig("attribution", granularities=tuple(map(str, searched)), size_by=measure)
        return Problem.of(shared("llama"), PAIRS, config.replaced(**settings))

    least = problem().circuit(closed).share(measure)
    assert problem().least_size == pytest.approx(least)
    assert (least == 0) == (searched not in ((G.HEAD,), (G.MLP_NEURON, G.MLP_OUT_DIM)))
    problem(size=least + 0.05)
    if least:
        expected = (
            rf"size: found .*, which no circuit of {', '.join(searched)} has, expected more than {least:.3g}, what"
        )
        with pytest.raises(ConfigError, match=expected):
            problem(size=0.99 * least)
        with pytest.raises(ConfigError, match=rf"ranking_sizes: found .* expected more than {least:.3g}"):
            problem(method="nested", ranking_sizes=(0.9 * least, 1.0))


def test_the_size_of_soft_masks_is_that_of_their_products():
    problem = Problem.of(shared("llama"), PAIRS, DiscoveryConfig("hard_concrete", sampling="soft"))
    masks = {g: m for g, m in random_masks(problem.space, 3, soft=True).items() if g in problem.granularities}
    heads = (masks[G.ATTN_BLOCK] * masks[G.HEAD])[..., None] * masks[G.HEAD_DIM].view(*masks[G.HEAD].shape, -1)
    units = torch.cat([heads.flatten(), (masks[G.MLP_BLOCK] * masks[G.MLP_NEURON]).flatten()])
    assert units.numel() == problem.space.units
    torch.testing.assert_close(problem.drawn_size(masks), units.mean())
