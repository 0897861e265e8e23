"""Exact parameter counts, by two independent routes: weight surgery spelled out in loops, and the gradient of the logits."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from circuitsieve.architectures import Projection
from circuitsieve.instrument import Subject, masked
from circuitsieve.nodes import ParameterCount
from circuitsieve.vocabulary import Granularity, SiteKind
from models import WIDTH, each_family, fresh, random_ids, random_masks, shared

G = Granularity


def outputs_of(
    module: nn.Module, projection: Projection, values: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """The projection's part of a (fused) module's weight, as [outputs, inputs], and of its bias where it has one."""
    for kind, parameter in module.named_parameters():
        whole = values(parameter).T if isinstance(module, Conv1D) and kind == "weight" else values(parameter)
        yield kind, whole.tensor_split(projection.parts)[projection.part]


def keep_by_surgery(subject: Subject, masks: dict[Granularity, Tensor]) -> dict[tuple[int, str, str], Tensor]:
    """Walk over every row and column of every projection and decide by hand whether a reduced copy would hold it."""
    family, config = subject.architecture.family, subject.model.config
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", heads)
    kept = {kind: mask.tolist() for kind, mask in subject.space.kept_units(masks).items()}
    found = {}
    for layer in range(config.num_hidden_layers):
        dims, neurons = kept[SiteKind.ATTN_READ][layer], kept[SiteKind.MLP_READ][layer]
        attn_out, mlp_out = kept[SiteKind.ATTN_WRITE][layer], kept[SiteKind.MLP_WRITE][layer]
        if config.model_type == "gemma3_text":  # the norm behind a projection reads all that the projection writes
            attn_out, mlp_out = [any(attn_out)] * WIDTH, [any(mlp_out)] * WIDTH
        head_dim = len(dims) // heads
        of_head = [dims[head * head_dim : (head + 1) * head_dim] for head in range(heads)]
        of_group = [of_head[g * heads // groups : (g + 1) * heads // groups] for g in range(groups)]
        rows_and_columns = {
            "q": ([any(of_head[i // head_dim]) for i in range(heads * head_dim)], [True] * WIDTH),
            "k": ([any(map(any, of_group[i // head_dim])) for i in range(groups * head_dim)], [True] * WIDTH),
            "v": (
                [any(h[i % head_dim] for h in of_group[i // head_dim]) for i in range(groups * head_dim)],
                [True] * WIDTH,
            ),
            "attn_out": (attn_out, dims),
            **{f"mlp_in {i}": (neurons, [True] * WIDTH) for i in range(len(family.mlp_in))},
            "mlp_out": (mlp_out, neurons),
        }
        for name, projection in projections(subject).items():
            rows, columns = rows_and_columns[name]
            module = subject.architecture.projection(layer, projection)
            for kind, values in outputs_of(module, projection, Tensor.detach):
                entries = [[row and column for column in columns] for row in rows] if kind == "weight" else rows
                found[layer, name, kind] = torch.tensor(entries)
                assert found[layer, name, kind].shape == values.shape, (layer, name, kind)
    return found


def projections(subject: Subject) -> dict[str, Projection]:
    family = subject.architecture.family
    inputs = {f"mlp_in {i}": projection for i, projection in enumerate(family.mlp_in)}
    named = {"q": family.q, "k": family.k, "v": family.v, "attn_out": family.attn_out}
    return {**named, **inputs, "mlp_out": family.mlp_out}


def total(subject: Subject) -> int:
    """Parameters of the blocks that are no norm's."""
    return sum(
        parameter.numel()
        for block in subject.architecture.blocks
        for name, parameter in block.named_parameters()
        if "norm" not in name and "ln_" not in name
    )


def test_count_equals_surgery(subject: Subject):
    counted = []
    for seed in range(6):
        masks = random_masks(subject.space, seed)
        counted.append(sum(int(entries.sum()) for entries in keep_by_surgery(subject, masks).values()))
        assert subject.space.parameters(masks) == ParameterCount(counted[-1], total(subject))
    assert len(set(counted)) > 3
    assert subject.space.parameters({}) == ParameterCount(total(subject), total(subject))
    assert subject.space.parameters(subject.space.full(False)).kept == 0


@each_family
def test_kept_parameters_are_those_that_matter(family: str):
    """Under zero ablation the logits depend on an entry exactly if it is counted, so slices of fused modules are right too.

    The key biases of GPT-2 are an exception: they shift all scores of a softmax alike.
    """
    subject = Subject.of(fresh(shared(family)).double().requires_grad_(True))
    counted = []
    for seed in (1, 3, 4, 5):
        masks = random_masks(subject.space, seed)
        masks[G.EMBED][:] = True
        subject.model.zero_grad()
        zeros = dict.fromkeys(subject.architecture.sites(), torch.zeros(1))
        with masked(subject, subject.space.compose(masks), zeros):
            logits = subject.model(random_ids(seed)).logits
        (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))).sum().backward()
        kept = keep_by_surgery(subject, masks)
        for layer in range(subject.space.layers):
            for name, projection in projections(subject).items():
                module = subject.architecture.projection(layer, projection)
                for kind, gradient in outputs_of(module, projection, lambda parameter: parameter.grad):
                    if (family, name, kind) == ("gpt2", "k", "bias"):
                        assert (gradient.abs() < 1e-9).all()
                    else:
                        assert torch.equal(gradient != 0, kept[layer, name, kind]), (layer, name, kind)
        counted.append(subject.space.parameters(masks).kept)
        assert counted[-1] == sum(int(entries.sum()) for entries in kept.values())
    assert max(counted) > 0.2 * total(subject)
