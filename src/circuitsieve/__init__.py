"""circuitsieve: the smallest circuit of a language model that still does one behaviour.

    model, tokenizer = circuitsieve.load_model("smollm2")
    pairs = circuitsieve.load_task("ioi", tokenizer)
    result = circuitsieve.discover(model, pairs, circuitsieve.DiscoveryConfig(max_kl=0.1))
    card = circuitsieve.evaluate(model, result.circuit, pairs.test)
    result.save("runs/ioi")

Names are loaded when they are first used: importing the package loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuitsieve.circuits.circuit import Circuit, Ranking
    from circuitsieve.circuits.nodes import NodeSpace
    from circuitsieve.config import DiscoveryConfig
    from circuitsieve.data.loaders import TaskOptions, load_task
    from circuitsieve.data.pairs import Pair, TaskRequest, TextSplits
    from circuitsieve.data.tasks import Task
    from circuitsieve.data.tokenising import Pairs
    from circuitsieve.errors import CircuitsieveError
    from circuitsieve.evaluation.card import Card, evaluate
    from circuitsieve.evaluation.harness import EvaluationConfig
    from circuitsieve.models.application import applied
    from circuitsieve.models.checkpoint import save_compact
    from circuitsieve.models.loading import LoadedModel, load_model
    from circuitsieve.models.surgery import compact
    from circuitsieve.runs.folder import RunFolder
    from circuitsieve.search.discovery import Discovery, discover

_HOMES = {
    "Card": "evaluation.card",
    "Circuit": "circuits.circuit",
    "CircuitsieveError": "errors",
    "Discovery": "search.discovery",
    "DiscoveryConfig": "config",
    "EvaluationConfig": "evaluation.harness",
    "LoadedModel": "models.loading",
    "NodeSpace": "circuits.nodes",
    "Pair": "data.pairs",
    "Pairs": "data.tokenising",
    "Ranking": "circuits.circuit",
    "RunFolder": "runs.folder",
    "Task": "data.tasks",
    "TaskOptions": "data.loaders",
    "TaskRequest": "data.pairs",
    "TextSplits": "data.pairs",
    "applied": "models.application",
    "compact": "models.surgery",
    "discover": "search.discovery",
    "evaluate": "evaluation.card",
    "load_model": "models.loading",
    "load_task": "data.loaders",
    "save_compact": "models.checkpoint",
}

__all__ = [
    "Card",
    "Circuit",
    "CircuitsieveError",
    "Discovery",
    "DiscoveryConfig",
    "EvaluationConfig",
    "LoadedModel",
    "NodeSpace",
    "Pair",
    "Pairs",
    "Ranking",
    "RunFolder",
    "Task",
    "TaskOptions",
    "TaskRequest",
    "TextSplits",
    "applied",
    "compact",
    "discover",
    "evaluate",
    "load_model",
    "load_task",
    "save_compact",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
