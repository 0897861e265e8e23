"""The sections of the full card, each number found again by surgery on a copy of the model: zero ablation is zeroed weights."""

import copy
import functools
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from by_hand import by_hand, plain_logits
from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.circuits.mib import importances, read_mib
from circuitsieve.circuits.nodes import Node
from circuitsieve.circuits.wholes import Wholes
from circuitsieve.data.batching import batches
from circuitsieve.data.tokenising import Example, Pairs
from circuitsieve.errors import ConfigError
from circuitsieve.evaluation import minimality
from circuitsieve.evaluation.areas import SIZES, areas, cmd, cpr
from circuitsieve.evaluation.card import evaluate
from circuitsieve.evaluation.controls import anywhere, kept, matched_random, some_of, whole, without
from circuitsieve.evaluation.full import evaluate_fully
from circuitsieve.evaluation.harness import EvaluationConfig, Harness
from circuitsieve.evaluation.hypotheses import beats_most, corrected, dependent, equal, unequal, wins
from circuitsieve.evaluation.knockouts import completeness
from circuitsieve.evaluation.minimality import changed, chosen_nodes, fewest, null_nodes
from circuitsieve.evaluation.verdicts import against, judged
from circuitsieve.models.ablations import constants
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Ablation, Granularity
from tiny import tiny_gpt2, tiny_pairs

G = Granularity
MODEL = tiny_gpt2()
SUBJECT = Subject.of(MODEL)
SPACE = SUBJECT.space


def nothing() -> np.ndarray:
    """Logits of a residual stream of zeros: with everything ablated, that is what is left."""
    with torch.no_grad():
        return MODEL.lm_head(MODEL.transformer.ln_f(torch.zeros(1, SPACE.width)))[0].double().numpy()


def telling(example: Example) -> Example:
    """The pair, with its answers swapped where the model does worse on it than nothing would."""
    full, none = (by_hand(x, x, example)["logit_diff"] for x in (plain_logits(MODEL, example.clean), nothing()))
    return example if full > none else replace(example, answers=example.wrong_answers, wrong_answers=example.answers)


TEST = [telling(example) for example in tiny_pairs(test=30).test]
PAIRS = Pairs((), (), tuple(TEST))
ZEROS = constants(SUBJECT, batches(TEST, 4), Ablation.ZERO)
CONFIG = EvaluationConfig(
    random_circuits=3, random_pairs=99, tested_circuits=5, subsets=4, finer_nodes=9, null_nodes=8, batch_size=4
)


def circuit_of(seed: int, density: float = 0.6) -> Circuit:
    generator = torch.Generator().manual_seed(seed)
    masks = {g: torch.rand(SPACE.shape(g), generator=generator) < density for g in UNIT_GRANULARITIES}
    return Circuit(SPACE, masks, Ablation.ZERO, ZEROS)


CIRCUIT = circuit_of(0)
RANKING = Ranking(
    SPACE, {g: torch.randn(SPACE.shape(g), generator=torch.Generator().manual_seed(1)) for g in UNIT_GRANULARITIES}
)


@pytest.fixture(scope="module")
def card() -> dict:
    return evaluate_fully(MODEL, CIRCUIT, PAIRS, RANKING, config=CONFIG)


@functools.cache
def harness() -> Harness:
    return Harness(SUBJECT, CIRCUIT, TEST, CONFIG)


def by_surgery(circuit: Circuit) -> dict[str, np.ndarray]:
    """Metrics of every pair of a copy of the model whose closed units write nothing."""
    model = copy.deepcopy(MODEL)
    for layer, block in enumerate(model.transformer.h):
        for projection, units, whole_block in (
            (block.attn.c_proj, G.HEAD_DIM, G.ATTN_BLOCK),
            (block.mlp.c_proj, G.MLP_NEURON, G.MLP_BLOCK),
        ):
            projection.weight.data[~circuit.masks[units][layer]] = 0
            if not circuit.masks[whole_block][layer]:
                projection.weight.data.zero_()
                projection.bias.data.zero_()
    rows = [by_hand(plain_logits(MODEL, e.clean), plain_logits(model, e.clean), e) for e in TEST]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def metric(circuit: Circuit) -> float:
    return float(by_surgery(circuit)["logit_diff"].mean())


