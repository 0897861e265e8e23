"""Nodes, masks and circuits: what there is to choose from, and what was chosen. No model is run here."""
