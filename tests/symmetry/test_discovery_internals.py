"""Parts of discovery: linear system, null space, verification; random networks."""

import math
from functools import partial

import pytest
import torch
from cases import seeds, source
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nets import CLASSES, INPUTS, NETS, canonical, generator
from torch import nn
from torch.nn.functional import cross_entropy

from manifoldnet.experiments.papers.symmetry.networks import Arch2, MaxPoolPairs
from manifoldnet.symmetry import (
    Generator,
    ScalingElement,
    ScalingGroup,
    Slice,
    discover,
    reparameterize,
)
from manifoldnet.symmetry.batches import count_samples, take
from manifoldnet.symmetry.discovery import (
    _COUPLED,
    _FREE,
    _UNREACHED,
    _classify_columns,
    _collect_rows,
)
from manifoldnet.symmetry.linear_system import Layout, LinearSystem
from manifoldnet.symmetry.losses import evaluate
from manifoldnet.symmetry.null_space import (
    TrivialGenerator,
    _IndependentVectors,
    find_gap,
    row_space,
    sparse_basis,
)
from manifoldnet.symmetry.verification import Verifier
from manifoldnet.symmetry.working_copy import RandomWeights, working_copy


def ignore(*_):
    """Progress that is not reported."""


# --- the gap --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "columns", "rank", "nearly"),
    [
        ([1, 0.1, 1e-15, 1e-16], 4, 2, 0),
        ([1, 0.1, 0.02], 3, 3, 0),  # nothing is zero
        ([1, 0.1], 4, 2, 0),  # fewer rows than columns: the rest is zero
        ([1, 1e-2, 2e-13, 3e-14, 1e-16], 5, 2, 0),  # below the floor nothing is told apart
        ([1, 0.5, 1e-5, 1e-15], 4, 3, 1),  # 1e-5 counts, though it is small
        ([1, 0.5, 2e-5, 1e-5, 1e-15], 5, 4, 2),
        ([1, 1e-10, 1e-16], 3, 1, 0),  # nearer to zero than to one
        ([1], 1, 1, 0),
    ],
)
def test_gap_is_the_largest_ratio(values, columns, rank, nearly):
    gap = find_gap(torch.tensor(values, dtype=torch.float64), columns, 1e-13)
    assert (gap.rank, gap.near_zero_count) == (rank, nearly)
    assert gap.kept == values[rank - 1]
    assert gap.dropped == (values[rank] if rank < len(values) else 0)


def test_values_near_the_floor_make_no_clear_gap():
    # 2e-13 is three orders of magnitude above the next value, but only twice the floor.
    gap = find_gap(torch.tensor([1, 2e-13, 1e-16], dtype=torch.float64)[1:], 2, 1e-13)
    assert gap.ratio < 3


def test_row_space_of_few_and_many_rows():
    wanted = torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64)).Q.mT
    for count in (3, 20):
        rows = torch.randn(count, 3, dtype=torch.float64) @ wanted
        gap, sizes, found = row_space(rows, 1e-13)
        assert gap.rank == len(sizes) == 3
        assert torch.allclose(found.mT @ found, wanted.mT @ wanted)
    gap, _, found = row_space(rows[:, :0], 1e-13)
    assert (gap.rank, gap.ratio, found.shape[1]) == (0, math.inf, 0)


# --- sparse bases ---------------------------------------------------------------------------------


def null_space_of(vectors):
    """Sizes and orthonormal rows of which these are the null vectors."""
    matrix = torch.stack(vectors).double()
    _, sizes, basis = torch.linalg.svd(matrix)
    rows = basis[int((sizes > 1e-9).sum()) :]
    return torch.ones(len(rows), dtype=torch.float64), rows


def recover(vectors, shifts=(), sides=None):
    """The basis that is recovered for the null space spanned by vectors and shifts."""
    columns = len(vectors[0])
    sizes, rows = null_space_of([*vectors, *(s.vector(columns) for s in shifts)])
    found, trivial = sparse_basis(sizes, rows, sides or range(columns), shifts, 1e-9)
    assert len(trivial) == len(shifts)
    assert all((rows @ v).norm() <= 1e-9 * v.norm() for v in found)
    return found


