"""Folders of models, damaged in any way or made to do harm: nothing in them is run, followed or believed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from circuitsieve.errors import ModelError, UnsupportedModel
from circuitsieve.models.checkpoint import ABOUT, NODES, WEIGHTS, save_compact
from circuitsieve.models.loading import load_model
from circuitsieve.models.surgery import compact
from circuitsieve.vocabulary import Ablation
from damage import assert_one_line_at_most, contents, damaged, examples
from tiny import tiny_folder, tiny_gpt2, word_tokenizer
from tiny_cli import quiet_and_offline
from tiny_runs import random_found

FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, circuit = tmp_path_factory.mktemp("compact"), random_found(Ablation.MEAN).circuit
    save_compact(folder, compact(tiny_gpt2(), circuit), word_tokenizer(), circuit, {})
    return folder


def assert_damage_is_named(folder: Path, name: str, data: st.DataObject) -> None:
    path = folder / name
    valid, content = path.read_bytes(), data.draw(damaged(path))
    path.write_bytes(content)
    before = contents(folder)
    try:
        with quiet_and_offline():
            assert_one_line_at_most(lambda: load_model(str(folder)), folder)
        assert contents(folder) == before
    finally:
        path.write_bytes(valid)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FILES, "model.safetensors"])
@examples(25)
@given(data=st.data())
def test_damaged_checkpoints(stock: Path, name: str, data: st.DataObject):
    assert_damage_is_named(stock, name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FILES, ABOUT, NODES, WEIGHTS])
@examples(20)
@given(data=st.data())
def test_damaged_compact_models(smaller: Path, name: str, data: st.DataObject):
    assert_damage_is_named(smaller, name, data)


# --- made to do harm ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(stock: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(stock, tmp_path / "model"))


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(folder))
    assert str(caught.value).splitlines() == [str(caught.value)]
    return str(caught.value)


class Harmful:
    """What does something where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


def test_pickled_weights_are_not_opened(folder: Path, tmp_path: Path):
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Harmful(tmp_path / "ran")}, folder / "pytorch_model.bin")
    assert refusal(folder) == (
        f"model {folder}: found pickled weights (pytorch_model.bin), which may run any code, expected safetensors; save the "
        "model again with transformers 5"
    )
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def own_code(folder: Path, tmp_path: Path) -> Path:
    """The file that shows that code of the folder has been run."""
    mark = tmp_path / "ran"
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Own: ...\n")
    return mark


def test_code_of_a_model_is_not_run(folder: Path, own_code: Path):
    edit(
        folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    )
    assert "contains custom code" in refusal(folder)
    assert not own_code.exists()


def test_code_beside_a_known_family_and_its_tokenizer_is_not_run(folder: Path, own_code: Path):
    """Phi-3's checkpoints carry such code: the family is read by transformers' own, as the same family is without it."""
    edit(folder / "config.json", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"})
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", "own.Own"]})
    assert type(load_model(str(folder)).model).__module__.startswith("transformers.models.gpt2.")
    assert not own_code.exists()


@pytest.mark.parametrize(
    "named", ["../elsewhere/weights.safetensors", "/etc/hosts", "", "..", 3, ["model.safetensors"]]
)
def test_an_index_names_only_files_beside_it(folder: Path, tmp_path: Path, named: object):
    (tmp_path / "elsewhere").mkdir()
    weights = (folder / "model.safetensors").rename(tmp_path / "elsewhere/weights.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), named)}))
    assert refusal(folder) == f"{index}: found the file {named!r}, expected the name of a safetensors file beside it"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', "[" * 10**5])
def test_an_index_of_any_content(folder: Path, content: str):
    index = folder / "model.safetensors.index.json"
    index.write_text(content)
    assert refusal(folder).startswith(f"{index}: found ")


def test_weights_in_several_files(folder: Path):
    whole = load_model(str(folder)).model
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {name: f"model-{place % 2}.safetensors" for place, name in enumerate(tensors)}
    for shard in set(shards.values()):
        own = {name: tensor for name, tensor in tensors.items() if shards[name] == shard}
        save_file(own, folder / shard, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    again = load_model(str(folder)).model
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_an_adapter_is_not_followed_to_its_model(folder: Path):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "../elsewhere"}')
    with pytest.raises(UnsupportedModel, match=r"found an adapter \(adapter_config\.json\)"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "claim",
    [{"vocab_size": 10**12}, {"n_positions": 10**12}, {"n_inner": 10**12}, {"n_layer": 10**12}, {"n_embd": 10**12}],
)
def test_a_configuration_is_not_believed_before_the_weights_are_there(folder: Path, claim: dict[str, int]):
    edit(folder / "config.json", **claim)
    assert "bytes of weights, expected the two files of one model" in refusal(folder)


@pytest.mark.parametrize("claim", [{"n_layer": 10**12}, {"n_embd": 10**12}])
def test_nor_is_that_of_a_compact_model(smaller: Path, tmp_path: Path, claim: dict[str, int]):
    folder = Path(shutil.copytree(smaller, tmp_path / "model"))
    edit(folder / "config.json", **claim)
    assert "bytes of weights, expected the two files of one model" in refusal(folder)
