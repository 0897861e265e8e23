"""The phases of a search: how they begin, draw masks, harden and leave out what is closed."""

import itertools
import math

import pytest
import torch
from transformers import GPT2LMHeadModel

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.circuits.masks import counts, equal
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.tokenising import Pairs
from circuitsieve.models.subject import Subject
from circuitsieve.search.averages import Averages
from circuitsieve.search.control import Signals
from circuitsieve.search.discovery import discover
from circuitsieve.search.focus import NEAR, NO_MASK, FocusPhase
from circuitsieve.search.phase import falling
from circuitsieve.search.phases import first_phase, next_phase
from circuitsieve.search.problem import Problem
from circuitsieve.search.pruning import NOISE_FALLS, RANKED_REACH, TIED, PruningPhase
from circuitsieve.search.ranking import RankingPhase
from circuitsieve.search.shrinking import EVERY
from circuitsieve.search.training import Training
from circuitsieve.vocabulary import DEFAULT_GRANULARITIES, OUT_DIMS, UNIT_GRANULARITIES, Granularity, Sampling
from models import random_examples, shared
from planted import CONFIG, HEAD_DIM, HEADS, NEURONS, PAIRS


def test_schedules(planted: GPT2LMHeadModel) -> None:
    assert [falling("linear", 1.0, 0.1, step, 101) for step in (0, 50, 100)] == pytest.approx([1, 0.55, 0.1])
    assert [falling("cosine", 1.0, 0.1, step, 101) for step in (0, 50, 100)] == pytest.approx([1, 0.55, 0.1])
    assert falling("constant", 1.0, 0.1, 100, 101) == 1.0
    config = CONFIG.replaced(steps=101, ranking_share=0.0)
    phase = PruningPhase(Problem.of(Subject.of(planted), PAIRS, config), None)
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


@pytest.mark.parametrize("settings", [{"max_kl": 0.1}, {"size": 0.9}, {"ranking_sizes": (0.85, 0.95)}], ids=str)
def test_what_is_ranked_of_some_nodes_alone_is_neither_all_open_nor_all_closed(
    planted: GPT2LMHeadModel, settings: dict[str, float]
) -> None:
    config = CONFIG.replaced(method="nested", granularities=("head",), ranking_share=0.5, **settings)
    phase = RankingPhase(Problem.of(Subject.of(planted), PAIRS, config))
    assert phase.problem.least_size > 0.7
    opened = [phase.draw(step)[Granularity.HEAD_DIM].mean().item() for step in range(phase.steps)]
    assert all(0.01 < share < 0.99 for share in opened)
    assert max(opened) / min(opened) > 1.5


def test_a_learning_rate_below_its_end_does_not_rise(planted: GPT2LMHeadModel) -> None:
    phase = PruningPhase(Problem.of(Subject.of(planted), PAIRS, CONFIG.replaced(lr=1e-3, ranking_share=0.0)), None)
    assert {phase.learning_rate(step) for step in (0, phase.steps - 1)} == {1e-3}


def test_a_ranking_with_a_hinge_has_no_end_but_its_last_step(planted: GPT2LMHeadModel) -> None:
    for hinge, told in ((None, True), (2.0, False)):
        phase = RankingPhase(Problem.of(Subject.of(planted), PAIRS, CONFIG.replaced(hinge=hinge)))
        assert (phase.reading({"kl": 0.1, "drawn_size": 0.3}) is not None) == told


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
    assert isinstance(second, PruningPhase if method == "hard_concrete" else FocusPhase)
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


def test_without_a_ranking_gates_start_as_the_paper_does(planted: GPT2LMHeadModel) -> None:
    for config in (CONFIG.replaced(ranking_share=0.0), CONFIG.replaced(pressure=1.0)):
        problem = Problem.of(Subject.of(planted), PAIRS, config)
        only = first_phase(problem)
        assert isinstance(only, PruningPhase)
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
    phase = PruningPhase(problem, leaves)
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
    moved = units[in_doubt] - gates[in_doubt]
    assert 0 <= moved.min() <= moved.max() <= TIED + 1e-6
    ties = [(gates == value) & in_doubt for value in gates[in_doubt].unique()]
    assert max(int(tied.sum()) for tied in ties) > 3  # dims of a head that is in doubt itself
    for tied in ties:
        assert torch.equal(before[tied].argsort(stable=True), units[tied].argsort(stable=True))
    assert len(units[in_doubt].unique()) == in_doubt.sum()  # so that a cut lies between any two
    assert units[closed].max() < 0 < units[in_doubt].min() <= units[in_doubt].max() < units[wide_open].min()


