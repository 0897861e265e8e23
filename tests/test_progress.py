"""What whoever waits sees."""

from circuitsieve.cli.progress import RichReporter


def test_a_second_evaluation_has_its_own_total():
    with RichReporter() as reporter:
        reporter.evaluation("quick", 3, 4)
        reporter.evaluation("full", 5, 700)
        (bar,) = reporter.progress.tasks
        assert (bar.completed, bar.total) == (5, 700)
