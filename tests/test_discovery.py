"""Discovery on a model whose circuit is known: of a random transformer, only planted nodes write anything."""

import copy
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.circuits.masks import counts, equal
from circuitsieve.circuits.nodes import LEAVES
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.batching import PairBatch, batches
from circuitsieve.data.pairs import Pair
from circuitsieve.data.tokenising import Example, Pairs
from circuitsieve.errors import DataError
from circuitsieve.evaluation.card import evaluate
from circuitsieve.models import ablations
from circuitsieve.models.subject import Subject
from circuitsieve.search import selection
from circuitsieve.search.averages import Averages
from circuitsieve.search.bench import Bench
from circuitsieve.search.checks import try_cut
from circuitsieve.search.control import Signals
from circuitsieve.search.discovery import Discovery, discover
from circuitsieve.search.phase import falling
from circuitsieve.search.phases import (
    NEAR,
    NO_MASK,
    NOISE_FALLS,
    RANKED_REACH,
    FocusPhase,
    HardConcretePhase,
    first_phase,
    next_phase,
)
from circuitsieve.search.problem import Problem, training_dtype
from circuitsieve.search.ranking import RankingPhase
from circuitsieve.search.selection import final_cut
from circuitsieve.search.shrinking import EVERY
from circuitsieve.vocabulary import OUT_DIMS, UNIT_GRANULARITIES, Ablation, Granularity, Method, SiteKind

HEADS = {(0, 1), (1, 2)}
NEURONS = {(0, 3), (0, 17), (1, 8)}
VOCABULARY, WIDTH, HEAD_DIM, NEURONS_PER_LAYER = 40, 32, 8, 64


