"""A model small enough to be worked by hand.

One Llama block with two heads of two dims, two MLP neurons, a residual stream of two dims and three tokens. Prompts have a
single token, so attention gives every head its own value vector. The activation is linear, norms have weight 1 and eps 0,
so an RMSNorm divides by rms(a, b) = sqrt((a² + b²) / 2). Vectors are written (first dim, second dim).

    embedding     token 0 is (1, 1), token 1 is (1, -1); both have rms 1
    values v(x)   head 0: d0 = 16 x1, d1 = 3 x0 - 13 x1      head 1: d2 = 3 x0 + 3 x1, d3 = x0 - x1
    attention     adds (d2 - 4 d3, d0 + d1)
    MLP           h0 = n0 · n1, h1 = n1 · 2 n1 (gate · up);  adds (10 h0, 5 h1)
    logits        (a, b, a - b) of the normed residual stream (a, b)

Clean (token 0). d = (16, -10, 6, 0): attention adds (6, 6), so the stream is (7, 7), normed n = (1, 1). h = (1, 2): the MLP
adds (10, 10), the stream is (17, 17), normed (1, 1).
Corrupted (token 1). d = (-16, 16, 0, 2): attention adds (-8, 0), the stream is (-7, -1), rms 5, n = (-1.4, -0.2).
h = (0.28, 0.08): the MLP adds (2.8, 0.4), the stream is (-4.2, -0.6), rms 3, normed (-1.4, -0.2).
"""

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from circuitsieve.circuits.costs import parameters
from circuitsieve.models.instrument import answer_logits, masked, record
from circuitsieve.models.subject import Subject
from circuitsieve.objective import kl, log_probs
from circuitsieve.vocabulary import Granularity, Site, SiteKind

G = Granularity
CLEAN, CORRUPTED, LAST = torch.tensor([[0]]), torch.tensor([[1]]), torch.tensor([0])
FULL, EMPTY = (1.0, 1.0, 0.0), (-1.4, -0.2, -1.2)


