"""Circuits of SmolLM2 for the documentation: docs/gallery.md, with a picture of each circuit and its report beside it.

    python scripts/make_gallery.py --runs runs/gallery

Runs that are finished are not made again. About seven minutes each on two cores.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from circuitsieve import display
from circuitsieve.cli.console import set_up_libraries
from circuitsieve.cli.progress import RichReporter
from circuitsieve.config import DiscoveryConfig
from circuitsieve.report.command import command
from circuitsieve.runs.folder import RunFolder
from circuitsieve.wording import interval, number, percent
from circuitsieve.workflow.finding import Job, run
from circuitsieve.workflow.publishing import REPORT, write_report

DOCS = Path(__file__).parents[1] / "docs"
CONFIGS = {
    "ioi": DiscoveryConfig(max_kl=0.16),
    "greater_than": DiscoveryConfig(min_faithfulness=0.95),
    "gender_pronoun": DiscoveryConfig(min_faithfulness=0.95),
    "agreement": DiscoveryConfig(min_faithfulness=0.95),
    "capitals": DiscoveryConfig(min_faithfulness=0.95),
}
HEADINGS = (
    "task",
    "size",
    "heads of 270",
    "parameters",
    "KL, nats",
    "accuracy",
    "of the full model",
    "faithfulness",
    "random: KL",
)
INTRO = """# Gallery

Circuits of SmolLM2-135M-Instruct, one run each with seed 0 and all defaults, made by `scripts/make_gallery.py`. Numbers are of
192 test pairs, in brackets 95 % bootstrap intervals over them. Other seeds find circuits of other sizes: the README has their
spread for IOI, `docs/tasks.md` for the other tasks. Each report opens as it is, offline.

"""


def main() -> None:
    """Make the runs that are missing, then the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--tasks", nargs="+", choices=list(CONFIGS), default=list(CONFIGS), help="those that are shown")
    words = parser.parse_args()
    set_up_libraries()
    folders = {task: finished(words.runs / task, task, CONFIGS[task]) for task in words.tasks}
    for name in ("gallery", "pictures"):
        (DOCS / name).mkdir(exist_ok=True)
    for task, folder in folders.items():
        shutil.copy(folder.path / REPORT, DOCS / "gallery" / f"{named(task)}.html")
        (DOCS / "pictures" / f"gallery-{named(task)}.svg").write_text(picture(folder, task) + "\n", "utf-8")
    rows = [row(task, folder) for task, folder in folders.items()]
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- |" + " ---: |" * (len(HEADINGS) - 1)]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    sections = [section(task, folder) for task, folder in folders.items()]
    (DOCS / "gallery.md").write_text(INTRO + "\n".join(lines) + "\n" + "".join(sections), "utf-8")


def finished(path: Path, task: str, config: DiscoveryConfig) -> RunFolder:
    """The run of a task with its report; it is made if it is not there."""
    if not (path / REPORT).is_file():
        with RichReporter() as reporter:
            found = run(Job("smollm2", task, str(path), config, overwrite=True), reporter)
            if found.card is None:
                raise KeyboardInterrupt
            write_report(found.folder, found.loaded, reporter)
    return RunFolder.open(path)


def named(task: str) -> str:
    """How files of a task are called."""
    return task.replace("_", "-")


def picture(folder: RunFolder, task: str) -> str:
    """The heads and MLPs of a circuit."""
    circuit, _ = folder.read_circuit()
    space = circuit.space
    return display.circuit_map(circuit.head_dims, space.head_dim, circuit.mlp_neurons, space.neurons, label(task))


def label(task: str) -> str:
    """What a picture shows."""
    return f"The circuit of {task}: kept dims of each head, and kept neurons of each MLP, layer by layer."


def row(task: str, folder: RunFolder) -> list[str]:
    """A line of the table."""
    card: dict[str, Any] = folder.read_json("card.json")
    circuit, _ = folder.read_circuit()
    test = card["test"]
    return [
        f"[{task}](#{task})",
        percent(circuit.size),
        str(card["kept"]["head"]["kept"]),
        percent(circuit.share("parameters")),
        f"{number(test['kl'], 3)} ({interval(card['intervals']['test']['kl'], 3)})",
        number(test["accuracy"], 3),
        number(card["full"]["accuracy"], 3),
        number(test["faithfulness"], 2),
        number(card["random"]["kl"], 2),
    ]


def section(task: str, folder: RunFolder) -> str:
    """A task with its picture, an example, its report and the command that repeats it."""
    example = next(record.pair for record in folder.read_pairs() if record.split == "test" and record.dropped is None)
    answer = example.answers[0]
    space = " " if answer.startswith(" ") else ""
    return (
        f"\n## {task}\n\n[The report](gallery/{named(task)}.html)\n\n"
        f"> {example.clean}{space}**{answer.strip()}**\n>\n> corrupted: {example.corrupted}\n\n"
        f"![{label(task)}](pictures/gallery-{named(task)}.svg)\n\n"
        f"```\n{command(folder.read_json('config.json'))}\n```\n"
    )


if __name__ == "__main__":
    main()
