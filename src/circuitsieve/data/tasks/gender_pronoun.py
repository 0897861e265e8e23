"""Gender pronoun: the pronoun of a tag question agrees with the name before it.

"So Evan is such a good friend, isn't" -> " he". The corrupted prompt names somebody of the other gender. (The behaviour is
that of Mathwin et al. 2023, as arXiv 2512.10903 uses it; names and sentences here are our own choice.) This file knows words
and sentences, never tokens: all names of one request take the same number of tokens.
"""

import random

from circuitsieve.data.pairs import Pair, TaskRequest, TextSplits
from circuitsieve.data.tasks import Task, making
from circuitsieve.errors import DataError

NAMES = {
    "he": """
        John James Robert Michael William David Richard Joseph Thomas Charles Christopher Daniel Matthew Anthony Mark Steven
        Paul Andrew Joshua Kevin Brian George Timothy Edward Jason Ryan Jacob Eric Jonathan Stephen Scott Benjamin Samuel
        Patrick Frank Jack Peter Adam Henry Nathan Walter Simon Oliver Philip Carl Arthur Vincent Martin Victor Ivan
    """.split(),  # noqa: SIM905 (words, not a list literal, to stay readable)
    "she": """
        Mary Patricia Jennifer Linda Elizabeth Barbara Susan Jessica Sarah Karen Lisa Nancy Betty Sandra Margaret Emily Donna
        Michelle Carol Amanda Deborah Stephanie Rebecca Sharon Laura Amy Kathleen Angela Anna Emma Nicole Katherine Christine
        Rachel Janet Maria Heather Diane Julie Victoria Helen Catherine Olivia Alice Julia Grace Sophie Hannah Ruth Charlotte
    """.split(),  # noqa: SIM905 (words, not a list literal, to stay readable)
}

PEOPLE = """
friend neighbor teacher student driver singer dancer writer painter cook doctor lawyer farmer runner reader speaker listener
player worker leader
""".split()  # noqa: SIM905 (words, not a list literal, to stay readable)

_OPENINGS = {
    "So {name} is such a good {person},": ("isn't", "wasn't"),
    "Yes, {name} has always been a good {person},": ("hasn't",),
    "I think that {name} is a great {person},": ("isn't",),
    "They say {name} was once a {person},": ("wasn't",),
    "Well, {name} can be a good {person},": ("can't", "couldn't"),
    "Perhaps {name} would make a good {person},": ("wouldn't",),
    "As you know, {name} became a {person},": ("didn't",),
    "One day {name} will be a fine {person},": ("won't",),
    "Surely {name} wants to be a {person},": ("doesn't",),
    "In truth {name} never wanted to be a {person},": ("did",),
    "Everyone says that {name} is the best {person},": ("isn't",),
}
"""How a sentence opens, and the tags that may follow."""

TEMPLATES = [f"{opening} {tag}" for opening, tags in _OPENINGS.items() for tag in tags]

SMALLEST_GROUP = 9
"""Fewest names of one gender and one token count: three splits of 3."""


def build(request: TaskRequest) -> TextSplits:
    """The pairs of `request`: no name and no kind of person stands in two splits.

    Raises:
        ConfigError: an option is given; there are none.
        DataError: too few names take the same number of tokens.
    """
    making.chosen(TASK.name, {}, request.options)
    rng = random.Random(f"gender_pronoun words {request.seed}")
    names = _names(request, rng)
    people = making.split(PEOPLE, rng)

    def make(split: str) -> tuple[Pair, ...]:
        own = {gender: of_split[split] for gender, of_split in names.items()}
        count = min(map(len, own.values()))

        def fill(template: str, number: int, rng: random.Random) -> Pair:
            which, name, person = making.digits(number, 2, count, len(people[split]))
            gender, other = ("he", "she") if which else ("she", "he")
            clean, corrupted = (
                template.format(name=someone, person=people[split][person])
                for someone in (own[gender][name], rng.choice(own[other]))
            )
            return Pair(
                clean, corrupted, (f" {gender}",), (f" {other}",), template=f"tag-{TEMPLATES.index(template) + 1:02d}"
            )

        return making.spread(
            f"gender_pronoun-{split}",
            getattr(request, split),
            TEMPLATES,
            2 * count * len(people[split]),
            fill,
            random.Random(f"gender_pronoun {split} {request.seed}"),
        )

    return making.splits(make)


def _names(request: TaskRequest, rng: random.Random) -> dict[str, dict[str, list[str]]]:
    """Names by gender and split, all of the token count that most names have."""
    everyone = [name for names in NAMES.values() for name in names]
    group = set(making.of_one_length(TASK.name, "names", everyone, request.tokens_in, 2 * SMALLEST_GROUP))
    usable = {gender: [name for name in names if name in group] for gender, names in NAMES.items()}
    for gender, names in usable.items():
        if len(names) < SMALLEST_GROUP:
            raise DataError(
                f"task {TASK.name}: found {len(names)} names that go with {gender} among those of one number of tokens, expected "
                f"{SMALLEST_GROUP} or more; this tokenizer needs pairs of your own"
            )
    return {gender: making.split(names, rng, at_least=3) for gender, names in usable.items()}


TASK = Task(
    name="gender_pronoun",
    summary="gender pronoun: he or she in the tag question after a name",
    build=build,
)
