"""What a report shows and only the model can say: answers to prompts, size against behaviour, and what each kept node writes.

Everything is plain: numbers, texts, lists and objects of these, fit for JSON. What a model has no answer for is null, with the
reason.
"""

import base64
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.data.batching import batches
from circuitsieve.data.tokenising import Example
from circuitsieve.evaluation.harness import EvaluationConfig, Harness
from circuitsieve.evaluation.metrics import interval, point_values
from circuitsieve.models.instrument import answer_logits, masked
from circuitsieve.models.lens import HeadEffects, Lens, attention_patterns
from circuitsieve.models.loading import LoadedModel
from circuitsieve.models.subject import fitting, frozen
from circuitsieve.vocabulary import Granularity

PROMPTS = 24
"""Test pairs whose answers are shown."""
LIKELY = 3
"""Tokens that are shown of each answer."""
LOOKED_AT = 2
"""Prompts whose attention is shown."""
LONGEST = 40
"""Tokens of such a prompt."""
WORDS = 4
"""Tokens that a node promotes, and as many that it demotes."""
SIZES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
"""Of the curve, beside the circuit's own."""
NO_LENS = "the model norms its residual stream at every layer, so no part of it can be read alone"

Tick = Callable[[str, int, int], object]


def exhibits(
    loaded: LoadedModel,
    circuit: Circuit,
    ranking: Ranking | None,
    test: Sequence[Example],
    tick: Tick = lambda *_: None,
    config: EvaluationConfig = EvaluationConfig(),
) -> dict[str, Any]:
    """Ask the model.

    Args:
        loaded: the model that the circuit was found in, with its tokenizer; it is left as it was.
        circuit: the circuit.
        ranking: that it was cut from.
        test: held-out pairs.
        tick: called with what is being done, how much is done and how much there is.
        config: of the pairs that many circuits run on.
    """
    subject, layers = fitting(loaded.model, circuit.space), circuit.space.layers
    sizes = [] if ranking is None else _sizes(circuit, ranking)
    total = 3 + len(sizes) + layers
    done = itertools.count()

    def on(what: str) -> None:
        tick(what, next(done), total)

    with frozen(loaded.model):
        harness = Harness(subject, circuit, test, config)
        on("answers")
        shown = {"prompts": _prompts(harness, loaded.tokenizer)}
        curve = []
        if ranking is not None:
            for size in sizes:
                on("sizes")
                curve.append(_point(harness, ranking, size))
        on("attention")
        shown["attention"] = _attention(harness, loaded.tokenizer)
        lens = Lens.of(subject)
        on("heads")
        heads: dict[int, Any] = {}
        neurons: dict[int, Any] = {}
        if lens is not None:
            heads = _heads(lens, harness)
            for layer in range(layers):
                on(f"neurons of layer {layer}")
                neurons[layer] = _neurons(lens, circuit, layer)
    tick("done", total, total)
    return {
        **shown,
        "curve": curve,
        "heads": heads,
        "neurons": neurons,
        "vocabulary": _vocabulary([heads, neurons], loaded.tokenizer),
        "reasons": {} if lens else {"heads": NO_LENS, "neurons": NO_LENS},
    }


