"""Searches that are stopped at any step and go on: they end with the bits of one that was never stopped."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.tokenising import Pairs
from circuitsieve.errors import RunError
from circuitsieve.runs.provenance import describe_model
from circuitsieve.search import training
from circuitsieve.search.discovery import Discovery, _identity, discover
from circuitsieve.search.resuming import KEPT, Checkpoints
from circuitsieve.search.training import OnStep
from models import random_examples, shared

EXAMPLES = random_examples([7] * 24)
PAIRS = Pairs(tuple(EXAMPLES[:16]), tuple(EXAMPLES[16:20]), tuple(EXAMPLES[20:]))
BASE = DiscoveryConfig(
    method="hard_concrete",
    steps=60,
    batch_size=4,
    warmup=5,
    ranking_share=0.5,
    max_kl=0.3,
    max_accuracy_drop=0.9,
)
CONFIGS = {
    "nested": BASE.replaced(method="nested"),
    "hard_concrete": BASE,
    "sized": BASE.replaced(method="nested", size=0.3),
    "alone": BASE.replaced(pressure=0.5),
    "optimal": BASE.replaced(method="nested", ablation="optimal"),
    "mean": BASE.replaced(ablation="mean"),
    "small store": BASE.replaced(memory="0MB"),
}


class Killed(Exception):
    """As if the process were gone."""


def killing(at: int) -> OnStep:
    def on_step(entry: object) -> None:
        assert isinstance(entry, dict)
        if entry["step"] == at:
            raise Killed

    return on_step


def same(a: Discovery, b: Discovery) -> bool:
    pairs = [(a.circuit.masks, b.circuit.masks), (a.ranking.scores, b.ranking.scores)]
    if a.circuit.constants is not None and b.circuit.constants is not None:
        pairs.append((a.circuit.constants, b.circuit.constants))
    return all(one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one) for one, two in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_search_that_was_killed_again_and_again_ends_as_an_undisturbed_one(name: str, tmp_path: Path) -> None:
    model, config = shared("llama").model, CONFIGS[name]
    whole = discover(model, PAIRS, config)
    for at in (0, 25, 26, 49, 55):
        with pytest.raises(Killed):
            discover(model, PAIRS, config, checkpoints=tmp_path, on_step=killing(at))
    resumed = discover(model, PAIRS, config, checkpoints=tmp_path)
    assert same(whole, resumed)
    untimed = [[{k: v for k, v in entry.items() if k != "seconds"} for entry in d.history] for d in (whole, resumed)]
    assert repr(untimed[0]) == repr(untimed[1])
    assert len(list(tmp_path.iterdir())) <= KEPT


def test_a_search_that_had_ended_is_only_cut_again(tmp_path: Path) -> None:
    model, steps = shared("llama").model, []
    first = discover(model, PAIRS, CONFIGS["nested"], checkpoints=tmp_path)
    again = discover(model, PAIRS, CONFIGS["nested"], checkpoints=tmp_path, on_step=steps.append)
    assert same(first, again)
    assert not steps


@pytest.mark.slow
def test_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    model, config, warnings = shared("llama").model, CONFIGS["nested"], list[str]()
    whole = discover(model, PAIRS, config)
    with pytest.raises(Killed):
        discover(model, PAIRS, config, checkpoints=tmp_path, on_step=killing(55))
    last = max(tmp_path.iterdir())
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content)
    steps: list[object] = []
    resumed = discover(model, PAIRS, config, checkpoints=tmp_path, on_step=steps.append, on_warning=warnings.append)
    assert same(whole, resumed)
    assert 0 < len(steps) < 60
    assert len(warnings) == 1
    assert "damaged" in warnings[0]
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    steps.clear()
    assert same(whole, discover(model, PAIRS, config, checkpoints=tmp_path, on_step=steps.append))
    assert len(steps) == len(whole.history)


def test_the_checkpoints_of_another_search_are_refused(tmp_path: Path) -> None:
    model, config = shared("llama").model, CONFIGS["nested"]
    discover(model, PAIRS, config, checkpoints=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    others = [
        (model, PAIRS, config.replaced(seed=1)),
        (shared("gpt2").model, PAIRS, config),
        (model, Pairs(PAIRS.train[:8], PAIRS.validation, PAIRS.test), config),
    ]
    for other in others:
        with pytest.raises(RunError, match="checkpoint of another search"):
            discover(*other, checkpoints=tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_search_that_ran_out_of_memory_goes_on_with_less(tmp_path: Path) -> None:
    model, config = shared("llama").model, CONFIGS["nested"]
    with pytest.raises(Killed):
        discover(model, PAIRS, config, checkpoints=tmp_path, on_step=killing(40))
    steps: list[object] = []
    less = config.replaced(memory="0MB", checkpointing="all")
    found = discover(model, PAIRS, less, checkpoints=tmp_path, on_step=steps.append)
    assert len(found.history) == 60
    assert 20 <= len(steps) < 60


def test_processes_on_accelerators_of_their_own_make_one_search() -> None:
    config, identities = CONFIGS["nested"], []
    for device in ("cuda:0", "cuda:1", "cpu"):
        about = describe_model(shared("llama").model)
        about["model"]["device"] = device
        identities.append(_identity(config, PAIRS, about))
    assert identities[0] == identities[1] != identities[2]


def test_seconds_of_a_search_that_was_stopped_are_known(tmp_path: Path) -> None:
    model, config = shared("llama").model, CONFIGS["nested"]
    with pytest.raises(Killed):
        discover(model, PAIRS, config, checkpoints=tmp_path, on_step=killing(40))
    found = discover(model, PAIRS, config, checkpoints=tmp_path)
    times = [entry["seconds"] for entry in found.history]
    assert 0 < found.earlier_seconds <= times[39]
    assert found.earlier_seconds in times
    assert discover(model, PAIRS, config).earlier_seconds == 0


def test_a_foreign_checkpoint_is_passed_over_for_an_own_one_before_it(tmp_path: Path) -> None:
    own, foreign, warnings = Checkpoints(tmp_path, "own"), Checkpoints(tmp_path, "foreign"), list[str]()
    own.keep(25, {"at": torch.tensor(25)})
    foreign.keep(50, {"at": torch.tensor(50)})
    state = Checkpoints(tmp_path, "own", warnings.append).latest()
    assert state is not None
    assert int(state["at"]) == 25
    assert "another search" in warnings[0]


def test_a_checkpoint_with_another_name_than_its_content_is_damaged(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "own")
    for steps in (25, 50):
        checkpoints.keep(steps, {"at": torch.tensor(steps)})
    first, last = sorted(tmp_path.iterdir())
    last.write_bytes(first.read_bytes())
    state = checkpoints.latest()
    assert state is not None
    assert int(state["at"]) == 25


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hard_concrete", "nested"])
def test_what_a_killed_search_left_out_is_left_out_again(method: str, tmp_path: Path) -> None:
    model, config = shared("llama").model, BASE.replaced(method=method, size=0.1, shrinking="on", steps=110)
    whole = discover(model, PAIRS, config)
    with pytest.raises(Killed):
        discover(model, PAIRS, config, checkpoints=tmp_path, on_step=killing(102))
    kept = safetensors.torch.load_file(max(tmp_path.iterdir()))
    assert not kept["phase.left.mlp_neuron"].all()
    assert same(whole, discover(model, PAIRS, config, checkpoints=tmp_path))


def test_an_interrupt_before_the_first_phase_has_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "first_phase", interrupted)
    with pytest.raises(KeyboardInterrupt):
        discover(shared("llama").model, PAIRS, BASE)


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    looked: list[int] = []
    with pytest.raises(RunError, match="cannot be written"):
        discover(
            shared("llama").model,
            PAIRS,
            BASE,
            checkpoints=tmp_path / "file/kept",
            on_look=lambda n, _: looked.append(n),
        )
    assert looked == []


@pytest.mark.parametrize("ablation", ["mean", "optimal"])
def test_only_constants_that_are_learned_are_kept(ablation: str, tmp_path: Path) -> None:
    config = BASE.replaced(method="nested", ablation=ablation)
    discover(shared("llama").model, PAIRS, config, checkpoints=tmp_path / "deeper/kept")
    kept = safetensors.torch.load_file(max((tmp_path / "deeper/kept").iterdir()))
    assert "best.step" in kept
    assert any(name.startswith("best.constants") for name in kept) == (ablation == "optimal")
