"""Gates: their distribution, their price, their noise, and every gradient."""

import copy
import math
from collections.abc import Mapping

import numpy
import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn

from circuitsieve.models.instrument import answer_logits, masked, record
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.objective import kl
from circuitsieve.search.gates import HardConcrete
from circuitsieve.vocabulary import Granularity, Sampling
from models import LAYERS, random_ids, shared

G = Granularity
SAMPLES = 20_000
LOG_ALPHAS = (-4.0, -2.5, -1.6, -0.3, 0.0, 0.7, 1.6, 3.0)
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # arXiv 2512.10903; written out here so that a change in the package is noticed


def gates_at(log_alphas: tuple[float, ...], samples: int, sampling: Sampling, seed: int = 7) -> HardConcrete:
    """One row of equal gates for each log_alpha."""
    gates = HardConcrete({G.MLP_NEURON: (len(log_alphas), samples)}, seed=seed, sampling=sampling)
    with torch.no_grad():
        gates.log_alpha[G.MLP_NEURON].copy_(torch.tensor(log_alphas)[:, None].expand(-1, samples))
    return gates


def assert_share(opened: int, probability: float) -> None:
    """A share that a binomial distribution would reach: two-sided, one false alarm in a million."""
    assert stats.binomtest(opened, SAMPLES, probability).pvalue > 1e-6


# --- distribution --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_scale", [1.0, 0.3])
def test_soft_samples_follow_the_hard_concrete_distribution(noise_scale: float):
    samples = gates_at(LOG_ALPHAS, SAMPLES, Sampling.SOFT).draw(3, noise_scale)[G.MLP_NEURON].detach().double()
    assert 0 <= samples.min() < samples.max() <= 1
    for log_alpha, drawn in zip(LOG_ALPHAS, samples.numpy(), strict=True):

        def below(mask: numpy.ndarray | float, log_alpha: float = log_alpha) -> numpy.ndarray:
            """P(stretched gate <= mask), through the logit of s."""
            s = (numpy.asarray(mask) - GAMMA) / (ZETA - GAMMA)
            return special.expit((BETA * special.logit(s) - log_alpha) / noise_scale)

        assert_share(int((drawn > 0).sum()), 1 - float(below(0)))
        assert_share(int((drawn == 1).sum()), 1 - float(below(1)))
        inside = drawn[(drawn > 0) & (drawn < 1)]
        if len(inside) > 500:
            low, high = below(0), below(1)
            conditional = stats.kstest(inside, lambda m, low=low, high=high: (below(m) - low) / (high - low))
            assert conditional.pvalue > 1e-6


@pytest.mark.parametrize("sampling", [Sampling.STRAIGHT_THROUGH, Sampling.HARD], ids=str)
def test_hard_samples_are_bernoulli(sampling: Sampling):
    samples = gates_at(LOG_ALPHAS, SAMPLES, sampling).draw(3)[G.MLP_NEURON]
    assert set(samples.unique().tolist()) == {0.0, 1.0}
    for log_alpha, drawn in zip(LOG_ALPHAS, samples, strict=True):
        assert_share(int(drawn.sum()), 1 / (1 + math.exp(-log_alpha)))


@pytest.mark.parametrize("sampling", [Sampling.STRAIGHT_THROUGH, Sampling.HARD], ids=str)
def test_hard_samples_open_where_soft_ones_pass_the_middle(sampling: Sampling):
    hard = gates_at(LOG_ALPHAS, 200, sampling).draw(5)[G.MLP_NEURON]
    soft = gates_at(LOG_ALPHAS, 200, Sampling.SOFT).draw(5)[G.MLP_NEURON]
    assert torch.equal(hard, (soft > 0.5).float())


def test_without_noise_the_sample_is_the_cut():
    log_alphas = (-3.0, -1e-3, 1e-3, 3.0)
    assert gates_at(log_alphas, 1, Sampling.HARD).draw(0, noise_scale=0.0)[G.MLP_NEURON].flatten().tolist() == [
        0,
        0,
        1,
        1,
    ]


