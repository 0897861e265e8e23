"""Hooks on the modules of a stock transformers model. The only file that touches them.

Every hook lives inside one context manager and is removed when it ends, also by an exception. A site that was asked for
and never saw an activation is an error (`HookNotFired`), never a silent no-op.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.hooks import RemovableHandle

from circuitsieve.errors import HookNotFired, ModelError
from circuitsieve.models.architectures import Architecture
from circuitsieve.models.placement import is_offloaded
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import Site, SiteKind

Edit = Callable[[Tensor], Tensor | None]
"""What to make of an activation; None leaves it as it is."""

_WRITES = (SiteKind.ATTN_WRITE, SiteKind.MLP_WRITE)


@contextmanager
def edited(
    architecture: Architecture,
    edits: Mapping[Site, Edit],
    checkpointed: int = 0,
    behind: Mapping[Site, Edit] = MappingProxyType({}),
    shape: tuple[int, ...] | None = None,
) -> Iterator[None]:
    """Edit activations in every forward pass, each as [batch, tokens, n].

    Args:
        architecture: of the model.
        edits: what to make of the activation at each site.
        checkpointed: of so many layers, the first, only the input is kept for the backward pass, which runs them again with the
            same edits; it may come after the context has ended.
        behind: what to make of what the projection behind a read site makes of it, before what is written there is edited.
        shape: batch and tokens that every forward pass must have; any, where none are given.

    Raises:
        HookNotFired: at the end, a site has seen no activation.
        ModelError: a forward pass has another shape.
    """
    hooks = _Hooks(architecture, edits, behind, shape)
    with ExitStack() as contexts:
        contexts.enter_context(hooks.attach(edits))
        for layer, block in enumerate(architecture.blocks[:checkpointed]):
            inside = [site for site in edits if site.layer == layer and site.kind is not SiteKind.EMBED]
            contexts.enter_context(_checkpointed(block, partial(hooks.attach, inside)))
        yield
    if hooks.silent:
        site = min(hooks.silent)
        raise HookNotFired(
            f"site {site.kind} of layer {site.layer}: found no activation in the forward pass "
            f"({len(hooks.silent)} silent sites), expected one; the model does not run the module that the family table names"
        )


class _Hooks:
    """What to do at each site, and which sites have seen no activation yet."""

    def __init__(
        self,
        architecture: Architecture,
        edits: Mapping[Site, Edit],
        behind: Mapping[Site, Edit],
        expected: tuple[int, ...] | None,
    ) -> None:
        self.architecture, self.edits, self.behind, self.silent = architecture, edits, behind, set(edits)
        self.expected = expected
        """Batch and tokens that every forward pass must have."""
        self.shape: list[int] = []
        """Batch and tokens of the forward pass under way."""
        self.attached = False

    @contextmanager
    def attach(self, sites: Iterable[Site]) -> Iterator[None]:
        """Edit the activations at some sites; within another such context, nothing is done twice."""
        if self.attached:
            yield
            return
        self.attached = True
        with ExitStack() as handles:
            handles.callback(setattr, self, "attached", False)
            handle: RemovableHandle = self.architecture.blocks[0].register_forward_pre_hook(self.on_start)
            handles.callback(handle.remove)
            for site in self.behind:  # before what is written there is edited
                handle = self.architecture.read_module(site).register_forward_hook(partial(self.on_projected, site))
                handles.callback(handle.remove)
            for site in sites:
                if site.kind in _WRITES:
                    handle = self.architecture.write_module(site).register_forward_hook(partial(self.on_write, site))
                else:
                    read = self.architecture.read_module(site)
                    handle = read.register_forward_pre_hook(partial(self.on_read, site))
                handles.callback(handle.remove)
            yield

    def on_start(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self.shape[:] = args[0].shape[:2]
        if self.expected is not None and tuple(self.shape) != self.expected:
            prompts, tokens = self.expected
            raise ModelError(
                f"forward pass: found {self.shape[0]} prompts of {self.shape[1]} tokens, expected {prompts} of {tokens}, as the "
                "corrupted ones; tokens that are generated have no corrupted activation, which takes a constant ablation (mean)"
            )

    def on_read(self, site: Site, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self.silent.discard(site)
        found = self._apply(self.edits[site], args[0])
        return None if found is None else (found, *args[1:])

    def on_write(self, site: Site, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
        self.silent.discard(site)
        return self._apply(self.edits[site], output)

    def on_projected(self, site: Site, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return self._apply(self.behind[site], output)

    def _apply(self, edit: Edit, activation: Tensor) -> Tensor | None:
        """Edits see [batch, tokens, n], also where a model works on [batch * tokens, n] (OPT's MLP)."""
        if activation.dim() > 2:
            return edit(activation)
        found = edit(activation.view(*self.shape, -1))
        return None if found is None else found.flatten(0, 1)


@contextmanager
def _checkpointed(block: nn.Module, again: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Keep only the input of a block for the backward pass, which runs it once more, in the context `again`."""
    run = partial(
        checkpoint,
        block.forward,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), again()),
    )
    with _forwarding(block, partial(_to_the_end, run) if is_offloaded(block) else run):
        yield


def _to_the_end(run: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Run a block again from its first module to its last, not only as far as the backward pass needs.

    A module that is cut off keeps the weights that were fetched for it.
    """
    with set_checkpoint_early_stop(False):
        return run(*args, **named)


@contextmanager
def intercepted(before: Iterable[tuple[nn.Module, Edit]], after: Iterable[tuple[nn.Module, Edit]]) -> Iterator[None]:
    """See or edit what single modules are given first, or what they return; after the edits of contexts around this one.

    Args:
        before: modules, each with what is made of its first positional input.
        after: modules, each with what is made of its output, a tensor.
    """

    def given(edit: Edit, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        found = edit(args[0])
        return None if found is None else (found, *args[1:])

    def returned(edit: Edit, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return edit(output)

    with ExitStack() as handles:
        for module, edit in before:
            handles.callback(module.register_forward_pre_hook(partial(given, edit)).remove)
        for module, edit in after:
            handles.callback(module.register_forward_hook(partial(returned, edit)).remove)
        yield


@contextmanager
def blocks_recorded(subject: Subject) -> Iterator[list[Any]]:
    """What every block returns in a forward pass, as it returns it; a second pass overwrites the first."""
    outputs: list[Any] = [None] * len(subject.architecture.blocks)

    def keep(layer: int, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        outputs[layer] = output

    with ExitStack() as handles:
        for layer, block in enumerate(subject.architecture.blocks):
            handles.callback(block.register_forward_hook(partial(keep, layer)).remove)
        yield outputs


@contextmanager
def resumed(subject: Subject, outputs: Sequence[Any], first: int) -> Iterator[None]:
    """Begin forward passes at a layer: the blocks before it return what they returned for the same tokens before.

    Args:
        subject: the model.
        outputs: of all blocks (`blocks_recorded`), in a pass that did nothing else before that layer.
        first: the first layer that runs.
    """
    with ExitStack() as contexts:
        for block, output in zip(subject.architecture.blocks[:first], outputs, strict=False):
            contexts.enter_context(_forwarding(block, partial(_same, output)))
        yield


def _same(output: Any, *_: Any, **__: Any) -> Any:
    return output


@contextmanager
def _forwarding(block: nn.Module, run: Callable[..., Any]) -> Iterator[None]:
    """Let a block do something else than its own forward pass; its hooks stay."""
    own = block.__dict__.get("forward")
    try:
        block.__dict__["forward"] = run
        yield
    finally:
        if own is None:
            del block.__dict__["forward"]
        else:
            block.__dict__["forward"] = own
