"""Groups of GPT-2, ResNet-18 and a vision transformer, by narrow copies, against those by hand.

The real sizes take minutes, by hand only: pytest --slow tests/symmetry/test_large_groups.py -s
"""

import pytest

pytest.importorskip("transformers", reason="networks of transformers: install it to run these")

from large_groups import NETWORKS, widened
from nets import generator

from manifoldnet.symmetry import ScalingGroup, Slice


def along(name, dim, *indices):
    return [Slice(name, dim, i) for i in indices]


def gpt2_generators(blocks, width, heads, words):
    """5 L d + 1 generators, whatever the heads and the vocabulary are.

    For each block and channel: gain and shift of either normalization against what reads them;
    query against key; value against output; bias of a key, which shifts all logits of a query. GELU
    has none. The last normalization has one with the whole stream, as its reader is the embedding:
    stream × s, logits as before with gain and shift ÷ s. Weights are input × output.
    """
    h, d, found = "transformer.h.", width, []
    stream = along("transformer.wte.weight", None, 0) + along("transformer.wpe.weight", None, 0)
    for k in range(blocks):
        qkv, out = f"{h}{k}.attn.c_attn.", f"{h}{k}.attn.c_proj."
        for i in range(d):
            for norm, reader in ((1, qkv), (2, f"{h}{k}.mlp.c_fc.")):
                up = [Slice(f"{h}{k}.ln_{norm}.{n}", 0, i) for n in ("weight", "bias")]
                found.append(generator(up, along(f"{reader}weight", 0, i)))
            up = along(f"{qkv}weight", 1, i) + along(f"{qkv}bias", 0, i)
            found.append(generator(up, along(f"{qkv}weight", 1, d + i)))
            found.append(generator(along(f"{qkv}bias", 0, d + i)))
            up = along(f"{qkv}weight", 1, 2 * d + i) + along(f"{qkv}bias", 0, 2 * d + i)
            found.append(generator(up, along(f"{out}weight", 0, i)))
        for writer in (out, f"{h}{k}.mlp.c_proj."):
            stream += along(f"{writer}weight", None, 0) + along(f"{writer}bias", None, 0)
    last = [Slice(f"transformer.ln_f.{n}", None) for n in ("weight", "bias")]
    return [*found, generator(stream, last)]


def vit_generators(blocks, width, heads, hidden, image, patch):
    """5 L d + d + 1 generators, as of GPT-2 but for the last normalization and its own reader."""
    d, found = width, []
    stream = along("vit.embeddings.cls_token", None, 0)
    stream += along("vit.embeddings.position_embeddings", None, 0)
    projection = "vit.embeddings.patch_embeddings.projection."
    stream += along(f"{projection}weight", None, 0) + along(f"{projection}bias", None, 0)
    for k in range(blocks):
        block = f"vit.layers.{k}."
        q, key, v, o = (f"{block}attention.{n}_proj." for n in "qkvo")
        for i in range(d):
            readers = {
                "before": [Slice(f"{n}weight", 1, i) for n in (q, key, v)],
                "after": [Slice(f"{block}mlp.fc1.weight", 1, i)],
            }
            for where, down in readers.items():
                up = [Slice(f"{block}layernorm_{where}.{n}", 0, i) for n in ("weight", "bias")]
                found.append(generator(up, down))
            up = [Slice(f"{q}{n}", 0, i) for n in ("weight", "bias")]
            found.append(generator(up, along(f"{key}weight", 0, i)))
            found.append(generator(along(f"{key}bias", 0, i)))
            up = [Slice(f"{v}{n}", 0, i) for n in ("weight", "bias")]
            found.append(generator(up, along(f"{o}weight", 1, i)))
        for writer in (o, f"{block}mlp.fc2."):
            stream += [Slice(f"{writer}{n}", None) for n in ("weight", "bias")]
    for i in range(d):
        up = [Slice(f"vit.layernorm.{n}", 0, i) for n in ("weight", "bias")]
        found.append(generator(up, along("classifier.weight", 1, i)))
    return [*found, generator(stream)]


def resnet_counts(a, b, c, d, image, depth):
    """(generators, trivial ones): every convolution has a normalization behind it.

    A filter each: the stem's, two for each block, and those of three shortcuts. Gain and shift
    against the next convolution: one inside each block. The stream of each stage: a channel each.
    """
    widths = (a, b, c, d)
    filters = a + 2 * depth * sum(widths) + sum(widths[1:])
    matrices = 1 + 8 * depth + 3 + 1
    return filters + depth * sum(widths) + sum(widths), matrices


CASES = {
    "GPT-2 small": (gpt2_generators, (4, 24, 3, 17)),
    "ViT-S/16": (vit_generators, (4, 20, 2, 30, 8, 2)),
}
NARROWER = (3, 4, 2, 11)  # of GPT-2: heads of 2, blocks enough to tell the first and last apart


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [n if n == "GPT-2 small" else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_transformers_of_another_width_and_depth(name):
    generators, sizes = CASES[name]
    network = NETWORKS[name]
    if name == "GPT-2 small":
        network = network._replace(narrow=NARROWER)
    model, group, _, _ = widened(network, sizes)
    expected = generators(*sizes)
    # As spans: the scale of a key's bias may be added to a generator of queries and keys.
    by_hand = ScalingGroup.of(model, expected)
    assert group.nontrivial.dimension == len(expected)
    assert by_hand in group
    assert group.nontrivial in by_hand
    assert group.trivial_dimension == sum(p.ndim > 1 for p in model.parameters())


@pytest.mark.slow
def test_a_residual_network_of_another_width():
    sizes = (6, 8, 10, 12, 64, 2)
    _, group, _, _ = widened(NETWORKS["ResNet-18"], sizes)
    assert (group.nontrivial.dimension, group.trivial_dimension) == resnet_counts(*sizes)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_real_sizes_within_two_minutes(name, capsys):
    network = NETWORKS[name]
    _, group, discovery, widening = widened(network, network.wide)
    with capsys.disabled():
        print(f"\n{name}: {discovery:.0f} s and {widening:.0f} s\n{group}")
    found = group.nontrivial.dimension, group.trivial_dimension
    if name == "ResNet-18":
        assert found == resnet_counts(*network.wide)
    else:
        blocks = network.wide[0]
        matrices = 2 + 4 * blocks if name == "GPT-2 small" else 4 + 6 * blocks
        assert found == (len(CASES[name][0](*network.wide)), matrices)
    assert discovery + widening < 120