@pytest.fixture(scope="module")
def planted() -> GPT2LMHeadModel:
    """Two layers of four heads and 64 neurons; the output weights of all but the planted ones are 0."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.5)
        for layer, block in enumerate(model.transformer.h):
            heads = [head for at, head in HEADS if at == layer]
            rows = torch.tensor([row // HEAD_DIM in heads for row in range(WIDTH)])
            block.attn.c_proj.weight *= rows[:, None]
            neurons = [neuron for at, neuron in NEURONS if at == layer]
            rows = torch.tensor([row in neurons for row in range(NEURONS_PER_LAYER * 2)])
            block.mlp.c_proj.weight *= 6 * rows[:, None]
    return model


def random_pairs(n: int, seed: int) -> tuple[Example, ...]:
    generator = random.Random(seed)

    def prompt() -> tuple[int, ...]:
        return tuple(generator.randrange(VOCABULARY) for _ in range(6))

    return tuple(Example(Pair("", "", (), ()), prompt(), prompt(), (1,), (2,)) for _ in range(n))


PAIRS = Pairs(random_pairs(64, 0), random_pairs(32, 1), random_pairs(32, 2))
CONFIG = DiscoveryConfig(method="hard_concrete", max_kl=0.02, max_accuracy_drop=0.3, steps=250, batch_size=16, seed=0)


@pytest.fixture(scope="module", params=["hard_concrete", "nested", "gates alone"])
def found(planted: GPT2LMHeadModel, request: pytest.FixtureRequest) -> Discovery:
    """By each method, and by gates without a ranking before (which then need a higher learning rate)."""
    if request.param == "gates alone":
        return discover(planted, PAIRS, CONFIG.replaced(ranking_share=0.0, lr=0.3, lr_end=0.02))
    return discover(planted, PAIRS, CONFIG.replaced(method=request.param))


def kept(found: Discovery, granularity: Granularity) -> set[tuple[int, int]]:
    return {(layer, index) for layer, index in found.circuit.masks[granularity].nonzero().tolist()}


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


def test_schedules(planted: GPT2LMHeadModel) -> None:
    assert [falling("linear", 1.0, 0.1, step, 101) for step in (0, 50, 100)] == pytest.approx([1, 0.55, 0.1])
    assert [falling("cosine", 1.0, 0.1, step, 101) for step in (0, 50, 100)] == pytest.approx([1, 0.55, 0.1])
    assert falling("constant", 1.0, 0.1, 100, 101) == 1.0
    config = CONFIG.replaced(steps=101, ranking_share=0.0)
    phase = HardConcretePhase(Problem.of(Subject.of(planted), PAIRS, config), None)
    full_noise_for, fallen_by = (round(100 * share) for share in NOISE_FALLS)
    half_way = (full_noise_for + fallen_by) // 2
    scales = [phase.noise_scale(step) for step in (0, full_noise_for, half_way, fallen_by, 100)]
    assert scales == pytest.approx([1, 1, (1 + config.final_noise) / 2, config.final_noise, config.final_noise])


def test_a_ranking_starts_with_what_writes_above_what_writes_nothing(planted: GPT2LMHeadModel) -> None:
    """Before anything is learned."""
    phase = RankingPhase(Problem.of(Subject.of(planted), PAIRS, CONFIG))
    equal = [score.detach().clone() for score in phase.nested.scores().values()]
    looks: list[tuple[int, int]] = []
    phase.begin(lambda done, total: looks.append((done, total)))
    assert looks == [(done, len(looks)) for done in range(1, len(looks) + 1)]
    assert not all(torch.equal(a, b) for a, b in zip(equal, phase.nested.scores().values(), strict=True))
    leaves = phase.leaves(0.5)
    heads = leaves[Granularity.HEAD_DIM].view(2, 4, HEAD_DIM)
    neurons = leaves[Granularity.MLP_NEURON]
    writing = [*(heads[node].min() for node in HEADS), *(neurons[node] for node in NEURONS)]
    nothing = [score for node in itertools.product(range(2), range(4)) if node not in HEADS for score in heads[node]]
    nothing += [neurons[n] for n in itertools.product(range(2), range(neurons.shape[1])) if n not in NEURONS]
    assert min(writing) > max(nothing)


@pytest.mark.parametrize("measure", ["units", "parameters"])
def test_masks_are_drawn_by_the_measure_that_the_size_is_asked_for_in(planted: GPT2LMHeadModel, measure: str) -> None:
    """Sharp masks against the exact count of the circuit that they come to."""
    problem = Problem.of(Subject.of(planted), PAIRS, CONFIG.replaced(method="nested", size=0.3, size_by=measure))
    ranked = RankingPhase(problem)
    with torch.no_grad():
        for score in ranked.nested.score.values():
            score.normal_(0, 3, generator=torch.Generator().manual_seed(0))
        drawn = ranked.nested.draw(0.3, 1e-6)
    circuit = Circuit(problem.space, {g: mask > 0.5 for g, mask in drawn.items()})
    assert circuit.share(measure) == pytest.approx(0.3, abs=0.02)
    assert float(problem.drawn_size(drawn)) == pytest.approx(0.3, rel=2e-3)
    cut = Circuit(problem.space, Ranking(problem.space, ranked.leaves(0.3)).cut(0.0))
    assert 0.28 < cut.share(measure) <= 0.3
    assert abs(cut.share("units") - cut.share("parameters")) > 0.03


@pytest.mark.parametrize("method", ["hard_concrete", "nested"])
def test_phases_share_the_steps_and_begin_where_the_ranking_ended(planted: GPT2LMHeadModel, method: str) -> None:
    config = CONFIG.replaced(method=method, steps=50, ranking_share=0.3)
    problem = Problem.of(Subject.of(planted), PAIRS, config)
    ranked = first_phase(problem)
    assert isinstance(ranked, RankingPhase)
    with torch.no_grad():
        for granularity, score in ranked.averages.scores.items():
            if granularity not in OUT_DIMS:  # half of them closed would leave no size that keeps the budget
                score.normal_(0, 3, generator=torch.Generator().manual_seed(0))
    second = next_phase(ranked, lambda: problem)
    assert isinstance(second, HardConcretePhase if method == "hard_concrete" else FocusPhase)
    assert (ranked.steps, second.steps) == (15, 35)
    first, ranking = Circuit(problem.space, second.ranking().cut(0.0)), ranked.ranking()
    again = Circuit(problem.space, ranking.cut(ranking.threshold_at(first.size)))
    assert all(torch.equal(first.masks[g], again.masks[g]) for g in Granularity)
    assert next_phase(second, lambda: problem) is None


def test_masks_harden_while_they_focus(planted: GPT2LMHeadModel) -> None:
    problem = Problem.of(Subject.of(planted), PAIRS, CONFIG.replaced(method="nested", size=0.3))
    ranked = RankingPhase(problem)
    with torch.no_grad():
        for score in ranked.averages.scores.values():
            score.normal_(0, 3, generator=torch.Generator().manual_seed(0))
    focus = FocusPhase(problem, ranked, 0.3)

    def undecided(step: int) -> float:
        with torch.no_grad():
            masks = focus.draw(step)
            units = torch.cat([masks[g].flatten() for g in UNIT_GRANULARITIES])
        assert float(units.sum()) == pytest.approx(0.3 * problem.space.units, rel=1e-3)
        return float(((units > 0.1) & (units < 0.9)).float().mean())

    shares = [undecided(step) for step in (0, focus.steps // 2, focus.steps - 1)]
    assert shares[0] > 3 * shares[1] > 3 * shares[2]
    assert shares[2] < 0.02


def test_the_final_cut_goes_on_from_the_ranking_of_the_best_check_where_that_is_the_better_one(
    planted: GPT2LMHeadModel, found: Discovery
) -> None:
    problem = Problem.of(Subject.of(planted), PAIRS, CONFIG)
    upside_down = Ranking(problem.space, {g: -score for g, score in found.ranking.scores.items()})
    early = try_cut(problem, found.ranking, found.ranking.threshold_at(0.9), 7)
    alone, chosen = (
        final_cut(problem, upside_down, None, CONFIG.steps),
        final_cut(problem, upside_down, early, CONFIG.steps),
    )
    assert early.feasible
    assert chosen.feasible
    assert chosen.step == 7
    assert chosen.circuit.size < 0.5 * min(early.circuit.size, alone.circuit.size)
    assert final_cut(problem, upside_down, early, CONFIG.steps, quick=True).circuit.size == early.circuit.size
    assert final_cut(problem, found.ranking, early, CONFIG.steps).step == CONFIG.steps


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


def counted_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the batches of every measurement of a circuit from now on."""
    passes: list[int] = []
    measure = Bench.measure

    def counted(self: Bench, circuit: Circuit, batches: Sequence[PairBatch] | None = None) -> Signals:
        passes.append(len(self.batches if batches is None else batches))
        return measure(self, circuit, batches)

    monkeypatch.setattr(Bench, "measure", counted)
    return passes


