"""A model run as a circuit by whoever has code of their own: forward passes and `generate`, nothing else changed."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn

from circuitsieve.circuits.circuit import Circuit, constants_needed
from circuitsieve.circuits.nodes import Activations
from circuitsieve.errors import ConfigError
from circuitsieve.models.instrument import masked, record
from circuitsieve.models.subject import fitting
from circuitsieve.vocabulary import Ablation, Site


@contextmanager
def applied(
    model: nn.Module,
    circuit: Circuit,
    *,
    corrupted: Int[Tensor, "batch tokens"] | None = None,
    attention_mask: Int[Tensor, "batch tokens"] | None = None,
) -> Iterator[None]:
    """Run a model as a circuit: every forward pass inside the context has all other nodes ablated.

        with circuitsieve.applied(model, circuit):
            model.generate(**tokenizer(["When Mary and John"], return_tensors="pt"))

    A circuit that was found with constant baselines (mean, zero, optimal) runs on any prompts, in batches, padded on either
    side, with a cache. One that was found with runs as baselines (corrupted, resample) needs the corrupted prompts, and runs
    on as many prompts of the same length, in passes over all of their tokens. `circuit.complement()` is a circuit, too.

    Args:
        model: the model that the circuit was found in; it is left as it was.
        circuit: the circuit.
        corrupted: the corrupted prompts, where the baseline is a run.
        attention_mask: of the corrupted prompts, where they are padded on the left; else nothing is needed.

    Raises:
        UnsupportedModel: the model's family is not supported.
        ModelError: the circuit is one of a model with other nodes; a forward pass has another shape than the corrupted prompts.
        ConfigError: corrupted prompts are missing, or there is no use for them.
        HookNotFired: no forward pass was run.
    """
    subject = fitting(model, circuit.space)
    site_masks = circuit.site_masks()
    if not circuit.ablation.is_run:
        if corrupted is not None:
            raise ConfigError(f"corrupted: found prompts, expected none: the circuit's ablation is {circuit.ablation}")
        with masked(subject, site_masks, _everywhere(circuit)):
            yield
        return
    if corrupted is None:
        raise ConfigError(
            f"corrupted: found no prompts, expected those that nodes are ablated to: the circuit's ablation is {circuit.ablation}"
        )
    sites = [Site(kind, layer) for kind, mask in site_masks.items() for layer in range(len(mask))]
    with torch.no_grad(), record(subject, sites) as baselines:
        subject.model(
            input_ids=corrupted,
            attention_mask=attention_mask,
            use_cache=False,
            **_positions(subject.model, attention_mask),
        )
    with masked(subject, site_masks, baselines, shape=tuple(corrupted.shape)):
        yield


def _positions(model: nn.Module, attention_mask: Int[Tensor, "batch tokens"] | None) -> dict[str, Tensor]:
    """Where tokens stand in prompts that are padded on the left, as `generate` counts; models do not count by themselves."""
    if attention_mask is None or "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": (attention_mask.cumsum(1) - 1).clamp_min(0)}


def _everywhere(circuit: Circuit) -> Activations:
    """Constants that fit every token."""
    if circuit.ablation is Ablation.MEAN_POSITIONAL:
        raise ConfigError(
            f"ablation {circuit.ablation}: found baselines that differ from position to position, expected the same at all, so "
            "that prompts of any length can be run; search with --ablation mean"
        )
    return constants_needed(circuit.ablation, circuit.constants)
