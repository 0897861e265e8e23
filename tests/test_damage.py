"""Damaged run folders: damage is found and named, never read as another circuit."""

import json
import random
from collections.abc import Callable

import pytest
import safetensors.torch
import torch

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.circuits.nodes import NodeSpace
from circuitsieve.errors import RunError
from circuitsieve.runs.folder import PairRecord, RunFolder
from circuitsieve.vocabulary import Ablation, Granularity
from tiny_runs import SUBJECT, complaint, random_found, saved

Edit = Callable[[dict[str, torch.Tensor]], object]
WIDTH, NEURONS = SUBJECT.space.width, SUBJECT.space.neurons


@pytest.mark.parametrize(
    ("name", "edit", "sentence"),
    [
        ("masks", lambda t: t.pop("mask.head"), "mask.head: found nothing, expected bool of the shape (2, 2)"),
        (
            "masks",
            lambda t: t.update({"mask.head": torch.ones(2, 3, dtype=torch.bool)}),
            "mask.head: found bool of the shape (2, 3), expected bool of the shape (2, 2)",
        ),
        (
            "masks",
            lambda t: t.update({"mask.head": torch.ones(2, 2)}),
            "mask.head: found float32 of the shape (2, 2), expected bool",
        ),
        (
            "masks",
            lambda t: t.update({"score.head": torch.ones(2, 5)}),
            "score.head: found float32 of the shape (2, 5), expected",
        ),
        (
            "masks",
            lambda t: t.update({"mask.heads": torch.ones(2)}),
            "found the unknown tensor 'mask.heads', expected mask.layer",
        ),
        ("masks", lambda t: t["mask.head_dim"].logical_not_(), "found another"),
        (
            "baselines",
            lambda t: t.pop("mlp_read.1"),
            f"mlp_read.1: found nothing, expected float32 of the shape ({NEURONS},)",
        ),
        (
            "baselines",
            lambda t: t.update({"embed.0": torch.ones(3)}),
            f"embed.0: found float32 of the shape (3,), expected float32 of the shape ({WIDTH},)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, name, edit: Edit, sentence):
    folder = saved(tmp_path, random_found(Ablation.MEAN))
    path = tmp_path / f"{name}.safetensors"
    tensors = safetensors.torch.load_file(path)
    edit(tensors)
    safetensors.torch.save_file(tensors, path, {"format_version": "1"})
    message = complaint(folder.read_circuit)
    assert message.startswith(str(tmp_path))
    assert sentence in message


def test_tensors_of_another_version_are_refused(tmp_path):
    folder = saved(tmp_path, random_found())
    path = tmp_path / "masks.safetensors"
    for metadata, found in (({"format_version": "2"}, "'2'"), (None, "None")):
        safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata)
        assert complaint(folder.read_circuit) == f"{path}: found format_version {found}, expected '1'"


def test_summary_of_another_circuit_is_refused(tmp_path):
    folder = saved(tmp_path, random_found())
    about = json.loads((tmp_path / "circuit.json").read_text())
    for fact, value in (("size", 0.9), ("parameters", {"kept": 1, "total": 2}), ("nodes", ["embed"]), ("kept", {})):
        folder.write_json("circuit.json", {**about, fact: value})
        assert f"found another {fact} in circuit.json than masks.safetensors gives" in complaint(folder.read_circuit)
    for fact, value in (
        ("ablation", "nothing"),
        ("space", {}),
        ("space", 3),
        ("space", {**about["space"], "heads": 3}),
    ):
        folder.write_json("circuit.json", {**about, fact: value})
        complaint(folder.read_circuit)


FILES = ("masks.safetensors", "baselines.safetensors", "circuit.json", "pairs.jsonl")


def read(folder: RunFolder) -> tuple[Circuit, list[PairRecord]]:
    return folder.read_circuit()[0], folder.read_pairs()


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_refused(tmp_path, name):
    folder = saved(tmp_path, random_found(Ablation.MEAN))
    path = tmp_path / name
    content = path.read_bytes()
    starts = (
        [content.rindex(b"\n", 0, -1) + 1] if name == "pairs.jsonl" else [-1]
    )  # whole lines fewer are valid JSON lines
    for length in {*range(0, len(content) - 1, 37), len(content) - 2} - {0} | ({0} if name != "pairs.jsonl" else set()):
        if length not in starts:
            path.write_bytes(content[:length])
            assert str(tmp_path) in complaint(lambda: read(folder))


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_never_give_another_circuit(tmp_path, name):
    """A flip is found, or it changes no mask (it hit a score, a constant or a text, which nothing else vouches for)."""
    found = random_found(Ablation.MEAN)
    folder = saved(tmp_path, found)
    path = tmp_path / name
    content = path.read_bytes()
    noticed = 0
    positions = range(0, len(content), 5)
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1 << random.Random(position).randrange(8)
        path.write_bytes(damaged)
        try:
            circuit, _ = read(folder)
        except RunError as error:
            noticed += 1
            assert "\n" not in str(error)  # noqa: PT017 - an error is one of two right outcomes
        else:
            assert circuit.ablation is Ablation.MEAN
            assert all(torch.equal(circuit.masks[g], found.circuit.masks[g]) for g in Granularity)
            assert circuit.space == SUBJECT.space
    assert noticed > len(positions) * {"circuit.json": 0.9, "masks.safetensors": 0.7}.get(name, 0.2)


def test_every_flip_of_a_mask_is_noticed(tmp_path):
    folder = saved(tmp_path, random_found())
    path = tmp_path / "masks.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:header])
    begin, end = entries["mask.mlp_neuron"]["data_offsets"]
    for position in range(header + begin, header + end):
        for bit in (0, 1, 7):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(RunError):
                folder.read_circuit()


def test_space_is_that_of_the_model():
    assert (
        NodeSpace(2, 2, 2, 4, 12, 8, 1, frozenset({"q", "k", "v", "attn_out", "mlp_in", "mlp_out"}), False)
        == SUBJECT.space
    )
