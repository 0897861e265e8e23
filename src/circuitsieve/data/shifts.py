"""The same task, told otherwise: pairs of text changed in ways that a circuit should not mind.

A change is made to the clean and the corrupted prompt alike, where both have the same words, so that they go on to differ in what
the task is about and in nothing else.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from circuitsieve.data.pairs import Pair

DISTRACTORS = (
    "The weather was mild that day. ",
    "Nobody remembered how it had started. ",
    "A dog was barking somewhere. ",
    "It had rained all week. ",
)
SHORTEST = 4
"""Letters of a word that may be misspelt."""

_WORD = re.compile(r"[^\W\d_]+")


def misspelt(pair: Pair, rng: random.Random) -> Pair | None:
    """Two letters inside of a word change places; it is a word in lower case that both prompts have at the same place.

    None where there is no such word.
    """
    clean, corrupted = (list(_WORD.finditer(text)) for text in (pair.clean, pair.corrupted))
    if len(clean) != len(corrupted):
        return None
    places = [
        i
        for i, (a, b) in enumerate(zip(clean, corrupted, strict=True))
        if a[0] == b[0] and a[0].islower() and len(a[0]) >= SHORTEST and len(set(a[0][1:-1])) > 1
    ]
    if not places:
        return None
    place = rng.choice(places)
    word = clean[place][0]
    swaps = [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]
    at = rng.choice(swaps)
    wrong = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    texts = (
        text[: match[place].start()] + wrong + text[match[place].end() :]
        for text, match in ((pair.clean, clean), (pair.corrupted, corrupted))
    )
    return replace(pair, clean=next(texts), corrupted=next(texts))


def distracted(pair: Pair, rng: random.Random) -> Pair | None:
    """A sentence that has nothing to do with the task stands before the prompt."""
    sentence = rng.choice(DISTRACTORS)
    return replace(pair, clean=sentence + pair.clean, corrupted=sentence + pair.corrupted)


SHIFTS: Mapping[str, Callable[[Pair, random.Random], Pair | None]] = {"typos": misspelt, "distractors": distracted}
"""By name: how a pair is changed; None where it cannot be."""


def shifted(pairs: Iterable[Pair], shift: str, seed: int, around: tuple[str, str] = ("", "")) -> list[Pair]:
    """The pairs that can be changed, changed.

    Args:
        pairs: as they were told.
        shift: the name of the change.
        seed: of what is drawn.
        around: what stands before and behind every prompt and stays as it is (a conversation); other pairs are left out.
    """
    before, behind = around
    changed = (SHIFTS[shift](pair, random.Random(f"{shift} {seed} {pair.clean}")) for pair in _taken_out(pairs, around))
    return [_told(pair, lambda text: before + text + behind) for pair in changed if pair is not None]


def _taken_out(pairs: Iterable[Pair], around: tuple[str, str]) -> Iterator[Pair]:
    before, behind = around
    for pair in pairs:
        if all(text.startswith(before) and text.endswith(behind) for text in (pair.clean, pair.corrupted)):
            yield _told(pair, lambda text: text.removeprefix(before).removesuffix(behind))


def _told(pair: Pair, change: Callable[[str], str]) -> Pair:
    """The pair with both prompts changed."""
    return replace(pair, clean=change(pair.clean), corrupted=change(pair.corrupted))
