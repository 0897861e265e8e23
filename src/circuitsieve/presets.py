"""Configurations in files: those of users, and the presets inside the package."""

from importlib import resources
from pathlib import Path

from circuitsieve.config import DiscoveryConfig
from circuitsieve.disk.jsontext import json_object, text_of
from circuitsieve.errors import ConfigError


def load_config(name: str) -> DiscoveryConfig:
    """The configuration of a JSON file, or of a preset inside the package.

    Raises:
        ConfigError: there is neither, or what is there is malformed.
    """
    presets = {p.name.removesuffix(".json"): p for p in (resources.files("circuitsieve") / "assets/presets").iterdir()}
    try:
        content = presets[name].read_text("utf-8") if name in presets else text_of(Path(name))
    except ValueError as error:
        raise ConfigError(f"config {name}: found malformed JSON ({error}), expected an object of settings") from error
    except OSError as error:
        raise ConfigError(
            f"config: found no file {name!r} ({error.strerror}), expected a JSON file or one of the presets "
            f"{', '.join(sorted(presets))}"
        ) from error
    values = json_object(content, f"config {name}", "an object of settings", ConfigError)
    return DiscoveryConfig.from_dict(values, source=f"config {name}")
