"""Files of pairs, damaged in any way: they are read, or complained about in one line that names them."""

import csv
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsieve.data.chat import in_chat_form
from circuitsieve.data.loaders import TaskOptions, load_task, load_texts
from circuitsieve.data.pairs import SPLITS, TextSplits
from circuitsieve.data.sources import LONGEST_LINE, read_pairs
from circuitsieve.errors import DataError
from damage import ODD_TEXTS, assert_one_line_at_most, bytes_of, contents, examples, lines_of
from tiny import name_pairs, word_tokenizer, write_jsonl

LISTS = ("answers", "wrong_answers")
TOKENIZER = word_tokenizer()


def write_csv(path: Path) -> Path:
    """The same pairs as `write_jsonl` writes."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["clean", "corrupted", *LISTS])
        for pair in name_pairs(6):
            table.writerow([pair.clean, pair.corrupted, "|".join(pair.answers), "|".join(pair.wrong_answers)])
    return path


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("lines") / "pairs.jsonl", name_pairs(6))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("table") / "pairs.csv")


@examples(60)
@given(data=st.data())
def test_json_lines(jsonl: Path, data: st.DataObject):
    path = jsonl.with_name("damaged.jsonl")
    content = data.draw(lines_of(jsonl.read_bytes()))
    path.write_bytes(content)
    assert_one_line_at_most(lambda: load_task(str(path), TOKENIZER), path, "pairs: found")
    assert path.read_bytes() == content


@examples(60)
@given(data=st.data())
def test_tables(table: Path, data: st.DataObject):
    path = table.with_name("damaged.csv")
    quotes = st.binary(max_size=6).map(lambda end: table.read_bytes() + b'"' + end)
    path.write_bytes(data.draw(bytes_of(table.read_bytes()) | quotes))
    assert_one_line_at_most(lambda: load_task(str(path), TOKENIZER), path, "pairs: found")


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@examples(20)
@given(data=st.data())
def test_folders(jsonl: Path, table: Path, suffix: str, data: st.DataObject):
    folder = jsonl.parent / f"folder-{suffix}"
    folder.mkdir(exist_ok=True)
    source = jsonl if suffix == "jsonl" else table
    damaged_split = data.draw(st.sampled_from(SPLITS))
    content = data.draw(bytes_of(source.read_bytes()))
    for split in SPLITS:
        (folder / f"{split}.{suffix}").write_bytes(content if split == damaged_split else source.read_bytes())
    before = contents(folder)
    assert_one_line_at_most(lambda: load_task(str(folder), TOKENIZER), folder, "pairs: found")
    assert contents(folder) == before


@examples(30)
@given(content=ODD_TEXTS)
def test_texts_that_are_no_pairs_at_all(jsonl: Path, content: bytes):
    for name in ("odd.jsonl", "odd.csv"):
        path = jsonl.with_name(name)
        path.write_bytes(content)
        assert assert_one_line_at_most(lambda path=path: read_pairs(path), path) is not None


def test_folders_in_the_place_of_files(tmp_path: Path):
    for name in ("pairs.jsonl", "pairs.csv"):
        (tmp_path / name).mkdir()
        assert assert_one_line_at_most(lambda name=name: read_pairs(tmp_path / name), tmp_path / name) is not None
    (tmp_path / "train.jsonl").mkdir()
    assert assert_one_line_at_most(lambda: load_texts(str(tmp_path), TOKENIZER), tmp_path) is not None


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv"])
def test_a_line_without_an_end_is_not_read_to_its_end(tmp_path: Path, name: str):
    """4 GB of a sparse file: no more of it is read than the longest line takes."""
    path = tmp_path / name
    path.write_bytes(b"clean,corrupted,answers,wrong_answers\n" if name.endswith("csv") else b"\n")
    os.truncate(path, 4 << 30)
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    assert str(caught.value) == f"{path}, line 2: found more than {LONGEST_LINE:,} characters, expected one pair a line"


def test_what_ends_no_line_of_a_table_is_kept(tmp_path: Path):
    """Python's splitlines knows more line ends than a table does."""
    path = tmp_path / "pairs.csv"
    odd = "When\u2028Mary\x0band\x85John\x1c"
    path.write_text(f"clean,corrupted,answers,wrong_answers\r\n{odd},When Anna, and, the\r\n", "utf-8", newline="")
    (pair,) = read_pairs(path)
    assert pair.clean == odd


def test_values_of_any_depth_are_complained_about(tmp_path: Path):
    path = tmp_path / "deep.jsonl"
    row = json.loads(write_jsonl(path, name_pairs(1)).read_text())
    for depth in range(0, 1000, 7):
        path.write_text(json.dumps(row).replace(json.dumps(row["answers"]), "[" * depth + "]" * depth or "3"))
        assert assert_one_line_at_most(lambda: read_pairs(path), path) is not None


@examples(40)
@given(
    template=st.text(st.sampled_from("{}%[]()|.abm_ 01'\"+-"))
    | st.sampled_from(
        [
            "{% for m in messages %}{{ m.content }}",
            "{{ messages[0].nothing.more }}",
            "{{ ''.__class__.__mro__ }}",
            "{{ messages.append(1) }}",
            "{{ raise_exception('no\nchat') }}",
            "{{ range(10 ** 9) }}",
            "{{ 1 / 0 }}",
            "{% include '/etc/passwd' %}",
        ]
    )
)
def test_chat_templates_are_written_by_others(template: str):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    pairs = name_pairs(2)
    assert_one_line_at_most(
        lambda: in_chat_form(TextSplits(pairs, pairs, pairs), tokenizer, "Say: {prompt}"), "chat: ", "chat template"
    )


@examples(40)
@given(
    columns=st.dictionaries(st.text(max_size=5) | st.sampled_from(["clean", *LISTS]), st.text(max_size=5), max_size=3)
)
def test_any_mapping_of_columns(jsonl: Path, columns: dict[str, str]):
    request = TaskOptions(columns=columns)
    assert_one_line_at_most(lambda: load_texts(str(jsonl), TOKENIZER, request), jsonl, "column of a pair")
