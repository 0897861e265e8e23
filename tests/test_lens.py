"""What nodes write, against sums and differences of plain forward passes."""

import pytest
import torch

from circuitsieve.data.batching import batches
from circuitsieve.models.ablations import constants
from circuitsieve.models.instrument import answer_logits, masked, record
from circuitsieve.models.lens import Lens, attention_patterns
from circuitsieve.models.subject import Subject
from circuitsieve.objective import logit_difference
from circuitsieve.vocabulary import Ablation, Site, SiteKind
from models import ALL_TYPES, POST_NORM, each_type, fresh, module, random_examples, shared

each_lens = pytest.mark.parametrize("family", [family for family in ALL_TYPES if family != "opt_post_norm"])


def lens_of(subject: Subject) -> Lens:
    lens = Lens.of(subject)
    assert lens is not None
    return lens


@each_lens
def test_the_last_residual_stream_is_the_sum_of_all_that_is_written(family: str):
    """So what the lens says of the sum is what the model says."""
    subject = shared(family)
    (batch,) = batches(random_examples([7, 5, 7]), 4)
    lens, sites = lens_of(subject), list(subject.architecture.sites())
    assert lens.norm is module(subject.model, "final_norm")
    with torch.no_grad(), record(subject, sites) as recorded:
        logits = answer_logits(subject, batch.clean, batch.positions)
    rows = torch.arange(len(batch))
    written = [v[rows, batch.positions] for s, v in recorded.items() if s.kind.name.endswith("WRITE")]
    residual = torch.stack([*written, recorded[Site(SiteKind.EMBED, 0)][rows, batch.positions]]).sum(0)
    said = lens.logits(residual, torch.arange(subject.model.config.vocab_size))
    cap = getattr(subject.model.config, "final_logit_softcapping", None)
    torch.testing.assert_close(said if cap is None else cap * torch.tanh(said / cap), logits, atol=1e-4, rtol=1e-4)


@each_lens
def test_the_direct_effect_of_a_last_head_is_its_whole_effect(family: str):
    """Behind the heads of the last layer there is but its MLP, whose output is kept as it is on the clean prompt."""
    subject = Subject.of(fresh(shared(family)).double())
    if getattr(subject.model.config, "final_logit_softcapping", None):
        subject.model.config.final_logit_softcapping = None
    (batch,) = batches(random_examples([6, 6, 4, 6]), 4)
    last = subject.space.layers - 1
    effects = lens_of(subject).heads({last: [0, subject.space.heads - 1]}, [batch], None)[last]
    sites = [Site(SiteKind.ATTN_READ, last), Site(SiteKind.MLP_WRITE, last)]
    with torch.no_grad():
        with record(subject, sites) as corrupted:
            answer_logits(subject, batch.corrupted, batch.positions)
        with record(subject, sites) as clean:
            full = logit_difference(answer_logits(subject, batch.clean, batch.positions), batch.targets)
        for row, head in enumerate((0, subject.space.heads - 1)):
            dims = torch.ones(subject.space.layers, subject.space.heads, subject.space.head_dim)
            dims[last, head] = 0
            held = torch.zeros(subject.space.layers, subject.space.width)  # 0: as recorded on the clean prompt
            masks = {SiteKind.ATTN_READ: dims.flatten(1)}
            baselines = {sites[0]: corrupted[sites[0]], **dict.fromkeys(_others(last), torch.zeros(1))}
            with masked(
                subject, masks | {SiteKind.MLP_WRITE: 1 - _only(held, last)}, baselines | {sites[1]: clean[sites[1]]}
            ):
                without = logit_difference(answer_logits(subject, batch.clean, batch.positions), batch.targets)
            torch.testing.assert_close(effects.direct[row], full - without, atol=1e-6, rtol=1e-5)
    assert effects.direct.abs().max() > 1e-6
    assert effects.directions.shape == (2, subject.space.width)


def test_every_pair_counts_alike_in_the_direction_of_a_head():
    subject = shared("llama")
    examples = random_examples([6, 6, 6, 6, 6])
    few, whole = (list(batches(examples, size)) for size in (4, 5))
    assert sorted(len(batch) for batch in few) == [1, 4]
    last = subject.space.layers - 1
    apart, together = (lens_of(subject).heads({last: [0, 1]}, some, None)[last] for some in (few, whole))
    torch.testing.assert_close(apart.directions, together.directions)
    torch.testing.assert_close(apart.direct.mean(1), together.direct.mean(1))


