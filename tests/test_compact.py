"""Compact models: that they say what the circuit as masks says, and that what it closed is gone."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import PreTrainedModel

import circuitsieve
from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.costs import parameters
from circuitsieve.data.batching import batches
from circuitsieve.errors import CircuitsieveError, ConfigError, ModelError, UnsupportedModel
from circuitsieve.models.ablations import constants as means
from circuitsieve.models.checkpoint import save_compact
from circuitsieve.models.instrument import answer_logits
from circuitsieve.models.loading import load_model
from circuitsieve.models.subject import Subject
from circuitsieve.models.surgery import compact
from circuitsieve.models.tuning import divergence, tune
from circuitsieve.objective import log_probs
from circuitsieve.vocabulary import Ablation, Granularity, Site
from circuitsieve.workflow.compaction import answering
from models import (
    assert_differs,
    assert_same,
    each_dtype,
    each_family,
    each_type,
    random_examples,
    random_ids,
    random_masks,
    shared,
)
from tiny import tiny_loaded, tiny_pairs, word_tokenizer

PROMPTS = random_ids(1)
ABLATIONS = (Ablation.ZERO, Ablation.MEAN, Ablation.OPTIMAL)


def constants(subject: Subject, ablation: Ablation, seed: int = 0) -> dict[Site, Tensor]:
    """Of every site: zeros, means, or constants that have nothing to do with each other."""
    if ablation is Ablation.ZERO:
        return {site: torch.zeros(1) for site in subject.architecture.sites()}
    if ablation is Ablation.MEAN:
        found = means(subject, batches(random_examples([5, 6, 7, 7]), 4), Ablation.MEAN)
        assert found is not None
        return found
    generator, space = torch.Generator().manual_seed(seed), subject.space
    return {
        site: 0.5 * torch.randn(space.site_width(site.kind), generator=generator)
        for site in subject.architecture.sites()
    }


def circuit_of(subject: Subject, ablation: Ablation, seed: int) -> Circuit:
    """A random circuit of every granularity; the embedding stays."""
    masks = {**random_masks(subject.space, seed), Granularity.EMBED: torch.ones(1, 1, dtype=torch.bool)}
    return Circuit(subject.space, masks, ablation, constants(subject, ablation))


def masked_logits(subject: Subject, circuit: Circuit, prompts: Tensor = PROMPTS) -> Tensor:
    with torch.no_grad(), circuitsieve.applied(subject.model, circuit):
        return subject.model(prompts).logits


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("seed", range(4))
@each_type
def test_it_says_what_the_circuit_says(family: str, ablation: Ablation, seed: int) -> None:
    subject = shared(family)
    circuit = circuit_of(subject, ablation, seed)
    before = subject.model(PROMPTS).logits
    smaller = compact(subject.model, circuit)
    with torch.no_grad():
        found = smaller(PROMPTS).logits
    assert_same(found, masked_logits(subject, circuit))
    assert_differs(found, before)
    assert (subject.model(PROMPTS).logits == before).all()


def weights_of(model: PreTrainedModel) -> int:
    """Entries of all weight matrices in the blocks; biases, norms and folded constants have one dimension."""
    named = model.get_decoder().named_parameters()
    return sum(values.numel() for name, values in named if re.search(r"(^|\.)(h|layers)\.", name) and values.dim() == 2)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_closed_is_gone(subject: Subject, seed: int) -> None:
    circuit = circuit_of(subject, Ablation.ZERO, seed)
    smaller = compact(subject.model, circuit)
    without_biases = parameters(replace(subject.space, biases=frozenset()), circuit.masks)
    assert weights_of(subject.model) == without_biases.total
    assert weights_of(smaller) == without_biases.kept < without_biases.total


@pytest.mark.parametrize("closed", ["first attention", "all attention", "all MLPs", "a layer", "everything", "nothing"])
def test_whole_blocks_that_are_closed(subject: Subject, closed: str) -> None:
    masks = subject.space.full()
    match closed:
        case "first attention":
            masks[Granularity.ATTN_BLOCK][0] = False
        case "all attention":
            masks[Granularity.ATTN_BLOCK][:] = False
        case "all MLPs":
            masks[Granularity.MLP_BLOCK][:] = False
        case "a layer":
            masks[Granularity.LAYER][1] = False
        case "everything":
            masks[Granularity.LAYER][:] = False
    circuit = Circuit(subject.space, masks, Ablation.OPTIMAL, constants(subject, Ablation.OPTIMAL))
    smaller = compact(subject.model, circuit)
    with torch.no_grad():
        assert_same(smaller(PROMPTS).logits, masked_logits(subject, circuit))


@each_type
@pytest.mark.parametrize("seed", range(2))
def test_it_generates_with_a_cache(family: str, seed: int) -> None:
    subject = shared(family)
    circuit = circuit_of(subject, Ablation.ZERO, seed)
    masks = {**circuit.masks, Granularity.ATTN_BLOCK: torch.tensor([[False], [True]])}  # caches are asked for layer 0
    circuit = Circuit(subject.space, masks, Ablation.ZERO, circuit.constants)
    tokens = PROMPTS[:1]
    for _ in range(5):
        tokens = torch.cat([tokens, masked_logits(subject, circuit, tokens)[:, -1:].argmax(-1)], 1)
    said = compact(subject.model, circuit).generate(
        PROMPTS[:1],
        attention_mask=torch.ones_like(PROMPTS[:1]),
        max_new_tokens=5,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert said.tolist() == tokens.tolist()


@each_family
@each_dtype
def test_it_is_loaded_as_it_was_saved(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    subject = shared(family, dtype)
    circuit = circuit_of(subject, Ablation.MEAN, 1)
    smaller = compact(subject.model, circuit)
    save_compact(tmp_path, smaller, word_tokenizer(), circuit, {})
    loaded = circuitsieve.load_model(str(tmp_path), dtype=str(dtype).removeprefix("torch."))
    with torch.no_grad():
        assert (loaded.model(PROMPTS).logits == smaller(PROMPTS).logits).all()
    if family == "gpt2":  # others have tokenizers of their own kind, which AutoTokenizer makes of any file
        assert loaded.tokenizer("Mary gave").input_ids == word_tokenizer()("Mary gave").input_ids
    on_disk = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert on_disk < sum(parameter.nbytes for parameter in subject.model.parameters()) + 20_000


def test_what_cannot_be_compacted_is_said() -> None:
    subject = shared("llama")
    zeros = constants(subject, Ablation.ZERO)
    with pytest.raises(ConfigError, match="ablation corrupted: found baselines that differ between prompts"):
        compact(subject.model, Circuit(subject.space, {}))
    positional = Circuit(subject.space, {}, Ablation.MEAN_POSITIONAL, zeros)
    with pytest.raises(ConfigError, match="ablation mean_positional: found baselines that differ"):
        compact(subject.model, positional)
    with pytest.raises(
        ConfigError, match="ablation mean: found a circuit without constants, expected those of every site"
    ):
        compact(subject.model, Circuit(subject.space, {}, Ablation.MEAN))
    blind = {Granularity.EMBED: torch.zeros(1, 1, dtype=torch.bool)}
    with pytest.raises(ConfigError, match="embed: found the embedding closed, expected it open"):
        compact(subject.model, Circuit(subject.space, blind, Ablation.ZERO, zeros))
    smaller = compact(subject.model, circuit_of(subject, Ablation.ZERO, 0))
    with pytest.raises(UnsupportedModel, match="model: found a compact model, expected a full one"):
        Subject.of(smaller)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a compact model; tests copy it."""
    subject, folder = shared("llama"), tmp_path_factory.mktemp("compact")
    circuit = circuit_of(subject, Ablation.ZERO, 1)
    save_compact(folder, compact(subject.model, circuit), word_tokenizer(), circuit, {})
    return folder


