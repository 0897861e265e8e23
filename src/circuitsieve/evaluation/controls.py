"""Random circuits to hold a circuit against."""

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitsieve.circuit import Circuit
from circuitsieve.vocabulary import Granularity


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