FULL = by_surgery(Circuit(SPACE, SPACE.full(), Ablation.ZERO, ZEROS))["logit_diff"]
EMPTY = np.mean([by_hand(nothing(), nothing(), example)["logit_diff"] for example in TEST])


# --- parts of circuits --------------------------------------------------------------------------------------------------


def units_of(circuit: Circuit) -> set[tuple[str, int, int]]:
    return {(str(g), *place) for g in UNIT_GRANULARITIES for place in circuit.masks[g].nonzero().tolist()}


def test_what_is_knocked_out_is_gone_and_the_rest_is_as_it_was():
    part = some_of(kept(CIRCUIT), 0.5, torch.Generator().manual_seed(0))
    gone = {(str(g), *place) for g in part for place in part[g].nonzero().tolist()}
    assert gone < units_of(CIRCUIT)
    assert units_of(without(CIRCUIT, part)) == units_of(CIRCUIT) - gone
    assert units_of(without(whole(CIRCUIT), kept(CIRCUIT))) == units_of(CIRCUIT.complement())


def test_units_from_anywhere_are_as_many_as_asked_for_and_as_likely_as_each_other():
    draws = [anywhere(CIRCUIT, 7, torch.Generator().manual_seed(seed)) for seed in range(2000)]
    assert all(sum(int(mask.sum()) for mask in draw.values()) == 7 for draw in draws)
    shares = torch.cat([torch.stack([d[g] for d in draws]).float().mean(0).flatten() for g in UNIT_GRANULARITIES])
    assert len(shares) == SPACE.units
    torch.testing.assert_close(shares, torch.full_like(shares, 7 / SPACE.units), atol=0.04, rtol=0)


@pytest.mark.parametrize("name", ["L0.attn_block", "L1.mlp_block", "L0.head.1", "L1.head_dim.6", "L1.mlp_neuron.3"])
def test_a_node_is_added_with_what_contains_it_and_what_it_contains(name: str):
    node = SPACE.parse(name)
    nothing = Circuit(SPACE, SPACE.full(False), Ablation.ZERO, ZEROS)
    alone = Circuit.from_nodes(SPACE, [name], ablation=Ablation.ZERO, constants=ZEROS)
    assert units_of(changed(nothing, node, keep=True)) == units_of(alone)
    back = changed(changed(nothing, node, keep=True), node, keep=False)
    assert units_of(back) == set()
    assert units_of(changed(CIRCUIT, node, keep=True)) == units_of(CIRCUIT) | units_of(alone)


# --- sections -------------------------------------------------------------------------------------------------------------


def test_sufficiency_counts_random_circuits_that_are_worse(card: dict):
    own = by_surgery(CIRCUIT)["kl"].mean()
    others = [by_surgery(matched_random(CIRCUIT, seed))["kl"].mean() for seed in range(5)]
    beaten = sum(bool(other > own) for other in others)
    found = card["sufficiency"]
    assert (found["beaten"], found["circuits"]) == (beaten / 5, 5)
    assert found["p"] == pytest.approx(beats_most(beaten, 5))
    assert found["random"]["kl"] == pytest.approx(np.mean(others), rel=1e-4)


def test_necessity_counts_knock_outs_that_leave_more(card: dict):
    full = whole(CIRCUIT)
    own = metric(CIRCUIT.complement())
    matched = [metric(matched_random(CIRCUIT, seed).complement()) for seed in range(5)]
    size = len(units_of(CIRCUIT))
    uniform = [metric(without(full, anywhere(CIRCUIT, size, harness().generator(i)))) for i in range(3)]
    found = card["necessity"]
    assert found["logit_diff"] == pytest.approx(own, rel=1e-4)
    assert found["matched"]["hurt_less"] == sum(other > own for other in matched) / 5
    assert found["uniform"]["hurt_less"] == sum(other > own for other in uniform) / 3
    assert found["matched"]["logit_diff"] == pytest.approx(np.mean(matched), rel=1e-4)
    assert found["uniform"]["logit_diff"] == pytest.approx(np.mean(uniform), rel=1e-4)
    assert found["p"] == pytest.approx(beats_most(sum(other > own for other in matched), 5))


def later_layers(circuit: Circuit) -> Circuit:
    masks = {g: mask.clone() for g, mask in circuit.masks.items() if g in UNIT_GRANULARITIES}
    for mask in masks.values():
        mask[0] = True
    return Circuit(SPACE, masks, Ablation.ZERO, ZEROS)


