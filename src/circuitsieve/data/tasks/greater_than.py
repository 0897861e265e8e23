"""Greater-than: a span of years ends after it begins.

"The war lasted from the year 1732 to the year 17" -> a number above 32 (Hanna et al. 2023, arXiv 2305.00586; nouns and
sentences here are our own choice). The corrupted prompt begins as early in the century as can be, so that any end would do.

Tokenizers cut years differently, so the answer position is that of the first piece of the year that decides: after "17" where
years are `17|32` or `1|7|3|2`, after "173" where they are `173|2`. Its candidates are all numbers of that many digits, over
which the KL is renormalised. Years whose piece leaves the answer open (nothing above or nothing below) are left out.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable
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

    def shown(self, year: int) -> str:
        """What the prompt shows of a year's like."""
        return f"{year:04d}"[: self.before]

    def value(self, year: int) -> int:
        """The piece of a year that decides, as a number."""
        return int(f"{year:04d}"[self.before : self.before + self.size])

    def spelled(self, value: int) -> str:
        """A piece that decides."""
        return f"{value:0{self.size}d}"

    @property
    def decides(self) -> bool:
        """Whether no digit follows the piece."""
        return self.before + self.size == 4


@dataclass(frozen=True)
class Span:
    """The year that a span begins in, and the pieces that it may end with."""

    start: int
    cut: Cut
    ends: tuple[int, ...]
    """The pieces, as rising numbers, that the tokenizer cuts off behind what is shown of the year."""
    earliest: int
    """The first year that looks the same where the prompt ends: any end follows it, or nearly any."""

    @property
    def larger(self) -> tuple[str, ...]:
        """The pieces that end after the start."""
        return self._spelled(value for value in self.ends if value > self._own)

    @property
    def smaller(self) -> tuple[str, ...]:
        """The pieces that do not."""
        # Where more digits follow, an equal piece leaves the answer open.
        return self._spelled(value for value in self.ends if value < self._own + self.cut.decides)

    @property
    def cutoff(self) -> tuple[str, ...]:
        """The nearest piece above that of the start, and the nearest below it, as far as there are any."""
        below = self._spelled(value for value in self.ends if value < self._own)
        return self.larger[:1] + below[-1:]

    @property
    def candidates(self) -> tuple[str, ...]:
        """Every piece that the answer may be."""
        return self._spelled(self.ends)

    @property
    def _own(self) -> int:
        return self.cut.value(self.start)

    def _spelled(self, values: Iterable[int]) -> tuple[str, ...]:
        return tuple(self.cut.spelled(value) for value in values)


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
    nouns, spans = making.split(NOUNS, rng), making.split(_usable_spans(request.pieces), rng)

    def make(split: str) -> tuple[Pair, ...]:
        def fill(template: str, number: int, _: random.Random) -> Pair:
            noun, year = making.digits(number, len(nouns[split]), len(spans[split]))
            span = spans[split][year]
            clean, corrupted = (
                template.format(noun=nouns[split][noun], start=begin, end=span.cut.shown(begin))
                for begin in (span.start, span.earliest)
            )
            name = f"years-{TEMPLATES.index(template) + 1}"
            return Pair(clean, corrupted, span.larger, span.smaller, span.candidates, template=name, cutoff=span.cutoff)

        return making.spread(
            f"greater_than-{split}",
            getattr(request, split),
            TEMPLATES,
            len(nouns[split]) * len(spans[split]),
            fill,
            random.Random(f"greater_than {split} {request.seed}"),
        )

    return making.splits(make)


def _usable_spans(pieces: Callable[[str], tuple[str, ...]]) -> list[Span]:
    """The years of the most common cut that have an end above and one below, and an earlier year to be replaced by.

    Some tokenizers take some years whole (GPT-2 has " 1700" as one token). What is not cut like most is no start, and no end.
    """
    cuts = {
        year: cut_of(pieces(f" {year}")) for century in CENTURIES for year in range(100 * century, 100 * century + 99)
    }
    common = Counter(cut for cut in cuts.values() if cut is not None).most_common(1)
    if not common:
        raise DataError(
            "task greater_than: found a tokenizer that takes years whole, expected one that cuts them; give pairs of your own"
        )
    cut = common[0][0]
    alike: dict[str, list[int]] = {}
    for year, own in cuts.items():
        if own == cut and (year % 100 or cut.before == 3):  # a century begins with its year 01
            alike.setdefault(cut.shown(year), []).append(year)
    ends = {
        shown: tuple(value for value in range(10**cut.size) if cut_of(pieces(f" {shown}{cut.spelled(value)}")) == cut)
        for shown in alike
    }
    spans = [Span(year, cut, ends[shown], years[0]) for shown, years in alike.items() for year in years[1:]]
    return [span for span in spans if span.smaller and len(span.cutoff) == 2]


TASK = Task(
    name="greater_than",
    summary="greater-than: a year after the one that the span began in",
    build=build,
)
