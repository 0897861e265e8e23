"""The words of the package, as enumerations that say what each word means.

A leaf without torch: the configuration, the command line and the files on disk use the same spellings.
"""

from enum import StrEnum
from typing import NamedTuple


class _Word(StrEnum):
    """A string with one sentence of explanation."""

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> "_Word":
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


class Granularity(_Word):
    """A family of nodes. Masks hold one tensor per granularity, [layers, n]; 1 = keep, 0 = ablated."""

    LAYER = "layer", "everything that one layer adds to the residual stream; its upstream survives"
    ATTN_BLOCK = "attn_block", "what one layer's attention adds to the residual stream"
    MLP_BLOCK = "mlp_block", "what one layer's MLP adds to the residual stream"
    HEAD = "head", "the output of one query head, before the attention output projection"
    HEAD_DIM = "head_dim", "one dimension of one query head's output"
    MLP_NEURON = "mlp_neuron", "one hidden unit of an MLP, at the input of its down projection"
    ATTN_OUT_DIM = "attn_out_dim", "one residual dimension of what attention adds"
    MLP_OUT_DIM = "mlp_out_dim", "one residual dimension of what the MLP adds"
    EMBED = "embed", "the residual stream as it enters the first layer"


class SiteKind(_Word):
    """A place where a masked forward pass mixes activations, once per layer (`embed`: once)."""

    ATTN_READ = "attn_read", "the input of the attention output projection"
    ATTN_WRITE = "attn_write", "what attention adds to the residual stream"
    MLP_READ = "mlp_read", "the input of the MLP down projection"
    MLP_WRITE = "mlp_write", "what the MLP adds to the residual stream"
    EMBED = "embed", "the input of the first layer"


class Ablation(_Word):
    """What a unit that is not in the circuit is replaced by."""

    CORRUPTED = "corrupted", "the same unit's activation on the corrupted prompt of the pair"
    MEAN = "mean", "the unit's mean over the corrupted training prompts, padding excluded"
    MEAN_POSITIONAL = (
        "mean_positional",
        "the unit's mean at the same token position over the corrupted training prompts",
    )
    ZERO = "zero", "zero"
    RESAMPLE = (
        "resample",
        "the unit's activation on the clean prompt of another pair of equal length, one pair for all sites",
    )

    OPTIMAL = "optimal", "a constant per unit, learned together with the masks (it starts at the mean)"

    @property
    def is_run(self) -> bool:
        """Whether the baseline is a forward pass on another prompt (else: constants of the model)."""
        return self in (Ablation.CORRUPTED, Ablation.RESAMPLE)


class Method(_Word):
    """How a circuit is searched."""

    HARD_CONCRETE = (
        "hard_concrete",
        "stochastic gates for nodes of every granularity, closed by a pressure (the paper's)",
    )
    NESTED = (
        "nested",
        "one score per node ranks every unit at every size; then masks that harden, at the size that the budget allows",
    )
    ATTRIBUTION = (
        "attribution",
        "scores: gradients of the logit difference with respect to the masks, at the full model",
    )
    INTEGRATED_GRADIENTS = (
        "integrated_gradients",
        "scores: gradients of the KL with respect to the masks, averaged between the empty and the full model",
    )
    ACTIVATION_GRADIENT = "activation_gradient", "scores: activations times gradients of the logit difference"
    ACTIVATION_DIFFERENCE = (
        "activation_difference",
        "scores: how far activations on clean prompts lie from their baselines",
    )
    RANDOM = "random", "random scores"

    @property
    def learns(self) -> bool:
        """Whether masks are learned (else: scored once)."""
        return self in (Method.HARD_CONCRETE, Method.NESTED)


class Sampling(_Word):
    """How gates draw masks, and what gradient they pass on."""

    HARD = "hard", "hard masks; the gradient is that of the probability to open, so closed gates can come back"
    STRAIGHT_THROUGH = "straight_through", "hard masks; the gradient is that of the stretched soft sample (the paper's)"
    SOFT = "soft", "soft masks"


class Site(NamedTuple):
    """One site of one layer (layer 0 for `embed`)."""

    kind: SiteKind
    layer: int

    @property
    def key(self) -> str:
        """Its name among parameters, which must not hold a dot, and in files."""
        return f"{self.kind}-{self.layer}"


UNIT_GRANULARITIES = (Granularity.HEAD_DIM, Granularity.MLP_NEURON)
"""The units of the read sites: `size` is the kept share of them."""

OUT_DIMS = (Granularity.ATTN_OUT_DIM, Granularity.MLP_OUT_DIM)
"""What blocks write to the residual stream, dim by dim: no units, so that no size asks for fewer of them."""

UNCOUNTED = (*OUT_DIMS, Granularity.EMBED)
"""What is no unit and contains none, so that no size counts it."""

DEFAULT_GRANULARITIES = (
    Granularity.ATTN_BLOCK,
    Granularity.MLP_BLOCK,
    Granularity.HEAD,
    Granularity.HEAD_DIM,
    Granularity.MLP_NEURON,
)
