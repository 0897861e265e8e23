"""Objects written as JSON text by other people. A leaf."""

import json
from typing import Any

from circuitsieve.errors import CircuitsieveError


def json_object(text: str | bytes, where: str, expected: str, failure: type[CircuitsieveError]) -> dict[str, Any]:
    """The object that a text holds.

    Args:
        text: JSON.
        where: what the complaint names: a file, a line of one.
        expected: what the complaint says should be there.
        failure: the kind of error.

    Raises:
        CircuitsieveError: of the given kind: the text is not JSON, or not an object.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise failure(f"{where}: found malformed JSON ({error}), expected {expected}") from error
    if not isinstance(content, dict):
        raise failure(f"{where}: found {type(content).__name__}, expected {expected}")
    return content
