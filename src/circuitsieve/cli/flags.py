"""The flags that commands share: of the search, of the pairs and of the model.

Those of the search are made from the configuration, one per field, explained by the field's own docstring. The
configuration stays free of the command line; here alone the two meet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass, replace
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from cyclopts import Group, Parameter, Token
from docstring_parser import parse_from_object

from circuitsieve.config import BUDGETS, DiscoveryConfig, useful
from circuitsieve.errors import ConfigError
from circuitsieve.presets import load_config

if TYPE_CHECKING:
    from circuitsieve.data.loaders import TaskOptions
    from circuitsieve.models.loading import LoadedModel
    from circuitsieve.workflow.finding import Job


def whole(_: type, tokens: Sequence[Token]) -> int:
    """A whole number: cyclopts itself would round another one."""
    (token,) = tokens
    try:
        return int(token.value)
    except ValueError as error:
        raise ConfigError(f"{token.keyword}: found {token.value!r}, expected a whole number") from error


def wholes(_: object, tokens: Sequence[Token]) -> tuple[int, ...]:
    """Whole numbers, in the same way."""
    return tuple(whole(int, (token,)) for token in tokens)


Whole = Annotated[int, Parameter(converter=whole)]
"""The type of a flag that takes a whole number."""
AS_TYPED = Parameter(show_default=lambda values: " ".join(map(str, values)))
"""Of a flag that takes several words: the help has its default as it would be typed."""
Wholes = Annotated[tuple[int, ...], Parameter(converter=wholes), AS_TYPED]
"""The type of one that takes several whole numbers."""


@Parameter(name="*")
@dataclass(frozen=True)
class ModelFlags:
    """How the model is loaded."""

    dtype: str = "float32"
    """float32, bfloat16 or float16, for the model; masks stay float32."""
    device: str = "cpu"
    """Where the model runs, as torch spells it; auto spreads a model that is larger than one device over all accelerators,
    main memory and disk."""
    revision: str | None = None
    """Of a hub id."""
    max_memory: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()
    """With --device auto: how much of the weights may go where, as DEVICE=AMOUNT (0=20GB for the first accelerator, cpu=64GB);
    none to a device that is not named."""

    def load(self, name: str) -> "LoadedModel":
        """The model of a name.

        Raises:
            CircuitsieveError: what `load_model` raises, or --max-memory is malformed.
        """
        from circuitsieve.models.loading import load_model

        limits = table_of(self.max_memory, "--max-memory")
        return load_model(name, dtype=self.dtype, device=self.device, revision=self.revision, max_memory=limits)


@Parameter(name="*")
@dataclass(frozen=True)
class ReadingFlags:
    """How pairs are read."""

    column: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()
    """What a file or data set calls a column of a pair, as clean=THEIRS (others: corrupted, answers, wrong_answers,
    candidates, cutoff, id, template)."""
    chat: str | None = None
    """Ask in chat form: the user's turn. With {prompt} in it the answer begins the assistant's turn, else the assistant's
    turn begins with the prompt."""
    task_option: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()
    """Options of a task, as NAME=VALUE."""

    def options(self) -> "TaskOptions":
        """What a task is asked for, but for the number of pairs by split and the seed."""
        from circuitsieve.data.loaders import TaskOptions

        columns = table_of(self.column, "--column") or None
        return TaskOptions(options=table_of(self.task_option, "--task-option"), columns=columns, chat=self.chat)


@Parameter(name="*")
@dataclass(frozen=True)
class CountFlags:
    """How many pairs there are."""

    train_pairs: Whole | None = None
    """How many training pairs there are at most [default: 3072 of a task, all of a file]."""
    validation_pairs: Whole | None = None
    """How many validation pairs; they choose the circuit [default: 128 of a task, all of a file]."""
    test_pairs: Whole | None = None
    """How many test pairs; they only judge it [default: 192 of a task, all of a file]."""


BUDGET = Group("Budget: what is asked for, one of them", sort_key=1)
SEARCH = Group("Search: what decides which circuit is found", sort_key=2)
COST = Group("Cost: time and memory", sort_key=3)
TUNING = Group("Tuning: seldom needed", sort_key=4)
GROUPS = {
    **dict.fromkeys(("max_kl", "min_faithfulness", "size", "size_by", "pressure", "max_accuracy_drop"), BUDGET),
    **dict.fromkeys(("method", "granularities", "ablation", "penalty", "seed"), SEARCH),
    **dict.fromkeys(
        ("steps", "early_stopping", "batch_size", "training_dtype", "memory", "disk", "checkpointing", "shrinking"),
        COST,
    ),
}
"""Where the help shows a setting; all others are for tuning."""
MODEL_FLAGS, READING_FLAGS = ModelFlags(), ReadingFlags()


def _flag_type(name: str, hint: Any) -> Any:
    """The type of a flag: None where it is not given; KEY=VALUE words for a table."""
    if name == "penalty":
        hint = tuple[str, ...]
    return hint if isinstance(hint, UnionType) else hint | None


def _config_flags() -> type:
    """One optional flag per field of the configuration, explained by the field's own docstring."""
    meanings = {item.arg_name: item.description or "" for item in parse_from_object(DiscoveryConfig).params}
    hints, default = get_type_hints(DiscoveryConfig), DiscoveryConfig()
    flags: list[tuple[str, Any, Any]] = []
    for item in fields(DiscoveryConfig):
        value = getattr(default, item.name)
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        given = "" if value in (None, {}) else f" [default: {shown}]"
        group, converter = GROUPS.get(item.name, TUNING), whole if hints[item.name] is int else None
        parameter = Parameter(help=meanings[item.name] + given, show_default=False, group=group, converter=converter)
        flags.append((item.name, Annotated[_flag_type(item.name, hints[item.name]), parameter], None))
    # cyclopts flattens the classes of a module, not those without one.
    return make_dataclass("ConfigFlags", flags, frozen=True, namespace={"__module__": __name__})


