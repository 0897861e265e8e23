"""The circuit of a run folder, judged: on its own held-out pairs or on others, and what was measured before is remembered.

`sections.json` holds each part of the card with all that it depends on: the circuit, the ranking, the pairs, the weights, the
settings, the libraries and this program. Where any of these is another one now, nothing of it counts.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.chat import in_chat_form
from circuitsieve.data.loaders import TaskOptions
from circuitsieve.data.pairs import SPLITS, Pair, TextSplits
from circuitsieve.data.sources import Columns, read_pairs
from circuitsieve.data.tokenising import Example, Pairs, encode, encode_all
from circuitsieve.disk.jsontext import finite
from circuitsieve.errors import DataError, RunError, shown
from circuitsieve.evaluation.card import Card, evaluate
from circuitsieve.evaluation.full import SECTIONS, evaluate_fully
from circuitsieve.evaluation.harness import EvaluationConfig
from circuitsieve.evaluation.robustness import Origin
from circuitsieve.evaluation.verdicts import judged
from circuitsieve.models.loading import LoadedModel, load_model
from circuitsieve.runs.folder import PairRecord, RunFolder
from circuitsieve.runs.provenance import fingerprint, hash_of, placed, versions
from circuitsieve.search.control import within
from circuitsieve.search.screening import check_fit
from circuitsieve.workflow.reporting import Reporter

SPENT = ("seconds", "peak_memory_bytes")
"""What only a run from beginning to end can measure."""
_QUICK = "quick"
_FULL = tuple(name for section in SECTIONS for name in section.names)


class Memory:
    """The parts of a card that were measured before."""

    def __init__(self, folder: RunFolder, key: Mapping[str, Any], forgotten: Collection[str] = ()) -> None:
        """Read what counts.

        Args:
            folder: of the run.
            key: all that the parts depend on.
            forgotten: the parts that are to be measured again.
        """
        self.folder, self.key, self.parts = folder, dict(key), {}
        if folder.has("sections.json"):
            try:
                content = folder.read_json("sections.json")
                if content["key"] == self.key and content["checksum"] == _checksum(content["parts"]):
                    self.parts = {name: part for name, part in content["parts"].items() if name not in forgotten}
            except (RunError, KeyError):
                pass  # a damaged memory is none

    def remember(self, name: str, part: Mapping[str, Any]) -> None:
        """Keep a part, as it will be read back."""
        self.parts[name] = finite(dict(part))
        with self.folder.locked():
            checksum = _checksum(self.parts)
            self.folder.write_json("sections.json", {"key": self.key, "checksum": checksum, "parts": self.parts})


def evaluate_run(
    path: str,
    reporter: Reporter,
    *,
    data: str | None = None,
    columns: Columns | None = None,
    device: str | None = None,
    full: bool = False,
    fresh: bool = False,
    config: EvaluationConfig = EvaluationConfig(),
) -> tuple[RunFolder, Card]:
    """Evaluate the circuit of a run: on its own pairs (the card is saved), or on those of a file (it is not).

    Args:
        path: the run folder.
        reporter: is told how it goes.
        data: a file of other pairs; they are asked in chat form where those of the run were.
        columns: what its columns are called, where that is otherwise.
        device: where the model runs; that of the run if not given.
        full: whether all sections are measured, or those of the quick card alone.
        fresh: whether the card that is asked for, quick or full, is measured again where it was measured before.
        config: how many controls, on how many pairs.

    Raises:
        RunError: the folder is damaged, or the model is not the one that the circuit was found in.
        DataError: the pairs of the file cannot be used.
    """
    folder = RunFolder.open(path)
    circuit, ranking = folder.read_circuit()
    loaded = load_run_model(folder, device)
    if data is not None:
        others = _others(Path(data), columns, _origin(folder, loaded))
        examples, unusable = _examples(data, others, folder, loaded, reporter)
        quick = evaluate(loaded.model, circuit, examples, config=config, progress=reporter.evaluation).values
        judges = Pairs((), (), examples)
        found = _fully(loaded, circuit, ranking, judges, folder, config, reporter, None) if full else {}
        return folder, with_run_facts(_joined(quick, found), folder, dict.fromkeys(SPENT), unusable)
    pairs = run_pairs(folder, loaded)
    earlier = _earlier_card(folder)
    asked = {_QUICK, *_FULL} if full else {_QUICK}
    memory = Memory(folder, _key(folder, loaded, config), asked if fresh else ())
    if _QUICK not in memory.parts:
        held_out, validation, said = pairs.test, pairs.validation, reporter.evaluation
        measured = evaluate(loaded.model, circuit, held_out, validation=validation, config=config, progress=said)
        memory.remember(_QUICK, measured.values)
    found = _fully(loaded, circuit, ranking, pairs, folder, config, reporter, memory) if full else _remembered(memory)
    dropped = sum(record.dropped is not None for record in folder.read_pairs())
    card = with_run_facts(
        _joined(memory.parts[_QUICK], found), folder, {name: earlier.get(name) for name in SPENT}, dropped
    )
    if folder.has("edges.json"):
        card = Card({**card.values, "edges": folder.look_up("edges.json", "found")})
    with folder.locked():
        folder.write_json("card.json", card.values)
    return folder, card


def _earlier_card(folder: RunFolder) -> dict[str, Any]:
    """The card that is there; a damaged one is none, and is made anew."""
    try:
        return folder.read_json("card.json") if folder.has("card.json") else {}
    except RunError:
        return {}


def _others(path: Path, columns: Columns | None, origin: Origin) -> tuple[Pair, ...]:
    """The pairs of a file, as those of the run are asked."""
    others, chat = read_pairs(path, columns), origin.options.chat
    return others if chat is None else in_chat_form(TextSplits((), (), others), origin.tokenizer, chat).test


def _examples(
    path: str, pairs: Sequence[Pair], folder: RunFolder, loaded: LoadedModel, reporter: Reporter
) -> tuple[tuple[Example, ...], int]:
    """The pairs of a file whose clean prompt the search has not seen, and how many others there are."""
    seen = {record.pair.clean for record in folder.read_pairs() if record.split != "test" and not record.dropped}
    others = [pair for pair in pairs if pair.clean not in seen]
    if not others:
        raise DataError(
            f"{path}: found only pairs that the circuit was searched or chosen with, expected others: on these it is no evidence"
        )
    examples, dropped = encode_all(others, loaded.tokenizer)
    reasons = Counter(drop.reason for drop in dropped)
    reasons["the circuit was searched or chosen with their clean prompts"] = len(pairs) - len(others)
    for reason, count in reasons.items():
        if count:
            reporter.warn(f"dropped {count} pairs: {reason}")
    check_fit(loaded.model, examples)
    return tuple(examples), reasons.total()


def _fully(
    loaded: LoadedModel,
    circuit: Circuit,
    ranking: Ranking | None,
    pairs: Pairs,
    folder: RunFolder,
    config: EvaluationConfig,
    reporter: Reporter,
    memory: Memory | None,
) -> dict[str, Any]:
    return evaluate_fully(
        loaded.model,
        circuit,
        pairs,
        ranking,
        search=DiscoveryConfig.from_dict(folder.look_up("config.json", "discovery"), str(folder.path)),
        origin=replace(_origin(folder, loaded), others_judge=memory is None),
        config=config,
        progress=reporter.evaluation,
        announce=lambda runs, seconds: reporter.say(f"{runs} circuits to run, about {_minutes(seconds)}"),
        known={} if memory is None else memory.parts,
        remember=(lambda *_: None) if memory is None else memory.remember,
    )


def _origin(folder: RunFolder, loaded: LoadedModel) -> Origin:
    """Where the pairs of a run come from; one that was made in Python does not say it."""
    about = folder.look_up("config.json", "data")
    if not isinstance(about, dict) or not isinstance(task := about.get("task"), str):
        return Origin(loaded.tokenizer)
    seed, options, chat = (folder.look_up("config.json", "data", fact) for fact in ("seed", "options", "chat"))
    if not (isinstance(seed, int) and isinstance(options, dict) and isinstance(chat, str | None)):
        raise RunError(
            f"{folder.path / 'config.json'}: found data.seed {seed!r}, data.options {options!r} and data.chat {chat!r}, expected "
            "a whole number, named options, and a text or null, as they were written"
        )
    return Origin(loaded.tokenizer, task, TaskOptions(seed=seed, options=options, chat=chat))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _remembered(memory: Memory) -> dict[str, Any]:
    """The full sections, if all of them are remembered."""
    return judged({name: memory.parts[name] for name in _FULL}) if set(_FULL) <= memory.parts.keys() else {}


def _joined(quick: Mapping[str, Any], full: Mapping[str, Any]) -> Card:
    both = {name: {**quick[name], **full.get(name, {})} for name in ("intervals", "reasons")}
    return Card({**quick, **full, **both})


def _key(folder: RunFolder, loaded: LoadedModel, config: EvaluationConfig) -> dict[str, Any]:
    """All that a card depends on."""
    weights = folder.look_up("config.json", "model", "fingerprint")  # which those of the model were found to have
    return {
        "model": {"fingerprint": weights, **placed(loaded.model)},
        "versions": versions(),
        "program": _hash_of_files(sorted(Path(str(resources.files("circuitsieve"))).rglob("*.py"))),
        "circuit": _hash_of_files([folder.path / name for name in ("masks.safetensors", "baselines.safetensors")]),
        "ablation": folder.look_up("circuit.json", "ablation"),
        "pairs": folder.look_up("config.json", "data", "hash"),
        "evaluation": asdict(config),
    }


def _checksum(parts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _hash_of_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()[:32]


def with_run_facts(card: Card, folder: RunFolder, spent: Mapping[str, int | float | None], dropped_pairs: int) -> Card:
    """The card with what only the run knows: dropped pairs, whether the budget was met, time and memory."""
    load = folder.look_up("circuit.json", "found", "load")
    if not isinstance(load, int | float | None):
        raise RunError(f"{folder.path / 'circuit.json'}: found found.load {shown(load)}, expected a number or null")
    reasons = dict(card.values["reasons"])
    if load is None:
        reasons["budget_met"] = "the run had a fixed pressure, not a budget"
    for name in [name for name, value in spent.items() if value is None]:
        reasons[name] = "only measured where a run is discovered and evaluated in one go"
    facts = {
        "dropped_pairs": dropped_pairs,
        "budget_met": None if load is None else int(within(load)),
        **spent,
        "reasons": reasons,
    }
    return Card({**card.values, **facts})


def _read_pairs(folder: RunFolder) -> list[PairRecord]:
    """The pairs of a run, unless they are others than those that it was made with."""
    records = folder.read_pairs()
    if hash_of(records) != folder.look_up("config.json", "data", "hash"):
        raise RunError(
            f"{folder.path}: found other pairs in pairs.jsonl than those that the run was made with, expected the file as it "
            "was written; to evaluate on other pairs, give their file with --data"
        )
    return records


def run_pairs(folder: RunFolder, loaded: LoadedModel) -> Pairs:
    """The usable pairs of a run, encoded.

    Raises:
        RunError: they are damaged, or others than those that the run was made with.
    """
    records = _read_pairs(folder)
    return encode(
        TextSplits(*(tuple(r.pair for r in records if r.split == split and r.dropped is None) for split in SPLITS)),
        loaded.tokenizer,
    )


def load_run_model(folder: RunFolder, device: str | None = None) -> LoadedModel:
    """The model that a run was made with, on the same device or another.

    Raises:
        RunError: config.json does not name it, or its weights are others.
        ModelError: it cannot be loaded.
    """
    name, expected, dtype, first, revision = (
        folder.look_up("config.json", "model", fact) for fact in ("name", "fingerprint", "dtype", "device", "revision")
    )
    about = folder.look_up("config.json", "model")
    # What a name or a branch of the hub stands for may have changed since; a local folder has no commit.
    pinned = {"revision": revision, "commit": about.get("commit")}
    texts = {"name": name, "dtype": dtype, "device": first}
    for fact, value in (texts | {fact: value for fact, value in pinned.items() if value is not None}).items():
        if not isinstance(value, str) or not value.isprintable():
            raise RunError(
                f"{folder.path / 'config.json'}: found model.{fact} {shown(value)}, expected a text in one line"
            )
    limits = None if device else about.get("max_memory")  # runs made in Python have none
    revision = pinned["commit"] or revision
    loaded = load_model(name, dtype=dtype, device=device or first, revision=revision, max_memory=limits)
    if fingerprint(loaded.model) != expected:
        raise RunError(
            f"{folder.path}: found other weights in the model {name!r} than those that the circuit was found in; expected the "
            "same checkpoint"
        )
    return loaded
