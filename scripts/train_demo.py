"""Trains the bundled `demo` model: a GPT-2 of half a million parameters that really does the built-in tasks.

    python scripts/train_demo.py --out src/circuitsieve/assets/demo

1. Build the pairs on which the model is measured; no sentence with one of their prompts is trained on.
2. Make a tokenizer of all words that occur in the tasks' sentences.
3. Train from scratch on an endless stream of sentences, every task with the same share: prompt, answer, full stop.
   In two thirds of them some words are left out, so that no word's position gives the answer away: without that, or
   with MLPs twice as wide, one layer does it all and there is hardly a circuit to find.
4. Measure, and save the model, the tokenizer and `training.json`.

The same seed on the same machine gives the same bytes. Nothing is read from disk or network.
"""

import argparse
import itertools
import json
import math
import platform
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from circuitsieve.data import tasks as built_in
from circuitsieve.data.pairs import SPLITS, Pair, TaskRequest
from circuitsieve.data.tasks import Task

DEMO_TASKS = ("ioi", "greater_than", "gender_pronoun")
HELD_OUT_SEED = 20_260
"""Seed of the pairs that the model is measured on."""

UNKNOWN, PAD, END = SPECIAL_TOKENS = ("<unk>", "<pad>", "<eos>")

# Short forms split like GPT-2's ("isn", "'t"); numbers in twos, so that "1732" begins with the tokens of "17".
WORDS = r"'(?:s|t|d|m|re|ve|ll)\b|[^\W\d_]+|\d\d?|\S"

LEFT_OUT = (0.0, 0.2, 0.5)
"""How many of the words that do not matter are left out of a sentence: one of these shares, drawn at random."""


class Sentence(NamedTuple):
    """A prompt and the answer that follows it directly."""

    prompt: str
    answer: str


def main() -> None:
    """Trains, measures and saves."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)
    tasks = [built_in.get(name) for name in arguments.tasks]
    held_out = {task.name: pairs_of(task, HELD_OUT_SEED) for task in tasks}
    tokenizer = make_tokenizer(tasks)
    model = make_model(tokenizer)
    print(f"{sum(weight.numel() for weight in model.parameters())} parameters, {len(tokenizer)} words")
    excluded = {pair.clean for splits in held_out.values() for pairs in splits.values() for pair in pairs}
    seconds = train(model, tokenizer, tasks, excluded, arguments)
    measured = {
        name: {split: measure(model, tokenizer, pairs) for split, pairs in splits.items()}
        for name, splits in held_out.items()
    }
    print(json.dumps(measured, indent=2))
    save(model, tokenizer, arguments, measured)
    print(f"trained in {seconds:.0f} s, saved to {arguments.out}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the bundled demo model.")
    parser.add_argument("--tasks", nargs="+", choices=built_in.names(), default=list(DEMO_TASKS))
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def pairs_of(task: Task, seed: int, count: int = 1000) -> dict[str, tuple[Pair, ...]]:
    """The pairs of each split of a task, `count` of each at most, cut as the tokenizer will cut them."""
    splits = task.build(TaskRequest(lambda text: tuple(re.findall(WORDS, text)), count, count, count, seed))
    return {split: getattr(splits, split) for split in SPLITS}


def sentences(task: Task, seed: int, excluded: set[str]) -> Iterator[Sentence]:
    """An endless stream of a task's sentences, each prompt ending in one of its answers."""
    rng = random.Random(f"{task.name} {seed}")
    for block in itertools.count(1_000_000 * (seed + 1)):
        pairs = [pair for split in pairs_of(task, block, count=400).values() for pair in split]
        rng.shuffle(pairs)
        for pair in pairs:
            if pair.clean not in excluded:
                yield Sentence(thinned(pair, rng), rng.choice(pair.answers))


def thinned(pair: Pair, rng: random.Random) -> str:
    """The clean prompt without some of the words that it shares with the corrupted one; the last word always stays."""
    share = rng.choice(LEFT_OUT)
    *words, (last, _) = zip(pair.clean.split(), pair.corrupted.split(), strict=True)
    kept = [clean for clean, corrupted in words if clean != corrupted or rng.random() >= share]
    return " ".join([*kept, last])


