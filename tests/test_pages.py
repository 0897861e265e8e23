"""Pages of what was measured hold what the results beside their scripts hold."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def tables(text: str) -> str:
    return text[text.index("\n## ") : text.index("\nWritten by")]


@pytest.mark.parametrize("name", ["quality", "granularity", "budgets"])
def test_a_page_has_the_tables_of_its_results(name: str) -> None:
    script = importlib.import_module(name)
    results = sorted((ROOT / "benchmarks/results" / name).glob("*.json"))
    assert tables((ROOT / f"docs/{name}.md").read_text()) == tables(script.page(results, ""))


@pytest.mark.parametrize("name", ["quality", "budgets"])
def test_what_stands_in_two_files_is_refused(name: str) -> None:
    script = importlib.import_module(name)
    results = sorted((ROOT / "benchmarks/results" / name).glob("*.json"))
    with pytest.raises(SystemExit, match=r"found 2 times, expected every search in one file$"):
        script.page([*results, results[0]], "")
