"""Files of pairs: what is read, how it is split, and the sentence for everything that can be wrong with one."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsieve.data import tasks
from circuitsieve.data.loaders import TaskOptions, load_task, split_by_hash
from circuitsieve.data.pairs import SPLITS, Pair, TaskRequest, TextSplits
from circuitsieve.data.sources import pairs_of, read_pairs
from circuitsieve.data.tasks import Task
from circuitsieve.errors import ConfigError, DataError
from damage import examples
from tiny import name_pairs, word_tokenizer, write_jsonl

ENTRY = {"clean": "When Mary", "corrupted": "When Anna", "answers": [" and", " to"], "wrong_answers": [" the"]}


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def complaint(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading ------------------------------------------------------------------------------------------------------------


def test_every_column_is_read(tmp_path):
    full = {**ENTRY, "candidates": [" and", " to", " the"], "cutoff": [" and", " to"], "id": 7, "template": "abba"}
    read = read_pairs(written(tmp_path / "p.jsonl", ENTRY, "", "  ", full))
    plain = Pair("When Mary", "When Anna", (" and", " to"), (" the",))
    assert read == (
        plain,
        replace(plain, candidates=(" and", " to", " the"), cutoff=(" and", " to"), id="7", template="abba"),
    )


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_separators_inside_a_text_end_no_line(tmp_path, separator):
    entry = {**ENTRY, "clean": f"When{separator}Mary"}
    text = json.dumps(entry, ensure_ascii=False)
    path = written(tmp_path / "p.jsonl", text, ENTRY)
    assert [pair.clean for pair in read_pairs(path)] == [entry["clean"], "When Mary"]
    assert complaint(written(path, text, "nonsense")).startswith(f"{path}, line 2: found malformed JSON")


def test_byte_order_mark_and_windows_lines_are_read(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(ENTRY)}\r\n{json.dumps(ENTRY)}\r\n".encode())
    assert len(read_pairs(path)) == 2


COLUMNS = "clean, corrupted, answers, wrong_answers, candidates, cutoff, id, template"
MALFORMED = [
    (
        '{"clean": "When',
        "found malformed JSON (Unterminated string starting at: line 1 column 11 (char 10)), expected an object",
    ),
    ("[" * 100_000, "found malformed JSON (maximum recursion depth exceeded"),
    ([1, 2], "found list, expected an object with clean, corrupted, answers, wrong_answers"),
    ({**ENTRY, "answer": " x"}, f"found the unknown column 'answer', expected {COLUMNS}"),
    ({**ENTRY, "clean": 3}, "clean: found 3, expected a text"),
    ({**ENTRY, "corrupted": ""}, "corrupted: found '', expected a text"),
    (
        {"clean": "a"},
        "found no corrupted, expected clean, corrupted, answers, wrong_answers; if it has another name, map",
    ),
    ({**ENTRY, "corrupted": None}, "corrupted: found None, expected a text"),
    ({**ENTRY, "clean": "\ud800"}, "clean: found '\\ud800', expected a text"),
    ({**ENTRY, "answers": 3}, "answers: found 3, expected a list of texts"),
    ({**ENTRY, "answers": ""}, "answers: found an empty list, expected at least one text"),
    ({**ENTRY, "answers": []}, "answers: found an empty list, expected at least one text"),
    ({**ENTRY, "wrong_answers": [" x", 3]}, "wrong_answers: found [' x', 3], expected a list of texts"),
    ({**ENTRY, "wrong_answers": [""]}, "wrong_answers: found [''], expected a list of texts"),
    ({**ENTRY, "candidates": None}, "candidates: found None, expected a list of texts"),
    ({**ENTRY, "cutoff": ["1"]}, "cutoff: found 1 texts, expected two, just above and just below the border"),
    ({**ENTRY, "id": {"a": 1}}, "id: found {'a': 1}, expected a text or a whole number"),
    ({**ENTRY, "template": True}, "template: found True, expected a text or a whole number"),
]


@pytest.mark.parametrize(("line", "expected"), MALFORMED, ids=[expected[:30] for _, expected in MALFORMED])
def test_malformed_lines_are_named_by_their_number(tmp_path, line, expected):
    path = written(tmp_path / "p.jsonl", ENTRY, "", line, ENTRY)
    assert complaint(path).startswith(f"{path}, line 3: {expected}")


def test_unreadable_files_are_named(tmp_path):
    assert complaint(tmp_path / "none.jsonl") == (
        f"{tmp_path}/none.jsonl: cannot be read ([Errno 2] No such file or directory: '{tmp_path}/none.jsonl'), expected "
        "pairs as JSON lines in UTF-8"
    )
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"clean": "Zoë"}'.encode("latin-1"))
    assert "'utf-8' codec can't decode byte 0xeb" in complaint(latin)
    for empty in (written(tmp_path / "empty.jsonl"), written(tmp_path / "blank.jsonl", "", "  ")):
        assert complaint(empty) == f"{empty}: found no pairs, expected one JSON object a line"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
ENTRIES = st.fixed_dictionaries(
    {}, optional={**dict.fromkeys(ENTRY, JSON), "candidates": JSON, "cutoff": JSON, "id": JSON, "template": JSON}
)
NEARLY = st.fixed_dictionaries(
    dict.fromkeys(ENTRY, JSON | st.text(min_size=1) | st.lists(st.text(min_size=1), min_size=1, max_size=2))
)


@examples(100)
@given(st.text() | JSON.map(json.dumps) | (ENTRIES | NEARLY).map(json.dumps))
def test_any_line_gives_pairs_or_a_data_error(tmp_path_factory, line):
    path = tmp_path_factory.mktemp("any") / "p.jsonl"
    path.write_bytes(line.encode("utf-8", "surrogatepass"))
    try:
        read_pairs(path)
    except DataError as error:
        assert str(error).startswith(str(path))  # noqa: PT017 - an error is one of two right outcomes


@examples(100)
@given(ENTRIES | NEARLY)
def test_any_row_gives_a_pair_or_a_data_error(row):
    try:
        (pair,) = pairs_of([("here", row)])
    except DataError as error:
        assert str(error).startswith("here: ")  # noqa: PT017 - an error is one of two right outcomes
    else:
        answers = row["answers"]
        assert (pair.clean, list(pair.answers)) == (row["clean"], [answers] if isinstance(answers, str) else answers)
        assert "".join((pair.clean, pair.corrupted, *pair.answers, *pair.wrong_answers)).encode()
        split_by_hash((pair,))


# --- CSV and other names of columns -------------------------------------------------------------------------------------

HEADER = "clean,corrupted,answers,wrong_answers"


def test_csv_is_read_with_several_answers_in_a_cell(tmp_path):
    path = written(tmp_path / "p.csv", HEADER, '"When Mary, once",When Anna, and| to, the', "a,b, c, d")
    first, second = read_pairs(path)
    assert first == Pair("When Mary, once", "When Anna", (" and", " to"), (" the",))
    assert second.answers == (" c",)


def test_a_bar_separates_only_in_csv(tmp_path):
    (pair,) = read_pairs(written(tmp_path / "p.jsonl", {**ENTRY, "answers": " a|b"}))
    assert pair.answers == (" a|b",)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([HEADER, "a,b, c"], "line 2: found 3 cells, expected 4, as in the header"),
        ([HEADER, "a,b, c, d, e"], "line 2: found 5 cells, expected 4, as in the header"),
        ([HEADER, "a,b,, d"], "line 2: answers: found an empty list, expected at least one text"),
        ([HEADER, '"a,b'], "line 2: found malformed CSV (unexpected end of data), expected RFC 4180"),
        (
            ["prompt,corrupted,answers,wrong_answers", "a,b, c, d"],
            "line 2: found the unknown column 'prompt', expected ",
        ),
        ([HEADER], ": found no pairs, expected a header and one pair a line"),
        (
            [f"{HEADER},answers", "a,b, c, d, e"],
            "line 1: found the column 'answers' more than once, expected different names",
        ),
    ],
)
def test_malformed_csv(tmp_path, lines, sentence):
    path = written(tmp_path / "p.csv", *lines)
    assert complaint(path).removeprefix(str(path)).lstrip(",: ").startswith(sentence.lstrip(": "))


def test_columns_of_other_names_are_mapped(tmp_path):
    path = written(tmp_path / "p.csv", "prompt,corrupted,target,foil,note", "a,b, c, d,whatever")
    columns = {"clean": "prompt", "answers": "target", "wrong_answers": "foil"}
    assert read_pairs(path, columns) == (Pair("a", "b", (" c",), (" d",)),)
    with pytest.raises(
        DataError, match=r"line 2: column for clean: found 'promt', expected one of .*did you mean 'prompt'"
    ):
        read_pairs(path, {**columns, "clean": "promt"})
    with pytest.raises(DataError, match="column of a pair: found 'clear', expected one of clean"):
        read_pairs(path, {"clear": "prompt"})
    (pair,) = read_pairs(path, {**columns, "id": "note", "template": "note"})
    assert (pair.id, pair.template) == ("whatever", "whatever")


def test_folder_of_csv_files(tmp_path):
    for split, row in zip(SPLITS, ("When Mary,When Anna", "When John,When Paul", "When Ruth,When Jane"), strict=True):
        written(tmp_path / f"{split}.csv", HEADER, f"{row}, and, to")
    loaded = load_task(str(tmp_path), word_tokenizer())
    assert [[e.pair.clean for e in loaded.split(name)] for name in SPLITS] == [
        ["When Mary"],
        ["When John"],
        ["When Ruth"],
    ]


def test_function_that_yields_pairs_is_a_task():
    pairs = name_pairs(60)
    loaded = load_task(lambda: iter(pairs), word_tokenizer())
    assert {e.pair.clean: name for name in SPLITS for e in loaded.split(name)} == where(pairs)


def test_task_object_is_a_task():
    def build(request: TaskRequest) -> TextSplits:
        assert request.pieces(" Mary went") == ("Mary", "went")
        pairs = name_pairs(request.train + request.validation + request.test)
        return TextSplits(pairs[:5], pairs[5:8], pairs[8:])

    loaded = load_task(Task("mine", "of my own", build), word_tokenizer(), TaskOptions(5, 3, 2))
    assert [len(loaded.split(name)) for name in SPLITS] == [5, 3, 2]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that adds two tasks by entry points."""
    (tmp_path / "other_package.py").write_text(
        "from circuitsieve.data.tasks import Task\nfrom circuitsieve.data.tasks.ioi import TASK as IOI\n"
        "TASK = Task('theirs', 'of another package', IOI.build)\nNOTHING = 3\n"
    )
    about = tmp_path / "other_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[circuitsieve.tasks]\ntheirs = other_package:TASK\nno_task = other_package:NOTHING\ngone = no_such_module:TASK\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_other_packages_add_tasks():
    assert {"theirs", "no_task", "gone", "ioi"} <= set(tasks.names())
    assert tasks.get("theirs").summary == "of another package"
    with pytest.raises(
        DataError, match=r"^task no_task: found int at 'other_package:NOTHING', expected a circuitsieve Task$"
    ):
        tasks.get("no_task")
    with pytest.raises(
        DataError, match=r"^task gone: found an entry point 'no_such_module:TASK' that cannot be imported"
    ):
        tasks.get("gone")


