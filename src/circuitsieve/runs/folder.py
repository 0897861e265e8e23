"""Run folders: what a discovery leaves on disk, written atomically, locked while written, readable without pickle.

config.json            the full configuration, versions, model, data
pairs.jsonl            every pair: its split, and why it was dropped if it was
masks.safetensors      mask.<granularity> (boolean) and score.<granularity> of the ranking: the single truth
baselines.safetensors  constant baselines, where the ablation has any
circuit.json           counts, coarse node names, size, parameters
history.jsonl          one line per step
card.json              the evaluation on held-out pairs
sections.json          what was measured for it, and all that this depends on
exhibits.json          what the model was asked for the report
edges.safetensors      keep.<receiver> (boolean) and score.<receiver>, where edges were asked for
edges.json             how many edges are kept and how faithful that is
report.html            all of it for people, in one page
checkpoint/            the state of a search that has not ended (see `resuming`)
"""

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.circuits.graph import EdgeCircuit, Graph, Receiver
from circuitsieve.circuits.nodes import Activations, NodeSpace
from circuitsieve.circuits.shapes import space_of
from circuitsieve.data.pairs import Pair
from circuitsieve.disk import files
from circuitsieve.disk.jsontext import text_of
from circuitsieve.errors import ConfigError, RunError
from circuitsieve.runs.ownership import Folder
from circuitsieve.vocabulary import Ablation, Granularity, Site, SiteKind

_COARSE = (Granularity.EMBED, Granularity.LAYER, Granularity.ATTN_BLOCK, Granularity.MLP_BLOCK, Granularity.HEAD)


@dataclass(frozen=True)
class PairRecord:
    """One line of pairs.jsonl."""

    pair: Pair
    split: str
    dropped: str | None = None
    """The reason, where the pair was dropped."""


