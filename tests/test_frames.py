"""Tables as frames, figures with their data, and what notebooks show: the numbers are those of the masks and of the files."""

import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
import torch

from circuitsieve import figures, frames
from circuitsieve.circuits.circuit import SIZES_SHOWN, Circuit, Ranking
from circuitsieve.circuits.nodes import NodeSpace
from circuitsieve.errors import ConfigError
from circuitsieve.evaluation.card import Card
from circuitsieve.runs.folder import RunFolder
from circuitsieve.runs.overlap import compared
from circuitsieve.vocabulary import Granularity
from tiny_cli import call, complaint
from tiny_runs import SUBJECT, random_found

CIRCUIT, RANKING = random_found()
SPACE: NodeSpace = SUBJECT.space


@pytest.fixture(scope="module")
def run(home: Path) -> RunFolder:
    return RunFolder.open(home / "run")


def counted(circuit: Circuit) -> Counter[tuple[str, int]]:
    """Kept nodes by granularity and layer, counted from their names."""
    named = (re.fullmatch(r"L(\d+)\.(\w+)(?:\.\d+)?", name) for name in circuit.nodes() if name != "embed")
    return Counter((match[2], int(match[1])) for match in named)


def test_frames_of_a_circuit_count_its_nodes() -> None:
    by_layer = counted(CIRCUIT)
    kept = frames.kept(CIRCUIT)
    for granularity in ("head", "head_dim", "mlp_neuron"):
        count = sum(n for (name, _), n in by_layer.items() if name == granularity)
        assert kept.loc[granularity, "kept"] == count
        assert frames.layers(CIRCUIT)[granularity].tolist() == [
            by_layer[granularity, layer] for layer in range(SPACE.layers)
        ]
    assert (kept["share"] == kept["kept"] / kept["total"]).all()
    assert kept.loc["parameters", "kept"] == CIRCUIT.parameters.kept
    dims = Counter(
        (int(layer), int(dim) // SPACE.head_dim)
        for layer, dim in (re.findall(r"\d+", name) for name in CIRCUIT.nodes(Granularity.HEAD_DIM))
    )
    heads = frames.heads(CIRCUIT)
    assert len(heads) == SPACE.layers * SPACE.heads
    assert {(row.layer, row.head): row.head_dims for row in heads.itertuples() if row.head_dims} == dict(dims)


def test_the_frame_of_a_ranking_is_its_order() -> None:
    frame = frames.ranking(RANKING, CIRCUIT)
    assert frame["score"].is_monotonic_decreasing
    assert len(frame) == SPACE.units
    assert set(frame.loc[frame["kept"], "node"]) == {
        *CIRCUIT.nodes(Granularity.HEAD_DIM),
        *CIRCUIT.nodes(Granularity.MLP_NEURON),
    }
    for row in frame.itertuples():
        node = SPACE.parse(row.node)
        assert (node.granularity, node.layer, node.index) == (row.granularity, row.layer, row.index)
        searched = Granularity.HEAD if node.granularity is Granularity.HEAD_DIM else node.granularity
        index = row.index // SPACE.head_dim if searched is Granularity.HEAD else row.index
        assert row.score == pytest.approx(float(RANKING.scores[searched][row.layer, index]))


def test_units_are_ranked_before_what_counts_in_no_size() -> None:
    out_dims = torch.full(SPACE.shape(Granularity.MLP_OUT_DIM), 1e3)
    frame = frames.ranking(Ranking(SPACE, {**RANKING.scores, Granularity.MLP_OUT_DIM: out_dims}))
    assert frame.head(SPACE.units).equals(frames.ranking(RANKING))
    assert set(frame["granularity"].iloc[SPACE.units :]) == {"mlp_out_dim"}


def test_the_frame_of_sizes_is_what_the_best_nodes_are() -> None:
    best = frames.ranking(RANKING)
    for size, row in frames.sizes(RANKING, (0.1, 0.5)).iterrows():
        first = best.head(int(size * SPACE.units))
        assert row["mlp_neuron"] <= (first["granularity"] == "mlp_neuron").sum()
        assert 0.6 * size * SPACE.units < row["mlp_neuron"] + row["head_dim"] <= size * SPACE.units
        cut = Circuit(SPACE, RANKING.cut(RANKING.threshold_at(size)))
        assert row["parameters"] == cut.parameters.kept


def test_the_frame_of_a_card_has_all_its_metrics(run: RunFolder) -> None:
    card = run.read_json("card.json")
    frame = frames.card(Card(card)).set_index(["section", "metric"])
    assert frame.equals(frames.card(card).set_index(["section", "metric"]))
    assert {section for section, _ in frame.index} == {"test", "full", "empty", "complement", "validation", "random"}
    for (section, metric), row in frame.iterrows():
        value = card[section][metric]
        assert math.isnan(row["value"]) if value is None else row["value"] == value
    low, high = card["intervals"]["test"]["kl"]
    assert frame.loc[("test", "kl"), ["low", "high"]].tolist() == [low, high]


def test_frames_of_a_comparison_hold_what_json_says(run: RunFolder, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run.path, tmp_path / "other"))
    found = compared([str(run.path), str(other)])
    runs, overlap = frames.runs(found), frames.overlap(found)
    assert list(runs.columns) == [str(run.path), str(other)]
    card = run.read_json("card.json")
    assert runs.loc["test.kl"].tolist() == [card["test"]["kl"]] * 2
    assert runs.loc["kept.head"].tolist() == [card["kept"]["head"]["kept"]] * 2
    assert (overlap["jaccard"].dropna() == 1).all()
    assert set(overlap["granularity"]) >= {"head", "head_dim", "mlp_neuron"}


