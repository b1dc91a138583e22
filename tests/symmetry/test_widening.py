"""Groups of narrow copies, written for other widths and depths, against those derived by hand."""

from itertools import pairwise

import pytest
import torch
from nets import (
    CLASSES,
    INPUTS,
    NETS,
    Attention,
    Residual,
    ResNet,
    attention_generators,
    canonical,
    classify,
    column,
    generator,
    hidden_units,
    layer,
    packed_attention_generators,
    perceptron,
    residual_generators,
    row,
)
from torch import nn
from torch.nn.functional import cross_entropy

from manifoldnet.symmetry import FalseSymmetryError, ScalingGroup, Slice, discover
from manifoldnet.symmetry.group import trivial_generators


def labels(*shape):
    return torch.randint(CLASSES, shape)


def group_of(model, generators):
    """Group written by hand, with the trivial generators of all matrices."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return ScalingGroup.of(model, [*generators, *trivial_generators(shapes)])


def assert_widened(narrow, wide, generators, batch):
    """`generators` makes the generators of a model by hand."""
    group = group_of(narrow, generators(narrow)).widen(wide, classify, batch)
    expected = group_of(wide, generators(wide))
    assert canonical(group.nontrivial.generators) == canonical(expected.nontrivial.generators)
    assert group.trivial_dimension == expected.trivial_dimension
    assert group.report.verified < 1e-10
    assert group.structure == expected.structure


@pytest.mark.parametrize("name", sorted(NETS))
def test_a_group_widened_to_its_own_size_is_the_same(name):
    net = NETS[name]()
    group = group_of(net.model, net.generators)
    widened = group.widen(net.model, net.loss_fn, net.batches[0])
    assert canonical(widened.generators) == canonical(group.generators)


def test_width_of_a_perceptron():
    assert_widened(
        perceptron(nn.ReLU()),
        perceptron(nn.ReLU(), hidden=37),
        lambda m: hidden_units("0", "2", m[0].out_features),
        (torch.randn(9, INPUTS), labels(9)),
    )


def test_discovery_of_a_narrow_copy_and_its_widening():
    batch = (torch.randn(16, INPUTS), labels(16))
    narrow = discover(perceptron(nn.ReLU()), cross_entropy, [batch])
    model = perceptron(nn.ReLU(), hidden=50)
    group = narrow.widen(model, cross_entropy, batch)
    assert canonical(group.nontrivial.generators) == canonical(hidden_units("0", "2", 50))
    assert group.trivial_dimension == 2
    assert "narrow copy" in str(group)


@pytest.mark.parametrize(("few", "many"), [(3, 7), (4, 3), (6, 4)])
def test_depth_of_a_perceptron(few, many):
    def make(depth, width):
        sizes = [INPUTS] + [width] * depth
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(width, CLASSES))

    def generators(model):
        names = [n.removesuffix(".weight") for n, p in model.named_parameters() if p.ndim == 2]
        width = model[0].out_features
        return [g for a, b in pairwise(names) for g in hidden_units(a, b, width)]

    batch = (torch.randn(9, INPUTS), labels(9))
    assert_widened(make(few, 3), make(many, 8), generators, batch)


def pre_norm(width, heads, hidden, depth):
    blocks = [
        block
        for _ in range(depth)
        for block in (
            Residual(nn.LayerNorm(width), Attention(width, heads)),
            Residual(
                nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)
            ),
        )
    ]
    return nn.Sequential(
        nn.Embedding(7, width), *blocks, nn.LayerNorm(width), nn.Linear(width, CLASSES)
    )


def pre_norm_generators(model):
    """As `nets.pre_norm_transformer`, at any depth."""
    width, found, stream = model[0].embedding_dim, [], []
    stream += column("0.weight", *range(width))
    for k in range(1, len(model) - 2, 2):
        a, b = f"{k}.body.", f"{k + 1}.body."
        hidden = model[k + 1].body[1].out_features
        found += [
            generator(layer(f"{a}0", i), [Slice(f"{a}1.{n}.weight", 1, i) for n in "qkv"])
            for i in range(width)
        ]
        found += [generator(layer(f"{b}0", i), column(f"{b}1.weight", i)) for i in range(width)]
        found += attention_generators(f"{a}1.", width) + hidden_units(f"{b}1", f"{b}3", hidden)
        stream += layer(f"{a}1.o", *range(width)) + layer(f"{b}3", *range(width))
    end = len(model) - 2
    found += hidden_units(str(end), str(end + 1), width)
    return [*found, generator(stream)]


@pytest.mark.parametrize("depth", [3, 6])
def test_width_and_depth_of_a_transformer(depth):
    batch = (torch.randint(7, (3, 6)), labels(3, 6))
    assert_widened(pre_norm(4, 2, 6, 3), pre_norm(24, 4, 30, depth), pre_norm_generators, batch)


def test_too_few_blocks_for_another_depth():
    narrow = pre_norm(4, 2, 6, 2)
    batch = (torch.randint(7, (3, 6)), labels(3, 6))
    with pytest.raises(ValueError, match="at least 3"):
        group_of(narrow, pre_norm_generators(narrow)).widen(pre_norm(4, 2, 6, 5), classify, batch)


class Packed(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def test_packed_queries_keys_and_values_keep_their_thirds():
    def generators(model):
        width = model.head.in_features
        return packed_attention_generators("attention.", width) + hidden_units(
            "attention.out_proj", "head", width
        )

    narrow, wide = Packed(4, 2), Packed(12, 3)
    group = group_of(narrow, generators(narrow))
    # The inputs of the narrow copy are narrower, too.
    widened = group.widen(wide, classify, (torch.randn(4, 5, 12), labels(4, 5)))
    assert canonical(widened.nontrivial.generators) == canonical(generators(wide))


class Grouped(nn.Module):
    """Attention with fewer key heads than query heads, rotated or not."""

    def __init__(self, inputs, heads, keys, size, rotary):
        super().__init__()
        self.size, self.share = size, heads // keys
        self.rotary = rotary
        self.q, self.k, self.v = (
            nn.Linear(inputs, n * size, bias=False) for n in (heads, keys, keys)
        )
        self.o = nn.Linear(heads * size, CLASSES, bias=False)

    def forward(self, x):
        q, k, v = (
            f(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        if self.rotary:
            turned = Attention.turned
            q, k = turned(self, q), turned(self, k)
        k, v = (y.repeat_interleave(self.share, dim=1) for y in (k, v))
        weights = (q @ k.mT / self.size**0.5).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


def grouped_generators(model):
    """A channel of a key head against that channel of all query heads that share it (with its
    partner where channels are rotated in pairs); values alike against columns of the output.
    """
    size, share = model.size, model.share
    keys = model.k.out_features // size
    found = []
    for c in range(keys):
        heads = range(c * share, (c + 1) * share)
        pairs = [[i, i + size // 2] for i in range(size // 2)]
        for channels in pairs if model.rotary else [[i] for i in range(size)]:
            found.append(
                generator(
                    row("q.weight", *(h * size + i for h in heads for i in channels)),
                    row("k.weight", *(c * size + i for i in channels)),
                )
            )
        for i in range(size):
            found.append(
                generator(
                    row("v.weight", c * size + i),
                    column("o.weight", *(h * size + i for h in heads)),
                )
            )
    return found


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("wide", [(6, 2, 4), (4, 2, 10), (12, 4, 6), (8, 2, 4), (6, 3, 8)], ids=str)
def test_heads_that_share_keys_and_rotated_pairs(wide, rotary):
    """Sizes do not determine heads and channels: the factorization that holds is taken."""
    batch = (torch.randn(3, 5, 7), labels(3, 5))
    assert_widened(
        Grouped(7, 4, 2, 4, rotary), Grouped(7, *wide, rotary), grouped_generators, batch
    )


def test_residual_convolutions():
    narrow, wide = ResNet(3, 4), ResNet(10, 12)
    batch = (torch.randn(8, 2, 5, 5), labels(8))
    assert_widened(narrow, wide, residual_generators, batch)


def norm_in_groups(groups, channels):
    return nn.Sequential(
        nn.Conv2d(2, channels, 3),
        nn.GroupNorm(groups, channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, CLASSES),
    )


def group_norm_generators(model):
    channels, groups = model[0].out_channels, model[1].num_groups
    each = channels // groups
    whole = [generator(layer("0", *range(each * g, each * (g + 1)))) for g in range(groups)]
    return whole + [generator(layer("1", i), column("5.weight", i)) for i in range(channels)]


def test_the_finest_pattern_that_holds_is_taken():
    """Two groups as halves would hold, too, with fewer generators than there are."""
    batch = (torch.randn(5, 2, 5, 5), labels(5))
    assert_widened(norm_in_groups(2, 6), norm_in_groups(6, 24), group_norm_generators, batch)


def test_a_whole_that_the_wide_model_divides_is_refused():
    narrow = norm_in_groups(1, 6)
    batch = (torch.randn(5, 2, 5, 5), labels(5))
    with pytest.raises(ValueError, match="in 2 parts or more"):
        group_of(narrow, group_norm_generators(narrow)).widen(
            norm_in_groups(2, 12), classify, batch
        )


# --- what is refused ----------------------------------------------------------------------------


def test_another_activation_is_a_false_symmetry_that_names_the_family():
    narrow = perceptron(nn.ReLU())
    group = group_of(narrow, hidden_units("0", "2", 4))
    batch = (torch.randn(9, INPUTS), labels(9))
    with pytest.raises(FalseSymmetryError, match=r"0\.weight and 0\.bias against 2\.weight") as e:
        group.widen(perceptron(nn.GELU(), hidden=9), classify, batch)
    assert e.value.deviation > 1e-6
    assert Slice("0.weight", 0, 0) in e.value.generator.exponents


def test_one_replaced_block_of_many_is_named():
    narrow, wide = pre_norm(4, 2, 6, 3), pre_norm(8, 2, 12, 5)
    wide[6].body[2] = nn.GELU()
    batch = (torch.randint(7, (3, 6)), labels(3, 6))
    with pytest.raises(FalseSymmetryError, match=r"6\.body\.1\.weight"):
        group_of(narrow, pre_norm_generators(narrow)).widen(wide, classify, batch)


def test_a_model_that_may_have_more_symmetries_is_refused():
    narrow = perceptron(nn.GELU())
    batch = (torch.randn(9, INPUTS), labels(9))
    with pytest.raises(ValueError, match=r"'1' is a ReLU.*a GELU.*may have more symmetries"):
        group_of(narrow, []).widen(perceptron(nn.ReLU(), hidden=9), classify, batch)


def test_another_architecture_is_refused():
    narrow = perceptron(nn.ReLU())
    group = group_of(narrow, hidden_units("0", "2", 4))
    batch = (torch.randn(9, INPUTS), labels(9))
    with pytest.raises(ValueError, match=r"not the same blocks|nothing that corresponds"):
        group.widen(nn.Sequential(*perceptron(nn.ReLU()), nn.BatchNorm1d(CLASSES)), classify, batch)


def test_generators_without_a_pattern_are_refused():
    narrow = perceptron(nn.ReLU())
    group = group_of(narrow, [hidden_units("0", "2", 4)[i] for i in (0, 1, 3)])
    batch = (torch.randn(9, INPUTS), labels(9))
    with pytest.raises(ValueError, match="no pattern"):
        group.widen(perceptron(nn.ReLU(), hidden=9), classify, batch)
