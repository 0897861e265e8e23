"""The values of settings as people and files write them: amounts of memory, and JSON by the types of a dataclass."""

import math
import sys
from types import UnionType
from typing import Any, get_args, get_origin

from circuitsieve.errors import ConfigError, shown

_UNITS = {"GB": 2**30, "MB": 2**20}


def bytes_of(setting: str, amount: str) -> int:
    """The bytes of an amount such as 8GB (2 ** 30 bytes each) or 500MB.

    Raises:
        ConfigError: it is something else.
    """
    unit = _UNITS.get(amount[-2:].upper())
    try:
        number = float(amount[:-2])
    except ValueError:
        number = math.nan
    if unit is None or not 0 <= number * unit < math.inf:
        raise ConfigError(f"{setting}: found {amount!r}, expected an amount such as 8GB or 500MB")
    return int(number * unit)


def typed(value: Any, hint: Any, where: str) -> Any:
    """A value of JSON as the type of a setting.

    Args:
        value: as it was read.
        hint: the type: X | None, float, int, str, a tuple or a dictionary of numbers.
        where: what the error begins with.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(hint, UnionType):  # X | None
        return None if value is None else typed(value, get_args(hint)[0], where)
    if hint is float and (type(value) is float or (type(value) is int and abs(value) < sys.float_info.max)):
        return float(value)
    if hint in (int, str) and type(value) is hint:
        return value
    kinds = get_args(hint)
    if get_origin(hint) is tuple and isinstance(value, list | tuple) and (... in kinds or len(value) == len(kinds)):
        return tuple(typed(item, kinds[0], where) for item in value)
    if get_origin(hint) is dict and isinstance(value, dict):
        return {key: typed(item, float, f"{where} {key}") for key, item in value.items()}
    expected = {int: "a whole number", float: "a number", str: "a text", dict: "an object of numbers"}
    listed = "a list of texts" if ... in kinds else "two numbers"
    raise ConfigError(f"{where}: found {shown(value)}, expected {expected.get(get_origin(hint) or hint, listed)}")
