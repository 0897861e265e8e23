"""What task files share: splitting words, choosing fillings, checking options. No words and no sentences of its own."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from circuitsieve.data.pairs import SPLITS, Pair, TextSplits, WordCounter
from circuitsieve.errors import ConfigError, DataError, one_of

T = TypeVar("T")
Choices = Mapping[str, tuple[str, ...]]
"""The values of each option, its default first."""


def chosen(task: str, choices: Choices, given: Mapping[str, str]) -> dict[str, str]:
    """Every option with its value, defaults filled in.

    Raises:
        ConfigError: an option or its value is unknown.
    """
    for option, value in given.items():
        if option not in choices:
            raise ConfigError(one_of(f"option of task {task}", option, list(choices)))
        if value not in choices[option]:
            raise ConfigError(one_of(f"option {option} of task {task}", value, list(choices[option])))
    return {option: values[0] for option, values in choices.items()} | dict(given)


def of_one_length(task: str, what: str, words: Iterable[str], tokens_in: WordCounter, smallest: int) -> list[str]:
    """The largest group of words with the same number of tokens; of equally large groups the one with fewer tokens.

    Raises:
        DataError: the largest group has fewer than `smallest` words.
    """
    words = list(words)
    groups: dict[int, list[str]] = {}
    for word in words:
        groups.setdefault(tokens_in(f" {word}"), []).append(word)
    length, group = min(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    if len(group) < smallest:
        raise DataError(
            f"task {task}: found at most {len(group)} of {len(words)} {what} with the same number of tokens ({length}), "
            f"expected {smallest} or more; this tokenizer needs pairs of your own"
        )
    return group


def split(items: Sequence[T], rng: random.Random, *, at_least: int = 1) -> dict[str, list[T]]:
    """Shuffled items in disjoint parts of 60, 20 and 20 %, validation and test with `at_least` so many each."""
    shuffled = rng.sample(items, len(items))
    part = max(at_least, round(0.2 * len(items)))
    return {"train": shuffled[2 * part :], "validation": shuffled[:part], "test": shuffled[part : 2 * part]}


def spread(
    prefix: str,
    count: int,
    templates: Sequence[str],
    fillings: int,
    fill: Callable[[str, int, random.Random], Pair],
    rng: random.Random,
) -> tuple[Pair, ...]:
    """Distinct pairs, as many of each template as of any other (give or take one), shuffled and numbered.

    Args:
        prefix: of the pairs' ids.
        count: how many; where there are fewer different ones, all of them.
        templates: what is handed to `fill`, one after the other.
        fillings: how many different pairs a template can make.
        fill: the pair of a template and a filling from 0 to `fillings` - 1; different numbers make different
            pairs.
        rng: chooses.

    Raises:
        DataError: a negative number of pairs is asked for.
    """
    if count < 0:
        raise DataError(f"{prefix}: found {count} pairs asked for, expected 0 or more")
    count = min(count, fillings * len(templates))
    pairs: list[Pair] = []
    for position, template in enumerate(templates):
        share = len(range(position, count, len(templates)))
        pairs += [fill(template, number, rng) for number in rng.sample(range(fillings), share)]
    rng.shuffle(pairs)
    return tuple(replace(pair, id=f"{prefix}-{number:04d}") for number, pair in enumerate(pairs, start=1))


def digits(number: int, *bases: int) -> list[int]:
    """A number written in mixed radix, the last base being that of the last digit: other numbers, other digits."""
    found = []
    for base in reversed(bases):
        number, digit = divmod(number, base)
        found.append(digit)
    return found[::-1]


def splits(make: Callable[[str], tuple[Pair, ...]]) -> TextSplits:
    """The three splits, each made from its name."""
    return TextSplits(*(make(name) for name in SPLITS))
