"""Commands that only look: at the built-in tasks, at pairs of one's own, at a model. `cli` puts them on the command line.

torch and transformers are imported inside, as there.
"""

from cyclopts import App
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitsieve.cli.console import print_json
from circuitsieve.cli.flags import MODEL_FLAGS, READING_FLAGS, ModelFlags, ReadingFlags, Whole
from circuitsieve.cli.progress import RichReporter
from circuitsieve.errors import ConfigError


def tasks(*, json: bool = False) -> int:
    """List the built-in tasks and their options.

    Parameters
    ----------
    json
        Print one JSON document.
    """
    from circuitsieve.data import tasks as built_in

    known = [built_in.get(name) for name in built_in.names()]
    if json:
        print_json({task.name: {"summary": task.summary, "options": task.options} for task in known})
        return 0
    table = Table.grid(padding=(0, 2))
    for task in known:
        table.add_row(Text(task.name, "bold"), Text(task.summary))
        for option, meaning in task.options.items():
            table.add_row("", Text(f"--task-option {option}=...\n{meaning}", "dim"))
    Console().print(table)
    return 0


data_app = App(name="data", help="Look at pairs of your own before anything is spent on them.")


@data_app.command(name="check")
def data_check(
    task: str,
    /,
    *,
    model: str,
    reading: ReadingFlags = READING_FLAGS,
    loading: ModelFlags = MODEL_FLAGS,
    pairs: Whole = 3,
    json: bool = False,
) -> int:
    """Say which pairs are usable, why others are not, how their tokens align, and how well the full model does.

    Parameters
    ----------
    task
        A file, folder, data set or task, as for `discover`.
    model
        As for `discover`.
    pairs
        How many usable and how many dropped pairs are shown word by word.
    json
        Print one JSON document.
    """
    from circuitsieve.data.loaders import load_texts
    from circuitsieve.report.terminal import data_view
    from circuitsieve.workflow.datacheck import check_data

    if pairs < 0:
        raise ConfigError(f"--pairs: found {pairs}, expected at least 0")
    loaded = loading.load(model)
    splits = load_texts(task, loaded.tokenizer, reading.options())
    report = check_data(loaded, splits)
    if json:
        print_json(report.to_dict())
    else:
        Console().print(data_view(report, pairs))
    empty = [split for split, count in report.usable.items() if not count]
    if empty:
        said = (
            f"circuitsieve: {task}: found no usable pair in the {' and the '.join(empty)} split, expected some in each"
        )
        Console(stderr=True).print(Text(f"{said}; give more pairs, or a file for each split"), soft_wrap=True)
    return 1 if empty else 0


def check(model: str, /, *, loading: ModelFlags = MODEL_FLAGS, json: bool = False) -> int:
    """Check on a given model that masking does what it says, and print each tolerance reached. Needs no prompts.

    Parameters
    ----------
    model
        As for `discover`.
    json
        Print one JSON document.
    """
    from circuitsieve.models.selfcheck import selfcheck
    from circuitsieve.report.terminal import check_table

    with RichReporter() as reporter:
        loaded = loading.load(model)
        results = selfcheck(loaded.model, progress=reporter.evaluation)
    if json:
        print_json({"model": model, "checks": [{**result._asdict(), "passed": result.passed} for result in results]})
    else:
        Console().print(check_table(results))
    return 0 if all(result.passed for result in results) else 1
