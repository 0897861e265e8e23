"""What whoever waits is told: one interface, so that the work knows no terminal."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from circuitsieve.config import DiscoveryConfig


@runtime_checkable
class Reporter(Protocol):
    """Shows what happens to whoever waits."""

    def say(self, text: str) -> None:
        """A line about what was found."""

    def warn(self, text: str) -> None:
        """A line about what may be wrong."""

    def look(self, done: int, total: int) -> None:
        """A batch is looked at before the search."""

    def step(self, entry: Mapping[str, int | float], config: DiscoveryConfig) -> None:
        """A step of the search is done."""

    def evaluation(self, what: str, done: int, total: int) -> None:
        """A circuit of the evaluation is done."""

    def exhibit(self, what: str, done: int, total: int) -> None:
        """A part of a report is done."""
