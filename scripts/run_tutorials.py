"""Run the notebooks of docs/tutorials and keep what they print: the outputs that the documentation shows.

python scripts/run_tutorials.py
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[1] / "docs/tutorials"
SECONDS = 600
"""For one cell."""


def main() -> None:
    """Run each notebook in a fresh kernel, in place."""
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        print(path.name)
        notebook = run(path)
        nbformat.write(notebook, path)


def run(path: Path) -> nbformat.NotebookNode:
    """A notebook with its new outputs; what a cell raises is raised."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=SECONDS, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    main()
