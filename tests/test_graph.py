"""The graph between heads and MLPs, against counts by hand and networkx."""

import networkx as nx
import pytest
import torch

from circuitsieve.circuits.graph import EdgeCircuit, Graph, Receiver, count
from circuitsieve.circuits.nodes import NodeSpace
from circuitsieve.errors import ConfigError
from models import random_masks


def space_of(layers: int, heads: int, kv_heads: int) -> NodeSpace:
    return NodeSpace(
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=2,
        neurons=5,
        width=4,
        mlp_inputs=1,
        biases=frozenset(),
        post_norm=False,
    )


def test_gpt2_has_as_many_edges_as_the_benchmark_says() -> None:
    graph = Graph(space_of(12, 12, 12))
    assert (graph.sources, count(graph.every())) == (157, 32_491)


@pytest.mark.parametrize("parallel", [False, True])
def test_edges_counted_one_by_one(parallel: bool) -> None:
    graph = Graph(space_of(3, 4, 2), parallel)
    expected, before = set(), ["input"]
    for layer in range(3):
        heads = [f"a{layer}.h{head}" for head in range(4)]
        receivers = [f"{head}<q>" for head in heads] + [f"a{layer}.kv{kv}<{x}>" for kv in range(2) for x in "kv"]
        expected |= {f"{source}->{target}" for source in before for target in receivers}
        expected |= {f"{source}->m{layer}" for source in (before if parallel else before + heads)}
        before += [*heads, f"m{layer}"]
    expected |= {f"{source}->logits" for source in before}
    named = [str(edge) for edge in graph.edges(graph.every())]
    assert len(named) == len(set(named))
    assert set(named) == expected


def test_names_of_heads_that_share_nothing() -> None:
    graph = Graph(space_of(2, 2, 2))
    assert graph.target_name(Receiver.K, 1, 0) == "a1.h0<k>"
    assert graph.source_name(graph.head(1, 1)) == "a1.h1"
    assert graph.source_name(graph.mlp(1)) == "m1"


@pytest.mark.parametrize("seed", range(5))
def test_edges_among_kept_nodes(seed: int) -> None:
    space = space_of(3, 4, 2)
    graph, masks = Graph(space), random_masks(space, seed)
    heads, mlps = graph.kept(masks)
    closed = {f"a{layer}.h{head}" for layer in range(3) for head in range(4) if not heads[layer, head]}
    closed |= {f"m{layer}" for layer in range(3) if not mlps[layer]}
    closed |= set() if masks["embed"].all() else {"input"}
    closed_groups = {
        f"a{layer}.kv{kv}" for layer in range(3) for kv in range(2) if not heads[layer, 2 * kv : 2 * kv + 2].any()
    }
    among = {str(edge) for edge in graph.edges(graph.among(masks))}
    for edge in graph.edges(graph.every()):
        node = edge.target.partition("<")[0]
        assert (str(edge) in among) == (edge.source not in closed and node not in closed | closed_groups)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_dead_lies_on_no_path_from_input_to_logits(seed: int) -> None:
    space = space_of(3, 4, 2)
    graph, generator = Graph(space), torch.Generator().manual_seed(seed)
    masks = {r: every & (torch.rand(every.shape, generator=generator) < 0.12) for r, every in graph.every().items()}
    drawn = nx.DiGraph()
    drawn.add_nodes_from(["input", "logits"])
    for edge in graph.edges(masks):  # from a source to its receiver, and from there to every head that it is part of
        drawn.add_edge(edge.source, edge.target)
        if edge.receiver in (Receiver.K, Receiver.V):
            drawn.add_edges_from((edge.target, f"a{edge.layer}.h{2 * edge.place + i}") for i in range(2))
        elif edge.receiver is Receiver.Q:
            drawn.add_edge(edge.target, f"a{edge.layer}.h{edge.place}")
    live = nx.descendants(drawn, "input") | {"input"}
    live &= nx.ancestors(drawn, "logits") | {"logits"}
    alive = {str(edge) for edge in graph.edges(graph.alive(masks))}
    assert alive == {str(edge) for edge in graph.edges(masks) if {edge.source, edge.target} <= live}


def test_masks_of_another_model_are_refused() -> None:
    graph, other = Graph(space_of(2, 2, 2)), Graph(space_of(3, 2, 2))
    with pytest.raises(ConfigError, match="edges into q: found masks that do not fit the model"):
        EdgeCircuit(graph, other.every(), {})