# --- price ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", Sampling, ids=str)
def test_penalty_is_the_price_of_opening(sampling: Sampling):
    gates = HardConcrete(
        {G.HEAD: (2, 3), G.EMBED: (1, 1), G.LAYER: (2, 1)}, seed=1, sampling=sampling, init=(-3.0, 3.0)
    )
    prices = {
        G.HEAD: torch.tensor([[2.0], [0.5]]),
        G.EMBED: torch.tensor([[7.0]]),
        G.LAYER: torch.tensor([[1.0], [3.0]]),
    }
    shift = BETA * math.log(-GAMMA / ZETA) if sampling is Sampling.SOFT else 0.0
    expected = 0.0
    for granularity, price in prices.items():
        log_alpha = gates.log_alpha[granularity].detach().double().numpy()
        opening = 1 / (1 + numpy.exp(shift - log_alpha))
        expected += (price.numpy() * opening).mean()
    assert gates.penalty(prices).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sampling", Sampling, ids=str)
def test_penalty_is_the_share_that_opens(sampling: Sampling):
    for log_alpha in LOG_ALPHAS:
        gates = gates_at((log_alpha,), SAMPLES, sampling)
        price = gates.penalty({G.MLP_NEURON: torch.ones(1, 1)}).item()
        assert_share(int((gates.draw(1)[G.MLP_NEURON] > 0).sum()), price)


# --- noise ---------------------------------------------------------------------------------------------------------------


def test_noise_depends_on_seed_and_step_alone():
    first, again = (gates_at(LOG_ALPHAS, 500, Sampling.SOFT) for _ in range(2))
    expected = first.draw(4)[G.MLP_NEURON]
    state = torch.get_rng_state()
    for step in (0, 4, 9):
        again.draw(step)
    torch.rand(3)
    assert torch.equal(again.draw(4)[G.MLP_NEURON], expected)
    torch.set_rng_state(state)
    again.draw(4)
    assert torch.equal(torch.get_rng_state(), state)
    others = {"step": first.draw(5), "seed": gates_at(LOG_ALPHAS, 500, Sampling.SOFT, seed=8).draw(4)}
    for name, other in others.items():
        for mine, its in zip(expected.detach(), other[G.MLP_NEURON].detach(), strict=True):
            if mine.std() > 0.1:
                assert abs(stats.spearmanr(mine, its).statistic) < 0.25, name  # 5.6 sigma of independent samples


def test_granularities_of_one_step_have_their_own_noise():
    gates = HardConcrete(
        {G.HEAD_DIM: (1, 500), G.MLP_NEURON: (1, 500)}, seed=0, sampling=Sampling.SOFT, init=(0.0, 0.0)
    )
    masks = gates.draw(0)
    assert abs(stats.spearmanr(*(masks[g][0].detach() for g in masks)).statistic) < 0.25


def test_start_and_ranking():
    gates = HardConcrete({G.HEAD: (3, 400)}, seed=5, init=(1.0, 2.0))
    ranking = gates.ranking()[G.HEAD]
    assert stats.kstest(ranking.flatten() - 1, "uniform").pvalue > 1e-6
    assert torch.equal(ranking, HardConcrete({G.HEAD: (3, 400)}, seed=5, init=(1.0, 2.0)).ranking()[G.HEAD])
    assert not torch.equal(ranking, HardConcrete({G.HEAD: (3, 400)}, seed=6, init=(1.0, 2.0)).ranking()[G.HEAD])
    assert not ranking.requires_grad
    gates.log_alpha[G.HEAD].data += 20
    assert ranking.max() <= 2
    gates.keep_reversible()
    assert gates.ranking()[G.HEAD].unique().tolist() == [6.0]
    gates.log_alpha[G.HEAD].data -= 40
    gates.keep_reversible()
    assert gates.ranking()[G.HEAD].unique().tolist() == [-6.0]


# --- gradients -----------------------------------------------------------------------------------------------------------


