"""A model under study, and the states that it is put into while it is studied."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from circuitsieve.architectures import Architecture, architecture_of
from circuitsieve.errors import ModelError
from circuitsieve.nodes import NodeSpace, node_space


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
            UnsupportedModel: its family, quantisation or wrapper is not supported.
        """
        architecture = architecture_of(model)
        assert isinstance(model, PreTrainedModel)  # architecture_of refuses everything else
        return cls(model, architecture, node_space(model, architecture))

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

    @property
    def device(self) -> torch.device:
        """Where prompts go: the device of the input embeddings."""
        return self.model.get_input_embeddings().get_parameter("weight").device


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
    requires_grad = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.eval()
        model.requires_grad_(False)
        yield
    finally:
        for module, was in training.items():
            module.training = was
        for parameter, wanted in requires_grad.items():
            parameter.requires_grad_(wanted)


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
