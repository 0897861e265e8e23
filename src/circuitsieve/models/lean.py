"""Passes that leave out what is closed: smaller matrices inside the model's own modules.

With W the weight of the projection that reads a site, b the baseline, m the masks and "open" the units that are left,

    W mixed + bias = W_open (m_open (x_open - b_open)) + W b + bias,

so that x_closed need not be computed: the rows that would compute it are left out. Nor need W b + bias, where b is of a run:
it is what the projection wrote in that run. An MLP shrinks neuron by neuron; attention loses whole key/value groups (a group
goes when all its query heads are closed), and columns of its output projection head dim by head dim. Where all is closed one
unit stays and is multiplied by 0: not every module runs with none. Modules are not replaced: while a pass lasts, their weights
are.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitsieve.circuits.nodes import WRITE_OF_READ
from circuitsieve.models.projections import bias_of, has_bias, is_input_major, weight_of
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import Site, SiteKind

Open = Mapping[SiteKind, Bool[Tensor, "layers _"]]
"""By read site: the units that are left."""
WORTH = 0.7
"""A site of which more is open is left whole: a step of SmolLM2 (16 prompts of 24 tokens, float32, two cores) takes 0.7 times
as long as a bare pass with three tenths of all units open, and 0.95 times with six (`benchmarks/step_cost.py`)."""
TILE = 32
"""The inputs of a projection are a multiple of it: each shape costs a kernel that is compiled when it is first met, and layers
and prompts of many lengths, cut anew every few steps, have more shapes than are remembered."""


@dataclass(frozen=True)
class Narrowed:
    """A module with fewer inputs or outputs: what its attributes are meanwhile."""

    module: nn.Module
    attributes: dict[str, Any]

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Replace the attributes. Parameters are shadowed: they stay registered, untouched."""
        own = vars(self.module)
        before = {name: own[name] for name in self.attributes if name in own}
        own.update(self.attributes)
        try:
            yield
        finally:
            for name in self.attributes:
                del own[name]
            own.update(before)


@dataclass(frozen=True)
class LeanSite:
    """A read site of which only some units are computed."""

    open: Int[Tensor, " open"]
    """In order; the first of them again and again in front where a multiple of `TILE` asks for it, with weights of 0."""
    among_computed: Int[Tensor, " open"] | None
    """Where they stand among the units that are computed: closed heads of a group that is open are computed too. None where
    just these are computed."""
    weight: Float[Tensor, "width units"]
    """Of the projection, whole; no copy."""
    bias: Float[Tensor, " width"] | None
    """Of the projection."""
    written: Site | None
    """The site at which the projection's output is what is written; None where a norm comes between."""
    reading: Narrowed
    """The projection, without its bias."""
    inputs: tuple[Narrowed, ...]
    """The modules before it."""
    groups: Int[Tensor, " groups"] | None = None
    """The key/value groups that are computed, where some are not."""

    def muted(self) -> "LeanSite":
        """The same, with its open units closed too."""
        attributes = {name: torch.zeros_like(value) for name, value in self.reading.attributes.items()}
        return replace(self, reading=Narrowed(self.reading.module, attributes))

    def of_baseline(self, baseline: Float[Tensor, "*shape _"]) -> Float[Tensor, "*shape width"]:
        """What the projection makes of the baseline of all units (one column may stand for all)."""
        whole = baseline.to(self.weight).expand(*baseline.shape[:-1], self.weight.shape[1])
        return nn.functional.linear(whole, self.weight, self.bias)


class Lean:
    """The narrowed sites of a model, for as long as the same units are closed."""

    def __init__(self, subject: Subject, open_units: Open) -> None:
        """Cut the matrices.

        Args:
            subject: the model.
            open_units: the units that are left at each read site; sites that are missing stay whole.
        """
        self.sites: dict[Site, LeanSite] = {}
        for kind, layers in open_units.items():
            worth = (layers.float().mean(dim=1) <= WORTH).tolist()
            for layer, units in enumerate(layers.unbind(0)):
                if worth[layer]:
                    site = Site(kind, layer)
                    narrow = _attention if kind is SiteKind.ATTN_READ else _mlp
                    units = units.cpu()
                    if units.any():
                        self.sites[site] = narrow(subject, site, units)
                    else:
                        self.sites[site] = narrow(subject, site, torch.arange(len(units)) == 0).muted()

    @staticmethod
    def most_bytes(subject: Subject) -> int:
        """What the cut matrices take at most: seven tenths of every block, but nearly all of queries, keys and values.

        Each of their groups but one may have an open unit, and is then computed whole.
        """
        outputs = subject.outputs_by_module({role: subject.rows(role).flatten() for role in ("q", "k", "v")})
        blocks = subject.architecture.blocks
        everything = sum(p.nbytes for block in blocks for p in block.parameters())
        grouped = sum(p.nbytes for block in blocks for path in outputs for p in block.get_submodule(path).parameters())
        return grouped + int(WORTH * (everything - grouped))

    @property
    def groups(self) -> dict[int, Int[Tensor, " groups"]]:
        """By layer: the key/value groups that are computed, where some are not."""
        return {site.layer: lean.groups for site, lean in self.sites.items() if lean.groups is not None}


