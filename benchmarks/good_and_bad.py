"""A good and a bad circuit of the same size, side by side: the table of docs/evaluation.md.

    python benchmarks/good_and_bad.py --page docs/evaluation.md

Discovers a circuit of the bundled model, takes as many units at random for a second one, and evaluates both in full. The table
replaces what stands between the two marks of the page.
"""

import argparse
from pathlib import Path
from typing import Any

from surroundings import surroundings

# isort: split

from circuitsieve.cli.progress import RichReporter
from circuitsieve.config import DiscoveryConfig
from circuitsieve.workflow.finding import Job, run
from circuitsieve.workflow.judging import evaluate_run

BEGIN, END = "<!-- good and bad -->\n", "<!-- end -->"
ROWS = {
    "size": ("size", ".1%"),
    "KL, nats": ("test.kl", ".2f"),
    "accuracy": ("test.accuracy", ".2f"),
    "faithfulness": ("test.faithfulness", ".2f"),
    "random circuits of its shape that have a larger KL": ("sufficiency.beaten", ".0%"),
    "p that it beats most of them, corrected": ("sufficiency.p_corrected", ".3f"),
    "accuracy without it": ("necessity.accuracy", ".2f"),
    "accuracy without as many units of its shape": ("necessity.matched.accuracy", ".2f"),
    "accuracy without as many units anywhere": ("necessity.uniform.accuracy", ".2f"),
    "accuracy without it, layer 0 left alone": ("necessity.without_layer_0.accuracy", ".2f"),
    "accuracy without its shape, layer 0 left alone": ("necessity.without_layer_0.matched.accuracy", ".2f"),
    "knock-outs of its shape that hurt less": ("necessity.matched.hurt_less", ".0%"),
    "mean gap to the model without the same parts": ("completeness.relative_gap", ".0%"),
    "share of pairs on which it scores higher than the model": ("equivalence.share", ".0%"),
    "its complement's scores against the model's, p of independence": ("independence.p", ".3f"),
    "nodes that matter more than most outside": ("minimality.needed", ".0%"),
    "CPR, CMD of its ranking": ("cpr.area cmd.area", ".2f"),
    "KL of heads and MLPs with as many parameters": ("head_level.kl", ".2f"),
    "KL under mean ablation": ("other_ablations.mean.kl", ".2f"),
    "KL on misspelt prompts": ("robustness.typos.kl", ".2f"),
    "KL on sentences not seen before": ("robustness.templates.kl", ".2f"),
    "MLP neurons in common with searches over, and by chance (Jaccard)": (
        "stability.with_the_circuit.mlp_neuron.jaccard stability.with_the_circuit.mlp_neuron.chance",
        ".2f",
    ),
}


def card_of(name: str, runs: Path, config: DiscoveryConfig) -> Any:
    """The full card of a search with the bundled model."""
    out = str(runs / name)
    with RichReporter() as reporter:
        run(Job("demo", "ioi", out, config, overwrite=True), reporter)
        _, card = evaluate_run(out, reporter, full=True)
    return card


def cell(card: Any, paths: str, form: str) -> str:
    """Some values of a card."""
    values = [card[path] for path in paths.split()]
    return ", ".join("-" if value is None else format(value, form) for value in values)


def main() -> None:
    """Make both circuits and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/good_and_bad"))
    options = parser.parse_args()
    good = card_of("good", options.runs, DiscoveryConfig())
    bad = card_of("bad", options.runs, DiscoveryConfig(method="random", size=good["size"]))
    lines = ["| | discovered | as many units at random |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {cell(good, *row)} | {cell(bad, *row)} |" for name, row in ROWS.items()]
    about = f"Written by `{surroundings()['command']}` (demo model, IOI, seed 0)."
    text = options.page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    options.page.write_text(before + BEGIN + "\n".join(lines) + f"\n\n{about}\n" + END + after)


if __name__ == "__main__":
    main()
