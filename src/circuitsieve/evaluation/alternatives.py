"""The circuit under other baselines than those that it was found under, and beside circuits of whole heads and MLPs.

A circuit that only works with the baseline that it was found with is fitted to its corruption. A circuit of single neurons that
is no better than whole heads and MLPs with as many parameters has gained nothing from being finer.
"""

from collections.abc import Sequence
from typing import Any

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.batching import batches
from circuitsieve.data.tokenising import Example, Pairs
from circuitsieve.evaluation.harness import Harness
from circuitsieve.evaluation.metrics import Summary
from circuitsieve.models.ablations import constants
from circuitsieve.search.discovery import discover
from circuitsieve.vocabulary import Ablation, Granularity

OTHERS = (Ablation.MEAN, Ablation.RESAMPLE)
"""Baselines to try: the mean over training pairs, and another pair's activations."""
REFERENCE_PAIRS = 256
"""Training pairs that the mean is taken over."""
COARSE = (Granularity.HEAD, Granularity.MLP_BLOCK)
RANKING_PAIRS = 384
"""Training pairs by which heads and MLPs are ranked."""


def other_ablations(harness: Harness, examples: Sequence[Example], train: Sequence[Example]) -> Summary:
    """The same nodes under other baselines, with the empty circuit under each."""
    found: dict[str, Any] = {}
    intervals, reasons = {}, {}
    for ablation in OTHERS:
        name = str(ablation)
        harness.tick("other ablations")
        if ablation is harness.circuit.ablation:
            found[name], reasons[name] = None, "the circuit was found under this ablation"
        elif not ablation.is_run and not train:
            found[name], reasons[name] = None, "a mean needs training pairs"
        else:
            reference = batches(train[:REFERENCE_PAIRS], harness.config.batch_size, device=harness.subject.device)
            values = constants(harness.subject, reference, ablation)
            other = Circuit(harness.subject.space, harness.circuit.masks, ablation, values)
            here = Harness(harness.subject, other, examples, harness.config)
            summary = here.all.summary(here.run(other, here.all, "other ablations"))
            empty = here.all.summary(here.all.anchors.empty)
            found[name] = {**summary.values, "empty": {m: empty.values[m] for m in ("kl", "accuracy")}}
            intervals[name] = summary.intervals
    return Summary(found, intervals, reasons)


def rankable(harness: Harness, pairs: Pairs) -> bool:
    """Whether there is something to rank heads and MLPs by, and a size to cut them at."""
    return bool(pairs.train and pairs.validation) and 0 < harness.circuit.share("parameters") < 1


def head_level(harness: Harness, pairs: Pairs) -> Summary:
    """A circuit of whole heads and MLPs with as many parameters, ranked by integrated gradients."""
    circuit, share = harness.circuit, harness.circuit.share("parameters")
    if not rankable(harness, pairs):
        reason = "ranking heads and MLPs needs training pairs, and a circuit that is neither empty nor whole"
        return Summary({"kl": None}, {}, {"kl": reason})
    config = DiscoveryConfig(
        method="integrated_gradients",
        granularities=tuple(map(str, COARSE)),
        size=share,
        size_by="parameters",
        ablation=str(circuit.ablation),
        seed=harness.config.seed,
    )
    some = Pairs(pairs.train[:RANKING_PAIRS], pairs.validation[:REFERENCE_PAIRS], ())
    masks = discover(harness.subject.model, some, config).circuit.masks
    coarse = Circuit(circuit.space, masks, circuit.ablation, circuit.constants)
    summary = harness.all.summary(harness.run(coarse, harness.all, "heads and MLPs"))
    sizes = {
        "heads": int(coarse.masks[Granularity.HEAD].sum()),
        "mlp_blocks": int(coarse.masks[Granularity.MLP_BLOCK].sum()),
        "parameters": coarse.share("parameters"),
        "size": coarse.size,
    }
    return Summary({**summary.values, **sizes}, summary.intervals, summary.reasons)
