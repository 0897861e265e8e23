"""What becomes of pairs under a model: which are usable and why others are not, how their tokens align, and how well the full
model does on them. For people who prepare their own data.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

from circuitsieve.data.pairs import SPLITS, Pair, TextSplits
from circuitsieve.data.tokenising import Encoder, Example, Unusable, check_candidates, disjoint
from circuitsieve.models.loading import LoadedModel
from circuitsieve.search.screening import Screening, check_fit, judge


class WordRow(NamedTuple):
    """One word of a pair: its tokens in the clean and in the corrupted prompt; none where a prompt has ended."""

    clean: tuple[str, ...]
    corrupted: tuple[str, ...]

    @property
    def aligned(self) -> bool:
        """Whether both take the same number of tokens."""
        return len(self.clean) == len(self.corrupted)


@dataclass(frozen=True)
class CheckedPair:
    """A pair with its words, and why it cannot be used (None: it can)."""

    pair: Pair
    split: str
    words: tuple[WordRow, ...]
    reason: str | None


@dataclass(frozen=True)
class DataReport:
    """What became of the pairs."""

    pairs: tuple[CheckedPair, ...]
    screening: Screening | None
    """Accuracies over all usable pairs; None where there are none."""

    @property
    def usable(self) -> dict[str, int]:
        """How many pairs of each split can be used."""
        counts = Counter(checked.split for checked in self.pairs if checked.reason is None)
        return {split: counts[split] for split in SPLITS}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "usable": self.usable,
            "dropped": self.reasons,
            "accuracy": None if self.screening is None else self.screening.full,
            "corrupted_accuracy": None if self.screening is None else self.screening.empty,
            "pairs": [
                {"split": checked.split, "clean": checked.pair.clean, "words": checked.words, "reason": checked.reason}
                for checked in self.pairs
            ],
        }

    @property
    def reasons(self) -> dict[str, int]:
        """Why others cannot, and how many of them."""
        return dict(Counter(checked.reason for checked in self.pairs if checked.reason is not None).most_common())


def check_data(loaded: LoadedModel, splits: TextSplits) -> DataReport:
    """Look at every pair.

    Raises:
        DataError: the model cannot read a pair, the tokenizer gives no offsets, or only some pairs name candidates.
    """
    encoder = Encoder(loaded.tokenizer)
    kept, repeated = disjoint(splits)
    usable: list[Example] = []

    def checked(pair: Pair, split: str) -> CheckedPair:
        reason = None
        try:
            usable.append(encoder(pair))
        except Unusable as error:
            reason = str(error)
        return CheckedPair(pair, split, tuple(align(encoder, pair)), reason)

    pairs = [checked(pair, split) for split in SPLITS for pair in getattr(kept, split)]
    pairs += [CheckedPair(d.pair, d.split, tuple(align(encoder, d.pair)), d.reason) for d in repeated]
    check_candidates(usable)
    check_fit(loaded.model, usable)
    return DataReport(tuple(pairs), judge(loaded.model, usable) if usable else None)


def align(encoder: Encoder, pair: Pair) -> Iterable[WordRow]:
    """The words of both prompts side by side."""
    for clean, corrupted in zip_longest(encoder.words(pair.clean), encoder.words(pair.corrupted), fillvalue=("", ())):
        yield WordRow(clean[1], corrupted[1])
