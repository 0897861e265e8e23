"""Where the weights of a model are: on one device, on several, or offloaded. All that is known of accelerate's hooks.

A model that is larger than one device is dispatched by accelerate (`device_map`): hooks of its own move what each module reads
to the device that it runs on, and fetch its weights from memory or disk for as long as it runs; between passes those are on
torch's device `meta`, without values. Nothing else in the package asks where a weight is. This room runs no model.
"""

from collections.abc import Iterable, Iterator

import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from circuitsieve.errors import ModelError, UnsupportedModel

META = torch.device("meta")


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a model whose parameters are not its own: wrapped, shared out among processes, or moved about by unknown hooks.

    Raises:
        UnsupportedModel: it is one of these.
    """
    if isinstance(model, DataParallel | DistributedDataParallel):
        raise UnsupportedModel(
            f"model: found {type(model).__name__} around a {type(model.module).__name__}, expected the model itself; "
            "pass model.module"
        )
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise _shared_out(f"FullyShardedDataParallel ({name or 'the model itself'})")
        for hook in _hooks(module):
            if not isinstance(hook, AlignDevicesHook):
                raise UnsupportedModel(
                    f"model: found accelerate's {type(hook).__name__} ({name or 'the model itself'}), expected the hooks of "
                    "dispatch_model, cpu_offload or disk_offload"
                )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "device_mesh"):  # not isinstance: importing DTensor takes longer than most commands
            raise _shared_out(f"a DTensor ({name})")
        if hasattr(parameter, "ds_id"):
            raise _shared_out(f"a parameter of DeepSpeed ZeRO ({name})")
    if (getattr(model, "_tp_size", None) or 1) > 1:
        raise _shared_out(f"a tensor-parallel plan over {model._tp_size} processes")


def _shared_out(found: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"model: found {found}, expected parameters that are whole in this process; load it without tensor parallelism or "
        "FSDP; --device auto spreads it over devices layer by layer"
    )


def is_dispatched(model: nn.Module) -> bool:
    """Whether accelerate's hooks move activations, or weights too, while the model runs."""
    return any(True for module in model.modules() for _ in _hooks(module))


def is_offloaded(module: nn.Module) -> bool:
    """Whether some weights of a module have no values but while they are needed."""
    return any(hook.offload for inner in module.modules() for hook in _aligning(inner))


def require_undispatched(model: nn.Module, what: str) -> None:
    """Refuse a dispatched model.

    Args:
        model: the model.
        what: is asked of it, as the message begins.

    Raises:
        UnsupportedModel: it is dispatched.
    """
    if is_dispatched(model):
        raise UnsupportedModel(
            f"{what}: found a model that is dispatched over devices ({whereabouts(model)}), expected one that is whole on a "
            "single one; load it on the CPU, or in bfloat16"
        )


def device_of(module: nn.Module) -> torch.device:
    """Where a module runs: what it reads is moved there if it is not there yet.

    Raises:
        ModelError: it has neither weights nor hooks.
    """
    for inner in module.modules():
        for hook in _aligning(inner):
            if hook.execution_device is not None:
                return torch.device(hook.execution_device)
    weight = next(module.parameters(), None)
    if weight is None:
        raise ModelError(f"model: found no weights in {type(module).__name__}, expected some that say where it runs")
    return weight.device


def weight(module: nn.Module, name: str) -> Tensor:
    """The values of a parameter of a module, wherever they are kept, in the dtype that it computes in; not to be written to.

    Raises:
        ModelError: there are none.
    """
    parameter = module.get_parameter(name).detach()
    away = parameter.device == META or any(hook.offload for hook in _aligning(module))
    return _kept([(module, name)], parameter) if away else parameter


def named_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters with their values, by name, in order; of those that are tied, the first. One at a time is in memory.

    Raises:
        ModelError: one has no values.
    """
    # Whatever was tied is two parameters as soon as a weight has been fetched.
    tied = getattr(model, "all_tied_weights_keys", {}) if is_offloaded(model) else {}
    for name, parameter in sorted(model.named_parameters()):
        if name not in tied:
            values = parameter.detach()
            yield name, _kept(_owners(model, name), values) if values.device == META else values


def _owners(model: nn.Module, name: str) -> Iterator[tuple[nn.Module, str]]:
    """The modules around a parameter, the innermost first, each with the name that the parameter has in it."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, -1, -1):
        yield model.get_submodule(".".join(parts[:cut])), ".".join(parts[cut:])


def _kept(owners: Iterable[tuple[nn.Module, str]], parameter: Tensor) -> Tensor:
    """What a hook keeps of an offloaded parameter."""
    path = ""
    for module, path in owners:
        for hook in _aligning(module):
            try:
                values: Tensor = (hook.weights_map or {})[path]
            except KeyError:
                continue
            return values.detach().to(parameter.dtype)
    raise ModelError(f"model: found no values of the parameter {path}, expected a model whose weights are loaded")


def whereabouts(model: nn.Module) -> str:
    """How many bytes of weights are where, in words."""
    places: dict[str, int] = {}
    for parameter in model.parameters():
        place = "offloaded" if parameter.device == META else f"on {parameter.device}"
        places[place] = places.get(place, 0) + parameter.nbytes
    return ", ".join(f"{_amount(size)} {place}" for place, size in places.items())


def _amount(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.1f} MB"


def offloaded_bytes(module: nn.Module) -> int:
    """Bytes of the weights of a module that have no values now."""
    return sum(parameter.nbytes for parameter in module.parameters() if parameter.device == META)


def _hooks(module: nn.Module) -> Iterator[ModelHook]:
    """The hooks that accelerate has put on a module itself."""
    hook = vars(module).get("_hf_hook")
    todo = [] if hook is None else [hook]
    while todo:
        hook = todo.pop(0)
        if isinstance(hook, SequentialHook):
            todo[:0] = hook.hooks
        else:
            yield hook


def _aligning(module: nn.Module) -> Iterator[AlignDevicesHook]:
    return (hook for hook in _hooks(module) if isinstance(hook, AlignDevicesHook))
