"""The notebooks of the documentation run from beginning to end, in few steps, and print what they are shown to print."""

import importlib.util
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.ipynb"))
SHORT = """
import functools, circuitsieve
circuitsieve.DiscoveryConfig = functools.partial(circuitsieve.DiscoveryConfig, steps=30, early_stopping="off")
circuitsieve.load_task = functools.partial(
    circuitsieve.load_task, request=circuitsieve.TaskOptions(train=96, validation=32, test=32)
)
"""


def kinds(notebook: nbformat.NotebookNode) -> list[list[set[str]]]:
    """What each cell printed: the forms of each output."""
    return [
        [set(output.get("data", {output.get("name", "error"): ""})) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_there_are_three() -> None:
    assert len(TUTORIALS) == 3


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("run_tutorials", ROOT / "scripts/run_tutorials.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    kept = nbformat.read(path, as_version=4)
    assert any("text/html" in forms for cell in kinds(kept) for forms in cell)
    short = nbformat.read(path, as_version=4)
    short.cells.insert(0, nbformat.v4.new_code_cell(SHORT))
    nbformat.write(short, tmp_path / path.name)
    done = script.run(tmp_path / path.name)
    assert kinds(done)[1:] == kinds(kept)
