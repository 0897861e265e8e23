"""Reports and figures of run folders: the model is asked what they show, and that is kept beside the page."""

from pathlib import Path

from circuitsieve import figures, frames
from circuitsieve.errors import RunError
from circuitsieve.models.loading import LoadedModel
from circuitsieve.report.exhibits import exhibits
from circuitsieve.report.page import RunRecord, page
from circuitsieve.runs.folder import RunFolder
from circuitsieve.workflow.judging import load_run_model, run_pairs
from circuitsieve.workflow.reporting import Reporter

REPORT = "report.html"
EXHIBITS = "exhibits.json"


def report_run(path: str, reporter: Reporter, *, device: str | None = None) -> Path:
    """Write the report of a run.

    Args:
        path: the run folder.
        reporter: is told how it goes.
        device: where the model runs; that of the run if not given.

    Raises:
        RunError: the folder is damaged or was not evaluated yet, or the model is not the one that the circuit was found in.
    """
    folder = RunFolder.open(path)
    if not folder.has("card.json"):
        raise RunError(
            f"{path}: found no card.json, expected an evaluated run; run `circuitsieve evaluate {path}` first"
        )
    return write_report(folder, load_run_model(folder, device), reporter)


def write_report(folder: RunFolder, loaded: LoadedModel, reporter: Reporter) -> Path:
    """Write the report of an evaluated run whose model is there.

    Args:
        folder: of the run.
        loaded: its model.
        reporter: is told how it goes.
    """
    run = _record(folder)
    shown = exhibits(loaded, run.circuit, run.ranking, run_pairs(folder, loaded).test, reporter.exhibit)
    with folder.locked():
        folder.write_json(EXHIBITS, shown)
    return renew_report(folder)


def renew_report(folder: RunFolder) -> Path:
    """Write the report anew from what the model was asked for the last one: the card may be another one now.

    Raises:
        RunError: there was no report, or a file is damaged.
    """
    content = page(_record(folder), folder.read_json(EXHIBITS))
    with folder.locked():
        folder.write_text(REPORT, content)
    return folder.path / REPORT


def _record(folder: RunFolder) -> RunRecord:
    circuit, ranking = folder.read_circuit()
    return RunRecord(
        folder=str(folder.path),
        config=folder.read_json("config.json"),
        summary=folder.read_json("circuit.json"),
        card=folder.read_json("card.json"),
        history=folder.read_history(),
        pairs=folder.read_pairs(),
        circuit=circuit,
        ranking=ranking,
        edges=folder.read_edges() if folder.has("edges.json") else None,
    )


def write_figures(path: str, out: Path, kind: str) -> list[Path]:
    """Write the figures of a run, each with its data beside it: what there is of map, controls, sizes and course.

    Args:
        path: the run folder.
        out: the folder of the figures.
        kind: svg or pdf.

    Returns:
        The figures.

    Raises:
        RunError: the run is damaged, or the folder cannot be written.
        ConfigError: there is no such kind.
    """
    folder = RunFolder.open(path)
    circuit, _ = folder.read_circuit()
    heads = frames.heads(circuit)
    drawn = {"map": (figures.circuit_map(heads, frames.layers(circuit), circuit.space.neurons), heads)}
    if folder.has("card.json"):
        card = frames.card(folder.read_json("card.json"))
        drawn["controls"] = (figures.controls(card), card)
    if folder.has(EXHIBITS) and (points := folder.read_json(EXHIBITS)["curve"]):
        sizes = frames.curve(points)
        drawn["sizes"] = (figures.curve(sizes, circuit.size), sizes)
    if entries := folder.read_history():
        steps = frames.history(entries)
        drawn["course"] = (figures.course(steps), steps)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{out}: cannot be written ({error.strerror or error}), expected a folder for figures"
        ) from error
    for name, (figure, data) in drawn.items():
        figures.save(figure, data, out / f"{name}.{kind}")
    return [out / f"{name}.{kind}" for name in drawn]
