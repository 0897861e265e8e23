"""How the cost of a step grows with layers, width, length, batch and the number of granularities: a fitted exponent each.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json

On random Llama models; around a base case, one thing is varied at a time. The exponent is the slope of log(seconds) over
log(x); that of the bare forward and backward pass stands beside it. Prints a table, writes JSON with the machine, the versions
and the command.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from surroundings import surroundings, write_results  # before all that reads the environment when it is imported

# isort: split

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from circuitsieve.vocabulary import Granularity
from step_cost import Case, measured

VOCABULARY, HEAD_DIM = 1024, 32


@dataclass(frozen=True)
class Setting:
    """A model and a batch."""

    layers: int = 8
    width: int = 384
    length: int = 32
    batch: int = 16
    granularities: int = 5


BASE = Setting()
VARIED = {
    "layers": [2, 4, 8, 16],
    "width": [128, 256, 384, 768],
    "length": [16, 32, 64, 128],
    "batch": [4, 8, 16, 32],
    "granularities": [1, 3, 5, 9],
}
ORDER = ("mlp_neuron", "head_dim", "head", "mlp_block", "attn_block", "layer", "attn_out_dim", "mlp_out_dim", "embed")
"""Of the granularities: the first n are searched."""
assert set(ORDER) == set(map(str, Granularity))


def model_of(setting: Setting) -> PreTrainedModel:
    """A random model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=setting.width,
        intermediate_size=4 * setting.width,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.width // HEAD_DIM,
        max_position_embeddings=256,
    )
    return LlamaForCausalLM(config).eval()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def exponent(rows: list[dict[str, float]], side: str) -> float:
    """The slope of log(seconds) over log(x)."""
    slope, _ = np.polyfit(np.log([row["x"] for row in rows]), np.log([row[side] for row in rows]), 1)
    return float(slope)


def main() -> None:
    """Measure every setting, print the table, write the results."""
    options = arguments()
    found: dict[str, dict[str, object]] = {}
    table = Table(title="A step against bare passes", title_justify="left")
    for heading in ("", "from", "to", "exponent of a step", "of bare passes", "ratios"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, values in VARIED.items():
        rows = []
        for value in values:
            setting = replace(BASE, **{name: value})
            case = Case(setting.batch, setting.length, granularities=ORDER[: setting.granularities])
            rows.append({"x": float(value), **measured(model_of(setting).to(options.device), case, options)})
            print(f"{name} {value}: {rows[-1]['ratio']:.2f}", flush=True)
        ours, bare = exponent(rows, "step"), exponent(rows, "bare")
        found[name] = {"step": ours, "bare": bare, "rows": rows}
        ratios = " ".join(f"{row['ratio']:.2f}" for row in rows)
        table.add_row(name, str(values[0]), str(values[-1]), f"{ours:.2f}", f"{bare:.2f}", ratios)
    Console().print(table)
    write_results(options.out, {**surroundings(), "exponents": found})


if __name__ == "__main__":
    main()
