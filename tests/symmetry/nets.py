"""Small networks, each with its scaling symmetries as derived by hand.

    NETS["attention"]()  ->  Net(model, non-trivial generators, input, target, loss)

The docstring of each contains the derivation. Two rules give most of them: a positively homogeneous
map (ReLU, pooling, dropout, a sum) commutes with a factor, so that weights into a channel may be
multiplied by s and weights out of it divided by s; and a bias scales with the row that it is added
to. The generators are the shortest ones, without the trivial one of each matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from math import gcd, lcm
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from manifoldnet.experiments.papers.symmetry.networks import Arch1, Arch2, MaxPoolPairs
from manifoldnet.symmetry import Generator, Slice

SAMPLES, INPUTS, CLASSES = 24, 5, 3

Batch = tuple[Any, Any]


def classify(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the last dimension, averaged over all others."""
    return cross_entropy(scores.flatten(0, -2), labels.flatten())


@dataclass
class Net:
    """A model, the generators derived for it, input, target and loss.

    By default the targets are random labels, one for each output but the last dimension.
    """

    model: nn.Module
    generators: list[Generator]
    given: Tensor = field(default_factory=lambda: torch.randn(SAMPLES, INPUTS))
    target: Tensor | None = None
    loss_fn: Callable[[Any, Any], Tensor] = classify

    def __post_init__(self) -> None:
        if self.target is None:
            with torch.no_grad():
                *shape, classes = copy.deepcopy(self.model)(self.given).shape
            self.target = torch.randint(classes, shape)

    @property
    def batches(self) -> list[Batch]:
        return [(self.given, self.target)]

    @property
    def matrices(self) -> int:
        """Number of parameters with rows and columns: each has one trivial generator."""
        return sum(p.ndim > 1 and p.requires_grad for p in self.model.parameters())


# --- generators ----------------------------------------------------------------------------------


def row(name: str, *indices: int) -> list[Slice]:
    """Rows of a matrix, filters of a convolution, entries of a vector."""
    return [Slice(name, 0, i) for i in indices]


def column(name: str, *indices: int) -> list[Slice]:
    """Columns of a matrix, input channels of a convolution."""
    return [Slice(name, 1, j) for j in indices]


def generator(up: Iterable[Slice], down: Iterable[Slice] = ()) -> Generator:
    """The first × s, the others ÷ s."""
    return Generator(dict.fromkeys(up, 1.0) | dict.fromkeys(down, -1.0))


def layer(name: str, *indices: int) -> list[Slice]:
    """Rows of a layer with the biases that are added to them (γ with β, likewise)."""
    return row(f"{name}.weight", *indices) + row(f"{name}.bias", *indices)