def test_data_sets_on_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = ("prompt", "corrupted", "target", "foil")
    rows = [
        dict(zip(names, (p.clean, p.corrupted, p.answers[0], p.wrong_answers[0]), strict=True)) for p in name_pairs(40)
    ]
    columns = {"clean": "prompt", "answers": "target", "wrong_answers": "foil"}
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    loaded = load_task(f"hf:{tmp_path}/one", word_tokenizer(), TaskOptions(columns=columns))
    assert {e.pair.clean: name for name in SPLITS for e in loaded.split(name)} == where(name_pairs(40))
    parts = {split: datasets.Dataset.from_list(rows[i * 5 : i * 5 + 5]) for i, split in enumerate(SPLITS)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "three")
    loaded = load_task(f"hf:{tmp_path}/three", word_tokenizer(), TaskOptions(columns=columns))
    assert [e.pair.clean for e in loaded.validation] == [row["prompt"] for row in rows[5:10]]


@pytest.mark.parametrize("held_out", ["test", "validation", "val", "dev"])
def test_what_a_data_set_holds_out_is_never_trained_on(tmp_path, held_out):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"clean": p.clean, "corrupted": p.corrupted, "answers": list(p.answers), "wrong_answers": list(p.wrong_answers)}
        for p in name_pairs(60)
    ]
    parts = {"train": datasets.Dataset.from_list(rows[:50]), held_out: datasets.Dataset.from_list(rows[50:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    loaded = load_task(f"hf:{tmp_path}/two", word_tokenizer())
    judges = "test" if held_out == "test" else "validation"
    lacking = "validation" if held_out == "test" else "test"
    assert [e.pair.clean for e in loaded.split(judges)] == [row["clean"] for row in rows[50:]]
    first = {e.pair.clean for e in loaded.train} | {e.pair.clean for e in loaded.split(lacking)}
    assert first == {row["clean"] for row in rows[:50]}
    assert 0.1 < len(loaded.split(lacking)) / 50 < 0.4
    parts["train"] = datasets.Dataset.from_list(rows[:49])
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "fewer")
    fewer = load_task(f"hf:{tmp_path}/fewer", word_tokenizer())
    assert {e.pair.clean for e in loaded.train} - {e.pair.clean for e in fewer.train} <= {rows[49]["clean"]}


def test_data_sets_that_are_not_there(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match=rf"^data set {tmp_path}: cannot be read \("):
        load_task(f"hf:{tmp_path}", word_tokenizer())


def test_data_sets_need_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="found no installed package `datasets`"):
        load_task("hf:anyone/anything", word_tokenizer())


# --- splitting ----------------------------------------------------------------------------------------------------------


def where(pairs: tuple[Pair, ...]) -> dict[str, str]:
    """The split of every clean prompt; a prompt in two splits fails."""
    splits = split_by_hash(pairs)
    found = [(pair.clean, name) for name in SPLITS for pair in getattr(splits, name)]
    assert len(found) == len(pairs), "no pair is lost or doubled"
    placed = dict(found)
    assert set(placed.items()) == set(found), "a prompt stands in two splits"
    return placed


def numbered(count: int) -> tuple[Pair, ...]:
    return tuple(Pair(f"prompt {i}", "x", (" a",), (" b",)) for i in range(count))


def test_splits_are_about_60_20_20():
    splits = list(where(numbered(3000)).values())
    shares = [splits.count(name) / len(splits) for name in SPLITS]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.03)


