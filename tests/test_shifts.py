"""Pairs told otherwise: what changes, and that nothing else does."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsieve.data.pairs import Pair
from circuitsieve.data.shifts import DISTRACTORS, distracted, misspelt, shifted
from damage import examples

PAIR = Pair(
    "When Mary and John went to the market, John gave a drink to",
    "When Anna and Paul went to the market, Ruth gave a drink to",
    (" Mary",),
    (" John",),
)


def difference(before: str, after: str) -> list[tuple[str, str]]:
    return [(a, b) for a, b in zip(before.split(), after.split(), strict=True) if a != b]


def test_one_common_word_is_misspelt_alike_in_both_prompts():
    changed = [misspelt(PAIR, random.Random(seed)) for seed in range(60)]
    for pair in changed:
        (one,), (other,) = difference(PAIR.clean, pair.clean), difference(PAIR.corrupted, pair.corrupted)
        assert one == other
        right, wrong = one
        assert sorted(right) == sorted(wrong)
        assert (right[0], right[-1]) == (wrong[0], wrong[-1])
        assert (pair.answers, pair.wrong_answers) == (PAIR.answers, PAIR.wrong_answers)
    assert {difference(PAIR.clean, pair.clean)[0][0].strip(",") for pair in changed} == {
        "went",
        "market",
        "gave",
        "drink",
    }


def test_where_nothing_can_be_misspelt_there_is_no_pair():
    assert misspelt(Pair("A big one", "A big two", (" x",), (" y",)), random.Random(0)) is None
    assert misspelt(Pair("Some words here", "Other ones", (" x",), (" y",)), random.Random(0)) is None
    assert misspelt(Pair("noon noon", "noon noon", (" x",), (" y",)), random.Random(0)) is None


def test_a_distraction_stands_before_both_prompts():
    pair = distracted(PAIR, random.Random(0))
    (sentence,) = [s for s in DISTRACTORS if pair.clean.startswith(s)]
    assert (pair.clean, pair.corrupted) == (sentence + PAIR.clean, sentence + PAIR.corrupted)


@pytest.mark.parametrize("shift", ["typos", "distractors"])
def test_the_same_seed_gives_the_same_pairs(shift: str):
    pairs = [PAIR, Pair("x", "y", (" a",), (" b",))]
    assert shifted(pairs, shift, 0) == shifted(pairs, shift, 0)
    assert len({shifted([PAIR], shift, seed)[0].clean for seed in range(20)}) > 1
    assert len(shifted(pairs, shift, 0)) == (1 if shift == "typos" else 2)


@pytest.mark.parametrize("shift", ["typos", "distractors"])
def test_a_conversation_around_the_prompts_stays_as_it_is(shift: str):
    before, behind = "<|start|>system say something<|end|> user: ", " <|end|> assistant: "
    told = replace(PAIR, clean=before + PAIR.clean + behind, corrupted=before + PAIR.corrupted + behind)
    stranger = replace(PAIR, clean="Elsewhere " + PAIR.clean)
    for seed in range(20):
        (changed,) = shifted([told, stranger], shift, seed, (before, behind))
        for text, original in ((changed.clean, PAIR.clean), (changed.corrupted, PAIR.corrupted)):
            assert text.startswith(before)
            assert text.endswith(behind)
            assert text != before + original + behind
            assert text.count("something") == text.count("assistant") == 1
        inner = changed.clean[len(before) : -len(behind)]
        if shift == "typos":
            assert sorted(inner) == sorted(PAIR.clean)
        else:
            assert inner.removesuffix(PAIR.clean) in DISTRACTORS


@examples(200)
@given(st.text(max_size=40), st.text(max_size=40), st.integers(0, 99))
def test_no_text_is_too_odd(clean: str, corrupted: str, seed: int):
    found = misspelt(Pair(clean, corrupted, (" a",), (" b",)), random.Random(seed))
    assert found is None or (sorted(found.clean) == sorted(clean) and found.clean != clean)