def canonical(generators: Iterable[Generator]) -> set[frozenset[tuple[Slice, int]]]:
    """Generators up to a multiple: coprime whole exponents, that of the first slice positive.

    Running averages, which follow the parameters, are left out.
    """
    found = set()
    for one in generators:
        fractions = {
            w: Fraction(e).limit_denominator(100)
            for w, e in one.exponents.items()
            if not w.parameter.endswith(("running_mean", "running_var"))
        }
        scale = lcm(*(f.denominator for f in fractions.values()))
        whole = {w: int(f * scale) for w, f in fractions.items()}
        divisor = gcd(*whole.values()) * (1 if whole[min(whole, key=repr)] > 0 else -1)
        found.add(frozenset((w, e // divisor) for w, e in whole.items()))
    return found


# --- the networks --------------------------------------------------------------------------------

NETS: dict[str, Callable[..., Net]] = {}


def enter(name: str, make: Callable[[], Net]) -> Callable[..., Net]:
    """Enter a network into the list, built from the same random numbers unless a seed is given."""

    def seeded(seed: int = 1) -> Net:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return make()

    NETS[name] = seeded
    return seeded


def net(make: Callable[[], Net]) -> Callable[..., Net]:
    return enter(make.__name__, make)


class Act(nn.Module):
    """A function of the features as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def perceptron(*activation: nn.Module, hidden: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(INPUTS, hidden), *activation, nn.Linear(hidden, CLASSES))


def hidden_units(first: str, second: str, units: int) -> list[Generator]:
    """Row and bias of a unit × s, the column that reads it ÷ s."""
    return [generator(layer(first, i), column(f"{second}.weight", i)) for i in range(units)]


@net
def relu() -> Net:
    """ReLU is positively homogeneous: one symmetry for each unit."""
    return Net(perceptron(nn.ReLU()), hidden_units("0", "2", 4))


# Both homogeneous.
enter(
    "leaky_relu_and_dropout",
    lambda: Net(perceptron(nn.LeakyReLU(), nn.Dropout(0.2)), hidden_units("0", "3", 4)),
)


@net
def three_layers() -> Net:
    """The bias of a middle layer scales with its own row, not with those of the layer before."""
    model = nn.Sequential(
        nn.Linear(INPUTS, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, CLASSES)
    )
    return Net(model, hidden_units("0", "2", 3) + hidden_units("2", "4", 4))


@net
def prelu() -> Net:
    """The slopes are factors of the negative parts, and do not scale."""
    return Net(perceptron(nn.PReLU(4)), hidden_units("0", "2", 4))


enter("gelu", lambda: Net(perceptron(nn.GELU()), []))  # not homogeneous


@net
def tanh_and_softplus() -> Net:
    """Not homogeneous: only trivial symmetries."""
    model = nn.Sequential(
        nn.Linear(INPUTS, 3), nn.Tanh(), nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, CLASSES)
    )
    return Net(model, [])


def _arch1(depth: int) -> Net:
    """Pairs of filters are pooled into one feature, which one column reads."""
    names = [f"hidden.{3 * k}.weight" for k in range(depth)] + ["head.weight"]
    pairs = [
        generator(row(a, 2 * i, 2 * i + 1), column(b, i))
        for a, b in pairwise(names)
        for i in range(4)
    ]
    return Net(Arch1(INPUTS, CLASSES, features=8, depth=depth), pairs)


def _arch2(depth: int) -> Net:
    """Normalized, each filter is free; γ and β of a pooled pair are tied to the next column."""
    layers = [f"hidden.{4 * k}.weight" for k in range(depth)]
    norms = [f"hidden.{4 * k + 1}" for k in range(depth)]
    rows = [generator(row(name, i)) for name in layers for i in range(8)]
    pairs = [
        generator(layer(norm, 2 * i, 2 * i + 1), column(reader, i))
        for norm, reader in zip(norms, [*layers[1:], "head.weight"], strict=True)
        for i in range(4)
    ]
    return Net(Arch2(INPUTS, CLASSES, features=8, depth=depth), rows + pairs)


enter("arch1", lambda: _arch1(2))
enter("arch1_depth_4", lambda: _arch1(4))
enter("arch2", lambda: _arch2(2))
enter("arch2_depth_4", lambda: _arch2(4))


@net
def batch_norm_in_evaluation() -> Net:
    """The running mean is constant: rows of W do not scale, γ and β do as in training."""
    model = Arch2(INPUTS, CLASSES, features=8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    tied = [g for g in _arch2(2).generators if len(g.exponents) > 1]
    return Net(model.eval(), tied)


@net
def batch_norm_without_scale() -> Net:
    """Each row is free, and each bias, which the mean takes away; nothing else scales."""
    model = perceptron(nn.BatchNorm1d(4, affine=False), nn.ReLU())
    free = [generator(row(name, i)) for name in ("0.weight", "0.bias") for i in range(4)]
    return Net(model, free)


@net
def pairs_rather_than_the_whole() -> Net:
    """Three layers before the normalization: rows of each against columns of the next, those of the
    last are free. So the first as a whole is free too; by its two columns that is as short as a
    pair and might stand for one, but nothing is like it.
    """
    model = nn.Sequential(
        nn.Linear(2, 4, bias=False),
        nn.ReLU(),
        nn.Linear(4, 5, bias=False),
        nn.ReLU(),
        nn.Linear(5, 4, bias=False),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Linear(4, CLASSES),
    )
    first = [generator(row("0.weight", i), column("2.weight", i)) for i in range(4)]
    second = [generator(row("2.weight", i), column("4.weight", i)) for i in range(5)]
    free = [generator(row("4.weight", i)) for i in range(4)]
    units = hidden_units("5", "7", 4)
    return Net(model, first + second + free + units, torch.randn(SAMPLES, 2))


@net
def residual_perceptron() -> Net:
    """A channel of the stream: all rows and biases that write to it, all columns that read it."""
    model = nn.Sequential(
        nn.Linear(INPUTS, 4),
        Residual(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4)),
        Residual(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)),
        nn.Linear(4, CLASSES),
    )
    stream = [
        generator(
            layer("0", c) + layer("1.body.2", c) + layer("2.body.2", c),
            [Slice(f"{name}.weight", 1, c) for name in ("1.body.0", "2.body.0", "3")],
        )
        for c in range(4)
    ]
    inner = hidden_units("1.body.0", "1.body.2", 5) + hidden_units("2.body.0", "2.body.2", 6)
    return Net(model, stream + inner)


class Block(nn.Module):
    """Two convolutions with batch normalization beside a skip connection."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.short(x)).relu()


class ResNet(nn.Module):
    """A stem, stages of two blocks each (the first block widens), average pooling, a head."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential()
        for inputs, outputs in zip((widths[0], *widths), widths, strict=False):
            stride = 1 if inputs == outputs else 2
            self.blocks.extend([Block(inputs, outputs, stride), Block(outputs, outputs)])
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.bn(self.stem(x)).relu()).mean((2, 3)))


def residual_generators(model: ResNet) -> list[Generator]:
    """Free filters before each normalization; γ and β tied along each stream and inside blocks.

    A stream begins at the stem, or at a block with a convolution in its skip connection: its
    channel c has been written by the last normalization of all blocks on it (and by that of its
    beginning), and is read by the first convolution of each, by that in the next skip connection
    or by the head.
    """
    free = [
        generator(row(f"{name}.weight", i))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        for i in range(module.out_channels)
    ]
    inner, streams = [], []
    writers, readers, width = ["bn"], [], model.bn.num_features
    for k, block in enumerate(model.blocks):
        name = f"blocks.{k}"
        width_inside = block.bn1.num_features
        inner += [
            generator(layer(f"{name}.bn1", i), column(f"{name}.conv2.weight", i))
            for i in range(width_inside)
        ]
        readers.append(f"{name}.conv1.weight")
        if isinstance(block.short, nn.Sequential):
            readers.append(f"{name}.short.0.weight")
            streams.append((writers, readers, width))
            writers, readers, width = [f"{name}.short.1"], [], width_inside
        writers.append(f"{name}.bn2")
    streams.append((writers, [*readers, "head.weight"], width))
    tied = [
        generator(
            [s for writer in writers for s in layer(writer, c)],
            [Slice(reader, 1, c) for reader in readers],
        )
        for writers, readers, width in streams
        for c in range(width)
    ]
    return free + inner + tied


def _residual(widths: tuple[int, ...], samples: int, size: int) -> Net:
    model = ResNet(*widths)
    return Net(model, residual_generators(model), torch.randn(samples, 2, size, size))


enter("residual_convolutions", lambda: _residual((3, 4), 16, 5))
# About 400 slices.
enter("residual_convolutions_of_some_size", lambda: _residual((8, 16), 32, 6))


@net
def layer_norm_stream() -> Net:
    """γ, β against the columns that read them. The stream as a whole may grow, since all that reads
    it is normalized: its writers' rows and biases together, of which one generator is left.
    """
    model = nn.Sequential(
        nn.Linear(INPUTS + 2, 4),
        Residual(nn.LayerNorm(4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)),
        nn.LayerNorm(4),
        nn.Linear(4, CLASSES),
    )
    scales = [
        generator(layer(norm, i), column(reader, i))
        for norm, reader in (("1.body.0", "1.body.1.weight"), ("2", "3.weight"))
        for i in range(4)
    ]
    stream = generator(layer("0", *range(4)) + layer("1.body.3", *range(4)))
    inner = hidden_units("1.body.1", "1.body.3", 6)
    return Net(model, [*scales, *inner, stream], torch.randn(SAMPLES, INPUTS + 2))


@net
def rms_norm() -> Net:
    """As layer normalization; there is no β, and the bias before it is no free shift."""
    model = nn.Sequential(nn.Linear(INPUTS, 4), nn.RMSNorm(4), nn.ReLU(), nn.Linear(4, CLASSES))
    scales = [generator(row("1.weight", i), column("3.weight", i)) for i in range(4)]
    return Net(model, [*scales, generator(layer("0", *range(4)))])


@net
def group_norm() -> Net:
    """Filters and biases of one group together; γ and β as ever."""
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), *_pooled(), nn.Linear(6, CLASSES)
    )
    groups = [generator(layer("0", *range(3 * g, 3 * g + 3))) for g in range(2)]
    scales = [generator(layer("1", i), column("5.weight", i)) for i in range(6)]
    return Net(model, groups + scales, torch.randn(16, 2, 5, 5))


def _pooled() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


@net
def depthwise() -> Net:
    """Filter i reads channel i alone: channel i scales in front of it, with its bias and γ, β
    against the filter were it not normalized again. Filters and biases before batch normalization
    are free, those of the depthwise one too.
    """
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        *_pooled(),
        nn.Linear(4, CLASSES),
    )
    # 1.weight and 1.bias scale channel i of what 3 reads, which its own normalization takes out.
    free = [
        generator(row(name, i)) for name in ("0.weight", "3.weight", "3.bias") for i in range(4)
    ]
    before = [generator(layer("1", i)) for i in range(4)]
    after = [generator(layer("4", i), column("8.weight", i)) for i in range(4)]
    return Net(model, free + before + after, torch.randn(24, 2, 6, 6))


@net
def transposed_convolution() -> Net:
    """Slices of dim 0 belong to the input channels, slices of dim 1 to the output channels."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 2),
        nn.ReLU(),
        *_pooled(),
        nn.Linear(3, CLASSES),
    )
    first = [generator(layer("0", i), row("2.weight", i)) for i in range(4)]
    second = [
        generator(column("2.weight", j) + row("2.bias", j), column("6.weight", j)) for j in range(3)
    ]
    return Net(model, first + second, torch.randn(16, 2, 5, 5))


@net
def flattened_convolution() -> Net:
    """Max- and average pooling pass factors on; a channel is read by a block of columns."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 2, 2),
        nn.ReLU(),
        nn.AvgPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(8, 12),
    )
    first = [generator(layer("0", i), column("3.weight", i)) for i in range(3)]
    second = [
        generator(layer("3", i), column("7.weight", *range(4 * i, 4 * i + 4))) for i in (0, 1)
    ]
    return Net(model, first + second, torch.randn(16, 1, 10, 10))


class Attention(nn.Module):
    """Multi-head attention with four linear maps; `rotary` queries and keys are turned by an angle
    that grows with the position.
    """

    def __init__(self, width: int, heads: int, bias: bool = True, rotary: bool = False) -> None:
        super().__init__()
        self.heads, self.rotary = heads, rotary
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias) for _ in range(4))

    def turned(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        steps = torch.arange(x.shape[-2], dtype=x.dtype)[:, None]
        angles = steps / torch.arange(1, 1 + a.shape[-1])
        c, s = angles.cos(), angles.sin()
        return torch.cat([c * a - s * b, s * a + c * b], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        if self.rotary:
            q, k = self.turned(q), self.turned(k)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


def attention_generators(prefix: str, width: int) -> list[Generator]:
    """Within a head, scores are Σᵢ qᵢ kᵢ: row i of q with its bias up, row i of k down. The bias
    of k adds q·b to all scores of a query, which the soft-max takes out: it is free. Values are
    linear: row i of v with its bias up, column i of o down.
    """
    return [
        one
        for i in range(width)
        for one in (
            generator(layer(f"{prefix}q", i), row(f"{prefix}k.weight", i)),
            generator(row(f"{prefix}k.bias", i)),
            generator(layer(f"{prefix}v", i), column(f"{prefix}o.weight", i)),
        )
    ]


@net
def attention() -> Net:
    """Attention and a classifier: channels of the output scale against its columns, too."""
    model = nn.Sequential(Attention(4, 2), nn.Linear(4, CLASSES))
    return Net(
        model, attention_generators("0.", 4) + hidden_units("0.o", "1", 4), torch.randn(12, 5, 4)
    )


@net
def pre_norm_transformer() -> Net:
    """An embedding, an attention block and a feed-forward one on a stream that is normalized
    wherever it is read. So γ and β against all columns that read them (three for attention), and
    the stream as a whole: the embedding, and rows with biases of o and of the second linear map.
    """
    model = nn.Sequential(
        nn.Embedding(7, 4),
        Residual(nn.LayerNorm(4), Attention(4, 2)),
        Residual(nn.LayerNorm(4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)),
        nn.LayerNorm(4),
        nn.Linear(4, CLASSES),
    )
    readers = {
        "1.body.0": [f"1.body.1.{name}.weight" for name in "qkv"],
        "2.body.0": ["2.body.1.weight"],
        "3": ["4.weight"],
    }
    scales = [
        generator(layer(norm, i), [Slice(reader, 1, i) for reader in names])
        for norm, names in readers.items()
        for i in range(4)
    ]
    stream = generator(
        column("0.weight", *range(4))
        + layer("1.body.1.o", *range(4))
        + layer("2.body.3", *range(4))
    )
    inner = attention_generators("1.body.1.", 4) + hidden_units("2.body.1", "2.body.3", 6)
    return Net(model, [*scales, *inner, stream], torch.randint(7, (16, 6)))


@net
def rotary_attention() -> Net:
    """As attention; but channels i and i + 2 of a head of four are turned into each other, so that
    they scale together. The stream, which RMS normalization reads, grows with the embedding and the
    rows of o.
    """
    model = nn.Sequential(
        nn.Embedding(7, 4),
        Residual(nn.RMSNorm(4), Attention(4, 1, bias=False, rotary=True)),
        nn.RMSNorm(4),
        nn.Linear(4, CLASSES),
    )
    q, k, v, o = (f"1.body.1.{name}.weight" for name in "qkvo")
    norm = "1.body.0.weight"
    generators = [
        *(generator(row(q, i, i + 2), row(k, i, i + 2)) for i in range(2)),
        *(generator(row(v, i), column(o, i)) for i in range(4)),
        *(generator(row(norm, i), [Slice(name, 1, i) for name in (q, k, v)]) for i in range(4)),
        *(generator(row("2.weight", i), column("3.weight", i)) for i in range(4)),
        generator(column("0.weight", *range(4)) + row(o, *range(4))),
    ]
    return Net(model, generators, torch.randint(7, (16, 6)))


class SelfAttention(nn.Module):
    """nn.MultiheadAttention of a sequence with itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def packed_attention_generators(prefix: str, width: int) -> list[Generator]:
    """As `attention_generators`; q, k and v are thirds of one matrix and one vector."""
    weight, bias = f"{prefix}in_proj_weight", f"{prefix}in_proj_bias"
    return [
        one
        for i in range(width)
        for one in (
            generator(row(weight, i) + row(bias, i), row(weight, width + i)),
            generator(row(bias, width + i)),
            generator(
                row(weight, 2 * width + i) + row(bias, 2 * width + i),
                column(f"{prefix}out_proj.weight", i),
            ),
        )
    ]


@net
def torch_attention() -> Net:
    model = nn.Sequential(SelfAttention(4, 2), nn.Linear(4, CLASSES))
    generators = packed_attention_generators("0.attention.", 4)
    generators += hidden_units("0.attention.out_proj", "1", 4)
    return Net(model, generators, torch.randn(12, 5, 4))


def _encoder_layer(dropout: float) -> Net:
    """Post-norm: LN₂(y + W₂ relu(W₁ y + b₁) + b₂) with y = LN₁(x + attention(x)). What is added
    to x does not scale. With γ₁, β₁, b₁ and b₂ all × s, the argument of LN₂ is × s.
    """
    model = nn.Sequential(
        nn.TransformerEncoderLayer(4, 2, 6, dropout=dropout, batch_first=True),
        nn.Linear(4, CLASSES),
    )
    whole = generator(
        layer("0.norm1", *range(4))
        + row("0.linear1.bias", *range(6))
        + row("0.linear2.bias", *range(4))
    )
    generators = packed_attention_generators("0.self_attn.", 4)
    generators += hidden_units("0.linear1", "0.linear2", 6) + hidden_units("0.norm2", "1", 4)
    return Net(model, [*generators, whole], torch.randn(12, 5, 4))


enter("encoder_layer", lambda: _encoder_layer(0.0))
# Dropout multiplies entries by 0 or by a constant, whatever their size.
enter("encoder_layer_with_dropout", lambda: _encoder_layer(0.1))


@net
def post_norm_attention() -> Net:
    """As BERT begins: y = LN₀(embedding), LN₁(y + attention(y)). LN₀ takes out the size of each
    token. With γ₀, β₀, and the biases of v and o × s, weights of q and k ÷ s (or one of them ÷ s²
    with the bias of q × s, for each channel), scores stay and the argument of LN₁ is × s.
    """
    model = nn.Sequential(
        nn.Embedding(7, 4),
        nn.LayerNorm(4),
        Residual(Attention(4, 2)),
        nn.LayerNorm(4),
        nn.Linear(4, CLASSES),
    )
    whole = generator(
        layer("1", *range(4))
        + row("2.body.0.v.bias", *range(4))
        + row("2.body.0.o.bias", *range(4)),
        column("2.body.0.q.weight", *range(4)) + column("2.body.0.k.weight", *range(4)),
    )
    generators = [generator(row("0.weight", i)) for i in range(7)]
    generators += attention_generators("2.body.0.", 4) + hidden_units("3", "4", 4)
    return Net(model, [*generators, whole], torch.randint(7, (16, 6)))


class TiedEmbedding(nn.Module):
    """scores = E LN(W relu(E[token])), with one matrix E at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.linear = nn.Linear(4, 4, bias=False)
        self.norm = nn.LayerNorm(4)
        self.scores = nn.Linear(4, 6, bias=False)
        self.scores.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scores(self.norm(self.linear(self.embedding(tokens).relu())))


@net
def tied_embedding() -> Net:
    """The scale of W is free. Column j of E against column j of W would be a symmetry at the input;
    at the output the same column wants γⱼ, βⱼ to shrink: together they are one, for each j.
    """
    columns = [
        generator(column("embedding.weight", j), column("linear.weight", j) + layer("norm", j))
        for j in range(4)
    ]
    whole = generator(row("linear.weight", *range(4)))
    return Net(TiedEmbedding(), [*columns, whole], torch.randint(6, (16, 5)))


class Factors(nn.Module):
    """relu(W x + b), times a vector, times a number, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(INPUTS, 4), nn.Linear(4, CLASSES)
        self.scale, self.gain = nn.Parameter(torch.rand(4)), nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gain * self.scale * self.hidden(x).relu())


@net
def shared_factors() -> Net:
    """One product of three for each channel, with a column to read it; gain is in all of them."""
    return Net(
        Factors(),
        [
            *(generator(layer("hidden", i), column("head.weight", i)) for i in range(4)),
            *(generator(row("scale", i), column("head.weight", i)) for i in range(4)),
            generator([Slice("gain", None)], row("head.weight", *range(CLASSES))),
        ],
    )


def _powers(function: Callable[[Tensor], Tensor], power: float) -> Net:
    """|s x|^p = s^p |x|^p: the column shrinks by the power p of the row's factor."""
    units = [
        Generator(dict.fromkeys(layer("0", i), 1.0) | {Slice("2.weight", 1, i): -power})
        for i in range(4)
    ]
    return Net(perceptron(Act(function)), units)


enter("squares", lambda: _powers(torch.square, 2.0))
enter("cubes", lambda: _powers(lambda x: x**3, 3.0))
enter("roots", lambda: _powers(lambda x: x.abs().sqrt(), 0.5))


class Gated(nn.Module):
    """o(gate(a(x)) · b(x))."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(INPUTS, 4), nn.Linear(INPUTS, 4)
        self.o, self.gate = nn.Linear(4, CLASSES), gate

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.gate(self.a(x)) * self.b(x))


@net
def sigmoid_gate() -> Net:
    """The gate does not scale, what it lets through does."""
    return Net(Gated(torch.sigmoid), hidden_units("b", "o", 4))


class GatedBlock(nn.Module):
    """down(silu(gate(x)) · up(x)), as in language models."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


@net
def gated_stream() -> Net:
    """Up and down, unit by unit; the stream that two normalizations read, as a whole. Down may be
    replaced by up in this, which is as short.
    """
    model = nn.Sequential(
        nn.Embedding(7, 4),
        Residual(nn.RMSNorm(4), GatedBlock(4, 6)),
        nn.RMSNorm(4),
        nn.Linear(4, CLASSES, bias=False),
    )
    gate, up, down = (f"1.body.1.{name}.weight" for name in ("gate", "up", "down"))
    generators = [
        *(generator(row(up, i), column(down, i)) for i in range(6)),
        *(generator(row("1.body.0.weight", i), column(gate, i) + column(up, i)) for i in range(4)),
        *(generator(row("2.weight", i), column("3.weight", i)) for i in range(4)),
        generator(column("0.weight", *range(4)) + row(down, *range(4))),
    ]
    return Net(model, generators, torch.randint(7, (16, 6)))


@net
def bilinear_gate() -> Net:
    """Both do."""
    return Net(Gated(lambda x: x), hidden_units("a", "o", 4) + hidden_units("b", "o", 4))


class Recurrent(nn.Module):
    """h ← relu(W x + b + U h), over a sequence; a classifier of the last h."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Linear(3, 4), nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 4)
        for step in x.unbind(1):
            h = (self.w(step) + self.u(h)).relu()
        return self.head(h)


@net
def recurrent() -> Net:
    """Unit i writes by row i of W and U, is read by column i of U and of the head."""
    units = [
        generator(
            layer("w", i) + row("u.weight", i), column("u.weight", i) + column("head.weight", i)
        )
        for i in range(4)
    ]
    return Net(Recurrent(), units, torch.randn(SAMPLES, 4, 3))


class TorchRecurrent(nn.Module):
    """torch's own recurrent layer, and a classifier of its last output."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.layer = kind(3, 4, batch_first=True, **options)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


@net
def torch_recurrent() -> Net:
    """As `recurrent`, with a second bias."""
    names = [f"layer.{kind}_l0" for kind in ("weight_ih", "bias_ih", "bias_hh", "weight_hh")]
    units = [
        generator(
            [Slice(name, 0, i) for name in names],
            [Slice(name, 1, i) for name in (names[-1], "head.weight")],
        )
        for i in range(4)
    ]
    model = TorchRecurrent(nn.RNN, nonlinearity="relu")
    return Net(model, units, torch.randn(SAMPLES, 3, 3))


@net
def gated_recurrent() -> Net:
    """Sigmoid and tanh at every turn: nothing."""
    return Net(TorchRecurrent(nn.GRU), [], torch.randn(SAMPLES, 2, 3))


@net
def scale_invariant_stage() -> Net:
    """z = A x/‖A x‖: A as a whole (its rows are fewer than its columns)."""
    model = nn.Sequential(nn.Linear(INPUTS, 4, bias=False), Act(lambda y: normalize(y, dim=1)))
    target = normalize(torch.randn(SAMPLES, 4))
    return Net(model, [generator(row("0.weight", *range(4)))], target=target, loss_fn=mse_loss)


@net
def weight_norm() -> Net:
    """W = g v/‖v‖ by rows: each row of v is free, and g is what W's row was."""
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(INPUTS, 4))
    weight = "0.parametrizations.weight.original"
    free = [generator(row(f"{weight}1", i)) for i in range(4)]
    units = [
        generator(row(f"{weight}0", i) + row("0.bias", i), column("2.weight", i)) for i in range(4)
    ]
    return Net(nn.Sequential(linear, nn.ReLU(), nn.Linear(4, CLASSES)), free + units)


@net
def frozen() -> Net:
    """A frozen weight is constant: no symmetry scales it, and it has no trivial one."""
    model = perceptron(nn.ReLU(), MaxPoolPairs(), hidden=8)
    model[3] = nn.Linear(4, CLASSES)
    model[0].bias.requires_grad_(False)
    # Without its bias no row of the first layer scales.
    return Net(model, [])


@net
def frozen_part() -> Net:
    """With a layer frozen, what is left of the pairs that do not need it."""
    model = three_layers().model
    model[0].requires_grad_(False)
    return Net(model, hidden_units("2", "4", 4))
