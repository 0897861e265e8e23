"""What a circuit is held against: random circuits, and circuits with some of their units knocked out."""

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.vocabulary import UNIT_GRANULARITIES, Granularity

Units = dict[Granularity, Bool[Tensor, "layers n"]]
"""A set of head dims and MLP neurons."""


def kept(circuit: Circuit) -> Units:
    """The units of a circuit."""
    return {g: circuit.masks[g] for g in UNIT_GRANULARITIES}


def without(circuit: Circuit, units: Units) -> Circuit:
    """A circuit with some units knocked out."""
    masks = {**circuit.masks, **{g: circuit.masks[g] & ~units[g] for g in units}}
    return Circuit(circuit.space, masks, circuit.ablation, circuit.constants)


def whole(circuit: Circuit) -> Circuit:
    """The whole model as a circuit with the same ablation."""
    return Circuit(circuit.space, circuit.space.full(), circuit.ablation, circuit.constants)


def some_of(units: Units, share: float, generator: torch.Generator) -> Units:
    """Each of the units with some chance."""
    return {g: mask & (torch.rand(mask.shape, generator=generator) < share) for g, mask in units.items()}


def anywhere(circuit: Circuit, n: int, generator: torch.Generator) -> Units:
    """So many units, each as likely as any other in the whole model."""
    shapes = {g: circuit.space.shape(g) for g in UNIT_GRANULARITIES}
    chosen = torch.zeros(circuit.space.units, dtype=torch.bool)
    chosen[torch.randperm(len(chosen), generator=generator)[:n]] = True
    parts = torch.split(chosen, [layers * each for layers, each in shapes.values()])
    return {g: part.view(shape) for part, (g, shape) in zip(parts, shapes.items(), strict=True)}


def from_layer(units: Units, layer: int) -> Units:
    """Those of the units that lie in the layers from this one on."""
    return {g: torch.where(torch.arange(len(mask))[:, None] >= layer, mask, False) for g, mask in units.items()}


def matched_random(circuit: Circuit, seed: int) -> Circuit:
    """A random circuit with the same counts at every site: layer by layer as many heads, with as many head dims each, as
    many MLP neurons and as many out dims as the circuit keeps; the same blocks.

    Heads trade places within their layer, then head dims within their head, neurons and out dims within their layer.
    """
    generator = torch.Generator().manual_seed(seed)
    space = circuit.space

    def shuffled(mask: Bool[Tensor, "*rows n"]) -> Bool[Tensor, "*rows n"]:
        return mask.gather(-1, torch.rand(mask.shape, generator=generator).argsort(-1))

    heads = torch.rand(space.layers, space.heads, generator=generator).argsort(-1)
    dims = circuit.masks[Granularity.HEAD_DIM].view(space.layers, space.heads, space.head_dim)
    dims = dims.gather(1, heads[..., None].expand_as(dims))
    masks = dict(circuit.masks)
    masks[Granularity.HEAD] = circuit.masks[Granularity.HEAD].gather(1, heads)
    masks[Granularity.HEAD_DIM] = shuffled(dims).flatten(1)
    for granularity in (Granularity.MLP_NEURON, Granularity.ATTN_OUT_DIM, Granularity.MLP_OUT_DIM):
        masks[granularity] = shuffled(circuit.masks[granularity])
    return Circuit(space, masks, circuit.ablation, circuit.constants)
