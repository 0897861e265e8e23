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
    from circuitsieve.application import applied
    from circuitsieve.checkpoint import save_compact
    from circuitsieve.circuit import Circuit, Ranking
    from circuitsieve.config import DiscoveryConfig
    from circuitsieve.data import Pairs
    from circuitsieve.discovery import Discovery, discover
    from circuitsieve.errors import CircuitsieveError
    from circuitsieve.evaluation.card import Card, evaluate
    from circuitsieve.evaluation.harness import EvaluationConfig
    from circuitsieve.loaders import TaskOptions, load_task
    from circuitsieve.models import LoadedModel, load_model
    from circuitsieve.nodes import NodeSpace
    from circuitsieve.pairs import Pair, TaskRequest, TextSplits
    from circuitsieve.runs import RunFolder
    from circuitsieve.surgery import compact
    from circuitsieve.tasks import Task

_HOMES = {
    "Card": "evaluation.card",
    "Circuit": "circuit",
    "CircuitsieveError": "errors",
    "Discovery": "discovery",
    "DiscoveryConfig": "config",
    "EvaluationConfig": "evaluation.harness",
    "LoadedModel": "models",
    "NodeSpace": "nodes",
    "Pair": "pairs",
    "Pairs": "data",
    "Ranking": "circuit",
    "RunFolder": "runs",
    "Task": "tasks",
    "TaskOptions": "loaders",
    "TaskRequest": "pairs",
    "TextSplits": "pairs",
    "applied": "application",
    "compact": "surgery",
    "discover": "discovery",
    "evaluate": "evaluation.card",
    "load_model": "models",
    "load_task": "loaders",
    "save_compact": "checkpoint",
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
