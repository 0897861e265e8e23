"""Chat form: read back from the tokens, with a template and tokenizers of the tests' own."""

import pytest

from circuitsieve.data.chat import around, in_chat_form
from circuitsieve.data.loaders import TaskOptions, load_task
from circuitsieve.data.pairs import TextSplits
from circuitsieve.data.tokenising import encode
from circuitsieve.errors import DataError
from tiny import name_pairs, word_tokenizer, write_jsonl

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}When {{ message['content'] }} , {% endfor %}"
    "{% if add_generation_prompt %}gave {% endif %}"
)


def chat_tokenizer(*, bos: bool):
    tokenizer = word_tokenizer(bos=bos)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def splits() -> TextSplits:
    pairs = name_pairs(6)
    return TextSplits(pairs[:2], pairs[2:4], pairs[4:])


@pytest.mark.parametrize("bos", [True, False])
def test_the_answer_begins_the_assistants_turn(bos):
    tokenizer = chat_tokenizer(bos=bos)
    pairs = encode(in_chat_form(splits(), tokenizer, "some {prompt} later"), tokenizer)
    for example, original in zip(pairs.train, splits().train, strict=True):
        expected = f"<s> When some {original.clean} later , gave"
        assert tokenizer.decode(example.clean) == expected
        assert tokenizer.decode(example.answers) == original.answers[0].strip()


@pytest.mark.parametrize("bos", [True, False])
def test_the_prompt_begins_the_assistants_turn(bos):
    tokenizer = chat_tokenizer(bos=bos)
    pairs = encode(in_chat_form(splits(), tokenizer, "to the store"), tokenizer)
    for example, original in zip(pairs.test, splits().test, strict=True):
        assert tokenizer.decode(example.clean) == f"<s> When to the store , gave {original.clean}"
        assert tokenizer.decode(example.corrupted) == f"<s> When to the store , gave {original.corrupted}"


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("instruction", ["some {prompt} later", "to the store"])
def test_what_stands_around_a_prompt_is_the_same_for_every_pair(bos, instruction):
    tokenizer = chat_tokenizer(bos=bos)
    before, behind = around(tokenizer, instruction)
    told = in_chat_form(splits(), tokenizer, instruction)
    for pair, original in zip(told.train + told.test, splits().train + splits().test, strict=True):
        assert (pair.clean, pair.corrupted) == (before + original.clean + behind, before + original.corrupted + behind)


def test_nothing_stands_around_a_prompt_that_is_there_twice():
    with pytest.raises(DataError, match="found the prompt 2 times in the conversation, expected it once"):
        around(chat_tokenizer(bos=False), "{prompt} and {prompt}")


def test_it_is_an_option_of_every_source(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", name_pairs(40))
    pairs = load_task(str(path), chat_tokenizer(bos=True), TaskOptions(chat="{prompt}"))
    assert all(example.pair.clean.endswith(", gave ") for example in pairs.train)


def test_tokenizer_without_a_template_is_refused():
    with pytest.raises(DataError, match="without a chat template, expected the tokenizer of a chat model"):
        in_chat_form(splits(), word_tokenizer(), "{prompt}")