ConfigFlags: Any = _config_flags()
"""The flags of a discovery: every field None unless it was given."""
NO_FLAGS = ConfigFlags()


def table_of(words: tuple[str, ...] | None, flag: str) -> dict[str, str]:
    """KEY=VALUE words as a dictionary."""
    table = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise ConfigError(f"{flag}: found {word!r}, expected NAME=VALUE")
        table[key] = value
    return table


def _number(flag: str, word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise ConfigError(f"{flag}: found {word!r}, expected a number") from error


def config_of(flags: Any, base: str | None) -> DiscoveryConfig:
    """The configuration of a file or preset, with the given flags on top."""
    start = load_config(base) if base is not None else DiscoveryConfig()
    return start.replaced(**_given(flags))


def configs_of(flags: Any, base: str | None, methods: Sequence[str]) -> tuple[DiscoveryConfig, ...]:
    """The same for each method of a sweep, without the flags that it has no use for, though another one has.

    Raises:
        ConfigError: a method is unknown, a flag is the sweep's to set, or no method has a use for it.
    """
    if not methods:
        raise ConfigError("methods: found none, expected at least one")
    start, given = load_config(base) if base is not None else DiscoveryConfig(), _given(flags)
    for name in ("method", *BUDGETS, "seed"):
        if name in given:
            raise ConfigError(f"{name}: found {given[name]}, expected none: a sweep has --methods, --sizes and --seeds")
    of_some = {name for name in given if any(useful(name, method) for method in methods)}
    found = []
    for method in dict.fromkeys(methods):
        own = {name: value for name, value in given.items() if name not in of_some or useful(name, method)}
        found.append(start.replaced(**dict.fromkeys(BUDGETS), **own, method=method))
    return tuple(found)


def _given(flags: Any) -> dict[str, Any]:
    """The flags that were given."""
    given = {item.name: getattr(flags, item.name) for item in fields(flags) if getattr(flags, item.name) is not None}
    if "penalty" in given:
        prices = table_of(given["penalty"], "--penalty")
        given["penalty"] = {name: _number(f"--penalty {name}", price) for name, price in prices.items()}
    return given


@Parameter(name="*")
@dataclass(frozen=True)
class JobFlags:
    """What all commands that search have in common, beside model and task."""

    config: str | None = None
    """A JSON file of settings, or a preset: paper-ioi, paper-gender-pronoun or paper-greater-than; flags come on top."""
    settings: Annotated[ConfigFlags, Parameter(name="*")] = NO_FLAGS
    reading: ReadingFlags = READING_FLAGS
    counts: CountFlags = CountFlags()
    loading: ModelFlags = MODEL_FLAGS
    only_correct: bool = False
    """Drop the pairs that the full model gets wrong."""

    def job(
        self,
        model: str,
        task: str,
        out: str,
        *,
        overwrite: bool = False,
        resume: bool = False,
        track: str | None = None,
        config: DiscoveryConfig | None = None,
    ) -> "Job":
        """What is to be searched; with a configuration, not that of the flags.

        Raises:
            ConfigError: the settings are not possible.
        """
        if overwrite and resume:
            raise ConfigError("--overwrite and --resume: found both, expected one: a run is replaced or gone on with")
        for name, count in vars(self.counts).items():
            if count is not None and count < 1:
                raise ConfigError(f"--{name.replace('_', '-')}: found {count}, expected at least 1")
        config = config or config_of(self.settings, self.config)
        from circuitsieve.workflow.finding import Job

        counts, loading = self.counts, self.loading
        data = replace(
            self.reading.options(),
            train=counts.train_pairs,
            validation=counts.validation_pairs,
            test=counts.test_pairs,
            seed=config.seed,
        )
        return Job(
            model,
            task,
            out,
            config,
            data,
            loading.dtype,
            loading.device,
            loading.revision,
            self.only_correct,
            overwrite,
            resume,
            track,
            table_of(loading.max_memory, "--max-memory"),
        )


JOB_FLAGS = JobFlags()
