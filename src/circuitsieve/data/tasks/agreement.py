"""Subject-verb agreement: the verb agrees with its subject, not with the noun that stands nearer.

"The keys near the cabinet" -> " are". The corrupted prompt has the subject in the other number. (A behaviour studied since
Linzen et al. 2016; nouns and sentences here are our own choice.) This file knows words and sentences, never tokens: a noun
whose singular and plural differ in their number of tokens is left out.
"""

import random

from circuitsieve.data.pairs import Pair, TaskRequest, TextSplits
from circuitsieve.data.tasks import Task, making
from circuitsieve.errors import DataError

# Every plural is the singular with an s.
NOUNS = """
key book car door window table chair house tree road river garden picture letter song game school teacher student doctor
farmer driver dog cat horse bird apple flower ship train wheel engine computer phone camera bridge tower wall shop office
hotel island mountain lake field cloud star planet house boat ticket hat shoe shirt cup plate bottle box bag coin ring lamp
clock map sign statue painting machine tool knife spoon brother sister friend neighbor artist singer writer actor pilot
lawyer soldier king queen village town river street
""".split()  # noqa: SIM905 (words, not a list literal, to stay readable)

TEMPLATES = [
    "The {subject} near the {other}",
    "The {subject} behind the {other}",
    "The {subject} next to the {other}",
    "The {subject} in front of the {other}",
    "The old {subject} beside the {other}",
    "Everyone knows that the {subject} by the {other}",
    "I was told that the {subject} opposite the {other}",
    "It is true that the {subject} below the {other}",
]

VERBS = {False: (" is", " was", " has"), True: (" are", " were", " have")}
"""Of a singular and of a plural subject."""

SMALLEST = 15
"""Fewest usable nouns: three splits of five."""


def build(request: TaskRequest) -> TextSplits:
    """The pairs of `request`: no noun stands in two splits.

    The other noun has the number that the subject has not, so that the nearest noun misleads.

    Raises:
        ConfigError: an option is given; there are none.
        DataError: too few nouns keep their number of tokens.
    """
    making.chosen(TASK.name, {}, request.options)
    nouns = dict.fromkeys(NOUNS)
    usable = [noun for noun in nouns if request.tokens_in(f" {noun}") == request.tokens_in(f" {noun}s")]
    if len(usable) < SMALLEST:
        raise DataError(
            f"task agreement: found {len(usable)} of {len(nouns)} nouns whose plural takes as many tokens as their singular, "
            f"expected {SMALLEST} or more; this tokenizer needs pairs of your own"
        )
    nouns_of = making.split(usable, random.Random(f"agreement words {request.seed}"), at_least=5)

    def make(split: str) -> tuple[Pair, ...]:
        own = nouns_of[split]

        def fill(template: str, number: int, _: random.Random) -> Pair:
            plural, first, second = making.digits(number, 2, len(own), len(own) - 1)
            subject, other = own[first], own[second + (second >= first)]
            clean, corrupted = (
                template.format(subject=_in_number(subject, many), other=_in_number(other, not plural))
                for many in (bool(plural), not plural)
            )
            name = f"nouns-{TEMPLATES.index(template) + 1}"
            return Pair(clean, corrupted, VERBS[bool(plural)], VERBS[not plural], template=name)

        return making.spread(
            f"agreement-{split}",
            getattr(request, split),
            TEMPLATES,
            2 * len(own) * (len(own) - 1),
            fill,
            random.Random(f"agreement {split} {request.seed}"),
        )

    return making.splits(make)


def _in_number(noun: str, plural: bool) -> str:
    return f"{noun}s" if plural else noun


TASK = Task(
    name="agreement",
    summary="subject-verb agreement: is or are after a subject with another noun in between",
    build=build,
)
