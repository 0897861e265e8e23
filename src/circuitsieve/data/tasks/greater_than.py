"""Greater-than: a span of years ends after it begins.

"The war lasted from the year 1732 to the year 17" -> a number above 32 (Hanna et al. 2023, arXiv 2305.00586; nouns and
sentences here are our own choice). The corrupted prompt begins as early in the century as can be, so that any end would do.

Tokenizers cut years differently, so the answer position is that of the first piece of the year that decides: after "17" where
years are `17|32` or `1|7|3|2`, after "173" where they are `173|2`. Its candidates are all numbers of that many digits, over
which the KL is renormalised. Years whose piece leaves the answer open (nothing above or nothing below) are left out.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from circuitsieve.data.pairs import Pair, TaskRequest, TextSplits
from circuitsieve.data.tasks import Task, making
from circuitsieve.errors import DataError

NOUNS = """
war siege drought famine strike treaty alliance reign rebellion festival voyage expedition campaign trial debate dispute
construction migration plague truce occupation blockade project partnership contract marriage friendship exhibition tour
journey school program crisis boom revolution conflict reform mission rivalry feud monopoly ban boycott dynasty empire
colony fellowship apprenticeship residency
""".split()  # noqa: SIM905 (words, not a list literal, to stay readable)

TEMPLATES = [
    "The {noun} lasted from the year {start} to the year {end}",
    "The {noun} began in the year {start} and ended in the year {end}",
    "From the year {start} the {noun} went on until the year {end}",
    "In the year {start} the {noun} started, and it was over in the year {end}",
    "The long {noun} of the years {start} to {end}",
    "They remember the {noun}, which began in {start} and ended in {end}",
]

CENTURIES = range(11, 20)


@dataclass(frozen=True)
class Cut:
    """Where a tokenizer's pieces of a year let it be decided."""

    before: int
    """Digits of the end year that stand in the prompt."""
    size: int
    """Digits of the piece that decides."""

    def answers(self, year: int) -> tuple[list[str], list[str]]:
        """The pieces that end after a year, and those that do not."""
        digits = f"{year:04d}"
        own = int(digits[self.before : self.before + self.size])
        larger = [self._spelled(value) for value in range(own + 1, 10**self.size)]
        # Where more digits follow, an equal piece leaves the answer open.
        last_smaller = own if self.before + self.size == len(digits) else own - 1
        return larger, [self._spelled(value) for value in range(last_smaller + 1)]

    def cutoff(self, year: int) -> tuple[str, str]:
        """The pieces just above and just below that of a year."""
        own = int(f"{year:04d}"[self.before : self.before + self.size])
        return self._spelled(own + 1), self._spelled(own - 1)

    def earliest(self, year: int) -> str:
        """The year with the same beginning that any end follows."""
        digits = f"{year:04d}"
        rest = len(digits) - self.before
        return digits[: self.before] + f"{1 if rest > 1 else 0:0{rest}d}"

    @property
    def candidates(self) -> list[str]:
        """Every piece that the answer may be."""
        return [self._spelled(value) for value in range(10**self.size)]

    def _spelled(self, value: int) -> str:
        return f"{value:0{self.size}d}"


def cut_of(pieces: tuple[str, ...]) -> Cut | None:
    """The cut of a year's pieces: the first piece that begins after the century."""
    before = 0
    for piece in pieces:
        size = len(piece.strip())
        if before >= 2:
            return Cut(before, size)
        before += size
    return None


def build(request: TaskRequest) -> TextSplits:
    """The pairs of `request`: no noun and no start year stands in two splits.

    Raises:
        ConfigError: an option is given; there are none.
        DataError: the tokenizer takes years whole.
    """
    making.chosen(TASK.name, {}, request.options)
    rng = random.Random(f"greater_than words {request.seed}")
    cut, usable = _usable_years(request.pieces)
    nouns, years = making.split(NOUNS, rng), making.split(usable, rng)
    candidates = tuple(cut.candidates)

    def make(split: str) -> tuple[Pair, ...]:
        def fill(template: str, number: int, _: random.Random) -> Pair:
            noun, year = making.digits(number, len(nouns[split]), len(years[split]))
            start = years[split][year]
            larger, smaller = cut.answers(start)
            clean, corrupted = (
                template.format(noun=nouns[split][noun], start=begin, end=f"{start:04d}"[: cut.before])
                for begin in (start, cut.earliest(start))
            )
            name = f"years-{TEMPLATES.index(template) + 1}"
            answers, wrong_answers, cutoff = tuple(larger), tuple(smaller), cut.cutoff(start)
            return Pair(clean, corrupted, answers, wrong_answers, candidates, template=name, cutoff=cutoff)

        return making.spread(
            f"greater_than-{split}",
            getattr(request, split),
            TEMPLATES,
            len(nouns[split]) * len(years[split]),
            fill,
            random.Random(f"greater_than {split} {request.seed}"),
        )

    return making.splits(make)


def _usable_years(pieces: Callable[[str], tuple[str, ...]]) -> tuple[Cut, list[int]]:
    """The most common cut, and the years cut in this way that have an end above and one below."""
    cuts = {
        100 * century + year: cut_of(pieces(f" {100 * century + year}"))
        for century in CENTURIES
        for year in range(2, 99)
    }
    common = Counter(cut for cut in cuts.values() if cut is not None).most_common(1)
    if not common:
        raise DataError(
            "task greater_than: found a tokenizer that takes years whole, expected one that cuts them; give pairs of your own"
        )
    cut = common[0][0]
    return cut, [
        year for year, own in cuts.items() if own == cut and all(cut.answers(year)) and cut.earliest(year) != str(year)
    ]


TASK = Task(
    name="greater_than",
    summary="greater-than: a year after the one that the span began in",
    build=build,
)
