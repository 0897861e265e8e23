"""The family table: where each transformers architecture keeps the modules that matter here.

The only file that names modules of transformers. A family is one row; adding one touches nothing else. Everything that
other rooms need is reached through `Architecture`, which binds a row to one model. This room installs no hooks.

Sites are the inputs and outputs of projections: each takes one positional tensor and returns one, so grouped-query
attention, fused projections and the tuples that blocks return are invisible from there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from circuitsieve.errors import UnsupportedModel
from circuitsieve.vocabulary import Site, SiteKind


@dataclass(frozen=True)
class Projection:
    """A projection inside a block: a module, or one of the equal parts of a fused module's outputs."""

    path: str
    part: int = 0
    parts: int = 1


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
    attn_post_norm: str | None = None
    """The norm between the attention output projection and the residual stream, where there is one."""
    mlp_post_norm: str | None = None


_C_ATTN = "attn.c_attn"
_Q, _K, _V, _O = (Projection(f"self_attn.{name}_proj") for name in "qkvo")
_GATED_MLP = (Projection("mlp.gate_proj"), Projection("mlp.up_proj"))

FAMILIES = (
    Family(
        model_types=("gpt2",),
        blocks="h",
        q=Projection(_C_ATTN, 0, 3),
        k=Projection(_C_ATTN, 1, 3),
        v=Projection(_C_ATTN, 2, 3),
        attn_out=Projection("attn.c_proj"),
        mlp_in=(Projection("mlp.c_fc"),),
        mlp_out=Projection("mlp.c_proj"),
    ),
    Family(
        model_types=("llama", "mistral", "qwen2", "qwen3"),
        blocks="layers",
        q=_Q,
        k=_K,
        v=_V,
        attn_out=_O,
        mlp_in=_GATED_MLP,
        mlp_out=Projection("mlp.down_proj"),
    ),
    Family(
        model_types=("gemma3_text",),
        blocks="layers",
        q=_Q,
        k=_K,
        v=_V,
        attn_out=_O,
        mlp_in=_GATED_MLP,
        mlp_out=Projection("mlp.down_proj"),
        # In Llama-likes a module of this first name is the norm before the MLP; here it follows the attention projection.
        attn_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    ),
)


def supported_model_types() -> list[str]:
    """Every `model_type` that the table covers."""
    return [model_type for family in FAMILIES for model_type in family.model_types]


@dataclass(frozen=True)
class Architecture:
    """A row of the table bound to one model."""

    family: Family
    blocks: tuple[nn.Module, ...]
    unembedding: nn.Module

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

    def sites(self) -> Iterator[Site]:
        """Every site of the model, in the order of the forward pass."""
        yield Site(SiteKind.EMBED, 0)
        for layer in range(len(self.blocks)):
            for kind in (SiteKind.ATTN_READ, SiteKind.ATTN_WRITE, SiteKind.MLP_READ, SiteKind.MLP_WRITE):
                yield Site(kind, layer)


def is_input_major(module: nn.Module) -> bool:
    """Whether a projection's weight is [inputs, outputs] (Conv1D of GPT-2) rather than [outputs, inputs]."""
    return isinstance(module, Conv1D)


def in_features(module: nn.Module) -> int:
    """The number of inputs of a projection."""
    weight = module.get_parameter("weight")
    return int(weight.shape[0 if is_input_major(module) else 1])


def has_bias(module: nn.Module) -> bool:
    """Whether a projection adds a bias."""
    return getattr(module, "bias", None) is not None


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
        raise UnsupportedModel(
            f"model: found the family {model_type!r}, expected one of {', '.join(supported_model_types())}; another family "
            "needs a row in circuitsieve/architectures.py"
        )
    unembedding = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(unembedding, nn.Module):
        raise UnsupportedModel(
            f"model: found {type(model).__name__} without an output head, expected a causal language model "
            "(AutoModelForCausalLM)"
        )
    blocks = model.get_decoder().get_submodule(family.blocks)  # type: ignore[no-untyped-call]
    if not isinstance(blocks, nn.ModuleList):
        raise UnsupportedModel(f"model: found no list of blocks at {family.blocks!r} of {type(model).__name__}")
    return Architecture(family, tuple(blocks), unembedding)
