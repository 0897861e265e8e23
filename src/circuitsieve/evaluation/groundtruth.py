"""Small models whose circuits are known, head by head and neuron by neuron.

A planted model is made by hand: all but a few nodes write nothing. A confined model (trained here, in a minute or two) does
several tasks at once: each prompt holds a row of symbols and asks for one task, a random table of two of them. Each task is
confined to a set of nodes that was drawn before training; sets overlap. While it is trained, four things are asked for at once,
all under the ablation by which circuits are found, the activations of a corrupted prompt:

- the full model gives the answer, and so does the set alone, with all else ablated: it is sufficient;
- with the set ablated the answer is the corrupted prompt's: nothing else carries the task;
- with any one node of the set ablated, the answer becomes less likely: every node is needed.

At the end the last is measured for each node: what is known is what was found so, not what was hoped for.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from circuitsieve.circuits.nodes import SiteMasks
from circuitsieve.data.pairs import Pair
from circuitsieve.data.tokenising import Example, Pairs
from circuitsieve.evaluation.recovery import Marks
from circuitsieve.models.instrument import masked, record
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import Granularity, Site, SiteKind

SYMBOLS = 4
PLACES = 4
"""Symbols of a prompt; the last token asks for a task."""
BATCH = 128
RATE, WARM_UP = 3e-3, 100
EFFECT = 0.5
"""Nats of the answer's log-probability that ablating a node of the set shall cost, on average."""
PRESS = 5.0
"""What falling short of it costs, against a nat of the answers."""
NEEDED = 0.05
"""Nats: a node of the set whose ablation costs less does not count as known."""


@dataclass(frozen=True)
class Level:
    """How hard a model is to read."""

    tasks: int
    heads: int
    """Of each task, out of `layers` times 4."""
    neurons: int
    """Of each task, out of `layers` times 64."""
    layers: int = 3
    steps: int = 2000


@dataclass(frozen=True)
class KnownCircuit:
    """A task of a model, and the nodes that do it."""

    name: str
    truth: Marks
    pairs: Pairs


@dataclass(frozen=True)
class KnownModel:
    """A model all of whose circuits are known."""

    model: GPT2LMHeadModel
    circuits: tuple[KnownCircuit, ...]


def planted(seed: int = 0, heads: int = 3, neurons: int = 8) -> KnownModel:
    """A random model made by hand: of all heads and neurons, only planted ones write anything.

    What is to be kept is the whole distribution over the next token on random prompts.

    Args:
        seed: of the nodes, the weights and the prompts.
        heads: planted ones, of three layers of four.
        neurons: planted ones, of three layers of 64.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(_shape(layers=3, vocabulary=40))
    model.train(False)
    truth = {
        granularity: _drawn(Subject.of(model).space.shape(granularity), count, 0, generator)
        for granularity, count in ((Granularity.HEAD, heads), (Granularity.MLP_NEURON, neurons))
    }
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.5, generator=generator)
        subject = Subject.of(model)
        units = {
            SiteKind.ATTN_READ: truth[Granularity.HEAD].repeat_interleave(subject.space.head_dim, 1),
            SiteKind.MLP_READ: 3 * truth[Granularity.MLP_NEURON],
        }
        for kind, writing in units.items():
            for layer, rows in enumerate(writing):
                weight: Tensor = subject.architecture.read_module(Site(kind, layer)).weight  # type: ignore[assignment]
                weight *= rows[:, None]

    def split(n: int) -> tuple[Example, ...]:
        ids = torch.randint(40, (n, 2, PLACES + 1), generator=generator).tolist()
        return tuple(Example(Pair("", "", (), ()), tuple(a), tuple(b), (1,), (2,)) for a, b in ids)

    pairs = Pairs(split(512), split(128), split(128))
    return KnownModel(model, (KnownCircuit("planted", truth, pairs),))


def confined(level: Level, seed: int = 0) -> KnownModel:
    """Train a model whose tasks are confined to known nodes; the same for the same level and seed on the same machine.

    Args:
        level: how hard.
        seed: of the sets, the tables, the weights and the prompts.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trainer = _Trainer(level)
        for step in range(level.steps):
            trainer.step(step)
        circuits = tuple(
            KnownCircuit(f"table {task}", trainer.known(task), trainer.pairs(task)) for task in range(level.tasks)
        )
    model = trainer.model
    for parameter in model.parameters():
        parameter.grad = None
    return KnownModel(model, circuits)


