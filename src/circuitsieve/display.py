"""Pieces of HTML for notebooks and pages: tables, and the picture of a circuit. Plain data in, text out.

What stands in them is escaped. They take the colours of the page that they stand on, light or dark, and say the same without any:
shares are also written out, in the tips of the picture.
"""

from collections.abc import Mapping, Sequence
from html import escape

Rows = Sequence[Sequence[str]]
"""A table: headings, then rows."""
CELL = 14
"""Pixels of a head."""
BAR = 120
"""Pixels of an MLP of which everything is kept."""
LABEL = 30
"""Pixels before the first head."""
GAP = 10


def table(rows: Rows, caption: str = "") -> str:
    """A table with the first row as headings and the first column as names."""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in rows[0])
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row" style="text-align:left;font-weight:500">{escape(cell)}</th>'
            if column == 0
            else f'<td style="text-align:right">{escape(cell)}</td>'
            for column, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows[1:]
    )
    title = f'<caption style="text-align:left">{escape(caption)}</caption>' if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def definitions(said: Mapping[str, str]) -> str:
    """Names, and what is said of each."""
    return (
        "<dl>"
        + "".join(f"<dt><b>{escape(name)}</b></dt><dd>{escape(text)}</dd>" for name, text in said.items())
        + "</dl>"
    )


def paragraph(text: str) -> str:
    """A paragraph of text."""
    return f"<p>{escape(text)}</p>"


def circuit_map(
    head_dims: Sequence[Sequence[int]], head_dim: int, mlp_neurons: Sequence[int], neurons: int, label: str
) -> str:
    """A circuit as a picture (SVG): a row for each layer, the last on top; a square for each head, a bar for each MLP.

    Args:
        head_dims: kept dims of every head, layer by layer.
        head_dim: dims of a head.
        mlp_neurons: kept MLP neurons of every layer.
        neurons: MLP neurons of a layer.
        label: says the same to whoever cannot see it.
    """
    layers, heads = len(head_dims), len(head_dims[0])
    bars = LABEL + heads * CELL + GAP
    drawn = []
    for layer, (dims, kept) in enumerate(zip(head_dims, mlp_neurons, strict=True)):
        y = (layers - 1 - layer) * CELL
        drawn.append(f'<text x="{LABEL - 6}" y="{y + CELL - 4}" text-anchor="end">{layer}</text>')
        for head, count in enumerate(dims):
            tip = f"layer {layer}, head {head}: {count} of {head_dim} dims"
            drawn.append(_square(LABEL + head * CELL, y, CELL - 2, count / head_dim, tip))
        tip = f"layer {layer}, MLP: {kept:,} of {neurons:,} neurons"
        drawn.append(_square(bars, y, BAR, 0.0, tip))
        if kept:
            drawn.append(_square(bars, y, max(1, round(BAR * kept / neurons)), 0.75, tip))
    y = layers * CELL
    drawn.append(f'<text x="{LABEL}" y="{y + 10}">heads 0 to {heads - 1}</text>')
    drawn.append(f'<text x="{bars}" y="{y + 10}">MLP</text>')
    width, height = bars + BAR + GAP, y + CELL
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-size="9" font-family="sans-serif" fill="currentColor">{"".join(drawn)}</svg>'
    )


def _square(x: int, y: int, width: int, share: float, tip: str) -> str:
    """A box, the fuller the more of it is kept."""
    return (
        f'<rect x="{x + 0.5}" y="{y + 0.5}" width="{width}" height="{CELL - 3}" fill="currentColor" '
        f'fill-opacity="{share:.2f}" stroke="currentColor" stroke-opacity="0.35"><title>{escape(tip)}</title></rect>'
    )
