# ruff: noqa: E501 (patterns are read more easily in one line)
"""The other built-in tasks, read back with regular expressions and word lists, not with the tasks' own code."""

import re
from collections.abc import Callable

import pytest

from circuitsieve.data import tasks
from circuitsieve.data.pairs import SPLITS, Pair, TaskRequest, TextSplits
from circuitsieve.data.tasks import agreement, gender_pronoun
from circuitsieve.errors import ConfigError, DataError

OTHERS = [name for name in tasks.names() if name != "ioi"]


def words(text: str) -> tuple[str, ...]:
    """A tokenizer that takes every word whole and cuts numbers in twos, as GPT-2 does."""
    return tuple(re.findall(r" ?\d\d?| ?[^\d\s]+", text))


def single_digits(text: str) -> tuple[str, ...]:
    """As SmolLM2 does."""
    return tuple(re.findall(r"\d| |[^\d\s]+", text))


def three_digits(text: str) -> tuple[str, ...]:
    """As Llama 3 does."""
    return tuple(re.findall(r"\d{1,3}| |[^\d\s]+", text))


def build(name: str, pieces: Callable[[str], tuple[str, ...]] = words, count: int = 300, seed: int = 0) -> TextSplits:
    return tasks.get(name).build(TaskRequest(pieces, count, 100, 100, seed))


def every_pair(splits: TextSplits) -> list[Pair]:
    return [*splits.train, *splits.validation, *splits.test]


@pytest.mark.parametrize("name", OTHERS)
def test_pairs_are_well_formed(name):
    splits = build(name)
    pairs = every_pair(splits)
    assert len(splits.validation) == len(splits.test) == 100
    assert len({(pair.clean, pair.corrupted) for pair in pairs}) == len({pair.id for pair in pairs}) == len(pairs)
    assert len({pair.template for pair in pairs}) >= 4
    for pair in pairs:
        assert pair.clean != pair.corrupted
        assert "{" not in pair.clean.replace("{}", "")
        assert len(pair.clean.split()) == len(pair.corrupted.split())
        assert pair.answers
        assert pair.wrong_answers
        assert not set(pair.answers) & set(pair.wrong_answers)
        assert not pair.clean.endswith(" ")


@pytest.mark.parametrize("name", OTHERS)
def test_the_seed_decides_everything(name):
    assert build(name) == build(name)
    assert build(name, seed=1) != build(name)


@pytest.mark.parametrize("name", OTHERS)
def test_a_split_does_not_depend_on_the_size_of_another(name):
    assert build(name, count=7).test == build(name).test


@pytest.mark.parametrize("name", OTHERS)
def test_options_are_refused(name):
    with pytest.raises(ConfigError, match=f"^option of task {name}: found 'colour'"):
        tasks.get(name).build(TaskRequest(words, 1, 1, 1, options={"colour": "red"}))


