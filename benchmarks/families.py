"""Random models of every family, of any size, made from configurations; and pairs of random tokens for them."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from circuitsieve.data.pairs import Pair
from circuitsieve.data.tokenising import Example, Pairs


@dataclass(frozen=True)
class Sizes:
    """What a random model is made of."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    """Where the family groups its queries."""
    neurons: int
    vocabulary: int


TINY = Sizes(width=32, layers=2, heads=4, kv_heads=2, neurons=48, vocabulary=64)
MEDIUM = Sizes(width=256, layers=4, heads=8, kv_heads=4, neurons=704, vocabulary=2048)
POSITIONS = 1024
_PECULIAR: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "gemma2": {"sliding_window": POSITIONS},
    "gemma3_text": {"sliding_window": POSITIONS},
    "phi3": {"sliding_window": None},
    "phi": {"partial_rotary_factor": 0.5},
}
"""What a family wants beside the sizes."""


def config_of(model_type: str, sizes: Sizes) -> PreTrainedConfig:
    """The configuration of a family's model; head dims are width / heads, queries are grouped where the family does so."""
    named: dict[str, Any] = {
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if model_type == "gpt2":
        return AutoConfig.for_model(
            "gpt2",
            vocab_size=sizes.vocabulary,
            n_embd=sizes.width,
            n_layer=sizes.layers,
            n_head=sizes.heads,
            n_inner=sizes.neurons,
            n_positions=POSITIONS,
            bos_token_id=1,
            eos_token_id=2,
        )
    if model_type == "opt":
        return AutoConfig.for_model("opt", **named, ffn_dim=sizes.neurons, word_embed_proj_dim=sizes.width)
    named |= {"intermediate_size": sizes.neurons, "tie_word_embeddings": False}
    if model_type not in ("phi", "gpt_neox"):
        named["num_key_value_heads"] = sizes.kv_heads
    if model_type in ("gemma", "gemma2", "gemma3_text", "qwen3"):
        named["head_dim"] = sizes.width // sizes.heads
    return AutoConfig.for_model(model_type, **named, **_PECULIAR.get(model_type, {}))


def random_model(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of a configuration, in evaluation mode; the global random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def token_pairs(vocabulary: int, length: int, train: int, others: int) -> Pairs:
    """Pairs of random tokens of one length, without any prefix that both prompts share."""
    generator, pair = random.Random(0), Pair("", "", (), ())

    def example() -> Example:
        clean, corrupted = (tuple(generator.choices(range(3, vocabulary), k=length)) for _ in range(2))
        other = 3 + (clean[0] - 2) % (vocabulary - 3)
        return Example(pair, clean, (other, *corrupted[1:]), (1,), (2,))

    def examples(count: int) -> tuple[Example, ...]:
        return tuple(example() for _ in range(count))

    return Pairs(examples(train), examples(others), examples(others))