def entries(vectors):
    return {tuple((i, v) for i, v in enumerate(x.tolist()) if v != 0) for x in vectors}


def vector(columns, **values):
    x = torch.zeros(columns, dtype=torch.float64)
    for place, value in values.items():
        x[int(place[1:])] = value
    return x


@settings(max_examples=5)
@given(seed=seeds)
def test_disjoint_vectors_are_recovered_from_any_rotation(seed):
    # Exponents are coprime whole numbers, the first of them positive.
    wanted = [
        vector(14, _0=1, _3=1, _9=-1),
        vector(14, _1=1, _4=-2),
        vector(14, _2=2, _5=-3, _6=1),
        vector(14, _8=1),
    ]
    mixed = torch.randn(4, 4, dtype=torch.float64, generator=source(seed)) @ torch.stack(wanted)
    assert entries(recover(list(mixed))) == entries(wanted)


@settings(max_examples=5)
@given(seed=seeds)
def test_overlapping_vectors_are_recovered(seed):
    # Chains, as in residual networks: each of five vectors shares entries with the next.
    wanted = [
        vector(17, **{f"_{3 * i + k}": s for k, s in enumerate((1, 1, 1, -1, -1))})
        for i in range(5)
    ]
    mixed = torch.randn(5, 5, dtype=torch.float64, generator=source(seed)) @ torch.stack(wanted)
    assert entries(recover(list(mixed))) == entries(wanted)


@settings(max_examples=5)
@given(seed=seeds)
def test_trivial_vectors_are_kept_apart(seed):
    # Two matrices: rows 0–3 and columns 4–6, rows 7–9 and columns 10–14; a unit is tied to each row
    # of the first and column of the second.
    shifts = [
        TrivialGenerator(torch.arange(4), torch.arange(4, 7)),
        TrivialGenerator(torch.arange(7, 10), torch.arange(10, 15)),
    ]
    wanted = [vector(15, **{f"_{i}": 1, f"_{10 + i}": -1}) for i in range(4)]
    noise = torch.randn(4, 6, dtype=torch.float64, generator=source(seed))
    basis = torch.stack([*wanted, *(s.vector(15) for s in shifts)])
    found = recover(list(noise @ basis), shifts)
    assert entries(found) == entries(wanted)


def test_all_rows_are_preferred_to_all_columns():
    # Both scale the whole of a square matrix.
    shift = TrivialGenerator(torch.arange(3), torch.arange(3, 6))
    assert entries(recover([vector(7, _3=1, _4=1, _5=1)], [shift])) == {((0, 1), (1, 1), (2, 1))}


def test_long_vector_is_reduced_by_others():
    # Eight units, each tied by three entries, and one vector over sixteen entries: as a sum with
    # some units it is nearly as long, and no shorter choice of columns need show the plain one.
    units = [vector(33, **{f"_{i}": 1, f"_{8 + i}": 1, f"_{16 + i}": -1}) for i in range(8)]
    whole = vector(33, **{f"_{8 + i}": 1 for i in range(8)}, **{f"_{24 + i}": 1 for i in range(9)})
    for seed in range(4):
        mixed = torch.randn(9, 9, dtype=torch.float64, generator=source(seed))
        found = recover(list(mixed @ torch.stack([*units, whole])))
        assert entries(found) == entries([*units, whole])


def test_equally_short_vectors_do_not_depend_on_the_rotation():
    # One vector over the first or the second entries of five links: these are as short as each
    # other, and no single link leads from one to the other.
    links = [vector(14, **{f"_{i}": 1, f"_{i + 5}": -1}) for i in range(5)]
    first, second = (
        vector(14, **{f"_{i}": 1 for i in (*range(10, 14), *range(start, start + 5))})
        for start in (0, 5)
    )

    def found(seed, sides):
        mixed = torch.randn(6, 6, dtype=torch.float64, generator=source(seed))
        return entries(recover(list(mixed @ torch.stack([*links, first])), sides=sides))

    family = [0] * 5 + [1] * 5 + [2] * 4
    assert all(found(seed, family) == entries([*links, second]) for seed in range(8))
    alone = found(0, range(14))
    assert all(found(seed, range(14)) == alone for seed in range(1, 16))


