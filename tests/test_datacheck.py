"""What a check of pairs says is what a search will find: by encoding them as a search does."""

from dataclasses import replace

import pytest

from circuitsieve.data.pairs import SPLITS, TextSplits
from circuitsieve.data.tokenising import encode
from circuitsieve.errors import DataError
from circuitsieve.models.loading import LoadedModel
from circuitsieve.workflow.datacheck import check_data
from tiny import name_pairs, tiny_gpt2, word_tokenizer

LOADED = LoadedModel(tiny_gpt2(), word_tokenizer())
PAIRS = name_pairs(12)


def test_pairs_that_a_search_drops_are_dropped_for_the_same_reasons():
    unaligned = replace(PAIRS[0], corrupted=PAIRS[0].corrupted + " and more")
    splits = TextSplits((*PAIRS[:5], PAIRS[8], unaligned), (*PAIRS[5:8], PAIRS[9]), PAIRS[8:])
    found, expected = check_data(LOADED, splits), encode(splits, LOADED.tokenizer)
    assert (
        found.usable
        == {split: len(expected.split(split)) for split in SPLITS}
        == {"train": 5, "validation": 3, "test": 4}
    )
    assert found.reasons == dict(expected.reasons())
    assert found.reasons["its clean prompt stands in the test split too"] == 2
    assert len(found.pairs) == sum(len(getattr(splits, split)) for split in SPLITS)
    assert all(checked.words for checked in found.pairs)


def test_what_a_search_refuses_is_refused():
    some = replace(PAIRS[0], candidates=(*PAIRS[0].answers, *PAIRS[0].wrong_answers))
    splits = TextSplits((some, *PAIRS[1:5]), PAIRS[5:8], PAIRS[8:])
    for look in (lambda: check_data(LOADED, splits), lambda: encode(splits, LOADED.tokenizer)):
        with pytest.raises(DataError, match=r"found candidates in 1 of \d+ pairs, expected them in all or in none"):
            look()
