"""Watching and editing a forward pass of a stock transformers model. The only file that touches hooks.

Every hook lives inside one context manager and is removed when it ends, also by an exception. A site that was asked for
and never saw an activation is an error (`HookNotFired`), never a silent no-op.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.hooks import RemovableHandle

from circuitsieve.architectures import Architecture
from circuitsieve.errors import HookNotFired, ModelError
from circuitsieve.lean import Lean, LeanSite, picked
from circuitsieve.mixing import mix
from circuitsieve.nodes import Activations, SiteMasks
from circuitsieve.placement import is_offloaded
from circuitsieve.prefix import Prefix
from circuitsieve.subject import Subject
from circuitsieve.vocabulary import Site, SiteKind

Edit = Callable[[Tensor], Tensor | None]
"""What to make of an activation; None leaves it as it is."""

_WRITES = (SiteKind.ATTN_WRITE, SiteKind.MLP_WRITE)


@contextmanager
def record(subject: Subject, sites: Iterable[Site], dtype: torch.dtype | None = None) -> Iterator[Activations]:
    """Record the activations at sites, detached, in the model's dtype or another. A second forward pass overwrites the first."""
    recorded: Activations = {}
    with _edited(subject.architecture, {site: partial(_keep, recorded, dtype, site) for site in sites}):
        yield recorded


def _keep(recorded: Activations, dtype: torch.dtype | None, site: Site, activation: Tensor) -> None:
    recorded[site] = activation.detach().to(dtype or activation.dtype)


@contextmanager
def masked(
    subject: Subject,
    site_masks: SiteMasks,
    baselines: Activations,
    *,
    checkpointed: int = 0,
    consume: bool = False,
    lean: Lean | None = None,
    of_a_run: bool = False,
    first: int = 0,
    shape: tuple[int, ...] | None = None,
) -> Iterator[None]:
    """Mix baselines into every forward pass: `lerp(baseline, activation, mask)` at each site that has a mask.

    Masks: [layers, n] or [layers, 1] per site kind, float32, 1 = keep; with [layers, batch, 1, n] each example has its own.
    Baselines: broadcast to [batch, tokens, n]. Rows of bool masks that are open throughout are left out. Values are exact
    at 0 and at 1, in any dtype (to rounding with `lean`). Masks go to the devices that layers run on, once; a baseline goes to
    that of its activation.

    Of the first `checkpointed` layers, only the input is kept for the backward pass, which runs them again, with the same
    masks; it may come after the context has ended.

    With `consume`, each baseline is taken out of the mapping as soon as it is mixed in: memory for what comes later. Then
    there can be but one forward pass, and no layer can be run again.

    Layers before `first` are left alone (they need not run: `resumed`).

    With `shape`, batch and tokens, a forward pass over any other number of them is a `ModelError`.

    With `lean`, the units that it takes for closed count as masked by 0, whatever their masks, and are not computed. All its
    sites must have masks, and no layer can be run again. With `of_a_run`, all baselines are of one run: what it wrote at a site
    is what the projection there made of what it read, which need then not be computed.
    """
    edits: dict[Site, Edit] = {}
    take = baselines.pop if consume else baselines.__getitem__
    lean_sites = {} if lean is None else lean.sites
    written: Activations = baselines if of_a_run else {}
    behind: dict[Site, Tensor] = {}
    for kind, mask in site_masks.items():
        skip = mask.all(dim=1).tolist() if mask.dtype == torch.bool else [False] * len(mask)
        rows = {device: mask.to(device).unbind(0) for device in set(subject.devices)}
        for layer in range(first, len(mask)):
            if not skip[layer]:
                row, site = rows[subject.devices[layer]][layer], Site(kind, layer)
                edits[site] = partial(_mixed, row, take, site)
                if site in lean_sites:
                    edits[site] = partial(_mixed_lean, lean_sites[site], written, behind, row, take, site)
    added: dict[Site, Edit] = {site: partial(_add, behind, site) for site in lean_sites}
    with ExitStack() as contexts:
        for lean_site in lean_sites.values():
            for narrowed in (*lean_site.inputs, lean_site.reading):
                contexts.enter_context(narrowed.in_force())
        contexts.enter_context(_edited(subject.architecture, edits, checkpointed, added, shape))
        yield


def _mixed(mask: Tensor, take: Callable[[Site], Tensor], site: Site, activation: Tensor) -> Tensor:
    return mix(take(site), activation, mask)


def _mixed_lean(
    lean: LeanSite,
    written: Activations,
    behind: dict[Site, Tensor],
    mask: Tensor,
    take: Callable[[Site], Tensor],
    site: Site,
    activation: Tensor,
) -> Tensor:
    """How far masks move the open units from their baselines; what the projection makes of all baselines is noted."""
    baseline = take(site)
    behind[site] = written[lean.written] if lean.written in written else lean.of_baseline(baseline)
    if lean.among_computed.shape[0] != activation.shape[-1]:
        activation = picked(activation, lean.among_computed)
    moved = activation - picked(baseline, lean.open).to(activation)
    return mix(moved.new_zeros(1), moved, picked(mask, lean.open))


def _add(behind: dict[Site, Tensor], site: Site, output: Tensor) -> Tensor:
    return output + behind.pop(site).to(output)


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
        edited = self._apply(self.edits[site], args[0])
        return None if edited is None else (edited, *args[1:])

    def on_write(self, site: Site, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
        self.silent.discard(site)
        return self._apply(self.edits[site], output)

    def on_projected(self, site: Site, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return self._apply(self.behind[site], output)

    def _apply(self, edit: Edit, activation: Tensor) -> Tensor | None:
        """Edits see [batch, tokens, n], also where a model works on [batch * tokens, n] (OPT's MLP)."""
        if activation.dim() > 2:
            return edit(activation)
        edited = edit(activation.view(*self.shape, -1))
        return None if edited is None else edited.flatten(0, 1)


@contextmanager
def _edited(
    architecture: Architecture,
    edits: Mapping[Site, Edit],
    checkpointed: int = 0,
    behind: Mapping[Site, Edit] = MappingProxyType({}),
    shape: tuple[int, ...] | None = None,
) -> Iterator[None]:
    """Apply a function to the activation at each site, or to what the projection behind a read site makes of it.

    None leaves an activation as it is.
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
        edited = edit(args[0])
        return None if edited is None else (edited, *args[1:])

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


def answer_logits(
    subject: Subject,
    input_ids: Int[Tensor, "batch tokens"],
    positions: Int[Tensor, " batch"],
    prefix: Prefix | None = None,
) -> Float[Tensor, "batch vocab"]:
    """Logits at one position of each prompt, by the model's own head, without computing any others; where the prompts are.

    Prompts are padded on the right; a causal model needs no attention mask for that. Where the prefix of the prompts is given,
    only the tokens after it are run.
    """
    start = 0 if prefix is None else prefix.tokens
    handle = subject.architecture.unembedding.register_forward_pre_hook(partial(_gather, positions - start))
    try:
        logits: Tensor = subject.model(
            input_ids=input_ids[:, start:],
            past_key_values=None if prefix is None else prefix.cache(),
            use_cache=prefix is not None,
        ).logits
    finally:
        handle.remove()
    return logits[:, 0].to(input_ids.device)


def _gather(positions: Int[Tensor, " batch"], _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden = args[0]
    rows = torch.arange(len(hidden), device=hidden.device)
    return (hidden[rows, positions.to(hidden.device)].unsqueeze(1), *args[1:])