def test_adding_pairs_moves_none_of_the_others():
    before, after = where(numbered(200)), where(numbered(400)[::-1])
    assert {prompt: after[prompt] for prompt in before} == before


def test_split_depends_on_the_clean_prompt_alone():
    """So a prompt with other answers or another counterfactual lands beside its twin."""
    pairs = numbered(100)
    twins = tuple(replace(pair, corrupted=f"y{i}", answers=(f" {i}",)) for i, pair in enumerate(pairs))
    assert where(pairs + twins) == where(pairs)


def test_split_is_the_same_in_every_process():
    """Pinned, from `printf 'prompt 0' | sha256sum`: below 0x9999 train, below 0xcccc validation, else test."""
    first_digits = (0x481D, 0x7E5B, 0x259A, 0xB52B, 0xBCE2, 0x9405, 0x24A2, 0x2F89, 0xC2DF, 0x6879, 0xF38D, 0xF16F)
    names = ["train" if digits < 0x9999 else "validation" if digits < 0xCCCC else "test" for digits in first_digits]
    assert where(numbered(12)) == {f"prompt {i}": name for i, name in enumerate(names)}


def test_file_is_split_and_folder_is_taken_as_it_is(tmp_path):
    pairs = name_pairs(60)
    loaded = load_task(str(write_jsonl(tmp_path / "p.jsonl", pairs)), word_tokenizer())
    assert {e.pair.clean: name for name in SPLITS for e in loaded.split(name)} == where(pairs)
    for name, share in zip(SPLITS, (pairs[:10], pairs[10:13], pairs[13:20]), strict=True):
        write_jsonl(tmp_path / f"{name}.jsonl", share)
    loaded = load_task(str(tmp_path), word_tokenizer())
    assert tuple(e.pair for e in (*loaded.train, *loaded.validation, *loaded.test)) == pairs[:20]
    assert [len(loaded.split(name)) for name in SPLITS] == [10, 3, 7]
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"found no test\.jsonl or test\.csv, expected a file for each split"):
        load_task(str(tmp_path), word_tokenizer())


