"""What the tests of a full card say: p-values corrected together, in words, and which of them speak against the circuit."""

from collections.abc import Mapping
from typing import Any

from circuitsieve.evaluation.hypotheses import LEVEL, corrected

Remembered = Mapping[str, Any]
"""Sections as plain values: values, intervals and reasons by the section's name."""

_TESTS = (
    ("equivalence", "p"),
    ("equivalence", "p_equal"),
    ("independence", "p"),
    ("sufficiency", "p"),
    ("necessity", "p"),
)
_SPEAK_AGAINST = ("equivalence", "independence")
"""Tests whose rejected hypothesis is what a good circuit has; of sufficiency and necessity it is what a bad one has."""
_FOUND = {
    "independence": (
        "What the circuit leaves out still follows the full model's scores: something of the task lies outside.",
        "No trace of the full model's scores was found in what the circuit leaves out.",
    ),
    "sufficiency": (
        "The circuit does better than most random circuits of its shape",
        "It is not shown that the circuit does better than most random circuits of its shape",
    ),
    "necessity": (
        "Without the circuit the model fails more than without most random circuits of its shape",
        "It is not shown that the model needs this circuit more than most random circuits of its shape",
    ),
}
"""What is said where the hypothesis is rejected, and where it is not."""


def judged(sections: Remembered) -> dict[str, Any]:
    """The sections with corrected p-values and what they mean in words."""
    values = {name: dict(section["values"]) for name, section in sections.items()}
    tested = [(name, p) for name, p in _TESTS if values[name][p] is not None]
    for (name, p), value in zip(tested, corrected([values[name][p] for name, p in tested]), strict=True):
        values[name][f"{p}_corrected"] = value
    return {
        **values,
        "verdicts": verdicts(values),
        "intervals": {name: section["intervals"] for name, section in sections.items() if section["intervals"]},
        "reasons": {name: section["reasons"] for name, section in sections.items() if section["reasons"]},
    }


def against(card: Mapping[str, Any]) -> list[str]:
    """The names of the tests of a full card that speak against its circuit; none of a quick card."""
    if "verdicts" not in card:
        return []
    found = {name: card[name].get("p_corrected") for name in (*_SPEAK_AGAINST, "sufficiency", "necessity")}
    return [name for name, p in found.items() if p is not None and (p < LEVEL) == (name in _SPEAK_AGAINST)]


def verdicts(values: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What the tests say, in plain words."""
    said = {"equivalence": _equivalence(values["equivalence"])}
    for name, (yes, no) in _FOUND.items():
        section = values[name]
        if section["p"] is not None:
            said[name] = (yes if section["p_corrected"] < LEVEL else no) + _beaten(name, section)
    needed, compared = values["minimality"]["needed"], values["minimality"]["compared"]
    if needed is not None:
        said["minimality"] = (
            f"{needed:.0%} of {compared} nodes of the circuit matter more than most nodes outside would."
        )
    return said


def _equivalence(section: Mapping[str, Any]) -> str:
    share = f"it scores higher on {section['share']:.0%} of {section['n']} pairs"
    if section["p_corrected"] < LEVEL:
        return f"The circuit does not score as the full model does: {share}."
    if section["p_equal_corrected"] < LEVEL:
        return f"The circuit scores as the full model does: {share}."
    return f"Whether the circuit scores as the full model does cannot be told: {share}."


def _beaten(name: str, section: Mapping[str, Any]) -> str:
    """How many random circuits were beaten, for the end of a sentence."""
    match name:
        case "sufficiency":
            return f" (than {section['beaten']:.0%} of those tried)."
        case "necessity":
            return f" (than {section['matched']['hurt_less']:.0%} of those tried)."
    return ""
