"""Indirect object identification: of two names, say the one that is not repeated.

"... Mary and John ..., John gave a drink to" -> " Mary". The names are IO (the indirect object, the answer), S1 and S2
(the subject, named twice). ABBA templates name IO first, BABA templates name the subject first (Wang et al., 2022,
arXiv 2211.00593; the sentences here are our own). This file knows words and sentences, never tokens: all names of one
request take the same number of tokens, so that clean and corrupted prompts align word by word.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from circuitsieve.errors import ConfigError, DataError, one_of
from circuitsieve.pairs import SPLITS, Pair, TaskRequest, TextSplits, WordCounter
from circuitsieve.tasks import Task

NAMES = """
Mary John James Robert Michael William David Richard Joseph Thomas Charles Christopher Daniel Matthew Anthony Mark
Donald Steven Paul Andrew Joshua Kenneth Kevin Brian George Timothy Ronald Edward Jason Jeffrey Ryan Jacob Gary
Nicholas Eric Jonathan Stephen Larry Justin Scott Brandon Benjamin Samuel Gregory Alexander Patrick Frank Raymond Jack
Dennis Jerry Tyler Aaron Jose Adam Nathan Henry Douglas Zachary Peter Kyle Noah Ethan Jeremy Walter Christian Keith
Roger Terry Austin Sean Gerald Carl Harold Dylan Arthur Lawrence Jordan Jesse Bryan Billy Bruce Gabriel Joe Logan Alan
Juan Albert Willie Elijah Wayne Randy Vincent Mason Roy Ralph Bobby Russell Bradley Philip Eugene Simon Oliver Lucas
Patricia Jennifer Linda Elizabeth Barbara Susan Jessica Sarah Karen Lisa Nancy Betty Sandra Margaret Ashley Kimberly
Emily Donna Michelle Carol Amanda Melissa Deborah Stephanie Rebecca Sharon Laura Cynthia Dorothy Amy Kathleen Angela
Shirley Emma Brenda Pamela Nicole Anna Samantha Katherine Christine Debra Rachel Carolyn Janet Maria Olivia Heather
Helen Catherine Diane Julie Victoria Joyce Lauren Kelly Christina Ruth Joan Virginia Judith Evelyn Hannah Andrea Megan
Cheryl Jacqueline Madison Teresa Sophia Martha Sara Gloria Janice Kathryn Ann Isabella Judy Charlotte Julia Grace Alice
Jean Denise Frances Danielle Marilyn Natalie Beverly Diana Brittany Theresa Kayla Alexis Doris Lori Tiffany
""".split()  # noqa: SIM905 (words, not a list literal, to stay readable)

PLACES = """
store park market school library museum restaurant hospital station garden office beach theater airport hotel bakery
church farm bank stadium castle harbor cinema bridge
""".split()  # noqa: SIM905 (words, not a list literal, to stay readable)

# Every object takes the article "a".
OBJECTS = """
ball book drink ring letter ticket map key gift coat lamp camera basket guitar hat watch pencil cake sandwich bottle
flower painting necklace coin blanket
""".split()  # noqa: SIM905 (words, not a list literal, to stay readable)

# The opening names are A and B; each sentence is used in both orders, so that it does not tell which name is repeated.
_SENTENCES = """
When {A} and {B} left the {place} late in the evening, {S2} decided to give a {object} to
While {A} and {B} were waiting in line outside the {place}, {S2} quietly handed a {object} to
After a quiet breakfast {A} and {B} rode their bikes to the {place}, where {S2} offered a {object} to
Last week {A} and {B} met by chance near the {place}, and {S2} lent a {object} to
On Sunday {A} and {B} worked together at the {place}, and afterwards {S2} sold a {object} to
Because {A} and {B} had argued on the way to the {place}, {S2} brought a {object} to
Before {A} and {B} said goodbye in front of the {place}, {S2} gave a {object} to
Yesterday {A} and {B} went by taxi to the {place}, where {S2} presented a {object} to
Although {A} and {B} had never liked the {place}, {S2} stayed there and gave a {object} to
As soon as {A} and {B} walked out of the {place}, {S2} returned a {object} to
With the help of a neighbor {A} and {B} found the {place}, and {S2} delivered a {object} to
It was raining when {A} and {B} arrived at the {place}, but {S2} still gave a {object} to
That night {A} and {B} danced for hours near the {place}, and finally {S2} showed a {object} to
Somebody saw {A} and {B} talking outside the {place} just before {S2} passed a {object} to
Even though {A} and {B} were strangers at the {place}, {S2} soon promised a {object} to
""".strip().splitlines()

SMALLEST_GROUP = 15
"""Fewest names of one token count: three splits of `NAMES_PER_SPLIT`."""

NAMES_PER_SPLIT = 5
"""Fewest names of a split: IO, S and the three fresh names of the `abc` corruption."""

_CHOICES = {"corruption": ("abc", "flip"), "split_templates": ("false", "true")}
"""The values of each option, its default first."""


class Template(NamedTuple):
    """A sentence with the places {IO}, {S1}, {S2}, {place} and {object}; its name tells the order of the names."""

    name: str
    text: str

    def fill(self, names: Sequence[str], place: str, thing: str) -> str:
        """The sentence with `names` in the places IO, S1 and S2."""
        io, first, second = names
        return self.text.format(IO=io, S1=first, S2=second, place=place, object=thing)


TEMPLATES = {
    order: [
        Template(f"{order}-{number:02d}", sentence.replace("{A}", first).replace("{B}", second))
        for number, sentence in enumerate(_SENTENCES, start=1)
    ]
    for order, first, second in (("abba", "{IO}", "{S1}"), ("baba", "{S1}", "{IO}"))
}
"""The templates of each order: the subject is the second of the opening names (abba) or the first (baba)."""


def build(request: TaskRequest) -> TextSplits:
    """The pairs of `request`: no name, and on request no template, stands in two splits.

    Everything follows from `request.seed`; a split does not change when another one is asked for more pairs.

    Raises:
        ConfigError: an option or its value is unknown.
        DataError: too few names take the same number of tokens, or more pairs are asked for than there are.
    """
    options = _options(request.options)
    names = _split_names(names_of_one_length(request.tokens_in), random.Random(f"ioi names {request.seed}"))
    templates = _split_templates(request.seed, disjoint=options["split_templates"] == "true")
    counts = {"train": request.train, "validation": request.validation, "test": request.test}
    pairs = {
        split: _pairs(
            f"ioi-{split}",
            counts[split],
            names[split],
            templates[split],
            corruption=options["corruption"],
            rng=random.Random(f"ioi {split} {request.seed}"),
        )
        for split in SPLITS
    }
    return TextSplits(**pairs)


def names_of_one_length(tokens_in: WordCounter) -> list[str]:
    """The largest group of names with the same number of tokens; of equally large groups the one with fewer tokens.

    Raises:
        DataError: the largest group has fewer than `SMALLEST_GROUP` names.
    """
    groups: dict[int, list[str]] = {}
    for name in NAMES:
        groups.setdefault(tokens_in(f" {name}"), []).append(name)
    length, group = min(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    if len(group) < SMALLEST_GROUP:
        raise DataError(
            f"task ioi: found at most {len(group)} of {len(NAMES)} names with the same number of tokens ({length}), "
            f"expected {SMALLEST_GROUP} or more; this tokenizer needs pairs of your own"
        )
    return group


def _options(given: dict[str, str]) -> dict[str, str]:
    """Every option with its value, defaults filled in."""
    for option, value in given.items():
        if option not in _CHOICES:
            raise ConfigError(one_of("option of task ioi", option, list(_CHOICES)))
        if value not in _CHOICES[option]:
            raise ConfigError(one_of(f"option {option} of task ioi", value, list(_CHOICES[option])))
    return {option: values[0] for option, values in _CHOICES.items()} | given


def _split_names(names: list[str], rng: random.Random) -> dict[str, list[str]]:
    """Shuffled `names` in disjoint parts of 60, 20 and 20 %, each with at least `NAMES_PER_SPLIT`."""
    shuffled = rng.sample(names, len(names))
    part = max(NAMES_PER_SPLIT, round(0.2 * len(names)))
    return {"train": shuffled[2 * part :], "validation": shuffled[:part], "test": shuffled[part : 2 * part]}


def _split_templates(seed: int, *, disjoint: bool) -> dict[str, list[Template]]:
    """The templates of each split, in random order, ABBA and BABA in turn; 9, 3 and 3 sentences each if `disjoint`."""
    sentences = list(zip(TEMPLATES["abba"], TEMPLATES["baba"], strict=True))
    random.Random(f"ioi templates {seed}").shuffle(sentences)
    parts = {"train": sentences[6:], "validation": sentences[:3], "test": sentences[3:6]}
    return {
        split: [template for orders in (parts[split] if disjoint else sentences) for template in orders]
        for split in SPLITS
    }


def _pairs(
    prefix: str, count: int, names: list[str], templates: list[Template], *, corruption: str, rng: random.Random
) -> tuple[Pair, ...]:
    """`count` distinct pairs, as many of each template as of any other (give or take one), shuffled."""
    fillings = len(names) * (len(names) - 1) * len(PLACES) * len(OBJECTS)
    if not 0 <= count <= fillings * len(templates):
        raise DataError(
            f"{prefix}: found {count} pairs asked for, expected 0 to {fillings * len(templates)} "
            f"({len(names)} names, {len(templates)} templates); ask for another number"
        )
    pairs = []
    for position, template in enumerate(templates):
        share = len(range(position, count, len(templates)))
        pairs += [_pair(template, number, names, corruption, rng) for number in rng.sample(range(fillings), share)]
    rng.shuffle(pairs)
    return tuple(replace(pair, id=f"{prefix}-{number:04d}") for number, pair in enumerate(pairs, start=1))


def _pair(template: Template, number: int, names: list[str], corruption: str, rng: random.Random) -> Pair:
    """The filling `number` of a template: counted in mixed radix, different numbers are different prompts."""
    number, thing = divmod(number, len(OBJECTS))
    number, place = divmod(number, len(PLACES))
    first, second = divmod(number, len(names) - 1)
    io = names[first]
    subject = names[second + (second >= first)]
    others = [name for name in names if name not in (io, subject)]
    replaced = [io, subject, io] if corruption == "flip" else rng.sample(others, 3)
    return Pair(
        clean=template.fill([io, subject, subject], PLACES[place], OBJECTS[thing]),
        corrupted=template.fill(replaced, PLACES[place], OBJECTS[thing]),
        answers=(f" {io}",),
        wrong_answers=(f" {subject}",),
        template=template.name,
    )


TASK = Task(
    name="ioi",
    summary="indirect object identification: of two names, the one that is not repeated",
    build=build,
    options={
        "corruption": "abc (default): three other names instead of IO, S1 and S2; flip: S2 becomes IO",
        "split_templates": "true: no template stands in two splits; false (default): all splits share them",
    },
)
