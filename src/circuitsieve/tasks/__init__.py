"""The built-in tasks. A task is one small file with a `TASK`: a name, its options and a function that yields pairs.

A task knows words and sentences, never tokens: all it may ask about the tokenizer is how many tokens a word takes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module

from circuitsieve.pairs import TaskRequest, TextSplits


@dataclass(frozen=True)
class Task:
    """A built-in behaviour: how to make its pairs and which options it takes (name -> one line of help)."""

    name: str
    summary: str
    build: Callable[[TaskRequest], TextSplits]
    options: dict[str, str] = field(default_factory=dict)


_BUILT_IN = ("ioi",)


def names() -> list[str]:
    """The names of the built-in tasks."""
    return list(_BUILT_IN)


def get(name: str) -> Task:
    """A built-in task by its name (see `names`)."""
    task: Task = import_module(f"circuitsieve.tasks.{name}").TASK
    return task