def _others(last: int) -> list[Site]:
    kinds = (SiteKind.ATTN_READ, SiteKind.MLP_WRITE)
    return [Site(kind, layer) for kind in kinds for layer in range(last)]


def _only(like: torch.Tensor, layer: int) -> torch.Tensor:
    found = torch.zeros_like(like)
    found[layer] = 1
    return found


@pytest.mark.parametrize("ablation", [Ablation.ZERO, Ablation.MEAN, Ablation.MEAN_POSITIONAL])
def test_constants_take_the_place_of_the_corrupted_prompts(ablation: Ablation):
    """Pair by pair, with the constant written out: at the answer's position, or the last row beyond all that are known."""
    subject = Subject.of(fresh(shared("llama")).double())
    known, later = batches(random_examples([6, 5, 6]), 3), batches(random_examples([9, 9], seed=1), 1)
    site = Site(SiteKind.ATTN_READ, 1)
    constant = constants(subject, known, ablation)[site]
    found = lens_of(subject).heads({1: [0, 1]}, [*known, *later], {site: constant})[1].direct
    expected = []
    for batch in batches(random_examples([6, 5, 6]), 1) + later:
        row = constant
        if ablation is Ablation.MEAN_POSITIONAL:
            row = constant[min(int(batch.positions[0]), len(constant) - 1)]
        expected.append(lens_of(subject).heads({1: [0, 1]}, [batch], {site: row})[1].direct)
    torch.testing.assert_close(found.sort(1).values, torch.cat(expected, 1).sort(1).values)
    assert found.abs().max() > 1e-6


@each_lens
def test_words_of_neurons_are_those_that_writing_more_makes_more_likely(family: str):
    """A long way along the neuron's direction from a residual stream of zeros, against one step there by hand."""
    subject = shared(family)
    lens = lens_of(subject)
    directions = lens.neurons(0)
    assert directions.shape == (subject.space.neurons, subject.space.width)
    words = lens.words(directions, 3)
    norm, head = module(subject.model, "final_norm"), subject.model.get_output_embeddings().weight
    with torch.no_grad():
        unit = torch.eye(subject.space.neurons)
        written = module(subject.model, "mlp_out", 0)(unit) - module(subject.model, "mlp_out", 0)(0 * unit)
        if subject.model.config.model_type in POST_NORM:
            behind = module(subject.model, "mlp_post_norm", 0)
            written = behind(1e4 * written)
        scores = (norm(1e4 * written) - norm(0 * written)) @ head.T
    for found, largest in ((words.promoted, True), (words.demoted, False)):
        expected = scores.topk(3, largest=largest).values
        torch.testing.assert_close(scores.gather(1, found), expected, atol=1e-3, rtol=1e-3)


@each_type
def test_attention_patterns_are_distributions_over_what_came_before(family: str):
    subject = shared(family)
    before = subject.model.config._attn_implementation
    ids = [torch.tensor(example.clean) for example in random_examples([5, 7])]
    for tokens, pattern in zip(ids, attention_patterns(subject, ids), strict=True):
        assert pattern.shape == (subject.space.layers, subject.space.heads, len(tokens), len(tokens))
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]), atol=1e-4, rtol=0)
        assert pattern.triu(1).abs().max() == 0
    assert subject.model.config._attn_implementation == before


def test_the_patterns_of_gpt2_are_those_of_its_queries_and_keys():
    """By hand from the weights: each layer, each head, from what the block reads."""
    subject = shared("gpt2")
    ids = torch.tensor(random_examples([6])[0].clean)
    (found,) = attention_patterns(subject, [ids])
    with torch.no_grad():
        states = subject.model(ids[None], output_hidden_states=True).hidden_states
        for layer, block in enumerate(subject.model.transformer.h):
            q, k, _ = block.attn.c_attn(block.ln_1(states[layer][0])).split(subject.space.width, dim=1)
            for head in range(subject.space.heads):
                dims = slice(head * subject.space.head_dim, (head + 1) * subject.space.head_dim)
                looks = q[:, dims] @ k[:, dims].T / subject.space.head_dim**0.5
                looks = looks.masked_fill(torch.ones_like(looks).triu(1).bool(), -torch.inf).softmax(1)
                torch.testing.assert_close(found[layer, head], looks, atol=1e-5, rtol=1e-4)
    assert (found - found[:1, :1]).abs().max() > 0.01  # heads differ


def test_a_residual_stream_that_is_normed_throughout_has_no_lens():
    assert Lens.of(shared("opt_post_norm")) is None