@pytest.fixture(scope="module")
def micro() -> Subject:
    config = LlamaConfig(
        vocab_size=3, hidden_size=2, intermediate_size=2, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        head_dim=2, hidden_act="linear", rms_norm_eps=0.0, bos_token_id=0, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    block = model.model.layers[0]
    for parameter, values in {
        model.model.embed_tokens.weight: [[1, 1], [1, -1], [0, 0]],
        block.self_attn.v_proj.weight: [[0, 16], [3, -13], [3, 3], [1, -1]],
        block.self_attn.o_proj.weight: [[0, 0, 1, -4], [1, 1, 0, 0]],
        block.mlp.gate_proj.weight: [[1, 0], [0, 1]],
        block.mlp.up_proj.weight: [[0, 1], [0, 2]],
        block.mlp.down_proj.weight: [[10, 0], [0, 5]],
        model.lm_head.weight: [[1, 0], [0, 1], [1, -1]],
    }.items():
        parameter.data.copy_(torch.tensor(values))
    return Subject.of(model)


def logits(micro: Subject, closed: dict[Granularity, dict[int, float]], *, corrupted: bool) -> Tensor:
    """Answer logits of the clean prompt with some nodes of the only layer at the given mask values."""
    masks = {}
    for granularity, values in closed.items():
        masks[granularity] = torch.ones(micro.space.shape(granularity))
        for index, value in values.items():
            masks[granularity][0, index] = value
    sites = list(micro.architecture.sites())
    with record(micro, sites) as baselines:
        answer_logits(micro, CORRUPTED, LAST)
    with masked(micro, micro.space.compose(masks), baselines if corrupted else dict.fromkeys(sites, torch.zeros(1))):
        return answer_logits(micro, CLEAN, LAST)[0]


def test_activations(micro: Subject):
    with record(micro, micro.architecture.sites()) as clean:
        assert answer_logits(micro, CLEAN, LAST)[0].tolist() == pytest.approx(FULL, abs=1e-6)
    with record(micro, micro.architecture.sites()) as corrupted:
        assert answer_logits(micro, CORRUPTED, LAST)[0].tolist() == pytest.approx(EMPTY, abs=1e-6)
    expected = {
        SiteKind.EMBED: ((1, 1), (1, -1)),
        SiteKind.ATTN_READ: ((16, -10, 6, 0), (-16, 16, 0, 2)),
        SiteKind.ATTN_WRITE: ((6, 6), (-8, 0)),
        SiteKind.MLP_READ: ((1, 2), (0.28, 0.08)),
        SiteKind.MLP_WRITE: ((10, 10), (2.8, 0.4)),
    }
    for kind, (of_clean, of_corrupted) in expected.items():
        assert clean[Site(kind, 0)].flatten().tolist() == pytest.approx(of_clean, abs=1e-5)
        assert corrupted[Site(kind, 0)].flatten().tolist() == pytest.approx(of_corrupted, abs=1e-5)


ZERO = {
    # stream (1, 7), rms 5, n = (0.2, 1.4); h = (0.28, 3.92) adds (2.8, 19.6): (3.8, 26.6), rms 19
    "head 1": ({G.HEAD: {1: 0}}, (0.2, 1.4, -1.2)),
    # stream (7, 1), n = (1.4, 0.2); h = (0.28, 0.08) adds (2.8, 0.4): (9.8, 1.4), rms 7
    "head 0": ({G.HEAD: {0: 0}}, (1.4, 0.2, 1.2)),
    # stream (7, 17), rms 13, n = (7, 17) / 13; h = (119, 578) / 169 adds (1190, 2890) / 169: (2373, 5763) / 169, along n
    "head dim 1": ({G.HEAD_DIM: {1: 0}}, (7 / 13, 17 / 13, -10 / 13)),
    # attention closed: stream (1, 1); the MLP adds (10, 10)
    "attn block": ({G.ATTN_BLOCK: {0: 0}}, (1, 1, 0)),
    # the second out dim of attention closed leaves (7, 1), as head 0 does
    "attn out dim 1": ({G.ATTN_OUT_DIM: {1: 0}}, (1.4, 0.2, 1.2)),
    # (17, 7) and (7, 17), rms 13
    "neuron 1": ({G.MLP_NEURON: {1: 0}}, (17 / 13, 7 / 13, 10 / 13)),
    "neuron 0": ({G.MLP_NEURON: {0: 0}}, (7 / 13, 17 / 13, -10 / 13)),
    "MLP out dim 0": ({G.MLP_OUT_DIM: {0: 0}}, (7 / 13, 17 / 13, -10 / 13)),
    # half of neuron 1: (17, 12), rms sqrt(216.5) = 14.71394
    "half of neuron 1": ({G.MLP_NEURON: {1: 0.5}}, (1.155367, 0.815553, 0.339814)),
    # head 1 and its dims at 1/2 each leave a quarter of 6: stream (2.5, 7), n = (2.5, 7) / rms; MLP adds along n, so
    # the end is n: rms = sqrt(27.625) = 5.255949
    "quarter of head 1": ({G.HEAD: {1: 0.5}, G.HEAD_DIM: {2: 0.5, 3: 0.5}}, (0.475652, 1.331824, -0.856173)),
    # head 1 closed, and the MLP's second out dim: stream (1, 7), MLP adds (2.8, 0): (3.8, 7), rms sqrt(31.72) = 5.632051
    "head 1 and MLP out dim 1": ({G.HEAD: {1: 0}, G.MLP_OUT_DIM: {1: 0}}, (0.674710, 1.242886, -0.568177)),
    # half of the layer and half of both blocks leave a quarter of each: (1, 1) + (1.5, 1.5) + (2.5, 2.5)
    "quarter of the layer": ({G.LAYER: {0: 0.5}, G.ATTN_BLOCK: {0: 0.5}, G.MLP_BLOCK: {0: 0.5}}, (1, 1, 0)),
    # nothing of the layer, a quarter of nothing
    "layer": ({G.LAYER: {0: 0}, G.HEAD: {0: 0}}, (1, 1, 0)),
}

CORRUPTED_BASELINE = {
    # head 0 becomes (-16, 16), which adds 0: stream (7, 1) as above
    "head 0": ({G.HEAD: {0: 0}}, (1.4, 0.2, 1.2)),
    # head 1 becomes (0, 2), which adds -8: stream (-7, 7), rms 7, n = (-1, 1); h = (-1, 2) adds (-10, 10): (-17, 17)
    "head 1": ({G.HEAD: {1: 0}}, (-1, 1, -2)),
    # head dim 3 alone becomes 2: attention adds (6 - 8, 6): stream (-1, 7), rms 5, n = (-0.2, 1.4); h = (-0.28, 3.92) adds
    # (-2.8, 19.6): (-3.8, 26.6), rms 19
    "head dim 3": ({G.HEAD_DIM: {3: 0}}, (-0.2, 1.4, -1.6)),
    # attention becomes (-8, 0): stream (-7, 1), rms 5, n = (-1.4, 0.2); h = (-0.28, 0.08) adds (-2.8, 0.4): (-9.8, 1.4), rms 7
    "attn block": ({G.ATTN_BLOCK: {0: 0}}, (-1.4, 0.2, -1.6)),
    # its first out dim becomes -8: stream (-7, 7), as with head 1
    "attn out dim 0": ({G.ATTN_OUT_DIM: {0: 0}}, (-1, 1, -2)),
    # neuron 0 becomes 0.28: (7 + 2.8, 17), rms sqrt(192.52) = 13.875158
    "neuron 0": ({G.MLP_NEURON: {0: 0}}, (0.706298, 1.225211, -0.518913)),
    # the MLP becomes (2.8, 0.4): (9.8, 7.4), rms sqrt(75.4) = 8.683317
    "MLP block": ({G.MLP_BLOCK: {0: 0}}, (1.128601, 0.852209, 0.276392)),
    # half of head 1: (d2, d3) = (3, 1) adds -1: stream (0, 7), rms 7 / sqrt 2, n = (0, sqrt 2); h = (0, 4) adds (0, 20)
    "half of head 1": ({G.HEAD: {1: 0.5}}, (0, math.sqrt(2), -math.sqrt(2))),
    # attention and MLP corrupted, the embedding clean: (1, 1) + (-8, 0) + (2.8, 0.4) = (-4.2, 1.4), rms sqrt(9.8) = 3.130495
    "layer": ({G.LAYER: {0: 0}}, (-1.341641, 0.447214, -1.788854)),
    # the embedding corrupted: everything is
    "embedding": ({G.EMBED: {0: 0}}, EMPTY),
    # half of the embedding: (1, 0), rms 1 / sqrt 2, normed (sqrt 2, 0): d = (0, 3, 3, 1) sqrt 2 adds (-1, 3) sqrt 2: stream
    # (-0.414214, 4.242641), rms sqrt(9.085786) = 3.014264, n = (-0.137418, 1.407522); the MLP adds along n
    "half of the embedding": ({G.EMBED: {0: 0.5}}, (-0.137418, 1.407522, -1.544940)),
}


@pytest.mark.parametrize(("masks", "expected"), ZERO.values(), ids=ZERO)
def test_zero_ablation(micro: Subject, masks: dict[Granularity, dict[int, float]], expected: tuple[float, ...]):
    assert logits(micro, masks, corrupted=False).tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(("masks", "expected"), CORRUPTED_BASELINE.values(), ids=CORRUPTED_BASELINE)
def test_corrupted_baseline(micro: Subject, masks: dict[Granularity, dict[int, float]], expected: tuple[float, ...]):
    assert logits(micro, masks, corrupted=True).tolist() == pytest.approx(expected, abs=2e-6)


def test_kl(micro: Subject):
    """Full: logits (1, 1, 0); without head 1: (-1, 1, -2), both by the softmax over three tokens."""
    without = logits(micro, {G.HEAD: {1: 0}}, corrupted=True)
    found = kl(log_probs(torch.tensor([FULL])), log_probs(without[None]))
    e = math.e
    full_total, without_total = 2 * e + 1, 1 / e + e + e**-2
    # sum of p (ln p - ln q) = p0 (1 + 1) + p1 (1 - 1) + p2 (0 + 2) - ln full_total + ln without_total
    expected = 2 * (e + 1) / full_total - math.log(full_total) + math.log(without_total)
    assert expected == pytest.approx(0.4632, abs=1e-4)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_costs(micro: Subject):
    """q, k, v, o: four 4 x 2 matrices; gate, up, down: three 2 x 2 ones: 44 in all. Without head 1: half of q, k, v and o."""
    masks = micro.space.full()
    assert parameters(micro.space, masks).total == 44
    assert micro.space.units == 6
    masks[G.HEAD][0, 1] = False
    assert parameters(micro.space, masks).kept == 16 + 12
    assert micro.space.size(masks) == pytest.approx(4 / 6)
    masks[G.MLP_OUT_DIM][0, 0] = masks[G.MLP_NEURON][0, 1] = False
    assert parameters(micro.space, masks).kept == 16 + 2 + 2 + 1
