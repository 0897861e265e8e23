"""Examples as tensors: batches of similar length, and the portions of a batch that several processes share.

Prompts are padded on the right and models are causal, so padding can change nothing to its left and no attention mask is
needed. The answer is predicted at the last token of the prompt.
"""

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitsieve.data.tokenising import Example
from circuitsieve.objective import Targets


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


def batches(
    examples: Iterable[Example], batch_size: int, *, device: torch.device | str = "cpu", seed: int = 0
) -> list[PairBatch]:
    """Batches of examples of similar length: shuffled, then sorted by length, then cut. The same for the same seed."""
    ordered = _by_length(examples, seed)
    return [collate(ordered[i : i + batch_size], device) for i in range(0, len(ordered), batch_size)]


def of_all_lengths(examples: Iterable[Example], wanted: int, seed: int = 0) -> list[Example]:
    """So many of the examples, or all where there are no more, of every length as large a share. The same for the same seed."""
    ordered = _by_length(examples, seed)
    taken = min(len(ordered), wanted)
    return [ordered[(2 * i + 1) * len(ordered) // (2 * taken)] for i in range(taken)]


def _by_length(examples: Iterable[Example], seed: int) -> list[Example]:
    ordered = list(examples)
    random.Random(seed).shuffle(ordered)
    return sorted(ordered, key=lambda example: len(example.clean))


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
