"""What a circuit costs: the parameters that a surgically reduced copy would keep, exactly, for every family."""

from typing import NamedTuple

from circuitsieve.masks import BoolMasks
from circuitsieve.nodes import NodeSpace
from circuitsieve.vocabulary import SiteKind


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
    return ParameterCount(_count(space, masks), _count(space, space.full()))


def _count(space: NodeSpace, masks: BoolMasks) -> int:
    kept = space.kept_units(masks)
    dims = kept[SiteKind.ATTN_READ].view(space.layers, space.kv_heads, space.heads // space.kv_heads, space.head_dim)
    heads = dims.any(-1)
    row = {name: space.width + (name in space.biases) for name in ("q", "k", "v", "mlp_in")}
    groups = heads.any(-1)
    if space.joint_qk_norm:
        open_ = groups.any(1)[:, None]
        heads, groups = open_[..., None].expand_as(heads), open_.expand_as(groups)
    queries = int(heads.sum()) * space.head_dim * row["q"]
    keys = int(groups.sum()) * space.head_dim * row["k"]
    values = int(dims.any(2).sum()) * row["v"]
    attn_writes, mlp_writes = (
        writes.any(1) * space.width if space.post_norm else writes.sum(1)
        for writes in (kept[SiteKind.ATTN_WRITE], kept[SiteKind.MLP_WRITE])
    )
    attn_out = int(((kept[SiteKind.ATTN_READ].sum(1) + ("attn_out" in space.biases)) * attn_writes).sum())
    neurons = kept[SiteKind.MLP_READ].sum(1)
    mlp_in = int(neurons.sum()) * space.mlp_inputs * row["mlp_in"]
    mlp_out = int(((neurons + ("mlp_out" in space.biases)) * mlp_writes).sum())
    return queries + keys + values + attn_out + mlp_in + mlp_out