@pytest.mark.parametrize("measure", ["units", "parameters"])
def test_a_glance_saves_passes_and_finds_the_same_border(
    planted: GPT2LMHeadModel, found: Discovery, monkeypatch: pytest.MonkeyPatch, measure: str
) -> None:
    problem = Problem.of(Subject.of(planted), PAIRS, CONFIG.replaced(batch_size=2, size_by=measure))
    passes = counted_passes(monkeypatch)
    monkeypatch.setattr(selection, "LEAST_LOOKS", 100)  # neither runs out of its allowance
    glancing, spent = final_cut(problem, found.ranking, None, CONFIG.steps), sum(passes)
    monkeypatch.setattr(selection, "glimpsed", lambda batches: (list(batches), []))
    passes.clear()
    exhaustive = final_cut(problem, found.ranking, None, CONFIG.steps)
    assert spent < 0.8 * sum(passes)
    assert not glancing.at_a_glance
    assert glancing.load == pytest.approx(float(problem.budget.load(problem.validation.measure(glancing.circuit))))
    assert glancing.feasible
    assert glancing.circuit.share(measure) == pytest.approx(exhaustive.circuit.share(measure), rel=0.05)


def test_fewer_of_what_is_asked_for_is_the_better_circuit(planted: GPT2LMHeadModel) -> None:
    """A dim of every head is fewer units and more parameters than all dims of two heads."""
    space = Subject.of(planted).space
    spread, whole = (torch.zeros(space.shape(Granularity.HEAD_DIM)) for _ in range(2))
    spread[:, ::HEAD_DIM] = 1
    whole[0, : 2 * HEAD_DIM] = 1
    neurons = torch.zeros(space.shape(Granularity.MLP_NEURON))
    rankings = [
        Ranking(space, {Granularity.HEAD_DIM: dims, Granularity.MLP_NEURON: neurons}) for dims in (spread, whole)
    ]
    for measure in ("units", "parameters"):
        config = CONFIG.replaced(max_kl=1e3, max_accuracy_drop=1.0, size_by=measure)
        problem = Problem.of(Subject.of(planted), PAIRS, config)
        apart, together = (try_cut(problem, ranking, 0.5, 0) for ranking in rankings)
        assert apart.feasible
        assert together.feasible
        assert apart.better_than(together) == (measure == "units")


