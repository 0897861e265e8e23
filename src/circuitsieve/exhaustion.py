"""Running out of memory: how it is told from other failures, and what is said of it. Without torch."""

from collections.abc import Iterator
from contextlib import contextmanager

from circuitsieve.errors import RunError

_SAID = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "bad_alloc",
    "Cannot allocate memory",
    "can't start new thread",
)
"""By torch's allocators and the system: their exceptions are plain RuntimeErrors."""


def is_exhaustion(error: BaseException) -> bool:
    """Whether memory ran out."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _SAID)


@contextmanager
def exhaustion_named(advice: str) -> Iterator[None]:
    """Say that memory ran out in one line.

    Args:
        advice: what was expected to fit, and what to do.

    Raises:
        RunError: it ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_exhaustion(error):
            raise
        raise RunError(f"memory: found none left, expected {advice}") from error