def test_necessity_without_layer_0_leaves_that_layer_alone(card: dict):
    found = card["necessity"]["without_layer_0"]
    own = metric(later_layers(CIRCUIT.complement()))
    others = [metric(later_layers(matched_random(CIRCUIT, seed).complement())) for seed in range(3)]
    assert found["logit_diff"] == pytest.approx(own, rel=1e-4)
    assert found["matched"]["logit_diff"] == pytest.approx(np.mean(others), rel=1e-4)
    assert found["matched"]["hurt_less"] == sum(other > own for other in others) / 3


def test_completeness_compares_circuit_and_model_without_the_same_parts(card: dict):
    generator, gaps = harness().generator(), []
    for _ in range(4):
        share = float(torch.rand((), generator=generator))
        part = some_of(kept(CIRCUIT), share, generator)
        gaps.append(abs(metric(without(CIRCUIT, part)) - metric(without(whole(CIRCUIT), part))))
    found = card["completeness"]
    assert (found["gap"], found["largest_gap"]) == pytest.approx((np.mean(gaps), max(gaps)), rel=1e-4)
    assert found["relative_gap"] == pytest.approx(np.mean(gaps) / FULL.mean(), rel=1e-4)
    low, high = card["intervals"]["completeness"]["gap"]
    assert low < found["gap"] < high


def test_minimality_knocks_out_one_node_after_the_other(card: dict):
    nodes = chosen_nodes(harness())
    coarse = {str(n) for n in nodes if n.granularity not in UNIT_GRANULARITIES}
    assert coarse == set(CIRCUIT.nodes(G.ATTN_BLOCK, G.MLP_BLOCK, G.HEAD))
    assert len(nodes) == len(coarse) + 9 == card["minimality"]["tested"]
    assert {str(n) for n in nodes} <= set(CIRCUIT.nodes())
    for node in nodes:
        masks = {g: mask.clone() for g, mask in CIRCUIT.masks.items()}
        masks[node.granularity][node.layer, node.index] = False
        effect = (metric(CIRCUIT) - metric(Circuit(SPACE, masks, Ablation.ZERO, ZEROS))) / FULL.mean()
        assert card["minimality"]["nodes"][str(node)] == pytest.approx(effect, rel=1e-3, abs=1e-5)
    effects = list(card["minimality"]["nodes"].values())
    assert card["minimality"]["effect_p50"] == pytest.approx(np.median(effects))
    assert card["minimality"]["small"] == np.mean([-0.01 < effect < 0.01 for effect in effects])
    assert card["minimality"]["needed"] is None
    outside = min(8, int((~CIRCUIT.masks[G.HEAD_DIM]).sum()))
    said = card["reasons"]["minimality"]["needed"]["head_dim"]
    assert said == (
        f"found {outside} nodes outside of the circuit to compare with, expected at least {fewest(len(nodes))} for "
        f"{len(nodes)} nodes"
    )


@pytest.mark.parametrize("nodes", [1, 9, 200, 426])
def test_enough_nodes_outside_are_those_that_can_show_that_a_node_is_needed(nodes: int):
    """A node that beats all of them, whose p-value is corrected for as many nodes as are tested."""
    enough = fewest(nodes)
    others = [1.0] * (nodes - 1)
    assert corrected([beats_most(enough, enough), *others])[0] < 0.05
    assert corrected([beats_most(enough - 1, enough - 1), *others])[0] >= 0.05