# --- figures -------------------------------------------------------------------------------------------------------------


def test_figures_of_a_run_are_written_with_their_data(run: RunFolder, tmp_path: Path, capsys) -> None:
    output = call(capsys, "figures", run.path, "--out", tmp_path / "figures", "--format", "svg")
    written = [Path(line) for line in output.out.splitlines()]
    assert [path.name for path in written] == ["map.svg", "controls.svg", "sizes.svg", "course.svg"]
    texts = {path.stem: "".join(ElementTree.parse(path).getroot().itertext()) for path in written}
    for name, words in {
        "map": ("layer", "head", "kept share"),
        "controls": ("circuit", "complement", "random", "KL, nats", "accuracy"),
        "sizes": ("KL to the full model, nats", "share of units kept"),
        "course": ("step", "KL, nats"),
    }.items():
        assert all(word in texts[name] for word in words)
    data = {path.stem: pd.read_csv(path.with_suffix(".csv")) for path in written}
    circuit, _ = run.read_circuit()
    assert data["map"]["head_dims"].sum() == circuit.counts[Granularity.HEAD_DIM][0]
    assert data["course"]["kl"].tolist() == [entry["kl"] for entry in run.read_history()]
    card = run.read_json("card.json")
    controls = data["controls"].set_index(["section", "metric"])["value"]
    assert controls["random", "kl"] == card["random"]["kl"]
    assert data["sizes"]["kl"].tolist() == [point["kl"] for point in run.read_json("exhibits.json")["curve"]]


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    heads, layers = frames.heads(CIRCUIT), frames.layers(CIRCUIT)
    for kind in figures.FORMATS:
        for name in ("a", "b"):
            figures.save(figures.circuit_map(heads, layers, SPACE.neurons), heads, tmp_path / f"{name}.{kind}")
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert pd.read_csv(tmp_path / "a.csv").equals(heads)


def test_figures_are_refused_in_one_line(run: RunFolder, tmp_path: Path, capsys) -> None:
    heads = frames.heads(CIRCUIT)
    drawn = figures.circuit_map(heads, frames.layers(CIRCUIT), SPACE.neurons)
    with pytest.raises(
        ConfigError, match=r"^figure: found the name 'map.png', expected one that ends in .svg or .pdf$"
    ):
        figures.save(drawn, heads, tmp_path / "map.png")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert complaint(capsys, "figures", run.path, "--out", tmp_path / "file").startswith(
        f"{tmp_path}/file: cannot be written (File exists), expected a folder for figures"
    )
    assert complaint(capsys, "figures", tmp_path, "--out", tmp_path / "x").startswith(
        f"{tmp_path}: found no config.json"
    )


def test_figures_are_drawn_without_what_could_not_be_computed() -> None:
    point = {"size": 0.1, "kl": 0.5, "accuracy": 1.0, "faithfulness": None}
    rows = [{**point, "method": "nested", "asked": size, "size": size} for size in (0.1, 0.2)]
    for figure in (
        figures.curve(frames.curve(rows), 0.1),
        figures.sweep(frames.sweep({"points": rows}), {"nested": 0.1}, "a title"),
    ):
        kl, accuracy, faithfulness = (
            {float(y) for line in axes.lines for y in line.get_ydata()} for axes in figure.axes
        )
        assert 0.5 in kl
        assert 1.0 in accuracy
        assert faithfulness <= {0.0, 1.0}  # the lines that are always there


