"""What is not a gate stays as it was, also after an exception; silent sites are errors."""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.backends.cuda import flash_sdp_enabled
from transformers import PreTrainedModel

from circuitsieve.errors import HookNotFired
from circuitsieve.models.instrument import answer_logits, masked, record
from circuitsieve.models.selfcheck import selfcheck
from circuitsieve.models.subject import SHORT, Subject, frozen, quick_attention
from circuitsieve.search.gates import HardConcrete
from circuitsieve.vocabulary import Granularity, Sampling
from models import FAMILIES, POST_NORM, assert_differs, difference, each_family, fresh, module, random_ids, shared

CLEAN, CORRUPTED = random_ids(0), random_ids(1)
LAST = torch.tensor([6, 5, 4])


def hooks(model: nn.Module) -> int:
    """All but those that transformers leaves where attentions were asked for, as another test may have done."""
    kinds = [kind for m in model.modules() for kind in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
    found = [hook for kind in kinds for hook in kind.values()]
    return sum(not getattr(hook, "__module__", "").startswith("transformers.") for hook in found)


def state(model: PreTrainedModel) -> dict[str, object]:
    """Everything that a library could leave behind, as comparable values."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {name: values.detach().double().sum().item() for name, values in tensors.items()},
        "identity": {name: id(values) for name, values in tensors.items()},
        "versions": {name: values._version for name, values in tensors.items()},
        "requires_grad": {name: values.requires_grad for name, values in tensors.items()},
        "gradients": [name for name, values in tensors.items() if values.grad is not None],
        "training": {name: m.training for name, m in model.named_modules()},
        "hooks": hooks(model),
        "modules": [(name, id(m)) for name, m in model.named_modules()],
        "methods": [name for name, m in model.named_modules() if "forward" in vars(m)],
        "torch rng": torch.get_rng_state().tolist(),
        "numpy rng": numpy.random.get_state()[1].tolist(),  # noqa: NPY002 - the global state is what must not change
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "logging": (logging.getLogger().level, transformers.logging.get_verbosity(), logging.root.manager.disable),
        "grad mode": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
    }


def unusual(family: str) -> PreTrainedModel:
    """A model whose flags differ from module to module, so that setting them all to one value would show."""
    model = fresh(shared(family))
    for i, owner in enumerate(model.modules()):
        owner.training = i % 3 == 0
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    return model


def run_frozen(model: PreTrainedModel, ids: Tensor) -> None:
    with frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(m.training for m in model.modules())
        model(ids)


def run_recorded(model: PreTrainedModel, ids: Tensor) -> None:
    subject = Subject.of(model)
    with frozen(model), record(subject, subject.architecture.sites()):  # unfrozen, dropout would draw random numbers
        assert hooks(model) == len(list(subject.architecture.sites())) + 1  # which learns batch and tokens
        answer_logits(subject, ids, LAST)


def run_masked(model: PreTrainedModel, ids: Tensor) -> None:
    subject = Subject.of(model)
    gates = HardConcrete({g: subject.space.shape(g) for g in Granularity}, seed=0, init=(-1.0, 1.0))
    zeros = dict.fromkeys(subject.architecture.sites(), torch.zeros(1))
    with frozen(model), masked(subject, subject.space.compose(gates.draw(0)), zeros):
        assert hooks(model) == len(zeros) + 1
        answer_logits(subject, ids, LAST).sum().backward()


def run_checkpointed(model: PreTrainedModel, ids: Tensor) -> None:
    subject = Subject.of(model)
    gates = HardConcrete({g: subject.space.shape(g) for g in Granularity}, seed=0, init=(-1.0, 1.0))
    zeros = dict.fromkeys(subject.architecture.sites(), torch.zeros(1))
    with frozen(model):
        with masked(subject, subject.space.compose(gates.draw(0)), zeros, checkpointed=subject.space.layers):
            logits = answer_logits(subject, ids, LAST)
        assert hooks(model) == 0
        logits.sum().backward()


def run_selfcheck(model: PreTrainedModel, ids: Tensor) -> None:
    broken = ids.max() >= model.config.vocab_size

    def interrupt(_: str, done: int, __: int) -> None:
        if broken and done == 3:
            raise IndexError("stopped")

    selfcheck(model, progress=interrupt)


RUNS = {
    "frozen": run_frozen,
    "record": run_recorded,
    "masked": run_masked,
    "checkpointed": run_checkpointed,
    "selfcheck": run_selfcheck,
}


@pytest.fixture
def no_global_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of Python's global generator fail. (Its state is no evidence: beartype draws from it while checking types.)"""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("drawn from Python's global random state")

    for name, value in vars(random).items():
        if getattr(value, "__self__", None) is random._inst:  # type: ignore[attr-defined]
            monkeypatch.setattr(random, name, refuse)


@pytest.mark.usefixtures("no_global_random")
@pytest.mark.parametrize("raises", [False, True], ids=["undisturbed", "exception"])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@each_family
def test_everything_is_as_before(family: str, run: Callable[[PreTrainedModel, Tensor], None], raises: bool):
    model = unusual(family)
    before = state(model)
    outside_vocabulary = torch.full_like(CLEAN, 10**6)
    with pytest.raises(IndexError) if raises else nullcontext():
        run(model, outside_vocabulary if raises else CLEAN)
    after = state(model)
    for what, found in after.items():
        assert found == before[what], what


@contextmanager
def hooked(subject: Subject, how: str) -> Iterator[None]:
    sites = list(subject.architecture.sites())
    closed = subject.space.compose(subject.space.full(False))
    manager: AbstractContextManager[object] = (
        record(subject, sites) if how == "record" else masked(subject, closed, dict.fromkeys(sites, torch.zeros(1)))
    )
    with manager:
        assert hooks(subject.model) == len(sites) + 1
        yield


@pytest.mark.parametrize("how", ["record", "masked"])
def test_hooks_go_when_the_forward_pass_fails_halfway(subject: Subject, how: str):
    subject = Subject.of(fresh(subject))
    module(subject.model, "mlp_out", 1).forward = lambda _: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError), hooked(subject, how):
        subject.model(CLEAN)
    with pytest.raises(ZeroDivisionError):
        answer_logits(subject, CLEAN, LAST)
    assert hooks(subject.model) == 0


