"""Metrics by their definitions: the plain model on one unpadded prompt at a time, numpy in float64."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from circuitsieve.data.tokenising import Example


def plain_logits(model: torch.nn.Module, prompt: tuple[int, ...]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0, -1].double().numpy()


def agreeable(model: torch.nn.Module, examples: Sequence[Example]) -> list[Example]:
    """The same pairs, answer and wrong answer swapped where the model prefers the latter: then it does the task."""
    found = []
    for example in examples:
        logits = plain_logits(model, example.clean)
        swap = logits[list(example.answers)].max() < logits[list(example.wrong_answers)].max()
        found.append(
            replace(example, answers=example.wrong_answers, wrong_answers=example.answers) if swap else example
        )
    return found


def by_hand(full: np.ndarray, circuit: np.ndarray, example: Example) -> dict[str, float]:
    """The definitions, one pair at a time, in float64."""
    allowed = sorted(example.candidates or range(len(full)))
    p, q = (np.exp(logits[allowed]) / np.exp(logits[allowed]).sum() for logits in (full, circuit))
    share = dict(zip(allowed, q, strict=True))
    difference = circuit[list(example.answers)].max() - circuit[list(example.wrong_answers)].max()
    return {
        "kl": float((p * np.log(p / q)).sum()),
        "accuracy": float(difference > 0),
        "argmax_accuracy": float(allowed[int(q.argmax())] in example.answers),
        "prob_diff": sum(share[a] for a in example.answers) - sum(share[w] for w in example.wrong_answers),
        "logit_diff": float(difference),
        "exact_match": float(q.argmax() == p.argmax()),
    }
