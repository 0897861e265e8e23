"""Models run as circuits by other code: forward passes and generation, against weights that are edited by hand."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import circuitsieve
from circuitsieve.circuits.circuit import Circuit
from circuitsieve.data.batching import batches
from circuitsieve.errors import ConfigError, HookNotFired, ModelError
from circuitsieve.evaluation.card import evaluate
from circuitsieve.models.ablations import constants
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import Ablation, Granularity
from models import FAMILIES, TOLERANCE, VOCABULARY, module, shared, weight
from tiny import tiny_pairs

PROMPTS = torch.randint(3, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(1))
OTHERS = torch.randint(3, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(2))


def half(subject: Subject, ablation: Ablation, seed: int = 0) -> Circuit:
    """Half of the head dims and neurons, at random."""
    generator, space = torch.Generator().manual_seed(seed), subject.space
    masks = {
        g: torch.rand(space.shape(g), generator=generator) > 0.5 for g in (Granularity.HEAD_DIM, Granularity.MLP_NEURON)
    }
    values = None
    if ablation is Ablation.ZERO:
        values = {site: torch.zeros(1) for site in subject.architecture.sites()}
    return Circuit(space, masks, ablation, values)


def cut(subject: Subject, circuit: Circuit) -> PreTrainedModel:
    """A copy of the model whose output projections do not read what is ablated to zero, nor blocks that are closed."""
    model = copy.deepcopy(subject.model)
    for layer in range(subject.space.layers):
        for role, units in (("attn_out", Granularity.HEAD_DIM), ("mlp_out", Granularity.MLP_NEURON)):
            weight(module(model, role, layer)).mul_(circuit.masks[units][layer])
    return model


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= TOLERANCE[torch.float32] * b.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_with_zeros_it_is_the_model_with_zero_weights(family: str) -> None:
    subject = shared(family)
    circuit = half(subject, Ablation.ZERO)
    if not all(circuit.masks[g].all() for g in (Granularity.ATTN_BLOCK, Granularity.MLP_BLOCK)):
        pytest.fail("a block is closed, which cutting columns alone does not do")
    by_hand = cut(subject, circuit)
    before = subject.model(PROMPTS).logits
    with torch.no_grad(), circuitsieve.applied(subject.model, circuit):
        assert close(subject.model(PROMPTS).logits, by_hand(PROMPTS).logits)
    assert (subject.model(PROMPTS).logits == before).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_says_what_whole_passes_say(family: str) -> None:
    subject = shared(family)
    circuit = half(subject, Ablation.ZERO)
    by_hand, tokens = cut(subject, circuit), PROMPTS[:1]
    for _ in range(5):
        with torch.no_grad():
            tokens = torch.cat([tokens, by_hand(tokens).logits[:, -1:].argmax(-1)], 1)
    with circuitsieve.applied(subject.model, circuit):
        said = subject.model.generate(
            PROMPTS[:1],
            attention_mask=torch.ones_like(PROMPTS[:1]),
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    assert said.tolist() == tokens.tolist()


def test_padded_prompts_in_a_batch_are_those_prompts() -> None:
    subject = shared("llama")
    circuit = half(subject, Ablation.ZERO)
    short = PROMPTS[:1, :4]
    padded = torch.cat([torch.cat([torch.zeros(1, 2, dtype=torch.long), short], 1), PROMPTS[1:2]])
    real = torch.ones_like(padded)
    real[0, :2] = 0
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with circuitsieve.applied(subject.model, circuit):
        together = subject.model.generate(padded, attention_mask=real, **settings)
        alone = subject.model.generate(short, attention_mask=torch.ones_like(short), **settings)
    assert together[0, 2:].tolist() == alone[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_corrupted_prompts_take_the_place_of_what_is_ablated(family: str) -> None:
    subject = shared(family)
    nothing = Circuit(subject.space, subject.space.full(False))
    everything = Circuit(subject.space, subject.space.full())
    with torch.no_grad():
        clean, corrupted = subject.model(PROMPTS).logits, subject.model(OTHERS).logits
        with circuitsieve.applied(subject.model, nothing, corrupted=OTHERS):
            assert close(subject.model(PROMPTS).logits[:, -1], corrupted[:, -1])
        with circuitsieve.applied(subject.model, everything, corrupted=OTHERS):
            assert (subject.model(PROMPTS).logits == clean).all()
        circuit = half(subject, Ablation.CORRUPTED)
        with circuitsieve.applied(subject.model, circuit, corrupted=PROMPTS):  # ablated to what it is already
            assert close(subject.model(PROMPTS).logits, clean)
        with circuitsieve.applied(subject.model, circuit.complement(), corrupted=OTHERS):
            complement = subject.model(PROMPTS).logits
        with circuitsieve.applied(subject.model, circuit, corrupted=OTHERS):
            assert not close(complement, subject.model(PROMPTS).logits)


def test_means_are_those_of_the_circuit() -> None:
    subject = shared("gpt2")
    means = constants(subject, batches(tiny_pairs().test, 4), Ablation.MEAN)
    circuit = Circuit(subject.space, subject.space.full(False), Ablation.MEAN, means)
    with torch.no_grad(), circuitsieve.applied(subject.model, circuit):
        logits = subject.model(PROMPTS).logits
    assert close(logits[0], logits[1])  # nothing of the prompts is left, and the embedding's mean has no position


def test_what_cannot_be_applied_is_said() -> None:
    subject = shared("llama")
    corrupted, zero = (half(subject, ablation) for ablation in (Ablation.CORRUPTED, Ablation.ZERO))
    positional = Circuit(subject.space, {}, Ablation.MEAN_POSITIONAL)

    def complaint(kind: type[Exception], circuit: Circuit, **more: Tensor) -> str:
        with pytest.raises(kind) as caught, circuitsieve.applied(subject.model, circuit, **more):
            subject.model(PROMPTS)
        return str(caught.value)

    assert complaint(ConfigError, corrupted).startswith("corrupted: found no prompts, expected those")
    assert complaint(ConfigError, zero, corrupted=OTHERS).startswith("corrupted: found prompts, expected none")
    assert complaint(ConfigError, positional).startswith("ablation mean_positional: found baselines that differ")
    assert complaint(ModelError, corrupted, corrupted=OTHERS[:, :5]).startswith(
        "forward pass: found 3 prompts of 6 tokens, expected 3 of 5, as the corrupted ones"
    )
    other = shared("gpt2")
    assert complaint(ModelError, half(other, Ablation.ZERO)).startswith("model: found the nodes NodeSpace(")
    with pytest.raises(HookNotFired), circuitsieve.applied(subject.model, zero):
        pass


@pytest.mark.parametrize("ablation", [Ablation.MEAN, Ablation.ZERO, Ablation.OPTIMAL])
def test_a_circuit_without_its_constants_is_refused(ablation: Ablation):
    subject = shared("llama")
    circuit = Circuit(subject.space, {}, ablation)
    with pytest.raises(ConfigError, match=f"^ablation {ablation}: found a circuit without constants"):
        evaluate(subject.model, circuit, tiny_pairs().test)
    with (
        pytest.raises(ConfigError, match=f"^ablation {ablation}: found a circuit without constants"),
        circuitsieve.applied(subject.model, circuit),
    ):
        pass


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gpt_neox", "gemma2"])
def test_padded_prompts_are_ablated_as_each_alone(family: str):
    """Of two lengths, padded on the left, as generation does it."""
    subject = shared(family)
    circuit = half(subject, Ablation.CORRUPTED)
    short, other = PROMPTS[:1, 2:], OTHERS[:1, 2:]
    mask = torch.ones_like(PROMPTS[:2])
    mask[0, :2] = 0

    def padded(one: Tensor, two: Tensor) -> Tensor:
        return torch.cat([torch.nn.functional.pad(one, (2, 0), value=1), two])

    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        with circuitsieve.applied(subject.model, circuit, corrupted=padded(other, OTHERS[1:2]), attention_mask=mask):
            found = subject.model(padded(short, PROMPTS[1:2]), attention_mask=mask, position_ids=positions).logits[
                :, -1
            ]
        for row, (clean, corrupted) in enumerate(((short, other), (PROMPTS[1:2], OTHERS[1:2]))):
            with circuitsieve.applied(subject.model, circuit, corrupted=corrupted):
                alone = subject.model(clean).logits[0, -1]
            assert close(found[row], alone), row


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_circuit_is_the_model_with_recorded_activations_patched_in(family: str):
    """By plain forward hooks on the output projections."""
    subject = shared(family)
    circuit = half(subject, Ablation.CORRUPTED)
    reads = {
        (layer, role): circuit.masks[units][layer]
        for layer in range(subject.space.layers)
        for role, units in (("attn_out", Granularity.HEAD_DIM), ("mlp_out", Granularity.MLP_NEURON))
    }
    modules = {place: module(subject.model, place[1], place[0]) for place in reads}
    seen: dict[tuple[int, str], Tensor] = {}
    with torch.no_grad():
        hooks = [
            of.register_forward_pre_hook(lambda _, inputs, place=place: seen.__setitem__(place, inputs[0].clone()))
            for place, of in modules.items()
        ]
        subject.model(OTHERS)
        for hook in hooks:
            hook.remove()
        hooks = [
            of.register_forward_pre_hook(
                lambda _, inputs, place=place: (torch.where(reads[place], inputs[0], seen[place]), *inputs[1:])
            )
            for place, of in modules.items()
        ]
        expected = subject.model(PROMPTS).logits
        for hook in hooks:
            hook.remove()
        with circuitsieve.applied(subject.model, circuit, corrupted=OTHERS):
            found = subject.model(PROMPTS).logits
    assert close(found, expected)
    assert not close(found, subject.model(PROMPTS).logits)
