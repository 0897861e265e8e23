"""Progress on stderr: a bar for the search, a bar for the evaluation, lines for what was found."""

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from circuitsieve.config import DiscoveryConfig


class RichReporter:
    """Shows a workflow on stderr; a context manager, so that the bars end with it."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),  # so that all of it fits 80 columns
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> "RichReporter":
        return self  # nothing is shown before the first bar: an error stays the only line

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self.progress.stop()

    def say(self, text: str) -> None:
        """A line about what was found."""
        self.console.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line about what may be wrong."""
        self.console.print(Text.assemble(("warning:", "yellow"), " ", text), soft_wrap=True)

    def look(self, done: int, total: int) -> None:
        """A batch is looked at before the search."""
        self._update("look", done, total, "at single nodes")

    def step(self, entry: Mapping[str, int | float], config: DiscoveryConfig) -> None:
        """A step of the search is done."""
        opened = [share for name, share in entry.items() if name.startswith("open.")]
        facts = f"KL {entry.get('smoothed_kl', entry['kl']):.3f}"
        facts += f"  open {min(opened):.0%} to {max(opened):.0%}" if opened else f" at size {entry['drawn_size']:.0%}"
        done = int(entry["step"]) + 1
        in_a_file = not self.console.is_terminal  # where a bar would not show before its end
        if in_a_file and done % max(1, config.steps // 10) == 0:
            self.say(f"step {done} of {config.steps}, {entry['seconds']:.0f} s: {facts}")
        self._update("discover", done, config.steps, facts)

    def evaluation(self, what: str, done: int, total: int) -> None:
        """A circuit of the evaluation is done."""
        self._update("evaluate", done, total, what)

    def exhibit(self, what: str, done: int, total: int) -> None:
        """A part of a report is done."""
        self._update("report", done, total, what)

    def _update(self, bar: str, done: int, total: int, facts: str) -> None:
        if bar not in self._bars:
            self.progress.start()
            self._bars[bar] = self.progress.add_task(bar, total=total, facts=facts)
        self.progress.update(self._bars[bar], completed=done, total=total, facts=facts)
