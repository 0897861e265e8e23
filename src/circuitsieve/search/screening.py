"""What the full model makes of the pairs, before any time is spent on a search."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from circuitsieve.data.batching import collate
from circuitsieve.data.pairs import SPLITS
from circuitsieve.data.tokenising import Dropped, Example, Pairs
from circuitsieve.errors import DataError
from circuitsieve.models.instrument import answer_logits
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.objective import logit_difference

BATCH_SIZE = 16
SCREENED_PAIRS = 64


@dataclass(frozen=True)
class Screening:
    """Accuracy (logit difference above 0) of the full model, on clean and on corrupted prompts."""

    full: float
    empty: float

    @property
    def is_hopeless(self) -> bool:
        """Whether the model does the task hardly better than without its clean prompt."""
        return self.full < self.empty + 0.2


def screen(model: nn.Module, pairs: Pairs) -> Screening:
    """Try the full model on a sample of the validation pairs.

    Its answers to the corrupted prompts are those of the empty circuit under the corrupted baseline.
    """
    return judge(model, pairs.validation[:SCREENED_PAIRS])


def judge(model: nn.Module, examples: Sequence[Example]) -> Screening:
    """The full model's accuracy on some examples, and on their corrupted prompts."""
    corrupted = [replace(example, clean=example.corrupted) for example in examples]
    return Screening(*(sum(_correct(model, those)) / len(those) for those in (examples, corrupted)))


def check_fit(model: nn.Module, examples: Iterable[Example]) -> None:
    """Refuse pairs that the model cannot read.

    Raises:
        DataError: a prompt is longer than the model's context, or a token is not in its vocabulary.
    """
    subject = Subject.of(model)
    context = subject.context
    vocabulary = subject.model.get_input_embeddings().get_parameter("weight").shape[0]
    for example in examples:
        if context is not None and len(example.clean) > context:
            raise DataError(
                f"pair {textwrap.shorten(example.pair.clean, 60)!r}: found a prompt of {len(example.clean)} tokens, expected "
                f"at most {context}, the model's context"
            )
        said = (*example.answers, *example.wrong_answers, *example.candidates, *example.cutoff)
        last = max(*example.clean, *example.corrupted, *said)
        if last >= vocabulary:
            raise DataError(
                f"tokenizer: found the token id {last}, expected ids below {vocabulary}, the model's vocabulary; use the "
                "model's own tokenizer"
            )


def keep_correct(model: nn.Module, pairs: Pairs) -> Pairs:
    """Only the pairs that the full model gets right; the others are dropped with that reason.

    Raises:
        DataError: a split has none.
    """
    kept: list[tuple[Example, ...]] = []
    wrong: list[Dropped] = []
    for split in SPLITS:
        examples = pairs.split(split)
        judged = list(zip(examples, _correct(model, examples), strict=True))
        kept.append(tuple(example for example, right in judged if right))
        wrong += [
            Dropped(example.pair, split, "the full model gets it wrong") for example, right in judged if not right
        ]
        if not kept[-1]:
            raise DataError(f"pairs: found none of {len(examples)} in the {split} split that the full model gets right")
    train, validation, test = kept
    return Pairs(train, validation, test, (*pairs.dropped, *wrong))


def _correct(model: nn.Module, examples: Sequence[Example]) -> list[bool]:
    """Whether the full model gets each example right, in their order."""
    subject = Subject.of(model)
    right: list[bool] = []
    with frozen(model), torch.no_grad():
        for i in range(0, len(examples), BATCH_SIZE):
            batch = collate(examples[i : i + BATCH_SIZE], subject.device)
            logits = answer_logits(subject, batch.clean, batch.positions)
            right += (logit_difference(logits, batch.targets) > 0).tolist()
    return right
