"""The flags of a discovery, made from the configuration: one per field, explained by the field's own docstring.

The configuration stays free of the command line; here alone the two meet.
"""

from dataclasses import fields, make_dataclass
from types import UnionType
from typing import Annotated, Any, get_type_hints

from cyclopts import Parameter
from docstring_parser import parse_from_object

from circuitsieve.config import DiscoveryConfig, load_config
from circuitsieve.errors import ConfigError


def _flag_type(name: str, hint: Any) -> Any:
    """The type of a flag: None where it is not given; KEY=VALUE words for a table."""
    if name == "penalty":
        hint = tuple[str, ...]
    return hint if isinstance(hint, UnionType) else hint | None


def _config_flags() -> type:
    """One optional flag per field of the configuration, explained by the field's own docstring."""
    meanings = {item.arg_name: item.description or "" for item in parse_from_object(DiscoveryConfig).params}
    hints, default = get_type_hints(DiscoveryConfig), DiscoveryConfig()
    flags: list[tuple[str, Any, Any]] = []
    for item in fields(DiscoveryConfig):
        value = getattr(default, item.name)
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        given = "" if value in (None, {}) else f" [default: {shown}]"
        parameter = Parameter(help=meanings[item.name] + given, show_default=False, group="Search")
        flags.append((item.name, Annotated[_flag_type(item.name, hints[item.name]), parameter], None))
    # cyclopts flattens the classes of a module, not those without one.
    return make_dataclass("ConfigFlags", flags, frozen=True, namespace={"__module__": __name__})


ConfigFlags: Any = _config_flags()
"""The flags of a discovery: every field None unless it was given."""
NO_FLAGS = ConfigFlags()


def table_of(words: tuple[str, ...] | None, flag: str) -> dict[str, str]:
    """KEY=VALUE words as a dictionary."""
    table = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise ConfigError(f"{flag}: found {word!r}, expected NAME=VALUE")
        table[key] = value
    return table


def _number(flag: str, word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise ConfigError(f"{flag}: found {word!r}, expected a number") from error


def config_of(flags: Any, base: str | None) -> DiscoveryConfig:
    """The configuration of a file or preset, with the given flags on top."""
    given = {item.name: getattr(flags, item.name) for item in fields(flags) if getattr(flags, item.name) is not None}
    if "penalty" in given:
        prices = table_of(given["penalty"], "--penalty")
        given["penalty"] = {name: _number(f"--penalty {name}", price) for name, price in prices.items()}
    start = load_config(base) if base is not None else DiscoveryConfig()
    return start.replaced(**given)
