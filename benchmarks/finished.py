"""Finished runs: found where they were made before, gone on with where they were stopped, made where they are missing."""

import sys

from circuitsieve.cli.progress import RichReporter
from circuitsieve.data.loaders import TaskOptions
from circuitsieve.runs.folder import RunFolder
from circuitsieve.workflow.finding import Job, finished_before, run
from circuitsieve.workflow.judging import evaluate_run


def finished(job: Job) -> RunFolder:
    """The folder of a job (with `resume`), with its card. An interrupt ends the program.

    Raises:
        RunError: another job was finished in the folder.
    """
    with RichReporter() as reporter:
        before = finished_before(job)
        if before is None:
            if run(job, reporter).card is None:
                sys.exit(130)
        elif not before.has("card.json"):
            evaluate_run(job.out, reporter)
    return RunFolder.open(job.out)


def options_of(task: str, seed: int = 0) -> tuple[str, TaskOptions]:
    """The name and the options of a task that is asked for as NAME or NAME:OPTION=VALUE,..."""
    name, _, words = task.partition(":")
    return name, TaskOptions(seed=seed, options=dict(word.split("=", 1) for word in words.split(",") if word))
