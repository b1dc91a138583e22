"""Linear symmetries of small networks, with dimensions derived by hand.

Every head of n logits under softmax cross-entropy has n shifts W ↦ W + t·1(vᵀW), v ∈ ℝⁿ, since
softmax takes out what all logits share, and translations 1⊗u: one for each column and the bias.
"""

import pytest
import torch
from nets import Attention
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
}  # fmt: skip


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
    """GL(4) on query/key and value/output of two heads: 4·16; head: 4, and 16 translations."""
    group = found(lambda: Reader(16, 2, 4), (40, 5, 16))
    assert kinds(group) == {"GL(4)": 64, "shift": 4, "translation": 16}
    assert "head 1: GL(4) on query/key" in str(group)


def test_network_without_symmetry_has_dimension_0():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(40, 3).double(), torch.randn(40, 2).double()
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