def picked(values: Tensor, units: Int[Tensor, " n"]) -> Tensor:
    """Some units of an activation, a baseline or a mask; one column stands for all."""
    return values if values.shape[-1] == 1 else values.index_select(-1, units.to(values.device))


def _tiled(units: Bool[Tensor, " n"]) -> Int[Tensor, " open"]:
    """Where the open units are, as `LeanSite.open`; as they are where the next multiple is no longer worth leaving others out."""
    opened = units.nonzero().flatten()
    missing = -len(opened) % TILE
    if len(opened) + missing > WORTH * len(units):
        return opened
    return torch.cat([opened[:1].expand(missing), opened])


def _mlp(subject: Subject, site: Site, units: Bool[Tensor, " n"]) -> LeanSite:
    opened = _tiled(units)
    rows = {role: subject.rows(role).flatten()[opened] for role in subject.architecture.family.mlp_roles}
    return _lean_site(subject, site, opened, None, _inputs(subject, site.layer, rows))


def _attention(subject: Subject, site: Site, units: Bool[Tensor, " n"]) -> LeanSite:
    space = subject.space
    groups = units.view(space.kv_heads, -1).any(dim=1)
    opened = _tiled(units)
    if subject.architecture.family.head_count is None or groups.all():
        return _lean_site(subject, site, opened, opened, ())
    heads = groups.repeat_interleave(space.heads // space.kv_heads)
    rows = {role: subject.rows(role)[heads if role == "q" else groups].flatten() for role in ("q", "k", "v")}
    inputs = _inputs(subject, site.layer, rows)
    if (counter := subject.head_counter(site.layer, int(heads.sum()))) is not None:
        module, name, number = counter
        inputs = (*inputs, Narrowed(module, {name: number}))
    before = heads.repeat_interleave(space.head_dim).cumsum(0) - 1
    found = _lean_site(subject, site, opened, before[opened], inputs)
    return replace(found, groups=groups.nonzero().flatten().to(subject.device))


def _lean_site(
    subject: Subject,
    site: Site,
    opened: Int[Tensor, " open"],
    among_computed: Int[Tensor, " open"] | None,
    inputs: tuple[Narrowed, ...],
) -> LeanSite:
    """A site whose projection reads the open units alone.

    Args:
        subject: the model.
        site: a read site.
        opened: as `LeanSite.open`.
        among_computed: as `LeanSite.among_computed`.
        inputs: the narrowed modules that compute them.
    """
    module = subject.architecture.read_module(site)
    weight, bias = module.get_parameter("weight").detach(), bias_of(module)
    dim = 0 if is_input_major(module) else 1
    filled = int((opened[:-1] == opened[1:]).sum())  # before it goes to a device, which would have to be waited for
    opened = opened.to(weight.device)
    reading = weight.index_select(dim, opened)
    reading.narrow(dim, 0, filled).zero_()
    written = Site(WRITE_OF_READ[site.kind], site.layer)
    without_bias = {} if bias is None else {"bias": torch.zeros_like(bias)}
    return LeanSite(
        open=opened,
        among_computed=among_computed if among_computed is None else among_computed.to(weight.device),
        weight=weight_of(module),
        bias=bias,
        written=written if subject.architecture.write_module(written) is module else None,
        reading=Narrowed(module, {"weight": reading, **without_bias}),
        inputs=inputs,
    )


def _inputs(subject: Subject, layer: int, rows: Mapping[str, Int[Tensor, " _"]]) -> tuple[Narrowed, ...]:
    """The modules of some projections with only some of their outputs; fused ones in one piece."""
    block = subject.architecture.blocks[layer]
    outputs = subject.outputs_by_module(rows)
    return tuple(_with_outputs(block.get_submodule(path), own) for path, own in outputs.items())


def _with_outputs(module: nn.Module, outputs: Int[Tensor, " outputs"]) -> Narrowed:
    weight = module.get_parameter("weight").detach()
    outputs, input_major = outputs.to(weight.device), is_input_major(module)
    attributes: dict[str, Any] = {"weight": weight.index_select(1 if input_major else 0, outputs)}
    if has_bias(module):
        attributes["bias"] = module.get_parameter("bias").detach().index_select(0, outputs)
    if input_major:
        attributes["nf"] = len(outputs)  # what Conv1D takes for the number of its outputs
    return Narrowed(module, attributes)
