"""Files of pairs: what is read, how it is split, and the sentence for everything that can be wrong with one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsieve.errors import ConfigError, DataError
from circuitsieve.loaders import TaskOptions, load_task, parse_pair, read_jsonl, split_by_hash
from circuitsieve.pairs import SPLITS, Pair
from tiny import name_pairs, word_tokenizer, write_jsonl

ENTRY = {"clean": "When Mary", "corrupted": "When Anna", "answers": [" and", " to"], "wrong_answers": [" the"]}


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def complaint(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_jsonl(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading ------------------------------------------------------------------------------------------------------------


def test_every_column_is_read(tmp_path):
    full = {**ENTRY, "candidates": [" and", " to", " the"], "id": 7, "template": "abba"}
    read = read_jsonl(written(tmp_path / "p.jsonl", ENTRY, "", "  ", full))
    plain = Pair("When Mary", "When Anna", (" and", " to"), (" the",))
    assert read == (plain, replace(plain, candidates=(" and", " to", " the"), id="7", template="abba"))


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_separators_inside_a_text_end_no_line(tmp_path, separator):
    entry = {**ENTRY, "clean": f"When{separator}Mary"}
    text = json.dumps(entry, ensure_ascii=False)
    path = written(tmp_path / "p.jsonl", text, ENTRY)
    assert [pair.clean for pair in read_jsonl(path)] == [entry["clean"], "When Mary"]
    assert complaint(written(path, text, "nonsense")).startswith(f"{path}, line 2: found malformed JSON")


def test_byte_order_mark_and_windows_lines_are_read(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(ENTRY)}\r\n{json.dumps(ENTRY)}\r\n".encode())
    assert len(read_jsonl(path)) == 2


COLUMNS = "clean, corrupted, answers, wrong_answers, candidates, id, template"
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
    ({"clean": "a"}, "corrupted: found None, expected a text"),
    ({**ENTRY, "clean": "\ud800"}, "clean: found '\\ud800', expected a text"),
    ({**ENTRY, "answers": " Mary"}, "answers: found ' Mary', expected a list of texts"),
    ({**ENTRY, "answers": []}, "answers: found an empty list, expected at least one text"),
    ({**ENTRY, "wrong_answers": [" x", 3]}, "wrong_answers: found [' x', 3], expected a list of texts"),
    ({**ENTRY, "wrong_answers": [""]}, "wrong_answers: found [''], expected a list of texts"),
    ({**ENTRY, "candidates": None}, "candidates: found None, expected a list of texts"),
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
    {}, optional={**dict.fromkeys(ENTRY, JSON), "candidates": JSON, "id": JSON, "template": JSON}
)
NEARLY = st.fixed_dictionaries(
    dict.fromkeys(ENTRY, JSON | st.text(min_size=1) | st.lists(st.text(min_size=1), min_size=1, max_size=2))
)


@given(st.text() | JSON.map(json.dumps) | (ENTRIES | NEARLY).map(json.dumps))
def test_any_line_gives_a_pair_or_a_data_error(line):
    try:
        pair = parse_pair(line, "here")
    except DataError as error:
        assert str(error).startswith("here: ")  # noqa: PT017 - an error is one of two right outcomes
    else:
        given = json.loads(line)
        assert (pair.clean, list(pair.answers)) == (given["clean"], given["answers"])
        assert "".join((pair.clean, pair.corrupted, *pair.answers, *pair.wrong_answers)).encode()
        split_by_hash((pair,))


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
    with pytest.raises(DataError, match=r"test\.jsonl: cannot be read"):
        load_task(str(tmp_path), word_tokenizer())


# --- tasks by name ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nope", "x" * 5000], ids=["unknown", "no possible path"])
def test_unknown_task(name):
    expected = (
        r"expected one of .*ioi.*, a \.jsonl file, or a folder with train\.jsonl, validation\.jsonl and test\.jsonl"
    )
    with pytest.raises(DataError, match=f"^task: found '{name}', {expected}$"):
        load_task(name, word_tokenizer())


def test_options_are_for_built_in_tasks():
    request = TaskOptions(options={"corruption": "flip"})
    with pytest.raises(DataError, match=r"task p\.jsonl: found options \(corruption\), which only built-in tasks take"):
        load_task("p.jsonl", word_tokenizer(), request)
    for options, sentence in (
        ({"colour": "red"}, "option of task ioi: found 'colour', expected one of corruption, split_templates"),
        (
            {"corruption": "fip"},
            "option corruption of task ioi: found 'fip', expected one of abc, flip; did you mean 'flip'?",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            load_task("ioi", word_tokenizer(), TaskOptions(options=options))
        assert str(caught.value) == sentence


@pytest.mark.parametrize(("train", "sentence"), [(-1, "found -1 pairs asked for"), (0, "among 0 in the train split")])
def test_numbers_of_pairs_are_checked(train, sentence):
    with pytest.raises(DataError, match=sentence):
        load_task("ioi", word_tokenizer(), TaskOptions(train=train))
