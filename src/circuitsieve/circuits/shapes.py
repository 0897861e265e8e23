"""The shape of a model as a file says it: nothing is as large as it says before all of it has been checked."""

from collections.abc import Mapping
from dataclasses import fields

from circuitsieve.circuits.nodes import NodeSpace
from circuitsieve.errors import ConfigError, shown

_MOST = 10**8
"""Of anything in one layer; tensors are counted in 64 bits."""
_FLAGS = ("post_norm", "joint_qk_norm")
_BIASES = ("q", "k", "v", "attn_out", "mlp_in", "mlp_out")


def space_of(values: object) -> NodeSpace:
    """The node space that circuit.json gives.

    Raises:
        ConfigError: a fact is missing or unknown, or no model can have it.
    """
    names = [field.name for field in fields(NodeSpace)]
    if not isinstance(values, Mapping) or set(values) != set(names):
        raise ConfigError(f"space: found {shown(values)}, expected an object with {', '.join(names)}")
    for name in names:
        if problem := _problem(name, values[name]):
            raise ConfigError(f"space.{name}: found {shown(values[name])}, expected {problem}")
    if values["heads"] % values["kv_heads"]:
        raise ConfigError(
            f"space.kv_heads: found {values['kv_heads']}, expected a divisor of the {values['heads']} heads"
        )
    return NodeSpace(**{**values, "biases": frozenset(values["biases"])})


def _problem(name: str, value: object) -> str | None:
    """What was expected in the place of a value, if it is wrong."""
    if name == "biases":
        valid = isinstance(value, list) and all(bias in _BIASES for bias in value)
        return None if valid else f"a list of some of {', '.join(_BIASES)}"
    if name in _FLAGS:
        return None if isinstance(value, bool) else "true or false"
    return None if type(value) is int and 0 < value <= _MOST else f"a whole number from 1 to {_MOST:,}"
