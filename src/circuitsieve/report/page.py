"""The report: one page that opens offline, made from the files of a run and what the model was asked for it (`exhibits`)."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from circuitsieve import figures, frames
from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.circuits.graph import EdgeCircuit
from circuitsieve.evaluation.verdicts import against
from circuitsieve.report.command import command
from circuitsieve.report.edges import ranked
from circuitsieve.report.templates import rendered
from circuitsieve.runs.folder import PairRecord
from circuitsieve.vocabulary import Granularity, SiteKind
from circuitsieve.wording import Rows, metric_rows, number, summary_rows

BEATEN = 0.95
"""The share of random circuits that one must beat to be trusted."""
NEAR = 0.05
"""Of accuracy: what is so near is as good."""
TABLED = 200
"""Edges in the table; all are in the picture."""


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says of itself."""

    folder: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    card: Mapping[str, Any]
    history: Sequence[Mapping[str, int | float]]
    pairs: Sequence[PairRecord]
    circuit: Circuit
    ranking: Ranking | None
    edges: EdgeCircuit | None = None


def page(run: RunRecord, shown: Mapping[str, Any]) -> str:
    """The report as HTML: nothing in it is fetched, and what prompts say is text, never markup.

    Args:
        run: the files of the run.
        shown: the exhibits.
    """
    card, config = run.card, run.config
    trust, look, why = _trust(card, config["discovery"])
    curve = shown["curve"]
    return rendered(
        "page.html.jinja",
        script="page.js",
        task=config["data"].get("task") or "pairs of one's own",
        model=config["model"]["name"],
        folder=run.folder,
        asked=_asked(config["discovery"]),
        found=_found(run),
        trust=trust,
        look=look,
        why=why,
        sections=_sections(run, shown),
        granularities=summary_rows(run.summary),
        metrics=metric_rows(card),
        pairs_judged=card["test"]["n"],
        pairs_few=card.get("random", card["test"])["n"],
        verdicts=card.get("verdicts", {}),
        nulls=_nulls(card),
        edges=_edges(run),
        curve=[["size", "KL, nats", "accuracy", "faithfulness"], *(_curve_row(point) for point in curve)],
        curve_figure=_inline(figures.curve(frames.curve(curve), run.circuit.size)) if curve else "",
        course_figure=_inline(figures.course(frames.history(run.history))) if run.history else "",
        steps=len(run.history),
        prompts=shown["prompts"],
        dropped=_dropped(run.pairs),
        command=command(config),
        provenance={
            "Model": _flat(config["model"]),
            "Pairs": _flat(config["data"]),
            "Settings": _flat(config["discovery"]),
            "Versions": _flat(config["versions"]),
        },
        reasons=shown["reasons"],
        data=_data(run, shown),
    )


def _asked(settings: Mapping[str, Any]) -> str:
    if settings["pressure"] is not None:
        return f"no budget, a fixed pressure of {settings['pressure']:g}."
    if settings["size"] is not None:
        return f"{settings['size']:.3g} of the {settings['size_by']}."
    few = ", with as few parameters as can be" if settings["size_by"] == "parameters" else ""
    if settings["min_faithfulness"] is not None:
        return f"a faithfulness of at least {settings['min_faithfulness']:g}{few}."
    return f"a KL of at most {settings['max_kl']:g} nats{few}."


def _found(run: RunRecord) -> str:
    card, kept = run.card, run.summary["kept"]
    count = run.summary["parameters"]
    units = ", ".join(
        f"{kept[g]['kept']:,} of {kept[g]['total']:,} {name}"
        for g, name in (("head", "heads"), ("head_dim", "head dims"), ("mlp_neuron", "MLP neurons"))
    )
    return (
        f"{run.summary['size']:.1%} of the units ({units}), {count['kept'] / count['total']:.1%} of the parameters; on "
        f"{card['test']['n']} test pairs a KL of {card['test']['kl']:.3f} nats and an accuracy of "
        f"{card['test']['accuracy']:.3f}, where the full model has {card['full']['accuracy']:.3f}."
    )


def _trust(card: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, str, str]:
    """How far to trust the circuit: a word, how it looks, and in a sentence why."""
    doubts = list(_doubts(card, settings))
    if doubts:
        return "Doubt", "doubt", "; ".join(doubts) + "."
    beaten = (
        f"it beats {card['random']['beaten']:.0%} of random circuits of its shape in KL; " if "random" in card else ""
    )
    if "verdicts" not in card:
        return (
            "Provisional",
            "open",
            f"{beaten}only the quick card was made, which cannot tell whether it is a lucky one.",
        )
    return "Trust", "good", f"{beaten}the full card found nothing against it."


