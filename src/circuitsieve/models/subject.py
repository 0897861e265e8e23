"""A model under study, and the states that it is put into while it is studied."""

import copy
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from circuitsieve.circuits.nodes import NodeSpace
from circuitsieve.errors import ModelError, UnsupportedModel
from circuitsieve.models.architectures import Architecture, architecture_of
from circuitsieve.models.narrow import CutProjection
from circuitsieve.models.placement import device_of, is_dispatched, is_offloaded, refuse_wrapped
from circuitsieve.models.projections import has_bias, in_features


@dataclass(frozen=True)
class Subject:
    """A model under study: the model, its row of the family table and its nodes."""

    model: PreTrainedModel
    architecture: Architecture
    space: NodeSpace

    @classmethod
    def of(cls, model: nn.Module) -> "Subject":
        """Study a model.

        Raises:
            UnsupportedModel: its family, quantisation or wrapper is not supported, it is shared out among processes, or it is a
                compact model.
        """
        refuse_wrapped(model)
        architecture = architecture_of(model)
        if any(isinstance(module, CutProjection) for module in model.modules()):
            raise UnsupportedModel(
                "model: found a compact model, expected a full one; its layers have sizes of their own, so study the model that "
                "it was made of"
            )
        assert isinstance(model, PreTrainedModel)  # architecture_of refuses everything else
        return cls(model, architecture, _node_space(model, architecture))

    @property
    def context(self) -> int | None:
        """How many tokens the model reads at most; None where its configuration does not say it."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def in_dtype(self, dtype: torch.dtype) -> "Subject":
        """A copy that computes in another dtype. Buffers, such as rotary frequencies, keep theirs, as in a checkpoint."""
        weights = {
            id(weight): nn.Parameter(weight.detach().to(dtype), requires_grad=False)
            for weight in self.model.parameters()
        }
        return Subject.of(copy.deepcopy(self.model, weights))

    def rows(self, role: str) -> Int[Tensor, "groups size"]:
        """Which outputs of its module a projection has (`Architecture.rows`)."""
        space = self.space
        return self.architecture.rows(role, space.heads, space.kv_heads, space.head_dim, space.neurons)

    def outputs_by_module(self, rows: Mapping[str, Int[Tensor, " _"]]) -> dict[str, Int[Tensor, " _"]]:
        """Which outputs of which modules some rows of projections are, in order; fused projections in one piece.

        Args:
            rows: by role (`rows`).

        Returns:
            By the path of a module, relative to a block.
        """
        by_module: dict[str, list[Tensor]] = {}
        for role, own in rows.items():
            by_module.setdefault(self.architecture.family.projection(role).path, []).append(own)
        return {path: torch.cat(parts).sort().values for path, parts in by_module.items()}

    def head_counter(self, layer: int, heads: int) -> tuple[nn.Module, str, int] | None:
        """What an attention module that counts its heads has to be told of another number of them: owner, attribute, value."""
        counted = self.architecture.family.head_count
        if counted is None or not counted.path:
            return None
        owner, _, name = counted.path.rpartition(".")
        module = self.architecture.blocks[layer].get_submodule(owner)
        return module, name, heads * (self.space.head_dim if counted.in_dims else 1)

    @property
    def device(self) -> torch.device:
        """Where prompts go and answer logits come back, and where masks are learned: where the input embeddings are computed."""
        return device_of(self.model.get_input_embeddings())

    @functools.cached_property
    def devices(self) -> tuple[torch.device, ...]:
        """Where each layer runs."""
        return tuple(device_of(block) for block in self.architecture.blocks)

    @property
    def is_dispatched(self) -> bool:
        """Whether accelerate moves activations or weights while the model runs."""
        return is_dispatched(self.model)

    @property
    def is_offloaded(self) -> bool:
        """Whether some weights have no values but while their module runs; also in the backward pass, which needs them again."""
        return is_offloaded(self.model)


def _node_space(model: PreTrainedModel, architecture: Architecture) -> NodeSpace:
    """Measure a model. Sizes come from the modules, not from the configuration (head_dim is not width / heads)."""
    family, config = architecture.family, model.config
    heads = int(config.num_attention_heads)
    modules = {
        name: architecture.projection(0, projection)
        for name, projection in {
            "q": family.q,
            "k": family.k,
            "v": family.v,
            "attn_out": family.attn_out,
            "mlp_in": family.mlp_in[0],
            "mlp_out": family.mlp_out,
        }.items()
    }
    return NodeSpace(
        layers=len(architecture.blocks),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=in_features(modules["attn_out"]) // heads,
        neurons=in_features(modules["mlp_out"]),
        width=in_features(modules["mlp_in"]),
        mlp_inputs=len(family.mlp_in),
        biases=frozenset(name for name, module in modules.items() if has_bias(module)),
        post_norm=family.attn_post_norm is not None,
        joint_qk_norm=family.joint_qk_norm,
    )


def fitting(model: nn.Module, space: NodeSpace) -> Subject:
    """The model under study, if it has the nodes of a circuit.

    Raises:
        UnsupportedModel: the model's family is not supported.
        ModelError: it has other nodes.
    """
    subject = Subject.of(model)
    if subject.space != space:
        raise ModelError(f"model: found the nodes {subject.space}, expected those of the circuit, {space}")
    return subject


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without parameter gradients; everything is as before afterwards."""
    training = {module: module.training for module in model.modules()}
    # By name: a weight that is fetched while it is needed is another parameter each time.
    requires_grad = {name: parameter.requires_grad for name, parameter in _all_parameters(model)}
    try:
        model.eval()
        model.requires_grad_(False)
        yield
    finally:
        for module, was in training.items():
            module.training = was
        for name, parameter in _all_parameters(model):
            parameter.requires_grad_(requires_grad[name])


def _all_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)


SHORT = 64
"""Tokens: of longer prompts, attention by plain matrix products would need too much memory."""


@contextmanager
def quick_attention(subject: Subject, tokens: int) -> Iterator[None]:
    """Attention by plain matrix products where that is quicker: bfloat16 on a CPU, short prompts.

    There the backward pass of PyTorch's fused attention takes a third of a whole training step (SmolLM2, 16 tokens).
    """
    if subject.model.dtype == torch.bfloat16 and subject.device.type == "cpu" and tokens <= SHORT:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield
