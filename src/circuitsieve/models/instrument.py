"""Watching and masking a forward pass of a stock transformers model: activations at sites, baselines mixed in, answer logits."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitsieve.circuits.nodes import Activations, SiteMasks
from circuitsieve.models.hooks import Edit, edited, intercepted
from circuitsieve.models.lean import Lean, LeanSite, picked
from circuitsieve.models.mixing import mix
from circuitsieve.models.prefix import Prefix
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import Site


@contextmanager
def record(subject: Subject, sites: Iterable[Site], dtype: torch.dtype | None = None) -> Iterator[Activations]:
    """Record the activations at sites, detached, in the model's dtype or another. A second forward pass overwrites the first."""
    recorded: Activations = {}
    with edited(subject.architecture, {site: partial(_keep, recorded, dtype, site) for site in sites}):
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
        contexts.enter_context(edited(subject.architecture, edits, checkpointed, added, shape))
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
    if lean.among_computed is not None:
        activation = picked(activation, lean.among_computed)
    moved = activation - picked(baseline, lean.open).to(activation)
    return mix(moved.new_zeros(1), moved, picked(mask, lean.open))


def _add(behind: dict[Site, Tensor], site: Site, output: Tensor) -> Tensor:
    return output + behind.pop(site).to(output)


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
    with intercepted([(subject.architecture.unembedding, partial(_gather, positions - start))], []):
        logits: Tensor = subject.model(
            input_ids=input_ids[:, start:],
            past_key_values=None if prefix is None else prefix.cache(),
            use_cache=prefix is not None,
        ).logits
    return logits[:, 0].to(input_ids.device)


def _gather(positions: Int[Tensor, " batch"], hidden: Float[Tensor, "batch tokens d"]) -> Float[Tensor, "batch 1 d"]:
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, positions.to(hidden.device)].unsqueeze(1)
