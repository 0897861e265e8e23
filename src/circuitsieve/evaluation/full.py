"""The full card: what the quick card leaves open, section by section.

Each section is measured by itself and can be remembered by itself, so that a card that was stopped goes on where it stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from circuitsieve.circuits.circuit import Circuit, Ranking
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.tokenising import Pairs
from circuitsieve.errors import ConfigError
from circuitsieve.evaluation.agreement import equivalence, independence
from circuitsieve.evaluation.alternatives import OTHERS, head_level, other_ablations, rankable
from circuitsieve.evaluation.areas import SIZES, areas
from circuitsieve.evaluation.card import Ticker
from circuitsieve.evaluation.harness import EvaluationConfig, Harness, Progress
from circuitsieve.evaluation.knockouts import completeness, necessity, sufficiency
from circuitsieve.evaluation.metrics import Summary
from circuitsieve.evaluation.minimality import chosen_nodes, minimality, null_nodes
from circuitsieve.evaluation.published import published
from circuitsieve.evaluation.robustness import Origin, robustness, robustness_runs, transfer, transfer_runs
from circuitsieve.evaluation.stability import BATCHES_OF_A_SEARCH, reruns, stability
from circuitsieve.evaluation.verdicts import Remembered, judged
from circuitsieve.models.subject import fitting, frozen
from circuitsieve.search.screening import check_fit


@dataclass(frozen=True)
class Evidence:
    """What a full card is made from."""

    harness: Harness
    pairs: Pairs
    ranking: Ranking | None
    config: DiscoveryConfig | None
    """Of the search."""
    origin: Origin | None


Measured = dict[str, Summary]


@dataclass(frozen=True)
class Section:
    """A part of the card."""

    names: tuple[str, ...]
    runs: Callable[[Evidence], int]
    """How many circuits it runs."""
    measure: Callable[[Evidence], Measured]
    extra: Callable[[Evidence], float] = lambda _: 0.0
    """What else it takes, in runs on the few pairs; below 0 where a run takes less."""


def _alone(name: str, measure: Callable[[Harness], Summary], runs: Callable[[Evidence], int]) -> Section:
    return Section((name,), runs, lambda evidence: {name: measure(evidence.harness)})


def _necessity_runs(evidence: Evidence) -> int:
    config = evidence.harness.config
    return 2 + config.tested_circuits + config.random_circuits + min(config.tested_circuits, config.random_circuits)


def _minimality_runs(evidence: Evidence) -> int:
    nulls = sum(map(len, null_nodes(evidence.harness).values()))
    return 1 + len(chosen_nodes(evidence.harness)) + nulls


def _cuttable(ranking: Ranking | None) -> bool:
    """Whether a ranking can be cut at all the sizes that areas are taken over."""
    return ranking is not None and 1 - ranking.share_ranked <= min(SIZES)


def _areas(evidence: Evidence) -> Measured:
    ranking = evidence.ranking
    if ranking is not None and _cuttable(ranking):
        return areas(evidence.harness, ranking)
    reason = "the run has no ranking"
    if ranking is not None:
        reason = f"only {ranking.share_ranked:.0%} of the units are ranked, so that it cannot be cut at small sizes"
    return {name: _missing("area", reason) for name in ("cpr", "cmd")}


def _missing(name: str, reason: str) -> Summary:
    return Summary({name: None}, {}, {name: reason})


SECTIONS = (
    _alone("equivalence", equivalence, lambda _: 1),
    _alone("independence", independence, lambda _: 1),
    _alone("completeness", completeness, lambda evidence: 1 + 2 * evidence.harness.config.subsets),
    _alone("sufficiency", sufficiency, lambda evidence: 1 + evidence.harness.config.tested_circuits),
    _alone("necessity", necessity, _necessity_runs),
    Section(("cpr", "cmd"), lambda evidence: len(SIZES) * _cuttable(evidence.ranking), _areas),
    Section(
        ("minimality",),
        _minimality_runs,
        lambda e: {"minimality": minimality(e.harness)},
        lambda e: -_minimality_runs(e) / 2,  # each begins at the layer of its node
    ),
    Section(
        ("other_ablations",),
        lambda _: len(OTHERS),
        lambda e: {"other_ablations": other_ablations(e.harness, e.pairs.test, e.pairs.train)},
    ),
    Section(
        ("head_level",),
        lambda e: rankable(e.harness, e.pairs),
        lambda e: {"head_level": head_level(e.harness, e.pairs)},
    ),
    Section(
        ("robustness",),
        lambda e: robustness_runs(e.origin),
        lambda e: {"robustness": robustness(e.harness, e.pairs.test, e.origin)},
    ),
    Section(("transfer",), lambda e: transfer_runs(e.origin), lambda e: {"transfer": transfer(e.harness, e.origin)}),
    Section(
        ("published",),
        lambda _: 0,
        lambda e: {"published": published(e.harness, None if e.origin is None else e.origin.task)},
    ),
    Section(
        ("stability",),
        lambda e: reruns(e.pairs, e.config) + bool(reruns(e.pairs, e.config)),
        lambda e: {"stability": stability(e.harness, e.pairs, e.config)},
        lambda e: reruns(e.pairs, e.config) * BATCHES_OF_A_SEARCH / len(e.harness.few.batches),
    ),
)


def evaluate_fully(
    model: nn.Module,
    circuit: Circuit,
    pairs: Pairs,
    ranking: Ranking | None = None,
    *,
    search: DiscoveryConfig | None = None,
    origin: Origin | None = None,
    config: EvaluationConfig = EvaluationConfig(),
    progress: Progress | None = None,
    announce: Callable[[int, float], object] = lambda *_: None,
    known: Remembered | None = None,
    remember: Callable[[str, dict[str, Any]], object] = lambda *_: None,
) -> dict[str, Any]:
    """Measure what the quick card leaves open.

    Args:
        model: the model that the circuit was found in; it is left as it was.
        circuit: the circuit.
        pairs: the test pairs judge; training and validation pairs are for what is searched again.
        ranking: that the circuit was cut from.
        search: how the circuit was found.
        origin: where the pairs come from.
        config: how many controls, on how many pairs.
        progress: called before every circuit.
        announce: called with how many circuits there are to run, and about how many seconds that takes.
        known: sections that need not be measured again.
        remember: called with the name and the content of each section that was measured.

    Returns:
        The sections by name; with `intervals`, `reasons` and `verdicts` by the same names.

    Raises:
        DataError: the pairs do not fit the model.
        ConfigError: there would be no controls at all.
    """
    for name in ("random_circuits", "tested_circuits", "subsets"):
        if (count := getattr(config, name)) < 1:
            raise ConfigError(f"{name}: found {count}, expected at least 1 for the full card")
    subject = fitting(model, circuit.space)
    check_fit(subject.model, pairs.test)
    found = dict(known or {})
    with frozen(model):
        ticker = Ticker(progress, 0)
        harness = Harness(subject, circuit, pairs.test, config, ticker)
        evidence = Evidence(harness, pairs, ranking, search, origin)
        missing = [section for section in SECTIONS if not set(section.names) <= found.keys()]
        ticker.total = sum(section.runs(evidence) for section in missing)
        if missing:
            extra = sum(section.extra(evidence) for section in missing)
            announce(ticker.total, (ticker.total + extra) * harness.seconds_of_a_run())
        for section in missing:
            for name, summary in section.measure(evidence).items():
                found[name] = {"values": summary.values, "intervals": summary.intervals, "reasons": summary.reasons}
                remember(name, found[name])
        ticker.end()
    return judged({name: found[name] for section in SECTIONS for name in section.names})
