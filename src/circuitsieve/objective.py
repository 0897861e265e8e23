"""What is measured and minimised: pure functions of logits at the answer positions.

Log-softmax is always float32, over the whole vocabulary or over the candidates of each pair. Token ids are padded with
-1, which no function here counts.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Logits = Float[Tensor, "batch vocab"]
Ids = Int[Tensor, "batch _"]
PerPair = Float[Tensor, " batch"]


class Targets(NamedTuple):
    """What a batch should and should not say: token ids, padded with -1."""

    answers: Int[Tensor, "batch answers"]
    wrong_answers: Int[Tensor, "batch wrong"]
    candidates: Int[Tensor, "batch candidates"] | None = None
    cutoff: Int[Tensor, "batch 2"] | None = None
    """The numbers just above and just below a border."""


class PairMetrics(NamedTuple):
    """The metrics of each pair; their means over pairs are what is reported (0 or 1 where they are shares)."""

    kl: PerPair
    """KL(full || circuit), nats."""
    logit_diff: PerPair
    """Best answer logit minus best wrong-answer logit."""
    prob_diff: PerPair
    """Summed probability of the answers minus that of the wrong answers."""
    accuracy: PerPair
    """Logit difference above 0."""
    argmax_accuracy: PerPair
    """The most likely token is an answer."""
    exact_match: PerPair
    """The most likely token is the full model's."""
    cutoff_sharpness: PerPair
    """Probability of the number just above the border minus that of the one just below it; nan where there is no border."""
    metric: PerPair
    """What faithfulness is the ratio of (`metric`)."""


def gather(values: Logits, ids: Ids) -> Float[Tensor, "batch _"]:
    """Values at padded token ids; -inf at the padding."""
    return values.gather(1, ids.clamp_min(0)).masked_fill(ids < 0, -torch.inf)


def log_probs(logits: Logits, candidates: Ids | None = None) -> Float[Tensor, "batch _"]:
    """Float32 log-probabilities over the vocabulary, or renormalised over the candidates (padding: -inf)."""
    values = logits.float()
    return torch.log_softmax(values if candidates is None else gather(values, candidates), dim=-1)


def kl(full: Float[Tensor, "batch n"], circuit: Float[Tensor, "batch n"]) -> PerPair:
    """KL(full || circuit) in nats from log-probabilities; tokens of no probability under the full model add nothing."""
    terms = full.exp() * (full - circuit)
    return torch.where(full == -torch.inf, 0.0, terms).sum(-1)


def logit_difference(logits: Logits, targets: Targets) -> PerPair:
    """Best answer logit minus best wrong-answer logit."""
    values = logits.float()
    return gather(values, targets.answers).amax(-1) - gather(values, targets.wrong_answers).amax(-1)


def probability_difference(logits: Logits, targets: Targets) -> PerPair:
    """Summed probability of the answers minus that of the wrong answers."""
    probability = _Probability(logits, targets.candidates)
    return probability(targets.answers) - probability(targets.wrong_answers)


def cutoff_sharpness(logits: Logits, targets: Targets) -> PerPair:
    """Probability of the number just above the border minus that of the one just below it (Hanna et al. 2023)."""
    if targets.cutoff is None:
        return logits.new_full(logits.shape[:1], torch.nan, dtype=torch.float32)
    probability = _Probability(logits, targets.candidates)
    above, below = (probability(ids[:, None]) for ids in targets.cutoff.unbind(1))
    return (above - below).masked_fill(targets.cutoff[:, 0] < 0, torch.nan)


def metric(logits: Logits, targets: Targets) -> PerPair:
    """What faithfulness is measured on: the logit difference, or the probability difference where pairs name candidates."""
    return (logit_difference if targets.candidates is None else probability_difference)(logits, targets)


def hinge(difference: PerPair, margin: float) -> PerPair:
    """How far the logit difference falls short of the margin (arXiv 2512.10903: margin 4 for IOI)."""
    return (margin - difference).clamp_min(0)


def measure(full: Logits, circuit: Logits, targets: Targets) -> PairMetrics:
    """Every metric of every pair, the circuit's logits beside the full model's."""
    difference = logit_difference(circuit, targets)
    winner = _argmax(circuit, targets.candidates)
    return PairMetrics(
        kl=kl(log_probs(full, targets.candidates), log_probs(circuit, targets.candidates)),
        logit_diff=difference,
        prob_diff=probability_difference(circuit, targets),
        accuracy=(difference > 0).float(),
        argmax_accuracy=(winner[:, None] == targets.answers).any(-1).float(),
        cutoff_sharpness=cutoff_sharpness(circuit, targets),
        exact_match=(winner == _argmax(full, targets.candidates)).float(),
        metric=metric(circuit, targets),
    )


class _Probability:
    """Summed probability of tokens, renormalised over the candidates where there are any."""

    def __init__(self, logits: Logits, candidates: Ids | None) -> None:
        self.values = logits.float()
        allowed = self.values if candidates is None else gather(self.values, candidates)
        self.normaliser = torch.logsumexp(allowed, dim=-1, keepdim=True)

    def __call__(self, ids: Ids) -> PerPair:
        return (gather(self.values, ids) - self.normaliser).exp().sum(-1)


def _argmax(logits: Logits, candidates: Ids | None) -> Int[Tensor, " batch"]:
    """The most likely token id (among the candidates where there are any)."""
    if candidates is None:
        return logits.argmax(-1)
    return candidates.gather(1, gather(logits.float(), candidates).argmax(-1, keepdim=True)).squeeze(1)
