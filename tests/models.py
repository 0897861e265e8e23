"""Tiny random models of every family, made from configurations: no download.

Weights are far larger than transformers' own initialisation (0.02), which makes tiny models nearly linear and blind to a
misplaced hook. The module names below are written by hand, not read from the table under test.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    ArceeConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    HeliumConfig,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SeedOssConfig,
    SmolLM3Config,
    Starcoder2Config,
)
from transformers.pytorch_utils import Conv1D

from circuitsieve.circuits.nodes import NodeSpace
from circuitsieve.data.pairs import Pair
from circuitsieve.data.tokenising import Example
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import Granularity

VOCABULARY, LAYERS, WIDTH, NEURONS = 29, 2, 16, 20
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


_OPT = {
    **{key: value for key, value in _COMMON.items() if key not in ("intermediate_size", "tie_word_embeddings")},
    "ffn_dim": NEURONS,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "activation_function": "gelu",  # of ReLUs, some are closed on every token of a short prompt
}


def _heads(heads: int, kv_heads: int, head_dim: int) -> dict[str, int]:
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}


_CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    # multi-head, fused c_attn, biases everywhere, tied embeddings
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_inner=NEURONS, n_layer=LAYERS, n_head=4, n_positions=64,
        bos_token_id=1, eos_token_id=2,
    ),
    # multi-head, no bias
    "llama_mha": lambda: LlamaConfig(**_COMMON, **_heads(2, 2, 8)),
    # grouped queries, biases everywhere, head_dim != width / heads
    "llama": lambda: LlamaConfig(**_COMMON, **_heads(4, 2, 6), attention_bias=True, mlp_bias=True),
    # multi-query, sliding window
    "mistral": lambda: MistralConfig(**_COMMON, **_heads(4, 1, 4), sliding_window=3),
    # grouped queries, biases of q, k, v only
    "qwen2": lambda: Qwen2Config(**_COMMON, num_attention_heads=4, num_key_value_heads=2),
    # multi-head, head_dim != width / heads, norms of q and k
    "qwen3": lambda: Qwen3Config(**_COMMON, **_heads(3, 3, 6)),
    # grouped queries, post-norms, one sliding layer, capped logits, tied and scaled embeddings
    "gemma3_text": lambda: Gemma3TextConfig(
        **{**_COMMON, "tie_word_embeddings": True}, **_heads(4, 2, 6), sliding_window=3, query_pre_attn_scalar=6,
        layer_types=["sliding_attention", "full_attention"], final_logit_softcapping=8.0,
    ),
    # multi-query, head_dim != width / heads, scaled embeddings
    "gemma": lambda: GemmaConfig(**_COMMON, **_heads(4, 1, 6)),
    # as gemma3_text without norms of q and k, capped attention scores
    "gemma2": lambda: Gemma2Config(
        **{**_COMMON, "tie_word_embeddings": True}, **_heads(4, 2, 6), sliding_window=3, query_pre_attn_scalar=6,
        layer_types=["sliding_attention", "full_attention"], final_logit_softcapping=8.0, attn_logit_softcapping=4.0,
    ),
    # grouped queries, post-norms and no others, norms of all of q and all of k
    "olmo2": lambda: Olmo2Config(**_COMMON, num_attention_heads=4, num_key_value_heads=2),
    # grouped queries, fused qkv_proj of unequal parts, fused gate_up_proj, sliding window
    "phi3": lambda: Phi3Config(**_COMMON, num_attention_heads=4, num_key_value_heads=2, sliding_window=3),
    # parallel residual, partial rotary, biases everywhere, one of the head too
    "phi": lambda: PhiConfig(**_COMMON, num_attention_heads=4, partial_rotary_factor=0.5),
    # parallel residual, partial rotary, heads fused one after the other, biases everywhere
    "gpt_neox": lambda: GPTNeoXConfig(**_COMMON, num_attention_heads=4, rotary_pct=0.5),
    "gpt_neox_serial": lambda: GPTNeoXConfig(
        **_COMMON, num_attention_heads=2, rotary_pct=0.5, use_parallel_residual=False
    ),
    # flattened MLP, biases everywhere, tied embeddings
    "opt": lambda: OPTConfig(**_OPT, word_embed_proj_dim=WIDTH),
    # norms after the residual additions, embeddings narrower than the residual stream
    "opt_post_norm": lambda: OPTConfig(**_OPT, word_embed_proj_dim=10, do_layer_norm_before=False),
}  # fmt: skip

_ALIKE: dict[str, Callable[[], PreTrainedConfig]] = {
    # positions in one layer only
    "smollm3": lambda: SmolLM3Config(
        **_COMMON, num_attention_heads=4, num_key_value_heads=2, no_rope_layers=[1, 0]
    ),
    # one layer with a sliding window
    "ministral": lambda: MinistralConfig(
        **_COMMON, **_heads(4, 2, 6), sliding_window=3, layer_types=["sliding_attention", "full_attention"],
    ),
    # norms without parameters, clipped queries, keys and values
    "olmo": lambda: OlmoConfig(**_COMMON, num_attention_heads=4, num_key_value_heads=2, clip_qkv=8.0),
    # as olmo2, one layer with a sliding window
    "olmo3": lambda: Olmo3Config(
        **_COMMON, num_attention_heads=4, num_key_value_heads=2, sliding_window=3,
        layer_types=["sliding_attention", "full_attention"],
    ),
    # positions in pairs that lie side by side
    "helium": lambda: HeliumConfig(**_COMMON, **_heads(4, 2, 4)),
    # biases of q, k, v only, head_dim != width / heads
    "seed_oss": lambda: SeedOssConfig(**_COMMON, **_heads(4, 2, 6)),
    # ungated MLP
    "arcee": lambda: ArceeConfig(**_COMMON, **_heads(4, 2, 6)),
    # ungated MLP of other names, biases everywhere, tied embeddings
    "starcoder2": lambda: Starcoder2Config(
        **{**_COMMON, "tie_word_embeddings": True}, num_attention_heads=4, num_key_value_heads=2
    ),
}  # fmt: skip
"""Model types that are like one of the above but for what their comment says: the table and what reads it are tested with
them, other rooms are not."""

POST_NORM = frozenset({"gemma2", "gemma3_text", "olmo2", "olmo3"})
"""Families with a norm between the projections and the residual stream."""
OUTPUT_BIAS = frozenset({"gpt2", "llama", "phi", "gpt_neox", "gpt_neox_serial", "opt", "opt_post_norm"})
"""Those of `_CONFIGS` whose output projections add biases."""

FAMILIES = tuple(_CONFIGS)
ALL_TYPES = (*FAMILIES, *_ALIKE)
each_family = pytest.mark.parametrize("family", FAMILIES)
each_type = pytest.mark.parametrize("family", ALL_TYPES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-3, torch.float64: 1e-9}
"""Largest difference of logits that counts as rounding, relative to the largest logit."""


@dataclass(frozen=True)
class Names:
    """Where a family keeps its modules, written by hand: decoder-relative, {0} is the layer."""

    attn_out: str
    mlp_out: str
    final_norm: str
    attn_post_norm: str = ""
    mlp_post_norm: str = ""


_LLAMA_NAMES = Names("layers.{0}.self_attn.o_proj", "layers.{0}.mlp.down_proj", "norm")
_POST_NORM_NAMES = Names(
    _LLAMA_NAMES.attn_out,
    _LLAMA_NAMES.mlp_out,
    "norm",
    "layers.{0}.post_attention_layernorm",
    "layers.{0}.post_feedforward_layernorm",
)
_NAMES = {
    "gpt2": Names("h.{0}.attn.c_proj", "h.{0}.mlp.c_proj", "ln_f"),
    "gemma2": _POST_NORM_NAMES,
    "gemma3_text": _POST_NORM_NAMES,
    "olmo2": _POST_NORM_NAMES,
    "olmo3": _POST_NORM_NAMES,
    "starcoder2": Names("layers.{0}.self_attn.o_proj", "layers.{0}.mlp.c_proj", "norm"),
    "phi": Names("layers.{0}.self_attn.dense", "layers.{0}.mlp.fc2", "final_layernorm"),
    "gpt_neox": Names("layers.{0}.attention.dense", "layers.{0}.mlp.dense_4h_to_h", "final_layer_norm"),
    "opt": Names("layers.{0}.self_attn.out_proj", "layers.{0}.fc2", "final_layer_norm"),
}


def module(model: PreTrainedModel, role: str, layer: int = 0) -> nn.Module:
    """The module with a role of `Names`."""
    names = _NAMES.get(model.config.model_type, _LLAMA_NAMES)
    found: nn.Module = model.get_decoder().get_submodule(getattr(names, role).format(layer))
    return found


def weight(projection: nn.Module) -> Tensor:
    """The weight as [outputs, inputs], a view."""
    values = projection.get_parameter("weight").data
    return values.T if isinstance(projection, Conv1D) else values


@cache
def shared(family: str, dtype: torch.dtype = torch.float32) -> Subject:
    """The subject of a family; tests leave it as it is (`fresh` gives a model to operate on)."""
    model = AutoModelForCausalLM.from_config((_CONFIGS | _ALIKE)[family](), dtype=dtype)
    randomise(model, seed=3)
    return Subject.of(model.eval().requires_grad_(False))


def fresh(subject: Subject) -> PreTrainedModel:
    """A copy of a subject's model."""
    return copy.deepcopy(subject.model)


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Large random weights: a fifth of a norm's scale is noise, no bias is near 0, attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)

    def normal(values: Tensor) -> Tensor:
        return torch.randn(values.shape, generator=generator).to(values.dtype)

    with torch.no_grad():
        for name, owner in model.named_modules():
            for kind, values in owner.named_parameters(recurse=False):
                if kind == "bias":
                    values.copy_(normal(values).sign() * 0.3 + 0.3 * normal(values))
                elif values.dim() == 1:
                    values.add_(0.2 * normal(values))
                elif isinstance(owner, nn.Embedding):
                    values.copy_(0.7 * normal(values))
                else:
                    gain = 1.5 if "attn" in name else 1.0
                    fan_in = values.shape[0 if isinstance(owner, Conv1D) else 1]
                    values.copy_(gain * fan_in**-0.5 * normal(values))


