"""The cost of a search from first principles: products of matrices, bytes that are held, bytes that are sent, seconds.

Formulas only; `scale.py` holds them against what the code does. Letters: D the width of the residual stream, H the width of
all query heads, K that of all key heads, M the MLP neurons of a layer, L layers, V tokens of the vocabulary.
"""

from dataclasses import dataclass

from circuitsieve.circuits.nodes import NodeSpace
from circuitsieve.models.subject import Subject
from circuitsieve.vocabulary import DEFAULT_GRANULARITIES
from counting import Counted


@dataclass(frozen=True)
class Work:
    """Operations of matrix products, by what they are for."""

    forward: int
    backward: int
    """Through activations alone, down to the first site that is mixed: what attention of the first layer reads."""
    again: int
    """Of all layers run again in the backward pass."""

    def of(self, side: str) -> int:
        """Of a reference (corrupted run and full model), or of a step with its corrupted activations kept, or ..."""
        match side:
            case "reference":
                return 2 * self.forward
            case "kept" | "ranking":
                return self.forward + self.backward
            case "computed anew":
                return 2 * self.forward + self.backward
            case _:
                return 2 * self.forward + self.backward + self.again


def work(subject: Subject, pairs: int, tokens: int) -> Work:
    """The matrix products of a batch: 2 operations per weight and token forward, and as many backward.

    Weights are frozen, so that no products for their gradients are made. Attention: 4 T² H of a prompt of T tokens forward,
    twice that backward. Logits: at one position of each pair. Layers that are run again end where nothing more is needed: before
    the down projection, unless a norm follows it.
    """
    space = subject.space
    heads, groups = space.heads * space.head_dim, space.kv_heads * space.head_dim
    reads, mlp_in = space.width * (heads + 2 * groups), space.mlp_inputs * space.width * space.neurons
    attn_out, mlp_out = heads * space.width, space.neurons * space.width
    each, attention = 2 * pairs * tokens, 4 * pairs * tokens**2 * heads
    head = 2 * pairs * subject.model.config.vocab_size * space.width
    layer = each * (reads + attn_out + mlp_in + mlp_out) + attention
    before = each * (reads + (mlp_in if subject.architecture.parallel else 0)) + attention
    forward = space.layers * layer + head
    backward = forward - before + (space.layers - 1) * attention
    again = space.layers * (layer - (0 if space.post_norm else each * mlp_out))
    return Work(forward, backward, again)


def saved_bytes(space: NodeSpace, tokens: int, itemsize: int) -> int:
    """What a Llama keeps for the backward pass of so many tokens, in all its layers, with fused attention.

    Norms keep what they read in float32 (8 D for two), attention its queries, keys, values and output, the MLP its gate before
    and after the activation function, and up; each mixed site the difference of activation and baseline, in bfloat16. In the
    first layer nothing before the attention output is differentiated.
    """
    heads, groups = space.heads * space.head_dim, space.kv_heads * space.head_dim
    mlp = 4 * space.width + (3 * itemsize + 2) * space.neurons
    attention = 4 * space.width + 2 * itemsize * (heads + groups)
    return tokens * (space.layers * (mlp + 2 * heads) + (space.layers - 1) * attention)


def nodes(space: NodeSpace) -> int:
    """Gates of a search with them: a float32 each, and as much gradient to send where several GPUs share a batch."""
    shapes = [space.shape(granularity) for granularity in DEFAULT_GRANULARITIES]
    return sum(layers * n for layers, n in shapes)


@dataclass(frozen=True)
class Device:
    """A GPU as its maker describes it."""

    name: str
    memory: float
    """Bytes."""
    flops: float
    """Dense bfloat16, per second."""
    bandwidth: float
    """Of its memory, bytes per second."""


H100 = Device("H100", 80e9, 989e12, 3.35e12)
H200 = Device("H200", 141e9, 989e12, 4.8e12)


@dataclass(frozen=True)
class Assumption:
    """How well a device is used: assumed, not measured."""

    utilisation: float
    """Of the operations that it could do."""
    reached: float
    """Of the bandwidth of its memory."""
    launch: float
    """Seconds that the host takes for one operation, hooks of Python included."""
    host_link: float
    """Bytes per second from the memory of the host."""
    overlapping: bool
    """Whether products, memory and host work at the same time, or one after the other; fetched weights are always waited for."""


GOOD = Assumption(0.5, 0.9, 8e-6, 40e9, overlapping=True)
POOR = Assumption(0.25, 0.6, 20e-6, 10e9, overlapping=False)
LINK, LATENCY = 50e9, 50e-6
"""Bytes per second between two GPUs, and seconds for anything to be sent at all: assumed."""


def seconds(counted: Counted, device: Device, assumed: Assumption) -> float:
    """How long a call takes on a device."""
    parts = (
        counted.flops / (assumed.utilisation * device.flops),
        counted.moved / (assumed.reached * device.bandwidth),
        assumed.launch * counted.launches,
    )
    return max(parts) if assumed.overlapping else sum(parts)


def sharing(nodes: int, devices: int) -> float:
    """Seconds a step for what devices that share a batch add up, in rings: signals, and all gradients of gates in one piece."""
    sent = 2 * (devices - 1) / devices * 4 * nodes
    return sent / LINK + 2 * LATENCY


def handing_on(width: int, tokens: int, devices: int) -> float:
    """Seconds for handing the residual stream, in bfloat16, from each device to the next, once through all layers."""
    return (devices - 1) * (tokens * 2 * width / LINK + LATENCY)
