"""The documentation site: it builds strictly, holds what it promises, and loads nothing from anywhere else."""

import ast
import dataclasses
import functools
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import circuitsieve
from browser import CHROMIUM
from circuitsieve.cli.app import app
from circuitsieve.data.sources import read_pairs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LOADED = {"src", "srcset", "data", "poster", "action"}
"""Attributes that make a browser fetch something; `href` does so of links in the head and of pictures, not of anchors."""
FETCHED = re.compile(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""")
FENCE = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)


class Page(HTMLParser):
    """A built page: its anchors, its text by element, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.loads: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids.add(found.get("id") or "")
        names = LOADED if tag == "a" else LOADED | {"href", "xlink:href"}
        self.loads += [found[name] or "" for name in names & found.keys()]
        self.loads += _fetched(found.get("style") or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        self.loads += _fetched(data if self.tags and self.tags[-1][0] == "style" else "")


def _fetched(css: str) -> list[str]:
    return ["".join(match.groups(default="")) for match in FETCHED.finditer(css)]


def fences(path: Path, kind: str) -> list[str]:
    """The code blocks of a page."""
    return [match["text"] for match in FENCE.finditer(path.read_text("utf-8")) if match["kind"] == kind]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Every page by its path."""
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_built_and_stands_in_the_navigation(pages: dict[str, Page]):
    sources = (*PAGES, *DOCS.rglob("*.ipynb"))
    expected = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in sources} | {"cli.html"}
    reports = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.html")}
    assert set(pages) == expected | reports | {"404.html"}
    linked = {found.get("href") for tag, found in pages["concepts.html"].tags if tag == "a"}
    assert expected - {"concepts.html"} <= linked


def test_every_public_name_has_an_anchor(pages: dict[str, Page]):
    assert {f"circuitsieve.{name}" for name in circuitsieve.__all__} <= pages["api.html"].ids
    settings = {field.name for field in dataclasses.fields(circuitsieve.DiscoveryConfig)}
    assert {f"circuitsieve.DiscoveryConfig.{name}" for name in settings} <= pages["api.html"].ids


def test_every_command_and_setting_is_on_the_page_of_the_command_line(pages: dict[str, Page]):
    text = "".join(pages["cli.html"].text)
    helped = subprocess.run(
        [sys.executable, "-m", "circuitsieve", "--help"], capture_output=True, text=True, check=True
    ).stdout
    commands = set(re.findall(r"^│ ([a-z]+) ", helped, re.MULTILINE))
    assert {"discover", "evaluate", "data", "tasks"} <= commands
    headings = {f"circuitsieve-{command}" for command in commands} | {"circuitsieve-data-check"}
    assert headings <= pages["cli.html"].ids
    for field in dataclasses.fields(circuitsieve.DiscoveryConfig):
        assert f"--{field.name.replace('_', '-')} " in text
    assert "mkdocs" not in text


def test_no_page_loads_anything_from_another_host(site: Path, pages: dict[str, Page]):
    loads = [(name, url) for name, page in pages.items() for url in page.loads]
    sheets = list(site.rglob("*.css"))
    loads += [(str(sheet), url) for sheet in sheets for url in _fetched(sheet.read_text("utf-8"))]
    assert len(sheets) >= 3
    assert len(loads) > 5 * len(pages)
    assert [(name, url) for name, url in loads if urlsplit(url).netloc] == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_asks_for_nothing_but_the_files_of_the_site(site: Path, pages: dict[str, Page]):
    playwright = pytest.importorskip("playwright.sync_api")
    asked: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page()
        opened.on("request", lambda request: asked.append(request.url))
        for name in pages:
            if name != "404.html":  # its addresses begin at the root of a server
                opened.goto((site / name).as_uri())
        browser.close()
    assert len(asked) > len(pages)
    assert [url for url in asked if not url.startswith((site.as_uri(), "data:"))] == []


@pytest.mark.parametrize("name", ["concepts", "method"])
def test_every_formula_is_mathml(site: Path, pages: dict[str, Page], name: str):
    written = (DOCS / f"{name}.md").read_text("utf-8")
    blocks = written.count("$$") // 2
    inline = len(re.findall(r"\$[^$]+\$", written.replace("$$", "")))
    shown = [found.get("display") for tag, found in pages[f"{name}.html"].tags if tag == "math"]
    assert (shown.count("block"), shown.count("inline")) == (blocks, inline)
    for formula in re.findall(r"<math.*?</math>", (site / f"{name}.html").read_text("utf-8"), re.DOTALL):
        ElementTree.fromstring(formula.replace("&nbsp;", " "))
        assert "\\" not in formula


def test_pictures_become_part_of_their_page_and_take_the_colour_of_its_text(pages: dict[str, Page]):
    drawn = sorted((DOCS / "pictures").glob("*.svg"))
    shown = [
        found
        for page in pages.values()
        for tag, found in page.tags
        if tag == "svg" and "picture" in (found.get("class") or "")
    ]
    assert len(shown) == len(drawn)
    assert all(len(found["aria-label"] or "") > 20 for found in shown)
    for picture in drawn:
        for element in ElementTree.parse(picture).iter():
            assert {element.get("fill"), element.get("stroke")} <= {None, "none", "currentColor"}


def _commands() -> Iterator[str]:

    for path in (*PAGES, ROOT / "README.md"):
        for block in fences(path, ""):
            for line in block.splitlines():
                if line.startswith("circuitsieve ") and "..." not in line:
                    yield line


@pytest.mark.parametrize("line", sorted(set(_commands())))
def test_every_command_on_the_pages_is_one_of_the_program(line: str):
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index(">")] if ">" in words else words
    command, *_ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert "_".join(words).startswith(command.__name__)


@pytest.mark.parametrize("block", [block for page in PAGES for block in fences(page, "python")])
def test_python_on_the_pages_is_python(block: str):
    assert ast.parse(block).body


def test_the_python_of_the_quick_start_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As it stands, only with fewer steps and pairs."""
    short = functools.partial(circuitsieve.DiscoveryConfig, steps=4, ranking_looks=0)
    few = functools.partial(circuitsieve.load_task, request=circuitsieve.TaskOptions(train=64, validation=16, test=16))
    monkeypatch.setattr(circuitsieve, "DiscoveryConfig", short, raising=False)
    monkeypatch.setattr(circuitsieve, "load_task", few, raising=False)
    monkeypatch.chdir(tmp_path)
    blocks = fences(DOCS / "index.md", "python")
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "index.md", "exec"), names)
    result, circuit = names["result"], names["circuit"]
    assert isinstance(result, circuitsieve.Discovery)
    assert isinstance(circuit, circuitsieve.Circuit)
    assert circuit.nodes() == result.circuit.nodes()
    said = capsys.readouterr().out
    assert f"{circuit.size:.1%} of the head dims and MLP neurons" in said
    assert "L0.head." in said


def test_the_table_of_the_guide_is_read_as_pairs(tmp_path: Path):
    (table,) = [block for block in fences(DOCS / "how-to/own-task.md", "") if block.startswith("clean,")]
    file = tmp_path / "pairs.csv"
    file.write_text(table)
    (pair,) = read_pairs(file)
    assert (pair.clean, pair.corrupted) == ("The keys to the cabinet", "The key to the cabinet")
    assert (pair.answers, pair.wrong_answers) == ((" are",), (" is",))
