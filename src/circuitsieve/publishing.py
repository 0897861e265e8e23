"""Reports of run folders: the model is asked what the report shows, and the page is written beside the other files."""

from pathlib import Path

from circuitsieve.errors import RunError
from circuitsieve.exhibits import exhibits
from circuitsieve.judging import load_run_model, run_pairs
from circuitsieve.models import LoadedModel
from circuitsieve.report.page import RunRecord, page
from circuitsieve.reporting import Reporter
from circuitsieve.runs import RunFolder

REPORT = "report.html"


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
    circuit, ranking = folder.read_circuit()
    pairs = run_pairs(folder, loaded)
    run = RunRecord(
        folder=str(folder.path),
        config=folder.read_json("config.json"),
        summary=folder.read_json("circuit.json"),
        card=folder.read_json("card.json"),
        history=folder.read_history(),
        pairs=folder.read_pairs(),
        circuit=circuit,
        ranking=ranking,
    )
    content = page(run, exhibits(loaded, circuit, ranking, pairs.test, reporter.exhibit))
    with folder.locked():
        folder.write_text(REPORT, content)
    return folder.path / REPORT
