"""Where a result comes from: the model's weights, the pairs and the library versions, as facts for config.json."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.pairs import SPLITS
from circuitsieve.data.tokenising import Pairs
from circuitsieve.models.placement import is_dispatched, named_weights
from circuitsieve.runs.folder import PairRecord

_LIBRARIES = ("circuitsieve", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")


def fingerprint(model: nn.Module) -> str:
    """A hash of the names, shapes, dtypes and values of all parameters: equal for equal weights, wherever they are."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in named_weights(model):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        values = weight.cpu().contiguous().flatten().view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()


def describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """The sections `model` and `versions` of config.json."""
    return {
        "model": {
            "name": str(model.config._name_or_path),
            "family": str(model.config.model_type),
            **placed(model),
            "revision": None,
            "commit": getattr(model.config, "_commit_hash", None),
            "fingerprint": fingerprint(model),
        },
        "versions": versions(),
    }


def placed(model: PreTrainedModel) -> dict[str, str]:
    """In what precision a model computes, and where."""
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": "auto" if is_dispatched(model) else str(model.device),
    }


def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide what is computed."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def describe_pairs(pairs: Pairs) -> dict[str, Any]:
    """The section `data` of config.json: how many pairs, why others were dropped, and a hash of all of them."""
    return {
        "usable": {split: len(pairs.split(split)) for split in SPLITS},
        "dropped": dict(pairs.reasons()),
        "hash": hash_of(records(pairs)),
    }


def describe_run(
    config: DiscoveryConfig, model: Mapping[str, Any], pairs: Pairs, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of config.json.

    Args:
        config: how the circuit is searched.
        model: what `describe_model` says.
        pairs: the pairs.
        about: further facts by section (`model`, `data`).
    """
    sections = {**model, "data": describe_pairs(pairs)}
    for name, facts in about.items():
        sections[name] = {**sections.get(name, {}), **facts}
    return {"discovery": config.to_dict(), **sections}


def hash_of(lines: Iterable[PairRecord]) -> str:
    """A hash of pairs with their splits and the reasons of dropped ones, in their order."""
    digest = hashlib.sha256()
    for record in lines:
        digest.update(json.dumps([asdict(record.pair), record.split, record.dropped], sort_keys=True).encode())
    return digest.hexdigest()[:32]


def records(pairs: Pairs) -> Iterator[PairRecord]:
    """The lines of pairs.jsonl: usable pairs by split, then the dropped ones."""
    for split in SPLITS:
        for example in pairs.split(split):
            yield PairRecord(example.pair, split)
    for dropped in pairs.dropped:
        yield PairRecord(dropped.pair, dropped.split, dropped.reason)
