"""The circuit under other baselines, on other inputs and beside whole heads: each by the quick card of the same thing."""

from dataclasses import replace

import pytest
import torch

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.data.batching import batches
from circuitsieve.data.chat import in_chat_form
from circuitsieve.data.loaders import TaskOptions, load_task
from circuitsieve.data.pairs import TextSplits
from circuitsieve.data.shifts import shifted
from circuitsieve.data.tokenising import Pairs, encode_all
from circuitsieve.evaluation.alternatives import head_level, other_ablations
from circuitsieve.evaluation.card import evaluate
from circuitsieve.evaluation.harness import EvaluationConfig, Harness
from circuitsieve.evaluation.robustness import Origin, robustness, robustness_runs, transfer
from circuitsieve.models.ablations import constants
from circuitsieve.models.loading import load_model
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Ablation
from tiny import tiny_gpt2, tiny_pairs, word_tokenizer

MODEL = tiny_gpt2()
SUBJECT = Subject.of(MODEL)
SPACE = SUBJECT.space
PAIRS = tiny_pairs()
CONFIG = EvaluationConfig(random_circuits=0, batch_size=4)


def circuit_of(seed: int, space=SPACE) -> Circuit:
    generator = torch.Generator().manual_seed(seed)
    return Circuit(space, {g: torch.rand(space.shape(g), generator=generator) < 0.6 for g in UNIT_GRANULARITIES})


CIRCUIT = circuit_of(0)


def harness() -> Harness:
    return Harness(SUBJECT, CIRCUIT, PAIRS.test, CONFIG)


def test_the_same_nodes_under_other_baselines():
    with frozen(MODEL):
        found = other_ablations(harness(), PAIRS.test, PAIRS.train).values
    means = constants(SUBJECT, batches(PAIRS.train, 3), Ablation.MEAN)
    for ablation, values in ((Ablation.MEAN, means), (Ablation.RESAMPLE, None)):
        card = evaluate(MODEL, Circuit(SPACE, CIRCUIT.masks, ablation, values), PAIRS.test, config=CONFIG)
        section = found[str(ablation)]
        known = {name: value for name, value in card["test"].items() if value is not None}
        assert {name: section[name] for name in known} == pytest.approx(known, rel=1e-4)
        assert card["test"].keys() < section.keys()
        assert section["empty"]["kl"] == pytest.approx(card["empty.kl"], rel=1e-4)


def test_the_own_ablation_and_a_mean_of_nothing_are_null_with_the_reason():
    with frozen(MODEL):
        found = other_ablations(harness(), PAIRS.test, ())
    assert found.values["mean"] is None
    assert found.reasons["mean"] == "a mean needs training pairs"
    resampled = Harness(SUBJECT, replace_ablation(CIRCUIT), PAIRS.test, CONFIG)
    with frozen(MODEL):
        found = other_ablations(resampled, PAIRS.test, PAIRS.train)
    assert found.values["resample"] is None
    assert found.reasons == {"resample": "the circuit was found under this ablation"}


def replace_ablation(circuit: Circuit) -> Circuit:
    return replace(circuit, ablation=Ablation.RESAMPLE)


def test_whole_heads_and_mlps_with_at_most_as_many_parameters():
    with frozen(MODEL):
        found = head_level(harness(), PAIRS).values
    assert found["parameters"] <= CIRCUIT.share("parameters")
    whole = [(1, found["heads"]), (SPACE.neurons / SPACE.head_dim, found["mlp_blocks"])]
    assert found["size"] == pytest.approx(sum(n * each for each, n in whole) * SPACE.head_dim / SPACE.units)
    assert found["kl"] > 0


@pytest.mark.parametrize("pairs", [Pairs((), (), PAIRS.test), PAIRS])
def test_no_head_level_circuit_without_pairs_or_of_the_whole_model(pairs: Pairs):
    circuit = CIRCUIT if not pairs.train else Circuit(SPACE, SPACE.full())
    with frozen(MODEL):
        found = head_level(Harness(SUBJECT, circuit, PAIRS.test, CONFIG), pairs)
    assert found.values == {"kl": None}
    assert "needs training pairs" in found.reasons["kl"]


