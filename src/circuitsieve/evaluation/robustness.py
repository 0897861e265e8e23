"""The circuit where it was not found: on the same task told otherwise, and on other tasks.

What counts is the gap: a circuit that does worse on misspelt prompts than the full model does has learned its prompts by heart, a
circuit that does as badly has not.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from circuitsieve.data import tasks
from circuitsieve.data.chat import around
from circuitsieve.data.loaders import TaskOptions, load_task
from circuitsieve.data.shifts import SHIFTS, shifted
from circuitsieve.data.tokenising import Example, encode_all
from circuitsieve.errors import CircuitsieveError, DataError
from circuitsieve.evaluation.harness import Harness
from circuitsieve.evaluation.metrics import Summary
from circuitsieve.search.screening import check_fit

COMPARED = ("accuracy", "logit_diff", "prob_diff")
"""Of the full model and the circuit."""
PAIRS = 48
"""Of each shift and each other task."""
SPARE = 16
"""Training and validation pairs, which nobody looks at: a task makes all three splits."""


@dataclass(frozen=True)
class Origin:
    """Where the pairs of a run come from."""

    tokenizer: PreTrainedTokenizerBase
    task: str | None = None
    """The name of a built-in or installed task; None for pairs of a file."""
    options: TaskOptions = field(default_factory=TaskOptions)
    others_judge: bool = False
    """Whether the pairs that judge are not those of the task; they are asked in the same form."""


def robustness_runs(origin: Origin | None) -> int:
    """How many circuits are run for the first section."""
    return 0 if origin is None else 1 + len(SHIFTS) + len(_told_otherwise(origin))


def transfer_runs(origin: Origin | None) -> int:
    """How many circuits are run for the second section."""
    return 0 if origin is None else len(_others(origin))


def robustness(harness: Harness, examples: Sequence[Example], origin: Origin | None) -> Summary:
    """The circuit and the full model on shifted pairs, beside the pairs as they are."""
    if origin is None:
        return Summary({"unchanged": None}, {}, {"unchanged": "the run's tokenizer is not known"})
    some = examples[:PAIRS]
    makers: dict[str, Callable[[], Sequence[Example]]] = {"unchanged": lambda: some}
    for shift in SHIFTS:
        makers[shift] = functools.partial(_shifted, some, shift, harness.config.seed, origin)
    for name, options in _told_otherwise(origin).items():
        makers[name] = functools.partial(_otherwise, origin, options)
    found, reasons = _all_measured(harness, makers)
    return Summary(_with_gaps(found), {}, reasons)


def transfer(harness: Harness, origin: Origin | None) -> Summary:
    """The circuit on the built-in tasks that it was not found for."""
    if origin is None:
        return Summary(dict.fromkeys(tasks.names()), {}, {"tokenizer": "the run's tokenizer is not known"})
    makers = {name: functools.partial(_pairs_of, name, origin, {}) for name in _others(origin)}
    found, reasons = _all_measured(harness, makers)
    return Summary(found, {}, reasons)


def _all_measured(
    harness: Harness, makers: Mapping[str, Callable[[], Sequence[Example]]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What is measured on the pairs of each maker, and the reasons where there are none."""
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, make in makers.items():
        harness.tick("other inputs")
        try:
            found[name] = _measured(harness, make())
        except CircuitsieveError as error:
            found[name], reasons[name] = None, str(error)
    return found, reasons


def _others(origin: Origin) -> list[str]:
    return [name for name in tasks.BUILT_IN if name != origin.task]


def _told_otherwise(origin: Origin) -> Mapping[str, Mapping[str, str]]:
    return tasks.get(origin.task).shifts if origin.task in tasks.names() and not origin.others_judge else {}


def _otherwise(origin: Origin, options: Mapping[str, str]) -> Sequence[Example]:
    own = origin.options.options
    if options.items() <= own.items():
        raise DataError(f"the circuit was found so: {', '.join(f'{name}={value}' for name, value in options.items())}")
    return _pairs_of(origin.task or "", origin, options)


def _pairs_of(task: str, origin: Origin, options: Mapping[str, str]) -> Sequence[Example]:
    own = origin.options.options if task == origin.task else {}
    request = replace(origin.options, train=SPARE, validation=SPARE, test=PAIRS, options={**own, **options})
    return load_task(task, origin.tokenizer, request).test


def _shifted(examples: Sequence[Example], shift: str, seed: int, origin: Origin) -> Sequence[Example]:
    told = origin.options.chat
    frame = ("", "") if told is None else around(origin.tokenizer, told)
    changed = shifted([example.pair for example in examples], shift, seed, frame)
    if not changed:
        raise DataError(f"{shift}: found no pair that can be changed so")
    return encode_all(changed, origin.tokenizer)[0]


def _measured(harness: Harness, examples: Sequence[Example]) -> dict[str, Any]:
    """The circuit and the full model on some pairs."""
    check_fit(harness.subject.model, examples)
    here = Harness(harness.subject, harness.circuit, examples, harness.config)
    circuit = here.all.summary(here.run(harness.circuit, here.all, "other inputs"))
    full = here.all.summary(here.all.anchors.full)
    return {
        "n": len(examples),
        **{name: circuit.values[name] for name in ("kl", "faithfulness", *COMPARED)},
        "full": {name: full.values[name] for name in COMPARED},
    }


def _with_gaps(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the circuit loses against the full model, and how much more that is than on the pairs as they are."""
    lost = {name: {m: v["full"][m] - v[m] for m in COMPARED} for name, v in found.items() if v is not None}
    return {
        name: value
        if value is None
        else {
            **value,
            "lost": lost[name],
            "gap": {m: lost[name][m] - lost["unchanged"][m] for m in COMPARED},
            "kl_gap": value["kl"] - found["unchanged"]["kl"],
        }
        for name, value in found.items()
    }
