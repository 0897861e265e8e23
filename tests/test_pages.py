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
