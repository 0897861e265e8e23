"""Encoding, aligning, dropping and batching. Expected tokens are read off the texts: words are tokens."""

import random
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from jaxtyping import TypeCheckError
from transformers import PreTrainedTokenizerBase

from circuitsieve.data.batching import batches, collate, of_all_lengths, spread
from circuitsieve.data.pairs import SPLITS, Pair, TextSplits
from circuitsieve.data.tokenising import Encoder, Example, Unusable, encode, encode_all
from circuitsieve.errors import DataError
from models import random_examples
from tiny import WORDS, merging_tokenizer, name_pairs, piece_tokenizer, tiny_pairs, word_tokenizer

PROMPT = Pair("When Mary and John went to", "When Anna and Paul went to", (" Mary",), (" John",))


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS.index(word) for word in text.split())


def reason(pair: Pair, tokenizer=None) -> str:
    with pytest.raises(Unusable) as caught:
        Encoder(tokenizer or word_tokenizer())(pair)
    return str(caught.value)


# --- encoding -----------------------------------------------------------------------------------------------------------


def test_prompts_and_answers_become_the_tokens_of_their_words():
    example = Encoder(word_tokenizer())(
        replace(PROMPT, answers=(" Mary and", " Ruth"), candidates=(" Ruth", " John", " Mary"))
    )
    assert example.clean == ids("When Mary and John went to")
    assert example.corrupted == ids("When Anna and Paul went to")
    assert example.answers == ids("Mary Ruth")
    assert example.wrong_answers == ids("John")
    assert example.candidates == ids("Ruth John Mary")


def test_answers_with_the_same_first_token_count_once():
    example = Encoder(word_tokenizer())(replace(PROMPT, answers=(" Mary and", " Mary", " Mary to")))
    assert example.answers == ids("Mary")


def test_answer_is_the_token_after_the_prompt_and_not_a_bos():
    tokenizer = word_tokenizer(bos=True)
    assert tokenizer(" Mary")["input_ids"] == list(ids("<s> Mary")), "tokenised alone, the answer would begin with BOS"
    example = Encoder(tokenizer)(PROMPT)
    assert example.clean == ids("<s> When Mary and John went to")
    assert example.answers == ids("Mary")


def test_pair_whose_prompt_merges_with_its_answer_is_dropped():
    pair = Pair("a t", "e t", ("h",), ("e",))
    assert reason(pair, merging_tokenizer()) == "the prompt's tokens are no prefix of those of prompt + answer"
    harmless = Encoder(merging_tokenizer())(replace(pair, answers=("a",)))
    assert (harmless.answers, harmless.wrong_answers) == ((1,), (4,))


def test_answer_without_tokens_of_its_own_is_dropped():
    assert "no prefix" in reason(replace(PROMPT, answers=(" ",)))


@pytest.mark.parametrize("corrupted", ["undo go", "go go then", "go", "go undo please", "undo undo"])
def test_prompts_that_do_not_align_word_by_word_are_dropped(corrupted):
    """`go undo` has the tokens `go un ##do`: 1 + 2. `undo go` has as many in all, but 2 + 1."""
    pair = Pair("go undo", corrupted, (" say",), (" do",))
    assert reason(pair, piece_tokenizer()) == "clean and corrupted prompts do not align word by word in tokens"


def test_prompts_that_align_word_by_word_are_kept():
    example = Encoder(piece_tokenizer())(Pair("go undo", "do  unsay", (" say",), (" do",)))
    assert example.clean == (4, 1, 2)
    assert example.corrupted == (5, 1, 3)


def test_white_space_after_the_last_word_must_align_too():
    """Only some tokenizers see it: here a space is a token, so the prompts differ in length, not in words."""
    pair = Pair("a e", "e a ", ("a",), ("e",))
    assert "do not align" in reason(pair, merging_tokenizer())
    assert len(Encoder(merging_tokenizer())(replace(pair, clean="a e ")).clean) == 4


def test_prompts_that_are_the_same_are_dropped():
    assert reason(replace(PROMPT, corrupted=PROMPT.clean)) == "clean and corrupted prompts are the same in tokens"


def test_answers_that_share_their_first_token_are_dropped():
    pair = Pair("go", "do", (" undo",), (" unsay",))
    assert reason(pair, piece_tokenizer()) == "an answer and a wrong answer share their first token"


OUTSIDE = "an answer, a wrong answer or a number of the cutoff is not among the candidates"


@pytest.mark.parametrize("candidates", [(" Mary",), (" John", " Ruth")])
def test_candidates_must_hold_answers_and_wrong_answers(candidates):
    assert reason(replace(PROMPT, candidates=candidates)) == OUTSIDE


def test_candidates_must_hold_the_border():
    pair = replace(PROMPT, candidates=(" Mary", " John"), cutoff=(" Mary", " John"))
    assert Encoder(word_tokenizer())(pair).cutoff == tuple(word_tokenizer().convert_tokens_to_ids(["Mary", "John"]))
    assert reason(replace(pair, cutoff=(" Mary", " Ruth"))) == OUTSIDE
    with pytest.raises(DataError, match=r"^pair: cutoff: found 1 texts, expected two, just above and just below"):
        replace(pair, cutoff=(" Mary",))


