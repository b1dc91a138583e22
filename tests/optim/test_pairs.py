"""Pairs: runs do not depend on the factors of a product, and what is refused."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import manifoldnet as mn
from manifoldnet.geometry.pair import frame, loses_digits, rebalance, retract
from manifoldnet.testing import GeodesicLaws, MetricLaws, PointLaws, RetractionLaws, TransportLaws

LORA = mn.Pair("left.weight", "right.weight")


class Product(nn.Module):
    """x ↦ L R x."""

    def __init__(self, rank=4):
        super().__init__()
        self.left = nn.Linear(rank, 12, bias=False, dtype=torch.float64)
        self.right = nn.Linear(10, rank, bias=False, dtype=torch.float64)

    def forward(self, x):
        return self.left(self.right(x))


class Scores(nn.Module):
    """Scores of two heads of attention, query and key packed by rows."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(10, 6, bias=False, dtype=torch.float64)
        self.right = nn.Linear(10, 6, bias=False, dtype=torch.float64)

    def forward(self, x):
        q, k = (f(x).reshape(-1, 2, 3).transpose(0, 1) for f in (self.left, self.right))
        return (q @ k.mT).softmax(-1).mean(0)[:, :12]


HEADS = mn.Pair("left.weight", "right.weight", heads=2, shared=(0, 0))

OPTIMIZERS = {
    "sgd": lambda g: mn.RiemannianSGD(g, lr=0.1, momentum=0.9),
    "sgd, plain": lambda g: mn.RiemannianSGD(g, lr=0.1),
    "sgd, nesterov": lambda g: mn.RiemannianSGD(g, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda g: mn.RiemannianAdam(g, lr=0.01),
    "constrained sgd": lambda g: mn.constrain(torch.optim.SGD(g, lr=0.1, momentum=0.9)),
    "constrained muon": lambda g: mn.constrain(mn.optim.Muon(g, lr=0.02)),
    "constrained adamw": lambda g: mn.constrain(torch.optim.AdamW(g, lr=0.01)),
}


def matrices(shape, seed, spread=1.0):
    """Matrices S with condition number 10^(2 spread)."""
    source = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=source, dtype=torch.float64))
    return u * torch.logspace(-spread, spread, shape[-1], dtype=torch.float64) @ v


def made(kind, pair, s=None, seed=0):
    torch.manual_seed(seed)
    model = kind()
    if s is not None:
        with torch.no_grad():
            left, right = pair.act((model.left.weight, model.right.weight), s)
            model.left.weight.copy_(left)
            model.right.weight.copy_(right)
    mn.declare(model, pair)
    return model


def trained(model, optimizer, steps=60):
    source = torch.Generator().manual_seed(3)
    x = torch.randn(24, 10, generator=source, dtype=torch.float64)
    y = torch.randn(24, 12, generator=source, dtype=torch.float64).tanh()
    x, y = (t.to(model.left.weight) for t in (x, y))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def difference(a, b):
    return max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("kind", "pair"), [(Product, LORA), (Scores, HEADS)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_does_not_depend_on_the_factors(kind, pair, name):
    shape = (4, 4) if kind is Product else (2, 3, 3)
    runs = []
    for s in (None, matrices(shape, 0)):
        model = made(kind, pair, s)
        runs.append(trained(model, OPTIMIZERS[name](mn.param_groups(model))))
    assert difference(*runs) <= 1e-12
    assert runs[0][-1] < runs[0][0]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.floats(0, 1.5))
def test_momentum_is_invariant_for_all_elements(seed, spread):
    runs = []
    for s in (None, matrices((4, 4), seed, spread)):
        model = made(Product, LORA, s)
        runs.append(trained(model, OPTIMIZERS["sgd"](mn.param_groups(model)), 10))
    assert difference(*runs) <= 1e-11


def test_plain_adamw_sees_the_factors():
    runs = []
    for s in (None, matrices((4, 4), 0)):
        model = made(Product, LORA, s)
        mn.undeclare(model, "left.weight")
        runs.append(trained(model, torch.optim.AdamW(model.parameters(), lr=0.01)))
    assert difference(*runs) > 1e-2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_factor_that_starts_at_zero_is_moved(name):
    model = made(Product, LORA)
    nn.init.zeros_(model.left.weight)
    start = model.right.weight.detach().clone()
    optimizer = OPTIMIZERS[name](mn.param_groups(model, weight_decay=0.0))
    losses = trained(model, optimizer, 1)
    assert torch.equal(model.right.weight, start)
    assert model.left.weight.abs().max() > 0
    losses += trained(model, optimizer)
    assert losses[-1] < losses[0]
    assert max(losses) <= 1.5 * losses[0]


