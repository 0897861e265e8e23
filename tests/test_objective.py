"""The objective's numbers, worked by hand, by numpy and by scipy."""

import math

import numpy
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from circuitsieve.objective import Targets, gather, hinge, kl, log_probs, logit_difference, measure

NOTHING = float("-inf")


def targets(answers: list[list[int]], wrong: list[list[int]], candidates: list[list[int]] | None = None) -> Targets:
    return Targets(torch.tensor(answers), torch.tensor(wrong), None if candidates is None else torch.tensor(candidates))


def logits_of(*probabilities: list[float]) -> Tensor:
    """Logits whose softmax is given, shifted: only differences may count."""
    return torch.tensor(probabilities, dtype=torch.float64).log().float() + 5


# --- KL ------------------------------------------------------------------------------------------------------------------


def test_kl_by_hand():
    full = logits_of([0.5, 0.25, 0.25], [0.2, 0.3, 0.5])
    circuit = logits_of([0.25, 0.25, 0.5], [0.2, 0.3, 0.5])
    # 0.5 ln(0.5/0.25) + 0.25 ln 1 + 0.25 ln(0.25/0.5) = 0.5 ln 2 - 0.25 ln 2 = 0.25 ln 2
    assert kl(log_probs(full), log_probs(circuit)).tolist() == pytest.approx([0.25 * math.log(2), 0], abs=1e-6)
    # the other way round: 0.25 ln(0.25/0.5) + 0.5 ln(0.5/0.25) = 0.25 ln 2 here too; take an asymmetric pair
    full, circuit = logits_of([0.9, 0.1]), logits_of([0.5, 0.5])
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)  # 0.3681
    backward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)  # 0.5108
    assert forward == pytest.approx(0.3681, abs=1e-4)
    assert kl(log_probs(full), log_probs(circuit)).item() == pytest.approx(forward, rel=1e-5)
    assert kl(log_probs(circuit), log_probs(full)).item() == pytest.approx(backward, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kl_against_scipy(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    full, circuit = (
        (4 * torch.randn(5, 300, generator=generator)).to(dtype),
        (4 * torch.randn(5, 300, generator=generator)).to(dtype),
    )
    p, q = (special.softmax(values.double().numpy(), axis=1) for values in (full, circuit))
    found = kl(log_probs(full), log_probs(circuit))
    assert found.dtype == torch.float32
    numpy.testing.assert_allclose(found.numpy(), stats.entropy(p, q, axis=1), rtol=1e-4)


def test_kl_over_candidates():
    """Probabilities 0.4 and 0.1 of the candidates become 0.8 and 0.2; padding and every other token drop out."""
    full, circuit = logits_of([0.4, 0.1, 0.5, 0.0]), logits_of([0.05, 0.05, 0.1, 0.8])
    candidates = torch.tensor([[1, 0, -1, -1]])
    expected = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    restricted = log_probs(full, candidates)
    assert restricted[0].exp().tolist() == pytest.approx([0.2, 0.8, 0, 0])
    assert restricted[0, 2:].tolist() == [NOTHING, NOTHING]
    assert kl(restricted, log_probs(circuit, candidates)).item() == pytest.approx(expected, rel=1e-5)


def test_kl_gradient_passes_padded_candidates():
    circuit = torch.tensor([[0.3, -0.2, 1.0]], requires_grad=True)
    candidates = torch.tensor([[0, 2, -1]])
    kl(log_probs(torch.tensor([[1.0, 0.0, 0.5]]), candidates), log_probs(circuit, candidates)).sum().backward()
    p, q = special.softmax([1.0, 0.5]), special.softmax([0.3, 1.0])
    assert circuit.grad[0].tolist() == pytest.approx(
        [q[0] - p[0], 0, q[1] - p[1]], abs=1e-6
    )  # the gradient of a KL is q - p


def test_tokens_without_probability_add_nothing():
    full = torch.tensor([[0.0, NOTHING, 0.0]])
    circuit = torch.tensor([[1.0, 2.0, 1.0]])
    q = special.softmax([1.0, 2.0, 1.0])
    assert kl(log_probs(full), log_probs(circuit)).item() == pytest.approx(math.log(0.5 / q[0]), rel=1e-5)
    assert kl(log_probs(full), log_probs(full)).item() == 0


# --- logit difference and hinge ------------------------------------------------------------------------------------------

LOGITS = torch.tensor([[1.0, 4.0, 2.0, 7.0, -1.0], [3.0, 0.0, 5.0, -2.0, 1.0]])


def test_gather_leaves_padding_out():
    assert gather(LOGITS, torch.tensor([[3, -1], [-1, 4]])).tolist() == [[7.0, NOTHING], [NOTHING, 1.0]]


def test_logit_difference_takes_the_best_of_each_side():
    # pair 0: max(1, 4) - max(2, -1) = 2;  pair 1: 0 - 5 = -5; padding would have been the last token or an infinity
    assert logit_difference(LOGITS, targets([[0, 1], [1, -1]], [[2, 4], [2, -1]])).tolist() == [2.0, -5.0]


def test_logit_difference_is_float32():
    found = logit_difference(LOGITS.bfloat16(), targets([[0], [1]], [[2], [2]]))
    assert found.dtype == torch.float32
    assert found.tolist() == [-1.0, -5.0]


def test_hinge():
    """Margin 4: 1.5 short of it, at it, beyond it, and on the wrong side."""
    differences = torch.tensor([2.5, 4.0, 9.0, -1.0], requires_grad=True)
    shortfall = hinge(differences, 4.0)
    assert shortfall.tolist() == [1.5, 0, 0, 5]
    shortfall.sum().backward()
    assert differences.grad[[0, 2, 3]].tolist() == [-1, 0, -1]


# --- metrics -------------------------------------------------------------------------------------------------------------


def test_metrics_of_each_pair():
    full = logits_of([0.1, 0.6, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1], [0.25, 0.4, 0.3, 0.05], [0.1, 0.2, 0.3, 0.4])
    circuit = logits_of([0.2, 0.5, 0.2, 0.1], [0.2, 0.3, 0.4, 0.1], [0.1, 0.3, 0.2, 0.4], [0.1, 0.2, 0.3, 0.4])
    found = measure(full, circuit, targets([[1, 0], [0, -1], [1, 2], [0, -1]], [[2, -1], [1, 3], [0, -1], [1, 2]]))
    assert found.prob_diff.tolist() == pytest.approx([0.7 - 0.2, 0.2 - 0.4, 0.5 - 0.1, 0.1 - 0.5], rel=1e-5)
    ratios = [math.log(0.5 / 0.2), math.log(0.2 / 0.3), math.log(0.3 / 0.1), math.log(0.1 / 0.3)]
    assert found.logit_diff.tolist() == pytest.approx(ratios, rel=1e-5)
    assert found.accuracy.tolist() == [1, 0, 1, 0]
    assert found.argmax_accuracy.tolist() == [1, 0, 0, 0]  # the third says token 3, which is no answer
    assert found.exact_match.tolist() == [1, 0, 0, 1]
    p, q = full.softmax(-1).double().numpy(), circuit.softmax(-1).double().numpy()
    assert found.kl.tolist() == pytest.approx(stats.entropy(p, q, axis=1), rel=1e-4, abs=1e-6)


def test_metrics_over_candidates():
    """Among tokens 0, 1 and 2 the probabilities 0.1, 0.3, 0.1 become 0.2, 0.6, 0.2; token 3, the likeliest, is out."""
    full, circuit = logits_of([0.3, 0.1, 0.1, 0.5]), logits_of([0.1, 0.3, 0.1, 0.5])
    within = measure(full, circuit, targets([[1, 2]], [[0]], [[2, 0, 1, -1]]))
    assert within.prob_diff.item() == pytest.approx(0.6 + 0.2 - 0.2, rel=1e-5)
    assert within.argmax_accuracy.item() == 1
    assert within.exact_match.item() == 0
    assert within.kl.item() == pytest.approx(stats.entropy([0.6, 0.2, 0.2], [0.2, 0.6, 0.2]), rel=1e-5)
    over_all = measure(full, circuit, targets([[1, 2]], [[0]]))
    assert over_all.prob_diff.item() == pytest.approx(0.3 + 0.1 - 0.1, rel=1e-5)
    assert over_all.argmax_accuracy.item() == 0
    assert over_all.exact_match.item() == 1


def test_cutoff_sharpness_over_candidates_where_there_is_a_border():
    """Among tokens 0, 1 and 2 the probabilities 0.1, 0.3, 0.1 become 0.2, 0.6, 0.2."""
    logits = torch.cat([logits_of([0.1, 0.3, 0.1, 0.5])] * 2)
    plain = targets([[1, 2], [1, 2]], [[0, -1], [0, -1]], [[2, 0, 1], [2, 0, 1]])
    found = measure(logits, logits, plain._replace(cutoff=torch.tensor([[1, 0], [-1, -1]]))).cutoff_sharpness
    assert found[0].item() == pytest.approx(0.6 - 0.2, rel=1e-5)
    assert found[1].isnan()
    assert measure(logits, logits, plain).cutoff_sharpness.isnan().all()


def test_equal_logits_are_no_success():
    found = measure(LOGITS, torch.zeros(2, 5), targets([[0], [1]], [[2], [2]]))
    assert found.logit_diff.tolist() == [0, 0]
    assert found.accuracy.tolist() == [0, 0]