@pytest.mark.parametrize("name", ["answers", "wrong_answers", "candidates", "cutoff"])
def test_a_text_is_not_taken_for_its_letters(name: str):
    expected = rf"^pair: {name}: found the text 'Mary', expected a tuple of texts, \('Mary',\)"
    with pytest.raises((DataError, TypeCheckError)) as refused:  # the latter where types are checked at every call
        replace(PROMPT, **{name: "Mary"})
    assert isinstance(refused.value, TypeCheckError) or re.search(expected, str(refused.value))


@pytest.mark.parametrize("missing", ["answers", "wrong_answers"])
def test_pair_needs_answers_and_wrong_answers(missing):
    assert reason(replace(PROMPT, **{missing: ()})) == "there is no answer or no wrong answer"


def test_prompt_without_tokens_is_dropped():
    assert reason(replace(PROMPT, clean=" ", corrupted=" ")) == "the clean prompt has no tokens"


def test_tokenizer_without_offsets_is_refused():
    class Slow(PreTrainedTokenizerBase):
        is_fast = False

    with pytest.raises(DataError, match="tokenizer: found Slow, expected a fast one"):
        Encoder(Slow())


# --- dropping -----------------------------------------------------------------------------------------------------------


def test_dropped_pairs_are_counted_by_reason_and_split():
    usable = name_pairs(4)
    shared = replace(name_pairs(5)[4], wrong_answers=name_pairs(5)[4].answers)
    also_shared = replace(name_pairs(6)[5], wrong_answers=name_pairs(6)[5].answers)
    crooked = replace(name_pairs(7)[6], corrupted="When Anna and Paul went")
    pairs = encode(TextSplits((usable[0], shared, crooked), (also_shared, usable[1]), usable[2:]), word_tokenizer())
    assert [len(pairs.train), len(pairs.validation), len(pairs.test)] == [1, 1, 2]
    assert pairs.reasons() == Counter(
        {
            "an answer and a wrong answer share their first token": 2,
            "clean and corrupted prompts do not align word by word in tokens": 1,
        }
    )
    assert [(dropped.pair, dropped.split) for dropped in pairs.dropped] == [
        (shared, "train"),
        (crooked, "train"),
        (also_shared, "validation"),
    ]


def test_prompt_of_a_later_split_is_dropped_from_the_earlier_ones():
    first, second, third, fourth, fifth = name_pairs(5)
    other_answer = replace(first, answers=first.wrong_answers, wrong_answers=first.answers)
    splits = TextSplits((first, second, third, fifth), (third, second, fourth), (other_answer, third))
    pairs = encode(splits, word_tokenizer())
    kept = [[example.pair for example in pairs.split(split)] for split in SPLITS]
    assert kept == [[fifth], [second, fourth], [other_answer, third]]
    reason = "its clean prompt stands in the {} split too".format
    assert {(dropped.pair, dropped.split, dropped.reason) for dropped in pairs.dropped} == {
        (first, "train", reason("test")),
        (second, "train", reason("validation")),
        (third, "train", reason("test")),
        (third, "validation", reason("test")),
    }


def test_merging_prompts_are_one_reason_whatever_the_answer():
    pairs = [Pair("a t", "e t", (f"h{letter}",), ("e",)) for letter in "aet"] + [Pair("a", "e", ("a",), ("e",))]
    _, dropped = encode_all(pairs, merging_tokenizer())
    assert {drop.reason for drop in dropped} == {"the prompt's tokens are no prefix of those of prompt + answer"}


def test_error_shows_three_examples_when_no_pair_is_usable():
    broken = [
        replace(PROMPT, clean=f"{name} went to", corrupted="went to") for name in ("Mary", "John", "Anna", "Paul")
    ]
    with pytest.raises(DataError) as caught:
        encode_all(broken, word_tokenizer(), "validation")
    why = "clean and corrupted prompts do not align word by word in tokens"
    assert str(caught.value) == (
        "pairs: found no usable one among 4 in the validation split, expected at least one; for example "
        f"'Mary went to': {why}; 'John went to': {why}; 'Anna went to': {why}"
    )


def test_empty_split_names_the_way_out():
    with pytest.raises(DataError, match=r"no usable one among 0 in the test split.* give more pairs, or a folder"):
        encode(TextSplits(name_pairs(1), name_pairs(2)[1:], ()), word_tokenizer())


def test_candidates_are_named_by_all_pairs_or_by_none():
    named = replace(PROMPT, candidates=(" Mary", " John"))
    with pytest.raises(DataError, match="found candidates in 1 of 3 pairs, expected them in all or in none"):
        encode_all((named, PROMPT, PROMPT), word_tokenizer())
    without, other = name_pairs(2)
    also_named = replace(other, candidates=other.answers + other.wrong_answers)
    with pytest.raises(DataError, match="found candidates in 2 of 3 pairs"):
        encode(TextSplits((named,), (without,), (also_named,)), word_tokenizer())