def test_a_folder_goes_to_one_device(saved: Path) -> None:
    assert load_model(str(saved), device="auto").model.device == load_model(str(saved)).model.device
    for options in ({"device_map": {"": "cpu"}}, {"device": "auto", "max_memory": {"cpu": "1GB"}}):
        with pytest.raises(
            ModelError, match="found a compact model to be dispatched over devices, expected one device"
        ):
            load_model(str(saved), **options)


@pytest.mark.parametrize("name", ["compact.json", "nodes.safetensors", "weights.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other"])
def test_a_damaged_folder_is_one_line(saved: Path, tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    match damage:
        case "missing":
            (folder / name).unlink()
        case "empty":
            (folder / name).write_bytes(b"")
        case "cut":
            (folder / name).write_bytes((saved / name).read_bytes()[:-40])
        case "other":
            (folder / name).write_bytes(b"{}" if name.endswith("json") else torch_file())
    with pytest.raises(CircuitsieveError) as caught:
        circuitsieve.load_model(str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def torch_file() -> bytes:
    """Safetensors of something else."""
    return safetensors.torch.save({"a": torch.zeros(2)}, metadata={"format_version": "1"})


def test_constants_are_tuned_and_nothing_else() -> None:
    loaded, pairs = tiny_loaded(), tiny_pairs(train=24)
    subject = Subject.of(loaded.model)
    masks = {Granularity.MLP_NEURON: torch.arange(12).expand(2, 12) < 6}
    circuit = Circuit(subject.space, masks, Ablation.ZERO, constants(subject, Ablation.ZERO))
    smaller = compact(loaded.model, circuit)
    small, before = answering(smaller, circuit), {name: p.clone() for name, p in smaller.named_parameters()}

    def divergence() -> float:
        found = []
        for batch in batches(pairs.validation, 4):
            with torch.no_grad():
                full, own = (torch.log_softmax(m(batch.clean).logits, -1) for m in (loaded.model, smaller))
            rows = torch.arange(len(batch.clean))
            found += [
                (p.exp() * (p - q)).sum() for p, q in zip(*(x[rows, batch.positions] for x in (full, own)), strict=True)
            ]
        return float(sum(found) / len(found))

    first = divergence()
    tune(small, subject, pairs, 40)
    changed = {name for name, p in smaller.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"transformer.h.{layer}.{part}.c_proj.bias" for layer in (0, 1) for part in ("attn", "mlp")}
    assert divergence() < 0.8 * first
    assert not any(p.requires_grad or p.grad is not None for name, p in smaller.named_parameters() if name in changed)


def test_constants_of_0_are_tuned_too() -> None:
    """Without biases nothing is left behind under zero ablation: the size of a step comes from what the blocks write."""
    subject, pairs = shared("llama"), tiny_pairs(train=24)
    masks = {Granularity.MLP_NEURON: torch.arange(subject.space.neurons).expand(subject.space.layers, -1) < 4}
    circuit = Circuit(subject.space, masks, Ablation.ZERO, constants(subject, Ablation.ZERO))
    smaller = compact(subject.model, circuit)
    small = answering(smaller, circuit)
    (batch,) = batches(pairs.train[:8], 8)
    said = log_probs(answer_logits(subject, batch.clean, batch.positions), batch.targets.candidates)
    with torch.no_grad():
        before = float(divergence(small, batch, said).mean())
    tune(small, subject, pairs, 60)
    with torch.no_grad():
        assert float(divergence(small, batch, said).mean()) < 0.95 * before


def test_where_nothing_is_closed_there_is_nothing_to_tune() -> None:
    subject, pairs = shared("llama"), tiny_pairs(train=8)
    circuit = Circuit(subject.space, {}, Ablation.ZERO, constants(subject, Ablation.ZERO))
    smaller = compact(subject.model, circuit)
    before = {name: p.clone() for name, p in smaller.named_parameters()}
    tune(answering(smaller, circuit), subject, pairs, 5)
    assert all(torch.equal(p, before[name]) for name, p in smaller.named_parameters())


def test_a_folder_may_be_text_and_must_be_empty(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    subject = Subject.of(loaded.model)
    circuit = Circuit(subject.space, {}, Ablation.ZERO, constants(subject, Ablation.ZERO))
    smaller = compact(loaded.model, circuit)
    save_compact(str(tmp_path / "model"), smaller, loaded.tokenizer, circuit, {})
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert load_model(str(tmp_path / "model")).model.config.model_type == loaded.model.config.model_type
    with pytest.raises(
        CircuitsieveError, match=r"model: found files there, expected a new or empty folder for the compact"
    ):
        save_compact(tmp_path / "model", smaller, loaded.tokenizer, circuit, {})
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
