"""The oracles, on a user's own model: does masking do what it says?

Random token ids, no prompts. Each check compares two independent ways to the same logits and reports the largest
difference; what a check may tolerate depends on the dtype.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitsieve.circuits.nodes import Node
from circuitsieve.models.instrument import answer_logits, masked, record
from circuitsieve.models.lean import Narrowed
from circuitsieve.models.placement import weight
from circuitsieve.models.projections import Projection, has_bias, is_input_major
from circuitsieve.models.subject import Subject, frozen
from circuitsieve.vocabulary import Ablation, Granularity, SiteKind

PROMPTS, TOKENS, PADDING = 3, 12, 4


class CheckResult(NamedTuple):
    """What one check found."""

    name: str
    expectation: str
    difference: float
    """Largest absolute difference of logits."""
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance


Progress = Callable[[str, int, int], None]


def selfcheck(model: nn.Module, *, seed: int = 0, progress: Progress | None = None) -> list[CheckResult]:
    """Run every check on a model, which is left as it was.

    Raises:
        UnsupportedModel: the model's family is not supported.
        HookNotFired: the model does not run a module that the table names.
    """
    with frozen(model), torch.no_grad():
        checks = _Checks(Subject.of(model), seed)
        todo = [checks.all_open, checks.all_closed, checks.one_head, checks.one_neuron, checks.folding, checks.padding]
        if not checks.subject.architecture.norms_residual:  # else blocks do more to the stream than to add to it
            todo.insert(2, checks.all_but_embed_closed)
        if not checks.space.post_norm:  # behind a norm, no weight of the projection is the out dim alone
            todo.append(checks.one_out_dim)
        results = []
        for done, check in enumerate(todo):
            if progress is not None:
                progress(check.__name__.replace("_", " "), done + 1, len(todo))
            results.append(check())
    return results


class _Checks:
    """The checks share the prompts and the corrupted activations."""

    def __init__(self, subject: Subject, seed: int) -> None:
        self.subject, self.space = subject, subject.space
        generator = torch.Generator().manual_seed(seed)
        vocabulary = subject.model.get_input_embeddings().get_parameter("weight").shape[0]
        tokens = TOKENS if subject.context is None else min(TOKENS, subject.context - PADDING)
        clean, corrupted = torch.randint(0, vocabulary, (2, PROMPTS, tokens), generator=generator).to(subject.device)
        self.clean, self.corrupted = clean, corrupted
        self.positions = torch.full((PROMPTS,), tokens - 1, device=subject.device)
        with record(subject, subject.architecture.sites()) as self.baselines:
            self.full_corrupted = self._logits(corrupted)
        self.full = self._logits(clean)
        # Rounding of one forward pass: a multiple of the dtype's resolution, in units of the logits' size. (Measured on
        # SmolLM2's 30 blocks: 16 in float32, 2.4 in bfloat16, of which a larger multiple would let anything pass.)
        multiple = 8 if subject.model.dtype == torch.bfloat16 else 64
        self.rounding = multiple * torch.finfo(subject.model.dtype).eps * float(self.full.abs().max().clamp_min(1))

    def all_open(self) -> CheckResult:
        """All masks open."""
        ones = {g: mask.float().to(self.subject.device) for g, mask in self.space.full().items()}
        with masked(self.subject, self.space.compose(ones), self.baselines):
            logits = self._logits(self.clean)
        return self._result("all masks open", "the untouched model, bit for bit", logits, self.full, 0.0)

    def all_closed(self) -> CheckResult:
        """All masks closed."""
        zeros = {g: mask.float().to(self.subject.device) for g, mask in self.space.full(False).items()}
        with masked(self.subject, self.space.compose(zeros), self.baselines):
            logits = self._logits(self.clean)
        return self._result("all masks closed", "the model on the corrupted prompt", logits, self.full_corrupted)

    def all_but_embed_closed(self) -> CheckResult:
        """All closed but the embedding, by the writes and again by the reads.

        The only check that notices a wrong module in the table: what is closed must be all that the blocks add.
        """
        writes = [
            self.baselines[site] for site in self.baselines if site.kind in (SiteKind.ATTN_WRITE, SiteKind.MLP_WRITE)
        ]
        with self._without_blocks():
            embedded = self.subject.model.get_input_embeddings()(self.clean)
            residual = embedded + sum(write.float().to(embedded.device) for write in writes)
            expected = self.subject.model(inputs_embeds=residual.to(embedded), use_cache=False).logits[:, -1].float()
        closed = []
        for granularities in ((Granularity.LAYER,), (Granularity.HEAD, Granularity.MLP_NEURON)):
            masks = {g: torch.zeros(self.space.shape(g), device=self.subject.device) for g in granularities}
            with masked(self.subject, self.space.compose(masks), self.baselines):
                closed.append(self._logits(self.clean))
        expectation = "the model's head on the embedding plus all that the blocks add on the corrupted prompt"
        return self._result("all masks closed but the embedding's", expectation, torch.stack(closed), expected)

    def one_head(self) -> CheckResult:
        """One head ablated by zero."""
        layer, head = self.space.layers // 2, self.space.heads // 2
        inputs = slice(head * self.space.head_dim, (head + 1) * self.space.head_dim)
        without = self._without(layer, self.subject.architecture.family.attn_out, inputs=inputs)
        return self._zeroed(Node(Granularity.HEAD, layer, head), without, "its columns of the output projection at 0")

    def one_neuron(self) -> CheckResult:
        """One MLP neuron ablated by zero."""
        layer, neuron = self.space.layers - 1, self.space.neurons // 2
        without = self._without(layer, self.subject.architecture.family.mlp_out, inputs=slice(neuron, neuron + 1))
        return self._zeroed(
            Node(Granularity.MLP_NEURON, layer, neuron), without, "its column of the down projection at 0"
        )

    def one_out_dim(self) -> CheckResult:
        """One out dim of an MLP ablated by zero."""
        layer, dim = 0, self.space.width // 2
        without = self._without(layer, self.subject.architecture.family.mlp_out, outputs=slice(dim, dim + 1))
        return self._zeroed(Node(Granularity.MLP_OUT_DIM, layer, dim), without, "its row of the down projection at 0")

    def folding(self) -> CheckResult:
        """Block masks moved into the reads."""
        soft = {
            g: torch.linspace(0, 1, self.space.layers + 2, device=self.subject.device)[1:-1, None]
            for g in (Granularity.ATTN_BLOCK, Granularity.MLP_BLOCK)
        }
        composed = self.space.compose(soft)
        with masked(self.subject, composed, self.baselines):
            expected = self._logits(self.clean)
        with masked(self.subject, self.space.fold(composed, Ablation.CORRUPTED), self.baselines):
            logits = self._logits(self.clean)
        return self._result("block masks folded into reads", "block masks at the writes", logits, expected)

    def padding(self) -> CheckResult:
        """A prompt padded on the right."""
        filler = torch.zeros(PROMPTS, PADDING, dtype=self.clean.dtype, device=self.subject.device)
        logits = self._logits(torch.cat([self.clean, filler], dim=1))
        return self._result("padding on the right", "the prompt without padding", logits, self.full)

    def _logits(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch vocab"]:
        return answer_logits(self.subject, input_ids, self.positions).float()

    @contextmanager
    def _without_blocks(self) -> Iterator[None]:
        """The model as it would be without any block: its head on the final norm of what it embeds."""
        path, _, name = self.subject.architecture.family.blocks.rpartition(".")
        parent = self.subject.model.get_decoder().get_submodule(path)  # type: ignore[no-untyped-call]
        blocks = parent.get_submodule(name)
        try:
            setattr(parent, name, nn.ModuleList())
            yield
        finally:
            setattr(parent, name, blocks)

    def _without(
        self, layer: int, projection: Projection, inputs: slice = slice(None), outputs: slice = slice(None)
    ) -> Narrowed:
        """A projection with the weights from some inputs to some outputs at 0; biases of the outputs too, unless all are."""
        module = self.subject.architecture.projection(layer, projection)
        values = weight(module, "weight").to(self.subject.devices[layer], copy=True)
        (values.T if is_input_major(module) else values)[outputs, inputs] = 0
        changed = {"weight": values}
        if has_bias(module) and outputs != slice(None):
            changed["bias"] = weight(module, "bias").to(values.device, copy=True)
            changed["bias"][outputs] = 0
        return Narrowed(module, changed)

    def _zeroed(self, node: Node, without: Narrowed, expectation: str) -> CheckResult:
        """Mask one node under zero ablation; then, unmasked, run a projection without its weights."""
        mask = self.space.full()[node.granularity]
        mask[node.layer, node.index] = False
        zeros = {site: torch.zeros(1, device=self.subject.device) for site in self.baselines}
        site_masks = self.space.compose({node.granularity: mask.to(self.subject.device)})
        with masked(self.subject, site_masks, zeros):
            logits = self._logits(self.clean)
        with without.in_force():
            expected = self._logits(self.clean)
        return self._result(f"{node} ablated by zero", expectation, logits, expected)

    def _result(
        self, name: str, expectation: str, logits: Tensor, expected: Tensor, tolerance: float | None = None
    ) -> CheckResult:
        difference = float((logits - expected).abs().max())
        return CheckResult(name, expectation, difference, self.rounding if tolerance is None else tolerance)
