"""The family table: what it refuses and in which words; and the self-check, which must notice a wrong row."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from circuitsieve.errors import CircuitsieveError, UnsupportedModel
from circuitsieve.models import architectures
from circuitsieve.models.architectures import Family, architecture_of, supported_model_types
from circuitsieve.models.projections import Projection
from circuitsieve.models.selfcheck import selfcheck
from circuitsieve.vocabulary import Site, SiteKind
from models import ALL_TYPES, LAYERS, POST_NORM, each_dtype, each_type, fresh, module, randomise, shared

# --- refusals ------------------------------------------------------------------------------------------------------------


def other_family() -> nn.Module:
    return BloomForCausalLM(BloomConfig(vocab_size=11, hidden_size=8, n_layer=1, n_head=2))


def mixture_of_experts() -> nn.Module:
    return MixtralForCausalLM(
        MixtralConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    )


def encoder_decoder() -> nn.Module:
    return T5ForConditionalGeneration(T5Config(vocab_size=11, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))


def adapter() -> nn.Module:
    """What PEFT returns: a wrapper, or a model with adapters injected; both carry `peft_config`."""
    model = fresh(shared("llama"))
    model.peft_config = {"default": "LoraConfig"}
    return model


def quantised() -> nn.Module:
    model = fresh(shared("llama"))
    model.config.quantization_config = {"quant_method": "gptq"}
    return model


def headless() -> nn.Module:
    return AutoModel.from_config(shared("llama").model.config)


REFUSALS = {
    "family": (
        other_family,
        r"^model: found the family 'bloom', expected one of gpt2, llama, mistral, ministral, qwen2, qwen3, gemma, "
        r"smollm3, olmo, helium, seed_oss, gemma2, gemma3_text, olmo2, olmo3, phi3, arcee, starcoder2, phi, gpt_neox, opt; a "
        r"new row in circuitsieve/models/architectures.py needs the paths of its blocks and of their Q, K, V, output, up and "
        r"down projections \(docs/new-family.md\)$",
    ),
    "experts": (
        mixture_of_experts,
        r"^model: found the family 'mixtral', a mixture of experts, expected dense MLPs; experts are kept as three-dimensional "
        r"parameters, and a row needs modules to watch$",
    ),
    "encoder-decoder": (
        encoder_decoder,
        r"^model: found the family 't5', an encoder-decoder, expected a decoder-only language model; circuits of two stacks "
        r"have no row$",
    ),
    "adapter": (
        adapter,
        r"^model: found a PEFT adapter \(LlamaForCausalLM\), expected a plain transformers model; merge it first with "
        r"merge_and_unload\(\)$",
    ),
    "quantised": (
        quantised,
        r"^model: found quantised weights, expected float32, bfloat16 or float16 ones; load the unquantised checkpoint or "
        r"dequantise it first$",
    ),
    "headless": (
        headless,
        r"^model: found LlamaModel without an output head, expected a causal language model \(AutoModelForCausalLM\)$",
    ),
    "no transformer": (
        lambda: nn.Linear(2, 2),
        r"^model: found torch.nn.modules.linear.Linear, expected a causal language model of transformers$",
    ),
}


@pytest.mark.parametrize(("model", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(model: object, message: str):
    refused = model()  # type: ignore[operator]
    with pytest.raises(UnsupportedModel, match=message):
        architecture_of(refused)
    with pytest.raises(UnsupportedModel, match=message):
        selfcheck(refused)


def test_a_final_norm_that_is_not_there_is_a_wrong_row(monkeypatch: pytest.MonkeyPatch):
    rows = [
        replace(row, final_norm="last_norm") if "llama" in row.model_types else row for row in architectures.FAMILIES
    ]
    monkeypatch.setattr(architectures, "FAMILIES", tuple(rows))
    with pytest.raises(UnsupportedModel, match="found no final norm at 'last_norm' of LlamaForCausalLM"):
        architecture_of(shared("llama").model)


def test_every_supported_family_is_tested():
    tested = {shared(family).model.config.model_type for family in ALL_TYPES}
    assert tested == set(supported_model_types())


# --- the table -----------------------------------------------------------------------------------------------------------


@each_type
def test_sites_and_modules(family: str):
    subject = shared(family)
    sites = list(subject.architecture.sites())
    assert len(sites) == len(set(sites)) == 1 + 4 * LAYERS
    for layer in range(LAYERS):
        for block in ("attn", "mlp"):
            projection = module(subject.model, f"{block}_out", layer)
            written = module(subject.model, f"{block}_post_norm", layer) if subject.space.post_norm else projection
            assert subject.architecture.read_module(Site(SiteKind(f"{block}_read"), layer)) is projection
            assert subject.architecture.write_module(Site(SiteKind(f"{block}_write"), layer)) is written
    assert subject.architecture.unembedding is subject.model.get_output_embeddings()


BIASES = {
    "gpt2": {"q", "k", "v", "attn_out", "mlp_in", "mlp_out"},
    "llama": {"q", "k", "v", "attn_out", "mlp_in", "mlp_out"},
    "qwen2": {"q", "k", "v"},
    "seed_oss": {"q", "k", "v"},
}
BIASES |= dict.fromkeys(("phi", "gpt_neox", "gpt_neox_serial", "opt", "opt_post_norm", "starcoder2"), BIASES["gpt2"])
UNGATED = {"gpt2", "phi", "gpt_neox", "gpt_neox_serial", "opt", "opt_post_norm", "arcee", "starcoder2"}


@each_type
def test_measured_shapes(family: str):
    """Against numbers read off the configurations in tests/models.py."""
    space = shared(family).space
    heads = {
        "gpt2": (4, 4, 4), "llama_mha": (2, 2, 8), "llama": (4, 2, 6), "mistral": (4, 1, 4), "qwen2": (4, 2, 4),
        "qwen3": (3, 3, 6), "gemma3_text": (4, 2, 6), "gemma": (4, 1, 6), "gemma2": (4, 2, 6), "olmo2": (4, 2, 4),
        "phi3": (4, 2, 4), "phi": (4, 4, 4), "gpt_neox": (4, 4, 4), "gpt_neox_serial": (2, 2, 8), "opt": (4, 4, 4),
        "opt_post_norm": (4, 4, 4), "smollm3": (4, 2, 4), "ministral": (4, 2, 6), "olmo": (4, 2, 4), "olmo3": (4, 2, 4),
        "helium": (4, 2, 4), "seed_oss": (4, 2, 6), "arcee": (4, 2, 6), "starcoder2": (4, 2, 4),
    }  # fmt: skip
    assert (space.heads, space.kv_heads, space.head_dim) == heads[family]
    assert (space.layers, space.neurons, space.width) == (2, 20, 16)
    assert space.mlp_inputs == (1 if family in UNGATED else 2)
    assert space.biases == BIASES.get(family, set())
    assert space.post_norm == (family in POST_NORM)


# --- self-check ----------------------------------------------------------------------------------------------------------


@each_dtype
@each_type
def test_selfcheck_passes(family: str, dtype: torch.dtype):
    seen = []
    results = selfcheck(
        shared(family, dtype).model, progress=lambda name, done, total: seen.append((name, done, total))
    )
    for result in results:
        assert result.passed, result
    assert [done for _, done, _ in seen] == list(range(1, len(results) + 1))
    assert {total for _, _, total in seen} == {len(results)}
    assert len({result.name for result in results}) == len(results) >= 7


def test_selfcheck_reads_no_more_than_the_model_can():
    config = GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=14, bos_token_id=0, eos_token_id=0)
    assert noticed(GPT2LMHeadModel(config).eval()) == []


def noticed(model: PreTrainedModel) -> list[str]:
    """The checks that fail; an error counts as one."""
    try:
        return [result.name for result in selfcheck(model) if not result.passed]
    except (CircuitsieveError, RuntimeError) as error:
        return [type(error).__name__]


WRONG_ROWS = {
    "llama_mha": [
        {"attn_out": Projection("self_attn.q_proj")},
        {"attn_out": Projection("self_attn.v_proj")},
        {"attn_out": Projection("mlp.down_proj")},
        {"mlp_out": Projection("mlp.up_proj")},
        {"mlp_out": Projection("mlp.gate_proj")},
        {"mlp_out": Projection("self_attn.o_proj")},
        {"attn_post_norm": "post_attention_layernorm"},  # the name lies: in Llama-likes it is the norm before the MLP
        {"mlp_post_norm": "input_layernorm"},
    ],
    "gpt2": [
        {"attn_out": Projection("mlp.c_proj")},
        {"attn_out": Projection("attn.c_attn")},
        {"mlp_out": Projection("mlp.c_fc")},
        {"attn_post_norm": "ln_2"},
    ],
    "gemma3_text": [
        {"attn_out": Projection("self_attn.v_proj")},
        {"attn_out": Projection("self_attn.q_proj")},
        {"mlp_out": Projection("mlp.up_proj")},
        {"mlp_out": Projection("mlp.gate_proj")},
        {"attn_post_norm": None, "mlp_post_norm": None},
        {"attn_post_norm": "pre_feedforward_layernorm"},
        {"mlp_post_norm": "post_attention_layernorm"},
        {"mlp_post_norm": "input_layernorm"},
    ],
}


@each_dtype
@pytest.mark.parametrize(
    ("family", "wrong"),
    [(family, wrong) for family, rows in WRONG_ROWS.items() for wrong in rows],
    ids=lambda value: value if isinstance(value, str) else str({k: getattr(v, "path", v) for k, v in value.items()}),
)
def test_selfcheck_notices_a_wrong_row(
    monkeypatch: pytest.MonkeyPatch, family: str, wrong: dict[str, object], dtype: torch.dtype
):
    model = fresh(shared(family, dtype))
    row: Family = shared(family).architecture.family
    assert noticed(model) == []
    monkeypatch.setattr(architectures, "FAMILIES", (replace(row, **wrong),))
    assert noticed(model) != []


def test_selfcheck_notices_equal_widths(monkeypatch: pytest.MonkeyPatch):
    """Where the MLP is as wide as the residual stream no shape gives a wrong module away."""
    config = shared("llama_mha").model.config
    config = type(config)(**{**config.to_dict(), "intermediate_size": config.hidden_size})
    model = LlamaForCausalLM(config).eval()
    randomise(model, seed=1)
    assert noticed(model) == []
    for wrong in ("mlp.up_proj", "mlp.gate_proj"):
        row = replace(shared("llama_mha").architecture.family, mlp_out=Projection(wrong))
        monkeypatch.setattr(architectures, "FAMILIES", (row,))
        assert noticed(model) == ["all masks closed but the embedding's"]