class _Trainer:
    def __init__(self, level: Level) -> None:
        self.level = level
        self.model = GPT2LMHeadModel(_shape(level.layers, SYMBOLS + level.tasks))
        self.model.train(False)
        self.subject = Subject.of(self.model)
        self.sites = [Site(kind, i) for kind in (SiteKind.ATTN_READ, SiteKind.MLP_READ) for i in range(level.layers)]
        self.tables = torch.randint(SYMBOLS, (level.tasks, SYMBOLS, SYMBOLS))
        self.inputs = [torch.randperm(PLACES)[:2].tolist() for _ in range(level.tasks)]
        self.sets = [self._set() for _ in range(level.tasks)]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE)

    def _set(self) -> Marks:
        """Heads of any layer, neurons of any but the first, which sees no other token before its own attention."""
        sizes = {Granularity.HEAD: (self.level.heads, 0), Granularity.MLP_NEURON: (self.level.neurons, 1)}
        shapes = {g: self.subject.space.shape(g) for g in sizes}
        return {g: _drawn(shapes[g], count, first) for g, (count, first) in sizes.items()}

    def prompts(self, task: int, n: int) -> tuple[Int[Tensor, "n tokens"], Int[Tensor, " n"]]:
        """Random prompts of a task, and their answers."""
        symbols = torch.randint(SYMBOLS, (n, PLACES))
        first, second = self.inputs[task]
        answers = self.tables[task][symbols[:, first], symbols[:, second]]
        return torch.cat([symbols, torch.full((n, 1), SYMBOLS + task)], 1), answers

    def step(self, step: int) -> None:
        """One step on one task."""
        task = step % self.level.tasks
        clean, answers = self.prompts(task, BATCH)
        corrupted, others = self.prompts(task, BATCH)
        marks = self.sets[task]
        baselines = self._recorded(corrupted)
        alone = self._masked(clean, marks, baselines)
        without = self._masked(clean, {g: ~mark for g, mark in marks.items()}, baselines)
        loss = functional.cross_entropy(self._logits(clean), answers) + functional.cross_entropy(alone, answers)
        loss = loss + functional.cross_entropy(without, others)
        nodes = _nodes(marks)
        chosen = torch.randint(len(nodes), (BATCH,))
        knocked = self._masked(clean, _each_without(marks, [nodes[i] for i in chosen.tolist()]), baselines)
        cost = _log_likely(alone, answers) - _log_likely(knocked, answers)
        each = torch.zeros(len(nodes)).index_add(0, chosen, cost)
        effects = each / torch.bincount(chosen, minlength=len(nodes)).clamp_min(1)
        loss = loss + PRESS * functional.relu(EFFECT - effects).mean()
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP) * (1 - step / self.level.steps)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def known(self, task: int, n: int = 1024) -> Marks:
        """The nodes of a set whose ablation costs something."""
        clean, answers = self.prompts(task, n)
        baselines = self._recorded(self.prompts(task, n)[0])
        marks = self.sets[task]
        before = _log_likely(self._masked(clean, marks, baselines), answers)
        found = {g: torch.zeros_like(mark) for g, mark in marks.items()}
        for granularity, layer, index in _nodes(marks):
            fewer = {g: mark.clone() for g, mark in marks.items()}
            fewer[granularity][layer, index] = False
            cost = (before - _log_likely(self._masked(clean, fewer, baselines), answers)).mean()
            found[granularity][layer, index] = bool(cost > NEEDED)
        return found

    def pairs(self, task: int) -> Pairs:
        """Pairs whose answers differ."""

        def split(n: int) -> Iterator[Example]:
            clean, answers = self.prompts(task, 3 * n)
            corrupted, others = self.prompts(task, 3 * n)
            different = (answers != others).nonzero().flatten()[:n].tolist()
            for i in different:
                prompts = (tuple(ids[i].tolist()) for ids in (clean, corrupted))
                yield Example(Pair("", "", (), ()), next(prompts), next(prompts), (int(answers[i]),), (int(others[i]),))

        return Pairs(tuple(split(512)), tuple(split(128)), tuple(split(128)))

    def _logits(self, tokens: Int[Tensor, "n tokens"]) -> Float[Tensor, "n symbols"]:
        logits: Tensor = self.model(tokens).logits[:, -1, :SYMBOLS]
        return logits

    def _recorded(self, corrupted: Int[Tensor, "n tokens"]) -> dict[Site, Tensor]:
        with torch.no_grad(), record(self.subject, self.sites) as baselines:
            self._logits(corrupted)
        return baselines

    def _masked(
        self, tokens: Int[Tensor, "n tokens"], marks: dict[Granularity, Tensor], baselines: dict[Site, Tensor]
    ) -> Float[Tensor, "n symbols"]:
        masks: SiteMasks = {
            SiteKind.ATTN_READ: marks[Granularity.HEAD].repeat_interleave(self.subject.space.head_dim, -1).float(),
            SiteKind.MLP_READ: marks[Granularity.MLP_NEURON].float(),
        }
        with masked(self.subject, masks, baselines):
            return self._logits(tokens)


