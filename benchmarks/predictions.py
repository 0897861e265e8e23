"""What a search with gates takes on GPUs: from what was counted, by assumptions that are stated (`cost_model`)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from circuitsieve.data.pairs import TaskRequest
from circuitsieve.evaluation.harness import EvaluationConfig
from circuitsieve.search.footprint import Footprint
from circuitsieve.search.training import KEPT_EVERY
from circuitsieve.workflow.plan import GLANCES, TRIES
from cost_model import GOOD, H100, H200, POOR, Assumption, Device, handing_on, seconds, sharing
from counting import Counted

USABLE = 0.9
"""Of a device's memory; the rest is for fragments and for what the libraries take."""
ITEMSIZE = 2
THROUGH = {"reference": 2, "kept": 2, "computed anew": 3, "layers again": 3}
"""How often the layers are gone through, forwards or backwards: so often weights are fetched and devices hand on."""
CUTS = 2 * (TRIES + GLANCES)
"""Rankings that are cut: where the gates start and where they end."""
Counts = Mapping[str, Counted]
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Setting:
    """Devices, and how they are used."""

    shape: str
    device: Device
    count: int = 1
    use: str = "alone"
    """alone, shared (a process and the whole model on each), spread (layers over all) or offloaded (to the host's memory)."""

    def __str__(self) -> str:
        devices = self.device.name if self.count == 1 else f"{self.count} x {self.device.name}"
        return devices if self.use == "alone" else f"{devices}, {self.use}"

    @property
    def parts(self) -> int:
        """So many devices hold a model together."""
        return self.count if self.use == "spread" else 1


SETTINGS = (
    Setting("1B", H100),
    Setting("1B", H100, 8, "shared"),
    Setting("8B", H100),
    Setting("8B", H100, 8, "shared"),
    Setting("70B", H100, 1, "offloaded"),
    Setting("70B", H100, 4, "spread"),
    Setting("70B", H200, 2, "spread"),
    Setting("70B", H100, 8, "spread"),
)


@dataclass(frozen=True)
class Load:
    """What one process runs of a batch."""

    counts: Counts
    footprint: Footprint

    def ranking(self, side: str) -> Counted:
        """A step that ranks: it draws other masks than one of gates, and differs in nothing else."""
        own, ranks, gates = self.counts[side], self.counts["ranking"], self.counts["kept"]
        return Counted(
            own.flops + ranks.flops - gates.flops,
            own.launches + ranks.launches - gates.launches,
            own.moved + ranks.moved - gates.moved,
            own.peak,
        )

    def above(self, batches: float) -> dict[str, float]:
        """Bytes above the weights by how steps are made, the quickest first; of all batches of training and validation."""
        footprint = self.footprint
        whole, again = footprint.step(0) + footprint.said, footprint.step(footprint.layers) + footprint.said
        return {"kept": whole + batches * footprint.baselines, "computed anew": whole, "layers again": again}


@dataclass(frozen=True)
class Shape:
    """What was counted of a model and a length of prompts."""

    name: str
    parameters: int
    width: int
    nodes: int
    batch: int
    tokens: int
    whole: Load
    """A batch."""
    portion: Load
    """The share of one among several processes."""

    @property
    def weights(self) -> int:
        """Bytes."""
        return ITEMSIZE * self.parameters

    def batches(self, *splits: str) -> float:
        """Of the pairs that a task is asked for."""
        return sum(getattr(TaskRequest, split) for split in splits) / self.batch

    @property
    def card_keeps(self) -> bool:
        """Whether the card has room for its corrupted activations: of read sites, and twice the residual stream a layer."""
        footprint = self.whole.footprint
        each = footprint.baselines + 2 * footprint.layers * self.batch * self.tokens * self.width * ITEMSIZE
        return each * self.batches("validation", "test") <= EvaluationConfig().memory_gb * 2**30


@dataclass(frozen=True)
class Prediction:
    """Of one search."""

    side: str
    """The quickest of the ways of making a step that fits."""
    held: float
    """Bytes on each device."""
    step: tuple[float, float]
    """Seconds, if the devices are used well and badly: the mean of ranking and gates."""
    search: tuple[float, float]
    """Seconds, card included; without reading the model from the disk."""
    host: float
    """Seconds of it that the host takes by itself."""