def test_small_entries_are_preferred_to_large_ones():
    # Either of two vectors with three entries represents the class; of each pair the third is given
    # by the other two.
    tied = vector(5, _0=1, _1=1, _2=-1)
    found = recover([tied, vector(5, _0=-1, _2=-1, _3=1, _4=1)])
    assert entries(found) == entries([tied, vector(5, _0=1, _2=1, _3=-1, _4=-1)])
    found = recover([tied, vector(5, _1=1, _2=-2, _3=1, _4=1)])
    assert entries(found) == entries([tied, vector(5, _0=1, _2=1, _3=-1, _4=-1)])


def test_independence_is_decided_in_spite_of_rounding():
    # Each vector is nearly the one before. A single pass of Gram-Schmidt multiplies the rounding
    # errors by 1000 at each, and five vectors of five numbers then do not span all others.
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    independent = _IndependentVectors(5)
    for i in range(5):
        assert independent.add(1e-3 * rotation[i] + (rotation[i - 1] if i else 0))
    assert not any(independent.add(v) for v in rotation)


def test_irrational_exponents_are_not_rounded():
    (found,) = recover([vector(5, _1=1, _3=-math.sqrt(2))])
    assert found.tolist() == pytest.approx([0, 1 / math.sqrt(2), 0, -1, 0])


@pytest.mark.parametrize("power", [0.37, 0.3, 1.5])
def test_powers_of_activations_show_as_exponents(power):
    class Power(nn.Module):
        def forward(self, x):
            return x.abs().pow(power)

    model = nn.Sequential(nn.Linear(INPUTS, 2), Power(), nn.Linear(2, CLASSES))
    batch = (torch.randn(16, INPUTS), torch.randint(CLASSES, (16,)))
    for one in discover(model, cross_entropy, [batch]).nontrivial.generators:
        up = {e for w, e in one.exponents.items() if w.parameter != "2.weight"}
        (down,) = (e for w, e in one.exponents.items() if w.parameter == "2.weight")
        assert len(one.exponents) == 3
        assert down / max(up) == pytest.approx(-power, rel=1e-6)


# --- equations ------------------------------------------------------------------------------------


def equations(model, batches, loss_fn=cross_entropy, **options):
    layout = Layout({name: tuple(p.shape) for name, p in model.named_parameters()})
    work = working_copy(model, torch.float64, keep_eps=False)
    batches = [(x.double() if x.is_floating_point() else x, t) for x, t in batches]
    return LinearSystem(work, loss_fn, batches, layout, source(0), **options)


def batch(samples=16, inputs=INPUTS):
    return torch.randn(samples, inputs), torch.randint(CLASSES, (samples,))


def test_the_layout_sums_over_slices():
    layout = Layout({"w": (2, 3, 2), "b": (2,), "s": ()})
    assert layout.slices == [
        *(Slice("w", 0, i) for i in range(2)),
        *(Slice("w", 1, j) for j in range(3)),
        *(Slice("b", 0, i) for i in range(2)),
        Slice("s", None),
    ]
    w, b, s = torch.randn(4, 2, 3, 2), torch.randn(4, 2), torch.randn(4)
    sums = layout.sums({"w": w, "b": b, "s": s})
    assert torch.allclose(sums[:, :2], w.sum((2, 3)))
    assert torch.allclose(sums[:, 2:5], w.sum((1, 3)))
    assert torch.equal(sums[:, 5:7], b)
    assert torch.equal(sums[:, 7], s)


@pytest.mark.parametrize("name", ["tanh_and_softplus", "arch2", "attention"])
def test_rows_are_derivatives_by_log_scales(name):
    # By finite differences; from a loop and at once for several groups of samples.
    net = NETS[name]()
    eqs = equations(net.model, net.batches, net.loss_fn)
    fixed = eqs.weights.draw(source(7))
    eqs.weights.draw = lambda generator: fixed
    groups = take(eqs.batches[0], torch.arange(8).reshape(2, 4))
    looped = eqs._one_by_one([take(groups, i) for i in range(2)])
    assert torch.allclose(eqs._vectorized(groups), looped, atol=1e-9)

    def loss(where, s):
        element = ScalingElement.from_log2({where: s})
        scaled = element.apply(where.parameter, fixed[where.parameter])
        weights = fixed | {where.parameter: scaled}
        return evaluate(eqs.model, net.loss_fn, take(groups, 0), weights)

    slopes = [(loss(w, 1e-5) - loss(w, -1e-5)) / 2e-5 for w in eqs.layout.slices]
    slopes = torch.tensor(slopes, dtype=torch.float64)
    assert torch.allclose(looped[0], slopes / slopes.norm(), atol=1e-7)


