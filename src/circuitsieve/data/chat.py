"""Prompts in chat form: the tokenizer's own chat template around them, with the answer position where it belongs."""

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from circuitsieve.data.pairs import SPLITS, Pair, TextSplits
from circuitsieve.errors import DataError

PLACE = "{prompt}"
"""Where an instruction takes the prompt in."""


def in_chat_form(splits: TextSplits, tokenizer: PreTrainedTokenizerBase, instruction: str) -> TextSplits:
    """The same pairs, asked in a conversation.

    An instruction with `{prompt}` in it is the user's turn, and the answer begins the assistant's turn (without the space
    that it has in mid-sentence). Another instruction is the user's turn as it is, and the assistant's turn begins with the
    prompt, which the answer goes on.

    Raises:
        DataError: the tokenizer has no chat template, or one that fails.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"chat: found {type(tokenizer).__name__} without a chat template, expected the tokenizer of a chat model; leave "
            "--chat out"
        )

    def asked(prompt: str) -> str:
        return (
            _turns(tokenizer, instruction.replace(PLACE, prompt))
            if PLACE in instruction
            else _turns(tokenizer, instruction) + prompt
        )

    def converted(pair: Pair) -> Pair:
        pair = replace(pair, clean=asked(pair.clean), corrupted=asked(pair.corrupted))
        if PLACE not in instruction:
            return pair
        answers, wrong_answers, candidates, cutoff = (
            tuple(text.lstrip(" ") for text in texts)
            for texts in (pair.answers, pair.wrong_answers, pair.candidates, pair.cutoff)
        )
        return replace(pair, answers=answers, wrong_answers=wrong_answers, candidates=candidates, cutoff=cutoff)

    return TextSplits(*(tuple(converted(pair) for pair in getattr(splits, split)) for split in SPLITS))


def around(tokenizer: PreTrainedTokenizerBase, instruction: str) -> tuple[str, str]:
    """What stands before and behind every prompt in chat form.

    Raises:
        DataError: the instruction takes the prompt in more than once, or the template changes it.
    """
    if PLACE not in instruction:
        return _turns(tokenizer, instruction), ""
    ends = _turns(tokenizer, instruction).split(PLACE)
    if len(ends) != 2:
        raise DataError(f"chat: found the prompt {len(ends) - 1} times in the conversation, expected it once")
    return ends[0], ends[1]


def _turns(tokenizer: PreTrainedTokenizerBase, content: str) -> str:
    """The user's turn and the opening of the assistant's, without the token that the tokenizer puts in front by itself."""
    turns = [{"role": "user", "content": content}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of somebody else's, and raises what it likes
        raise DataError(
            f"chat: found a chat template that fails ({type(error).__name__}: {error}), expected one that takes a user's turn; "
            "leave --chat out"
        ) from error
    bos = tokenizer.bos_token
    adds_bos = bos is not None and tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    return text.removeprefix(bos) if adds_bos and bos is not None else text
