"""Pairs of prompts: the tasks, files and data sets that they come from, their tokens, their batches."""
