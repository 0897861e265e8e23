"""Searches that are shared by processes, for `test_parallel.py`: run under torchrun, the first process writes what comes out."""

import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import distributed as dist

from circuitsieve import DiscoveryConfig, discover
from circuitsieve.search.discovery import Discovery
from circuitsieve.vocabulary import Method
from tiny import tiny_loaded, tiny_pairs

SHORT = {"steps": 24, "ranking_looks": 2}
SEARCHES: dict[str, dict[str, object]] = {
    "nested": {"method": "nested", "max_kl": 0.2},
    "hinge": {"method": "hard_concrete", "pressure": 0.5, "hinge": 4.0, "clip": 1.0},
    "faithfulness": {"method": "hard_concrete", "min_faithfulness": 0.8, "ablation": "resample"},
    "constants": {"method": "nested", "size": 0.4, "ablation": "optimal"},
    "positional": {"method": "integrated_gradients", "max_kl": 0.2, "ablation": "mean_positional"},
    "differences": {"method": "activation_difference", "size": 0.3},
    "attribution": {"method": "attribution", "size": 0.3, "batch_size": 3},
}
"""13 training and 9 validation pairs in batches of 5 leave 3 for the last: of four processes, one has none."""


def search(name: str, *, distributed: bool) -> Discovery:
    """One of them."""
    own = {"batch_size": 5} | SEARCHES[name]
    config = DiscoveryConfig(**(own | SHORT if Method(own["method"]).learns else own))  # type: ignore[arg-type]
    return discover(tiny_loaded().model, tiny_pairs(13, 9, 6), config, distributed=distributed)


def content(found: Discovery) -> dict[str, torch.Tensor]:
    """What is compared."""
    kls = torch.tensor([[entry["kl"], entry["drawn_size"]] for entry in found.history])
    return {
        "steps": kls,
        "validation": torch.stack(list(found.check.signals)),
        **{f"mask.{g}": mask for g, mask in found.circuit.masks.items()},
        **{f"score.{g}": scores for g, scores in found.ranking.scores.items()},
        **{f"constant.{s.kind}.{s.layer}": value for s, value in (found.circuit.constants or {}).items()},
    }


def main() -> None:
    """Run all; every process compares its own with the first one's."""
    dist.init_process_group("gloo")
    results = {}
    for name in SEARCHES:
        for key, value in content(search(name, distributed=True)).items():
            first = value.clone()
            dist.broadcast(first, 0)
            assert torch.equal(first, value), f"{name} {key}"
            results[f"{name} {key}"] = value.contiguous()
    if dist.get_rank() == 0:
        safetensors.torch.save_file(results, Path(sys.argv[1]))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