def _prompts(harness: Harness, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The most likely next tokens by the full model, the circuit and its complement."""
    masks = {"circuit": harness.circuit.site_masks(), "complement": harness.circuit.complement().site_masks()}
    shown: list[dict[str, Any]] = []
    for example in harness.examples[:PROMPTS]:
        (batch,) = batches([example], 1, device=harness.subject.device)
        reference = harness.references(batch, again=False)
        said = {"full": reference.full}
        for name, site_masks in masks.items():
            with torch.no_grad(), masked(harness.subject, site_masks, reference.baselines):
                said[name] = answer_logits(harness.subject, batch.clean, batch.positions, reference.prefix)
        pair = example.pair
        shown.append(
            {
                "clean": pair.clean,
                "corrupted": pair.corrupted,
                "answers": list(pair.answers),
                "wrong_answers": list(pair.wrong_answers),
                **{name: _likely(logits[0], tokenizer) for name, logits in said.items()},
            }
        )
    return shown


def _likely(logits: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    top = logits.float().softmax(-1).topk(LIKELY)
    return [
        {"token": tokenizer.decode([token]), "probability": round(p, 4)}
        for token, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _sizes(circuit: Circuit, ranking: Ranking) -> list[float]:
    """Where the curve is drawn; nothing is smaller than a circuit with all closed that is ranked."""
    least = 1 - ranking.share_ranked
    return sorted({max(size, least) for size in {*SIZES, circuit.size} - {0.0}})


def _point(harness: Harness, ranking: Ranking, size: float) -> dict[str, float | None]:
    """The circuit that a ranking has at a size, on the few pairs."""
    masks = ranking.cut(ranking.threshold_at(size))
    cut = Circuit(ranking.space, masks, harness.circuit.ablation, harness.circuit.constants)
    (outcome,) = harness.each([cut], "sizes")
    values = point_values(outcome, harness.few.anchors)
    return {"size": cut.size, **{name: values[name] for name in ("kl", "accuracy", "faithfulness")}}


def _attention(harness: Harness, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Where the kept heads of the full model look: bytes of 0 to 255, [from, to], in base64. Long prompts would fill the page."""
    subject, kept = harness.subject, harness.circuit.masks[Granularity.HEAD]
    examples = [example for example in harness.examples if len(example.clean) <= LONGEST][:LOOKED_AT]
    prompts = [torch.tensor(example.clean, device=subject.device) for example in examples]
    shown = []
    patterns_of = attention_patterns(subject, prompts)
    for example, ids, pattern in zip(examples, prompts, patterns_of, strict=True):
        coarse = (255 * pattern).round().to(torch.uint8)
        patterns = {
            f"{layer}.{head}": base64.b64encode(coarse[layer, head].numpy().tobytes()).decode()
            for layer, head in kept.nonzero().tolist()
        }
        tokens = [tokenizer.decode([token]) for token in ids.tolist()]
        shown.append({"prompt": example.pair.clean, "tokens": tokens, "patterns": patterns})
    return shown


def _heads(lens: Lens, harness: Harness) -> dict[int, dict[int, Any]]:
    """Of each kept head: its direct effect with an interval, and the tokens that it promotes and demotes."""
    kept = harness.circuit.masks[Granularity.HEAD]
    chosen = {layer: row.nonzero().flatten().tolist() for layer, row in enumerate(kept) if row.any()}
    with torch.no_grad():
        found = lens.heads(chosen, harness.few.batches, harness.circuit.constants)
    return {layer: _of_layer(lens, chosen[layer], effects) for layer, effects in found.items()}


def _of_layer(lens: Lens, heads: Sequence[int], effects: HeadEffects) -> dict[int, Any]:
    words = lens.words(effects.directions, WORDS)
    shown = {}
    for row, head in enumerate(heads):
        direct = effects.direct[row].double().numpy()
        shown[head] = {
            "direct": round(float(direct.mean()), 4),
            "interval": interval([direct], lambda values, axis=-1: values.mean(axis), 0),
            "promoted": words.promoted[row].tolist(),
            "demoted": words.demoted[row].tolist(),
        }
    return shown


def _neurons(lens: Lens, circuit: Circuit, layer: int) -> dict[str, Any]:
    """The kept neurons of a layer, with the tokens that each promotes and demotes where it is active."""
    kept = circuit.masks[Granularity.MLP_NEURON][layer].nonzero().flatten()
    if not len(kept):
        return {"promoted": [], "demoted": []}
    neurons = lens.neurons(layer)
    words = lens.words(neurons[kept.to(neurons.device)], WORDS)
    return {"promoted": words.promoted.tolist(), "demoted": words.demoted.tolist()}


def _vocabulary(shown: Sequence[dict[int, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The texts of all tokens that are named."""
    used: set[int] = set()

    def collect(value: Any, *, tokens: bool = False) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                collect(inner, tokens=name in ("promoted", "demoted"))
        elif isinstance(value, list):
            for inner in value:
                collect(inner, tokens=tokens)
        elif tokens:
            used.add(value)

    for value in shown:
        collect(value)
    return {token: str(tokenizer.decode([token])) for token in sorted(used)}