def test_shifted_pairs_are_measured_as_any_others():
    origin = Origin(word_tokenizer())
    with frozen(MODEL):
        found = robustness(harness(), PAIRS.test, origin).values
    assert len(found) == robustness_runs(origin) == 3
    plain = evaluate(MODEL, CIRCUIT, PAIRS.test, config=CONFIG)
    assert found["unchanged"]["kl"] == pytest.approx(plain["test.kl"])
    assert found["unchanged"]["gap"] == dict.fromkeys(("accuracy", "logit_diff", "prob_diff"), 0)
    for name in ("typos", "distractors"):
        examples, _ = encode_all(shifted([example.pair for example in PAIRS.test], name, 0), word_tokenizer())
        card = evaluate(MODEL, CIRCUIT, examples, config=CONFIG)
        assert found[name]["kl"] == pytest.approx(card["test.kl"])
        assert found[name]["full"]["logit_diff"] == pytest.approx(card["full.logit_diff"])
        lost = card["full.logit_diff"] - card["test.logit_diff"]
        before = plain["full.logit_diff"] - plain["test.logit_diff"]
        assert found[name]["gap"]["logit_diff"] == pytest.approx(lost - before, abs=1e-6)
        assert found[name]["kl_gap"] == pytest.approx(card["test.kl"] - plain["test.kl"], abs=1e-6)


def test_prompts_in_chat_form_are_changed_inside_of_the_conversation():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}When {{ message['content'] }} , {% endfor %}gave "
    texts = [example.pair for example in PAIRS.test]
    told = in_chat_form(TextSplits((), (), tuple(texts)), tokenizer, "some {prompt} later").test
    examples, _ = encode_all(told, tokenizer)
    here = Harness(SUBJECT, CIRCUIT, examples, CONFIG)
    with frozen(MODEL):
        found = robustness(here, examples, Origin(tokenizer, options=TaskOptions(chat="some {prompt} later"))).values
    for name in ("typos", "distractors"):
        changed = in_chat_form(
            TextSplits((), (), tuple(shifted(texts, name, 0))), tokenizer, "some {prompt} later"
        ).test
        expected = evaluate(MODEL, CIRCUIT, encode_all(changed, tokenizer)[0], config=CONFIG)["test.kl"]
        assert found[name]["kl"] == pytest.approx(expected)


def test_a_circuit_found_on_the_other_sentences_has_none_to_be_told_otherwise():
    origin = Origin(word_tokenizer(), "ioi", TaskOptions(options={"corruption": "flip"}))
    with frozen(MODEL):
        found = robustness(harness(), PAIRS.test, origin)
        elsewhere = robustness(harness(), PAIRS.test, replace(origin, others_judge=True))
    assert found.values["corruption"] is None
    assert found.reasons["corruption"] == "the circuit was found so: corruption=flip"
    assert set(elsewhere.values) == {"unchanged", "typos", "distractors"}


def test_without_a_tokenizer_other_inputs_cannot_be_made():
    assert robustness(harness(), PAIRS.test, None).values == {"unchanged": None}
    assert set(transfer(harness(), None).values.values()) == {None}


@pytest.mark.slow
def test_other_tasks_and_other_sentences_on_the_demo_model():
    demo = load_model("demo")
    circuit = circuit_of(1, Subject.of(demo.model).space)
    test = load_task("ioi", demo.tokenizer, TaskOptions(train=1, validation=1, test=8)).test
    here = Harness(Subject.of(demo.model), circuit, test, CONFIG)
    origin = Origin(demo.tokenizer, "ioi")
    with frozen(demo.model):
        told, others = robustness(here, test, origin).values, transfer(here, origin)
    assert set(told) == {"unchanged", "typos", "distractors", "templates", "corruption"}
    assert set(others.values) == {"greater_than", "gender_pronoun", "docstring", "agreement", "capitals"}
    assert {name for name, value in others.values.items() if value is None} == set(others.reasons)
    years = load_task("greater_than", demo.tokenizer, TaskOptions(train=16, validation=16, test=48)).test
    card = evaluate(demo.model, circuit, years, config=CONFIG)
    assert others.values["greater_than"]["prob_diff"] == pytest.approx(card["test.prob_diff"], abs=1e-5)
    assert others.values["greater_than"]["full"]["accuracy"] == card["full.accuracy"]
    flipped = load_task(
        "ioi", demo.tokenizer, TaskOptions(train=16, validation=16, test=48, options={"corruption": "flip"})
    ).test
    assert told["corruption"]["kl"] == pytest.approx(
        evaluate(demo.model, circuit, flipped, config=CONFIG)["test.kl"], rel=1e-4
    )
