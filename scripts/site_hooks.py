"""What mkdocs does to the pages of the site while it builds them; it finds these functions by their names.

- The page of the command line is made from the program, so that it cannot go stale.
- Notebooks become pages, with the outputs that they hold.
- Formulas become MathML, which browsers show without any script.
- Pictures become part of their page, so that they take the colour of its text.
- A page that is named as a file, such as `docs/data.md`, becomes a link to it.
"""

import html
import posixpath
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

COMMANDS = "cli.md"
"""The page that is made from the program."""
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_PICTURE = re.compile(r'<img alt="(?P<alt>[^"]*)" src="(?P<src>[^":]*pictures/[a-z-]+\.svg)" ?/?>')
_NAMED = re.compile(r"`docs/(?P<page>[a-z-]+\.md)`")
_INDENTED = re.compile(r"\n +(?![* \n-])")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made: of the command line, and of each notebook, which stays to be downloaded."""
    files.append(File.generated(config, COMMANDS, content=command_line()))
    for name in [file.src_uri for file in files if file.src_uri.endswith(".ipynb")]:
        page = notebook_page(Path(config.docs_dir, name))
        files.append(File.generated(config, name.removesuffix(".ipynb") + ".md", content=page))
    return files


def notebook_page(path: Path) -> str:
    """A notebook as Markdown; its own first heading is the title."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            parts += [f"```python\n{cell.source}\n```", *map(_output, cell.outputs)]
    return "\n\n".join([*parts, f"[This page as a notebook]({path.name})"])


def _output(output: Any) -> str:
    """The richest form of an output: a picture, HTML or text."""
    data = output.get("data", {})
    if "image/svg+xml" in data:
        drawn = re.sub(r"^.*?(?=<svg)", "", data["image/svg+xml"], flags=re.DOTALL)
        return f'<div class="output paper">{drawn.strip()}</div>'
    if "text/html" in data:
        return f'<div class="output">{data["text/html"].strip()}</div>'
    return f"```text\n{(output.get('text') or data['text/plain']).rstrip()}\n```"


def command_line() -> str:
    """The page of the command line, from the program's own help."""
    from circuitsieve.cli.app import app

    with patch.object(
        sys, "argv", [app.name[0]]
    ):  # else commands are called as the running program is: python -m mkdocs
        page = app.generate_docs(output_format="markdown")
    _, _, body = page.partition("\n## Table of Contents\n")
    _, heading, body = body.partition("\n**Commands**:\n")
    if not heading:
        raise PluginError("the program's help has another form than expected; see scripts/site_hooks.py")
    intro = (
        "# Command line\n\nMade from the program itself: `circuitsieve COMMAND --help` says the same. Options that take several "
        "words take them one after another: `--granularities head mlp_neuron`.\n"
    )
    return intro + heading + _INDENTED.sub(" ", body).replace("KL(full || circuit)", "`KL(full || circuit)`")


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Turn the names of pages into links."""

    def link(match: re.Match[str]) -> str:
        target = match["page"]
        if files.get_file_from_path(target) is None or target == page.file.src_uri:
            return match[0]
        start = posixpath.dirname(page.file.src_uri) or "."
        return f"[{match[0]}]({posixpath.relpath(target, start)})"

    return _NAMED.sub(link, markdown)


def on_page_content(content: str, page: Any, config: Any, **_: Any) -> str:
    """Put formulas and pictures into the page."""

    def picture(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.url), match["src"]))
        drawn = re.sub(r"<style>.*?</style>\s*", "", Path(config.docs_dir, path).read_text("utf-8"), flags=re.DOTALL)
        return drawn.replace("<svg ", f'<svg class="picture" role="img" aria-label="{match["alt"]}" ', 1).strip()

    return _PICTURE.sub(picture, _FORMULA.sub(_mathml, content))


def _mathml(match: re.Match[str]) -> str:
    block = match[1] == "div"
    formula = convert(html.unescape(match[2]).strip(), display="block" if block else "inline")
    return f'<div class="formula">{formula}</div>' if block else formula
