"""Evaluation of circuits on held-out pairs: metrics with intervals, controls, and the card that gathers them."""

from circuitsieve.evaluation.card import Card, EvaluationConfig, evaluate, kept_by_layer

__all__ = ["Card", "EvaluationConfig", "evaluate", "kept_by_layer"]