def test_rows_have_norm_one_and_are_zero_where_all_is_rounding():
    rows = equations(NETS["relu"]().model, [batch()]).rows(50)
    assert len(rows) >= 50
    assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows), dtype=torch.float64))

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.randn(1))

        def forward(self, x):
            return x[:, :CLASSES] * 1.7 + self.shift  # which the soft-max takes out

    assert not equations(Hidden(), [batch()]).rows(50).any()


def test_badly_scaled_weights_give_the_same_equations():
    # Exactly the same without vectors: w ⊙ ∂L/∂w does not change under a symmetry.
    net = NETS["arch1"]()
    element = ScalingElement({})
    for k, one in enumerate(net.generators):
        element = element * one.element(10.0 ** (k % 7 - 3))
    scaled = reparameterize(net.model.double(), element)
    plain, after = (equations(m, net.batches, net.loss_fn).rows(30) for m in (net.model, scaled))
    assert torch.allclose(plain, after, atol=1e-9)


def test_random_weights_leave_no_zero_and_follow_the_size():
    model = nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 30))
    with torch.no_grad():
        model[0].weight[:20] = 0
        model[0].bias.zero_()
        model[1].weight.mul_(100)
    weights = RandomWeights(model, ["0.weight", "0.bias", "1.weight"])
    drawn = [weights.draw(source(k)) for k in range(5)]
    for one in drawn:
        assert set(one) == {"0.weight", "0.bias", "1.weight"}
        assert all((w != 0).all() for w in one.values())
        assert 0.1 < one["0.bias"].std() < 0.5
        size = model[1].weight.std()
        assert size / 2 < one["1.weight"].std() < 2 * size
        # A gain is never nearly zero: the next normalization layer would divide by it.
        assert one["0.bias"].abs().min() > 0.03
        assert weights.fresh(source(1))["0.bias"].abs().min() > 0.03
    assert not torch.equal(drawn[0]["1.weight"], drawn[1]["1.weight"])