CONTENT: dict[str, Callable[[Pair], set[str]]] = {
    "gender_pronoun": lambda pair: {re.search(r"\b(?!(?:So|Yes|I|They|Well|Perhaps|As|One|Surely|In|Everyone)\b)[A-Z][a-z]+", pair.clean)[0]},
    "greater_than": lambda pair: {re.search(r"(?:The|the|long) (?!year|long)([a-z]+)", pair.clean)[1], re.search(r"\d{4}", pair.clean)[0]},
    "agreement": lambda pair: {word.removesuffix("s") for word in re.findall(r"\b(?:the|The|old) (?!old)([a-z]+)", pair.clean)},
    "capitals": lambda pair: set(pair.answers + pair.wrong_answers),
    "docstring": lambda pair: set(re.findall(r"\(.*\)", pair.clean)[0].strip("()").removeprefix("self, ").split(", ")),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_no_content_word_stands_in_two_splits(name):
    splits = build(name, count=2000)
    content = [set().union(*(CONTENT[name](pair) for pair in getattr(splits, split))) for split in SPLITS]
    assert all(len(words) >= 5 for words in content)
    for i, one in enumerate(content):
        for other in content[i + 1 :]:
            assert not one & other


def test_a_pronoun_agrees_with_its_name():
    she = set("Mary Linda Susan Anna Emma Alice Julia Ruth Charlotte Helen Sarah Karen Nancy".split())  # noqa: SIM905
    he = set("John James Robert David Paul Mark Peter Henry Simon Oliver Carl Arthur Ivan".split())  # noqa: SIM905
    seen = set()
    for pair in every_pair(build("gender_pronoun")):
        names = re.findall(r"[A-Z][a-z]+", pair.clean)
        if she & set(names):
            assert (pair.answers, pair.wrong_answers) == ((" she",), (" he",))
            seen |= she & set(names)
        if he & set(names):
            assert (pair.answers, pair.wrong_answers) == ((" he",), (" she",))
            seen |= he & set(names)
        assert not (she if pair.answers == (" she",) else he) & set(re.findall(r"[A-Z][a-z]+", pair.corrupted))
    assert seen & she
    assert seen & he


@pytest.mark.parametrize(
    ("pieces", "shown", "size"),
    [(words, 2, 2), (single_digits, 2, 1), (three_digits, 3, 1)],
    ids=["two", "one", "three"],
)
def test_the_first_deciding_digit_is_asked_for(pieces, shown, size):
    """Whatever the tokenizer: an answer, with any digits behind it, is a later year; a wrong answer is not."""
    for pair in every_pair(build("greater_than", pieces)):
        start, end = re.search(r"(\d{4})\D", pair.clean)[1], re.search(r"\d+$", pair.clean)[0]
        assert len(end) == shown
        assert start.startswith(end)
        assert set(pair.candidates) == {f"{value:0{size}d}" for value in range(10**size)}
        rest = 4 - shown - size
        for answer in pair.answers:
            assert int(end + answer + "0" * rest) > int(start)
        for answer in pair.wrong_answers:
            assert int(end + answer + "9" * rest) <= int(start)
        above, below = pair.cutoff
        assert above == min(pair.answers)
        assert below in pair.wrong_answers
        assert int(above) - int(below) == 2
        assert int(start[shown : shown + size]) == int(below) + 1
        undecided = set(pair.candidates) - {*pair.answers, *pair.wrong_answers}
        assert len(undecided) == (1 if rest else 0)
        earliest = re.search(r"(\d{4})\D", pair.corrupted)[1]
        assert earliest == end + "01"[-(4 - shown) :] if shown == 2 else earliest == end + "0"
        assert pair.corrupted == pair.clean.replace(start, earliest)


def test_years_that_some_tokenizers_take_whole_are_neither_starts_nor_ends():
    """GPT-2's vocabulary has years such as " 1700" as tokens of their own: here those that 7 or a century divides, and 1801."""

    def whole(year: str) -> bool:
        return int(year) % 7 == 0 or int(year) % 100 == 0 or year == "1801"

    def pieces(text: str) -> tuple[str, ...]:
        year = text.strip()
        return (text,) if not year.isdigit() or whole(year) else (text[:-2], text[-2:])

    pairs = list(every_pair(build("greater_than", pieces)))
    for pair in pairs:
        start, century = re.search(r"(\d{4})\D", pair.clean)[1], re.search(r"\d+$", pair.clean)[0]
        assert not whole(start)
        ends = {f"{value:02d}" for value in range(100) if not whole(f"{century}{value:02d}")}
        assert set(pair.candidates) == ends
        assert set(pair.answers) == {end for end in ends if century + end > start}
        assert set(pair.wrong_answers) == ends - set(pair.answers)
        assert pair.cutoff == (min(pair.answers), max(end for end in ends if century + end < start))
        earliest = re.search(r"(\d{4})\D", pair.corrupted)[1]
        assert earliest == min(century + end for end in ends)
    assert "1802" in {re.search(r"(\d{4})\D", pair.corrupted)[1] for pair in pairs}


def test_years_that_are_one_token_are_refused():
    with pytest.raises(DataError, match=r"^task greater_than: found a tokenizer that takes years whole"):
        build("greater_than", lambda text: tuple(text.split()))


def test_a_verb_agrees_with_its_subject_and_not_with_the_nearest_noun():
    for pair in every_pair(build("agreement")):
        plural = " are" in pair.answers
        assert pair.answers == ((" are", " were", " have") if plural else (" is", " was", " has"))
        subject = re.search(
            r"(?:the|The)(?: old)? ([a-z]+) (?:near|behind|next|in|beside|by|opposite|below)", pair.clean
        )[1]
        assert subject.endswith("s") == plural
        assert pair.clean.endswith("s") != plural
        assert pair.corrupted.split()[-1] == pair.clean.split()[-1]


def test_capitals_belong_to_their_countries():
    known = {"France": " Paris", "Japan": " Tokyo", "Egypt": " Cairo", "Norway": " Oslo", "Peru": " Lima", "Argentina": " Buenos Aires"}  # fmt: skip
    seen = set()
    for pair in every_pair(build("capitals", count=3000)):
        for country, capital in known.items():
            if country in pair.clean:
                assert pair.answers == (capital,)
                seen.add(country)
            if country in pair.corrupted:
                assert pair.wrong_answers == (capital,)
    assert len(seen) >= 3


def test_the_next_parameter_of_the_signature_is_the_answer():
    for pair in every_pair(build("docstring")):
        parameters = re.search(r"\((?:self, )?(.*)\)", pair.clean)[1].split(", ")
        documented = re.findall(r"[:@]param (\w+):", pair.clean)
        assert parameters[:2] == documented
        assert pair.answers == (f" {parameters[2]}",)
        assert {f" {name}" for name in (*documented, parameters[3])} <= set(pair.wrong_answers)
        assert parameters[2] not in pair.corrupted.split("param")[0].split("(")[1].split(")")[0].split(", ")


def test_names_of_one_gender_alone_do_not_make_up_for_those_of_the_other():
    """Five names of women are one token, all other women's two; men's are one."""
    short = set(gender_pronoun.NAMES["she"][:5])

    def pieces(text: str) -> tuple[str, ...]:
        word = text.strip()
        return (text[:2], text[2:]) if word in gender_pronoun.NAMES["she"] and word not in short else words(text)

    with pytest.raises(DataError, match=r"^task gender_pronoun: found 5 names that go with she .*, expected 9 or more"):
        build("gender_pronoun", pieces)


def test_agreement_has_five_nouns_in_every_split_where_fifteen_are_usable():
    usable = set(agreement.NOUNS[:15])

    def pieces(text: str) -> tuple[str, ...]:
        singular = text.strip().removesuffix("s")
        return (text[:2], text[2:]) if text.endswith("s") and singular not in usable else words(text)

    for pairs in vars(build("agreement", pieces, count=100)).values():
        assert len({noun for pair in pairs for noun in usable if re.search(rf"\b{noun}s?\b", pair.clean)}) == 5
