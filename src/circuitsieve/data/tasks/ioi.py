"""Indirect object identification: of two names, say the one that is not repeated.

"... Mary and John ..., John gave a drink to" -> " Mary". The names are IO (the indirect object, the answer), S1 and S2
(the subject, named twice). ABBA templates name IO first, BABA templates name the subject first (Wang et al., 2022,
arXiv 2211.00593; the sentences here are our own). This file knows words and sentences, never tokens: all names of one
request take the same number of tokens, so that clean and corrupted prompts align word by word.
"""

import random
from collections.abc import Sequence

from circuitsieve.data.pairs import SPLITS, Pair, TaskRequest, TextSplits
from circuitsieve.data.tasks import Task, making

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
When {A} and {B} came back from the {place}, {S2} gave a {object} to
While {A} and {B} waited at the {place}, {S2} handed a {object} to
At the {place}, {A} and {B} met, and {S2} gave a {object} to
Last week {A} and {B} met near the {place}, and {S2} lent a {object} to
On Sunday {A} and {B} worked at the {place}, and {S2} gave a {object} to
Because {A} and {B} had argued at the {place}, {S2} sent a {object} to
When {A} and {B} bought a {object} at the {place}, {S2} handed it to
In the morning {A} and {B} met at the {place}, and {S2} gave a {object} to
Yesterday {A} and {B} met at the {place}, and {S2} gave a {object} to
One day {A} and {B} went to the {place}, and {S2} gave a {object} to
The night {A} and {B} stayed at the {place}, {S2} gave a {object} to
The day {A} and {B} met at the {place}, {S2} gave a {object} to
When {A} and {B} were at the {place}, {S2} borrowed a {object} from
When {A} and {B} went to the {place}, {S2} gave a {object} to
At first {A} and {B} were strangers at the {place}, but {S2} promised a {object} to
""".strip().splitlines()

_OTHER_SENTENCES = """
They say that {A} and {B} worked at the {place}, and that {S2} gave a {object} to
As {A} and {B} came from the {place}, {S2} sent a {object} to
Perhaps {A} and {B} met at the {place} on Sunday, and {S2} promised a {object} to
One night {A} and {B} were near the {place}, but {S2} had handed a {object} to
The year that {A} and {B} worked in the {place}, {S2} lent a {object} to
""".strip().splitlines()
"""Sentences that no circuit has seen, for what it does on other texts."""

SMALLEST_GROUP = 15
"""Fewest names of one token count: three splits of `NAMES_PER_SPLIT`."""

NAMES_PER_SPLIT = 5
"""Fewest names of a split: IO, S and the three fresh names of the `abc` corruption."""

_CHOICES = {
    "corruption": ("abc", "flip"),
    "split_names": ("true", "false"),
    "split_templates": ("false", "true"),
    "sentences": ("usual", "other"),
}
"""The values of each option, its default first."""


TEMPLATES = {
    f"{order}-{number:02d}": sentence.replace("{A}", first).replace("{B}", second)
    for number, sentence in enumerate((*_SENTENCES, *_OTHER_SENTENCES), start=1)
    for order, first, second in (("abba", "{IO}", "{S1}"), ("baba", "{S1}", "{IO}"))
}
"""Sentences with the places {IO}, {S1}, {S2}, {place} and {object}. The subject is the second of the opening names (abba) or
the first (baba)."""


def build(request: TaskRequest) -> TextSplits:
    """The pairs of `request`: unless it asks for it no name, and if it asks for it no template, stands in two splits.

    Everything follows from `request.seed`; a split does not change when another one is asked for more pairs.

    Raises:
        ConfigError: an option or its value is unknown.
        DataError: too few names take the same number of tokens.
    """
    options = making.chosen(TASK.name, _CHOICES, request.options)
    usable = making.of_one_length(TASK.name, "names", NAMES, request.tokens_in, SMALLEST_GROUP)
    names = making.split(usable, random.Random(f"ioi names {request.seed}"), at_least=NAMES_PER_SPLIT)
    if options["split_names"] == "false":
        names = dict.fromkeys(SPLITS, usable)
    usual = range(1, len(_SENTENCES) + 1)
    numbers = usual if options["sentences"] == "usual" else range(len(_SENTENCES) + 1, len(TEMPLATES) // 2 + 1)
    templates = _split_templates(numbers, request.seed, disjoint=options["split_templates"] == "true")

    def make(split: str) -> tuple[Pair, ...]:
        own = names[split]

        def fill(template: str, number: int, rng: random.Random) -> Pair:
            first, second, place, thing = making.digits(number, len(own), len(own) - 1, len(PLACES), len(OBJECTS))
            io, subject = own[first], own[second + (second >= first)]
            others = [name for name in own if name not in (io, subject)]
            replaced = (io, subject, io) if options["corruption"] == "flip" else rng.sample(others, 3)
            clean, corrupted = (
                TEMPLATES[template].format(IO=a, S1=b, S2=c, place=PLACES[place], object=OBJECTS[thing])
                for a, b, c in ((io, subject, subject), replaced)
            )
            return Pair(clean, corrupted, (f" {io}",), (f" {subject}",), template=template)

        return making.spread(
            f"ioi-{split}",
            getattr(request, split),
            templates[split],
            len(own) * (len(own) - 1) * len(PLACES) * len(OBJECTS),
            fill,
            random.Random(f"ioi {split} {request.seed}"),
        )

    return making.splits(make)


def _split_templates(sentences: Sequence[int], seed: int, *, disjoint: bool) -> dict[str, list[str]]:
    """The templates of each split, in random order, ABBA and BABA in turn; if `disjoint`, validation and test have a fifth of the
    sentences each."""
    numbers, fifth = list(sentences), len(sentences) // 5
    random.Random(f"ioi templates {seed}").shuffle(numbers)
    parts = {"train": numbers[2 * fifth :], "validation": numbers[:fifth], "test": numbers[fifth : 2 * fifth]}
    return {
        split: [
            f"{order}-{number:02d}" for number in (parts[split] if disjoint else numbers) for order in ("abba", "baba")
        ]
        for split in SPLITS
    }


TASK = Task(
    name="ioi",
    summary="indirect object identification: of two names, the one that is not repeated",
    build=build,
    options={
        "corruption": "abc (default): three other names instead of IO, S1 and S2; flip: S2 becomes IO",
        "split_names": "true (default): no name stands in two splits, which is harder than most published IOI data; false: all "
        "splits share them",
        "split_templates": "true: no template stands in two splits; false (default): all splits share them",
        "sentences": "usual (default); other: five sentences that are none of the usual ones",
    },
    shifts={"templates": {"sentences": "other"}, "corruption": {"corruption": "flip"}},
)