# --- batching -----------------------------------------------------------------------------------------------------------


def examples() -> tuple[Example, ...]:
    found = tiny_pairs(train=23).train
    assert len({len(example.clean) for example in found}) == 2, "two lengths are needed for a test of padding"
    return found


def rows(batch) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """The unpadded prompts and the answers of a batch, by the positions that it names."""
    return [
        (
            tuple(batch.clean[i, : batch.positions[i] + 1].tolist()),
            tuple(batch.corrupted[i, : batch.positions[i] + 1].tolist()),
            tuple(batch.targets.answers[i].tolist()),
        )
        for i in range(len(batch))
    ]


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_every_example_is_in_one_batch(batch_size):
    found = examples()
    made = batches(found, batch_size, seed=3)
    assert sorted(row for batch in made for row in rows(batch)) == sorted(
        (e.clean, e.corrupted, e.answers) for e in found
    )
    assert [len(batch) for batch in made[:-1]] == [batch_size] * (len(made) - 1)


def test_padding_is_on_the_right_and_positions_are_those_of_the_last_word():
    short, long = sorted(examples(), key=lambda example: len(example.clean))[:: len(examples()) - 1]
    batch = collate([long, short], "cpu")
    assert batch.clean.tolist() == [list(long.clean), [*short.clean, 0]]
    assert batch.positions.tolist() == [len(long.clean) - 1, len(short.clean) - 1]
    assert [WORDS[batch.clean[i, batch.positions[i]]] for i in range(2)] == ["the", "to"]
    assert batch.real.tolist() == [[True] * len(long.clean), [True] * len(short.clean) + [False]]


def test_batches_hold_examples_of_similar_length():
    lengths = [len(row[0]) for batch in batches(examples(), 5) for row in rows(batch)]
    assert lengths == sorted(lengths)


def test_uneven_numbers_of_answers_are_padded_with_minus_one():
    pair = replace(PROMPT, candidates=(" Mary", " John"))
    more = replace(PROMPT, answers=(" Mary", " Ruth"), candidates=(" Ruth", " Mary", " John"))
    batch = collate(encode_all((pair, more), word_tokenizer())[0], "cpu")
    assert batch.targets.answers.tolist() == [[*ids("Mary"), -1], [*ids("Mary Ruth")]]
    assert batch.targets.candidates.tolist() == [[*ids("Mary John"), -1], [*ids("Ruth Mary John")]]
    assert collate(examples(), "cpu").targets.candidates is None


def test_batches_follow_the_seed_alone():
    def made(seed: int) -> list:
        return [rows(batch) for batch in batches(examples(), 4, seed=seed)]

    random.seed(1)
    first = made(seed=7)
    random.seed(2)
    assert made(seed=7) == first
    assert made(seed=8) != first


def test_global_random_state_is_untouched(monkeypatch):
    """Forbidden, not compared: the run-time type checks of the tests draw from Python's global generator themselves."""

    def forbidden(*_: object) -> None:
        raise AssertionError("the global random state was used")

    for name in (
        "random",
        "seed",
        "choice",
        "choices",
        "sample",
        "shuffle",
        "randrange",
        "randint",
        "uniform",
        "gauss",
    ):
        monkeypatch.setattr(random, name, forbidden)
    before = torch.get_rng_state()
    encode(TextSplits(*(name_pairs(5, seed) for seed in range(3))), word_tokenizer())
    batches(examples(), 4, seed=7)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("wanted", [0, 1, 2, 3, 7, 8, 9, 40])
def test_looks_see_prompts_of_all_lengths_alike(wanted: int) -> None:
    """The same number of batches is taken from either half, up to one, and none comes twice."""
    made = batches(random_examples(range(4, 20)), 2)
    taken = spread(made, wanted)
    assert len(taken) == len(set(taken)) == min(8, max(1, wanted))
    assert taken == sorted(taken, key=lambda batch: batch.clean.shape[1])
    halves = [sum(batch in half for batch in taken) for half in (made[:4], made[4:])]
    assert 0 <= halves[0] - halves[1] <= 1


@pytest.mark.parametrize("wanted", [1, 7, 40, 60, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_some_examples_are_of_every_length_as_often_as_all(wanted: int, seed: int):
    lengths = [*[5] * 30, *[6] * 10, *[9] * 20]
    examples = random_examples(random.Random(seed).sample(lengths, len(lengths)))
    some = of_all_lengths(examples, wanted, seed)
    assert len(some) == len({example.clean for example in some}) == min(wanted, 60)
    assert set(some) <= set(examples)
    found = Counter(len(example.clean) for example in some)
    for length, count in Counter(lengths).items():
        assert abs(found[length] - count * len(some) / 60) <= 1
    assert some == of_all_lengths(examples, wanted, seed)
    assert wanted > 50 or some != of_all_lengths(examples, wanted, seed + 1)
