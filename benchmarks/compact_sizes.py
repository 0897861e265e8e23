"""What a compact model saves at several sizes, against the full model in the same run.

    python benchmarks/compact_sizes.py RUN [--sizes 0.32 0.16 0.08 0.04 0.02] [--out FILE.json]

RUN is the folder of a search with a constant ablation (`discover --ablation mean --method nested`). Its ranking is cut at each
size, nothing is searched again, so its circuits are best at the size that was asked for. KL and accuracy are those of the compact
model on the run's test pairs; times are medians of calls taken in turns with the full model.
"""

import argparse
from pathlib import Path
from typing import Any

from surroundings import surroundings, write_results

# isort: split

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.models.subject import frozen
from circuitsieve.models.surgery import compact
from circuitsieve.runs.folder import RunFolder
from circuitsieve.workflow.compaction import foldable, quality_of, saved
from circuitsieve.workflow.judging import load_run_model, run_pairs

COLUMNS = ("projections", "parameters", "bytes", "forward", "token")


def measured(run: str, sizes: list[float]) -> dict[str, Any]:
    """By size: what is saved, and how the compact model does."""
    folder = RunFolder.open(run)
    circuit, ranking = folder.read_circuit()
    loaded = load_run_model(folder)
    pairs = run_pairs(folder, loaded)
    found: dict[str, Any] = {}
    with frozen(loaded.model):
        constants = foldable(loaded.model, circuit, pairs)
        for size in sizes:
            assert ranking is not None
            cut = ranking.cut(ranking.threshold_at(size))
            one = Circuit(circuit.space, cut, constants.ablation, constants.constants)
            smaller = compact(loaded.model, one)
            found[f"{size:g}"] = {
                "size": one.size,
                "quality": quality_of(smaller, one, loaded.model, pairs.test),
                "cost": saved(loaded.model, smaller, one),
            }
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: full over compact, and how the compact model does."""
    lines = ["| size | KL, nats | accuracy | " + " | ".join(COLUMNS) + " |", "| --- " * (3 + len(COLUMNS)) + "|"]
    for row in found.values():
        ratios = (f"{row['cost'][name]['full'] / row['cost'][name]['compact']:.2f} x" for name in COLUMNS)
        lines.append(
            f"| {row['size']:.1%} | {row['quality']['kl']:.3f} | {row['quality']['accuracy']:.3f} | {' | '.join(ratios)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.32, 0.16, 0.08, 0.04, 0.02])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = measured(arguments.run, arguments.sizes)
    print(table(found))
    if arguments.out is not None:
        write_results(arguments.out, {"surroundings": surroundings(), "sizes": found})


if __name__ == "__main__":
    main()
