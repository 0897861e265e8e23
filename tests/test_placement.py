"""Models that are dispatched by accelerate: the same results as of a plain one, bit for bit, one layer in memory at a time."""

import copy
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import accelerate
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from circuitsieve.config import DiscoveryConfig
from circuitsieve.data.batching import batches
from circuitsieve.data.tokenising import Pairs
from circuitsieve.errors import ConfigError, ModelError, UnsupportedModel
from circuitsieve.evaluation.card import evaluate
from circuitsieve.evaluation.harness import EvaluationConfig
from circuitsieve.models.ablations import constants
from circuitsieve.models.instrument import answer_logits, masked, record
from circuitsieve.models.lens import Lens
from circuitsieve.models.loading import load_model
from circuitsieve.models.placement import is_dispatched, is_offloaded, whereabouts
from circuitsieve.models.rewiring import graph_of
from circuitsieve.models.selfcheck import selfcheck
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.models.surgery import compact
from circuitsieve.runs.folder import RunFolder
from circuitsieve.runs.provenance import describe_model, fingerprint
from circuitsieve.search.discovery import Discovery
from circuitsieve.search.discovery import discover as search
from circuitsieve.vocabulary import Ablation, Granularity, Method
from circuitsieve.workflow.judging import load_run_model
from circuitsieve.workflow.plan import predict
from models import each_family, fresh, random_examples, random_ids, random_masks, randomise, shared
from placed import CPU, WAYS, all_on_disk, layer_on_disk, watched
from tiny import tiny_folder
from tiny_cli import call

CLEAN, CORRUPTED, LAST = random_ids(0), random_ids(1), torch.tensor([6, 5, 4])
READS = (Granularity.HEAD, Granularity.MLP_NEURON)
PAIRS = Pairs(*(tuple(random_examples([6, 5, 6, 7], seed)) for seed in (1, 2, 3)), ())
QUICK = EvaluationConfig(random_circuits=2, random_pairs=4)
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate says of what is offloaded that it is."""
    monkeypatch.setattr(accelerate.big_modeling.logger, "warning", lambda *_, **__: None)


def step(model: PreTrainedModel, checkpointed: int) -> list[Tensor]:
    """Logits of a masked pass, and the gradients of its masks."""
    subject = Subject.of(model)
    masks = {g: m.requires_grad_() for g, m in random_masks(subject.space, 3, soft=True).items() if g in READS}
    with frozen(model):
        with torch.no_grad(), record(subject, subject.architecture.sites()) as baselines:
            answer_logits(subject, CORRUPTED % model.config.vocab_size, LAST)
        with masked(subject, subject.space.compose(masks), baselines, checkpointed=checkpointed):
            logits = answer_logits(subject, CLEAN % model.config.vocab_size, LAST)
        logits.square().sum().backward()
    return [logits.detach(), *(mask.grad for mask in masks.values() if mask.grad is not None)]


def state(model: PreTrainedModel) -> list[tuple[object, ...]]:
    """What a dispatched model is like between passes."""
    parameters = [(name, p.device, p.requires_grad) for name, p in model.named_parameters(remove_duplicate=False)]
    modules = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), m.training, sorted(vars(m)))
        for name, m in model.named_modules()
    ]
    return [*parameters, *modules]


@each_way
@each_family
def test_passes_and_gradients_are_those_of_the_plain_model(
    family: str, way: Callable[[PreTrainedModel, Path], PreTrainedModel], tmp_path: Path
) -> None:
    subject = shared(family)
    plain = fresh(subject)
    model = way(fresh(subject).requires_grad_(True).train(), tmp_path)
    before, files = state(model), sorted(tmp_path.rglob("*"))
    assert is_dispatched(model)
    assert is_offloaded(model)
    assert fingerprint(model) == fingerprint(plain)
    expected = step(plain, 0)
    for checkpointed in (0, subject.space.layers):
        assert all(torch.equal(one, other) for one, other in zip(step(model, checkpointed), expected, strict=True))
    assert fingerprint(model) == fingerprint(plain)
    assert state(model) == before
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("family", ["gpt2", "olmo2", "phi3", "opt_post_norm"])
def test_selfcheck_passes(family: str, tmp_path: Path) -> None:
    results = selfcheck(layer_on_disk(fresh(shared(family)), tmp_path))
    assert [result.name for result in results if not result.passed] == []


def larger(layers: int = 6) -> PreTrainedModel:
    """A model of some layers, whose head is smaller than one of them."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
    config = LlamaConfig(
        vocab_size=29,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=layers,
        tie_word_embeddings=False,
        **heads,
    )
    model = AutoModelForCausalLM.from_config(config)
    randomise(model, seed=3)
    return model.eval()


