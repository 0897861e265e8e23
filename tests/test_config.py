"""The configuration: round trips, presets, and one sentence for everything that can be wrong with it."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsieve.config import DiscoveryConfig
from circuitsieve.errors import ConfigError
from circuitsieve.presets import load_config
from circuitsieve.vocabulary import Granularity
from damage import examples

NAN, INF = float("nan"), float("inf")


def complaint(values: dict, source: str = "configuration") -> str:
    with pytest.raises(ConfigError) as caught:
        DiscoveryConfig.from_dict(values, source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_setting_survives_json():
    config = DiscoveryConfig(
        method="hard_concrete",
        min_faithfulness=0.9,
        granularities=("head", "embed"),
        penalty={"head": 2.0},
        hinge=4.0,
        init=(1.0, 2.0),
        warmup=3,
    )
    values = json.loads(json.dumps(config.to_dict()))
    assert set(values) == {item.name for item in fields(DiscoveryConfig)}
    assert DiscoveryConfig.from_dict(values) == config
    assert DiscoveryConfig.from_dict({}) == DiscoveryConfig()


def test_budget_is_a_kl_of_one_tenth_unless_another_is_given():
    assert DiscoveryConfig().max_kl == 0.1
    assert DiscoveryConfig(min_faithfulness=0.9).max_kl is None
    assert DiscoveryConfig(method="hard_concrete", pressure=2.0).max_kl is None
    assert DiscoveryConfig(size=0.1).max_kl is None


def test_new_budget_takes_the_place_of_the_old_one():
    config = DiscoveryConfig(method="hard_concrete", pressure=2.0, steps=7)
    assert config.replaced(steps=8) == DiscoveryConfig(method="hard_concrete", pressure=2.0, steps=8)
    assert config.replaced(max_kl=0.5) == DiscoveryConfig("hard_concrete", max_kl=0.5, steps=7)
    with pytest.raises(ConfigError, match="budget: found max_kl and min_faithfulness, expected one of them"):
        config.replaced(max_kl=0.5, min_faithfulness=0.9)
    sized = DiscoveryConfig(size=0.2, size_by="parameters")
    assert sized.replaced(size=0.1) == sized.replaced(size=0.1, size_by="parameters")
    assert sized.replaced(max_kl=0.5) == DiscoveryConfig(max_kl=0.5, size_by="parameters")
    assert sized.replaced(size=0.1, size_by="units") == DiscoveryConfig(size=0.1)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"stepz": 3}, "setting: found 'stepz', expected one of method, max_kl, min_faithfulness"),
        ({"max_kl": 0.1, "pressure": 1.0}, "budget: found max_kl and pressure, expected one of them"),
        (
            {"size_by": "parameters", "pressure": 1.0, "method": "hard_concrete"},
            "size_by: found parameters with a fixed pressure, which no size decides, expected a budget",
        ),
        ({"size_by": "neurons", "size": 0.1}, "size_by: found 'neurons', expected one of units, parameters"),
        ({"granularities": []}, "granularities: found none, expected at least one of layer, attn_block"),
        ({"granularities": ["heads"]}, "granularities: found 'heads', expected one of layer,"),
        (
            {"method": "nested", "granularities": ["embed"]},
            "method nested: found no granularity with units to rank, expected one",
        ),
        (
            {"method": "attribution", "granularities": ["embed", "attn_out_dim"]},
            "method attribution: found no granularity with units to rank, expected one of layer, attn_block",
        ),
        (
            {"method": "hard_concrete", "ranking_share": 0.0, "shrinking": "on"},
            "shrinking: found on with gates that start without a ranking, which leave out nothing, expected a ranking_share",
        ),
        (
            {"method": "hard_concrete", "size": 0.1, "granularities": ["mlp_out_dim"]},
            "size: found no granularity whose nodes count in it, expected one of",
        ),
        ({"granularities": ["neuron"]}, "did you mean 'mlp_neuron'?"),
        ({"penalty": {"haed": 1}}, "penalty: found 'haed', expected one of layer,"),
        ({"penalty": {"embed": 1}}, "penalty: found a price for embed, which is not among the granularities searched"),
        (
            {"ablation": "none"},
            "ablation: found 'none', expected one of corrupted, mean, mean_positional, zero, resample",
        ),
        (
            {"method": "nestled"},
            "method: found 'nestled', expected one of hard_concrete, nested, attribution, ",
        ),
        (
            {"method": "nested", "ranking_share": 0.0},
            "method nested: found no steps that rank, expected a ranking_share above 0",
        ),
        ({"method": "nested", "pressure": 1.0}, "method nested: found a fixed pressure, expected method hard_concrete"),
        (
            {"method": "attribution", "pressure": 1.0},
            "method attribution: found a fixed pressure, expected method hard_concrete",
        ),
        (
            {"penalty": {"head": 1.0}},
            "method nested: found penalty {'head': 1.0}, which it has no use for, expected method",
        ),
        (
            {"method": "random", "warmup": 5},
            "method random: found warmup 5, which it has no use for, expected method hard",
        ),
        (
            {"score_sign": "signed"},
            "method nested: found score_sign 'signed', which it has no use for, expected method attribution or "
            "integrated_gradients or activation_gradient with it, or no score_sign",
        ),
        ({"method": "attribution", "lr": 0.3}, "method attribution: found lr 0.3, which it has no use for"),
        (
            {"method": "random", "steps": 100},
            "method random: found steps 100, which it has no use for, expected method hard_concrete or nested with it",
        ),
        (
            {"method": "attribution", "integration_points": 8},
            "found integration_points 8, which it has no use for, expected method integrated_gradients with it",
        ),
        ({"score_sign": "positive"}, "score_sign: found 'positive', expected one of absolute, signed"),
        ({"integration_points": 0}, "integration_points: found 0, expected a whole number of at least 1"),
        ({"sampling": "warm"}, "sampling: found 'warm', expected one of "),
        ({"lr_schedule": "cos"}, "lr_schedule: found 'cos', expected one of constant, linear, cosine"),
        ({"init": [3.5, 2.5]}, "init: found (3.5, 2.5), expected two finite numbers, the lower one first"),
    ],
)
def test_unknown_and_contradicting_settings(values, sentence):
    assert sentence in complaint(values)


WHOLE, ABOVE, NOT_BELOW = "a whole number", "a finite number above 0", "a finite number of at least 0"


@pytest.mark.parametrize(
    ("setting", "bad", "expected"),
    [
        *(("steps", bad, f"{WHOLE} of at least 1") for bad in (0, -3)),
        *(("batch_size", bad, f"{WHOLE} of at least 1") for bad in (0, -1)),
        *(("warmup", -1, f"{WHOLE} of at least 0"), ("seed", -1, f"{WHOLE} of at least 0")),
        *(
            (setting, bad, WHOLE)
            for setting in ("steps", "batch_size", "warmup", "seed")
            for bad in (1.5, 2.0, NAN, INF)
        ),
        *(
            (setting, bad, ABOVE)
            for setting in ("max_kl", "pressure", "lr", "ranking_lr", "clip")
            for bad in (0, -1, NAN, INF)
        ),
        *(("max_accuracy_drop", bad, ABOVE) for bad in (0, -0.1, NAN, INF)),
        *((setting, bad, NOT_BELOW) for setting in ("depth_factor", "lr_end") for bad in (-1, NAN, INF)),
        *(
            (setting, bad, "a number between 0 and 1")
            for setting in ("min_faithfulness", "size")
            for bad in (0, 1, -0.5, 1.5, NAN)
        ),
        *(("ranking_share", bad, "a number of at least 0 and below 1") for bad in (-0.1, 1, NAN)),
        *(
            ("ranking_sizes", bad, "two")
            for bad in ([0.5], [0.5, 0.1], [0, 0.5], [0.1, 1.1], [NAN, 0.5], [0.1, 0.2, 0.3])
        ),
        *(("hinge", bad, "a finite number") for bad in (NAN, INF, -INF)),
        *(("init", bad, "two") for bad in ([1.0], [2.5, NAN], [-INF, 1.0], [1.0, INF], [1.0, 2.0, 3.0])),
    ],
)
def test_bad_numbers(setting, bad, expected):
    message = complaint({setting: bad})
    assert setting in message
    assert f"expected {expected}" in message


@pytest.mark.parametrize("price", [-1, NAN, INF])
def test_bad_prices(price):
    assert f"penalty head: found {float(price)}, expected {NOT_BELOW}" in complaint({"penalty": {"head": price}})


@pytest.mark.parametrize("setting", [item.name for item in fields(DiscoveryConfig)])
@pytest.mark.parametrize("bad", [True, "x", [], {"head": "x"}, [["x"]], [None]], ids=repr)
def test_wrong_types_name_the_setting(setting, bad):
    assert setting in complaint({setting: bad})


def test_source_is_named():
    assert complaint({"stepz": 3}, "config my.json").startswith("config my.json: setting: found 'stepz'")
    assert complaint({"lr": "fast"}, "config my.json").startswith("config my.json: lr: found 'fast', expected a")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(list(map(str, Granularity))),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("head"), inner, max_size=3)
    ),
    max_leaves=4,
)
SETTINGS = st.dictionaries(st.sampled_from([item.name for item in fields(DiscoveryConfig)]) | st.text(max_size=3), JSON)


@examples(100)
@given(SETTINGS)
def test_any_object_gives_a_sound_configuration_or_a_config_error(values):
    try:
        config = DiscoveryConfig.from_dict(values)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017 - an error is one of two right outcomes
    else:
        assert DiscoveryConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config
        assert range(config.steps * config.batch_size)
        assert sum(map(config.price, config.searched)) + config.lr + config.init[0] + (config.hinge or 0) < INF


# --- files and presets --------------------------------------------------------------------------------------------------


def test_preset_of_the_paper_holds_its_constants():
    """arXiv 2512.10903: hinge 4; lambda .95 of the loss shared by six granularities, .05 for the KL: 19 / 6."""
    config = load_config("paper-ioi")
    assert config.searched == ("attn_block", "mlp_block", "head", "head_dim", "mlp_neuron", "mlp_out_dim")
    assert (config.steps, config.batch_size, config.seed, config.warmup) == (6500, 32, 42, 1000)
    assert (config.lr, config.lr_schedule, config.lr_end, config.clip) == (0.03, "cosine", 1e-4, 1.0)
    assert (config.sampling, config.hinge, config.init) == ("straight_through", 4.0, (2.5, 3.5))
    assert config.pressure == pytest.approx(19 / 6)
    assert {config.price(granularity) for granularity in config.searched} == {1.0}
    assert (config.max_kl, config.min_faithfulness, config.ablation) == (None, None, "corrupted")


@pytest.mark.parametrize(
    ("name", "hinge", "batch_size", "lr", "epochs"),
    [
        ("paper-ioi", 4.0, 32, 0.03, 500),
        ("paper-gender-pronoun", 0.1, 64, 0.3, 500),
        ("paper-greater-than", None, 16, 0.05, 250),
    ],
)
def test_presets_of_the_paper_differ_as_its_tasks_do(name, hinge, batch_size, lr, epochs):
    """Its runs are counted in epochs of 150 to 400 training pairs."""
    config = load_config(name)
    assert (config.hinge, config.batch_size, config.lr) == (hinge, batch_size, lr)
    assert epochs * 150 / batch_size <= config.steps <= epochs * (400 / batch_size + 1)
    same = {"hinge": 4.0, "batch_size": 32, "lr": 0.03, "steps": 6500}
    assert replace(config, **same) == load_config("paper-ioi")


def test_file_of_settings(tmp_path):
    path = tmp_path / "my.json"
    path.write_text('{"steps": 7, "granularities": ["head"]}')
    assert load_config(str(path)) == DiscoveryConfig(steps=7, granularities=("head",))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "found malformed JSON (Expecting property name enclosed in double quotes"),
        (b"[" * 100_000, "found malformed JSON"),
        (b"\xff\xfe", "found malformed JSON"),
        (b"[3]", "found list, expected an object of settings"),
        (b'{"steps": 0}', "steps: found 0, expected a whole number of at least 1"),
        (b'{"steps": "many"}', "steps: found 'many', expected a"),
    ],
)
def test_malformed_files_are_named(tmp_path, content, sentence):
    path = tmp_path / "my.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nope", "/", "x" * 5000], ids=["unknown", "folder", "no possible path"])
def test_missing_file_names_the_presets(name):
    with pytest.raises(
        ConfigError, match=f"config: found no file '{name}' .*, expected a JSON file or one of .*paper-ioi"
    ):
        load_config(name)


def test_every_preset_loads():
    import circuitsieve

    presets = sorted((Path(circuitsieve.__file__).parent / "assets/presets").glob("*.json"))
    assert presets
    for preset in presets:
        assert load_config(preset.stem) == load_config(str(preset))


@pytest.mark.parametrize("size", [1e-4, 0.02, 0.3, 0.7, 0.99])
def test_nodes_are_ranked_at_sizes_around_the_one_asked_for(size):
    low, high = DiscoveryConfig(size=size).sizes_ranked()
    assert 0 < low < size < high < 1
    assert DiscoveryConfig(size=size, ranking_sizes=(0.1, 0.2)).sizes_ranked() == (0.1, 0.2)
    assert DiscoveryConfig().sizes_ranked() == DiscoveryConfig(max_kl=size).sizes_ranked()


def test_out_dims_are_searched_by_nested_and_by_gates_under_a_size_unless_told_otherwise() -> None:
    units = ("attn_block", "mlp_block", "head", "head_dim", "mlp_neuron")
    for method in ("hard_concrete", "integrated_gradients", "random"):
        assert DiscoveryConfig(method).searched == units
    for method in ("integrated_gradients", "random"):
        assert DiscoveryConfig(method, size=0.1).searched == units
    with_out_dims = (*units, "attn_out_dim", "mlp_out_dim")
    assert DiscoveryConfig("nested").searched == DiscoveryConfig("nested", size=0.1).searched == with_out_dims
    gates = DiscoveryConfig("hard_concrete", size=0.1)
    assert gates.searched == with_out_dims
    assert gates.replaced(granularities=units).searched == gates.replaced(max_kl=0.1).searched == units


def test_a_new_method_has_no_old_settings_that_it_has_no_use_for() -> None:
    signed = DiscoveryConfig("integrated_gradients", score_sign="signed", integration_points=8, seed=2)
    assert signed.replaced(method="attribution") == DiscoveryConfig("attribution", score_sign="signed", seed=2)
    assert signed.replaced(method="nested", lr=0.1) == DiscoveryConfig("nested", lr=0.1, seed=2)
    assert DiscoveryConfig(lr=0.1).replaced(method="random") == DiscoveryConfig("random")


def test_a_method_without_gates_drops_their_settings() -> None:
    gates = DiscoveryConfig("hard_concrete", penalty={"head": 2.0}, warmup=5, steps=100)
    assert gates.replaced(method="nested") == DiscoveryConfig("nested", steps=100)
    assert gates.replaced(method="random") == DiscoveryConfig("random")
    assert gates.replaced(size=0.1).penalty == {"head": 2.0}
    assert gates.replaced(method="hard_concrete") == gates
    with pytest.raises(ConfigError, match="found warmup 6"):
        gates.replaced(method="nested", warmup=6)


def test_nested_ranks_however_few_steps_there_are() -> None:
    assert [DiscoveryConfig("nested", steps=steps).ranking_steps for steps in (1, 2, 100)] == [1, 1, 20]
    assert DiscoveryConfig("hard_concrete", steps=1).ranking_steps == 0


def test_nothing_is_ranked_where_no_units_are_searched() -> None:
    config = DiscoveryConfig(method="hard_concrete", steps=100, ranking_share=0.3)
    assert config.replaced(granularities=("mlp_out_dim", "embed")).ranking_steps == 0
    assert config.replaced(granularities=("mlp_out_dim", "layer")).ranking_steps == 30
