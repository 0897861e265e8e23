"""Folders of compact models: stock configuration and tokenizer, and beside them which nodes are left and the weights of these.

config.json, generation_config.json, tokenizer files    as transformers writes them, of the full model
compact.json       that this is a compact model, its nodes, and where it comes from
nodes.safetensors  mask.<granularity>: the kept nodes, from which the sizes of all modules follow
weights.safetensors

Not model.safetensors: transformers alone would look for matrices of the sizes in config.json. `load_model` reads both kinds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.disk import files
from circuitsieve.errors import ModelError
from circuitsieve.models.subject import Subject
from circuitsieve.models.surgery import shrink
from circuitsieve.models.weightfiles import check_layers
from circuitsieve.vocabulary import Ablation, Granularity

ABOUT, NODES, WEIGHTS = "compact.json", "nodes.safetensors", "weights.safetensors"


def is_compact(folder: str | Path) -> bool:
    """Whether a folder holds a compact model."""
    return (Path(folder) / ABOUT).is_file()


def save_compact(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    circuit: Circuit,
    about: Mapping[str, Any],
) -> None:
    """Write a compact model.

    Args:
        folder: a new or empty folder.
        model: what `compact` made.
        tokenizer: of the full model.
        circuit: that it was made of.
        about: further facts for compact.json.

    Raises:
        RunError: the folder holds things, or a file cannot be written.
        OSError: the configuration or the tokenizer cannot be written.
    """
    folder = Path(folder)
    files.check_empty(folder, "the compact model")
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files.write_tensors(folder / NODES, {f"mask.{g}": mask for g, mask in circuit.masks.items()})
    files.write_tensors(folder / WEIGHTS, _untied(model))
    files.write_json(folder / ABOUT, {"ablation": str(circuit.ablation), **about})


def _untied(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; of those that share their values, the first."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            tensors[name] = tensor.detach()
        seen.add(id(tensor))
    return tensors


def load_compact(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Read a compact model, in evaluation mode.

    Raises:
        RunError: a file is missing or damaged.
        ModelError: the files do not fit each other.
    """
    ablation = files.read_json(folder / ABOUT).get("ablation")
    if ablation not in tuple(Ablation):
        raise ModelError(
            f"model {folder}: found the ablation {ablation!r} in {ABOUT}, expected one of {', '.join(Ablation)}"
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    check_layers(folder, config, (folder / WEIGHTS).stat().st_size + (folder / NODES).stat().st_size)
    with accelerate.init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    subject = Subject.of(model)
    space = subject.space
    masks = files.read_tensors(folder / NODES, {f"mask.{g}": (torch.bool, space.shape(g)) for g in Granularity})
    empty = {site: torch.zeros(1) for site in subject.architecture.sites()}
    shrink(subject, Circuit(space, {g: masks[f"mask.{g}"] for g in Granularity}, Ablation(ablation), empty))
    try:
        weights = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in load_file(folder / WEIGHTS).items()
        }
        unknown = model.load_state_dict(weights, strict=False, assign=True).unexpected_keys
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"model {folder}: found a {WEIGHTS} that does not fit the other files ({error})") from error
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing or unknown:
        raise ModelError(
            f"model {folder}: found no values for {missing[:1]} and no use for {unknown[:1]} in {WEIGHTS}, expected the file as "
            "it was written"
        )
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    nn.Module.eval(model)
    assert isinstance(model, PreTrainedModel)
    return model