def test_a_step_holds_the_weights_of_one_layer() -> None:
    model = larger()
    layer = sum(p.nbytes for p in Subject.of(model).architecture.blocks[0].parameters())
    peaks = []
    for checkpointed in (0, 6):
        mine = copy.deepcopy(model)
        weights = watched(mine)
        step(mine, checkpointed)
        gc.collect()
        assert weights.alive == 0
        peaks.append(weights.peak / layer)
    assert peaks[0] > 5.5
    assert peaks[1] <= 1


def settings(method: str = "nested", **more: object) -> DiscoveryConfig:
    short = {"steps": 6, "ranking_looks": 1} if Method(method).learns else {}
    return DiscoveryConfig(method, batch_size=2, **short, **more)


@pytest.mark.parametrize(
    "config", [settings(method="hard_concrete", shrinking="on"), settings(method="nested")], ids=["hc", "nested"]
)
def test_a_search_holds_the_weights_of_one_layer(config: DiscoveryConfig) -> None:
    model = larger()
    layer = sum(p.nbytes for p in Subject.of(model).architecture.blocks[0].parameters())
    rest = sum(p.nbytes for p in (*model.lm_head.parameters(), *model.model.norm.parameters()))
    weights = watched(model)
    search(model, PAIRS, config)
    assert layer <= weights.peak <= layer + rest


def found(discovery: Discovery) -> list[object]:
    """All that a search says."""
    return [
        {str(g): mask.tolist() for g, mask in discovery.circuit.masks.items()},
        {str(g): score.tolist() for g, score in discovery.ranking.scores.items()},
        [{name: value for name, value in entry.items() if name != "seconds"} for entry in discovery.history],
    ]


@pytest.mark.parametrize("method", ["hard_concrete", "nested", "integrated_gradients"])
@pytest.mark.parametrize("ablation", ["corrupted", "mean"])
def test_a_search_and_its_card_are_those_of_the_plain_model(method: str, ablation: str, tmp_path: Path) -> None:
    """Bit for bit those of a plain model whose layers are run again, too."""
    plain, model = fresh(shared("llama")), layer_on_disk(fresh(shared("llama")), tmp_path)
    config = settings(method=method, ablation=ablation)
    expected, mine = search(plain, PAIRS, config.replaced(checkpointing="all")), search(model, PAIRS, config)
    assert found(mine) == found(expected)
    assert mine.provenance["model"] == {**expected.provenance["model"], "device": "auto"}
    cards = [evaluate(m, d.circuit, PAIRS.test, config=QUICK).values for m, d in ((plain, expected), (model, mine))]
    assert cards[0] == cards[1]


def test_no_copy_of_lower_precision_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitsieve.search.problem.LARGE", 0)
    monkeypatch.setattr("circuitsieve.search.problem.computes_in_bfloat16", lambda _: True)
    assert search(fresh(shared("llama")), PAIRS, settings()).provenance["model"]["trained_in"] == "bfloat16"
    model = all_on_disk(fresh(shared("llama")), tmp_path)
    assert search(model, PAIRS, settings()).provenance["model"]["trained_in"] == "float32"


def test_settings_that_need_a_whole_model_are_refused(tmp_path: Path) -> None:
    model = all_on_disk(fresh(shared("llama")), tmp_path)
    with pytest.raises(
        ConfigError, match=r"^training_dtype: found 'bfloat16' with a model .* expected 'auto' or 'model'"
    ):
        search(model, PAIRS, settings(training_dtype="bfloat16"))
    with pytest.raises(
        ConfigError, match=r"^checkpointing: found 'none' with .* \(0\.0 MB offloaded\), expected 'auto' or 'all'"
    ):
        search(model, PAIRS, settings(checkpointing="none"))


