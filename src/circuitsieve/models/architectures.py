"""The family table: where each transformers architecture keeps the modules that matter here.

The only file that names modules of transformers. A family is one row; adding one touches nothing else. Everything that
other rooms need is reached through `Architecture`, which binds a row to one model. This room installs no hooks.

Sites are the inputs and outputs of projections: each takes one positional tensor and returns one, so grouped-query
attention, fused projections and the tuples that blocks return are invisible from there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from circuitsieve.errors import UnsupportedModel
from circuitsieve.models.projections import Fusion, Projection
from circuitsieve.vocabulary import Site, SiteKind

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What transformers' configurations call the number of experts."""


@dataclass(frozen=True)
class Family:
    """One row of the table; paths are relative to a block."""

    model_types: tuple[str, ...]
    blocks: str
    """The ModuleList of blocks, relative to the decoder."""
    q: Projection
    k: Projection
    v: Projection
    attn_out: Projection
    mlp_in: tuple[Projection, ...]
    """Gate and up, or the only input projection."""
    mlp_out: Projection
    attn_norm: str = "input_layernorm"
    """The norm through which attention reads the residual stream."""
    mlp_norm: str = "post_attention_layernorm"
    """The norm through which the MLP does; the same one where both read the same stream."""
    final_norm: str = "norm"
    """The norm before the head, relative to the decoder."""
    attn_post_norm: str | None = None
    """The norm between the attention output projection and the residual stream, where there is one."""
    mlp_post_norm: str | None = None
    joint_qk_norm: bool = False
    """Whether a norm runs over Q of all heads together, and another over K: then every head's rows matter to every head."""
    head_count: "HeadCount | None" = None
    """Where an attention module keeps the number of its heads; None if it cannot do with fewer."""

    @property
    def mlp_roles(self) -> tuple[str, ...]:
        """The roles of the input projections of an MLP."""
        return ("gate", "up") if len(self.mlp_in) == 2 else ("mlp_in",)

    def projection(self, role: str) -> Projection:
        """By role: q, k, v, gate, up, or mlp_in for the only input projection of an MLP."""
        if role in ("q", "k", "v"):
            found: Projection = getattr(self, role)
            return found
        return self.mlp_in[1 if role == "up" else 0]


@dataclass(frozen=True)
class HeadCount:
    """How an attention module knows the number of its heads."""

    path: str = ""
    """The attribute, relative to a block; empty where the module sees it from its projections."""
    in_dims: bool = False
    """Whether the attribute counts head dims."""


def _fused(path: str, fusion: Fusion, parts: int) -> tuple[Projection, ...]:
    return tuple(Projection(path, fusion, part) for part in range(parts))


def _of_attention(*names: str) -> tuple[Projection, ...]:
    return tuple(Projection(f"self_attn.{name}") for name in names)


_Q, _K, _V, _O = _of_attention("q_proj", "k_proj", "v_proj", "o_proj")
_GATE, _UP, _DOWN = (Projection(f"mlp.{name}_proj") for name in ("gate", "up", "down"))
_C_ATTN = _fused("attn.c_attn", Fusion.STACKED, 3)
_QUERY_KEY_VALUE = _fused("attention.query_key_value", Fusion.PER_HEAD, 3)
_QKV = _fused("self_attn.qkv_proj", Fusion.STACKED, 3)

