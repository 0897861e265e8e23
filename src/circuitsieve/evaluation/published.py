"""Circuits of GPT-2 small that others have found by hand: what a circuit has in common with them.

They are whole heads (and MLPs), found by other means under other baselines: no overlap is a question, not an error.
"""

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.likeness import chance
from circuitsieve.evaluation.harness import Harness
from circuitsieve.evaluation.metrics import Summary
from circuitsieve.vocabulary import Granularity

IOI = {
    "name movers": "9.9 10.0 9.6",
    "backup name movers": "10.10 10.6 10.2 10.1 11.2 9.7 9.0 11.9",
    "negative name movers": "10.7 11.10",
    "S-inhibition": "7.3 7.9 8.6 8.10",
    "induction": "5.5 5.8 5.9 6.9",
    "duplicate token": "0.1 0.10 3.0",
    "previous token": "2.2 4.11",
}
"""Heads by role (Wang et al. 2022, arXiv 2211.00593)."""
GREATER_THAN = {"heads": "0.1 0.3 0.5 5.5 6.1 6.9 7.10 8.11 9.1"}
GREATER_THAN_MLPS = (0, 1, 2, 3, 8, 9, 10, 11)
"""Hanna et al. 2023, arXiv 2305.00586."""
HEADS = {"ioi": IOI, "greater_than": GREATER_THAN}
MLPS = {"greater_than": GREATER_THAN_MLPS}
SHAPE = (12, 12, 768)
"""Layers, heads and width of GPT-2 small."""


def published(harness: Harness, task: str | None) -> Summary:
    """The overlap with the published circuit of a task, where the model is GPT-2 small."""
    space, family = harness.subject.space, harness.subject.model.config.model_type
    if family != "gpt2" or (space.layers, space.heads, space.width) != SHAPE:
        return Summary({"jaccard": None}, {}, {"jaccard": "published circuits are known of GPT-2 small alone"})
    if task not in HEADS:
        reason = f"published circuits are known of {' and '.join(HEADS)} alone"
        return Summary({"jaccard": None}, {}, {"jaccard": reason})
    return Summary(overlap(harness.circuit, task), {}, {})


def overlap(circuit: Circuit, task: str) -> dict[str, float | dict[str, float]]:
    """What the kept heads of a circuit of GPT-2 small have in common with the published ones of a task."""
    kept = {tuple(place) for place in circuit.masks[Granularity.HEAD].nonzero().tolist()}
    roles = {role: {_head(word) for word in words.split()} for role, words in HEADS[task].items()}
    known = {head for heads in roles.values() for head in heads}
    found: dict[str, float | dict[str, float]] = {
        "jaccard": len(kept & known) / len(kept | known),
        "chance": chance(len(kept), len(known), circuit.masks[Granularity.HEAD].numel()) or 0.0,
        "recall": len(kept & known) / len(known),
        "precision": len(kept & known) / max(1, len(kept)),
        "roles": {role: len(kept & heads) / len(heads) for role, heads in roles.items()},
    }
    if task in MLPS:
        mlps = {layer for layer, _ in circuit.masks[Granularity.MLP_BLOCK].nonzero().tolist()}
        both = len(mlps & {*MLPS[task]})
        found |= {"mlp_recall": both / len(MLPS[task]), "mlp_precision": both / max(1, len(mlps))}
    return found


def _head(word: str) -> tuple[int, ...]:
    return tuple(map(int, word.split(".")))
