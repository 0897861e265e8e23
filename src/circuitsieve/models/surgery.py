"""A circuit as a smaller model: what it closed is gone from the weight matrices, its constants are folded into biases.

With W the weight of an output projection, b the baseline of what it reads and "open" the units that are kept,

    W mixed + bias = W_open x_open + (W_closed b_closed + bias),

so the constant in brackets is all that is left of the closed units, and nothing upstream has to compute them. Of Q the rows of
kept heads are left, of K those of the key/value groups that a kept head uses, of V per group the dims that one of its kept heads
keeps (`costs.parameters`). Attention itself runs on whole groups: where rows of one that is left are gone, zeros stand in.
"""

import copy
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitsieve.circuits.circuit import Circuit, constants_needed
from circuitsieve.circuits.nodes import WRITE_OF_READ, Activations
from circuitsieve.errors import ConfigError
from circuitsieve.models.narrow import ConstantAttention, CutProjection, PartlyConstant
from circuitsieve.models.placement import require_undispatched
from circuitsieve.models.projections import bias_of, weight_of
from circuitsieve.models.subject import Subject, fitting
from circuitsieve.vocabulary import Ablation, Granularity, Site, SiteKind


def compact(model: nn.Module, circuit: Circuit) -> PreTrainedModel:
    """A smaller copy of a model that computes what the circuit computes, on any prompts.

    Args:
        model: the model that the circuit was found in; it is left as it was.
        circuit: of a constant ablation that is the same at all positions (mean, zero, optimal).

    Returns:
        A model of the same class, in evaluation mode. Sizes differ from layer to layer, which no configuration can say: save it
        with `save_compact`, load it with `load_model`.

    Raises:
        UnsupportedModel: the model's family is not supported, or it is dispatched over devices.
        ModelError: the circuit is one of a model with other nodes.
        ConfigError: the circuit's baselines are no constants, or it does not keep the embedding.
    """
    check_foldable(circuit)
    require_undispatched(model, "compact")
    projections = {
        id(weight): weight
        for block in fitting(model, circuit.space).architecture.blocks
        for weight in block.parameters()
        if weight.dim() > 1
    }
    smaller = Subject.of(copy.deepcopy(model, projections))  # these are not copied: what is left of them will be
    shrink(smaller, circuit)
    nn.Module.eval(smaller.model)
    return smaller.model


def check_foldable(circuit: Circuit) -> None:
    """Refuse a circuit that cannot be folded into a model.

    Raises:
        ConfigError: its baselines are no constants, or it does not keep the embedding.
    """
    if circuit.ablation.is_run or circuit.ablation is Ablation.MEAN_POSITIONAL:
        raise ConfigError(
            f"ablation {circuit.ablation}: found baselines that differ between prompts or positions, expected constants (mean, "
            "zero, optimal), which can be folded into biases"
        )
    constants_needed(circuit.ablation, circuit.constants)
    if not circuit.masks[Granularity.EMBED].all():
        raise ConfigError(
            "embed: found the embedding closed, expected it open; a model that reads no tokens says nothing"
        )


def shrink(subject: Subject, circuit: Circuit) -> None:
    """Replace the projections of a model, in place, by what the circuit keeps of them."""
    masks, constants = circuit.site_masks(), constants_needed(circuit.ablation, circuit.constants)
    sizes = {kind: subject.space.site_width(kind) for kind in SiteKind}
    for layer in range(subject.space.layers):
        for read, write in WRITE_OF_READ.items():
            open_ = {
                kind: masks[kind][layer].bool().expand(sizes[kind])
                if kind in masks
                else torch.ones(sizes[kind], dtype=torch.bool)
                for kind in (read, write)
            }
            reads, writes = open_[read] & open_[write].any(), open_[write]
            block = _Block(subject, layer, read, write, constants)
            if read is SiteKind.MLP_READ:
                block.shrink_mlp(reads, writes)
            elif reads.any():
                block.shrink_attention(reads, writes)
            else:
                block.close_attention(writes)
            block.fix_norm(writes)