def test_straight_through_has_the_gradient_of_the_clamped_gate():
    """d clamp(s (zeta - gamma) + gamma, 0, 1) / d log_alpha = (zeta - gamma) s (1 - s) / beta inside, 0 outside."""
    soft = gates_at(LOG_ALPHAS, 60, Sampling.SOFT).draw(2)[G.MLP_NEURON].detach().double()
    gates = gates_at(LOG_ALPHAS, 60, Sampling.STRAIGHT_THROUGH)
    weights = torch.linspace(-1, 2, soft.numel()).view_as(soft)
    (gates.draw(2)[G.MLP_NEURON] * weights).sum().backward()
    s = (soft - GAMMA) / (ZETA - GAMMA)
    inside = (soft > 0) & (soft < 1)
    assert 0.2 < inside.double().mean() < 0.8
    expected = weights * torch.where(inside, (ZETA - GAMMA) * s * (1 - s) / BETA, 0.0)
    torch.testing.assert_close(gates.log_alpha[G.MLP_NEURON].grad.double(), expected, rtol=1e-4, atol=1e-5)


def test_hard_sampling_has_the_gradient_of_the_probability():
    """Whatever was drawn: d sigmoid(log_alpha) / d log_alpha, so that no gate is without a way back."""
    gates = gates_at(LOG_ALPHAS, 5, Sampling.HARD)
    gates.draw(2)[G.MLP_NEURON].sum().backward()
    expected = [math.exp(-a) / (1 + math.exp(-a)) ** 2 for a in LOG_ALPHAS]
    for found, slope in zip(gates.log_alpha[G.MLP_NEURON].grad.tolist(), expected, strict=True):
        assert found == pytest.approx([slope] * 5, rel=1e-5)


def in_float64(subject: Subject) -> Subject:
    """A copy that computes in float64 throughout (Llama's own norm computes in float32 whatever the dtype)."""
    model = copy.deepcopy(subject.model).double()
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(module.weight.shape[0], module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return Subject.of(model)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradient_of_every_gate(family: str):
    """Soft gates, fixed noise, KL + penalty, float64: against central differences. Little noise, so that few gates clamp."""
    subject = in_float64(shared(family))
    clean, corrupted, last = random_ids(0, 2, 5), random_ids(1, 2, 5), torch.tensor([4, 3])
    gates = HardConcrete(
        {g: subject.space.shape(g) for g in G}, seed=2, sampling=Sampling.SOFT, init=(-0.5, 1.5)
    ).double()
    prices: Mapping[Granularity, Tensor] = {g: torch.full((1, 1), 0.1 + 0.1 * i) for i, g in enumerate(G)}
    with frozen(subject.model):
        with torch.no_grad(), record(subject, subject.architecture.sites()) as baselines:
            subject.model(corrupted)
        with torch.no_grad():
            full = answer_logits(subject, clean, last).log_softmax(-1)

        def objective() -> Tensor:
            with masked(subject, subject.space.compose(gates.draw(11, noise_scale=0.4)), baselines):
                circuit = answer_logits(subject, clean, last).log_softmax(-1)
            return kl(full, circuit).mean() + gates.penalty(prices)

        value = objective()
        assert value.dtype == torch.float64
        value.backward()
        penalty_alone = torch.autograd.grad(gates.penalty(prices), list(gates.parameters()))
        moved, step = 0, 1e-5
        for parameter, of_penalty in zip(gates.parameters(), penalty_alone, strict=True):
            numerical = torch.zeros_like(parameter)
            with torch.no_grad():
                for index in numpy.ndindex(*parameter.shape):
                    original = parameter[index].item()
                    parameter[index] = original + step
                    above = objective()
                    parameter[index] = original - step
                    numerical[index] = (above - objective()) / (2 * step)
                    parameter[index] = original
            torch.testing.assert_close(parameter.grad, numerical, rtol=1e-5, atol=1e-8)
            moved += int(((parameter.grad - of_penalty).abs() > 1e-6).sum())
        gate_count = sum(parameter.numel() for parameter in gates.parameters())
        assert gate_count > 60 * LAYERS
        assert moved > gate_count / 3  # the KL speaks to many gates; those that noise clamps hear the penalty alone
