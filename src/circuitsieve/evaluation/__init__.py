"""Evaluation of circuits on held-out pairs: metrics with intervals, controls, and the card that gathers them."""
