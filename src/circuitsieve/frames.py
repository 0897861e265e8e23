"""Tables as pandas frames: of circuits, rankings, cards, searches, sweeps, comparisons. Figures are drawn from them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.circuits.costs import parameters
from circuitsieve.circuits.masks import counts
from circuitsieve.circuits.nodes import Node
from circuitsieve.evaluation.card import Card, kept_by_layer
from circuitsieve.vocabulary import UNIT_GRANULARITIES
from circuitsieve.wording import METRICS


def kept(circuit: Circuit) -> pd.DataFrame:
    """What a circuit keeps: a row for each granularity and one for the parameters; kept, total, share."""
    rows = {str(g): count for g, count in circuit.counts.items()} | {"parameters": tuple(circuit.parameters)}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["kept", "total"])
    frame.index.name = "granularity"
    return frame.assign(share=frame["kept"] / frame["total"])


def layers(circuit: Circuit) -> pd.DataFrame:
    """Kept heads, head dims and MLP neurons: a row for each layer."""
    return pd.DataFrame(kept_by_layer(circuit)).rename_axis("layer")


def heads(circuit: Circuit) -> pd.DataFrame:
    """Kept dims of every head: layer, head, head_dims, share."""
    rows = [
        (layer, head, dims, dims / circuit.space.head_dim)
        for layer, row in enumerate(circuit.head_dims)
        for head, dims in enumerate(row)
    ]
    return pd.DataFrame(rows, columns=["layer", "head", "head_dims", "share"])


def ranking(ranked: Ranking, circuit: Circuit | None = None) -> pd.DataFrame:
    """A row for each node without children that was searched, best first: node, granularity, layer, index, score.

    Units come first: what is no unit counts in no size, and nested scores put it out of reach of any cut.

    Args:
        ranked: its scores, as the lowest of those of all nodes that contain a node.
        circuit: adds a column that says whether the circuit keeps the node.
    """
    rows = []
    for granularity, scores in ranked.space.lowest(ranked.scores).items():
        mask = None if circuit is None else circuit.masks[granularity]
        for layer, row in enumerate(scores.tolist()):
            for index, score in enumerate(row):
                node = Node(granularity, layer, index)
                own = () if mask is None else (bool(mask[layer, index]),)
                rows.append((str(node), str(granularity), layer, index, score, *own))
    columns = ["node", "granularity", "layer", "index", "score", *([] if circuit is None else ["kept"])]
    frame = pd.DataFrame(rows, columns=columns)
    frame["beside"] = ~frame["granularity"].isin(list(map(str, UNIT_GRANULARITIES)))
    ordered = frame.sort_values(["beside", "score"], ascending=[True, False], kind="stable", ignore_index=True)
    return ordered.drop(columns="beside")


def sizes(ranked: Ranking, shares: Iterable[float]) -> pd.DataFrame:
    """What a ranking keeps where it is cut at several sizes: a row for each; nodes by granularity, parameters.

    Args:
        ranked: the ranking.
        shares: of the read-site units.
    """
    rows = []
    for size in shares:
        masks = Circuit(ranked.space, ranked.cut(ranked.threshold_at(size))).masks
        row = {str(g): count for g, (count, _) in counts(masks).items()}
        rows.append({"size": size, **row, "parameters": parameters(ranked.space, masks).kept})
    return pd.DataFrame(rows).set_index("size")


def card(judged: Card | Mapping[str, Any]) -> pd.DataFrame:
    """Metrics of every section of a card that has them: section, metric, value, low, high (of 95 % intervals).

    Args:
        judged: a card, or the content of card.json.
    """
    values = judged.values if isinstance(judged, Card) else judged
    rows = []
    for section, found in values.items():
        if isinstance(found, Mapping) and "kl" in found and section in values["intervals"]:
            for metric in METRICS:
                if metric in found:
                    low, high = values["intervals"][section].get(metric) or (None, None)
                    rows.append((section, metric, found[metric], low, high))
    return _numeric(pd.DataFrame(rows, columns=["section", "metric", "value", "low", "high"]))


def history(entries: Sequence[Mapping[str, int | float]]) -> pd.DataFrame:
    """A row for each step of a search.

    Args:
        entries: `Discovery.history`, or what history.jsonl holds.
    """
    return pd.DataFrame(list(entries)).set_index("step") if entries else pd.DataFrame()


def curve(points: Sequence[Mapping[str, float | None]]) -> pd.DataFrame:
    """A row for each size at which a ranking was cut: size, kl, accuracy, faithfulness.

    Args:
        points: what exhibits.json holds under `curve`.
    """
    return _numeric(pd.DataFrame(list(points)))


def sweep(content: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each circuit of a sweep.

    Args:
        content: of sweep.json.
    """
    return _numeric(pd.DataFrame(content["points"]))


def runs(found: Mapping[str, Any]) -> pd.DataFrame:
    """Runs side by side: a column for each, a row for each fact and metric.

    Args:
        found: what `overlap.compared` gives.
    """
    columns = {}
    for run, facts in found["runs"].items():
        column = {name: facts[name] for name in ("model", "task", "method", "seed", "size", "parameters")}
        column |= {f"kept.{granularity}": count for granularity, count in facts["kept"].items()}
        for section in ("test", "random"):
            column |= {f"{section}.{metric}": (facts[section] or {}).get(metric) for metric in METRICS}
        columns[run] = column
    return pd.DataFrame(columns).dropna(how="all")


def overlap(found: Mapping[str, Any]) -> pd.DataFrame:
    """What every two runs share: first, second, granularity, jaccard, chance.

    Args:
        found: what `overlap.compared` gives.
    """
    rows = [
        (*pair["runs"], granularity, row["jaccard"], row["chance"])
        for pair in found["overlap"]
        for granularity, row in pair["jaccard"].items()
    ]
    return pd.DataFrame(rows, columns=["first", "second", "granularity", "jaccard", "chance"])


def _numeric(frame: pd.DataFrame) -> pd.DataFrame:
    """What is missing, missing as a number: a column of nothing else would have no numbers in it."""
    return frame.astype({name: float for name in frame.columns if frame[name].isna().any()})
