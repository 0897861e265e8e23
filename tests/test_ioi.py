"""The sentences of indirect object identification, read back with regular expressions, not with the task's own code."""

import random
import re
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from circuitsieve.data.pairs import SPLITS, Pair, TaskRequest, TextSplits
from circuitsieve.data.tasks import ioi, making
from circuitsieve.data.tasks.ioi import NAMES, OBJECTS, PLACES, TASK, TEMPLATES
from circuitsieve.errors import ConfigError, DataError


def one_token(word: str, /) -> tuple[str, ...]:
    assert re.fullmatch(r" [A-Z][a-z]+", word), "names are counted with their leading space"
    return (word,)


def of_length(length: Callable[[str], int]) -> Callable[[str], tuple[str, ...]]:
    """A tokenizer that cuts a word into so many pieces."""
    return lambda word: ("?",) * length(word)


def build(seed: int = 0, train: int = 300, validation: int = 100, test: int = 100, **options: str) -> TextSplits:
    return TASK.build(TaskRequest(one_token, train, validation, test, seed, options))


def names_in(prompt: str) -> list[str]:
    """The names of a prompt in order; a sentence's first word is never one."""
    return [word for word in re.findall(r"(?<= )[A-Z][a-z]+", prompt) if word != "Sunday"]


def every_name(pairs: tuple[Pair, ...]) -> set[str]:
    return {name for pair in pairs for prompt in (pair.clean, pair.corrupted) for name in names_in(prompt)}


def every_pair(splits: TextSplits) -> list[Pair]:
    return [*splits.train, *splits.validation, *splits.test]


def test_lists_are_large_and_without_repetition():
    assert len(set(NAMES)) == len(NAMES) >= 150
    assert len(set(PLACES)) == len(PLACES) >= 20
    assert len(set(OBJECTS)) == len(OBJECTS) >= 20
    assert not any(thing[0] in "aeiou" for thing in OBJECTS)
    assert len(set(TEMPLATES.values())) == 40
    assert Counter(name[:4] for name in TEMPLATES) == {"abba": 20, "baba": 20}
    assert all(11 <= len(text.split()) <= 17 for text in TEMPLATES.values())


def test_prompts_name_three_people_and_end_before_the_answer():
    for pair in every_pair(build()):
        first, second, third = names_in(pair.clean)
        order, io, subject = ("abba", first, second) if second == third else ("baba", second, first)
        assert third == subject != io
        assert pair.answers == (f" {io}",)
        assert pair.wrong_answers == (f" {subject}",)
        assert pair.candidates == ()
        assert re.fullmatch(rf"{order}-(0[1-9]|1[0-5])", pair.template)
        assert re.fullmatch(r"[A-Z][a-z]+ .* (a [a-z]+|it) (to|from)", pair.clean)
        assert "{" not in pair.clean + pair.corrupted


def test_pairs_are_distinct_and_named_by_split():
    splits = build()
    assert splits.train[0].id == "ioi-train-0001"
    assert splits.test[99].id == "ioi-test-0100"
    pairs = every_pair(splits)
    assert len({pair.clean for pair in pairs}) == len({pair.id for pair in pairs}) == len(pairs) == 500


def test_abc_replaces_every_name_by_a_fresh_one():
    for pair in every_pair(build(corruption="abc")):
        assert len(set(names_in(pair.clean)) | set(names_in(pair.corrupted))) == 5
        pattern = rf"\b({'|'.join(names_in(pair.clean) + names_in(pair.corrupted))})\b"
        assert re.sub(pattern, "_", pair.clean) == re.sub(pattern, "_", pair.corrupted)


def test_flip_puts_io_where_the_subject_stood_second():
    for pair in every_pair(build(corruption="flip")):
        *opening, io = names_in(pair.corrupted)
        assert opening == names_in(pair.clean)[:2]
        assert f" {io}" == pair.answers[0]
        stem, _, ending = pair.clean.rpartition(pair.wrong_answers[0])
        assert pair.corrupted == stem + pair.answers[0] + ending


@pytest.mark.parametrize("corruption", ["abc", "flip"])
def test_no_name_stands_in_two_splits(corruption):
    splits = build(corruption=corruption, train=3000, validation=1000, test=1000)
    names = [every_name(getattr(splits, split)) for split in SPLITS]
    assert set.union(*names) == set(NAMES)
    assert [len(group) for group in names] == [121, 40, 40]


def test_names_are_shared_on_request():
    splits = build(split_names="false", train=3000, validation=3000, test=3000)
    assert [every_name(getattr(splits, split)) for split in SPLITS] == [set(NAMES)] * 3
    repeated = {pair.clean for pair in splits.train} & {pair.clean for pair in splits.test}
    assert len(repeated) < 5, "pairs are other pairs"


def test_other_sentences_are_none_of_the_usual_ones():
    usual, other = every_pair(build()), every_pair(build(sentences="other"))
    assert {pair.template[:4] for pair in other} == {"abba", "baba"}
    assert len({pair.template for pair in other}) == 10
    assert not {pair.template for pair in usual} & {pair.template for pair in other}
    assert not {pair.clean for pair in usual} & {pair.clean for pair in other}


