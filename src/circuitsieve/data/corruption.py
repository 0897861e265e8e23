"""Making corrupted prompts: the same sentence about something else, token by token as long, so that the pair aligns."""

import random
import re
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from circuitsieve.errors import DataError


def swap(text: str, first: str, second: str) -> str:
    """The text with two words (or spans of words) exchanged everywhere.

    Raises:
        DataError: one of them does not stand in the text.
    """
    for span in (first, second):
        _require(text, span)
    longest_first = sorted(map(re.escape, (first, second)), key=len, reverse=True)  # one may begin with the other
    pattern = re.compile(rf"\b(?:{'|'.join(longest_first)})\b")
    return pattern.sub(lambda found: second if found.group() == first else first, text)


def replace_from_list(
    text: str, span: str, choices: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, seed: int = 0
) -> str:
    """The text with a span replaced everywhere by another one that takes as many tokens there.

    Args:
        text: the clean prompt.
        span: what is replaced, whole words.
        choices: what may take its place; those that do not align are passed over.
        tokenizer: the model's own.
        seed: chooses among those that align.

    Raises:
        DataError: the span does not stand in the text, or no choice aligns.
    """
    _require(text, span)
    length = len(tokenizer(text)["input_ids"])
    choices = [choice for choice in choices if choice != span]
    random.Random(f"{seed} {text}").shuffle(choices)
    for choice in choices:
        replaced = _replaced(text, span, choice)
        if len(tokenizer(replaced)["input_ids"]) == length and _same_place(tokenizer, text, replaced, span, choice):
            return replaced
    raise DataError(
        f"corruption of {text!r}: found none of {len(choices)} choices that takes as many tokens as {span!r}, expected one"
    )


def replace_from_rows(
    texts: Sequence[str], spans: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, seed: int = 0
) -> list[str]:
    """Every text with its span replaced by the span of another row that takes as many tokens there.

    Raises:
        DataError: there are more or fewer spans than texts, a span does not stand in its text, or no other row's aligns.
    """
    if len(texts) != len(spans):
        raise DataError(f"corruption: found {len(spans)} spans for {len(texts)} texts, expected one each")
    others = list(dict.fromkeys(spans))
    return [
        replace_from_list(text, span, others, tokenizer, seed=seed) for text, span in zip(texts, spans, strict=True)
    ]


def _require(text: str, span: str) -> None:
    if not span or re.search(rf"\b{re.escape(span)}\b", text) is None:
        raise DataError(f"corruption of {text!r}: found no {span!r} in it, expected it as a whole word")


def _replaced(text: str, span: str, choice: str) -> str:
    return re.sub(rf"\b{re.escape(span)}\b", lambda _: choice, text)


def _same_place(tokenizer: PreTrainedTokenizerBase, text: str, replaced: str, span: str, choice: str) -> bool:
    """Whether the first replaced span takes as many tokens, and those before and after it stay where they were."""
    position = re.search(rf"\b{re.escape(span)}\b", text)
    assert position is not None
    start = position.start()
    before = len(tokenizer(text[:start].rstrip())["input_ids"])
    return len(tokenizer(text[: start + len(span)])["input_ids"]) == len(
        tokenizer(replaced[: start + len(choice)])["input_ids"]
    ) and before == len(tokenizer(replaced[:start].rstrip())["input_ids"])