def predict(shape: Shape, setting: Setting, passes: Numbers, host: Numbers) -> Prediction | None:
    """How a search will be made there, and what it takes; nothing if not even layers that are run again make it fit.

    Args:
        shape: the model and its prompts.
        setting: the devices.
        passes: how many there are of which kind.
        host: seconds of what the host does by itself.
    """
    room, parts = USABLE * setting.device.memory, setting.parts
    load = shape.portion if setting.use == "shared" else shape.whole
    above, fetched = load.above(shape.batches("train", "validation")), 0.0
    if setting.use == "offloaded":
        # The device keeps what it can beside a step and a layer; the rest of the weights comes from the host, again and again.
        least = above["layers again"] + shape.weights / load.footprint.layers
        fetched = shape.weights + least - room
        fitting = [("layers again", room)] if least <= room else []
    else:
        shares = ((side, (shape.weights + more) / parts) for side, more in above.items())
        fitting = [(side, held) for side, held in shares if held <= room]
    if not fitting:
        return None
    side, held = fitting[0]
    alone = _host_seconds(shape, passes, host)
    good, poor = (_times(shape, setting, passes, side, fetched, assumed) for assumed in (GOOD, POOR))
    return Prediction(side, held, (good[0], poor[0]), (good[1] + alone, poor[1] + alone), alone)


def _times(
    shape: Shape, setting: Setting, passes: Numbers, side: str, fetched: float, assumed: Assumption
) -> tuple[float, float]:
    """Seconds of a step and of all passes."""
    load = shape.portion if setting.use == "shared" else shape.whole
    through = handing_on(shape.width, shape.batch * shape.tokens, setting.parts) + fetched / assumed.host_link
    added = sharing(shape.nodes, setting.count) if setting.use == "shared" else 0.0

    def took(counted: Counted, call: str) -> float:
        return seconds(counted, setting.device, assumed) + THROUGH[call] * through

    gates = took(load.counts[side], side) + added
    ranks = took(load.ranking(side), side) + added
    reference, judged = (took(of.counts["reference"], "reference") for of in (load, shape.whole))
    again = 1.0 if side == "kept" else 0.5  # of a reference: else the corrupted run is part of the step
    search = (
        passes["references"] * reference * again
        + (passes["effects of single nodes"] + passes["steps, ranking"]) * ranks
        + passes["steps, gates"] * gates
        + passes["checks and final cut"] * reference * (0.5 if side == "kept" else 1.0)
        + passes["card"] * judged * (0.5 if shape.card_keeps else 1.0)  # by the first process alone
    )
    ranking, others = passes["steps, ranking"], passes["steps, gates"]
    return (ranking * ranks + others * gates) / (ranking + others), search


def _host_seconds(shape: Shape, passes: Numbers, host: Numbers) -> float:
    """Seconds of what the host does by itself in a search."""
    steps = passes["steps, ranking"] + passes["steps, gates"]
    return (
        host["hashing, s/GB"] * shape.weights / 1e9
        + CUTS * host["cutting a ranking"]
        + passes["steps, gates"] * host["drawing gates"]
        + steps / KEPT_EVERY * host["a checkpoint"]
    )


def shapes_of(rows: list[dict[str, Any]]) -> Iterator[Shape]:
    """From the rows that `scale.py` writes: a whole batch and a portion of it, of every shape and length."""

    def load(row: dict[str, Any]) -> Load:
        return Load({side: Counted(**one) for side, one in row["counted"].items()}, Footprint(**row["footprint"]))

    for name, tokens in dict.fromkeys((row["shape"], row["tokens"]) for row in rows):
        of = [row for row in rows if (row["shape"], row["tokens"]) == (name, tokens)]
        whole, portion = max(of, key=lambda row: row["pairs"]), min(of, key=lambda row: row["pairs"])
        facts = (whole[fact] for fact in ("parameters", "width", "nodes", "pairs"))
        yield Shape(name, *facts, tokens, load(whole), load(portion))