# --- tasks by name ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nope", "x" * 5000], ids=["unknown", "no possible path"])
def test_unknown_task(name):
    expected = (
        "expected one of .*ioi.*, a .jsonl or .csv file, a folder with train, validation and test files, or hf: and "
    )
    with pytest.raises(DataError, match=f"^task: found '{name}', {expected}"):
        load_task(name, word_tokenizer())


def test_only_files_have_columns():
    with pytest.raises(DataError, match=r"^task ioi: found names of columns \(clean\), which only files have"):
        load_task("ioi", word_tokenizer(), TaskOptions(columns={"clean": "prompt"}))
    made = Task("made", "of this test", lambda _: TextSplits((), (), ()))
    for source, name in ((made, "made"), (lambda: name_pairs(6), "of a function")):
        with pytest.raises(DataError, match=rf"^task {name}: found names of columns \(clean\), which only files have"):
            load_task(source, word_tokenizer(), TaskOptions(columns={"clean": "prompt"}))


@pytest.mark.parametrize("mark", [";", "\t"])
def test_columns_that_are_not_apart_by_commas_are_named(tmp_path, mark):
    path = tmp_path / "pairs.csv"
    path.write_text(mark.join(("clean", "corrupted", "answers", "wrong_answers")) + "\n" + mark.join("abcd") + "\n")
    assert complaint(path) == f"{path}, line 1: found columns apart by {mark!r}, expected commas between them"


