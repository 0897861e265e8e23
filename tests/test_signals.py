"""What a budget looks at while a circuit is searched: against the plain model with edited weights, and against the card."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from by_hand import agreeable, by_hand, plain_logits
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.tokenising import Example, Pairs
from circuitsieve.evaluation.card import evaluate
from circuitsieve.models import ablations
from circuitsieve.models.subject import Subject
from circuitsieve.search.discovery import discover
from circuitsieve.search.problem import Problem
from circuitsieve.vocabulary import Ablation, Granularity
from planted import CONFIG
from planted import PAIRS as PLANTED
from tiny import tiny_gpt2, tiny_pairs

MODEL = tiny_gpt2()
SUBJECT = Subject.of(MODEL)
SPACE = SUBJECT.space
TINY = tiny_pairs(8, 14, 4)


def without_first_block() -> torch.nn.Module:
    """A copy whose first attention adds nothing."""
    model = copy.deepcopy(MODEL)
    model.transformer.h[0].attn.c_proj.weight.data.zero_()
    model.transformer.h[0].attn.c_proj.bias.data.zero_()
    return model


def nothing(_: Example) -> np.ndarray:
    """The model with a residual stream of zeros at the end."""
    with torch.no_grad():
        return MODEL.lm_head(MODEL.transformer.ln_f(torch.zeros(1, SPACE.width)))[0].double().numpy()


def naming(examples: tuple[Example, ...]) -> tuple[Example, ...]:
    return tuple(
        replace(e, candidates=tuple({*e.answers, *e.wrong_answers, 10, *range(i % 2, 2)}))
        for i, e in enumerate(examples)
    )


@pytest.mark.parametrize("candidates", [False, True])
def test_signals_are_those_of_the_plain_model_with_edited_weights(*, candidates: bool) -> None:
    pairs = replace(TINY, train=naming(TINY.train), validation=naming(TINY.validation)) if candidates else TINY
    config = DiscoveryConfig(max_kl=1.0, ablation="zero", batch_size=4, training_dtype="model")
    problem, edited = Problem.of(SUBJECT, pairs, config), without_first_block()
    masks = SPACE.full()
    masks[Granularity.ATTN_BLOCK][0] = False
    found = problem.validation.measure(problem.circuit(masks))
    metric = "prob_diff" if candidates else "logit_diff"
    rows = []
    for example in pairs.validation:
        full, circuit = plain_logits(MODEL, example.clean), plain_logits(edited, example.clean)
        rows.append(
            (by_hand(full, circuit, example), by_hand(full, full, example), by_hand(full, nothing(example), example))
        )
    mean = {
        (i, name): float(np.mean([row[i][name] for row in rows]))
        for i in range(3)
        for name in ("kl", metric, "accuracy")
    }
    lost = mean[1, "accuracy"] - mean[0, "accuracy"]
    assert lost != 0
    assert float(found.kl) == pytest.approx(mean[0, "kl"], rel=1e-4)
    assert float(found.accuracy_drop) == pytest.approx(lost, abs=1e-6)
    assert float(found.gained) == pytest.approx(mean[0, metric] - mean[2, metric], rel=1e-4, abs=1e-6)
    assert float(found.reachable) == pytest.approx(mean[1, metric] - mean[2, metric], rel=1e-4, abs=1e-6)
    assert float(found.size) == pytest.approx(problem.circuit(masks).size)


def doing_the_task(model: GPT2LMHeadModel) -> Pairs:
    """Pairs that the full model gets right, all of them."""
    return Pairs(*(tuple(agreeable(model, split)) for split in (PLANTED.train, PLANTED.validation, PLANTED.test)))


def test_a_faithfulness_that_is_asked_for_is_the_one_of_the_card(planted: GPT2LMHeadModel) -> None:
    pairs = doing_the_task(planted)
    config = CONFIG.replaced(method="nested", max_kl=None, min_faithfulness=0.9, max_accuracy_drop=1.0)
    found = discover(planted, pairs, config)
    card = evaluate(planted, found.circuit, pairs.validation)
    assert found.budget_met
    assert found.circuit.size < 0.5
    assert card["test.faithfulness"] == pytest.approx(float(found.check.signals.faithfulness), rel=1e-3)
    assert abs(1 - card["test.faithfulness"]) <= 0.1 + 1e-4


def test_accuracy_is_guarded_beside_a_budget_that_does_not_bind(planted: GPT2LMHeadModel) -> None:
    pairs, config = doing_the_task(planted), CONFIG.replaced(method="nested", max_kl=1e3)
    guarded, loose = (discover(planted, pairs, config.replaced(max_accuracy_drop=drop)) for drop in (0.05, 1.0))
    card, other = (evaluate(planted, found.circuit, pairs.validation) for found in (guarded, loose))
    assert card["full.accuracy"] - card["test.accuracy"] <= 0.05 + 1e-6
    assert guarded.circuit.size > loose.circuit.size
    assert other["full.accuracy"] - other["test.accuracy"] > 0.05


# --- what ablated units take ----------------------------------------------------------------------------------------------


def test_resampled_prompts_are_clean_ones_of_other_pairs_of_the_same_length() -> None:
    examples = [*tiny_pairs(1, 1, 20).test, replace(TINY.test[0], clean=(3,) * 25, corrupted=(4,) * 25)]
    donated = ablations.with_counterfactuals(examples, Ablation.RESAMPLE, seed=1)
    for example, own in zip(donated[:-1], examples[:-1], strict=True):
        assert example.corrupted in {other.clean for other in examples if other is not own}
        assert len(example.corrupted) == len(own.clean)
        assert replace(example, corrupted=own.corrupted) == own
    assert donated[-1] == examples[-1]  # no other is as long
    many = [ablations.with_counterfactuals(examples, Ablation.RESAMPLE, seed)[:-1] for seed in range(200)]
    for place, own in enumerate(examples[:-1]):
        drawn = {each[place].corrupted for each in many}
        assert drawn == {
            other.clean for other in examples[:-1] if other is not own and len(other.clean) == len(own.clean)
        }
    assert ablations.with_counterfactuals(examples, Ablation.RESAMPLE, seed=1) == donated
    assert ablations.with_counterfactuals(examples, Ablation.RESAMPLE, seed=2) != donated
    assert ablations.with_counterfactuals(examples, Ablation.CORRUPTED, seed=1) == examples


@pytest.mark.parametrize("ablation", ["resample", "corrupted"])
def test_a_search_runs_the_prompts_of_its_ablation(ablation: str) -> None:
    """The circuit that keeps nothing is the plain model on them."""
    every = tuple(map(str, Granularity))
    config = DiscoveryConfig(
        max_kl=1.0, ablation=ablation, granularities=every, batch_size=4, training_dtype="model", seed=3
    )
    problem = Problem.of(SUBJECT, TINY, config)
    found = float(problem.validation.measure(problem.circuit(SPACE.full(False))).kl)
    donated = ablations.with_counterfactuals(TINY.validation, Ablation(ablation), seed=3)
    by_prompt = [
        by_hand(plain_logits(MODEL, e.clean), plain_logits(MODEL, d.corrupted), e)["kl"]
        for e, d in zip(TINY.validation, donated, strict=True)
    ]
    assert found == pytest.approx(float(np.mean(by_prompt)), rel=1e-4)
    assert (donated == list(TINY.validation)) == (ablation == "corrupted")


@pytest.mark.parametrize("ablation", ["mean", "mean_positional", "optimal"])
def test_constants_come_from_training_pairs_alone(ablation: str) -> None:
    """By a hook on the output projection of the first layer, over single prompts without padding."""
    config = DiscoveryConfig(max_kl=1.0, ablation=ablation, batch_size=4, training_dtype="model")
    problem = Problem.of(SUBJECT, TINY, config)
    assert problem.constants is not None
    site = next(site for site in problem.constants if site.key == "attn_read-0")

    def mean_over(examples: tuple[Example, ...]) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        hook = MODEL.transformer.h[0].attn.c_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
        for example in examples:
            plain_logits(MODEL, example.corrupted)
        hook.remove()
        return torch.cat([rows[1:2] if ablation == "mean_positional" else rows for rows in seen]).mean(0)

    found = problem.constants[site][1] if ablation == "mean_positional" else problem.constants[site]
    torch.testing.assert_close(found, mean_over(TINY.train), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mean_over(TINY.validation), mean_over(TINY.train), rtol=1e-3, atol=1e-3)
