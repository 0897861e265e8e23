"""Docstring: the next parameter to be documented is the next one of the signature.

    def port(self, load, size, files, last):
        \"\"\"oil column piece

        :param load: crime population
        :param size: unit dark
        :param                            -> " files"

(Heimersheim and Janiak 2023; words here are our own choice.) The corrupted prompt documents other parameters than those of
the signature, so that nothing says which is next. This file knows words, never tokens: all words of one request take the same
number of tokens.
"""

import random

from circuitsieve.data.pairs import Pair, TaskRequest, TextSplits
from circuitsieve.data.tasks import Task, making

WORDS = """
load size file last first name path data text line time date page user group node edge list item value index count total
color shape image sound video frame block chain point space level layer table field record table query event action state
status result error message signal source target input output start stop begin limit range scale order sort search filter
match token word letter number price market store city road water light wind fire stone metal wood paper glass garden house
window door wall floor roof bridge train plane ship wheel engine motor power energy force speed weight height width depth
angle circle square corner center border margin title label note book story music dance game sport team player coach school
class student teacher lesson test grade science nature animal plant tree flower fruit bread meat milk sugar salt coffee
""".split()  # noqa: SIM905 (words, not a list literal, to stay readable)

_METHOD = 'def {name}(self, {a}, {b}, {c}, {d}):\n    """{w1} {w2} {w3}\n\n'
_FUNCTION = 'def {name}({a}, {b}, {c}, {d}):\n    """{w1} {w2} {w3}.\n\n'
_FIELDS = "    :param {x}: {w4} {w5}\n    :param {y}: {w6} {w7}\n    :param"
STYLES = {
    "method": _METHOD + _FIELDS,
    "function": _FUNCTION + _FIELDS,
    "method, epydoc": _METHOD + _FIELDS.replace(":param", "@param"),
    "function, epydoc": _FUNCTION + _FIELDS.replace(":param", "@param"),
}
"""{a} to {d} are the parameters, {x} and {y} those that are documented: {a} and {b}, or others."""

NEEDED = 16
"""Words of one pair: a name, four parameters, four others, seven of text."""
FILLINGS = 1_000_000
"""Pairs are drawn from so many numbered fillings of each style and split; there are far more."""


def build(request: TaskRequest) -> TextSplits:
    """The pairs of `request`: no word stands in two splits.

    Raises:
        ConfigError: an option is given; there are none.
        DataError: too few words take the same number of tokens.
    """
    making.chosen(TASK.name, {}, request.options)
    usable = making.of_one_length(TASK.name, "words", dict.fromkeys(WORDS), request.tokens_in, 3 * NEEDED)
    words = making.split(usable, random.Random(f"docstring words {request.seed}"), at_least=NEEDED)

    def make(split: str) -> tuple[Pair, ...]:
        def fill(style: str, number: int, _: random.Random) -> Pair:
            drawn = random.Random(f"docstring {split} {style} {request.seed} {number}").sample(words[split], NEEDED)
            name, a, b, c, d, x, y, u, v, *text = drawn
            fixed = {"name": name, **{f"w{i}": word for i, word in enumerate(text, start=1)}}
            clean = STYLES[style].format(**fixed, a=a, b=b, c=c, d=d, x=a, y=b)
            corrupted = STYLES[style].format(**fixed, a=a, b=b, c=u, d=v, x=x, y=y)
            wrong = tuple(f" {word}" for word in (a, b, d, u, v, x, y))
            return Pair(clean, corrupted, (f" {c}",), wrong, template=style)

        return making.spread(
            f"docstring-{split}",
            getattr(request, split),
            list(STYLES),
            FILLINGS,
            fill,
            random.Random(f"docstring {split} {request.seed}"),
        )

    return making.splits(make)


TASK = Task(
    name="docstring",
    summary="docstring: the parameter of a Python function that is to be documented next",
    build=build,
)