def make_tokenizer(tasks: list[Task], blocks: int = 10) -> PreTrainedTokenizerFast:
    """A word tokenizer that knows every word of the tasks' sentences and adds no token of its own."""
    splitter = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    words = {"."}
    for task, seed in itertools.product(tasks, range(blocks)):
        for pair in itertools.chain(*pairs_of(task, seed).values()):
            text = " ".join([pair.clean, pair.corrupted, *pair.answers, *pair.wrong_answers, *pair.candidates])
            words.update(word for word, _ in splitter.pre_tokenize_str(text))
    vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, pad_token=PAD, eos_token=END, model_max_length=64
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """The untrained model."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=128,
        n_layer=4,
        n_head=8,
        n_inner=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)


def train(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    tasks: list[Task],
    excluded: set[str],
    arguments: argparse.Namespace,
) -> float:
    """Trains in place; returns the seconds it took."""
    start = time.perf_counter()
    streams = [sentences(task, arguments.seed, excluded) for task in tasks]
    mixed = itertools.chain.from_iterable(zip(*streams, strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, arguments.steps))
    model.train()
    for step in range(arguments.steps):
        tokens, mask, answers = encode(tokenizer, list(itertools.islice(mixed, arguments.batch_size)))
        logits = model(input_ids=tokens, attention_mask=mask).logits
        sentence_loss, answer_loss = losses(logits, tokens, mask, answers)
        optimizer.zero_grad()
        (sentence_loss + answer_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(
                f"step {step + 1}  sentence {sentence_loss.item():.3f}  answer {answer_loss.item():.4f}  "
                f"{time.perf_counter() - start:.0f} s",
                flush=True,
            )
    model.eval()
    return time.perf_counter() - start


def learning_rate(step: int, steps: int, warm_up: int = 50) -> float:
    """The share of the highest learning rate: a linear rise, then half a cosine down to zero."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def encode(tokenizer: PreTrainedTokenizerFast, batch: list[Sentence]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and mask [batch, length], padded on the right, and the position [batch] of each answer's first token."""
    texts = [f"{sentence.prompt}{sentence.answer}.{END}" for sentence in batch]
    padded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    answers = torch.tensor([len(tokenizer(sentence.prompt)["input_ids"]) for sentence in batch])
    return padded["input_ids"], padded["attention_mask"], answers


def losses(logits: Tensor, tokens: Tensor, mask: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """The mean next-token loss of all words and that of the answers; logits [batch, length, vocabulary]."""
    each = functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none") * mask[:, 1:]
    return each.sum() / mask[:, 1:].sum(), each.gather(1, answers[:, None] - 1).mean()


@torch.no_grad()
def measure(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, pairs: tuple[Pair, ...]) -> dict[str, float]:
    """How well the model does the pairs' task on clean prompts, and its preference on the corrupted ones."""
    clean = final_logits(model, tokenizer, [pair.clean for pair in pairs])
    corrupted = final_logits(model, tokenizer, [pair.corrupted for pair in pairs])
    right, wrong = torch.zeros_like(clean, dtype=torch.bool), torch.zeros_like(clean, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        right[row, [tokenizer.encode(answer)[0] for answer in pair.answers]] = True
        wrong[row, [tokenizer.encode(answer)[0] for answer in pair.wrong_answers]] = True

    def differences(logits: Tensor) -> Tensor:
        best, other = (logits.masked_fill(~those, -torch.inf).amax(1) for those in (right, wrong))
        return best - other

    values = {
        "accuracy": (differences(clean) > 0).float().mean(),
        "argmax_accuracy": right.gather(1, clean.argmax(1, keepdim=True)).float().mean(),
        "probability": (clean.softmax(1) * right).sum(1).mean(),
        "smallest_probability": (clean.softmax(1) * right).sum(1).min(),
        "logit_diff": differences(clean).mean(),
        "corrupted_accuracy": (differences(corrupted) > 0).float().mean(),
        "corrupted_logit_diff": differences(corrupted).mean(),
        "corrupted_probability": (corrupted.softmax(1) * right).sum(1).mean(),
    }
    return {name: round(value.item(), 5) for name, value in values.items()} | {"n": len(pairs)}


def final_logits(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> Tensor:
    """The logits [prompts, vocabulary] after the last word of each prompt."""
    batch = tokenizer(prompts, padding=True, padding_side="right", return_tensors="pt")
    last = batch["attention_mask"].sum(1) - 1
    logits: Tensor = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits
    return logits[torch.arange(len(prompts)), last]


def save(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    arguments: argparse.Namespace,
    measured: dict[str, dict[str, dict[str, float]]],
) -> None:
    """Writes the model, the tokenizer and `training.json`; nothing in it tells the time, so a rerun gives the same bytes."""
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    (arguments.out / "model.safetensors").chmod(0o644)
    training = {
        "command": "python scripts/train_demo.py "
        f"--tasks {' '.join(arguments.tasks)} --out DIR --seed {arguments.seed} --steps {arguments.steps} "
        f"--batch-size {arguments.batch_size} --lr {arguments.lr} --threads {arguments.threads}",
        "seed": arguments.seed,
        "held_out_seed": HELD_OUT_SEED,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "held_out": measured,
    }
    (arguments.out / "training.json").write_text(json.dumps(training, indent=2) + "\n")


if __name__ == "__main__":
    main()
