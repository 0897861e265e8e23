"""Circuits with some of their edges cut, against node ablation, the corrupted run, single edges patched by hand and finite
differences."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.graph import Graph, Receiver
from circuitsieve.circuits.masks import BoolMasks
from circuitsieve.circuits.nodes import Activations
from circuitsieve.errors import UnsupportedModel
from circuitsieve.models.instrument import masked, record
from circuitsieve.models.rewiring import graph_of, rewired
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import Granularity
from models import FAMILIES, POST_NORM, assert_differs, assert_same, random_ids, random_masks, shared

CLEAN, CORRUPTED = random_ids(1), random_ids(2)
REFUSED = POST_NORM | {"opt_post_norm"}
with_edges = pytest.mark.parametrize("family", [family for family in FAMILIES if family not in REFUSED])


def baselines_of(subject: Subject) -> Activations:
    with torch.no_grad(), record(subject, list(subject.architecture.sites())) as found:
        subject.model(CORRUPTED)
    return found


def circuit_of(subject: Subject, masks: BoolMasks) -> Circuit:
    return Circuit(subject.space, {**masks, Granularity.EMBED: torch.ones(1, 1, dtype=torch.bool)})


def logits(subject: Subject, masks: BoolMasks, edges: Mapping[Receiver, Tensor] | None = None) -> Tensor:
    """Of a circuit, with some of its edges (all of them if not given)."""
    circuit, baselines = circuit_of(subject, masks), baselines_of(subject)
    site_masks = circuit.site_masks()
    with masked(subject, site_masks, baselines):
        if edges is None:
            return subject.model(CLEAN).logits
        among = graph_of(subject).among(circuit.masks)
        with rewired(subject, among, edges, site_masks, baselines):
            return subject.model(CLEAN).logits


def circuits(subject: Subject) -> list[BoolMasks]:
    """The full model and two random circuits."""
    return [subject.space.full(), *(random_masks(subject.space, seed) for seed in (1, 4))]


@with_edges
def test_all_edges_kept_is_the_circuit(family: str) -> None:
    subject = shared(family)
    every = graph_of(subject).every()
    for masks in circuits(subject):
        assert_same(logits(subject, masks, every), logits(subject, masks))
        halves = {receiver: mask.float().requires_grad_() for receiver, mask in every.items()}
        assert_same(logits(subject, masks, halves).detach(), logits(subject, masks))


@with_edges
def test_no_edges_is_the_corrupted_run(family: str) -> None:
    subject = shared(family)
    none = {receiver: torch.zeros_like(mask) for receiver, mask in graph_of(subject).every().items()}
    for masks in circuits(subject):
        assert_same(logits(subject, masks, none), subject.model(CORRUPTED).logits)
        assert_differs(logits(subject, masks), subject.model(CORRUPTED).logits)


@with_edges
def test_a_source_that_nobody_reads_is_an_ablated_node(family: str) -> None:
    subject = shared(family)
    graph, space = graph_of(subject), subject.space
    for masks in circuits(subject):
        for layer in range(space.layers):
            for head in range(space.heads):
                edges = _without(graph, graph.head(layer, head))
                assert_same(
                    logits(subject, masks, edges), logits(subject, _closed(masks, Granularity.HEAD, layer, head))
                )
            edges = _without(graph, graph.mlp(layer))
            assert_same(logits(subject, masks, edges), logits(subject, _closed(masks, Granularity.MLP_BLOCK, layer, 0)))


def _without(graph: Graph, source: int) -> dict[Receiver, Tensor]:
    edges = graph.every()
    for mask in edges.values():
        mask[..., source] = False
    return edges


def _closed(masks: BoolMasks, granularity: Granularity, layer: int, index: int) -> dict[Granularity, Tensor]:
    closed = {g: mask.clone() for g, mask in masks.items()}
    closed[granularity][layer, index] = False
    return closed


@with_edges
def test_a_receiver_that_reads_nothing_is_an_ablated_node(family: str) -> None:
    subject = shared(family)
    graph, space = graph_of(subject), subject.space
    for masks in circuits(subject):
        for layer in range(space.layers):
            edges = graph.every()
            edges[Receiver.MLP][layer] = False
            assert_same(logits(subject, masks, edges), logits(subject, _closed(masks, Granularity.MLP_BLOCK, layer, 0)))
            edges = graph.every()
            for receiver in (Receiver.Q, Receiver.K, Receiver.V):
                edges[receiver][layer] = False
            assert_same(
                logits(subject, masks, edges), logits(subject, _closed(masks, Granularity.ATTN_BLOCK, layer, 0))
            )


ROWS: dict[str, Callable[[str, int], tuple[str, slice]]] = {
    # by hand: the module and the outputs of Q, K and V of one head (key/value group), width 16
    "gpt2": lambda role, i: ("attn.c_attn", slice(16 * "qkv".index(role) + 4 * i, 16 * "qkv".index(role) + 4 * i + 4)),
    "llama": lambda role, i: (f"self_attn.{role}_proj", slice(6 * i, 6 * i + 6)),
    "gpt_neox": lambda role, i: (
        "attention.query_key_value",
        slice(12 * i + 4 * "qkv".index(role), 12 * i + 4 * "qkv".index(role) + 4),
    ),
    "phi": lambda role, i: (f"self_attn.{role}_proj", slice(4 * i, 4 * i + 4)),
}
NORMS = {"gpt2": "ln_1", "llama": "input_layernorm", "gpt_neox": "input_layernorm", "phi": "input_layernorm"}


@pytest.mark.parametrize("family", ROWS)
@pytest.mark.parametrize("role", ["q", "k", "v"])
def test_single_edges_patched_by_hand(family: str, role: str) -> None:
    """From a head and from the MLP of layer 0 to layer 1: its residual stream, with that source's part replaced."""
    subject = shared(family)
    graph, space = graph_of(subject), subject.space
    first, second = subject.architecture.blocks
    name = {"gpt2": ("attn.c_proj", "mlp.c_proj"), "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h")}.get(
        family, ("self_attn.dense", "mlp.fc2") if family == "phi" else ("self_attn.o_proj", "mlp.down_proj")
    )
    out, mlp = (first.get_submodule(path) for path in name)

    def part(prompts: Tensor, source: str) -> Tensor:
        """What head 1, or the MLP, adds to the residual stream."""
        seen: dict[nn.Module, Tensor] = {}
        handles = [module.register_forward_pre_hook(lambda m, args: seen.update({m: args[0]})) for module in (out, mlp)]
        subject.model(prompts)
        for handle in handles:
            handle.remove()
        if source == "mlp":
            return mlp(seen[mlp])
        without = seen[out].clone()
        without[..., space.head_dim : 2 * space.head_dim] = 0
        return out(seen[out]) - out(without)

    for source in ("head", "mlp"):
        index = graph.head(0, 1) if source == "head" else graph.mlp(0)
        place = (space.kv_heads if role != "q" else space.heads) - 1
        edges = graph.every()
        edges[Receiver(role)][1, place, index] = False
        path, rows = ROWS[family](role, place)
        projection, norm = second.get_submodule(path), second.get_submodule(NORMS[family])
        change = part(CLEAN, source) - part(CORRUPTED, source)
        handles = _patch(norm, projection, rows, change)
        expected = subject.model(CLEAN).logits
        for handle in handles:
            handle.remove()
        assert_same(logits(subject, space.full(), edges), expected)
        assert_differs(expected, subject.model(CLEAN).logits)


