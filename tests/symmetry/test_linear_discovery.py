"""Linear symmetries of small networks, with dimensions derived by hand.

Every head of n logits under softmax cross-entropy has n shifts W ↦ W + t·1(vᵀW), v ∈ ℝⁿ, since
softmax takes out what all logits share, and translations 1⊗u: one for each column and the bias.
"""

import re

import pytest
import torch
from nets import NETS, Attention
from torch import nn
from torch.nn.functional import cross_entropy

import manifoldnet as mn
from manifoldnet.symmetry import FalseSymmetryError, LinearElement, LinearGroup, NoGapError


class Reader(nn.Module):
    """Residual attention, mean over positions, head."""

    def __init__(self, width: int, heads: int, size: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, heads * size, bias) for _ in range(3))
        self.o, self.head = nn.Linear(heads * size, width, bias), nn.Linear(width, 4, bias)

    def forward(self, x):
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        y = self.o((weights @ v).transpose(1, 2).flatten(2))
        return self.head((x + y).mean(1))


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Adapted(nn.Module):
    """A frozen layer with LoRA factors of rank 2, before tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(6, 5).requires_grad_(False)
        self.a, self.b = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.base(x) + self.b(self.a(x))))


class Mixture(nn.Module):
    """Two ReLU experts, softly routed."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 2, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 4)) for _ in range(2)
        )

    def forward(self, x):
        weights = self.router(x).softmax(-1)
        return sum(weights[:, i : i + 1] * e(x) for i, e in enumerate(self.experts))


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Attention(4, 1, bias=False, rotary=True), nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return self.head(torch.tanh(x + self.body(x)).mean(1))


class Grouped(nn.Module):
    """Two query heads of size 3 that share a key and value head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, n, bias=False) for n in (6, 3, 3))
        self.o, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 4, bias=False)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (2, 3)).transpose(1, 2)
        k, v = (f(x)[:, None] for f in (self.k, self.v))
        y = (q @ k.mT).softmax(-1) @ v
        return self.head((x + self.o(y.transpose(1, 2).flatten(2))).mean(1))


class Tied(nn.Module):
    """scores = E W E[token], with one matrix E at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(5, 3), nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.inner(self.embedding(x)))


class Stream(nn.Module):
    """Two blocks x + V relu(U norm(x)) on a stream that is normalized wherever it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.norm = nn.RMSNorm(4, elementwise_affine=False)
        self.up, self.down = (
            nn.ModuleList(nn.Linear(*shape, bias=False) for _ in range(2))
            for shape in ((4, 3), (3, 4))
        )

    def forward(self, x):
        x = self.first(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(self.norm(x)).relu())
        return self.head(self.norm(x))


# Architectures that are in no other test.


class GatedLinearAttention(nn.Module):
    """Causal attention without softmax, gated before the output map."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.gate = (nn.Linear(5, 3, bias=False) for _ in range(4))
        self.o, self.head = nn.Linear(3, 5, bias=False), nn.Linear(5, 4, bias=False)

    def forward(self, x):
        read = (self.q(x) @ self.k(x).mT).tril() @ self.v(x)
        return self.head((x + self.o(self.gate(x).sigmoid() * read)).mean(1))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
        self.head = nn.Linear(4, 4, bias=False)

    def forward(self, x):
        x = self.conv(x).relu()
        weight = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
        return self.head((x * weight[:, :, None, None]).square().mean((2, 3)))


class BilinearHead(nn.Module):
    """scores = aᵀ W b of two linear maps of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 3, bias=False), nn.Linear(6, 2, bias=False)
        self.head = nn.Bilinear(3, 2, 4, bias=False)

    def forward(self, x):
        return self.head(self.a(x), self.b(x))


class Siamese(nn.Module):
    """Squared distance of two inputs behind one encoder, compared with fixed thresholds."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)
        self.encoder = nn.Sequential(*layers)

    def forward(self, x):
        first, second = self.encoder(x).unbind(1)
        distance = (first - second).square().sum(-1, keepdim=True)
        return distance * torch.tensor([0.0, 0.3, -0.2, 0.1], dtype=x.dtype)


