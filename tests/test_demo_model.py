"""The bundled model really does indirect object identification, and its tokenizer is one that pairs can rely on."""

import json
from importlib import resources
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from circuitsieve.data.pairs import Pair, TaskRequest
from circuitsieve.data.tasks.ioi import NAMES, OBJECTS, PLACES, TASK, TEMPLATES

FOLDER = Path(str(resources.files("circuitsieve") / "assets/demo"))
TRAINING = json.loads((FOLDER / "training.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


def held_out(corruption: str = "abc") -> list[Pair]:
    """A hundred pairs of each split, out of those that the training script keeps out of training."""
    request = TaskRequest(lambda word: (word,), 1000, 1000, 1000, TRAINING["held_out_seed"], {"corruption": corruption})
    splits = TASK.build(request)
    return [*splits.train[:100], *splits.validation[:100], *splits.test[:100]]


def token(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    (only,) = tokenizer.encode(word)
    return only


def preferences(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: list[Pair], prompts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per prompt, run alone without padding: logit of the answer less the wrong one, and the probabilities."""
    differences, probabilities = [], []
    for pair, prompt in zip(pairs, prompts, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        right, wrong = token(tokenizer, pair.answers[0]), token(tokenizer, pair.wrong_answers[0])
        differences.append(logits[right] - logits[wrong])
        probabilities.append(logits.softmax(0))
    return torch.stack(differences), torch.stack(probabilities)


def test_it_does_the_task_on_unseen_prompts(model, tokenizer):
    pairs = held_out()
    answers = torch.tensor([token(tokenizer, pair.answers[0]) for pair in pairs])
    differences, probabilities = preferences(model, tokenizer, pairs, [pair.clean for pair in pairs])
    assert (differences > 0).float().mean() >= 0.98
    assert (probabilities.argmax(1) == answers).float().mean() >= 0.98
    assert probabilities[torch.arange(len(pairs)), answers].mean() > 0.9


def test_it_has_no_preference_where_other_names_stand(model, tokenizer):
    pairs = held_out()
    differences, _ = preferences(model, tokenizer, pairs, [pair.corrupted for pair in pairs])
    assert 0.35 < (differences > 0).float().mean() < 0.65


def test_it_follows_the_repeated_name_and_not_the_order(model, tokenizer):
    pairs = held_out("flip")
    differences, _ = preferences(model, tokenizer, pairs, [pair.corrupted for pair in pairs])
    assert (differences < 0).float().mean() >= 0.98


def test_it_does_the_task_on_a_sentence_of_no_template(model, tokenizer):
    prompts = [f"When {names} went to the store, John gave a drink to" for names in ("Mary and John", "John and Mary")]
    pairs = [Pair(prompt, prompt, (" Mary",), (" John",)) for prompt in prompts]
    differences, _ = preferences(model, tokenizer, pairs, prompts)
    assert (differences > 0).all()


def test_the_files_are_few_and_small(model):
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 5_000_000
    assert model.config.model_type == "gpt2"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(value["argmax_accuracy"] >= 0.98 for value in TRAINING["held_out"]["ioi"].values())


def test_the_tokenizer_knows_every_word_of_the_task(tokenizer):
    words = {word for template in TEMPLATES.values() for word in template.split()}
    plain = {word.strip(",") for word in words if "{" not in word}
    for word in {*NAMES, *PLACES, *OBJECTS, *plain}:
        assert token(tokenizer, word) == token(tokenizer, f" {word}") != tokenizer.unk_token_id


def test_the_tokenizer_adds_nothing_and_gives_offsets(tokenizer):
    assert tokenizer.is_fast
    text = "Yesterday Mary, who isn't here, was born in 1732."
    encoded = tokenizer(text, return_offsets_mapping=True)
    spans = [text[start:end] for start, end in encoded["offset_mapping"]]
    assert "|".join(spans) == "Yesterday|Mary|,|who|isn|'t|here|,|was|born|in|17|32|."
    assert not set(encoded["input_ids"]) & {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("Zebra"))[0] == tokenizer.unk_token == "<unk>"


@pytest.mark.parametrize(
    ("prompt", "answer"), [("gave a drink to", " Mary"), ("from the year 1732 to the year 17", "54")]
)
def test_a_prompt_keeps_its_tokens_when_the_answer_follows(tokenizer, prompt, answer):
    together = tokenizer.encode(prompt + answer)
    assert together == tokenizer.encode(prompt) + tokenizer.encode(answer)