def _patch(norm: nn.Module, projection: nn.Module, rows: slice, change: Tensor) -> list[RemovableHandle]:
    """Let some outputs of a projection be read off the residual stream without the change."""
    stream: list[Tensor] = []

    def patched(module: nn.Module, _: object, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[..., rows] = module.forward(norm.forward(stream[0] - change))[..., rows]
        return changed

    seen = norm.register_forward_pre_hook(lambda _, args: stream.append(args[0]))
    return [seen, projection.register_forward_hook(patched)]


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi", "opt"])
def test_gradients_of_edges_are_those_of_finite_differences(family: str) -> None:
    subject = shared(family, torch.float64)
    graph, masks = graph_of(subject), random_masks(subject.space, 1)
    generator = torch.Generator().manual_seed(0)
    edges = {r: torch.rand(e.shape, generator=generator, dtype=torch.float64) * e for r, e in graph.every().items()}

    def said(values: Mapping[Receiver, Tensor]) -> Tensor:
        return torch.log_softmax(logits(subject, masks, values)[:, -1], -1)[:, 5].sum()

    soft = {receiver: mask.clone().requires_grad_() for receiver, mask in edges.items()}
    gradients = dict(zip(soft, torch.autograd.grad(said(soft), list(soft.values())), strict=True))
    among = graph.among(circuit_of(subject, masks).masks)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 0.1
    for receiver in Receiver:
        assert (gradients[receiver][~among[receiver]] == 0).all()
        for where in among[receiver].nonzero()[::5].tolist():
            moved = []
            for step in (1e-3, -1e-3):
                changed = {r: mask.clone() for r, mask in edges.items()}
                changed[receiver][tuple(where)] += step
                moved.append(said(changed))
            slope = (moved[0] - moved[1]) / 2e-3
            assert gradients[receiver][tuple(where)] == pytest.approx(
                float(slope), rel=1e-2, abs=1e-4
            )  # norms are float32


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_models_whose_heads_do_not_add_up_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModel, match="with norms after the projections, expected blocks that add"):
        graph_of(shared(family))