class DepthRecurrent(nn.Module):
    """One residual block, three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.up, self.down = nn.Linear(4, 5, bias=False), nn.Linear(5, 4, bias=False)

    def forward(self, x):
        x = self.first(x)
        for _ in range(3):
            x = x + self.down(self.up(x).relu())
        return self.head(x)


def layers(*parts, bias=False):
    made = [p if isinstance(p, nn.Module) else nn.Linear(*p, bias) for p in parts]
    return lambda: nn.Sequential(*made)


def found(make, shape=(40, 6), seed=1, **options) -> LinearGroup:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().double()
        for p in model.parameters():
            nn.init.normal_(p, std=0.5)
        x, y = torch.randn(shape, dtype=torch.float64), torch.randint(4, shape[:1])
        if any(isinstance(m, nn.Embedding) for m in model.modules()):
            x = torch.randint(5, shape)
    return mn.symmetry.discover(model, cross_entropy, [(x, y)], kind="linear", **options)


def kinds(group):
    """Dimension by kind, translations apart."""
    total: dict[str, int] = {}
    for block in group.blocks:
        total[block.kind] = total.get(block.kind, 0) + block.dimension
    return total


CASES = {
    # GL(3) on the query and key, and on the value and output, of each head: 4·9. Head: 4, and 12.
    "attention": (
        lambda: Reader(12, 2, 3), (40, 5, 12), {"GL(3)": 36, "shift": 4, "translation": 12},
    ),
    # Anything between two linear layers: 5².
    "linear": (layers((6, 5), (5, 4)), (40, 6), {"GL(5)": 25, "shift": 4, "translation": 5}),
    # Biases go along with rows; the head's bias is one more translation.
    "linear with biases": (
        layers((6, 5), (5, 4), bias=True), (40, 6), {"GL(5)": 25, "shift": 4, "translation": 6},
    ),
    # Two inner spaces of dimension 3 and 5.
    "three linear": (
        layers((6, 3), (3, 5), (5, 4)), (40, 6),
        {"GL(3)": 9, "GL(5)": 25, "shift": 4, "translation": 5},
    ),
    # Units scale.
    "relu": (layers((6, 5), nn.ReLU(), (5, 4)), (40, 6), {"scaling": 5, "shift": 4,
                                                         "translation": 5}),
    # Rotations commute with division by the norm, which takes out the scale of the first layer.
    "RMSNorm": (
        layers((6, 5), nn.RMSNorm(5, elementwise_affine=False), (5, 4)), (40, 6),
        {"O(5)": 10, "scaling": 1, "shift": 4, "translation": 5},
    ),
    # Tanh is not homogeneous: the head's shifts alone, and its bias.
    "tanh": (
        layers((6, 5), nn.Tanh(), (5, 4), bias=True), (40, 6), {"shift": 4, "translation": 6},
    ),
    # The scale of the first layer; its mean (5 shifts, and translations of 6 columns and the
    # bias); scale and shift of each feature against a column (5); the head: 4, and 5 + 1.
    "LayerNorm": (
        layers((6, 5), nn.LayerNorm(5), (5, 4), bias=True), (40, 6),
        {"scaling": 6, "shift": 9, "translation": 13},
    ),
    # Rows into the normalization (5), features after it against columns (5); the first bias is
    # free (5 translations); the head: 4, and 5 + 1.
    "batch normalization": (
        layers((6, 5), nn.BatchNorm1d(5), nn.ReLU(), (5, 4), bias=True), (64, 6),
        {"scaling": 10, "shift": 4, "translation": 11},
    ),
    # The linear branch is scaled against the columns that read it; the gate is not.
    "SwiGLU": (SwiGLU, (40, 6), {"scaling": 5, "shift": 4, "translation": 6}),
    # GL(2) between the factors; the base is frozen.
    "LoRA": (Adapted, (40, 6), {"GL(2)": 4, "shift": 4, "translation": 6}),
    # Units of the experts scale (2·3). The router's softmax has 2 shifts, and 6 translations.
    # Weights of the experts sum to one, so that no expert alone is shifted by constants: its
    # weights 1⊗u add w_i(x)·u·h(x) to all logits, which softmax takes out: 4 shifts, and 3 + 1
    # translations for each expert.
    "mixture": (Mixture, (60, 6), {"scaling": 6, "shift": 10, "translation": 14}),
    # Pairs (i, i + 2) of queries and keys are complex numbers: a factor and a rotation for each of
    # two. GL(4) on value and output.
    "rotary": (
        Rotary, (40, 5, 4),
        {"scaling": 2, "O(2)": 2, "GL(4)": 16, "shift": 4, "translation": 4},
    ),
    # Both heads of queries and columns go along with the one key and value head: GL(3) twice.
    "grouped queries": (Grouped, (40, 5, 6), {"GL(3)": 18, "shift": 4, "translation": 6}),
    # As attention. The key's bias adds q·b to all scores of a query, which softmax takes out: 6
    # translations. (The value's bias against that of the output depends on the output's weight.)
    "attention with biases": (
        lambda: Reader(6, 2, 3, bias=True), (40, 5, 6),
        {"GL(3)": 36, "shift": 4, "translation": 6 + 6 + 1},
    ),
    # E S, S⁻¹ W S⁻ᵀ. A shift of all scores would move the embedding, too.
    "tied": (Tied, (60,), {"GL(3)": 9}),
    # Rotations of the whole stream: rows that write it, columns that read it. Its scale, by all
    # that write it. Hidden units of two blocks.
    "RMSNorm stream": (
        Stream, (40, 6), {"O(4)": 6, "scaling": 1 + 3 + 3, "shift": 4, "translation": 4},
    ),
    # Channels between convolutions, and between the last one and the head behind the pooling.
    "linear convolutions": (
        layers(nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(3, 2, 2, bias=False),
               nn.AdaptiveAvgPool2d(1), nn.Flatten(), (2, 4)),
        (40, 2, 6, 6), {"GL(3)": 9, "GL(2)": 4, "shift": 4, "translation": 2},
    ),
    # Three channels in front of the mixing of channels, two behind it.
    "separable convolution": (
        layers(nn.Conv2d(3, 3, 3, groups=3, bias=False), nn.Conv2d(3, 2, 1, bias=False),
               nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), (2, 4)),
        (40, 3, 5, 5), {"scaling": 5, "shift": 4, "translation": 2},
    ),
    # GL(3) on query/key. The gate acts on each entry of the values: 3 scalings against the columns
    # of the output. Without softmax, scores scale as well: the query against the output.
    "gated linear attention": (
        GatedLinearAttention, (40, 4, 5),
        {"GL(3)": 9, "scaling": 3 + 1, "shift": 4, "translation": 5},
    ),
    # Hidden units of the excitation: 2. A channel is read by the squeeze (÷ s) and, squared, by
    # the head (÷ s²): 4.
    "squeeze and excitation": (
        SqueezeExcite, (40, 2, 6, 6), {"scaling": 2 + 4, "shift": 4, "translation": 4},
    ),
    # Rows of a against the second index of W: GL(3). Third indices are positions in a kernel, and
    # are not mixed: b is scaled as a whole. W + 1 ⊗ U is a translation: 3·2.
    "bilinear head": (
        BilinearHead, (60, 6), {"GL(3)": 9, "scaling": 1, "shift": 4, "translation": 6},
    ),
    # Rotations of the code, and hidden units.
    "siamese": (Siamese, (60, 2, 6), {"O(3)": 3, "scaling": 4}),
    # One block at all depths: its input and output are one stream.
    "depth-recurrent": (
        DepthRecurrent, (40, 6), {"GL(4)": 16, "scaling": 5, "shift": 4, "translation": 4},
    ),
}  # fmt: skip

# Networks of `nets`, with three classes: 3 shifts, and a translation for each column of the head
# and its bias.
NET_CASES = {
    # Hidden units of three layers, rows in front of the normalization, γ and β against the head.
    "pairs_rather_than_the_whole": {"scaling": 4 + 5 + 4 + 4, "shift": 3, "translation": 5},
    # Filters in front of both normalizations, γ and β behind both; any bias in front of the second.
    "depthwise": {"scaling": 16, "shift": 3, "translation": 5 + 4},
    # A linear stream of width 4: GL(4). Hidden units: 5 + 6.
    "residual_perceptron": {"GL(4)": 16, "scaling": 11, "shift": 3, "translation": 5},
    # The parts of each head of two. γ and β against columns (12), hidden units (6), the stream (1).
    # Its mean is taken out wherever it is read: 4 shifts for each of 3 writers; translations of 7
    # embeddings, of 4 columns and a bias, of 6 columns and a bias. The key's bias: 4.
    "pre_norm_transformer": {
        "GL(2)": 16, "scaling": 19, "shift": 3 + 12, "translation": 5 + 7 + 5 + 7 + 4,
    },
    # Post-norm: what is added to the input, and to the output of the first normalization, has a
    # free mean: 2·4 shifts; columns and biases, 5 + 7; the key's bias, 4. Hidden units 6, γ and β
    # of the last normalization 4, and all of the second branch together.
    "encoder_layer": {"GL(2)": 16, "scaling": 11, "shift": 3 + 8, "translation": 5 + 5 + 7 + 4},
    # GL(2) on query/key of two heads, and on value/output; GL(4) between the output and the head.
    "torch_attention": {"GL(2)": 16, "GL(4)": 16, "shift": 3, "translation": 5 + 4},
    # Two complex numbers, each a factor and a rotation. GL(4) on value/output. γ of two
    # normalizations, and the stream.
    "rotary_attention": {
        "O(2)": 2, "GL(4)": 16, "scaling": 2 + 8 + 1, "shift": 3, "translation": 5,
    },
    # Columns, and W as a whole; what W writes is centered: 4 shifts, and 4 translations.
    "tied_embedding": {"scaling": 5, "shift": 4, "translation": 4},
    # b and b′ are added: 4 translations (u, −u).
    "torch_recurrent": {"scaling": 4, "shift": 3, "translation": 5 + 4},
    # The same for two of the three gates; the third multiplies one of the biases.
    "gated_recurrent": {"shift": 3, "translation": 5 + 8},
    # The direction of each row is free of its length.
    "weight_norm": {"scaling": 8, "shift": 3, "translation": 5},
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("name", NET_CASES)
def test_dimensions_of_networks_with_known_scalings(name):
    net = NETS[name]()
    group = mn.symmetry.discover(net.model, net.loss_fn, net.batches, kind="linear")
    expected = NET_CASES[name]
    assert kinds(group) == expected, str(group)
    assert group.dimension == sum(expected.values()) - expected["translation"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_dimensions_are_those_derived_by_hand(name):
    make, shape, expected = CASES[name]
    group = found(make, shape)
    assert kinds(group) == expected, str(group)
    assert group.translation_dimension == expected.get("translation", 0)
    assert group.dimension == sum(expected.values()) - group.translation_dimension


@pytest.mark.thorough
def test_wider_attention():
    """GL(3) on query/key and value/output of two heads: 4·9; head: 4, and 10 translations."""
    group = found(lambda: Reader(10, 2, 3), (40, 5, 10))
    assert kinds(group) == {"GL(3)": 36, "shift": 4, "translation": 10}
    assert "head 1: GL(3) on query/key" in str(group)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (40, 3)),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), (40, 3)),
        (
            lambda: nn.Sequential(
                nn.Conv2d(1, 2, 2), nn.Softplus(), nn.Flatten(), nn.Linear(8, 2), nn.Sigmoid()
            ),
            (40, 1, 3, 3),
        ),
        (lambda: nn.Bilinear(2, 2, 2), (40, 2, 2)),
    ],
    ids=["tanh", "GELU", "convolution", "bilinear"],
)
def test_network_without_symmetry_has_dimension_0(make, shape):
    torch.manual_seed(0)
    model = make().double()
    x, y = torch.randn(shape).double(), torch.randn(40, 2).double()
    if isinstance(model, nn.Bilinear):
        x = (x[:, 0], x[:, 1])
    group = mn.symmetry.discover(model, nn.MSELoss(), [(x, y)], kind="linear")
    assert (group.dimension, group.translation_dimension) == (0, 0)


def test_half_of_gl_is_symmetric():
    """Symmetric pairs (A, −A): m(m + 1)/2; skew ones: m(m − 1)/2."""
    block = found(layers((6, 5), (5, 4))).blocks[0]
    assert sum(g.is_symmetric for g in block.generators) == 15
    assert sum(g.is_skew for g in block.generators) == 10


def test_scalings_are_contained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).double()
    batches = [(torch.randn(40, 6).double(), torch.randint(4, (40,)))]
    linear = mn.symmetry.discover(model, cross_entropy, batches, kind="linear")
    scalings = mn.symmetry.discover(model, cross_entropy, batches)
    assert all(g in linear for g in scalings.generators)


def test_few_samples_do_not_determine_the_answer():
    with pytest.raises(NoGapError, match="do not determine"):
        found(layers((12, 3), nn.Tanh(), (3, 4)), (8, 12))


@pytest.mark.parametrize("size", [1e-4, 1e-5, 1e-6, 1e-7, 1e-9, 1e-12])
@pytest.mark.parametrize("activation", [nn.Tanh(), nn.SiLU()])
def test_small_inputs_give_no_false_symmetry(activation, size):
    """Units are all but linear there, and GL(5) is a symmetry as far as loss and gradients tell."""
    torch.manual_seed(0)
    layers = (nn.Linear(6, 5, bias=False), activation, nn.Linear(5, 4, bias=False))
    model = nn.Sequential(*layers).double()
    x, y = size * torch.randn(40, 6).double(), torch.randint(4, (40,))
    said = "give larger inputs"
    try:
        group = mn.symmetry.discover(model, cross_entropy, [(x, y)], kind="linear")
        assert kinds(group) == {"shift": 4, "translation": 5}
    except (FalseSymmetryError, NoGapError) as error:
        said = str(error)
    assert re.search("give (larger inputs|inputs of ordinary size)", said, re.IGNORECASE)


@pytest.mark.parametrize("size", [1e-4, 1e-6, 1e-10])
def test_small_inputs_of_homogeneous_units(size):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(*s, bias=False) for s in ((6, 5), (5, 4)))).double()
    x, y = size * torch.randn(40, 6).double(), torch.randint(4, (40,))
    if size < 1e-8:
        with pytest.raises(NoGapError, match="undecided.*cannot be seen"):
            mn.symmetry.discover(model, cross_entropy, [(x, y)], kind="linear")
    else:
        group = mn.symmetry.discover(model, cross_entropy, [(x, y)], kind="linear")
        assert kinds(group) == {"GL(5)": 25, "shift": 4, "translation": 5}


class Stepped(nn.Module):
    """Linear layers, and a step function of a weight, whose gradient is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(*(nn.Linear(*s, bias=False) for s in ((6, 5), (5, 4))))

    def forward(self, x):
        return self.inner(x) + (3 * self.inner[0].weight).round().sum()


