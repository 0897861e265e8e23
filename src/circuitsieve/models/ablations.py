"""What an ablated unit is replaced by: a run on another prompt, or a constant.

A *run* baseline is a forward pass on another prompt (corrupted, resample). A *constant* baseline (mean, mean_positional,
zero, optimal) is computed once, from corrupted training prompts.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from circuitsieve.circuits.nodes import Activations
from circuitsieve.data.batching import PairBatch
from circuitsieve.data.tokenising import Example
from circuitsieve.models.instrument import answer_logits, record
from circuitsieve.models.subject import Subject
from circuitsieve.parallel import ALONE, Processes
from circuitsieve.vocabulary import Ablation, Site, SiteKind


class OptimalConstants(nn.Module):
    """A learned constant per unit (Li and Janson 2024, "optimal ablation"), for the sites that masks will mix.

    What is learned is the offset from the mean in units of the site's own size, so that one learning rate fits all sites.
    """

    def __init__(self, means: Activations, kinds: Collection[SiteKind]) -> None:
        """Start at the means; sites of other kinds keep them."""
        super().__init__()
        self.means = means
        self.offsets = nn.ParameterDict(
            {site.key: torch.zeros_like(mean) for site, mean in means.items() if site.kind in kinds}
        )
        self.scales = {site: mean.square().mean().sqrt().clamp_min(1e-6) for site, mean in means.items()}

    def forward(self) -> Activations:
        """The constants, differentiable in the offsets: [n] per site."""
        return {
            site: mean + self.scales[site] * self.offsets[site.key] if site.key in self.offsets else mean
            for site, mean in self.means.items()
        }

    def now(self) -> Activations:
        """The constants as they are, apart from what is learned on."""
        return {site: constant.detach().clone() for site, constant in self().items()}


def with_counterfactuals(examples: Iterable[Example], ablation: Ablation, seed: int = 0) -> list[Example]:
    """The examples with the prompt that the baseline run sees as their corrupted one.

    `resample`: the clean prompt of another example of the same token length (seeded; the example's own corrupted prompt
    where no other has its length). Every other ablation leaves examples as they are.
    """
    examples = list(examples)
    if ablation is not Ablation.RESAMPLE:
        return examples
    generator = random.Random(seed)
    by_length: dict[int, list[Example]] = defaultdict(list)
    for example in examples:
        by_length[len(example.clean)].append(example)
    seen, donated = Counter[int](), []
    for example in examples:
        length = len(example.clean)
        alike, own = by_length[length], seen[length]
        seen[length] += 1
        if len(alike) > 1:
            drawn = generator.choice(range(len(alike) - 1))
            example = replace(example, corrupted=alike[drawn + (drawn >= own)].clean)
        donated.append(example)
    return donated


def constants(
    subject: Subject, batches: Iterable[PairBatch], ablation: Ablation, processes: Processes = ALONE
) -> Activations | None:
    """The constant baselines of every site, float32; None where the baseline is a run.

    `mean`: [n], over all tokens of the corrupted prompts, padding excluded. `mean_positional`: [positions + 1, n], over
    the prompts that reach a position; the last row is the mean over all positions, for longer prompts. `zero`: [1].
    `optimal`: the mean, where learning starts.
    """
    if ablation.is_run:
        return None
    sites = list(subject.architecture.sites())
    if ablation is Ablation.ZERO:
        return {site: torch.zeros(1, device=subject.device) for site in sites}
    batches = list(batches)
    positions = max(batch.corrupted.shape[1] for batch in batches)
    sums: dict[Site, Tensor] = {}
    tokens = torch.zeros(positions, dtype=torch.float64, device=subject.device)
    for batch in batches:
        real = batch.real[: batch.counted]
        tokens[: real.shape[1]] += real.sum(0)
        with torch.no_grad(), record(subject, sites) as activations:
            answer_logits(subject, batch.corrupted, batch.positions)
        for site, activation in activations.items():
            own = activation[: batch.counted].double()
            total = torch.where(real[..., None].to(activation.device), own, 0.0).sum(0)
            sums.setdefault(site, total.new_zeros(positions, total.shape[1]))[: len(total)] += total
    tokens, sums = processes.total(tokens), {site: processes.total(total) for site, total in sums.items()}
    means = {site: total.sum(0) / tokens.sum().to(total) for site, total in sums.items()}
    if ablation is not Ablation.MEAN_POSITIONAL:
        return {site: mean.float() for site, mean in means.items()}
    return {
        site: torch.cat([total / tokens.to(total)[:, None], means[site][None]]).float() for site, total in sums.items()
    }
