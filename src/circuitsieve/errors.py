"""Every failure that a user can cause, as one tree.

    CircuitsieveError
    ├── ConfigError           a setting is unknown, malformed or contradicts another
    ├── ModelError            a model cannot be found, read or instrumented
    │   ├── UnsupportedModel  its family, its quantisation or its wrapper is not supported
    │   ├── HookNotFired      a site never saw an activation
    │   └── Diverged          a loss or a gradient is not finite
    ├── DataError             pairs are unreadable or unusable
    └── RunError              a run folder is missing, damaged, locked or would be overwritten

The message of each is one line that names the object, what was found, what was expected and what to do. The command
line prints that line and exits with status 2; nothing else in the package turns an exception into text.
"""

import reprlib

_LONGEST = 10_000
"""Characters of a message: what was found may be a file without a line break."""


class CircuitsieveError(Exception):
    """Base of every error that a user can cause; its text is one line, fit for the terminal, whatever was found."""

    def __init__(self, message: str) -> None:
        line = "".join(character if character.isprintable() else " " for character in message)
        if len(line) > _LONGEST:  # what was found stands in the middle, what was expected at the end
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        super().__init__(line)


class ConfigError(CircuitsieveError):
    """A setting is unknown, malformed or contradicts another."""


class ModelError(CircuitsieveError):
    """A model cannot be found, read or instrumented."""


class UnsupportedModel(ModelError):
    """The model's family, quantisation or wrapper is not supported."""


class HookNotFired(ModelError):
    """A site never saw an activation, so masking it would have silently done nothing."""


class Diverged(ModelError):
    """A loss or a gradient is infinite or not a number."""


class DataError(CircuitsieveError):
    """Pairs are unreadable or unusable."""


class RunError(CircuitsieveError):
    """A run folder is missing, damaged, locked or would be overwritten."""


class OtherSearch(RunError):
    """The checkpoints in a folder are those of another search."""


def shown(value: object) -> str:
    """What was found, as Python writes it; of what is long or nested deeply, the beginning."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxother, brief.maxlong = 4, 200, 200, 60
    return brief.repr(value)


def one_of(kind: str, found: str, known: "list[str]") -> str:
    """The sentence for an unknown name: what was found, the closest known names, and all known ones."""
    return f"{kind}: found {found!r}, expected one of {', '.join(known)}{hint(found, known)}"


def hint(found: str, known: "list[str]") -> str:
    """The end of a sentence about an unknown name: the known one that is like it, if there is any."""
    import difflib

    close = difflib.get_close_matches(found, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
