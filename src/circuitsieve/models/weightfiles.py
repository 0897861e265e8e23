"""The files of weights in a folder, looked at before transformers reads them: safetensors, inside the folder, large enough.

transformers would read pickled weights too, follow an index or an adapter to other folders, and allocate what config.json asks
for before it says that the weights are missing.
"""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from circuitsieve.disk.jsontext import json_object, text_of
from circuitsieve.errors import ModelError, UnsupportedModel, shown

_ADAPTER = "adapter_config.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_weights(folder: Path, config: PreTrainedConfig) -> None:
    """Raise where a checkpoint is not safetensors, whole, and inside its folder.

    Args:
        folder: as transformers writes it.
        config: what its config.json says.

    Raises:
        ModelError: there are no such weights, or the index of several files names one elsewhere, or all of them together
            are smaller than the model.
        UnsupportedModel: the folder holds an adapter.
    """
    if (folder / _ADAPTER).is_file():
        raise UnsupportedModel(
            f"model {folder}: found an adapter ({_ADAPTER}), which changes another model; expected a checkpoint of its own; "
            "merge the two and save the result"
        )
    for index in folder.glob("*.safetensors.index.json"):
        _check_index(index)
    files = list(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
        found = f"pickled weights ({pickled[0]}), which may run any code" if pickled else "no weights"
        raise ModelError(
            f"model {folder}: found {found}, expected safetensors; save the model again with transformers 5"
        )
    _check_size(folder, config, sum(path.stat().st_size for path in files))


def check_layers(folder: Path, config: Any, size: int) -> None:
    """Raise a ModelError where there are fewer bytes than layers times their width: each would be built as a module.

    Args:
        folder: of the model.
        config: what its config.json says.
        size: bytes of the weights.
    """
    layers, width = config.num_hidden_layers, max(config.hidden_size, getattr(config, "head_dim", None) or 0)
    if layers * width > size:
        raise ModelError(
            f"model {folder}: found a config.json with {layers:,} layers {width:,} wide and {size:,} bytes of weights, "
            "expected the two files of one model"
        )


def _check_index(index: Path) -> None:
    """Raise a ModelError where an index names a file that does not lie beside it."""
    content = json_object(_text(index), str(index), "an object with weight_map", ModelError)
    named = content.get("weight_map")
    if not isinstance(named, dict):
        raise ModelError(f"{index}: found {shown(named)} as weight_map, expected an object of file names")
    for file in named.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(
                f"{index}: found the file {shown(file)}, expected the name of a safetensors file beside it"
            )


def _text(path: Path) -> str:
    try:
        return text_of(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}), expected an object with weight_map") from error


def _check_size(folder: Path, config: PreTrainedConfig, size: int) -> None:
    """Raise a ModelError where the model has more parameters than its files have bytes."""
    check_layers(folder, config, size)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    parameters = sum(math.prod(parameter.shape) for parameter in model.parameters())
    if parameters > size:
        raise ModelError(
            f"model {folder}: found a config.json with {parameters:,} parameters and {size:,} bytes of weights, expected the "
            "two files of one model"
        )
