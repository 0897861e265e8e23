"""From a run folder to the folder of a compact model, with what that cost and what it saves.

A circuit that was found with another prompt's activations has to do without that prompt: its closed nodes take their means over
the training pairs. What that changes is measured on the test pairs.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from circuitsieve.circuits.circuit import Circuit
from circuitsieve.data.batching import batches
from circuitsieve.data.tokenising import Example, Pairs
from circuitsieve.disk import files
from circuitsieve.errors import ConfigError
from circuitsieve.evaluation.alternatives import REFERENCE_PAIRS
from circuitsieve.evaluation.card import measure_circuits
from circuitsieve.models.ablations import constants
from circuitsieve.models.architectures import architecture_of
from circuitsieve.models.checkpoint import save_compact
from circuitsieve.models.instrument import answer_logits, masked
from circuitsieve.models.loading import LoadedModel
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.models.surgery import check_foldable, compact
from circuitsieve.models.tuning import tune
from circuitsieve.objective import PairMetrics, measure
from circuitsieve.runs.folder import RunFolder
from circuitsieve.vocabulary import Ablation
from circuitsieve.workflow.judging import load_run_model, run_pairs
from circuitsieve.workflow.reporting import Reporter

BATCH_SIZE = 16
TOKENS = 24
"""Of every prompt that is timed."""
REPEATS = 5
SHOWN = ("kl", "accuracy", "exact_match")


@dataclass(frozen=True)
class Compacted:
    """A compact model in its folder, and what was measured on it."""

    folder: Path
    model: PreTrainedModel
    about: dict[str, Any]
    """As in compact.json: `ablation`, `quality`, `cost` and more."""


def compact_run(
    path: str, out: Path, reporter: Reporter, *, recover_steps: int = 0, device: str | None = None
) -> Compacted:
    """Write the circuit of a run as a smaller model.

    Args:
        path: the run folder.
        out: a new or empty folder.
        reporter: is told how it goes.
        recover_steps: how many steps the folded constants are tuned on training pairs; 0 leaves them as they are.
        device: where the model runs; that of the run if not given.

    Raises:
        RunError: the run is damaged, or the folder holds things or cannot be written.
        ConfigError: the circuit cannot be folded into a model, or there are less than no steps.
    """
    if recover_steps < 0:
        raise ConfigError(f"recover: found {recover_steps}, expected at least 0 steps")
    folder = RunFolder.open(path)
    files.check_empty(out, "the compact model")
    found, _ = folder.read_circuit()
    loaded = load_run_model(folder, device)
    pairs = run_pairs(folder, loaded)
    with frozen(loaded.model):
        circuit = foldable(loaded.model, found, pairs)
        if circuit.ablation is not found.ablation:
            reporter.say(
                f"the circuit was found with the baseline {found.ablation}, which a model of its own does not have: closed nodes "
                f"take their mean over the training pairs"
            )
        smaller = compact(loaded.model, circuit)
        quality = _quality(loaded, found, circuit, smaller, pairs)
        if recover_steps:
            tune(answering(smaller, circuit), Subject.of(loaded.model), pairs, recover_steps, reporter.evaluation)
            quality["recovered"] = quality_of(smaller, circuit, loaded.model, pairs.test)
        about = {
            "run": str(folder.path),
            "ablation": str(circuit.ablation),
            "found_with": str(found.ablation),
            "recover_steps": recover_steps,
            "quality": quality,
            "cost": saved(loaded.model, smaller, circuit),
        }
    with files.whole_folder(out) as temporary:
        save_compact(temporary, smaller, loaded.tokenizer, circuit, about)
    return Compacted(out, smaller, about)


def foldable(model: nn.Module, circuit: Circuit, pairs: Pairs) -> Circuit:
    """The circuit itself, if it can be folded into a model; else the same nodes under mean ablation.

    Args:
        model: that the circuit was found in.
        circuit: of any ablation.
        pairs: means are taken over the corrupted prompts of some training pairs, as on the full card.

    Raises:
        ConfigError: the circuit does not keep the embedding.
    """
    if circuit.ablation.is_run or circuit.ablation is Ablation.MEAN_POSITIONAL:
        subject = Subject.of(model)
        means = constants(
            subject, batches(pairs.train[:REFERENCE_PAIRS], BATCH_SIZE, device=subject.device), Ablation.MEAN
        )
        circuit = Circuit(circuit.space, circuit.masks, Ablation.MEAN, means)
    check_foldable(circuit)
    return circuit


def answering(smaller: PreTrainedModel, circuit: Circuit) -> Subject:
    """A compact model as something that answers; its nodes are those of the full model, which it does not have."""
    return Subject(smaller, architecture_of(smaller), circuit.space)


def _quality(
    loaded: LoadedModel, found: Circuit, circuit: Circuit, smaller: PreTrainedModel, pairs: Pairs
) -> dict[str, Any]:
    """Test pairs: the circuit as it was found, under the constants, and as a model; how far the last two differ."""
    under = {"circuit": found, **({} if circuit is found else {"constants": circuit})}
    quality: dict[str, Any] = {}
    for name, one in under.items():
        values = measure_circuits(loaded.model, [one], pairs.test)[0].values
        quality[name] = {metric: values[metric] for metric in SHOWN}
    quality["compact"] = quality_of(smaller, circuit, loaded.model, pairs.test)
    quality["difference"] = _difference(answering(smaller, circuit), Subject.of(loaded.model), circuit, pairs.test)
    quality["pairs"] = len(pairs.test)
    return quality


@torch.no_grad()
def quality_of(
    smaller: PreTrainedModel, circuit: Circuit, model: nn.Module, examples: Sequence[Example]
) -> dict[str, float]:
    """Mean KL, accuracy and exact match of a compact model beside the full one, as `evaluate` measures a circuit.

    Args:
        smaller: the compact model.
        circuit: that it was made of.
        model: that the circuit was found in.
        examples: held-out pairs.
    """
    full, small = Subject.of(model), answering(smaller, circuit)
    found: list[PairMetrics] = []
    for batch in batches(examples, BATCH_SIZE, device=full.device):
        said, own = (answer_logits(subject, batch.clean, batch.positions) for subject in (full, small))
        found.append(measure(said, own, batch.targets))
    return {name: float(torch.cat([getattr(one, name) for one in found]).mean()) for name in SHOWN}


@torch.no_grad()
def _difference(smaller: Subject, subject: Subject, circuit: Circuit, examples: Sequence[Example]) -> float:
    """Between a compact model and the circuit as masks: the largest difference of logits, relative to the largest logit."""
    assert circuit.constants is not None
    worst = 0.0
    for batch in batches(examples[:BATCH_SIZE], BATCH_SIZE, device=subject.device):
        with masked(subject, circuit.site_masks(), circuit.constants):
            expected = answer_logits(subject, batch.clean, batch.positions)
        logits = answer_logits(smaller, batch.clean, batch.positions)
        worst = max(worst, float((logits - expected).abs().max() / expected.abs().max()))
    return worst


# --- what it saves ------------------------------------------------------------------------------------------------------


def saved(full: PreTrainedModel, smaller: PreTrainedModel, circuit: Circuit) -> dict[str, Any]:
    """Parameters, bytes and times of a compact model beside the full one.

    Returns:
        `projections` (parameters of attention and MLP projections, as on the card), `parameters` and `bytes` (of the whole
        model), `forward` (seconds for a batch of prompts) and `token` (seconds for one more token, with a cache), each with
        `full` and `compact`.
    """
    models = {"full": full, "compact": smaller}
    count = circuit.parameters
    cost: dict[str, Any] = {"projections": {"full": count.total, "compact": count.kept}}
    cost["parameters"] = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    cost["bytes"] = {name: sum(p.nbytes for p in model.parameters()) for name, model in models.items()}
    context = Subject.of(full).context
    tokens = TOKENS if context is None else min(TOKENS, context - 1)  # one more comes after them
    prompts = torch.ones(BATCH_SIZE, tokens, dtype=torch.long, device=full.device)
    cost["forward"] = _timed({name: _forward_of(model, prompts) for name, model in models.items()})
    cost["token"] = _timed({name: _token_of(model, prompts[:1]) for name, model in models.items()})
    cost["timed"] = {"prompts": BATCH_SIZE, "tokens": tokens}
    return cost


Prepared = Callable[[], Callable[[], object]]
"""Makes ready what is to be timed, and returns it."""


def _timed(calls: dict[str, Prepared]) -> dict[str, float]:
    """The median time of each, taken in turns, so that both see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for turn in range(REPEATS + 1):
            for name, prepared in calls.items():
                call = prepared()
                start = time.perf_counter()
                call()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if turn:  # the first one warms up
                    times[name].append(time.perf_counter() - start)
    return {name: median(each) for name, each in times.items()}


def _forward_of(model: PreTrainedModel, prompts: torch.Tensor) -> Prepared:
    """A pass over whole prompts to the last logits."""
    return lambda: lambda: model(prompts, use_cache=False, logits_to_keep=1)


def _token_of(model: PreTrainedModel, prompt: torch.Tensor) -> Prepared:
    """One more token after a prompt. A pass writes into its cache, so that each has a copy, which is not timed."""
    with torch.no_grad():
        cache = model(prompt, use_cache=True).past_key_values

    def prepared() -> Callable[[], object]:
        own = copy.deepcopy(cache)
        return lambda: model(prompt[:, :1], past_key_values=own, use_cache=True)

    return prepared