def test_a_csv_file_is_one_however_its_name_is_spelled(tmp_path):
    text = "clean,corrupted,answers,wrong_answers\na b,a c,d,e\n"
    for name in ("pairs.csv", "PAIRS.CSV"):
        (tmp_path / name).write_text(text)
    assert read_pairs(tmp_path / "PAIRS.CSV") == read_pairs(tmp_path / "pairs.csv")


def test_a_task_that_is_nearly_one_and_a_file_that_is_none():
    with pytest.raises(DataError, match=r"; did you mean 'ioi'\?$"):
        load_task("ioii", word_tokenizer())
    with pytest.raises(
        DataError, match=r"^task: found no file 'no/pairs.csv', expected the name of one that holds pairs$"
    ):
        load_task("no/pairs.csv", word_tokenizer())


def test_options_are_for_built_in_tasks():
    request = TaskOptions(options={"corruption": "flip"})
    with pytest.raises(DataError, match=r"task p\.jsonl: found options \(corruption\), which only tasks take"):
        load_task("p.jsonl", word_tokenizer(), request)
    with pytest.raises(DataError, match=r"task of a function: found options \(corruption\), which only tasks take"):
        load_task(lambda: name_pairs(6), word_tokenizer(), request)
    for options, sentence in (
        (
            {"colour": "red"},
            "option of task ioi: found 'colour', expected one of corruption, split_names, split_templates, sentences",
        ),
        (
            {"corruption": "fip"},
            "option corruption of task ioi: found 'fip', expected one of abc, flip; did you mean 'flip'?",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            load_task("ioi", word_tokenizer(), TaskOptions(options=options))
        assert str(caught.value) == sentence


def test_files_have_all_their_pairs_or_as_many_as_are_asked_for(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(vars(pair)) + "\n" for pair in name_pairs(60)))
    everything, some, more = (
        load_task(str(path), word_tokenizer(), request)
        for request in (TaskOptions(), TaskOptions(train=5, test=3), TaskOptions(train=10, test=10**6))
    )
    assert [len(some.train), len(some.test), len(more.train)] == [5, 3, 10]
    prompts = {name: {e.pair.clean for e in everything.split(name)} for name in SPLITS}
    chosen = {e.pair.clean for e in some.train}
    assert chosen < {e.pair.clean for e in more.train} < prompts["train"]
    assert chosen != {e.pair.clean for e in everything.train[:5]}  # a sorted file gives no one-sided sample
    assert {e.pair.clean for e in some.validation} == prompts["validation"]
    assert {e.pair.clean for e in more.test} == prompts["test"]
    with pytest.raises(DataError, match=r"^test: found 0 pairs asked for, expected at least 1$"):
        load_task(str(path), word_tokenizer(), TaskOptions(test=0))


@pytest.mark.parametrize(("train", "sentence"), [(-1, "found -1 pairs asked for"), (0, "among 0 in the train split")])
def test_numbers_of_pairs_are_checked(train, sentence):
    with pytest.raises(DataError, match=sentence):
        load_task("ioi", word_tokenizer(), TaskOptions(train=train))


def test_a_tokenizer_without_offsets_is_refused_by_every_source(tmp_path):
    class Slow:
        is_fast = False

    path = write_jsonl(tmp_path / "p.jsonl", name_pairs(40))
    for source in ("ioi", "gender_pronoun", str(path), lambda: name_pairs(6)):
        with pytest.raises(DataError, match=r"^tokenizer: found Slow, expected a fast one"):
            load_task(source, Slow())
