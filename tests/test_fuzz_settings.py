"""Files that are no part of a run, damaged in any way: configurations, submissions to MIB, points of a sweep."""

import json
from dataclasses import asdict, fields
from importlib import resources
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsieve.circuits.mib import IMPORTANCES, read_mib
from circuitsieve.config import DiscoveryConfig
from circuitsieve.disk import files
from circuitsieve.errors import ConfigError
from circuitsieve.presets import load_config
from circuitsieve.settings import bytes_of
from circuitsieve.workflow.exporting import export_run
from circuitsieve.workflow.points import Point, kept_points, write_tables
from damage import VALUES, assert_one_line_at_most, contents, damaged, examples
from tiny_runs import SUBJECT, random_found, saved

PRESETS = [path.name for path in Path(str(resources.files("circuitsieve") / "assets/presets")).iterdir()]
SETTINGS = [field.name for field in fields(DiscoveryConfig)]


# --- configurations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@examples(40)
@given(data=st.data())
def test_configurations(tmp_path_factory: pytest.TempPathFactory, preset: str, data: st.DataObject):
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_bytes((resources.files("circuitsieve") / "assets/presets" / preset).read_bytes())
    content = data.draw(damaged(path))
    path.write_bytes(content)
    assert_one_line_at_most(lambda: load_config(str(path)), path, *SETTINGS, "budget", "method")
    assert path.read_bytes() == content


@examples(150)
@given(name=st.sampled_from(SETTINGS), value=VALUES)
def test_settings_of_any_value(name: str, value: object):
    """As they stand in a run's config.json: what is taken has the type that the setting has."""
    values = json.loads(json.dumps({name: value}))
    found: list[DiscoveryConfig] = []
    if (
        assert_one_line_at_most(lambda: found.append(DiscoveryConfig.from_dict(values)), *SETTINGS, "budget", "method")
        is None
    ):
        hint = get_type_hints(DiscoveryConfig)[name]
        own = getattr(found[0], name)
        assert isinstance(own, hint) if isinstance(hint, type) else own is None or isinstance(own, float | tuple | dict)


@pytest.mark.parametrize("name", ["steps", "batch_size", "integration_points", "warmup", "seed", "ranking_looks"])
def test_absurd_numbers_are_refused_before_anything_is_made_of_them(name: str):
    with pytest.raises(
        ConfigError, match=rf"^{name}: found 1000000000000000000000, expected a whole number of at most "
    ):
        DiscoveryConfig(**{name: 10**21})


@pytest.mark.parametrize("values", [None, [], 3, "steps", [["steps", 3]]])
def test_settings_are_an_object(values: object):
    with pytest.raises(ConfigError, match=r"^here: found .*, expected an object of settings$"):
        DiscoveryConfig.from_dict(values, "here")


@examples(100)
@given(amount=st.text(max_size=6) | st.from_regex(r"\A[0-9.e]{1,5}(GB|mb)\Z"))
def test_amounts_of_memory(amount: str):
    assert_one_line_at_most(lambda: bytes_of("memory", amount), "memory: found ")


def test_amounts_beyond_all_numbers():
    with pytest.raises(ConfigError, match=r"^memory: found '1e308GB', expected an amount such as 8GB or 500MB$"):
        bytes_of("memory", "1e308GB")


# --- submissions to MIB -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("mib")
    folder = saved(home / "run", random_found())
    folder.write_json("config.json", {"model": {"family": "gpt2"}})
    export_run(str(home / "run"), home / "submission", "mib")
    return home / "submission"


@examples(60)
@given(data=st.data())
def test_submissions(submission: Path, data: st.DataObject):
    path = submission / IMPORTANCES
    valid = path.read_bytes()
    content = data.draw(damaged(path))
    path.write_bytes(content)
    try:
        assert_one_line_at_most(lambda: read_mib(submission, SUBJECT.space), path)
        assert path.read_bytes() == content
    finally:
        path.write_bytes(valid)


# --- points of a sweep --------------------------------------------------------------------------------------------------

POINT = Point("nested", 0, 0.5, 0.5, 0.4, 2, 8, 12, 0.1, 0.05, 0.2, 1.0, 1.0, 0.9, None, 0.1, 0.1, 3.0)
KEY = {"config": {"size": 0.5}}


@examples(40)
@given(data=st.data())
def test_points_of_a_sweep(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """What is read again can be told and drawn like what has been measured; anything else counts as nothing."""
    folder = tmp_path_factory.mktemp("sweep")
    path = folder / "point.json"
    files.write_json(path, {"key": KEY, "points": [asdict(POINT)]})
    assert kept_points(path, KEY) == [POINT]
    path.write_bytes(data.draw(damaged(path)))
    before = contents(folder)
    found = kept_points(path, KEY)
    assert contents(folder) == before
    if found:
        write_tables(folder, found, "a sweep")