@pytest.mark.parametrize("samples", [2, 3, 4, 5, 64])
@pytest.mark.parametrize(
    ("network", "coupled"),
    [
        (lambda: nn.Sequential(nn.Linear(INPUTS, 4), nn.ReLU(), nn.Linear(4, CLASSES)), False),
        (lambda: nn.Sequential(nn.Linear(INPUTS, 4), nn.Dropout(), nn.Linear(4, CLASSES)), False),
        (lambda: nn.Sequential(nn.Linear(INPUTS, 4), nn.LayerNorm(4)), False),
        (lambda: Arch2(INPUTS, CLASSES, features=8), True),
        (lambda: Arch2(INPUTS, CLASSES, features=8).eval(), False),
    ],
    ids=["relu", "dropout", "layer norm", "batch norm", "batch norm in evaluation"],
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_coupling_of_samples(network, coupled, samples, reduction):
    loss_fn = partial(cross_entropy, reduction=reduction)
    assert equations(network(), [batch(samples)], loss_fn).coupled == coupled


def test_samples_are_coupled_if_no_loss_is_finite():
    model = nn.Linear(INPUTS, CLASSES)
    assert equations(model, [batch()], lambda o, t: (o - t[:, None]).sum() * math.inf).coupled
    assert not equations(model, [batch()], lambda o, t: (o - t[:, None]).sum()).coupled


def test_samples_are_counted_where_all_tensors_agree():
    x = torch.randn(5, 2)
    assert count_samples((x, x[:, 0])) == 5
    assert count_samples(({"a": x, "b": [x]}, "text")) == 5
    assert count_samples((x, x[:3])) is None
    assert count_samples((x, torch.tensor(1.0))) is None
    taken, word = take(({"a": x}, "text"), torch.tensor([1, 3]))
    assert torch.equal(taken["a"], x[[1, 3]])
    assert word == "text"


class Endless:
    """Equations of known rank, with a count of those that were requested."""

    def __init__(self, columns, rank, most=160):
        self.directions = torch.randn(rank, columns, dtype=torch.float64)
        self.reached = torch.full((columns,), 100)
        self.asked, self.rank, self.most = 0, rank, most

    def rows(self, count):
        # The rank grows slowly: each block has at most `most` new directions.
        self.asked += count
        known = min(self.rank, self.most * (self.asked // count))
        mixed = torch.randn(count, known, dtype=torch.float64) @ self.directions[:known]
        return mixed / mixed.norm(dim=1, keepdim=True)

    def large_rows(self):
        return self.rows(3)


def test_columns_that_are_zero_to_rounding_are_free():
    rows = torch.randn(9, 5, dtype=torch.float64)
    rows[:, 1] *= 1e-14  # rounding of a zero
    rows[:, 2:4] = 0.0
    reached = torch.tensor([9, 9, 9, 0, 9])
    expected = [_COUPLED, _FREE, _FREE, _UNREACHED, _COUPLED]
    assert _classify_columns(rows, reached, 1e-12).tolist() == expected


@pytest.mark.parametrize("most", [160, 5])
def test_collecting_stops_at_full_rank(most):
    # Memory is a few rows for each column, for any number of equations.
    eqs = Endless(columns=100, rank=60, most=most)
    rows, count = _collect_rows(eqs, 1e-8, ignore)
    assert int(torch.linalg.matrix_rank(rows, rtol=1e-9)) == 60
    assert len(rows) <= 2 * 100 + 160
    assert count == eqs.asked
    if most == 160:
        assert count <= 2 * 160 + 3


def test_large_rows_reach_rare_tokens():
    tokens = torch.zeros(3000, 2, dtype=torch.long)
    tokens[:, 0] = torch.randint(3, (3000,))
    tokens[777, 1] = 3
    labels = torch.randint(CLASSES, tokens.shape)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, CLASSES))
    eqs = equations(
        model, [(tokens, labels)], lambda o, t: cross_entropy(o.flatten(0, 1), t.flatten())
    )
    eqs.rows(20)
    assert eqs.reached[:5].bool().tolist() == [True, True, True, False, False]
    eqs.large_rows()
    assert eqs.reached[:5].bool().tolist() == [True, True, True, True, False]


# --- verification ---------------------------------------------------------------------------------


class Steps(nn.Module):
    """1 + r(b) r(c) / 2 + r(d) (1 + r(a)) / 8, where r is 1 above 1.5, and else 0."""

    def __init__(self):
        super().__init__()
        for name in "abcd":
            self.register_parameter(name, nn.Parameter(torch.ones(1)))

    def forward(self, x):
        a, b, c, d = ((p > 1.5).to(p) for p in self.parameters())
        return (1 + b * c / 2 + d * (1 + a) / 8) * x


@pytest.mark.parametrize(
    ("scaled", "culprit", "deviation"),
    [
        ("ad", "d", 1 - 1 / 1.125),  # d alone, although a doubles its effect
        ("bcd", "c", 1 - 1 / 1.5),  # the product of b and c, as neither has an effect alone
        ("bd", "d", 1 - 1 / 1.125),
        ("dbc", "d", 1 - 1 / 1.125),  # the first, although others change the loss more
    ],
)
def test_the_first_generator_that_changes_the_loss_is_named(scaled, culprit, deviation):
    model = Steps()
    verifier = Verifier(model, lambda o, t: o.mean(), [(torch.ones(4, 1), None)], [], 0, False)
    generators = [Generator({Slice(name, 0, 0): 1.0}) for name in dict.fromkeys(scaled + "a")]
    group = ScalingGroup.of(model, generators)
    error = verifier._first_violation(
        verifier.weights[0],
        verifier.batches[0],
        group,
        torch.ones(group.dimension, dtype=torch.float64),
        1e-8,
    )
    assert [where.parameter for where in error.generator.exponents] == [culprit]
    assert error.deviation == pytest.approx(deviation)


# --- networks put together at random ------------------------------------------------------------


class Tracer:
    """Builds a network layer by layer and derives its generators along, by a rule for each layer.

    A feature is known by the slices that scale it, weight and bias apart, if anything does; and by
    whether these stand directly before (a shift is taken out by normalization then), or behind
    something that is homogeneous only.
    """

    def __init__(self, inputs, convolutional):
        self.model = nn.Sequential()
        self.features = [None] * inputs
        self.generators = []
        self.convolutional = convolutional

    def add(self, module):
        self.model.append(module)
        return str(len(self.model) - 1)

    def linear(self, outputs, bias):
        inputs = len(self.features)
        if self.convolutional:
            name = self.add(nn.Conv2d(inputs, outputs, 2, bias=bias))
        else:
            name = self.add(nn.Linear(inputs, outputs, bias=bias))
        self.read_by(name)
        self.write(f"{name}.weight", f"{name}.bias" if bias else None, outputs)

    def read_by(self, name):
        for j, feature in enumerate(self.features):
            if feature is not None:
                weights, biases, _ = feature
                self.generators.append(generator(weights + biases, [Slice(f"{name}.weight", 1, j)]))

    def write(self, weight, bias, outputs):
        self.features = [
            ([Slice(weight, 0, i)], [Slice(bias, 0, i)] if bias else [], True)
            for i in range(outputs)
        ]

    def normalize(self):
        kind = nn.BatchNorm2d if self.convolutional else nn.BatchNorm1d
        for feature in self.features:
            if feature is None:
                continue
            weights, biases, direct = feature
            # Scale and shift are taken out; a shift behind ReLU or pooling is no shift.
            free = [weights, biases] if direct else [weights + biases]
            self.generators += [generator(slices) for slices in free if slices]
        name = self.add(kind(len(self.features)))
        self.write(f"{name}.weight", f"{name}.bias", len(self.features))

    def activate(self, homogeneous):
        self.add(nn.LeakyReLU(0.1) if homogeneous else nn.GELU())
        self.features = [
            (f[0], f[1], False) if homogeneous and f is not None else None for f in self.features
        ]

    def pool(self):
        if self.convolutional:
            self.add(nn.MaxPool2d(2, 1))
            pairs = [(f, f) for f in self.features]
        else:
            self.add(MaxPoolPairs())
            pairs = list(zip(self.features[::2], self.features[1::2], strict=True))
        self.features = [
            None
            if a is None
            else (a[0], a[1], False)
            if a is b
            else (a[0] + b[0], a[1] + b[1], False)
            for a, b in pairs
        ]

    def finish(self):
        if self.convolutional:
            self.add(nn.AdaptiveAvgPool2d(1))
            self.add(nn.Flatten())
        name = self.add(nn.Linear(len(self.features), CLASSES))
        self.read_by(name)


stages = st.tuples(
    st.sampled_from([6, 8]),  # features; three after pooling, so that the shortest basis is unique
    st.booleans(),  # bias
    st.sampled_from(["", "before", "after", "both"]),  # normalization and activation
    st.sampled_from([True, True, False]),  # homogeneous
    st.booleans(),  # pooling
)


@pytest.mark.parametrize("convolutional", [False, True])
@settings(max_examples=4)
@given(parts=st.lists(stages, min_size=1, max_size=2), seed=seeds)
# A gain near zero was drawn here, and ε of the normalization layer behind it showed.
@example(parts=[(8, True, "both", True, False), (8, True, "", True, False)], seed=0)
@pytest.mark.thorough
def test_random_networks(convolutional, parts, seed):
    torch.manual_seed(seed)
    tracer = Tracer(2 if convolutional else INPUTS, convolutional)
    for features, bias, normalized, homogeneous, pooled in parts:
        tracer.linear(features, bias)
        if normalized in ("before", "both"):
            tracer.normalize()
        tracer.activate(homogeneous)
        if pooled:
            tracer.pool()
        if normalized in ("after", "both"):
            tracer.normalize()
            tracer.activate(True)
    tracer.finish()
    x = torch.randn(24, 2, 6, 6) if convolutional else torch.randn(24, INPUTS)
    group = discover(tracer.model, cross_entropy, [(x, torch.randint(CLASSES, (24,)))])
    assert canonical(group.nontrivial.generators) == canonical(tracer.generators), tracer.model
