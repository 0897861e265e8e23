"""What the full model makes of the pairs, against the plain model on one unpadded prompt at a time."""

from dataclasses import replace

import pytest
import torch

from circuitsieve.data.pairs import SPLITS
from circuitsieve.data.tokenising import Example, Pairs
from circuitsieve.errors import DataError
from circuitsieve.runs.provenance import describe_pairs
from circuitsieve.search.screening import Screening, check_fit, keep_correct, screen
from tiny import WORDS, tiny_gpt2, tiny_pairs

MODEL = tiny_gpt2()
PAIRS = tiny_pairs(20, 20, 20)


def right(example: Example, prompt: tuple[int, ...] | None = None) -> bool:
    with torch.no_grad():
        logits = MODEL(torch.tensor([prompt or example.clean])).logits[0, -1]
    return bool(logits[list(example.answers)].max() > logits[list(example.wrong_answers)].max())


def wrong_way_round(example: Example) -> Example:
    return replace(example, answers=example.wrong_answers, wrong_answers=example.answers)


def test_screening_measures_clean_and_corrupted_prompts():
    found = screen(MODEL, PAIRS)
    assert 0 < found.full < 1
    assert found.full == sum(map(right, PAIRS.validation)) / 20
    assert found.empty == sum(right(e, e.corrupted) for e in PAIRS.validation) / 20


@pytest.mark.parametrize(("full", "empty", "hopeless"), [(0.9, 0.5, False), (0.6, 0.5, True), (0.2, 0.5, True)])
def test_hopeless_is_hardly_better_than_without_the_prompt(full, empty, hopeless):
    assert Screening(full, empty).is_hopeless is hopeless


def test_only_what_the_model_gets_right_is_kept_and_the_rest_is_counted():
    kept = keep_correct(MODEL, PAIRS)
    wrong = [(e.pair, split) for split in SPLITS for e in PAIRS.split(split) if not right(e)]
    for split in SPLITS:
        assert kept.split(split) == tuple(filter(right, PAIRS.split(split)))
    assert [(dropped.pair, dropped.split) for dropped in kept.dropped] == wrong
    assert kept.reasons() == {"the full model gets it wrong": len(wrong)}
    assert describe_pairs(kept)["dropped"] == {"the full model gets it wrong": len(wrong)}


def test_model_that_gets_nothing_right_is_an_error():
    hopeless = tuple(wrong_way_round(e) if right(e) else e for e in PAIRS.validation)
    with pytest.raises(DataError, match="found none of 20 in the validation split that the full model gets right"):
        keep_correct(MODEL, replace(PAIRS, validation=hopeless))


def test_prompt_longer_than_the_context_is_refused():
    fitting = replace(PAIRS.test[0], clean=(3,) * 32, corrupted=(4,) * 32)
    check_fit(MODEL, [*PAIRS.test, fitting])
    with pytest.raises(
        DataError, match=r"^pair '.{10,60}': found a prompt of 33 tokens, expected at most 32, the model's"
    ):
        check_fit(MODEL, [*PAIRS.test, replace(fitting, clean=(3,) * 33)])


@pytest.mark.parametrize("column", ["clean", "corrupted", "answers", "wrong_answers", "candidates", "cutoff"])
def test_token_outside_the_vocabulary_is_refused(column):
    last = len(WORDS) - 1
    check_fit(MODEL, [replace(PAIRS.test[0], **{column: (3, last)})])
    with pytest.raises(
        DataError, match=f"^tokenizer: found the token id {last + 1}, expected ids below {last + 1}, the"
    ):
        check_fit(MODEL, [replace(PAIRS.test[0], **{column: (3, last + 1)})])


def test_data_hash_sees_texts_splits_and_reasons():
    def digest(pairs: Pairs) -> str:
        return str(describe_pairs(pairs)["hash"])

    *others, last = PAIRS.train
    changed = replace(last, pair=replace(last.pair, answers=(" Carl",)))
    hashes = {
        digest(PAIRS),
        digest(replace(PAIRS, train=(*others, changed))),
        digest(replace(PAIRS, train=tuple(others), validation=(last, *PAIRS.validation))),
        digest(keep_correct(MODEL, PAIRS)),
    }
    assert len(hashes) == 4
    assert digest(tiny_pairs(20, 20, 20)) == digest(PAIRS)
    assert describe_pairs(PAIRS)["usable"] == dict.fromkeys(SPLITS, 20)