# --- notebooks -----------------------------------------------------------------------------------------------------------


def tables(html: str) -> list[list[list[str]]]:
    """The cells of every table."""
    root = ElementTree.fromstring(f"<div>{html}</div>")
    return [
        [["".join(cell.itertext()) for cell in row if cell.tag in ("th", "td")] for row in table.iter("tr")]
        for table in root.iter("table")
    ]


def test_a_circuit_is_drawn_and_counted() -> None:
    html = CIRCUIT._repr_html_()
    (rows,) = tables(html)
    kept = frames.kept(CIRCUIT)
    for name, count, total, _ in rows[1:]:
        if name in kept.index:
            assert [int(count.replace(",", "")), int(total.replace(",", ""))] == kept.loc[
                name, ["kept", "total"]
            ].tolist()
    tips = re.findall(r"layer (\d+), head (\d+): (\d+) of (\d+) dims", html)
    heads = frames.heads(CIRCUIT)
    assert [tuple(map(int, tip)) for tip in tips] == [
        (row.layer, row.head, row.head_dims, SPACE.head_dim) for row in heads.itertuples()
    ]
    assert "tensor" not in repr(CIRCUIT)
    assert f"{100 * CIRCUIT.size:.1f} %" in repr(CIRCUIT)


def test_a_ranking_is_shown_at_several_sizes() -> None:
    (rows,) = tables(RANKING._repr_html_())
    expected = frames.sizes(RANKING, SIZES_SHOWN)
    assert [row[0] for row in rows[1:]] == [f"{size:.0%}" for size in SIZES_SHOWN]
    assert [[int(cell.replace(",", "")) for cell in row[2:]] for row in rows[1:]] == expected[
        ["head", "head_dim", "mlp_neuron"]
    ].to_numpy().tolist()
    assert "tensor" not in repr(RANKING)
    assert isinstance(RANKING, Ranking)


def test_a_card_is_shown_with_its_controls(run: RunFolder) -> None:
    content = run.read_json("card.json")
    (rows,) = tables(Card(content)._repr_html_())
    assert rows[0] == ["", "circuit", "95 % interval", "full", "empty", "complement", "random"]
    kl = next(row for row in rows if row[0] == "KL, nats")
    assert kl[1] == f"{content['test']['kl']:.3f}"
    assert kl[-1] == f"{content['random']['kl']:.3f}"
    said = {"verdicts": {"sufficiency": "<b>It</b> does."}}
    assert "&lt;b&gt;It&lt;/b&gt; does." in Card(content | said)._repr_html_()


# --- pages ---------------------------------------------------------------------------------------------------------------


def test_a_comparison_is_a_page_too(run: RunFolder, tmp_path: Path, capsys) -> None:
    other = Path(shutil.copytree(run.path, tmp_path / "<b>other"))
    path = tmp_path / "compared.html"
    assert call(capsys, "compare", run.path, other, "--html", path).status == 0
    content = path.read_text()
    assert content.count("<svg") == 2
    assert "<b>other" not in content
    assert "&lt;b&gt;other" in content
    assert f"{run.read_json('card.json')['test']['kl']:.3f}" in content
    assert not re.search(r"(src|href)=", content)
    assert complaint(capsys, "compare", run.path, other, "--html", tmp_path / "no/where.html").startswith(
        f"{tmp_path}/no/where.html: cannot be written (No such file or directory)"
    )


def test_a_new_card_renews_the_report(run: RunFolder, tmp_path: Path, capsys) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))
    before = (copy / "report.html").read_text()
    card = json.loads((copy / "card.json").read_text())
    card["test"]["kl"] = 7.125
    (copy / "card.json").write_text(json.dumps(card))
    exhibits = (copy / "exhibits.json").read_bytes()
    assert "7.125" not in before
    (copy / "report.html").unlink()
    assert call(capsys, "evaluate", copy, "--again").status == 0
    assert (copy / "report.html").read_text() == before.replace(str(run.path), str(copy))
    assert (copy / "exhibits.json").read_bytes() == exhibits
