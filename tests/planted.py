"""A model whose circuit is known: of a random transformer, only planted nodes write anything."""

import random

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.pairs import Pair
from circuitsieve.data.tokenising import Example, Pairs
from circuitsieve.search.discovery import Discovery, discover
from circuitsieve.vocabulary import Granularity

HEADS = {(0, 1), (1, 2)}
NEURONS = {(0, 3), (0, 17), (1, 8)}
VOCABULARY, WIDTH, HEAD_DIM, NEURONS_PER_LAYER = 40, 32, 8, 64


def make_planted() -> GPT2LMHeadModel:
    """Two layers of four heads and 64 neurons; the output weights of all but the planted ones are 0."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.5)
        for layer, block in enumerate(model.transformer.h):
            heads = [head for at, head in HEADS if at == layer]
            rows = torch.tensor([row // HEAD_DIM in heads for row in range(WIDTH)])
            block.attn.c_proj.weight *= rows[:, None]
            neurons = [neuron for at, neuron in NEURONS if at == layer]
            rows = torch.tensor([row in neurons for row in range(NEURONS_PER_LAYER * 2)])
            block.mlp.c_proj.weight *= 6 * rows[:, None]
    return model


def random_pairs(n: int, seed: int) -> tuple[Example, ...]:
    generator = random.Random(seed)

    def prompt() -> tuple[int, ...]:
        return tuple(generator.randrange(VOCABULARY) for _ in range(6))

    return tuple(Example(Pair("", "", (), ()), prompt(), prompt(), (1,), (2,)) for _ in range(n))


PAIRS = Pairs(random_pairs(64, 0), random_pairs(32, 1), random_pairs(32, 2))
CONFIG = DiscoveryConfig(method="hard_concrete", max_kl=0.02, max_accuracy_drop=0.3, steps=250, batch_size=16, seed=0)


def search(model: GPT2LMHeadModel, method: str) -> Discovery:
    """By a method, or by gates without a ranking before ("gates alone", which then need a higher learning rate)."""
    if method == "gates alone":
        return discover(model, PAIRS, CONFIG.replaced(ranking_share=0.0, lr=0.3, lr_end=0.02))
    return discover(model, PAIRS, CONFIG.replaced(method=method))


def kept(found: Discovery, granularity: Granularity) -> set[tuple[int, int]]:
    return {(layer, index) for layer, index in found.circuit.masks[granularity].nonzero().tolist()}
