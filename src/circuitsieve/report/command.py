"""The command line of a run, from what its folder says."""

import shlex
from collections.abc import Mapping
from typing import Any

from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.pairs import SPLITS


def command(config: Mapping[str, Any]) -> str:
    """The command line that makes the same run again; what has its default is left out.

    Args:
        config: the content of config.json.
    """
    data, model = config["data"], config["model"]
    if not isinstance(data.get("task"), str) or not isinstance(model.get("name"), str):
        return "this run was made in Python"
    usual = DiscoveryConfig().to_dict()
    given = {name: value for name, value in config["discovery"].items() if not _same(value, usual[name])}
    others = {
        "dtype": None if model["dtype"] == "float32" else model["dtype"],
        "device": None if model["device"] == "cpu" else model["device"],
        "revision": model["revision"],
        "max_memory": model.get("max_memory"),
        "chat": data["chat"],
        "task_option": data["options"],
        "column": data["columns"],
        **{f"{split}_pairs": data["asked"][split] for split in SPLITS},
    }
    given |= {name: value for name, value in others.items() if value not in (None, {})}
    words = ["circuitsieve", "discover", "--model", model["name"], "--task", data["task"], "--out", "NEW_FOLDER"]
    for name, value in given.items():
        flag, own = "--" + name.replace("_", "-"), _words(value)
        # What begins with a dash would be read as a flag.
        words += [f"{flag}={own[0]}"] if len(own) == 1 and own[0].startswith("-") else [flag, *own]
    return shlex.join([*words, *(["--only-correct"] if data["only_correct"] else [])])


def _same(value: Any, usual: Any) -> bool:
    """Whether a setting of JSON needs no flag: the default, or none (another budget takes the place of the default one)."""
    return value is None or (tuple(value) if isinstance(value, list) else value) == usual


def _words(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{key}={inner}" for key, inner in value.items()]
    return [str(word) for word in value] if isinstance(value, list) else [str(value)]
