"""From text to tensors: tokenising, aligning, dropping what cannot be used (and saying why), batching by length.

Prompts are padded on the right and models are causal, so padding can change nothing to its left and no attention mask is
needed. The answer is predicted at the last token of the prompt.
"""

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuitsieve.errors import DataError
from circuitsieve.objective import Targets
from circuitsieve.pairs import SPLITS, Pair, TextSplits


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


class Portion(NamedTuple):
    """Which pairs of a batch one of several processes has."""

    first: int
    counted: int
    pairs: int
    """Of the whole batch."""


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Examples of similar length as tensors, padded on the right with token 0. Hashed by identity."""

    clean: Int[Tensor, "batch tokens"]
    corrupted: Int[Tensor, "batch tokens"]
    positions: Int[Tensor, " batch"]
    """Index of the last prompt token: where the answer is predicted."""
    targets: Targets
    shared: int = 0
    """So many tokens stand at the beginning of both prompts of every pair; fewer than any prompt has."""
    of: Portion | None = None
    """Of which batch of several processes it is a portion."""

    @property
    def counted(self) -> int:
        """So many of its pairs count, the first ones: all but a filler in a portion that would be empty."""
        return len(self) if self.of is None else self.of.counted

    @property
    def pairs(self) -> int:
        """Of the whole batch."""
        return len(self) if self.of is None else self.of.pairs

    def portion(self, rank: int, count: int) -> "PairBatch":
        """What one of several processes runs of it: consecutive pairs, about as many for each.

        A process without any takes the first, which does not count: all run the same number of passes.
        """
        rows = torch.arange(len(self)).tensor_split(count)[rank].tolist()
        first, end = (rows[0], rows[-1] + 1) if rows else (0, 1)

        def own(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[first:end]

        return replace(
            self,
            clean=self.clean[first:end],
            corrupted=self.corrupted[first:end],
            positions=self.positions[first:end],
            targets=Targets(*map(own, self.targets)),  # type: ignore[arg-type]
            of=Portion(first, len(rows), len(self)),
        )

    def __len__(self) -> int:
        return self.clean.shape[0]

    @property
    def real(self) -> Bool[Tensor, "batch tokens"]:
        """True where a token belongs to the prompt, False at padding."""
        return torch.arange(self.clean.shape[1], device=self.clean.device) <= self.positions[:, None]


# --- encoding -----------------------------------------------------------------------------------------------------------


class Encoder:
    """Encodes pairs with one tokenizer; a pair that cannot be used raises `Unusable` with the reason."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise DataError(
                f"tokenizer: found {type(tokenizer).__name__}, expected a fast one (tokenizers library): word alignment "
                "needs character offsets"
            )
        self.tokenizer = tokenizer

    def __call__(self, pair: Pair) -> Example:
        """Encode one pair."""
        clean, corrupted = self._ids(pair.clean), self._ids(pair.corrupted)
        if not clean:
            raise Unusable("the clean prompt has no tokens")
        if not (pair.answers and pair.wrong_answers):
            raise Unusable("there is no answer or no wrong answer")
        # Words alone do not see white space after the last of them, which may take tokens too.
        if len(clean) != len(corrupted) or self._tokens_per_word(pair.clean) != self._tokens_per_word(pair.corrupted):
            raise Unusable("clean and corrupted prompts do not align word by word in tokens")
        answers, wrong_answers, candidates = (
            tuple(dict.fromkeys(self._first_token(pair.clean, clean, text) for text in texts))
            for texts in (pair.answers, pair.wrong_answers, pair.candidates)
        )
        if set(answers) & set(wrong_answers):
            raise Unusable("an answer and a wrong answer share their first token")
        if candidates and not set(answers + wrong_answers) <= set(candidates):
            raise Unusable("an answer or a wrong answer is not among the candidates")
        cutoff = tuple(self._first_token(pair.clean, clean, text) for text in pair.cutoff)
        return Example(pair, clean, corrupted, answers, wrong_answers, candidates, cutoff)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text)["input_ids"])

    def _first_token(self, prompt: str, prompt_ids: tuple[int, ...], continuation: str) -> int:
        """The token that follows the prompt in tokenize(prompt + continuation)."""
        whole = self._ids(prompt + continuation)
        if whole[: len(prompt_ids)] != prompt_ids or len(whole) == len(prompt_ids):
            raise Unusable("the prompt's tokens are no prefix of those of prompt + answer")
        return whole[len(prompt_ids)]

    def words(self, text: str) -> list[tuple[str, tuple[str, ...]]]:
        """Each whitespace-separated word with the texts of its tokens (special tokens belong to none)."""
        offsets = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
        words = list(re.finditer(r"\S+", text))
        pieces: list[list[str]] = [[] for _ in words]
        for start, end in offsets:
            word = next((i for i, word in enumerate(words) if end <= word.end()), None)
            if word is not None:
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
    _check_candidates(usable)
    return tuple(usable), tuple(dropped)


