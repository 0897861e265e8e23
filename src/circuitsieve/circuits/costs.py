"""What a circuit costs: in units, or in the parameters that a surgically reduced copy would keep, exactly, for every family."""

import functools
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from circuitsieve.circuits.masks import BoolMasks, Masks
from circuitsieve.circuits.nodes import COMPOSITION, WRITE_OF_READ, NodeSpace
from circuitsieve.vocabulary import SiteKind

Kept = dict[SiteKind, Float[Tensor, "layers _"]]
"""How open each unit of the read sites and each out dim of the write sites is, 0 to 1."""


class ParameterCount(NamedTuple):
    """Parameters of the attention and MLP projections; embeddings, norms and the unembedding are apart."""

    kept: int
    total: int


def parameters(space: NodeSpace, masks: BoolMasks) -> ParameterCount:
    """Exact parameters of the projections that a surgically reduced copy would keep.

    Q: rows of kept heads. K: rows of the key/value groups that a kept head uses. (All rows of both where a norm runs over
    all heads.) V: per group the union of its kept heads' kept dims. O: kept head dims x kept out dims. MLP inputs: rows
    of kept neurons. Down: kept neurons x kept out dims (all out dims where a norm that reads them follows). With their
    biases; a closed block keeps none.
    """
    return ParameterCount(_exact(space, masks), _total(space))


def share(space: NodeSpace, masks: BoolMasks, measure: str) -> float:
    """The share that a circuit keeps.

    Args:
        space: the nodes of the model.
        masks: of the circuit.
        measure: units (head dims and MLP neurons) or parameters.
    """
    if measure == "units":
        return space.size(masks)
    count = parameters(space, masks)
    return count.kept / count.total


def soft_share(space: NodeSpace, masks: Masks, measure: str) -> Float[Tensor, ""]:
    """The share that soft masks keep; differentiable, never falls when a mask rises, and the share of a circuit at 0 and 1,
    units of blocks apart whose out dims have all closed: a circuit does not count them.

    Args:
        space: the nodes of the model.
        masks: of the nodes without children, all that contains them multiplied in; what is missing is open.
        measure: units or parameters. Of what several units share, as much is kept as the most open of them asks for.
    """
    some = next(iter(masks.values()))
    kept: Kept = {}
    for kind in (*WRITE_OF_READ.keys(), *WRITE_OF_READ.values()):
        leaf = COMPOSITION[kind][-1]
        kept[kind] = masks[leaf].to(some) if leaf in masks else some.new_ones(space.shape(leaf))
    if measure == "units":
        return (kept[SiteKind.ATTN_READ].sum() + kept[SiteKind.MLP_READ].sum()) / space.units
    biases = {write: kept[write] * kept[read].amax(1, keepdim=True) for read, write in WRITE_OF_READ.items()}
    return _count(space, kept, biases) / _total(space)


@functools.cache
def _total(space: NodeSpace) -> int:
    return _exact(space, {})


def _exact(space: NodeSpace, masks: BoolMasks) -> int:
    kept = {kind: units.double() for kind, units in space.kept_units(masks).items()}
    return int(_count(space, kept, kept))


def _count(space: NodeSpace, kept: Kept, biases: Kept) -> Float[Tensor, ""]:
    """Parameters of what is kept, with the biases of the output projections as far as their block is open."""
    dims = kept[SiteKind.ATTN_READ].view(space.layers, space.kv_heads, space.heads // space.kv_heads, space.head_dim)
    heads = dims.amax(-1)
    row = {name: space.width + (name in space.biases) for name in ("q", "k", "v", "mlp_in")}
    groups = heads.amax(-1)
    if space.joint_qk_norm:
        open_ = groups.amax(1)[:, None]
        heads, groups = open_[..., None].expand_as(heads), open_.expand_as(groups)
    queries = heads.sum() * space.head_dim * row["q"]
    keys = groups.sum() * space.head_dim * row["k"]
    values = dims.amax(2).sum() * row["v"]
    mlp_in = kept[SiteKind.MLP_READ].sum() * space.mlp_inputs * row["mlp_in"]
    outputs = []
    for (read, write), name in zip(WRITE_OF_READ.items(), ("attn_out", "mlp_out"), strict=True):
        columns, bias = (
            writes.amax(1) * space.width if space.post_norm else writes.sum(1)
            for writes in (kept[write], biases[write])
        )
        outputs.append((kept[read].sum(1) * columns).sum() + (name in space.biases) * bias.sum())
    return queries + keys + values + mlp_in + sum(outputs)
