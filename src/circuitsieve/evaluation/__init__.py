"""Evaluation of circuits on held-out pairs: metrics with intervals, controls, and the card that gathers them."""

from circuitsieve.evaluation.card import Card, evaluate, kept_by_layer, measure_circuits
from circuitsieve.evaluation.harness import EvaluationConfig
from circuitsieve.evaluation.metrics import Summary

__all__ = ["Card", "EvaluationConfig", "Summary", "evaluate", "kept_by_layer", "measure_circuits"]