def random_ids(seed: int, batch: int = 3, tokens: int = 7) -> Tensor:
    """Prompts of random tokens."""
    return torch.randint(0, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def random_examples(lengths: Iterable[int], seed: int = 0) -> list[Example]:
    """Pairs of random tokens, with the given numbers of tokens."""
    found = []
    for i, length in enumerate(lengths):
        clean, corrupted = random_ids(1000 * seed + i, 2, length).tolist()
        found.append(
            Example(Pair(f"clean {i}", f"corrupted {i}", ("a",), ("b",)), tuple(clean), tuple(corrupted), (3,), (4,))
        )
    return found


def random_masks(space: NodeSpace, seed: int, *, soft: bool = False) -> dict[Granularity, Tensor]:
    """Random masks of every granularity; boolean ones keep most nodes, and sometimes empty a parent of its children."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(n: tuple[int, int]) -> Tensor:
        return torch.rand(n, generator=generator)

    if soft:
        return {g: uniform(space.shape(g)) for g in Granularity}
    masks = {g: uniform(space.shape(g)) < (0.9 if space.shape(g)[1] == 1 else 0.75) for g in Granularity}
    for granularity in (Granularity.HEAD, Granularity.MLP_NEURON, Granularity.ATTN_OUT_DIM, Granularity.MLP_OUT_DIM):
        masks[granularity] &= uniform((space.layers, 1)) < 0.85
    dims = masks[Granularity.HEAD_DIM].view(space.layers, space.heads, space.head_dim)
    dims &= uniform((space.layers, space.heads))[..., None] < 0.75
    return masks


def difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-9))


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal up to the rounding of their dtype."""
    assert found.shape == expected.shape
    assert difference(found, expected) <= TOLERANCE[found.dtype]


def assert_differs(found: Tensor, expected: Tensor) -> None:
    """Clearly different: what makes an `assert_same` beside it able to fail."""
    assert difference(found, expected) > 2 * TOLERANCE[found.dtype]