def _doubts(card: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """What speaks against a circuit."""
    accuracy, random = card["test"]["accuracy"], card.get("random")
    if card.get("budget_met") == 0:
        yield "the budget is not met on validation pairs"
    asked, bounds = settings["max_kl"], card["intervals"]["test"].get("kl")
    if asked is not None and bounds is not None and bounds[0] > asked:
        yield f"on test pairs its KL is {card['test']['kl']:.3f} nats, beyond the {asked:g} that were asked for"
    asked, bounds = settings["min_faithfulness"], card["intervals"]["test"].get("faithfulness")
    if asked is not None and bounds is not None and (bounds[1] < asked or bounds[0] > 2 - asked):
        yield f"on test pairs its faithfulness is {card['test']['faithfulness']:.3f}, further from 1 than the {asked:g} asked for"
    if card["full"]["accuracy"] - accuracy > NEAR:
        yield f"its accuracy is {card['full']['accuracy'] - accuracy:.2f} below the full model's on test pairs"
    if random is not None and random["beaten"] < BEATEN:
        yield f"it beats only {random['beaten']:.0%} of random circuits of its shape in KL"
    if random is not None and random["accuracy"] > random["circuit_accuracy"] - NEAR:
        yield f"random circuits of its shape do the task as well (accuracy {random['accuracy']:.2f})"
    for name in against(card):
        said = card["verdicts"][name]
        yield said[0].lower() + said[1:].rstrip(".")


def _sections(run: RunRecord, shown: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("circuit", "circuit"),
        ("card", "held-out pairs"),
        *([("edges", "edges")] if run.edges else []),
        *([("sizes", "sizes")] if shown["curve"] else []),
        *([("course", "search")] if run.history else []),
        ("prompts", "prompts"),
        ("provenance", "provenance"),
    ]


def _nulls(card: Mapping[str, Any]) -> Rows:
    rows = _flat(card["reasons"])[1:]
    return [["value", "reason"], *rows] if rows else []


def _curve_row(point: Mapping[str, float | None]) -> list[str]:
    return [f"{point['size']:.1%}", *(number(point[name], 3) for name in ("kl", "accuracy", "faithfulness"))]


def _dropped(pairs: Sequence[PairRecord]) -> Rows:
    counts = Counter((record.split, record.dropped) for record in pairs if record.dropped is not None)
    rows = [[str(reason), split, f"{count:,}"] for (split, reason), count in counts.items()]
    return [["reason", "split", "pairs"], *rows] if rows else []


def _flat(values: Mapping[str, Any], prefix: str = "") -> Rows:
    """Nested values as a table of two columns."""
    rows: Rows = [] if prefix else [["", "value"]]
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append([f"{prefix}{name}", " ".join(map(str, value)) if isinstance(value, list) else str(value)])
    return rows


def _inline(figure: figures.Figure) -> Markup:
    """A figure to stand inside a page: without the head of a file."""
    return Markup(re.sub(r"^.*?(?=<svg)", "", figures.svg(figure).decode(), flags=re.DOTALL))


def _data(run: RunRecord, shown: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's script draws from."""
    space = run.circuit.space
    kept = {
        "head_dim": _indices(run.circuit.space.kept_units(run.circuit.masks)[SiteKind.ATTN_READ].tolist()),
        "mlp_neuron": _indices(run.circuit.space.kept_units(run.circuit.masks)[SiteKind.MLP_READ].tolist()),
    }
    scores = None if run.ranking is None else space.lowest(run.ranking.scores).get(Granularity.MLP_NEURON)
    order = []
    for layer, neurons in enumerate(kept["mlp_neuron"]):
        own = [0.0] * len(neurons) if scores is None else scores[layer][neurons].tolist()
        order.append(sorted(range(len(neurons)), key=lambda i, own=own: -own[i]))  # type: ignore[misc]
    return {
        "space": {name: getattr(space, name) for name in ("layers", "heads", "head_dim", "neurons")},
        "kept": kept,
        "order": order,
        **{name: shown[name] for name in ("heads", "neurons", "attention", "vocabulary")},
        "edges": [] if run.edges is None else _drawn(run.edges, run.circuit),
    }


def _drawn(edges: EdgeCircuit, circuit: Circuit) -> list[dict[str, Any]]:
    """Edges as the page's script draws them: to nodes, Q, K and V of a head being one; the strongest first."""
    heads = edges.graph.kept(circuit.masks)[0].nonzero().tolist()
    kept = {
        "logits",
        *(f"a{layer}.h{head}" for layer, head in heads),
        *(f"m{layer}" for layer in range(circuit.space.layers)),
    }
    return [
        {
            "name": str(edge),
            "source": edge.source,
            "nodes": [node for node in edges.graph.readers(edge) if node in kept],
            "score": round(score, 6),
        }
        for edge, score in ranked(edges)
    ]


def _edges(run: RunRecord) -> dict[str, Any] | None:
    """What is said of the edges."""
    if run.edges is None:
        return None
    found = run.card["edges"]
    rows = [[str(edge), f"{score:+.4f}"] for edge, score in ranked(run.edges)[:TABLED]]
    return {
        **{name: f"{found[name]:,}" for name in ("kept", "among", "total")},
        "faithfulness": number(found["test"]["faithfulness"], 3),
        "before": number(found["nodes"]["faithfulness"], 3),
        "kl": number(found["test"]["kl"], 3),
        "kl_before": number(found["nodes"]["kl"], 3),
        "rows": [["edge", "gains, nats"], *rows],
    }


def _indices(rows: Sequence[Sequence[bool]]) -> list[list[int]]:
    return [[i for i, kept in enumerate(row) if kept] for row in rows]
