"""Corrupted prompts align token by token: checked with the encoder that discards those that do not."""

import pytest

from circuitsieve.data.corruption import replace_from_list, replace_from_rows, swap
from circuitsieve.data.pairs import Pair
from circuitsieve.data.tokenising import Encoder
from circuitsieve.errors import DataError
from tiny import piece_tokenizer, word_tokenizer


def test_names_are_swapped_everywhere_and_at_once():
    text = "When Mary and John went to the store, John gave a drink to"
    assert swap(text, "Mary", "John") == "When John and Mary went to the store, Mary gave a drink to"
    assert swap(swap(text, "Mary", "John"), "John", "Mary") == text
    assert swap("Johnson met John and Ann", "John", "Ann") == "Johnson met Ann and John"
    for spans in (("Anna", "Anna Smith"), ("Anna Smith", "Anna")):
        assert swap("Anna Smith met Anna", *spans) == "Anna met Anna Smith"
    with pytest.raises(DataError, match=r"found no 'Paul' in it, expected it as a whole word"):
        swap(text, "Mary", "Paul")


def test_a_choice_with_as_many_tokens_is_taken():
    """`undo` and `unsay` are two pieces each, the others one."""
    tokenizer = piece_tokenizer()
    for seed in range(5):
        assert (
            replace_from_list("go undo then", "undo", ["do", "say", "unsay", "undo"], tokenizer, seed=seed)
            == "go unsay then"
        )
        assert replace_from_list("go do then", "do", ["undo", "say"], tokenizer, seed=seed) == "go say then"
    with pytest.raises(DataError, match="found none of 2 choices that takes as many tokens as 'undo', expected one"):
        replace_from_list("go undo then", "undo", ["do", "say"], tokenizer)


def test_spans_come_from_other_rows():
    tokenizer = word_tokenizer()
    spans = ["Mary", "John", "Anna", "Paul"]
    texts = [f"When {name} went to the store" for name in spans]
    corrupted = replace_from_rows(texts, spans, tokenizer)
    assert corrupted == replace_from_rows(texts, spans, tokenizer)
    for text, changed, span in zip(texts, corrupted, spans, strict=True):
        assert changed != text
        assert changed in texts
        Encoder(tokenizer)(Pair(text, changed, (" and",), (" the",)))  # raises where they do not align
        assert span not in changed
    with pytest.raises(DataError, match="found 1 spans for 2 texts, expected one each"):
        replace_from_rows(texts[:2], spans[:1], tokenizer)
