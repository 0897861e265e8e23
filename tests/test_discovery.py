"""Whole searches on a model whose circuit is known."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.circuits.nodes import LEAVES
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.batching import batches
from circuitsieve.data.tokenising import Pairs
from circuitsieve.errors import ConfigError, DataError, Diverged
from circuitsieve.evaluation.card import evaluate
from circuitsieve.models import ablations
from circuitsieve.models.subject import Subject
from circuitsieve.search.checks import try_cut
from circuitsieve.search.discovery import Discovery, discover
from circuitsieve.search.problem import Problem, training_dtype
from circuitsieve.vocabulary import Ablation, Granularity, Method, SiteKind
from planted import CONFIG, HEAD_DIM, HEADS, NEURONS, PAIRS, VOCABULARY, kept


def test_what_writes_nothing_is_pruned_and_what_writes_is_kept(found: Discovery) -> None:
    assert found.budget_met
    assert kept(found, Granularity.HEAD) == HEADS
    assert kept(found, Granularity.MLP_NEURON) == NEURONS
    dims = {(layer, index // HEAD_DIM) for layer, index in kept(found, Granularity.HEAD_DIM)}
    assert dims == HEADS


def test_the_budget_holds_when_measured_afresh(planted: GPT2LMHeadModel, found: Discovery) -> None:
    card = evaluate(planted, found.circuit, PAIRS.validation)
    assert card["test.kl"] <= 0.02 * 1.001
    assert card["test.kl"] == pytest.approx(float(found.check.signals.kl), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hard_concrete", "nested"])
def test_a_search_that_has_settled_ends_with_the_same_circuit(planted: GPT2LMHeadModel, method: str) -> None:
    config = CONFIG.replaced(method=method, steps=500, ranking_share=0.5)
    found = discover(planted, PAIRS, config)
    assert len(found.history) < 450
    assert found.check.step <= len(found.history)
    assert (kept(found, Granularity.HEAD), kept(found, Granularity.MLP_NEURON)) == (HEADS, NEURONS)


@pytest.mark.slow
def test_a_search_goes_on_to_its_last_step_when_asked(
    planted: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuitsieve.search.settling.WINDOW", 5)
    monkeypatch.setattr("circuitsieve.search.settling.GAIN", math.inf)  # whatever is gained is too little
    config = CONFIG.replaced(method="nested", steps=60, ranking_share=0.5)
    assert len(discover(planted, PAIRS, config).history) == 10 + 30
    assert len(discover(planted, PAIRS, config.replaced(early_stopping="off")).history) == 60


def test_the_same_seed_gives_the_same_masks_and_the_model_is_left_alone(planted: GPT2LMHeadModel) -> None:
    before = copy.deepcopy(planted.state_dict())
    state = torch.get_rng_state()
    short = CONFIG.replaced(steps=12)
    first, second, other = (discover(planted, PAIRS, short.replaced(seed=seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first.ranking.scores[g], second.ranking.scores[g]) for g in first.ranking.scores)
    assert not all(torch.equal(first.ranking.scores[g], other.ranking.scores[g]) for g in first.ranking.scores)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in planted.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in planted.parameters())


@pytest.mark.parametrize("ablation", ["corrupted", "mean", "mean_positional", "zero", "resample"])
@pytest.mark.parametrize("sampling", ["straight_through", "soft"])
def test_every_ablation_and_sampling_runs_over_all_granularities(
    planted: GPT2LMHeadModel, ablation: str, sampling: str
) -> None:
    config = DiscoveryConfig(
        method="hard_concrete",
        min_faithfulness=0.8,
        steps=6,
        batch_size=16,
        ablation=ablation,
        sampling=sampling,
        granularities=tuple(str(g) for g in Granularity),
        penalty={"head": 3.0},
        depth_factor=1.0,
        hinge=1.0,
        warmup=3,
        lr_schedule="cosine",
    )
    found = discover(planted, PAIRS, config)
    assert len(found.history) == 6
    leaves = {g for g in Granularity if g in LEAVES}
    assert set(found.ranking.scores) == leaves
    assert (found.circuit.constants is None) == (ablation in ("corrupted", "resample"))


def test_a_price_presses_its_own_granularity(planted: GPT2LMHeadModel) -> None:
    """Fixed pressure, one granularity priced out: its log_alpha ends lower than with a price of 0."""
    base = DiscoveryConfig(method="hard_concrete", pressure=1.0, steps=10, batch_size=16, lr=0.1)
    dear = discover(planted, PAIRS, base.replaced(penalty={"mlp_neuron": 50.0}))
    free = discover(planted, PAIRS, base.replaced(penalty={"mlp_neuron": 0.0}))
    neuron, head = Granularity.MLP_NEURON, Granularity.HEAD
    assert float(dear.ranking.scores[neuron].mean()) < float(free.ranking.scores[neuron].mean()) - 0.2
    assert float(dear.ranking.scores[head].mean()) == pytest.approx(float(free.ranking.scores[head].mean()), abs=0.2)


def test_a_budget_is_met_however_large_the_circuit_must_be(planted: GPT2LMHeadModel) -> None:
    found = discover(planted, PAIRS, CONFIG.replaced(max_kl=1e-9, steps=20, lr=1.0))
    assert found.budget_met
    card = evaluate(planted, found.circuit, PAIRS.validation)
    assert card["test.kl"] <= 1e-9


def test_an_interrupt_returns_the_circuit_so_far(planted: GPT2LMHeadModel) -> None:
    seen: Iterator[int] = iter(range(3))

    def stop(_: object) -> None:
        if next(seen) == 2:
            raise KeyboardInterrupt

    found = discover(planted, PAIRS, CONFIG, on_step=stop)
    assert found.interrupted
    assert len(found.history) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("measure", "sizes"), [("units", (0.3, 0.03)), ("parameters", (0.4, 0.05))])
@pytest.mark.parametrize("method", ["hard_concrete", "nested"])
def test_a_circuit_of_the_size_asked_for(
    planted: GPT2LMHeadModel, method: str, measure: str, sizes: tuple[float, float]
) -> None:
    """Two sizes: more than what is planted needs, and less. The first dim of a head costs an eighth of a layer's parameters."""
    kls = []
    for size in sizes:
        config = DiscoveryConfig(size=size, size_by=measure, method=method, steps=120, training_dtype="model")
        found = discover(planted, PAIRS, config)
        assert found.budget_met
        assert 0.6 * size < found.circuit.share(measure) <= size * (1 + 1e-6)
        kls.append(float(found.check.signals.kl))
        random = Ranking(found.ranking.space, {g: torch.rand_like(s) for g, s in found.ranking.scores.items()})
        problem = Problem.of(Subject.of(planted), PAIRS, config)
        assert kls[-1] < 0.8 * try_cut(problem, random, random.threshold_at(size, measure), 0).signals.kl
    assert kls[0] < 0.02
    assert kls[1] > 2 * kls[0]