def test_a_node_is_needed_where_it_does_more_than_most_nodes_outside_would(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(minimality, "fewest", lambda _: 5)
    found = minimality.minimality(harness()).values
    own = by_surgery(CIRCUIT)["logit_diff"]

    def moved(circuit: Circuit) -> float:
        return float(abs(own - by_surgery(circuit)["logit_diff"]).mean())

    p_values = []
    for granularity, strangers in null_nodes(harness()).items():
        nulls = [moved(changed(CIRCUIT, node, keep=True)) for node in strangers]
        assert 5 <= len(nulls) <= 8
        for node in chosen_nodes(harness()):
            if node.granularity is granularity:
                effect = moved(changed(CIRCUIT, node, keep=False))
                p_values.append(beats_most(sum(effect > null for null in nulls), len(nulls)))
    assert len(p_values) == found["compared"] >= 5
    assert found["needed"] == np.mean(np.array(corrected(p_values)) < 0.05)


@pytest.mark.parametrize("name", ["random_circuits", "tested_circuits", "subsets"])
def test_a_full_card_needs_controls(name: str):
    with pytest.raises(ConfigError, match=f"{name}: found 0, expected at least 1"):
        evaluate_fully(MODEL, circuit_of(1), PAIRS, config=replace(CONFIG, **{name: 0}))


def test_equivalence_and_independence_are_tests_of_the_scores_of_all_pairs(card: dict):
    own, complement = (by_surgery(circuit)["logit_diff"] for circuit in (CIRCUIT, CIRCUIT.complement()))
    won = wins(own, FULL)
    found = card["equivalence"]
    assert (found["n"], found["share"]) == (len(TEST), won / len(TEST))
    assert (found["p"], found["p_equal"]) == (unequal(won, len(TEST)), equal(won, len(TEST)))
    criterion, p = dependent(complement, FULL, 0)
    assert card["independence"]["hsic"] == pytest.approx(criterion, rel=1e-3)
    assert card["independence"]["p"] == pytest.approx(p, abs=0.06)  # the pairs stand in another order


def test_areas_are_those_of_the_faithfulness_of_cuts(card: dict):
    scores = sorted((float(RANKING.scores[g][place]), str(g), place) for g in UNIT_GRANULARITIES for place in places(g))
    curve = []
    for size in SIZES:
        best = scores[len(scores) - int(size * SPACE.units + 1e-6) :]
        masks = {g: torch.zeros(SPACE.shape(g), dtype=torch.bool) for g in UNIT_GRANULARITIES}
        for _, g, place in best:
            masks[G(g)][place] = True
        curve.append((metric(Circuit(SPACE, masks, Ablation.ZERO, ZEROS)) - EMPTY) / (FULL.mean() - EMPTY))
    found = np.array(list(card["cpr"]["faithfulness"].values()))
    np.testing.assert_allclose(found, curve, rtol=1e-4, atol=1e-5)
    assert card["cpr"]["area"] == pytest.approx(float(cpr(found)))
    assert card["cmd"]["area"] == pytest.approx(float(cmd(found)))
    low, high = card["intervals"]["cpr"]["area"]
    assert low <= card["cpr"]["area"] <= high


def test_areas_of_a_submission_to_mib_are_those_of_its_whole_nodes(tmp_path: Path):
    content = importances(Wholes.of(CIRCUIT, RANKING, None))
    (tmp_path / "importances.json").write_text(json.dumps(content))
    blocks = Ranking(SPACE, SPACE.lifted(RANKING.scores, (G.HEAD, G.MLP_BLOCK)))
    found, expected = (areas(harness(), ranking) for ranking in (read_mib(tmp_path, SPACE).ranking, blocks))
    assert len(set(found["cpr"].values["faithfulness"].values())) > 2
    assert [found[name].values for name in ("cpr", "cmd")] == [expected[name].values for name in ("cpr", "cmd")]


def test_a_ranking_of_some_of_the_units_has_no_areas():
    """It cannot be cut below what it does not rank, so that its order would count at no small size."""
    heads = Ranking(SPACE, {G.HEAD: torch.randn(SPACE.shape(G.HEAD))})
    found = evaluate_fully(MODEL, CIRCUIT, PAIRS, heads, config=CONFIG)
    ranked = SPACE.units - SPACE.layers * SPACE.neurons
    for name in ("cpr", "cmd"):
        assert found[name] == {"area": None}
        assert found["reasons"][name]["area"].startswith(f"only {ranked / SPACE.units:.0%} of the units are ranked")


def test_effects_have_no_measure_where_the_full_model_prefers_nothing(monkeypatch: pytest.MonkeyPatch):
    tied = harness()
    monkeypatch.setitem(tied.few.anchors.full.values, "metric", np.zeros(len(TEST)))
    found = minimality.minimality(tied)
    assert found.values == {"needed": None, "compared": 0}
    assert "metric is 0" in found.reasons["needed"]
    gaps = completeness(tied)
    assert gaps.values["relative_gap"] is None
    assert "metric is 0" in gaps.reasons["relative_gap"]


def places(granularity: Granularity) -> list[tuple[int, int]]:
    layers, n = SPACE.shape(granularity)
    return list(itertools.product(range(layers), range(n)))


def test_what_runs_on_some_of_the_pairs_compares_like_with_like(card: dict):
    """The sections that run many circuits say of 12 of the 30 pairs what they would say if there were no others."""
    fewer = replace(CONFIG, random_pairs=12)
    here = Harness(SUBJECT, CIRCUIT, TEST, fewer)
    prompts = {
        tuple(row[: int(position) + 1].tolist())
        for batch in here.few.batches
        for row, position in zip(batch.clean, batch.positions, strict=True)
    }
    some = tuple(example for example in TEST if example.clean in prompts)
    assert len(some) == len(prompts) == 12 < len(TEST)
    found = evaluate_fully(MODEL, CIRCUIT, PAIRS, RANKING, config=fewer)
    alone = evaluate_fully(MODEL, CIRCUIT, Pairs((), (), some), RANKING, config=CONFIG)
    for name in ("sufficiency", "necessity", "completeness", "minimality"):
        mine, expected, of_all = (leaves(of[name]) for of in (found, alone, card))
        assert mine.keys() == expected.keys()
        for key, value in expected.items():
            close = pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value
            assert "corrected" in key or mine[key] == close, key
        both = [(mine[key], of_all[key]) for key in mine if isinstance(mine[key], float)]
        assert any(one != pytest.approx(other, rel=1e-2) for one, other in both if isinstance(other, float))
    assert found["equivalence"]["n"] == len(TEST)
    quick, few = (
        evaluate(MODEL, CIRCUIT, pairs, config=config)["random"] for pairs, config in ((TEST, fewer), (some, CONFIG))
    )
    assert quick["n"] == 12
    assert quick["kl"] == pytest.approx(few["kl"], rel=1e-4)


def leaves(values: dict, prefix: str = "") -> dict[str, object]:
    """Nested values by path."""
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


# --- the whole --------------------------------------------------------------------------------------------------------------


def test_without_a_ranking_its_sections_are_null_with_the_reason():
    found = evaluate_fully(MODEL, CIRCUIT, PAIRS, config=CONFIG)
    assert found["cpr"] == found["cmd"] == {"area": None}
    assert found["reasons"]["cpr"] == found["reasons"]["cmd"] == {"area": "the run has no ranking"}


def test_the_card_is_json_and_progress_counts_every_circuit(card: dict):
    json.dumps(card, allow_nan=False)
    ticks: list[tuple[str, int, int]] = []
    again = evaluate_fully(MODEL, CIRCUIT, PAIRS, RANKING, config=CONFIG, progress=lambda *tick: ticks.append(tick))
    assert again == card
    total = ticks[0][2]
    assert [done for _, done, _ in ticks] == list(range(total + 1))
    assert {of for _, _, of in ticks} == {total}


def test_what_is_known_is_not_measured_again(card: dict):
    remembered: dict[str, dict] = {}
    evaluate_fully(MODEL, CIRCUIT, PAIRS, RANKING, config=CONFIG, remember=remembered.__setitem__)
    assert json.loads(json.dumps(judged(remembered))) == json.loads(json.dumps(card))
    ticks: list[str] = []
    some = {name: remembered[name] for name in remembered if name not in ("cmd", "equivalence")}
    found = evaluate_fully(
        MODEL, CIRCUIT, PAIRS, RANKING, config=CONFIG, known=some, progress=lambda what, *_: ticks.append(what)
    )
    assert found == card
    assert set(ticks) == {"equivalence", "ranking", "done"}


def test_verdicts_of_cases_whose_answer_is_known():
    """The full model as a circuit, and a random circuit."""
    full = evaluate_fully(MODEL, whole(CIRCUIT), PAIRS, config=CONFIG)
    assert full["equivalence"]["share"] == 0.5
    assert full["equivalence"]["p"] == pytest.approx(1)
    assert full["sufficiency"]["beaten"] == 0  # every random circuit of its shape is the full model
    assert full["completeness"]["gap"] == pytest.approx(0, abs=1e-5)
    assert "not shown that the circuit does better" in full["verdicts"]["sufficiency"]
    random = evaluate_fully(MODEL, matched_random(CIRCUIT, 77), PAIRS, config=CONFIG)
    assert random["sufficiency"]["p_corrected"] > 0.05
    assert "It is not shown that the model needs" in random["verdicts"]["necessity"]
    assert {"sufficiency", "necessity"} <= set(against(random))
    assert "sufficiency" in against(full)
    assert "equivalence" not in against(full)


def test_tests_that_speak_against_a_circuit_are_the_failed_ones():
    good = {"equivalence": 0.4, "independence": 0.2, "sufficiency": 0.001, "necessity": 0.01}
    bad = {"equivalence": 0.01, "independence": 0.001, "sufficiency": 0.4, "necessity": 0.05}
    for name, p in bad.items():
        card = {test: {"p_corrected": value} for test, value in {**good, name: p}.items()}
        assert against({**card, "verdicts": {}}) == [name]
    untested = {test: {"p_corrected": value} for test, value in good.items()} | {"independence": {"p": None}}
    assert against({**untested, "verdicts": {}}) == []
    assert against({"test": {}}) == []


SECTIONS_SAID = {
    "equivalence": {"n": 40, "share": 0.25, "p": 0.5, "p_equal": 0.5},
    "independence": {"p": 0.5},
    "sufficiency": {"p": 0.5, "beaten": 0.75},
    "necessity": {"p": 0.5, "matched": {"hurt_less": 0.5}},
    "minimality": {"needed": 0.125, "compared": 8},
}


@pytest.mark.parametrize(
    ("name", "p_values", "said", "speaks_against"),
    [
        (
            "equivalence",
            {"p": 1e-6},
            "The circuit does not score as the full model does: it scores higher on 25% of 40 pairs.",
            True,
        ),
        (
            "equivalence",
            {"p_equal": 1e-6},
            "The circuit scores as the full model does: it scores higher on 25% of 40 pairs.",
            False,
        ),
        (
            "equivalence",
            {},
            "Whether the circuit scores as the full model does cannot be told: it scores higher on 25% of 40 pairs.",
            False,
        ),
        (
            "independence",
            {"p": 1e-6},
            "What the circuit leaves out still follows the full model's scores: something of the task lies outside.",
            True,
        ),
        ("independence", {}, "No trace of the full model's scores was found in what the circuit leaves out.", False),
        (
            "sufficiency",
            {"p": 1e-6},
            "The circuit does better than most random circuits of its shape (than 75% of those tried).",
            False,
        ),
        (
            "sufficiency",
            {},
            "It is not shown that the circuit does better than most random circuits of its shape (than 75% of those tried).",
            True,
        ),
        (
            "necessity",
            {"p": 1e-6},
            "Without the circuit the model fails more than without most random circuits of its shape "
            "(than 50% of those tried).",
            False,
        ),
        (
            "necessity",
            {},
            "It is not shown that the model needs this circuit more than most random circuits of its shape "
            "(than 50% of those tried).",
            True,
        ),
        ("minimality", {}, "12% of 8 nodes of the circuit matter more than most nodes outside would.", False),
    ],
)
def test_what_is_said_of_a_test_is_what_came_out(name: str, p_values: dict, said: str, *, speaks_against: bool):
    values = {**SECTIONS_SAID, name: {**SECTIONS_SAID[name], **p_values}}
    found = judged({section: {"values": of, "intervals": {}, "reasons": {}} for section, of in values.items()})
    assert found["verdicts"][name] == said
    assert (name in against(found)) == speaks_against


def test_p_values_of_both_tests_of_equivalence_are_corrected_with_the_others(card: dict):
    raw = {
        (name, p): card[name][p]
        for name in ("equivalence", "independence", "sufficiency", "necessity")
        for p in ("p", "p_equal")
        if p in card[name]
    }
    assert len(raw) == 5
    smallest = min(raw, key=raw.__getitem__)
    assert card[smallest[0]][f"{smallest[1]}_corrected"] == pytest.approx(min(1, 5 * raw[smallest]))
    largest = max(raw, key=raw.__getitem__)
    assert card[largest[0]][f"{largest[1]}_corrected"] >= raw[largest]


def test_a_node_outside_has_no_name_twice():
    drawn = null_nodes(harness())
    for granularity, nodes in drawn.items():
        assert len(set(nodes)) == len(nodes)
        assert not any(CIRCUIT.masks[granularity][node.layer, node.index] for node in nodes)
        assert all(isinstance(node, Node) for node in nodes)
