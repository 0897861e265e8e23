"""The text of the data: what a pair is, before any tokenizer has seen it.

A leaf without torch, so that tasks and the command line can name pairs without loading anything heavy.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

SPLITS = ("train", "validation", "test")


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


@dataclass(frozen=True)
class TextSplits:
    """Pairs of text, split. No pair stands in two splits."""

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]


@runtime_checkable
class WordCounter(Protocol):
    """Counts the tokens that a word takes in the middle of a sentence (with its leading space)."""

    def __call__(self, word: str, /) -> int:
        """The number of tokens."""
        ...


@dataclass(frozen=True)
class TaskRequest:
    """What a task is asked for: how many pairs of each split, the seed, and the task's own options."""

    tokens_in: WordCounter
    train: int = 768
    validation: int = 128
    test: int = 256
    seed: int = 0
    options: dict[str, str] = field(default_factory=dict)