def test_templates_are_shared_unless_asked_otherwise():
    shared, disjoint = build(), build(split_templates="true")
    for split in SPLITS:
        assert len({pair.template for pair in getattr(shared, split)}) == 30
    kept = [{pair.template for pair in getattr(disjoint, split)} for split in SPLITS]
    assert len(set.union(*kept)) == 30
    orders = [Counter(name[:4] for name in group) for group in kept]
    assert orders == [{"abba": 9, "baba": 9}, {"abba": 3, "baba": 3}, {"abba": 3, "baba": 3}]
    assert [len({name[4:] for name in group}) for group in kept] == [9, 3, 3], "both orders of a sentence go together"


def test_a_sentence_does_not_tell_the_order():
    for number in range(1, 16):
        abba, baba = (TEMPLATES[f"{order}-{number:02d}"] for order in ("abba", "baba"))
        assert baba == abba.replace("{IO}", "?").replace("{S1}", "{IO}").replace("?", "{S1}")


@pytest.mark.parametrize("split_templates", ["false", "true"])
@pytest.mark.parametrize("count", [1, 100, 301])
def test_templates_and_orders_are_balanced(split_templates, count):
    splits = build(train=count, validation=count, test=count, split_templates=split_templates)
    for split in SPLITS:
        templates = Counter(pair.template for pair in getattr(splits, split))
        orders = Counter(pair.template[:4] for pair in getattr(splits, split))
        assert abs(orders["abba"] - orders["baba"]) <= 1
        if count >= 30:
            assert max(templates.values()) - min(templates.values()) <= 1
    first_half = [pair.template[:4] for pair in splits.train[: count // 2]]
    assert count == 1 or set(first_half) == {"abba", "baba"}, "the pairs are shuffled"


def test_the_seed_decides_everything():
    random.seed(1)
    once = build(seed=3)
    random.seed(2)
    assert build(seed=3) == once
    assert build(seed=4) != once
    assert every_name(build(seed=4).train) != every_name(once.train)


def test_the_global_random_state_is_out_of_reach(monkeypatch):
    # Comparing the state would not do: beartype's own checks draw from it.
    for module in (ioi, making):
        monkeypatch.setattr(module, "random", SimpleNamespace(Random=random.Random))
    assert len(every_pair(build(split_templates="true"))) == 500


def test_a_split_does_not_depend_on_the_size_of_another():
    assert build(validation=7).train == build().train
    assert build(train=7).test == build().test


def test_the_largest_group_of_equally_long_names_is_taken():
    def length(word: str, /) -> int:
        return len(word) - 1

    names = every_name(tuple(every_pair(TASK.build(TaskRequest(of_length(length), 2000, 500, 500)))))
    counts = Counter(len(name) for name in NAMES)
    assert {len(name) for name in names} == {counts.most_common(1)[0][0]}
    assert names == {name for name in NAMES if len(name) == len(min(names))}


def test_fifteen_names_of_a_length_suffice():
    def counter(word: str, /) -> int:
        return 1 if word.strip() in NAMES[:15] else NAMES.index(word.strip())

    splits = TASK.build(TaskRequest(of_length(counter), 200, 200, 200))
    assert [len(every_name(getattr(splits, split))) for split in SPLITS] == [5, 5, 5]


def test_too_few_names_of_a_length():
    def counter(word: str, /) -> int:
        return 1 if word.strip() in NAMES[:14] else NAMES.index(word.strip())

    with pytest.raises(DataError) as caught:
        TASK.build(TaskRequest(of_length(counter)))
    assert str(caught.value) == (
        f"task ioi: found at most 14 of {len(NAMES)} names with the same number of tokens (1), expected 15 or more; "
        "this tokenizer needs pairs of your own"
    )


def test_there_are_no_more_than_every_possible_pair(monkeypatch):
    monkeypatch.setattr(ioi, "PLACES", ["park", "store", "bank"])
    monkeypatch.setattr(ioi, "OBJECTS", ["ring", "ball"])

    def counter(word: str, /) -> int:
        return 1 if word.strip() in NAMES[:15] else NAMES.index(word.strip())

    possible = (5 * 4) * (3 * 2) * 6
    options = {"split_templates": "true"}
    everything = TASK.build(TaskRequest(of_length(counter), 0, 0, possible, options=options)).test
    assert len({pair.clean for pair in everything}) == possible
    assert TASK.build(TaskRequest(of_length(counter), 0, 0, possible + 1, options=options)).test == everything
    with pytest.raises(DataError, match=r"^ioi-test: found -1 pairs asked for, expected 0 or more$"):
        TASK.build(TaskRequest(of_length(counter), 0, 0, -1, options=options))


def test_unknown_options_are_named():
    with pytest.raises(ConfigError) as caught:
        build(corrupton="abc")
    assert str(caught.value) == (
        "option of task ioi: found 'corrupton', expected one of corruption, split_names, split_templates, sentences; "
        "did you mean 'corruption'?"
    )
    with pytest.raises(ConfigError) as caught:
        build(corruption="xyz")
    assert str(caught.value) == "option corruption of task ioi: found 'xyz', expected one of abc, flip"
    assert set(TASK.options) == {"corruption", "split_names", "split_templates", "sentences"}