def test_the_final_cut_narrows_its_border_down_only_while_its_allowance_lasts(
    planted: GPT2LMHeadModel, found: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem.of(Subject.of(planted), PAIRS, CONFIG.replaced(batch_size=8))
    passes = counted_passes(monkeypatch)
    monkeypatch.setattr(selection, "VALIDATION_SHARE", 0.0)
    spent, chosen = [], []
    for looks in (0, 6, 100):
        monkeypatch.setattr(selection, "LEAST_LOOKS", looks)
        passes.clear()
        chosen.append(final_cut(problem, found.ranking, None, CONFIG.steps))
        spent.append(sum(passes))
    assert spent[0] < spent[2]
    assert spent[0] <= spent[1] <= spent[2]
    assert all(check.feasible for check in chosen)
    sizes = [check.circuit.size for check in chosen]
    assert sizes[0] >= sizes[1] >= sizes[2]


def test_a_second_ranking_that_cannot_win_is_tried_once(
    planted: GPT2LMHeadModel, found: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem.of(Subject.of(planted), PAIRS, CONFIG)
    upside_down = Ranking(problem.space, {g: -score for g, score in found.ranking.scores.items()})
    worse = try_cut(problem, upside_down, -math.inf, 7)
    tried: list[Circuit] = []
    measure = Bench.measure
    monkeypatch.setattr(
        Bench,
        "measure",
        lambda self, circuit, batches=None: (tried.append(circuit), measure(self, circuit, batches))[1],
    )
    alone = final_cut(problem, found.ranking, None, CONFIG.steps)
    before = len(tried)
    both = final_cut(problem, found.ranking, worse, CONFIG.steps)
    assert worse.feasible
    assert both.circuit.size == alone.circuit.size
    assert len(tried) == 2 * before + 1


def test_without_a_ranking_gates_start_as_the_paper_does(planted: GPT2LMHeadModel) -> None:
    for config in (CONFIG.replaced(ranking_share=0.0), CONFIG.replaced(pressure=1.0)):
        problem = Problem.of(Subject.of(planted), PAIRS, config)
        only = first_phase(problem)
        assert isinstance(only, HardConcretePhase)
        assert only.steps == config.steps
        low, high = config.init
        assert all(low <= s.min() <= s.max() <= high for s in only.gates.ranking().values())


def test_what_gates_have_decided_keeps_the_order_of_the_ranking(planted: GPT2LMHeadModel) -> None:
    problem = Problem.of(Subject.of(planted), PAIRS, CONFIG)
    space = problem.space
    generator = torch.Generator().manual_seed(1)
    leaves = {
        g: torch.randn(space.shape(g), generator=generator) for g in (Granularity.HEAD_DIM, Granularity.MLP_NEURON)
    }
    phase = HardConcretePhase(problem, leaves)
    with torch.no_grad():
        for granularity, log_alpha in phase.gates.scores().items():
            log_alpha += torch.randn(log_alpha.shape, generator=generator)
            log_alpha += 4 * (log_alpha > 1.5)
            phase.averages.scores[granularity].copy_(log_alpha)
    own, ranking = Ranking(space, phase.gates.ranking()), phase.ranking()
    circuits = [Circuit(space, scores.cut(0.0)) for scores in (own, ranking)]
    assert all(torch.equal(circuits[0].masks[g], circuits[1].masks[g]) for g in Granularity)
    units, gates = ranking.unit_scores(), own.unit_scores()
    before = torch.cat([leaf.flatten() for leaf in leaves.values()])
    closed, wide_open = gates <= 0, gates >= RANKED_REACH
    in_doubt = ~closed & ~wide_open
    for decided in (closed, wide_open):
        assert decided.sum() > 3
        assert torch.equal(before[decided].argsort(stable=True), units[decided].argsort(stable=True))
    assert in_doubt.sum() > 3
    assert torch.equal(units[in_doubt], gates[in_doubt])
    assert units[closed].max() < 0 < units[in_doubt].min() <= units[in_doubt].max() < units[wide_open].min()


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


def test_auto_leaves_small_models_as_they_are(planted: GPT2LMHeadModel) -> None:
    assert training_dtype(Subject.of(planted), CONFIG) is None


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


def test_a_focus_leaves_out_what_is_far_below_the_border_until_the_border_falls(planted: GPT2LMHeadModel) -> None:
    problem = Problem.of(Subject.of(planted), PAIRS, CONFIG.replaced(method="nested", size=0.2, shrinking="on"))
    ranked = RankingPhase(problem)
    units = (Granularity.HEAD_DIM, Granularity.MLP_NEURON)
    spread = {g: torch.linspace(-10, 10, problem.space.shape(g)[1]).repeat(2, 1) for g in units}
    ranked.nested.start_at(spread)
    ranked.averages = Averages(ranked.nested.scores())
    phase = FocusPhase(problem, ranked, 0.2)
    assert phase.lean is None
    signals = Signals(*map(torch.tensor, (0.1, 1.0, 1.0, 0.0, 0.2)))
    last = phase.steps // EVERY * EVERY - 1
    for step, reach in ((EVERY - 1, NO_MASK * phase.temperature(EVERY - 1)), (last, NEAR)):
        expected = {leaf: phase.ranking().scores[leaf] > -reach for leaf in units}
        phase.after(step, signals)
        assert equal(phase.shrinking.left, expected)
    masks, batch = phase.draw(last), problem.train.batches[0]
    reference = problem.train.references(batch)
    whole, without = (
        problem.train.logits(problem.site_masks(masks), batch, reference, lean=lean) for lean in (None, phase.lean)
    )
    assert phase.lean is not None
    assert phase.lean.sites
    torch.testing.assert_close(without, whole, atol=1e-4, rtol=1e-4)
    before = counts(phase.shrinking.left)
    phase.control = phase.control._replace(log_effort=torch.tensor(math.log(1 / 0.6)))
    phase.after(last, signals)
    assert all(counts(phase.shrinking.left)[leaf][0] > before[leaf][0] for leaf in units)


def test_what_is_closed_for_good_stays_closed_and_grows(planted: GPT2LMHeadModel) -> None:
    problem = Problem.of(Subject.of(planted), PAIRS, CONFIG.replaced(shrinking="on"))
    leaves = {
        g: torch.linspace(-8, 8, problem.space.shape(g)[1]).repeat(2, 1)
        for g in (Granularity.HEAD_DIM, Granularity.MLP_NEURON)
    }
    phase = HardConcretePhase(problem, leaves)
    for leaf, scores in leaves.items():
        assert torch.equal(phase.shrinking.left[leaf], scores > -RANKED_REACH)
    assert phase.lean is not None
    with torch.no_grad():
        neurons, heads = phase.averages.scores[Granularity.MLP_NEURON], phase.averages.scores[Granularity.HEAD]
        neurons[0] = 1.0  # would be open again
        neurons[1, -1] = -RANKED_REACH
        heads[0, 3] = -RANKED_REACH
    phase._close_for_good()
    assert torch.equal(
        phase.shrinking.left[Granularity.MLP_NEURON][0], leaves[Granularity.MLP_NEURON][0] > -RANKED_REACH
    )
    assert not phase.shrinking.left[Granularity.MLP_NEURON][1, -1]
    assert not phase.shrinking.left[Granularity.HEAD_DIM][0, 3 * HEAD_DIM :].any()
    without = HardConcretePhase(Problem.of(Subject.of(planted), PAIRS, CONFIG), leaves)
    assert without.lean is None
