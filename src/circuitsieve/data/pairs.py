"""The text of the data: what a pair is, before any tokenizer has seen it.

A leaf without torch, so that tasks and the command line can name pairs without loading anything heavy.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from circuitsieve.errors import DataError

SPLITS = ("train", "validation", "test")
LISTS = ("answers", "wrong_answers", "candidates", "cutoff")
"""What a pair has several of."""


@dataclass(frozen=True)
class Pair:
    """A clean prompt, its counterfactual, and what the model should and should not say next.

    Answers are the text that follows the prompt directly, so they carry their own leading space.
    """

    clean: str
    corrupted: str
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]
    candidates: tuple[str, ...] = ()
    """Tokens over which probabilities and the KL are renormalised; empty means the whole vocabulary."""
    id: str = ""
    template: str = ""
    cutoff: tuple[str, ...] = ()
    """Where answers are numbers beyond a border: the one just above it and the one just below it."""

    def __post_init__(self) -> None:
        """Refuse a text where texts are expected: its letters would be taken for them.

        Raises:
            DataError: answers, wrong answers, candidates or cutoff are a text, or a cutoff is not two of them.
        """
        for name in LISTS:
            if isinstance(found := getattr(self, name), str):
                raise DataError(f"pair: {name}: found the text {found!r}, expected a tuple of texts, ({found!r},)")
        if len(self.cutoff) not in (0, 2):
            raise DataError(
                f"pair: cutoff: found {len(self.cutoff)} texts, expected two, just above and just below the border"
            )


@dataclass(frozen=True)
class TextSplits:
    """Pairs of text, split. No pair stands in two splits."""

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]


WordCounter = Callable[[str], int]
"""Counts the tokens that a word takes in the middle of a sentence (given with its leading space)."""


@dataclass(frozen=True)
class TaskRequest:
    """What a task is asked for: how many pairs of each split at most, the seed, and the task's own options."""

    pieces: Callable[[str], tuple[str, ...]]
    """The texts of the tokens that a text takes in the middle of a sentence: all that a task may know of a tokenizer."""
    train: int = 3072
    validation: int = 128
    test: int = 192
    seed: int = 0
    options: dict[str, str] = field(default_factory=dict)

    def tokens_in(self, word: str) -> int:
        """The number of tokens that a word takes in the middle of a sentence (given with its leading space)."""
        return len(self.pieces(word))
