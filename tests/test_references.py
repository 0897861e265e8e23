"""References: what was made once is not made again, and what is kept, or not, changes nothing."""

import errno
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.data.batching import PairBatch, batches
from circuitsieve.disk import store as stores
from circuitsieve.disk.store import Store
from circuitsieve.evaluation.metrics import run_circuit
from circuitsieve.models.ablations import constants
from circuitsieve.models.subject import Subject
from circuitsieve.search.references import Reference, References
from circuitsieve.vocabulary import Ablation
from models import random_examples, shared

BATCHES = batches(random_examples([5, 3, 6, 4, 6]), 2)
LARGE = 1 << 30


@pytest.fixture(scope="module")
def subject() -> Subject:
    return shared("llama")


@contextmanager
def counted(subject: Subject) -> Iterator[list[int]]:
    """The prompts of every forward pass, by number."""
    passes: list[int] = []
    handle = subject.model.register_forward_pre_hook(
        lambda _, __, kwargs: passes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        yield passes
    finally:
        handle.remove()


def same(first: Reference, second: Reference) -> None:
    assert torch.equal(first.full, second.full)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first.empty, second.empty, strict=True))
    assert first.baselines.keys() == second.baselines.keys()
    assert all(torch.equal(first.baselines[site], second.baselines[site]) for site in first.baselines)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("memory", "file", "again"), [(LARGE, 0, 0), (0, LARGE, 0), (0, 0, 1)])
def test_only_the_ablated_run_is_ever_repeated_and_only_without_room(
    subject: Subject, dtype: torch.dtype, memory: int, file: int, again: int
) -> None:
    subject = subject.in_dtype(dtype)
    references = References(subject, Ablation.CORRUPTED, store=Store(memory, file))
    with counted(subject) as passes:
        first = [references(batch) for batch in BATCHES]
        assert len(passes) == 2 * len(BATCHES)
        second = [references(batch) for batch in BATCHES]
        assert len(passes) == (2 + again) * len(BATCHES)
    for one, other in zip(first, second, strict=True):
        same(one, other)


@pytest.mark.parametrize("ablation", [a for a in Ablation if not a.is_run], ids=str)
def test_constants_need_no_second_pass(subject: Subject, ablation: Ablation) -> None:
    references = References(subject, ablation, constants=constants(subject, BATCHES, ablation))
    with counted(subject) as passes:
        first, second = ([references(batch) for batch in BATCHES] for _ in range(2))
        assert len(passes) == 2 * len(BATCHES)
        with_others = references.with_constants(constants(subject, BATCHES, Ablation.ZERO))
        third = [with_others(batch) for batch in BATCHES]
        assert len(passes) == 3 * len(BATCHES), "what the full model says does not depend on the constants"
    for one, two, three in zip(first, second, third, strict=True):
        same(one, two)
        assert three.full is one.full
        assert torch.equal(three.empty.metric, one.empty.metric) == (ablation is Ablation.ZERO)


def nbytes(subject: Subject, batch: PairBatch) -> int:
    return sum(tensor.nbytes for tensor in References(subject, Ablation.CORRUPTED)(batch).baselines.values())


def test_memory_first_then_the_file_then_nothing(subject: Subject) -> None:
    sizes = [nbytes(subject, batch) for batch in BATCHES]
    assert len(sizes) == 3
    references = References(subject, Ablation.CORRUPTED, store=Store(sizes[0], sizes[1]))
    for batch in BATCHES:
        references(batch)
    with counted(subject) as passes:
        for batch in BATCHES:
            references(batch)
        assert passes == [len(BATCHES[2])]


@pytest.mark.parametrize(("memory", "file"), [(1, 0), (0, 1)], ids=["in memory", "in a file"])
def test_what_will_not_come_again_gives_its_room_back(subject: Subject, memory: int, file: int) -> None:
    room = nbytes(subject, BATCHES[0])
    references = References(subject, Ablation.CORRUPTED, store=Store(memory * room, file * room))
    kept = references(BATCHES[0])
    assert kept.lasting
    assert references.store.memory_bytes == references.store.file_bytes == 0
    with counted(subject) as passes:
        last = references(BATCHES[0], again=False)
        assert not passes
    assert not last.lasting, "its baselines may go as they are used"
    same(kept, last)
    assert (references.store.memory_bytes, references.store.file_bytes) == (memory * room, file * room)
    with counted(subject) as passes:
        once = references(BATCHES[0], again=False)
        assert len(passes) == 2, "nothing of it is left"
    same(kept, once)
    assert (references.store.memory_bytes, references.store.file_bytes) == (memory * room, file * room)


def test_constants_last_whether_the_batch_comes_again_or_not(subject: Subject) -> None:
    references = References(subject, Ablation.ZERO, constants=constants(subject, BATCHES, Ablation.ZERO))
    first, second = references(BATCHES[0]), references(BATCHES[0], again=False)
    assert first.lasting
    assert second.lasting
    same(first, second)
    with counted(subject) as passes:
        references(BATCHES[0])
        assert len(passes) == 2


def test_a_full_disk_is_no_room(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stores, "_mapped", full)
    references = References(subject, Ablation.CORRUPTED, store=Store(0, LARGE))
    first, second = ([references(batch) for batch in BATCHES] for _ in range(2))
    for one, other in zip(first, second, strict=True):
        same(one, other)
    assert references.store.file_bytes == 0


@pytest.mark.parametrize(("memory", "file"), [(1, 0), (0, 1)], ids=["in memory", "in a file"])
def test_kept_tensors_are_copies_of_every_shape_and_dtype_in_one_piece(memory: int, file: int) -> None:
    tensors = {
        "floats": torch.randn(3, 5, 7),
        "narrow": torch.randn(2, 3).bfloat16(),
        "a view": torch.arange(12).view(3, 4).t(),
        "bytes": torch.tensor([1, 2, 3], dtype=torch.uint8),
    }
    kept = Store(memory * LARGE, file * LARGE).keep(tensors)
    assert kept is not None
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert (kept.memory_bytes, kept.file_bytes) == (memory * size, file * size)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.zero_()
    assert all(torch.equal(kept.tensors[name], before[name]) for name in tensors)
    assert all(kept.tensors[name].dtype == before[name].dtype for name in tensors)
    begins = [tensor.data_ptr() for tensor in kept.tensors.values()]
    ends = [begin + tensor.nbytes for begin, tensor in zip(begins, kept.tensors.values(), strict=True)]
    assert all(stores.ALIGNMENT > begin - end >= 0 for begin, end in zip(begins[1:], ends[:-1], strict=True))


def test_what_lasts_begins_pages_of_its_own(subject: Subject) -> None:
    references = References(subject, Ablation.CORRUPTED, store=Store(LARGE))
    for batch in BATCHES:
        reference = references(batch)
        first = next(iter(reference.baselines.values()))
        assert {reference.full.data_ptr() % mmap.PAGESIZE, first.data_ptr() % mmap.PAGESIZE} == {0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_full_circuit_says_what_the_reference_says_bit_for_bit(subject: Subject, dtype: torch.dtype) -> None:
    """Both by the same attention kernel, also where training would take a quicker one."""
    subject = subject.in_dtype(dtype)
    circuit = Circuit(subject.space, subject.space.full(), Ablation.CORRUPTED)
    references = References(subject, Ablation.CORRUPTED)
    assert run_circuit(circuit, references, BATCHES).mean("kl") == 0
