"""A circuit run with only some of its edges: every receiver reads a residual stream of its own.

    r_v = r - sum over sources u of (1 - e_uv) D_u,        D_u = what u writes now - what its baseline writes,

with r the residual stream and e the edge masks: where an edge is cut, the receiver sees its source ablated, whoever else reads
it. D of a head is its part of the output projection; sources that are not in the circuit write their baseline, so their D is 0.
The norm before each receiver is applied to its own stream.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitsieve.circuits.graph import EdgeMasks, Graph, Receiver
from circuitsieve.circuits.nodes import Activations, SiteMasks
from circuitsieve.errors import UnsupportedModel
from circuitsieve.models.hooks import intercepted
from circuitsieve.models.placement import require_undispatched
from circuitsieve.models.projections import bias_of, weight_of
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import Site, SiteKind

SoftEdges = Mapping[Receiver, Float[Tensor, "layers receivers sources"] | Bool[Tensor, "layers receivers sources"]]


def graph_of(subject: Subject) -> Graph:
    """The graph of a model.

    Raises:
        UnsupportedModel: what its heads write is not a sum, because a norm stands between them and the residual stream; or it is
            dispatched over devices.
    """
    require_undispatched(subject.model, "edges")
    architecture = subject.architecture
    if subject.space.post_norm or architecture.norms_residual or architecture.final_norm is None:
        raise UnsupportedModel(
            f"model: found the family {subject.model.config.model_type!r} with norms after the projections, expected blocks that "
            "add to the residual stream as they are; there what a block adds is no sum over its heads"
        )
    return Graph(subject.space, architecture.parallel)


@contextmanager
def rewired(
    subject: Subject, among: EdgeMasks, edges: SoftEdges, site_masks: SiteMasks, baselines: Activations
) -> Iterator[None]:
    """Cut edges in every forward pass; inside `masked` with the same masks and baselines.

    Args:
        subject: the model (`graph_of` has accepted it).
        among: the edges of the circuit (`Graph.among`); whatever lies outside is left alone.
        edges: 1 = keep, 0 = cut; what lies between is mixed. Differentiable.
        site_masks: of the circuit.
        baselines: of every site; broadcast to [batch, tokens, n].
    """
    wiring = _Wiring(subject, among, edges, site_masks, baselines)
    with intercepted(*wiring.interceptions()):
        yield


class _Wiring:
    """What the sources have written so far in a pass, and what each receiver makes of it."""

    def __init__(
        self, subject: Subject, among: EdgeMasks, edges: SoftEdges, site_masks: SiteMasks, baselines: Activations
    ) -> None:
        self.subject, self.graph = subject, graph_of(subject)
        self.among = {receiver: mask.to(subject.device) for receiver, mask in among.items()}
        self.edges = {receiver: kept.to(subject.device) for receiver, kept in edges.items()}
        self.site_masks, self.baselines = site_masks, baselines
        self.read_by_some = torch.stack([mask.flatten(0, 1).any(0) for mask in among.values()]).any(0).tolist()
        """Of each source: whether some receiver reads it."""
        self.written: dict[int, Tensor] = {}
        """D of each source that the circuit keeps, [batch, tokens, width]."""
        self.read: dict[tuple[str, int], Tensor] = {}
        """The residual stream as attention and MLP of a layer would read it."""

    def interceptions(self) -> tuple[list[Any], list[Any]]:
        """What is looked at before modules, and after them."""
        architecture, family = self.subject.architecture, self.subject.architecture.family
        assert architecture.final_norm is not None  # graph_of
        before: list[tuple[nn.Module, Callable[..., Tensor | None]]] = [(architecture.blocks[0], self.on_embedding)]
        after: list[tuple[nn.Module, Callable[..., Tensor | None]]] = []
        for layer, block in enumerate(architecture.blocks):
            for name, norm in (("attn", family.attn_norm), ("mlp", family.mlp_norm)):
                before.append((block.get_submodule(norm), partial(self.on_norm, name, layer)))
            for projections, receive in (
                ((family.q, family.k, family.v), self.on_qkv),
                (family.mlp_in, self.on_mlp_in),
            ):
                paths = {projection.path for projection in projections}
                after += [(block.get_submodule(path), partial(receive, path, layer)) for path in paths]
            attn_out, mlp_out = (architecture.projection(layer, out) for out in (family.attn_out, family.mlp_out))
            before.append((attn_out, partial(self.on_heads, layer)))
            after.append((mlp_out, partial(self.on_mlp, layer)))
        before.append((architecture.final_norm, self.on_final))
        return before, after

    # --- sources ----------------------------------------------------------------------------------------------------

    def on_embedding(self, x: Tensor) -> None:
        self.written = {0: x - self.baselines[Site(SiteKind.EMBED, 0)].to(x)}

    def on_heads(self, layer: int, z: Tensor) -> None:
        """What the kept heads write through the output projection, beside what their baselines do."""
        space, projection = self.subject.space, self.subject.architecture.family.attn_out
        change = z - self.baselines[Site(SiteKind.ATTN_READ, layer)].to(z)
        change = change.view(*z.shape[:-1], space.heads, space.head_dim)
        weight = weight_of(self.subject.architecture.projection(layer, projection)).view(
            -1, space.heads, space.head_dim
        )
        out_dims = self._out_dims(layer)
        for head in range(space.heads):
            if self.read_by_some[source := self.graph.head(layer, head)]:
                written = nn.functional.linear(change[..., head, :], weight[:, head])
                self.written[source] = written if out_dims is None else written * out_dims.to(z)

    def _out_dims(self, layer: int) -> Tensor | None:
        masks = self.site_masks.get(SiteKind.ATTN_WRITE)
        return None if masks is None else masks[layer]

    def on_mlp(self, layer: int, output: Tensor) -> None:
        written = output.view(*self.written[0].shape)
        self.written[self.graph.mlp(layer)] = written - self.baselines[Site(SiteKind.MLP_WRITE, layer)].to(written)

    # --- receivers --------------------------------------------------------------------------------------------------

    def on_norm(self, name: str, layer: int, x: Tensor) -> None:
        self.read[name, layer] = x.view(*self.written[0].shape)

    def on_qkv(self, path: str, layer: int, output: Tensor) -> Tensor:
        family = self.subject.architecture.family
        norm = self.subject.architecture.blocks[layer].get_submodule(family.attn_norm)
        for role in ("q", "k", "v"):
            if family.projection(role).path == path:
                module = self.subject.architecture.projection(layer, family.projection(role))
                output = self._received(
                    Receiver(role), layer, self.read["attn", layer], norm, module, self.subject.rows(role), output
                )
        return output

    def on_mlp_in(self, path: str, layer: int, output: Tensor) -> Tensor:
        architecture = self.subject.architecture
        norm = architecture.blocks[layer].get_submodule(architecture.family.mlp_norm)
        module = architecture.blocks[layer].get_submodule(path)
        rows = torch.arange(output.shape[-1])[None]
        shaped = output.view(*self.written[0].shape[:-1], -1)
        found = self._received(Receiver.MLP, layer, self.read["mlp", layer], norm, module, rows, shaped)
        return found.view(output.shape)

    def _received(
        self,
        receiver: Receiver,
        layer: int,
        stream: Tensor,
        norm: nn.Module,
        module: nn.Module,
        rows: Tensor,
        output: Tensor,
    ) -> Tensor:
        """A projection's output, each receiver's rows computed from its own stream."""
        streams = self._streams(receiver, layer, stream)
        if streams is None:
            return output
        places, own = streams
        normed = norm.forward(own).to(output.dtype)  # not called: its hooks belong to the stream of all
        chosen = rows.to(output.device)[places]
        weight = weight_of(module)[chosen.flatten()].view(*chosen.shape, -1)
        values = torch.einsum("nbtw,nhw->btnh", normed, weight)
        if (bias := bias_of(module)) is not None:
            values = values + bias[chosen]
        return output.index_copy(-1, chosen.flatten(), values.flatten(-2))

    def on_final(self, x: Tensor) -> Tensor | None:
        streams = self._streams(Receiver.LOGITS, 0, x)
        return None if streams is None else streams[1][0]

    def _streams(self, receiver: Receiver, layer: int, stream: Tensor) -> tuple[Tensor, Tensor] | None:
        """The receivers of a layer from which something is cut, and what each reads: [receivers, batch, tokens, width]."""
        among, edges = self.among[receiver][layer], self.edges[receiver][layer]
        cut = torch.where(among, 1 - (edges.float() if edges.dtype == torch.bool else edges), 0.0)
        if not cut.requires_grad:
            among = among & (cut != 0)
        places, sources = among.any(1).nonzero().flatten(), among.any(0).nonzero().flatten()
        if not len(places):
            return None
        lost = _mixture(cut[places][:, sources].to(stream), [self.written[source] for source in sources.tolist()])
        return places, stream - lost


def _mixture(shares: Float[Tensor, "receivers sources"], written: list[Tensor]) -> Float[Tensor, "receivers ..."]:
    """Sums of what sources write, in the shares of each receiver; nothing is copied for the backward pass."""
    mixed: Tensor = _Mixture.apply(shares, *written)  # type: ignore[no-untyped-call]
    return mixed


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shares: Tensor, *written: Tensor) -> Tensor:
        ctx.save_for_backward(shares, *written)
        return (shares @ torch.stack(written).flatten(1)).view(len(shares), *written[0].shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        shares, *written = ctx.saved_tensors
        grad = grads[0].flatten(1)
        of_shares = grad @ torch.stack(written).flatten(1).t() if ctx.needs_input_grad[0] else None
        of_written = (shares.t() @ grad).view(len(written), *written[0].shape).unbind()
        return of_shares, *of_written