def factors(seed, heads=2, rows=(7, 5), r=3):
    source = torch.Generator().manual_seed(seed)
    given = {"generator": source, "dtype": torch.float64}
    return tuple(torch.randn(heads, n, r, **given) for n in rows)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), small=st.floats(-4, 0), length=st.floats(-4, 2))
def test_the_second_order_of_a_step_is_bounded(seed, small, length):
    a, b = factors(seed)
    a = a * torch.tensor([1.0, 1.0, 10**small], dtype=torch.float64)
    u, v = (10**length * w for w in factors(seed + 1))
    of_a, of_b = frame(a), frame(b)
    du, dv = retract(of_a, of_b, u, v)
    sizes = [torch.linalg.matrix_norm(w, 2) for w in (du @ dv.mT, u, v)]
    assert (sizes[0] <= torch.maximum(*map(torch.linalg.matrix_norm, (u, v))) * (1 + 1e-6)).all()
    s = matrices((2, 3, 3), seed)
    other_a, other_b = a @ s, torch.linalg.solve(s, b.mT).mT
    same_a, same_b = frame(other_a, of_a.q), frame(other_b, of_b.q)
    ends = [(a + du) @ (b + dv).mT]
    du, dv = retract(same_a, same_b, u, v)
    ends.append((other_a + du) @ (other_b + dv).mT)
    assert torch.allclose(*ends, rtol=1e-5, atol=1e-5 * float(ends[0].abs().max()))


def sheared(size):
    """A matrix that makes ‖A‖ ‖B‖ about size² times as large, beside the same product."""
    s = torch.eye(4, dtype=torch.float64)
    s[0, 1], s[2, 3] = size, -size
    return s


def conditioning(model):
    left, right = (w.weight.detach().double() for w in (model.left, model.right))
    return float(left.norm() * right.norm() / (left @ right).norm())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_product_that_loses_digits_is_split_anew(name):
    """In float32 a run from such factors then is that of float64, momentum included."""
    double = made(Product, LORA, sheared(200.0))
    single = copy.deepcopy(double).float()
    runs = []
    for model in (double, single):
        optimizer = OPTIMIZERS[name](mn.param_groups(model))
        before = conditioning(model)
        runs.append(trained(model, optimizer, 30))
        assert before > 1e4
    assert conditioning(double) > 1e3  # float64 has digits to spare, and keeps the split
    assert conditioning(single) < 10
    assert difference(*runs) < 5e-4


def test_only_heads_that_lose_digits_are_split_anew():
    a, b = (w.float() for w in factors(0))
    s = torch.eye(3).repeat(2, 1, 1)
    s[1, 0, 2] = 3e3
    other = torch.linalg.solve(s, b.mT).mT
    where = loses_digits(frame(a @ s), frame(other))
    assert where.tolist() == [False, True]
    new_a, new_b = rebalance(a @ s, other, where)
    assert torch.equal(new_a[0], a[0])
    assert torch.equal(new_b[0], other[0])
    assert torch.allclose(new_a[1].mT @ new_a[1], new_b[1].mT @ new_b[1], atol=1e-4)
    whole = (a @ s).double() @ other.double().mT
    assert torch.allclose((new_a @ new_b.mT)[1].double(), whole[1], rtol=1e-4, atol=1e-4)
    zero = torch.zeros_like(b)
    assert loses_digits(frame(a), frame(zero)).tolist() == [False, False]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_gradient_represents_the_differential_in_an_invariant_metric(seed):
    pair = mn.Pair("a", "b", heads=2, shared=(1, 0))
    a, b = factors(seed)
    x, g, u = (
        tuple(f.join(w) for f, w in zip(pair.factors, factors(seed + i), strict=True))
        for i in range(3)
    )
    gradient = pair.gradient(x, g)
    dots = sum((p * q).sum() for p, q in zip(g, u, strict=True))
    assert torch.allclose(pair.inner(x, gradient, u), dots, rtol=1e-9)
    s = matrices((2, 3, 3), seed)
    assert torch.allclose(pair.inner(pair.act(x, s), pair.act(u, s)), pair.inner(x, u), rtol=1e-9)
    assert torch.allclose(pair.product(*pair.act(x, s)), pair.product(*x), rtol=1e-9, atol=1e-10)
    of_a = frame(a)
    left = pair.factors[1].beside(a)
    y = pair.factors[1].join(b)
    assert torch.allclose(left.inner(y, y), of_a.enter(b).square().sum())


