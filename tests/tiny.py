"""Tiny models, tokenizers and pairs, all made on the spot: no download, no bundled file, a fraction of a second.

Words are tokens, so that every expected token can be read off the text. Nothing here is seeded by the global random state.
"""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from circuitsieve.data.pairs import Pair, TextSplits
from circuitsieve.data.tokenising import Pairs, encode
from circuitsieve.models.loading import LoadedModel

NAMES = ("Mary", "John", "Anna", "Paul", "Ruth", "Mark", "Jane", "Carl")
PLACES = ("store", "park", "school", "market")
WORDS = (
    "<unk>",
    "<s>",
    *NAMES,
    *PLACES,
    *["When", "and", "went", "to", "the", ",", "gave", "a", "drink", "later", "some"],
)


def word_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a word; with `bos`, every text begins with `<s>`."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", WORDS.index("<s>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>")


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """Words of one or two pieces: `undo` is `un ##do`, `unsay` is `un ##say`."""
    pieces = ("<unk>", "un", "##do", "##say", "go", "do", "say", "then", "please")
    core = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Characters, but `t` and `h` merge into one token wherever they meet, also across the end of a prompt."""
    vocabulary = {token: i for i, token in enumerate(("<unk>", "a", "t", "h", "e", " ", "th"))}
    core = Tokenizer(models.BPE(vocabulary, merges=[("t", "h")], unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def tiny_gpt2(seed: int = 0, *, layers: int = 2) -> PreTrainedModel:
    """A random GPT-2 with 2 heads of 4 dims and 12 MLP neurons a layer; every weight is large enough to matter."""
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_positions=32,
        n_embd=8,
        n_layer=layers,
        n_head=2,
        n_inner=12,
        bos_token_id=1,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
        for parameter in model.parameters():
            parameter.data.normal_()
    return model.eval()


def tiny_folder(path: Path, seed: int = 0) -> Path:
    """A folder that `load_model` reads."""
    tiny_gpt2(seed).save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return path


def tiny_loaded(seed: int = 0) -> LoadedModel:
    """The same model and tokenizer without a file."""
    return LoadedModel(tiny_gpt2(seed), word_tokenizer())


def name_pairs(count: int, seed: int = 0) -> tuple[Pair, ...]:
    """Distinct pairs of two lengths: of two names, the one that is not repeated."""
    generator = random.Random(seed)
    pairs: dict[str, Pair] = {}
    while len(pairs) < count:
        io, subject, *others = generator.sample(NAMES, 5)
        ending = f" went to the {generator.choice(PLACES)} , {{}} gave a drink " + generator.choice(("to", "to the"))
        clean = f"When {io} and {subject}" + ending.format(subject)
        corrupted = f"When {others[0]} and {others[1]}" + ending.format(others[2])
        pairs[clean] = Pair(clean, corrupted, (f" {io}",), (f" {subject}",))
    return tuple(pairs.values())


def tiny_pairs(train: int = 12, validation: int = 8, test: int = 10) -> Pairs:
    """Encoded pairs for the tiny model."""
    pairs = name_pairs(train + validation + test)
    cut = train + validation
    return encode(TextSplits(pairs[:train], pairs[train:cut], pairs[cut:]), word_tokenizer())


def write_jsonl(path: Path, pairs: tuple[Pair, ...]) -> Path:
    """Pairs as users write them: the four columns that are needed."""
    rows = (
        {"clean": p.clean, "corrupted": p.corrupted, "answers": p.answers, "wrong_answers": p.wrong_answers}
        for p in pairs
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path