def test_invariance_to_first_order_only_is_an_error():
    x, y = torch.randn(40, 6).double(), torch.randn(40, 4).double()
    with pytest.raises(FalseSymmetryError) as error:
        mn.symmetry.discover(Stepped().double(), nn.MSELoss(), [(x, y)], kind="linear")
    assert "inner.0.weight" in error.value.generator.parameters


def test_too_many_unknowns():
    with pytest.raises(ValueError, match="parameters="):
        found(layers((200, 100), (100, 4)), (4, 200))
    with pytest.raises(ValueError, match="kind"):
        mn.symmetry.discover(nn.Linear(2, 2), cross_entropy, [], kind="quadratic")


# --- elements ------------------------------------------------------------------------------------


def test_elements_form_a_group():
    group = found(layers((6, 5), (5, 4), bias=True))
    g = group.sample(generator=torch.Generator().manual_seed(0))
    h = group.sample(generator=torch.Generator().manual_seed(1))
    for name, shape in group.shapes.items():
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(g.inverse().apply(name, g.apply(name, x)), x)
        torch.testing.assert_close((g * h).apply(name, x), g.apply(name, h.apply(name, x)))
    with pytest.raises(ValueError, match="coefficients"):
        group.element([1.0])


def test_flow_of_a_field_with_all_three_parts():
    """d/dt at t = 0 is the velocity, and flows add up."""
    g = mn.symmetry.LinearGenerator(
        {"w": torch.randn(3, 3)}, {"w": torch.randn(2, 2)}, {"w": torch.randn(3, 2)}
    )
    x = torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(
        g.element(0.7).apply("w", x), g.element(0.3).apply("w", g.element(0.4).apply("w", x))
    )
    step = (g.element(1e-6).apply("w", x) - g.element(-1e-6).apply("w", x)) / 2e-6
    torch.testing.assert_close(step, g.velocity("w", x), rtol=1e-6, atol=1e-6)


def test_elements_that_do_not_fit():
    with pytest.raises(ValueError, match="square"):
        LinearElement({"w": torch.ones(2, 3)})
    with pytest.raises(ValueError, match="invertible"):
        LinearElement({"w": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="slices"):
        LinearElement({"w": torch.eye(3)}).apply("w", torch.ones(2, 2))


def test_reparameterized_model_has_the_same_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).double()
    x, y = torch.randn(40, 6).double(), torch.randint(4, (40,))
    group = mn.symmetry.discover(model, cross_entropy, [(x, y)], kind="linear")
    element = group.sample(generator=torch.Generator().manual_seed(0))
    moved = mn.symmetry.reparameterize(model, element)
    assert not torch.equal(moved[0].weight, model[0].weight)
    assert mn.symmetry.invariance_error.loss(model, element, cross_entropy, (x, y)) < 1e-12
    back = mn.symmetry.reparameterize(moved, element.inverse())
    torch.testing.assert_close(back[0].weight, model[0].weight)
