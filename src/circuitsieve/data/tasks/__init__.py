"""The tasks. A built-in one is one small file with a `TASK`: a name, its options and a function that yields pairs.

A task knows words and sentences: all it may ask about the tokenizer is into which pieces it cuts a text. Other packages add
tasks by an entry point of the group `circuitsieve.tasks` that leads to a `Task`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module, metadata

from circuitsieve.data.pairs import TaskRequest, TextSplits
from circuitsieve.errors import DataError

GROUP = "circuitsieve.tasks"
"""The entry points by which other packages add tasks."""


@dataclass(frozen=True)
class Task:
    """A behaviour: how to make its pairs and which options it takes (name -> one line of help)."""

    name: str
    summary: str
    build: Callable[[TaskRequest], TextSplits]
    options: dict[str, str] = field(default_factory=dict)
    shifts: dict[str, dict[str, str]] = field(default_factory=dict)
    """The same behaviour on other texts, by name: the options that give them."""


BUILT_IN = ("ioi", "greater_than", "gender_pronoun", "docstring", "agreement", "capitals")
"""The tasks inside the package."""


def names() -> list[str]:
    """The names of the built-in tasks, then of the installed ones."""
    installed = metadata.entry_points(group=GROUP).names
    return [*BUILT_IN, *sorted(installed - set(BUILT_IN))]


def get(name: str) -> Task:
    """A task by its name (see `names`).

    Raises:
        DataError: an installed task cannot be imported, or is none.
    """
    if name in BUILT_IN:
        task: Task = import_module(f"circuitsieve.data.tasks.{name}").TASK
        return task
    (entry,) = metadata.entry_points(group=GROUP, name=name)
    try:
        found = entry.load()
    except Exception as error:  # whatever its package raises
        raise DataError(
            f"task {name}: found an entry point {entry.value!r} that cannot be imported ({error})"
        ) from error
    if not isinstance(found, Task):
        raise DataError(f"task {name}: found {type(found).__name__} at {entry.value!r}, expected a circuitsieve Task")
    return found