def _check_candidates(examples: Sequence[Example]) -> None:
    """Raise a DataError where only some pairs name candidates: their KLs would not be comparable."""
    named = sum(bool(example.candidates) for example in examples)
    if named not in (0, len(examples)):
        raise DataError(f"pairs: found candidates in {named} of {len(examples)} pairs, expected them in all or in none")


def encode(splits: TextSplits, tokenizer: PreTrainedTokenizerBase) -> Pairs:
    """Encode the pairs of all splits; those that cannot be used are dropped and listed with the reason.

    Raises:
        DataError: a split has no usable pair, or only some pairs name candidates.
    """
    splits, repeated = _disjoint(splits)
    encoded = [encode_all(getattr(splits, name), tokenizer, name) for name in SPLITS]
    _check_candidates([example for examples, _ in encoded for example in examples])
    dropped = tuple(drop for drops in (repeated, *(drops for _, drops in encoded)) for drop in drops)
    train, validation, test = (examples for examples, _ in encoded)
    return Pairs(train, validation, test, dropped)


def _disjoint(splits: TextSplits) -> tuple[TextSplits, list[Dropped]]:
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


# --- batching -----------------------------------------------------------------------------------------------------------


def batches(
    examples: Iterable[Example], batch_size: int, *, device: torch.device | str = "cpu", seed: int = 0
) -> list[PairBatch]:
    """Batches of examples of similar length: shuffled, then sorted by length, then cut. The same for the same seed."""
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    shuffled.sort(key=lambda example: len(example.clean))
    return [collate(shuffled[i : i + batch_size], device) for i in range(0, len(shuffled), batch_size)]


def spread(batches: Sequence[PairBatch], wanted: int) -> list[PairBatch]:
    """So many of the batches, at least one, evenly spaced: batches are ordered by length, and length goes with the sentence."""
    taken = min(len(batches), max(1, wanted))
    return [batches[i * len(batches) // taken] for i in range(taken)]


def collate(examples: Sequence[Example], device: torch.device | str) -> PairBatch:
    """One batch of the given examples, in their order."""

    def padded(rows: list[tuple[int, ...]], fill: int) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)

    return PairBatch(
        clean=padded([e.clean for e in examples], 0),
        corrupted=padded([e.corrupted for e in examples], 0),
        positions=torch.tensor([len(e.clean) - 1 for e in examples], device=device),
        targets=Targets(
            answers=padded([e.answers for e in examples], -1),
            wrong_answers=padded([e.wrong_answers for e in examples], -1),
            candidates=padded([e.candidates for e in examples], -1) if examples[0].candidates else None,
            cutoff=torch.tensor([e.cutoff or (-1, -1) for e in examples], device=device)
            if examples[0].cutoff
            else None,
        ),
        shared=min(map(_shared, examples)),
    )


def _shared(example: Example) -> int:
    """How many tokens both prompts begin with, the last one of the prompt apart."""
    same = itertools.takewhile(
        lambda tokens: tokens[0] == tokens[1], zip(example.clean, example.corrupted, strict=True)
    )
    return min(sum(1 for _ in same), len(example.clean) - 1)