def _shape(layers: int, vocabulary: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocabulary,
        n_embd=64,
        n_layer=layers,
        n_head=4,
        n_inner=64,
        n_positions=PLACES + 1,
        bos_token_id=0,
        eos_token_id=0,
    )


def _drawn(
    shape: tuple[int, int], count: int, first: int, generator: torch.Generator | None = None
) -> Bool[Tensor, "layers n"]:
    """So many random nodes of the layers from the first one on."""
    mark = torch.zeros(shape, dtype=torch.bool)
    later = mark[first:].view(-1)
    later[torch.randperm(len(later), generator=generator)[:count]] = True
    return mark


def _nodes(marks: Marks) -> list[tuple[Granularity, int, int]]:
    return [(g, layer, index) for g, mark in marks.items() for layer, index in mark.nonzero().tolist()]


def _each_without(marks: Marks, nodes: list[tuple[Granularity, int, int]]) -> dict[Granularity, Tensor]:
    """For each example, the marks without one node: [layers, examples, 1, n]."""
    found = {g: mark[:, None, None].repeat(1, len(nodes), 1, 1) for g, mark in marks.items()}
    for granularity, mask in found.items():
        places = [(layer, i, index) for i, (g, layer, index) in enumerate(nodes) if g is granularity]
        layers, examples, indices = torch.tensor(places, dtype=torch.long).view(-1, 3).unbind(1)
        mask[layers, examples, 0, indices] = False
    return found


def _log_likely(logits: Float[Tensor, "n symbols"], answers: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return logits.log_softmax(-1).gather(1, answers[:, None]).squeeze(1)


LADDER: dict[str, Callable[[int], KnownModel]] = {
    "planted": planted,
    "one task": functools.partial(confined, Level(1, 3, 8)),
    "two tasks": functools.partial(confined, Level(2, 3, 8, steps=3000)),
    "three tasks": functools.partial(confined, Level(3, 4, 12, steps=5000)),
    "deep": functools.partial(confined, Level(3, 5, 16, layers=4, steps=6000)),
}
"""Models from easy to hard, by their seed: more tasks at once, larger and deeper sets."""
