"""Scores that are not learned, against finite differences of single masks and against activations read off the modules."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from circuitsieve.circuits.nodes import finest
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.tokenising import Pairs
from circuitsieve.models.instrument import answer_logits
from circuitsieve.search.attribution import attribution, points
from circuitsieve.search.problem import Problem
from circuitsieve.vocabulary import DEFAULT_GRANULARITIES, Granularity, Site, SiteKind
from models import each_family, random_examples, shared

G = Granularity
PAIRS = Pairs(*(tuple(random_examples([5, 6, 6], seed)) for seed in (1, 2, 3)))
STEP = 3e-3


def problem_of(
    family: str, granularities: tuple[Granularity, ...] = DEFAULT_GRANULARITIES, **settings: object
) -> Problem:
    config = DiscoveryConfig(granularities=tuple(map(str, granularities)), batch_size=3, training_dtype="model")
    return Problem.of(shared(family, torch.float64), PAIRS, config.replaced(**settings))


def gain(problem: Problem, node: G, layer: int, index: int, value: float) -> float:
    """The mean change of what a method scores by, when one mask moves while all stand at a value; by finite differences."""
    (batch,) = problem.train.batches
    reference = problem.train.references(batch)
    zero = dict.fromkeys(problem.subject.architecture.sites(), torch.zeros(1))
    sides: list[Tensor] = []
    for change in (STEP, -STEP):
        masks = {
            g: torch.full(problem.space.shape(g), value, dtype=torch.float64)
            for g in finest(problem.granularities).values()
        }
        masks[node][layer, index] += change
        constants = zero if problem.config.method == "activation_gradient" else None
        with torch.no_grad():
            # Zeros are there at every site, so that masks of blocks need not be folded into those of what they read.
            site_masks = problem.site_masks(masks) if constants is None else problem.space.compose(masks)
            logits = problem.train.logits(site_masks, batch, reference, constants)
        if problem.config.method == "integrated_gradients":
            full, circuit = (values.double().log_softmax(-1) for values in (reference.full, logits))
            sides.append((full.exp() * (circuit - full)).sum(-1))
        else:
            right, wrong = (ids.squeeze(1) for ids in (batch.targets.answers, batch.targets.wrong_answers))
            rows = torch.arange(len(batch))
            sides.append(logits[rows, right] - logits[rows, wrong])
    return float((sides[0] - sides[1]).mean()) / (2 * STEP)


@pytest.mark.parametrize("granularities", [(G.LAYER,), (G.HEAD, G.MLP_BLOCK), tuple(G)], ids=len)
@pytest.mark.parametrize("method", ["attribution", "integrated_gradients", "activation_gradient"])
@each_family
def test_scores_are_those_of_finite_differences(family: str, method: str, granularities: tuple[G, ...]) -> None:
    own = {"integration_points": 2} if method == "integrated_gradients" else {}
    problem = problem_of(family, granularities, method=method, score_sign="signed", **own)
    scores = attribution(problem).scores
    assert set(scores) == set(finest(granularities).values())
    at = points(problem)
    assert at == ([0.25, 0.75] if method == "integrated_gradients" else [1.0])
    for node, found in scores.items():
        layers, n = problem.space.shape(node)
        largest = float(found.abs().max())
        for layer, index in {(0, 0), (layers - 1, n - 1), divmod(int(found.abs().argmax()), n)}:
            expected = sum(gain(problem, node, layer, index, value) for value in at) / len(at)
            assert float(found[layer, index]) == pytest.approx(expected, rel=2e-2, abs=5e-3 * largest)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_activations_times_gradients_do_not_ask_what_the_corrupted_prompt_is(family: str) -> None:
    """Whether it shares its first tokens, which other methods need not run, or none."""
    subject = shared(family, torch.float64)
    examples = random_examples([8, 8, 8], 1)
    sharing = [replace(e, corrupted=(*e.clean[:5], *e.corrupted[5:])) for e in examples]
    config = DiscoveryConfig(method="activation_gradient", score_sign="signed", batch_size=3, training_dtype="model")
    problems = [Problem.of(subject, Pairs(tuple(some), PAIRS.validation, ()), config) for some in (sharing, examples)]
    prefixes = [p.train.references(p.train.batches[0], again=False).prefix for p in problems]
    assert prefixes[0] is not None
    assert prefixes[1] is None
    one, two = (attribution(problem).scores for problem in problems)
    for g, scores in one.items():
        torch.testing.assert_close(scores, two[g])


@each_family
def test_activation_differences_are_those_of_the_modules(family: str) -> None:
    problem = problem_of(family, (G.HEAD, G.MLP_NEURON), method="activation_difference")
    scores, space, architecture = attribution(problem).scores, problem.space, problem.subject.architecture
    expected = {G.HEAD: torch.zeros(space.shape(G.HEAD)), G.MLP_NEURON: torch.zeros(space.shape(G.MLP_NEURON))}
    for layer in range(space.layers):
        for node, kind in ((G.HEAD, SiteKind.ATTN_READ), (G.MLP_NEURON, SiteKind.MLP_READ)):
            seen: list[Tensor] = []
            module = architecture.read_module(Site(kind, layer))
            handle = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            for example in PAIRS.train:  # one by one: no padding
                for prompt in (example.clean, example.corrupted):
                    ids = torch.tensor([prompt])
                    with torch.no_grad():
                        answer_logits(problem.subject, ids, torch.tensor([len(prompt) - 1]))
                clean, corrupted = (tensor.view(len(example.clean), -1) for tensor in seen[-2:])
                distance = (clean - corrupted).abs().mean(0)
                n = space.shape(node)[1]
                expected[node][layer] += distance.view(n, -1).sum(1).float() / len(PAIRS.train)
            handle.remove()
    for node, score in expected.items():
        torch.testing.assert_close(scores[node], score, rtol=1e-4, atol=1e-6)


def test_absolute_scores_are_those_of_the_mean_over_pairs() -> None:
    signed, absolute = (
        attribution(problem_of("llama", method="attribution", score_sign=sign)).scores
        for sign in ("signed", "absolute")
    )
    assert all(torch.equal(signed[g].abs(), absolute[g]) for g in signed)
    assert any((scores < 0).any() for scores in signed.values())


def test_random_scores_follow_the_seed() -> None:
    first, again, other = (attribution(problem_of("llama", method="random", seed=seed)).scores for seed in (1, 1, 2))
    assert all(torch.equal(first[g], again[g]) for g in first)
    assert not any(torch.equal(first[g], other[g]) for g in first)


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    attribution(problem_of("llama", method="attribution", batch_size=1), lambda *seen: told.append(seen))
    assert told == [(1, 3), (2, 3), (3, 3)]
