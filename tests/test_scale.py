"""What `docs/scale.md` rests on: formulas against what torch counts, models without content against models with, its tables."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from circuitsieve.models.subject import Subject
from cost_model import H100, work
from counting import SIDES, counts, weightless
from families import TINY, config_of, random_model
from predictions import Setting, Shape, predict, shapes_of
from scale_page import with_tables

ROOT = Path(__file__).parents[1]
PAIRS, TOKENS = 3, 7


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return dict(json.loads((ROOT / "benchmarks/results/scale.json").read_text("utf-8")))


@pytest.fixture(scope="module")
def shapes(results: dict[str, Any]) -> dict[tuple[str, int], Shape]:
    return {(shape.name, shape.tokens): shape for shape in shapes_of(results["shapes"]["rows"])}


def model_of(family: str) -> PreTrainedModel:
    return random_model(config_of(family, TINY))


@pytest.mark.parametrize(
    "family", ["llama", "gpt_neox", "gemma2", "opt"]
)  # gated, parallel, with norms behind, with biases
def test_products_are_those_of_the_formulas(family: str) -> None:
    model = model_of(family)
    found, _ = counts(model, PAIRS, TOKENS)
    expected = work(Subject.of(model), PAIRS, TOKENS)
    assert {side: one.flops for side, one in found.items()} == {side: expected.of(side) for side in found}
    assert set(found) == {"reference", *SIDES}


@pytest.mark.slow
def test_a_model_without_content_counts_as_one_with() -> None:
    """But for the few operations by which transformers looks for packed prompts."""
    expected, footprint = counts(model_of("llama"), PAIRS, TOKENS)
    with weightless():
        found, same = counts(model_of("llama"), PAIRS, TOKENS)
    assert same == footprint
    for side, one in found.items():
        assert one.flops == expected[side].flops
        assert one.peak == pytest.approx(expected[side].peak, rel=0.01)
        assert one.moved == pytest.approx(expected[side].moved, rel=0.01)
        assert 0 <= expected[side].launches - one.launches < 20


def test_the_page_has_the_tables_of_the_results(results: dict[str, Any]) -> None:
    page = (ROOT / "docs/scale.md").read_text("utf-8")
    assert with_tables(page, results) == page


@pytest.mark.parametrize(
    ("setting", "tokens", "side"),
    [
        (Setting("70B", H100), 20, None),  # 141 GB of weights
        (Setting("70B", H100, 2, "spread"), 20, None),  # 144 GB of room, and a step takes 3
        (Setting("70B", H100, 3, "spread"), 20, "computed anew"),
        (Setting("70B", H100, 3, "spread"), 512, None),
        (Setting("70B", H100, 4, "spread"), 512, "layers again"),
        (Setting("70B", H100, 1, "offloaded"), 512, None),  # a step alone takes 76 GB
        (Setting("8B", H100, 8, "shared"), 20, "kept"),
    ],
    ids=str,
)
def test_what_fits_where(
    setting: Setting, tokens: int, side: str | None, results: dict[str, Any], shapes: dict[tuple[str, int], Shape]
) -> None:
    found = predict(shapes[setting.shape, tokens], setting, results["passes"]["rows"], results["host"]["rows"]["8B"])
    assert (found and found.side) == side


def test_fetching_weights_takes_the_link_three_times_a_step(
    results: dict[str, Any], shapes: dict[tuple[str, int], Shape]
) -> None:
    """By hand: 141.1 GB and a layer of it, a step of 3.0 GB, 72 GB of room; 40 GB/s."""
    passes, host = results["passes"]["rows"], results["host"]["rows"]["70B"]
    shape = shapes["70B", 20]
    offloaded = predict(shape, Setting("70B", H100, 1, "offloaded"), passes, host)
    assert offloaded is not None
    computed = shape.whole.counts["layers again"].flops / (0.5 * H100.flops)
    assert offloaded.step[0] - computed == pytest.approx(3 * (141.1 * 81 / 80 + 3.0 - 72) / 40, rel=0.01)