@dataclass(frozen=True)
class RunFolder(Folder):
    """A folder that holds one run."""

    # --- writing ----------------------------------------------------------------------------------------------------

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write an object, with the format version."""
        files.write_json(self.path / name, content)

    def write_text(self, name: str, content: str) -> None:
        """Write a text."""
        files.write_bytes(self.path / name, content.encode())

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write JSON lines."""
        files.write_lines(self.path / name, rows)

    def write_pairs(self, records: Iterable[PairRecord]) -> None:
        """Write every pair with its split and, where it was dropped, the reason."""
        self.write_lines("pairs.jsonl", ({**asdict(r.pair), "split": r.split, "dropped": r.dropped} for r in records))

    def write_circuit(self, circuit: Circuit, ranking: Ranking | None, found: Mapping[str, int | float | None]) -> None:
        """Write the masks, the scores, the constants and their summary; `found` says how the circuit did on validation."""
        tensors = {f"mask.{g}": mask for g, mask in circuit.masks.items()}
        if ranking is not None:
            tensors |= {f"score.{g}": scores for g, scores in ranking.scores.items()}
        files.write_tensors(self.path / "masks.safetensors", tensors)
        if circuit.constants is not None:
            constants = {_key(site): constant for site, constant in circuit.constants.items()}
            files.write_tensors(self.path / "baselines.safetensors", constants)
        self.write_json("circuit.json", {**summary(circuit), "found": dict(found)})

    # --- reading ----------------------------------------------------------------------------------------------------

    def read_json(self, name: str) -> dict[str, Any]:
        """Read an object.

        Raises:
            RunError: the file is missing, damaged or of another format version.
        """
        return files.read_json(self.path / name)

    def look_up(self, name: str, *path: str) -> Any:
        """A value inside a JSON file.

        Raises:
            RunError: the file is missing or damaged, or holds no such value.
        """
        value: Any = self.read_json(name)
        for key in path:
            if not isinstance(value, dict) or key not in value:
                raise RunError(f"{self.path / name}: found no {'.'.join(path)}, expected the file of a run")
            value = value[key]
        return value

    def read_history(self) -> list[dict[str, Any]]:
        """Read history.jsonl; nothing where the method takes no steps.

        Raises:
            RunError: the file is damaged.
        """
        path = self.path / "history.jsonl"
        try:
            rows = [json.loads(line) for line in text_of(path).splitlines()] if path.is_file() else []
            if any(type(row.get("step")) is not int for row in rows):
                raise ValueError("a line without a step")
            if any(not isinstance(value, int | float | None) for row in rows for value in row.values()):
                raise ValueError("a value that is no number")
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise RunError(f"{path}: cannot be read ({error}), expected the steps of a run") from error
        return rows

    def read_pairs(self) -> list[PairRecord]:
        """Read pairs.jsonl.

        Raises:
            RunError: the file is missing or damaged.
        """
        path = self.path / "pairs.jsonl"
        try:
            return [_record(json.loads(line)) for line in text_of(path).splitlines()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(f"{path}: cannot be read ({error}), expected the pairs of a run") from error

    def read_circuit(self) -> tuple[Circuit, Ranking | None]:
        """Read the circuit and, where the run has one, the ranking.

        Raises:
            RunError: a file is missing or damaged, or does not fit the others.
        """
        about = self.read_json("circuit.json")
        try:
            space, ablation = space_of(about["space"]), Ablation(about["ablation"])
        except (KeyError, ValueError, ConfigError) as error:
            raise RunError(f"{self.path / 'circuit.json'}: found no valid space and ablation ({error})") from error
        shapes = {g: space.shape(g) for g in Granularity}
        tensors = files.read_tensors(
            self.path / "masks.safetensors",
            needed={f"mask.{g}": (torch.bool, shape) for g, shape in shapes.items()},
            optional={f"score.{g}": (torch.float32, shape) for g, shape in shapes.items()},
        )
        constants = None if ablation.is_run else self._read_constants(_sites(space), ablation)
        circuit = Circuit(space, {g: tensors[f"mask.{g}"] for g in Granularity}, ablation, constants)
        for fact, value in summary(circuit).items():
            if about.get(fact) != value:
                raise RunError(
                    f"{self.path}: found another {fact} in circuit.json than masks.safetensors gives, expected the files of "
                    "one run"
                )
        scores = {g: tensors[f"score.{g}"] for g in Granularity if f"score.{g}" in tensors}
        return circuit, Ranking(space, scores) if scores else None

    def write_edges(self, edges: EdgeCircuit, about: Mapping[str, Any]) -> None:
        """Write the edges of the circuit, and what was found out about them."""
        tensors = {f"keep.{receiver}": mask.flatten(0, 1) for receiver, mask in edges.masks.items()}
        tensors.update({f"score.{receiver}": score.flatten(0, 1) for receiver, score in edges.scores.items()})
        files.write_tensors(self.path / "edges.safetensors", tensors)
        self.write_json("edges.json", {"parallel": edges.graph.parallel, "found": about})

    def read_edges(self) -> EdgeCircuit:
        """Read the edges of the circuit.

        Raises:
            RunError: there are none, or a file is damaged or does not fit the others.
        """
        if not self.has("edges.json"):
            raise RunError(
                f"{self.path}: found no edges.json, expected a run with edges; run `circuitsieve edges {self.path}` first"
            )
        circuit, _ = self.read_circuit()
        graph = Graph(circuit.space, parallel=bool(self.look_up("edges.json", "parallel")))
        shapes = {receiver: graph.shape(receiver) for receiver in Receiver}
        flat = {receiver: (layers * n, sources) for receiver, (layers, n, sources) in shapes.items()}
        tensors = files.read_tensors(
            self.path / "edges.safetensors",
            {f"keep.{receiver}": (torch.bool, shape) for receiver, shape in flat.items()}
            | {f"score.{receiver}": (torch.float32, shape) for receiver, shape in flat.items()},
        )
        masks, scores = (
            {receiver: tensors[f"{kind}.{receiver}"].view(shape) for receiver, shape in shapes.items()}
            for kind in ("keep", "score")
        )
        between = graph.among(circuit.masks)
        if any((mask & ~between[receiver]).any() for receiver, mask in masks.items()):
            raise RunError(
                f"{self.path / 'edges.safetensors'}: found edges of nodes that the circuit does not keep, expected its own"
            )
        return EdgeCircuit(graph, masks, scores)

    def _read_constants(self, sites: Mapping[Site, int], ablation: Ablation) -> Activations:
        widths = {site: 1 if ablation is Ablation.ZERO else width for site, width in sites.items()}
        needed = {_key(site): (torch.float32, (width,)) for site, width in widths.items()}
        tensors = files.read_tensors(self.path / "baselines.safetensors", needed)
        return {site: tensors[_key(site)] for site in sites}


def _sites(space: NodeSpace) -> dict[Site, int]:
    """Every site of a model and the number of units there."""
    kinds = [kind for kind in SiteKind if kind is not SiteKind.EMBED]
    sites = [Site(SiteKind.EMBED, 0), *(Site(kind, layer) for layer in range(space.layers) for kind in kinds)]
    return {site: space.site_width(site.kind) for site in sites}


def _key(site: Site) -> str:
    return f"{site.kind}.{site.layer}"


def _record(row: dict[str, Any]) -> PairRecord:
    split, dropped = row.pop("split"), row.pop("dropped")
    lists = {key: tuple(row[key]) for key in ("answers", "wrong_answers", "candidates", "cutoff")}
    pair = Pair(**{**row, **lists})
    texts = (split, pair.clean, pair.corrupted, pair.id, pair.template, *itertools.chain(*lists.values()))
    if not isinstance(dropped, str | None) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a value that is no text")
    return PairRecord(pair, split, dropped)


def summary(circuit: Circuit) -> dict[str, Any]:
    """What circuit.json says of a circuit."""
    parameters = circuit.parameters
    return {
        "ablation": str(circuit.ablation),
        "space": {**asdict(circuit.space), "biases": sorted(circuit.space.biases)},
        "size": circuit.size,
        "parameters": {"kept": parameters.kept, "total": parameters.total},
        "kept": {str(g): {"kept": kept, "total": total} for g, (kept, total) in circuit.counts.items()},
        "nodes": circuit.nodes(*_COARSE),
        "head_dims": circuit.head_dims,
    }