class _Block:
    """The attention or the MLP of one layer."""

    def __init__(self, subject: Subject, layer: int, read: SiteKind, write: SiteKind, constants: Activations) -> None:
        self.subject, self.layer, self.family = subject, layer, subject.architecture.family
        self.module = subject.architecture.blocks[layer]
        self.projection = self.family.attn_out if read is SiteKind.ATTN_READ else self.family.mlp_out
        self.norm = self.family.attn_post_norm if read is SiteKind.ATTN_READ else self.family.mlp_post_norm
        self.read_baseline = constants[Site(read, layer)].expand(subject.space.site_width(read))
        self.write_baseline = constants[Site(write, layer)].expand(subject.space.width)

    def shrink_mlp(self, reads: Bool[Tensor, " n"], writes: Bool[Tensor, " width"]) -> None:
        rows = {role: self.subject.rows(role).flatten()[reads] for role in self.family.mlp_roles}
        self._cut_inputs(rows, rows)
        self._cut_output(reads, reads, writes)

    def shrink_attention(self, reads: Bool[Tensor, " n"], writes: Bool[Tensor, " width"]) -> None:
        space = self.subject.space
        dims = reads.view(space.kv_heads, -1, space.head_dim)
        heads, values = dims.any(-1), dims.any(1)
        groups = heads.any(-1)
        present = groups if self.family.head_count else torch.ones_like(groups)
        runs = present.repeat_interleave(dims.shape[1])
        if space.joint_qk_norm:
            heads, groups = torch.ones_like(heads), torch.ones_like(groups)
        rows = {role: self.subject.rows(role) for role in ("q", "k", "v")}
        left = {"q": rows["q"][heads.flatten()].flatten(), "k": rows["k"][groups].flatten(), "v": rows["v"][values]}
        computed = {
            "q": rows["q"][runs].flatten(),
            "k": rows["k"][present].flatten(),
            "v": rows["v"][present].flatten(),
        }
        self._cut_inputs(left, computed)
        if (counter := self.subject.head_counter(self.layer, int(runs.sum()))) is not None:
            module, name, number = counter
            setattr(module, name, number)
        self._cut_output(reads, runs.repeat_interleave(space.head_dim), writes)

    def close_attention(self, writes: Bool[Tensor, " width"]) -> None:
        value = self._constant(torch.zeros_like(self.read_baseline, dtype=torch.bool))
        if self.norm is None:
            value = torch.where(writes.to(value.device), value, self.write_baseline.to(value))
        weight = self.module.get_submodule(self.projection.path).get_parameter("weight")
        owner = self.projection.owner
        index = self.module.get_submodule(owner).layer_idx
        assert isinstance(index, int)
        self.module.set_submodule(owner, ConstantAttention(value.to(weight.dtype), index))

    def fix_norm(self, writes: Bool[Tensor, " width"]) -> None:
        if self.norm is not None and not writes.all():
            norm = self.module.get_submodule(self.norm)
            weight = norm.get_parameter("weight")
            fixed = PartlyConstant(norm, writes.to(_real(weight.device)), self.write_baseline.to(weight))
            self.module.set_submodule(self.norm, fixed)

    def _cut_inputs(self, left: Mapping[str, Int[Tensor, " _"]], computed: Mapping[str, Int[Tensor, " _"]]) -> None:
        """Keep some rows of the projections before; where more are computed than are left, zeros stand in."""
        places = self.subject.outputs_by_module(computed)
        for path, rows in self.subject.outputs_by_module(left).items():
            module, place = self.module.get_submodule(path), places[path]
            weight, bias = weight_of(module), bias_of(module)
            chosen = rows.to(weight.device)
            outputs = None if len(rows) == len(place) else torch.searchsorted(place, rows).to(_real(weight.device))
            cut = CutProjection(
                weight.index_select(0, chosen),
                None if bias is None else bias.index_select(0, chosen),
                outputs=outputs,
                rest=None if outputs is None else weight.new_zeros(len(place)),
            )
            self.module.set_submodule(path, cut)

    def _cut_output(self, reads: Bool[Tensor, " n"], given: Bool[Tensor, " n"], writes: Bool[Tensor, " width"]) -> None:
        """Keep what the output projection reads of what it is given, and what it writes.

        Args:
            reads: the units that are kept.
            given: those that are computed.
            writes: the out dims that are kept.
        """
        constant = self._constant(reads)
        if self.norm is not None:  # it reads every out dim
            writes = torch.ones_like(writes)
        module = self.module.get_submodule(self.projection.path)
        weight = weight_of(module)
        place, device = _real(weight.device), weight.device
        units, dims = reads.nonzero().flatten(), writes.nonzero().flatten()
        cut = CutProjection(
            weight.index_select(1, units.to(device)).index_select(0, dims.to(device)),
            constant.index_select(0, dims.to(device)),
            inputs=None if bool((reads == given).all()) else reads[given].nonzero().flatten().to(place),
            outputs=None if writes.all() else dims.to(place),
            rest=None if writes.all() else self.write_baseline.to(weight),
        )
        self.module.set_submodule(self.projection.path, cut)

    def _constant(self, reads: Bool[Tensor, " n"]) -> Float[Tensor, " width"]:
        """What the output projection makes of the baselines of all that it no longer reads, float64."""
        module = self.module.get_submodule(self.projection.path)
        weight, bias = weight_of(module), bias_of(module)
        closed = self.read_baseline.to(weight.device, torch.float64).masked_fill(reads.to(weight.device), 0)
        constant = weight.double() @ closed
        return constant if bias is None else constant + bias.double()


def _real(device: torch.device) -> torch.device:
    """Where indices lie: with the weights, but on the CPU where these have no values yet."""
    return torch.device("cpu") if device.type == "meta" else device