def test_edges_and_compact_models_need_a_whole_model(tmp_path: Path) -> None:
    plain = fresh(shared("llama"))
    circuit = search(plain, PAIRS, settings(ablation="mean")).circuit
    model = layer_on_disk(fresh(shared("llama")), tmp_path)
    with pytest.raises(
        UnsupportedModel, match=r"^compact: found a model that is dispatched over devices \(.*offloaded"
    ):
        compact(model, circuit)
    with pytest.raises(
        UnsupportedModel, match=r"^edges: found a model that is dispatched .* expected one that is whole"
    ):
        graph_of(Subject.of(model))


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@each_way
def test_the_lens_reads_the_same(
    family: str, way: Callable[[PreTrainedModel, Path], PreTrainedModel], tmp_path: Path
) -> None:
    seen = []
    for model in (fresh(shared(family)), way(fresh(shared(family)), tmp_path)):
        subject = Subject.of(model)
        lens = Lens.of(subject)
        assert lens is not None
        bench = batches(PAIRS.test, 2)
        mean = constants(subject, bench, Ablation.MEAN)
        neurons = [lens.neurons(layer) for layer in range(subject.space.layers)]
        effects = lens.heads({0: [1], 1: [0, 2]}, bench, mean)
        words = lens.words(neurons[1], 3)
        seen.append([*neurons, *words, *(tensor for layer in effects.values() for tensor in layer)])
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))


def test_a_plan_says_where_the_weights_are(tmp_path: Path) -> None:
    model = layer_on_disk(fresh(shared("llama")), tmp_path)
    plan = predict(model, PAIRS, settings(), lambda: 0, QUICK)
    plain = predict(fresh(shared("llama")), PAIRS, settings(checkpointing="all"), lambda: 0, QUICK)
    assert plain.dispatched is None
    assert plan.dispatched == "0.0 MB on cpu, 0.0 MB offloaded"
    assert plan.checkpointed == 2
    layer = sum(p.nbytes for p in shared("llama").architecture.blocks[1].parameters())
    assert plan.memory == {**plain.memory, "weights that are fetched": layer, "a step": plan.memory["a step"]}
    assert (
        plain.memory["a step"] < plan.memory["a step"] < 1.5 * plain.memory["a step"]
    )  # the last layer keeps more than others


# --- loading --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


MAP = {"transformer.wte": "cpu", "lm_head": "cpu", "transformer.wpe": "cpu", "transformer.drop": "cpu"}
MAP |= {"transformer.h": "disk", "transformer.ln_f": "disk"}


@pytest.mark.parametrize(
    "options",
    [{"device": "auto", "max_memory": {"cpu": "0.004MB"}}, {"device_map": MAP}, {"device_map": {"": "disk"}}],
    ids=["limits", "map", "all"],
)
def test_a_model_is_loaded_over_devices(folder: Path, temporary: Path, options: dict[str, object]) -> None:
    plain, model = load_model(str(folder)).model, load_model(str(folder), **options).model  # type: ignore[arg-type]
    assert model.hf_device_map == options.get("device_map", MAP)
    assert not model.training
    assert fingerprint(model) == fingerprint(plain)
    assert all(torch.equal(one, other) for one, other in zip(step(model, 2), step(plain, 2), strict=True))
    assert [path for path in temporary.rglob("*") if path.is_file()] == []  # it is read from the checkpoint


