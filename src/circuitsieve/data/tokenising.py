"""From text to tokens: tokenising, aligning, dropping what cannot be used (and saying why)."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from circuitsieve.data.pairs import SPLITS, Pair, TextSplits
from circuitsieve.errors import DataError


@dataclass(frozen=True)
class Example:
    """A pair in tokens: two prompts of equal length and the first tokens of what may follow."""

    pair: Pair
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answers: tuple[int, ...]
    wrong_answers: tuple[int, ...]
    candidates: tuple[int, ...] = ()
    cutoff: tuple[int, ...] = ()


@dataclass(frozen=True)
class Dropped:
    """A pair that cannot be used, and why."""

    pair: Pair
    split: str
    reason: str


@dataclass(frozen=True)
class Pairs:
    """Usable examples by split, and the dropped pairs."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    dropped: tuple[Dropped, ...] = ()

    def split(self, name: str) -> tuple[Example, ...]:
        """The examples of `train`, `validation` or `test`."""
        examples: tuple[Example, ...] = getattr(self, name)
        return examples

    def reasons(self) -> Counter[str]:
        """How many pairs were dropped for each reason."""
        return Counter(dropped.reason for dropped in self.dropped)


def check_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that does not say where its tokens stand.

    Raises:
        DataError: it is none of the tokenizers library.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"tokenizer: found {type(tokenizer).__name__}, expected a fast one (tokenizers library): word alignment "
            "needs character offsets"
        )


class Encoder:
    """Encodes pairs with one tokenizer; a pair that cannot be used raises `Unusable` with the reason."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        check_fast(tokenizer)
        self.tokenizer = tokenizer

    def __call__(self, pair: Pair) -> Example:
        """Encode one pair."""
        said = tuple(dict.fromkeys((*pair.answers, *pair.wrong_answers, *pair.candidates, *pair.cutoff)))
        clean, corrupted, *wholes = self._ids([pair.clean, pair.corrupted, *(pair.clean + text for text in said)])
        if not clean:
            raise Unusable("the clean prompt has no tokens")
        if not (pair.answers and pair.wrong_answers):
            raise Unusable("there is no answer or no wrong answer")
        if clean == corrupted:
            raise Unusable("clean and corrupted prompts are the same in tokens")
        # Words alone do not see white space after the last of them, which may take tokens too.
        if len(clean) != len(corrupted) or self._tokens_per_word(pair.clean) != self._tokens_per_word(pair.corrupted):
            raise Unusable("clean and corrupted prompts do not align word by word in tokens")
        if any(whole[: len(clean)] != clean or len(whole) == len(clean) for whole in wholes):
            raise Unusable("the prompt's tokens are no prefix of those of prompt + answer")
        first = {text: whole[len(clean)] for text, whole in zip(said, wholes, strict=True)}
        answers, wrong_answers, candidates = (
            tuple(dict.fromkeys(first[text] for text in texts))
            for texts in (pair.answers, pair.wrong_answers, pair.candidates)
        )
        cutoff = tuple(first[text] for text in pair.cutoff)
        if set(answers) & set(wrong_answers):
            raise Unusable("an answer and a wrong answer share their first token")
        if candidates and not {*answers, *wrong_answers, *cutoff} <= set(candidates):
            raise Unusable("an answer, a wrong answer or a number of the cutoff is not among the candidates")
        return Example(pair, clean, corrupted, answers, wrong_answers, candidates, cutoff)

    def _ids(self, texts: list[str]) -> list[tuple[int, ...]]:
        return [tuple(ids) for ids in self.tokenizer(texts)["input_ids"]]

    def words(self, text: str) -> list[tuple[str, tuple[str, ...]]]:
        """Each whitespace-separated word with the texts of its tokens (special tokens belong to none)."""
        offsets = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
        words = list(re.finditer(r"\S+", text))
        ends = [word.end() for word in words]
        pieces: list[list[str]] = [[] for _ in words]
        for start, end in offsets:
            word = bisect_left(ends, end)
            if word < len(words):  # white space at the end belongs to none
                pieces[word].append(text[start:end])
        return [(word.group(), tuple(own)) for word, own in zip(words, pieces, strict=True)]

    def _tokens_per_word(self, text: str) -> list[int]:
        return [len(pieces) for _, pieces in self.words(text)]


class Unusable(Exception):
    """Why one pair cannot be used: caught where pairs are encoded, never shown as an error."""


def encode_all(
    pairs: Iterable[Pair], tokenizer: PreTrainedTokenizerBase, split: str = "test"
) -> tuple[tuple[Example, ...], tuple[Dropped, ...]]:
    """Encode pairs; those that cannot be used are listed with the reason.

    Raises:
        DataError: none can be used, or only some name candidates.
    """
    encoder = Encoder(tokenizer)
    usable: list[Example] = []
    dropped: list[Dropped] = []
    for pair in pairs:
        try:
            usable.append(encoder(pair))
        except Unusable as reason:
            dropped.append(Dropped(pair, split, str(reason)))
    if not usable:
        shown = "; ".join(f"{drop.pair.clean!r}: {drop.reason}" for drop in dropped[:3])
        raise DataError(
            f"pairs: found no usable one among {len(dropped)} in the {split} split, expected at least one"
            + (f"; for example {shown}" if shown else "; give more pairs, or a folder with a file for each split")
        )
    check_candidates(usable)
    return tuple(usable), tuple(dropped)


def check_candidates(examples: Sequence[Example]) -> None:
    """Raise a DataError where only some pairs name candidates: their KLs would not be comparable."""
    named = sum(bool(example.candidates) for example in examples)
    if named not in (0, len(examples)):
        raise DataError(f"pairs: found candidates in {named} of {len(examples)} pairs, expected them in all or in none")


def encode(splits: TextSplits, tokenizer: PreTrainedTokenizerBase) -> Pairs:
    """Encode the pairs of all splits; those that cannot be used are dropped and listed with the reason.

    Raises:
        DataError: a split has no usable pair, or only some pairs name candidates.
    """
    splits, repeated = disjoint(splits)
    encoded = [encode_all(getattr(splits, name), tokenizer, name) for name in SPLITS]
    check_candidates([example for examples, _ in encoded for example in examples])
    dropped = tuple(drop for drops in (repeated, *(drops for _, drops in encoded)) for drop in drops)
    train, validation, test = (examples for examples, _ in encoded)
    return Pairs(train, validation, test, dropped)


def disjoint(splits: TextSplits) -> tuple[TextSplits, list[Dropped]]:
    """Splits without the pairs whose clean prompt a later split holds too: what judges must not have been trained on."""
    kept: dict[str, tuple[Pair, ...]] = {}
    repeated: list[Dropped] = []
    seen: dict[str, str] = {}
    for split in reversed(SPLITS):
        pairs = getattr(splits, split)
        kept[split] = tuple(pair for pair in pairs if pair.clean not in seen)
        repeated += [
            Dropped(pair, split, f"its clean prompt stands in the {seen[pair.clean]} split too")
            for pair in pairs
            if pair.clean in seen
        ]
        seen |= {pair.clean: split for pair in kept[split]}
    return TextSplits(**kept), repeated
