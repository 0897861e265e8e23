"""Who started this process: torchrun beside others, or nobody but the user. Read off the environment, without torch."""

import os
from collections.abc import Sequence

from circuitsieve.errors import ConfigError

SHARED = "discover"
"""The command that several processes share."""


def started() -> int:
    """How many processes torchrun has started; 1 where it has not (schedulers set WORLD_SIZE for their own ends, too)."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_helper() -> bool:
    """Whether this process was started beside a first one, which does the talking."""
    return started() > 1 and os.environ.get("RANK", "0") != "0"


def refuse_helpers(words: Sequence[str]) -> None:
    """Refuse to do by several processes what is done by one.

    Args:
        words: the command line.

    Raises:
        ConfigError: several were started, and the command is not the one that they share.
    """
    if started() > 1 and (list(words[:1]) != [SHARED] or "--dry-run" in words):
        raise ConfigError(
            f"torchrun: found {started()} processes for {' '.join(words[:1]) or 'no command'}, expected one; several share only "
            f"a whole `{SHARED}`"
        )