@pytest.mark.parametrize("ranking_share", [0.0, 0.2])
def test_out_dims_of_gates_are_as_open_at_every_size(planted: GPT2LMHeadModel, ranking_share: float) -> None:
    config = CONFIG.replaced(
        granularities=tuple(map(str, (*DEFAULT_GRANULARITIES, *OUT_DIMS))), ranking_share=ranking_share
    )
    problem = Problem.of(Subject.of(planted), PAIRS, config)
    phase = first_phase(problem)
    if ranking_share:
        phase = next_phase(phase, lambda: problem)
    assert isinstance(phase, PruningPhase)
    own = {g: torch.linspace(-3, 5, problem.space.shape(g)[1]).repeat(2, 1) for g in OUT_DIMS}
    with torch.no_grad():
        for g, scores in own.items():
            phase.averages.scores[g].copy_(scores)
            phase.gates.scores()[g].copy_(scores)
        for found in (phase.averages.scores, phase.gates.scores()):
            found[Granularity.MLP_BLOCK][0] = -5.0  # what contains them is closed, and may open again
    ranking = phase.ranking()
    sizes = [0.03, 0.3, 0.9]
    cuts = [ranking.cut(ranking.threshold_at(size)) for size in sizes]
    for size, cut in zip(sizes, cuts, strict=True):
        composed = problem.space.lowest({g: mask.float() for g, mask in cut.items()})
        kept = sum(int(composed[g].sum()) for g in UNIT_GRANULARITIES)
        at_least = size / 2 if ranking_share else 0.0  # without a ranking all units of a block are tied to its gate
        assert at_least <= kept / problem.space.units <= size
        assert all(torch.equal(cut[g], own[g] > 0) for g in OUT_DIMS)


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
    phase = PruningPhase(problem, leaves)
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
    without = PruningPhase(Problem.of(Subject.of(planted), PAIRS, CONFIG), leaves)
    assert without.lean is None


@pytest.mark.parametrize("granularities", [("head", "mlp_block"), ("attn_block", "mlp_block"), ("layer",)])
@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_blocks_that_cannot_be_folded_are_left_whole_by_passes_that_shrink(family: str, granularities: tuple[str, ...]):
    """A post-norm model, and zeros before an output bias."""
    pairs = Pairs(*(tuple(random_examples([6, 6, 6, 6], seed)) for seed in (1, 2, 3)))
    config = DiscoveryConfig(
        method="hard_concrete",
        granularities=granularities,
        ablation="zero",
        size=0.3,
        steps=80,
        batch_size=4,
        early_stopping="off",
    )
    model = shared(family).model
    found, plain = (discover(model, pairs, config.replaced(shrinking=shrinking)) for shrinking in ("on", "off"))
    assert found.circuit.size <= 0.3
    assert plain.circuit.size <= 0.3


@pytest.mark.parametrize("sampling", list(Sampling))
def test_a_pressure_is_faded_in_over_the_warm_up(planted: GPT2LMHeadModel, sampling: Sampling):
    config = CONFIG.replaced(pressure=2.0, warmup=4, sampling=str(sampling))
    phase = first_phase(Problem.of(Subject.of(planted), PAIRS, config))
    assert isinstance(phase, PruningPhase)
    assert phase.gates.sampling is sampling
    for step, share in ((0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)):
        objective, facts = phase.objective(step, torch.tensor(0.7), phase.draw(step))
        assert float(facts["pressure"]) == pytest.approx(2.0 * share)
        assert float(objective.detach()) == pytest.approx(0.7 + 2.0 * share * float(facts["penalty"]))


def test_a_step_adds_the_hinge_and_clips_the_gradient(planted: GPT2LMHeadModel):
    """One step each, from the same start: the objective's gradient is that of the KL and of what is short of the margin."""

    def after(**settings: object) -> tuple[dict[str, float], torch.Tensor]:
        problem = Problem.of(Subject.of(planted), PAIRS, CONFIG.replaced(pressure=0.1, steps=4, **settings))
        training = Training(problem)
        phase = first_phase(problem)
        assert isinstance(phase, PruningPhase)
        training.begin(phase)
        batch = problem.train.batches[0]
        found = {name: float(value) for name, value in training.step(0, batch).items()}
        return found, torch.cat(
            [parameter.grad.flatten() for parameter in phase.gates.parameters() if parameter.grad is not None]
        )

    plain, gradient = after(clip=1e6)
    hinged, other = after(clip=1e6, hinge=100.0)
    far, same = after(clip=1e6, hinge=-100.0)
    clipped, short = after(clip=1e-3)
    assert plain["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert clipped["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-4)
    torch.testing.assert_close(short, gradient * 1e-3 / plain["gradient_norm"], rtol=1e-3, atol=1e-9)
    assert torch.equal(same, gradient)  # no pair is short of such a margin
    assert (far["kl"], hinged["kl"]) == (plain["kl"], plain["kl"])
    assert not torch.allclose(other, gradient, rtol=1e-2)