def test_what_fits_is_not_dispatched(folder: Path) -> None:
    model = load_model(str(folder), device="auto", dtype="bfloat16").model
    assert not is_dispatched(model)
    assert whereabouts(model) == "0.0 MB on cpu"
    assert describe_model(model)["model"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_memory": {"cpu": "1GB"}}, "max_memory: found limits with cpu, expected them with the device auto"),
        ({"device": "auto", "max_memory": {"gpu": "1GB"}}, "max_memory: found the device 'gpu', expected one of"),
        ({"device": "auto", "max_memory": {7: "1GB"}}, "max_memory: found the device 7, expected one of"),
        (
            {"device": "auto", "max_memory": {"cpu": "much"}},
            "max_memory of cpu: found 'much', expected an amount such as",
        ),
        (
            {"device_map": {**MAP, "lm_head": "disk"}},
            "device_map: found lm_head.weight elsewhere than transformer.wte.weight",
        ),
    ],
)
def test_impossible_places_are_refused_in_one_line(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises((ModelError, ConfigError)) as refused:
        load_model(str(folder), **options)  # type: ignore[arg-type]
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


# --- the command line -----------------------------------------------------------------------------------------------

SPREAD = ("--device", "auto", "--max-memory", "cpu=0.004MB")


@pytest.mark.slow
def test_a_run_over_devices_is_that_of_the_plain_model(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the first command to the last, which read of the run where the model was."""
    words = ["--model", home / "model", "--task", home / "pairs.jsonl", "--steps", 3, "--batch-size", 4]
    assert call(capsys, "discover", *words, "--out", tmp_path / "plain", "--checkpointing", "all").status == 0
    spread = call(capsys, "discover", *words, "--out", tmp_path / "spread", *SPREAD)
    assert spread.status == 0
    assert "meta device" not in spread.err
    masks = [(tmp_path / run / "masks.safetensors").read_bytes() for run in ("plain", "spread")]
    assert masks[0] == masks[1]
    model = json.loads((tmp_path / "spread/config.json").read_text("utf-8"))["model"]
    assert (model["device"], model["max_memory"]) == ("auto", {"cpu": "0.004MB"})
    assert is_offloaded(load_run_model(RunFolder(tmp_path / "spread")).model)
    assert not is_offloaded(load_run_model(RunFolder(tmp_path / "spread"), "cpu").model)
    again = json.loads(call(capsys, "evaluate", tmp_path / "spread", "--json", "--data", home / "pairs.jsonl").out)
    plain = json.loads(call(capsys, "evaluate", tmp_path / "plain", "--json", "--data", home / "pairs.jsonl").out)
    assert again["test"] == plain["test"]
    assert call(capsys, "report", tmp_path / "spread").status == 0
    page = (tmp_path / "spread/report.html").read_text("utf-8")
    assert "--device auto --max-memory cpu=0.004MB" in page


def test_the_command_line_says_that_a_model_is_offloaded(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", home / "model", "--task", home / "pairs.jsonl", "--steps", 3, "--batch-size", 4, *SPREAD]
    said = call(capsys, "plan", *words)
    assert said.status == 0
    assert "the model is dispatched over devices: 0.0 MB on cpu, 0.0 MB offloaded" in " ".join(said.out.split())
    assert call(capsys, "check", home / "model", *SPREAD).status == 0


def test_malformed_limits_are_refused(discover: Callable[..., str]) -> None:
    assert discover("--device", "auto", "--max-memory", "64GB") == "--max-memory: found '64GB', expected NAME=VALUE"
    assert discover("--max-memory", "cpu=1GB").startswith(
        "max_memory: found limits with cpu, expected them with the device"
    )


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(model: PreTrainedModel) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    projection = Subject.of(model).architecture.blocks[1].get_submodule("self_attn.q_proj")
    weight = projection.get_parameter("weight")
    projection.register_parameter("weight", nn.Parameter(distribute_tensor(weight.data, mesh, [Replicate()])))
    return model


def parallel(model: PreTrainedModel) -> nn.Module:
    model._tp_size = 2
    return model


def moved_as_a_whole(model: PreTrainedModel) -> nn.Module:
    accelerate.cpu_offload_with_hook(model, CPU)
    return model


REFUSED: dict[str, tuple[Callable[[PreTrainedModel], nn.Module], str]] = {
    "ddp": (
        DistributedDataParallel,
        "found DistributedDataParallel around a LlamaForCausalLM, expected the model itself",
    ),
    "dp": (DataParallel, "found DataParallel around a LlamaForCausalLM, expected the model itself; pass model.module"),
    "dtensor": (
        sharded,
        "found a DTensor (model.layers.1.self_attn.q_proj.weight), expected parameters that are whole",
    ),
    "tensor parallel": (parallel, "found a tensor-parallel plan over 2 processes, expected parameters that are whole"),
    "other hooks": (
        moved_as_a_whole,
        "found accelerate's CpuOffload (the model itself), expected the hooks of dispatch_model",
    ),
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("how", REFUSED)
def test_other_ways_to_share_a_model_out_are_refused(how: str) -> None:
    wrap, message = REFUSED[how]
    with pytest.raises(UnsupportedModel) as refused:
        Subject.of(wrap(fresh(shared("llama")).requires_grad_(True)))
    assert str(refused.value).startswith(f"model: {message}")
    assert "\n" not in str(refused.value)


# --- two devices ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_masks_lie_beside_their_layers() -> None:
    """On two devices that are pretended, where every operation on tensors of both is an error."""
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this PyTorch has no devices made in Python")
    words = [sys.executable, Path(__file__).with_name("two_devices.py"), "llama", "olmo2", "phi3", "gpt_neox"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ok"]