_LLAMA = Family(
    model_types=("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "smollm3", "olmo", "helium", "seed_oss"),
    blocks="layers",
    q=_Q,
    k=_K,
    v=_V,
    attn_out=_O,
    mlp_in=(_GATE, _UP),
    mlp_out=_DOWN,
    head_count=HeadCount(),
)
_GEMMA2 = replace(
    _LLAMA,
    model_types=("gemma2", "gemma3_text"),
    # In Llama-likes a module of this first name is the norm before the MLP; here it follows the attention projection.
    attn_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)

FAMILIES = (
    Family(
        model_types=("gpt2",),
        blocks="h",
        q=_C_ATTN[0],
        k=_C_ATTN[1],
        v=_C_ATTN[2],
        attn_out=Projection("attn.c_proj"),
        mlp_in=(Projection("mlp.c_fc"),),
        mlp_out=Projection("mlp.c_proj"),
        attn_norm="ln_1",
        mlp_norm="ln_2",
        final_norm="ln_f",
        head_count=HeadCount("attn.split_size", in_dims=True),
    ),
    _LLAMA,
    _GEMMA2,
    replace(_GEMMA2, model_types=("olmo2", "olmo3"), joint_qk_norm=True, head_count=None),
    replace(
        _LLAMA,
        model_types=("phi3",),
        q=_QKV[0],
        k=_QKV[1],
        v=_QKV[2],
        mlp_in=_fused("mlp.gate_up_proj", Fusion.STACKED, 2),
        head_count=None,  # its attention cuts Q, K and V apart by the configuration
    ),
    replace(_LLAMA, model_types=("arcee",), mlp_in=(_UP,)),
    replace(
        _LLAMA,
        model_types=("starcoder2",),
        mlp_in=(Projection("mlp.c_fc"),),
        mlp_out=Projection("mlp.c_proj"),
    ),
    replace(
        _LLAMA,
        model_types=("phi",),
        attn_out=Projection("self_attn.dense"),
        mlp_in=(Projection("mlp.fc1"),),
        mlp_out=Projection("mlp.fc2"),
        mlp_norm="input_layernorm",
        final_norm="final_layernorm",
    ),
    Family(
        model_types=("gpt_neox",),
        blocks="layers",
        q=_QUERY_KEY_VALUE[0],
        k=_QUERY_KEY_VALUE[1],
        v=_QUERY_KEY_VALUE[2],
        attn_out=Projection("attention.dense"),
        mlp_in=(Projection("mlp.dense_h_to_4h"),),
        mlp_out=Projection("mlp.dense_4h_to_h"),
        final_norm="final_layer_norm",
        head_count=HeadCount(),
    ),
    replace(
        _LLAMA,
        model_types=("opt",),
        attn_out=Projection("self_attn.out_proj"),
        mlp_in=(Projection("fc1"),),
        mlp_out=Projection("fc2"),
        attn_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",
        final_norm="final_layer_norm",
        head_count=HeadCount("self_attn.num_heads"),
    ),
)


def supported_model_types() -> list[str]:
    """Every `model_type` that the table covers."""
    return [model_type for family in FAMILIES for model_type in family.model_types]


def refusal(name: str, config: PreTrainedConfig) -> str:
    """Why a family without a row cannot be studied, and what would be needed.

    Args:
        name: what the user called the model.
        config: its configuration.
    """
    found = f"{name}: found the family {config.model_type!r}"
    if getattr(config, "is_encoder_decoder", False):
        return (
            f"{found}, an encoder-decoder, expected a decoder-only language model; circuits of two stacks have no row"
        )
    if any(getattr(config, count, None) for count in _EXPERT_COUNTS):
        return (
            f"{found}, a mixture of experts, expected dense MLPs; experts are kept as three-dimensional parameters, and a row "
            "needs modules to watch"
        )
    return (
        f"{found}, expected one of {', '.join(supported_model_types())}; a new row in circuitsieve/models/architectures.py "
        "needs the paths of its blocks and of their Q, K, V, output, up and down projections (docs/new-family.md)"
    )


@dataclass(frozen=True)
class Architecture:
    """A row of the table bound to one model."""

    family: Family
    blocks: tuple[nn.Module, ...]
    unembedding: nn.Module
    final_norm: nn.Module | None
    """None where the residual stream is normed already."""
    norms_residual: bool = False
    """Whether the residual stream itself is normed after each addition, as in the original transformer (OPT 350M)."""
    parallel: bool = False
    """Whether attention and MLP of a layer read the same residual stream."""

    def projection(self, layer: int, projection: Projection) -> nn.Module:
        """The module of a projection (the whole of it where it is fused)."""
        return self.blocks[layer].get_submodule(projection.path)

    def read_module(self, site: Site) -> nn.Module:
        """The module whose first positional input is the activation at a read site or at `embed`."""
        match site.kind:
            case SiteKind.ATTN_READ:
                return self.projection(site.layer, self.family.attn_out)
            case SiteKind.MLP_READ:
                return self.projection(site.layer, self.family.mlp_out)
            case _:
                return self.blocks[0]

    def write_module(self, site: Site) -> nn.Module:
        """The module whose output is the activation at a write site: the post-norm where there is one."""
        if site.kind is SiteKind.ATTN_WRITE:
            norm, projection = self.family.attn_post_norm, self.family.attn_out
        else:
            norm, projection = self.family.mlp_post_norm, self.family.mlp_out
        return self.blocks[site.layer].get_submodule(norm or projection.path)

    def rows(self, role: str, heads: int, kv_heads: int, head_dim: int, neurons: int) -> Int[Tensor, "groups size"]:
        """Which outputs of its module a projection has: [heads, head_dim] of q, [kv heads, head_dim] of k and v.

        Args:
            role: q, k, v, gate, up, or mlp_in for the only input projection of an MLP: [1, neurons].
            heads: of the model, as the three others.
            kv_heads: key/value heads.
            head_dim: dims of one head.
            neurons: MLP neurons of a layer.
        """
        projection = self.family.projection(role)
        if role in ("q", "k", "v"):
            counts = [heads, kv_heads, kv_heads]
            groups, size, sizes = counts["qkv".index(role)], head_dim, [count * head_dim for count in counts]
        else:
            groups, size, sizes = 1, neurons, [neurons, neurons]
        own = torch.arange(groups * size).view(groups, size)
        match projection.fusion:
            case Fusion.NONE:
                return own
            case Fusion.STACKED:
                return own + sum(sizes[: projection.part])
            case Fusion.PER_HEAD:
                return own + (2 * torch.arange(groups)[:, None] + projection.part) * size

    def sites(self) -> Iterator[Site]:
        """Every site of the model, in the order of the forward pass."""
        yield Site(SiteKind.EMBED, 0)
        for layer in range(len(self.blocks)):
            for kind in (SiteKind.ATTN_READ, SiteKind.ATTN_WRITE, SiteKind.MLP_READ, SiteKind.MLP_WRITE):
                yield Site(kind, layer)


def architecture_of(model: nn.Module) -> Architecture:
    """Bind the model's row of the table.

    Raises:
        UnsupportedModel: the model is wrapped by PEFT, quantised, or of a family without a row.
    """
    if hasattr(model, "peft_config"):
        raise UnsupportedModel(
            f"model: found a PEFT adapter ({type(model).__name__}), expected a plain transformers model; merge it first "
            "with merge_and_unload()"
        )
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModel(
            f"model: found {type(model).__module__}.{type(model).__name__}, expected a causal language model of transformers"
        )
    if getattr(model, "is_quantized", False) or getattr(model.config, "quantization_config", None) is not None:
        raise UnsupportedModel(
            "model: found quantised weights, expected float32, bfloat16 or float16 ones; load the unquantised checkpoint "
            "or dequantise it first"
        )
    model_type = str(model.config.model_type)
    family = next((row for row in FAMILIES if model_type in row.model_types), None)
    if family is None:
        raise UnsupportedModel(refusal("model", model.config))
    unembedding = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(unembedding, nn.Module):
        raise UnsupportedModel(
            f"model: found {type(model).__name__} without an output head, expected a causal language model "
            "(AutoModelForCausalLM)"
        )
    decoder = model.get_decoder()  # type: ignore[no-untyped-call]
    blocks = decoder.get_submodule(family.blocks)
    if not isinstance(blocks, nn.ModuleList):
        raise UnsupportedModel(f"model: found no list of blocks at {family.blocks!r} of {type(model).__name__}")
    if not hasattr(decoder, family.final_norm):
        raise UnsupportedModel(f"model: found no final norm at {family.final_norm!r} of {type(model).__name__}")
    return Architecture(
        family,
        tuple(blocks),
        unembedding,
        getattr(decoder, family.final_norm),
        norms_residual=getattr(model.config, "do_layer_norm_before", True) is False,
        parallel=family.attn_norm == family.mlp_norm or getattr(model.config, "use_parallel_residual", False),
    )