@pytest.mark.parametrize("method", [m for m in Method if not m.learns], ids=str)
def test_scores_that_are_not_learned_keep_any_budget(planted: GPT2LMHeadModel, method: Method) -> None:
    looked: list[tuple[int, int]] = []
    steps: list[object] = []
    for budget in ({"max_kl": 0.5, "max_accuracy_drop": 0.5}, {"size": 0.4}):
        config = DiscoveryConfig(method=str(method), training_dtype="model", **budget)
        found = discover(planted, PAIRS, config, on_step=steps.append, on_look=lambda *seen: looked.append(seen))
        assert found.budget_met
        assert found.history == []
        assert found.circuit.size < 1 or method is Method.RANDOM
        if method in (Method.ATTRIBUTION, Method.INTEGRATED_GRADIENTS):
            planted_units = {f"L{layer}.head_dim.{8 * head + dim}" for layer, head in HEADS for dim in range(8)}
            planted_units |= {f"L{layer}.mlp_neuron.{neuron}" for layer, neuron in NEURONS}
            assert planted_units <= set(found.circuit.nodes()) or "max_kl" in budget
    assert not steps
    assert bool(looked) == (method is not Method.RANDOM)


@pytest.mark.parametrize("wanted", ["model", "bfloat16"])
def test_training_in_bfloat16_finds_the_same_and_is_judged_in_the_models_own(
    planted: GPT2LMHeadModel, wanted: str
) -> None:
    problem = Problem.of(Subject.of(planted), PAIRS, CONFIG.replaced(training_dtype=wanted))
    expected = torch.float32 if wanted == "model" else torch.bfloat16
    assert problem.train.subject.model.dtype == expected
    assert problem.validation.subject.model is planted
    found = discover(planted, PAIRS, CONFIG.replaced(training_dtype=wanted))
    assert found.provenance["model"]["trained_in"] == str(expected).removeprefix("torch.")
    assert kept(found, Granularity.HEAD) == HEADS
    assert kept(found, Granularity.MLP_NEURON) == NEURONS
    card = evaluate(planted, found.circuit, PAIRS.validation)
    assert card["test.kl"] == pytest.approx(float(found.check.signals.kl), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_dispatched_model_is_not_copied_for_training(
    planted: GPT2LMHeadModel, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject.of(copy.deepcopy(planted).to(dtype))
    monkeypatch.setattr(Subject, "is_dispatched", property(lambda _: True))
    assert training_dtype(subject, CONFIG) is None
    with pytest.raises(
        ConfigError, match="training_dtype: found 'bfloat16' with a model that is dispatched over devices"
    ):
        training_dtype(subject, CONFIG.replaced(training_dtype="bfloat16"))


def test_scores_are_found_without_a_step(planted: GPT2LMHeadModel) -> None:
    assert discover(planted, PAIRS, CONFIG.replaced(method="attribution")).check.step == 0


def test_auto_leaves_small_models_as_they_are(planted: GPT2LMHeadModel) -> None:
    assert training_dtype(Subject.of(planted), CONFIG) is None


def test_float16_models_train_in_bfloat16_unless_asked_not_to(planted: GPT2LMHeadModel) -> None:
    half = copy.deepcopy(planted).half()
    expected = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "model": None}
    assert {how: training_dtype(Subject.of(half), CONFIG.replaced(training_dtype=how)) for how in expected} == expected
    found = discover(half, PAIRS, CONFIG)
    assert found.provenance["model"]["trained_in"] == "bfloat16"
    assert kept(found, Granularity.HEAD) == HEADS
    assert kept(found, Granularity.MLP_NEURON) == NEURONS
    assert half.dtype == torch.float16


def test_effects_that_are_not_finite_end_the_search(planted: GPT2LMHeadModel, tmp_path: Path) -> None:
    """A logit of one pair that is not finite."""
    odd = copy.deepcopy(planted)
    odd.lm_head.register_forward_hook(lambda *passed: passed[2] + torch.inf)
    with pytest.raises(Diverged, match=r"^effects of nodes: found some that are not finite"):
        discover(odd, PAIRS, CONFIG, checkpoints=tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_faithfulness_that_cannot_be_measured_is_refused(planted: GPT2LMHeadModel) -> None:
    same = tuple(replace(example, corrupted=example.clean) for example in PAIRS.train)
    with pytest.raises(DataError, match="same metric with everything ablated"):
        discover(planted, Pairs(same, same, same), DiscoveryConfig(min_faithfulness=0.9))


def test_tokens_outside_the_vocabulary_are_refused_before_the_search(planted: GPT2LMHeadModel) -> None:
    wrong = tuple(replace(example, clean=(VOCABULARY, *example.clean[1:])) for example in PAIRS.train)
    with pytest.raises(DataError, match=f"found the token id {VOCABULARY}"):
        discover(planted, Pairs(PAIRS.train, wrong, PAIRS.test), CONFIG)
    circuit = Circuit.from_nodes(Subject.of(planted).space, ["embed"])
    with pytest.raises(DataError, match=f"found the token id {VOCABULARY}"):
        evaluate(planted, circuit, wrong)


def test_learned_constants_are_better_than_means_and_go_with_the_circuit(planted: GPT2LMHeadModel) -> None:
    config = CONFIG.replaced(ablation="optimal", max_kl=0.05)
    found = discover(planted, PAIRS, config)
    assert found.circuit.constants is not None
    means = ablations.constants(Subject.of(planted), batches(PAIRS.train, 16), Ablation.MEAN)
    assert means is not None
    reads = [site for site in means if site.kind in (SiteKind.ATTN_READ, SiteKind.MLP_READ)]
    assert any(not torch.equal(found.circuit.constants[site], means[site]) for site in reads)
    card = evaluate(planted, found.circuit, PAIRS.validation)
    assert card["test.kl"] == pytest.approx(float(found.check.signals.kl), rel=1e-3)
    few = [f"L{layer}.head.{head}" for layer, head in HEADS]
    learned, mean = (
        evaluate(
            planted, Circuit.from_nodes(found.circuit.space, few, ablation=ablation, constants=constants), PAIRS.test
        )
        for ablation, constants in ((Ablation.OPTIMAL, found.circuit.constants), (Ablation.MEAN, means))
    )
    assert learned["test.kl"] < mean["test.kl"]


@pytest.mark.parametrize("method", ["hard_concrete", "nested"])
def test_a_search_that_leaves_out_what_is_closed_finds_the_same(planted: GPT2LMHeadModel, method: str) -> None:
    found = discover(planted, PAIRS, CONFIG.replaced(method=method, shrinking="on"))
    assert found.budget_met
    assert kept(found, Granularity.HEAD) == HEADS
    assert kept(found, Granularity.MLP_NEURON) == NEURONS
    assert all(parameter.requires_grad and parameter.grad is None for parameter in planted.parameters())