@pytest.mark.parametrize("name", ["sgd", "constrained adamw"])
def test_runs_resume_from_copies_and_checkpoints(name):
    model = made(Product, LORA)
    optimizer = OPTIMIZERS[name](mn.param_groups(model))
    trained(model, optimizer, 5)
    both = copy.deepcopy((model, optimizer))
    again = made(Product, LORA, seed=5)
    again.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())))
    resumed = OPTIMIZERS[name](mn.param_groups(again))
    resumed.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    expected = trained(model, optimizer, 5)
    assert trained(*both, 5) == expected
    assert trained(again, resumed, 5) == expected


def test_descriptions_restore_pairs_in_larger_models():
    model = nn.ModuleList([Product(), Product()])
    mn.declare(model[1], LORA)
    described = mn.spec(model)
    assert set(described) == {"1.left.weight", "1.right.weight"}
    again = nn.ModuleList([Product(), Product()])
    mn.declare_from(again, described)
    assert mn.spec(again) == described == mn.spec(pickle.loads(pickle.dumps(model)))
    assert mn.Pair.from_spec(HEADS.spec()) == HEADS == eval(repr(HEADS), {"Pair": mn.Pair})
    mn.undeclare(again, "1.right.weight")
    assert mn.manifolds(again) == {}


def test_a_state_of_torch_is_taken_over():
    model = made(Product, LORA)
    plain = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    with pytest.warns(mn.ForeignOptimizerWarning):
        trained(model, plain, 3)
    optimizer = OPTIMIZERS["sgd"](mn.param_groups(model))
    optimizer.load_state_dict(plain.state_dict())
    trained(model, optimizer, 3)


def test_a_frozen_partner_is_a_constant():
    model = made(Product, LORA)
    model.right.weight.requires_grad_(False)
    start = model.right.weight.clone()
    losses = trained(model, mn.RiemannianSGD([model.left.weight], lr=0.1, momentum=0.9))
    assert losses[-1] < losses[0]
    assert torch.equal(model.right.weight, start)


@pytest.mark.parametrize("name", ["sgd", "constrained sgd"])
def test_one_factor_alone_is_refused(name):
    model = made(Product, LORA)
    optimizer = OPTIMIZERS[name]([("left.weight", model.left.weight)])
    before = model.left.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"left\.weight .* not in this optimizer"):
        trained(model, optimizer, 1)
    assert torch.equal(model.left.weight, before)


def test_what_is_no_pair_is_refused():
    model = Product()
    for arguments, message in [
        ({"left": "a", "right": "a"}, "twice"),
        ({"left": "a", "right": "b", "heads": 0}, "heads"),
        ({"left": "a", "right": "b", "shared": (1, 2)}, "dim"),
    ]:
        with pytest.raises(ValueError, match=message):
            mn.Pair(**arguments)
    with pytest.raises(TypeError):
        mn.Pair("a", 3)
    for pair, message in [
        (mn.Pair("left.weight", "right.weight", shared=(0, 0)), "smaller r|sizes 12 and 4"),
        (mn.Pair("left.weight", "right.weight", heads=3), "do not divide"),
        (mn.Pair("left.weight", "nothing.weight"), "no submodule"),
    ]:
        with pytest.raises(ValueError, match=message):
            mn.declare(model, pair)
    with pytest.raises(ValueError, match="smaller r"):
        mn.declare(Product(rank=11), LORA)
    with pytest.raises(TypeError):
        mn.declare(model, LORA, mn.Oblique())
    with torch.no_grad():
        model.left.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        mn.declare(model, LORA)
    assert mn.manifolds(model) == {}
    other = Product()
    mn.declare(other, "left.weight", mn.Oblique(), project=True)
    with pytest.raises(ValueError, match="declared on"):
        mn.declare(other, LORA)
    base = torch.optim.SGD(mn.param_groups(made(Product, LORA)), lr=0.1)
    with pytest.raises(ValueError, match="angle"):
        mn.constrain(base, length="angle")


class TestOneFactorBesideTheOther(
    PointLaws, MetricLaws, GeodesicLaws, TransportLaws, RetractionLaws
):
    """The flat geometry of a factor while its partner is held."""

    manifold = mn.Pair("a", "b", heads=2).factors[0].beside(factors(0)[1])
    shape = (7, 6)