def test_hooks_go_when_positions_lie_outside(subject: Subject):
    with pytest.raises(IndexError):
        answer_logits(subject, CLEAN, LAST + 100)
    assert hooks(subject.model) == 0


@pytest.mark.parametrize("sampling", Sampling, ids=str)
@each_family
def test_only_gates_get_gradients(family: str, sampling: Sampling):
    model = unusual(family)
    with frozen(model):
        subject = Subject.of(model)
        with record(subject, subject.architecture.sites()) as baselines:
            model(CORRUPTED)
        assert not any(values.requires_grad for values in baselines.values())
        gates = HardConcrete(
            {g: subject.space.shape(g) for g in Granularity}, seed=1, sampling=sampling, init=(0.5, 2.0)
        )
        for step in range(32):  # closed blocks and clamped samples pass no gradient on
            with masked(subject, subject.space.compose(gates.draw(step)), baselines):
                answer_logits(subject, CLEAN, LAST).square().sum().backward()
            if all(gate.grad is not None and (gate.grad != 0).any() for gate in gates.scores().values()):
                break
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == []
    assert not any(buffer.requires_grad for buffer in model.buffers())
    for granularity, log_alpha in gates.scores().items():
        assert log_alpha.grad is not None, granularity
        assert (log_alpha.grad != 0).any(), granularity


@pytest.mark.parametrize("tokens", [7, SHORT + 1])
@each_family
def test_quick_attention_is_the_same_attention(family: str, tokens: int):
    """In bfloat16, values and gradients are those of the model's own attention up to rounding."""
    subject = shared(family, torch.bfloat16)

    def run() -> tuple[Tensor, Tensor]:
        embedded = subject.model.get_input_embeddings()(CLEAN).detach().requires_grad_()
        logits = subject.model(inputs_embeds=embedded).logits
        (gradient,) = torch.autograd.grad(logits.float().square().sum(), embedded)
        return logits.detach(), gradient

    usual = run()
    with quick_attention(subject, tokens):
        assert flash_sdp_enabled() == (tokens > SHORT)
        quick = run()
    assert flash_sdp_enabled()
    assert difference(quick[0], usual[0]) < 0.03
    assert difference(quick[1], usual[1]) < 0.1


def test_recorded_activations_have_no_history(subject: Subject):
    gates = HardConcrete({Granularity.EMBED: (1, 1)}, seed=0, sampling=Sampling.SOFT)
    zeros = {site: torch.zeros(1) for site in subject.architecture.sites()}
    site_masks = subject.space.compose(gates.draw(0))
    with masked(subject, site_masks, zeros), record(subject, subject.architecture.sites()) as activations:
        assert answer_logits(subject, CLEAN, LAST).requires_grad
    assert not any(activation.requires_grad for activation in activations.values())


def test_answer_logits_are_the_models_own(subject: Subject):
    with torch.no_grad():
        logits = subject.model(CLEAN).logits
        found = answer_logits(subject, CLEAN, LAST)
    assert found.shape == (3, logits.shape[-1])
    for row, position in enumerate(LAST.tolist()):
        torch.testing.assert_close(found[row], logits[row, position])
        assert_differs(found[row], logits[row, position - 1])


# --- silent sites --------------------------------------------------------------------------------------------------------


class WithoutProjection(nn.Module):
    """An MLP that keeps its modules and runs none of them."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        for name, child in original.named_children():
            self.add_module(name, child)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden)


@pytest.mark.parametrize("how", ["record", "masked"])
@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if "opt" not in family]
)  # OPT has no module of its MLP
def test_silent_site_is_an_error(family: str, how: str):
    model = fresh(shared(family))
    block = model.get_decoder().get_submodule("h" if family == "gpt2" else "layers")[1]
    block.mlp = WithoutProjection(block.mlp)
    subject = Subject.of(model)
    silent = 1 if family in POST_NORM else 2  # behind a post-norm the write still fires
    message = (
        rf"^site mlp_read of layer 1: found no activation in the forward pass \({silent} silent sites\), expected one"
    )
    with pytest.raises(HookNotFired, match=message), hooked(subject, how):
        model(CLEAN)
    assert hooks(model) == 0
    with pytest.raises(IndexError), hooked(subject, how):  # another error is not covered up
        model(CLEAN + model.config.vocab_size)
    with pytest.raises(HookNotFired):
        selfcheck(model)


def test_no_forward_pass_at_all_is_an_error(subject: Subject):
    with pytest.raises(HookNotFired, match="9 silent sites"), hooked(subject, "record"):
        pass
