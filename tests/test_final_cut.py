"""The final cut: which circuit is returned, and how many looks at validation pairs that takes."""

import math
from collections.abc import Sequence

import pytest
import torch
from transformers import GPT2LMHeadModel

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.data.batching import PairBatch
from circuitsieve.models.subject import Subject
from circuitsieve.search import selection
from circuitsieve.search.bench import Bench
from circuitsieve.search.checks import try_cut
from circuitsieve.search.control import Signals
from circuitsieve.search.discovery import Discovery
from circuitsieve.search.problem import Problem
from circuitsieve.search.selection import final_cut
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Granularity
from planted import CONFIG, HEAD_DIM, PAIRS


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


def test_nothing_is_smaller_than_a_circuit_that_keeps_nothing(planted: GPT2LMHeadModel, found: Discovery) -> None:
    """Where the budget allows everything: the last ranking's cut keeps no unit, the best check kept some."""
    config = CONFIG.replaced(max_kl=1e3, max_accuracy_drop=1.0)
    problem = Problem.of(Subject.of(planted), PAIRS, config)
    nothing = Ranking(problem.space, {g: -torch.ones_like(score) for g, score in found.ranking.scores.items()})
    early = try_cut(problem, found.ranking, found.ranking.threshold_at(0.5), 7)
    chosen = final_cut(problem, nothing, early, config.steps)
    assert chosen.feasible
    assert chosen.circuit.size == 0


@pytest.mark.parametrize("quick", [True, False])
def test_where_no_circuit_keeps_the_budget_the_nearest_one_is_returned(
    planted: GPT2LMHeadModel, found: Discovery, *, quick: bool
) -> None:
    """As after an interrupt: the best check missed the budget by little, the last ranking by much."""
    config = CONFIG.replaced(max_kl=1e-6, max_accuracy_drop=1.0)
    problem = Problem.of(Subject.of(planted), PAIRS, config)
    upside_down = Ranking(problem.space, {g: -score for g, score in found.ranking.scores.items()})
    near = try_cut(problem, found.ranking, found.ranking.threshold_at(0.9 * found.circuit.size), 7)
    far = try_cut(problem, upside_down, 0.0, config.steps)
    assert not near.feasible
    assert not far.feasible
    assert near.load < far.load
    chosen = final_cut(problem, upside_down, near, config.steps, quick=quick)
    if quick:
        assert (chosen.step, chosen.load) == (7, pytest.approx(near.load))
    else:
        assert chosen.feasible or chosen.load <= near.load


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


@pytest.mark.parametrize("border", [0.05, 0.3, 0.7])
def test_a_glance_that_is_too_kind_is_not_the_last_word(
    planted: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch, border: float
) -> None:
    """All pairs keep the budget from a border on, the few of a glance at every size; the start is the whole model."""
    problem = Problem.of(Subject.of(planted), PAIRS, CONFIG.replaced(batch_size=4, max_accuracy_drop=1.0))
    everything = len(problem.validation.batches)
    measure = Bench.measure

    def kind(self: Bench, circuit: Circuit, batches: Sequence[PairBatch] | None = None) -> Signals:
        glance = batches is not None and len(batches) < everything
        kl = 0.0 if glance or circuit.size >= border else 1.0
        return measure(self, circuit, batches)._replace(kl=torch.tensor(kl), accuracy_drop=torch.tensor(0.0))

    monkeypatch.setattr(Bench, "measure", kind)
    monkeypatch.setattr(selection, "LEAST_LOOKS", 100)
    generator = torch.Generator().manual_seed(0)
    ranking = Ranking(
        problem.space, {g: 1 + torch.rand(problem.space.shape(g), generator=generator) for g in UNIT_GRANULARITIES}
    )
    assert try_cut(problem, ranking, 0.0, 0).circuit.size == 1
    chosen = final_cut(problem, ranking, None, CONFIG.steps)
    assert chosen.feasible
    assert border <= chosen.circuit.size <= 1.05 * border + 1 / problem.space.units


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


@pytest.mark.parametrize("limit", [0.03, 3.0])
def test_a_circuit_uses_up_its_budget_or_is_the_last_that_keeps_it(
    planted: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    """However few steps were made."""
    monkeypatch.setattr(selection, "VALIDATION_SHARE", 0.0)
    problem = Problem.of(Subject.of(planted), PAIRS, CONFIG.replaced(max_kl=limit, max_accuracy_drop=1.0))
    generator = torch.Generator().manual_seed(0)
    scores = {g: torch.rand(problem.space.shape(g), generator=generator) for g in UNIT_GRANULARITIES}
    ranking = Ranking(problem.space, scores)
    chosen = final_cut(problem, ranking, None, CONFIG.steps)
    one_less = try_cut(problem, ranking, ranking.threshold_at(chosen.circuit.size - 1 / problem.space.units), 0)
    assert chosen.feasible
    assert chosen.load >= 0.95 or not one_less.feasible


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
