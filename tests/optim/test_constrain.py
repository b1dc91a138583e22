"""Any optimizer on declared weights: invariance, formulas, life as an ordinary optimizer."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import schedulefree
import torch
from cases import MANIFOLDS, over, point, source
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import manifoldnet as mn
from manifoldnet.foreign import ForeignOptimizerWarning
from manifoldnet.optim import Muon

warnings.filterwarnings("ignore", message="adamp")


class Lion(Optimizer):
    """w ← w − η (sign(β₁ m + (1 − β₁) g) + λ w), m ← β₂ m + (1 − β₂) g."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_((0.9 * m + 0.1 * p.grad).sign_(), alpha=group["lr"])
                m.mul_(0.99).add_(p.grad, alpha=0.01)
        return loss


def _schedule_free(params: Any) -> Optimizer:
    optimizer = schedulefree.AdamWScheduleFree(params, lr=1e-2, warmup_steps=5)
    optimizer.train()
    return optimizer


class Net(nn.Module):
    """Rows in front of batch normalization: scaling them changes nothing."""

    def __init__(self, conv: bool = False) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(1, 6, 3, bias=False) if conv else nn.Linear(9, 6, bias=False)
        self.norm = (nn.BatchNorm2d if conv else nn.BatchNorm1d)(6, eps=1e-38)
        self.second = nn.Linear(6, 5, bias=False)
        self.norm2 = nn.BatchNorm1d(5, eps=1e-38)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.hidden(x)))
        h = h if h.ndim == 2 else h.mean((2, 3))
        return self.head(torch.tanh(self.norm2(self.second(h))))


DECLARED = ("hidden.weight", "second.weight")


def net(seed: int = 0, conv: bool = False, dtype: torch.dtype = torch.float64) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(conv).to(dtype)


def batch(seed: int, conv: bool = False, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    shape = (16, 1, 5, 5) if conv else (16, 9)
    x = torch.randn(shape, generator=source(seed), dtype=torch.float64).to(dtype)
    return x, torch.randint(3, (16,), generator=source(seed + 1000))


def declared(manifold: mn.Manifold, model: Net | None = None, **options: Any) -> Net:
    model = net(**options) if model is None else model
    for name in DECLARED:
        mn.declare(model, name, manifold, project=True)
    return model


def backward(model: nn.Module, step: int = 0, conv: bool = False) -> Tensor:
    parameter = next(model.parameters())
    x, y = batch(step, conv, parameter.dtype)
    model.zero_grad()
    loss = cross_entropy(model(x), y)
    loss.backward()
    return loss.detach()


def train(model: nn.Module, optimizer: Optimizer, steps: int, conv: bool = False) -> list[float]:
    losses = []
    for i in range(steps):
        losses.append(float(backward(model, i % 7, conv)))
        optimizer.step()
    return losses


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def groups(model: nn.Module, decay: float = 0.0) -> list[dict[str, Any]]:
    return mn.param_groups(model, weight_decay=decay)


def matrices(model: Net) -> list[Tensor]:
    return [model.hidden.weight, model.second.weight]


BASES: dict[str, Callable[[Net], Optimizer]] = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.1),
    "AdamW, foreach": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, foreach=True),
    "AdamW, fused": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, fused=True),
    "AdamW, formulas": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, foreach=False),
    "Muon": lambda m: Muon(matrices(m), lr=2e-2),
    "Lion": lambda m: Lion(m.parameters(), lr=3e-3, weight_decay=0.1),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=3e-2),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=3e-3),
    "NAdam": lambda m: torch.optim.NAdam(m.parameters(), lr=1e-2),
    "Rprop": lambda m: torch.optim.Rprop(m.parameters(), lr=1e-3),
    "schedule-free": lambda m: _schedule_free(m.parameters()),
}
each_base = pytest.mark.parametrize("make", BASES.values(), ids=BASES)


def scaled(model: Net) -> Net:
    """The same network from rows scaled by e^{4 N(0, 1)}."""
    other = copy.deepcopy(model)
    generator = source(5)
    with torch.no_grad():
        for p in matrices(other):
            factors = torch.randn(len(p), generator=generator, dtype=torch.float64)
            p.mul_((4 * factors).exp().view(-1, *[1] * (p.ndim - 1)))
    return other


def plain_copy(model: Net) -> Net:
    other = net()
    other.load_state_dict(model.state_dict())
    return other


# --- the invariance table -------------------------------------------------------------------------


@each_base
def test_a_constrained_run_does_not_see_the_scale_of_rows(make: Callable[[Net], Optimizer]) -> None:
    def apart(constrained: bool) -> float:
        runs = []
        for model in (net(), scaled(net())):
            if constrained:
                declared(mn.ScaledEuclidean(), model)
            optimizer = make(model)
            if constrained:
                mn.constrain(optimizer)
            runs.append(train(model, optimizer, 100))
        return max(abs(a - b) for a, b in zip(*runs, strict=True))

    assert apart(constrained=True) <= 1e-12
    assert apart(constrained=False) >= 1e-2


@pytest.mark.parametrize("base", ["AdamW", "Muon"])
def test_kernels_do_not_show_their_scale_either(base: str) -> None:
    runs = []
    for model in (net(conv=True), scaled(net(conv=True))):
        optimizer = mn.constrain(BASES[base](declared(mn.ScaledEuclidean(), model)))
        runs.append(train(model, optimizer, 30, conv=True))
    assert max(abs(a - b) for a, b in zip(*runs, strict=True)) <= 1e-12


def test_weight_decay_under_the_scaled_metric_shrinks_in_proportion() -> None:
    model = declared(mn.ScaledEuclidean())
    optimizer = mn.constrain(torch.optim.AdamW(matrices(model), lr=1e-2, weight_decay=1.0))
    before = model.hidden.weight.detach().clone()
    for p in matrices(model):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.allclose(model.hidden.weight, before * math.exp(-1e-2), rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": False}])
def test_weight_decay_beside_a_sphere(options: dict[str, Any]) -> None:
    """Weights on a sphere and under the scaled metric in one group."""
    model = net()
    mn.declare(model, "hidden.weight", mn.Oblique(), project=True)
    mn.declare(model, "second.weight", mn.ScaledEuclidean())
    optimizer = torch.optim.AdamW(matrices(model), lr=1e-2, weight_decay=1.0, **options)
    mn.constrain(optimizer)
    before = [p.detach().clone() for p in matrices(model)]
    for p in matrices(model):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(model.hidden.weight, before[0])
    assert torch.allclose(model.second.weight, before[1] * math.exp(-1e-2), rtol=1e-12)


def test_weight_decay_on_a_sphere_has_no_effect() -> None:
    runs = []
    for decay in (0.0, 1.0):
        model = declared(mn.Oblique())
        optimizer = torch.optim.AdamW(matrices(model), lr=1e-2, weight_decay=decay)
        runs.append(train(model, mn.constrain(optimizer), 5))
    assert runs[0] == runs[1]


# --- formulas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("manifold", [mn.Oblique(), mn.Oblique(1), mn.Sphere(2.0, "geodesic")])
def test_sgd_is_riemannian_sgd_bit_for_bit(manifold: mn.Manifold) -> None:
    ours, theirs = declared(manifold), declared(manifold)
    train(ours, mn.RiemannianSGD(groups(ours), lr=0.1, foreach=False), 20)
    train(theirs, mn.constrain(torch.optim.SGD(groups(theirs), lr=0.1, foreach=False)), 20)
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        assert torch.equal(a, b)


@over([row for row in MANIFOLDS if not isinstance(row[0], mn.Polar)])
def test_sgd_is_riemannian_sgd(manifold: mn.Manifold, shape: tuple[int, ...]) -> None:
    ends = []
    for make in (mn.RiemannianSGD, lambda *a, **k: mn.constrain(torch.optim.SGD(*a, **k))):
        module = nn.Module()
        module.weight = nn.Parameter(point(manifold, shape, 1))
        if not isinstance(manifold, mn.Euclidean):
            mn.declare(module, "weight", manifold)
        else:  # beside a weight that is declared
            module.other = nn.Parameter(point(mn.Oblique(), (2, 3), 1))
            mn.declare(module, "other", mn.Oblique())
        optimizer = make(module.parameters(), lr=0.05)
        for i in range(5):
            for p in module.parameters():
                on = mn.manifolds(module).get("weight" if p is module.weight else "other", manifold)
                g = torch.randn(p.shape, generator=source(i), dtype=p.dtype)
                p.grad = on.frame(p.detach()).enter(g) if on.scale_invariant else g
            optimizer.step()
        ends.append(module.weight.detach())
    assert torch.allclose(*ends, rtol=1e-12, atol=1e-13)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm()


@pytest.mark.parametrize("base", ["AdamH", "MuonH"])
def test_the_hyperball_is_an_angle_without_tangent_spaces(base: str) -> None:
    """W ← R N(W − η R N(u)), u the step of Adam or Muon."""
    model, rate = net(), 2e-2
    radius = float(model.hidden.weight.detach().norm())
    mn.declare(model, "hidden.weight", mn.Sphere(radius))
    mirror = nn.Parameter(model.hidden.weight.detach().clone())

    def make(params: list[Tensor]) -> Optimizer:
        if base == "AdamH":
            return torch.optim.Adam(params, lr=rate)
        return Muon(params, lr=rate, weight_decay=0.0)

    optimizer = mn.constrain(make([model.hidden.weight]), length="angle", tangent=False)
    inner = make([mirror])  # u: its step from zero
    w = mirror.detach().clone()
    for i in range(100):
        g = torch.randn(w.shape, generator=source(i), dtype=w.dtype)
        model.hidden.weight.grad, mirror.grad = g.clone(), g.clone()
        optimizer.step()
        with torch.no_grad():
            mirror.zero_()
        inner.step()
        w = radius * _unit(w + rate * radius * _unit(mirror.detach()))
        assert torch.allclose(model.hidden.weight.detach(), w, rtol=1e-14, atol=1e-15)


def test_muon_under_the_scaled_metric_is_the_intrinsic_one() -> None:
    """W ← W − η D msign(D G), D the norms of rows, with the additive retraction."""
    model = declared(mn.ScaledEuclidean(retraction="additive"))
    w = model.hidden.weight.detach().clone()
    g = torch.randn(w.shape, generator=source(1), dtype=w.dtype)
    model.hidden.weight.grad = g.clone()
    muon = Muon([model.hidden.weight], lr=0.1, momentum=0.0, weight_decay=0, adjust_lr_fn="none")
    mn.constrain(muon).step()
    d = w.norm(dim=1, keepdim=True)
    u, _, vh = torch.linalg.svd(d * g, full_matrices=False)
    assert torch.allclose(model.hidden.weight.detach(), w - 0.1 * d * (u @ vh), atol=1e-14)


@pytest.mark.parametrize(
    ("manifold", "angle"),
    [
        (mn.Oblique(retraction="geodesic"), 0.03),
        (mn.Oblique(), math.atan(0.03)),
        (mn.Sphere(3.0, "geodesic"), 0.03),
        (mn.Oblique(1, 0.5, "geodesic"), 0.03),
    ],
)
@pytest.mark.parametrize("base", ["AdamW", "Muon", "Lion"])
def test_an_angle_is_the_angle_of_each_slice(
    base: str, manifold: mn.Manifold, angle: float
) -> None:
    model = declared(manifold)
    optimizer = mn.constrain(BASES[base](model), length="angle")
    for group in optimizer.param_groups:
        group["lr"] = 0.03
    before = [p.detach().clone() for p in matrices(model)]
    backward(model)
    optimizer.step()
    for p, x in zip(matrices(model), before, strict=True):
        inner = manifold.slices.inner
        cos = inner(p.detach(), x) / inner(x, x)
        assert torch.allclose(cos.acos(), torch.full_like(cos, angle), rtol=1e-6)


def test_a_floor_shortens_the_steps_of_rows_that_hardly_move() -> None:
    def moved(floor: float) -> Tensor:
        model = declared(mn.Oblique(retraction="geodesic"))
        optimizer = torch.optim.SGD([model.hidden.weight], lr=0.1)
        mn.constrain(optimizer, length="angle", floor=floor)
        x = model.hidden.weight.detach().clone()
        g = mn.Oblique().proju(x, torch.randn(x.shape, generator=source(2), dtype=x.dtype))
        g = g / g.norm(dim=1, keepdim=True)
        g[0] *= 1e-3
        model.hidden.weight.grad = g
        optimizer.step()
        return (model.hidden.weight.detach() * x).sum(1).acos()

    assert torch.allclose(moved(0.0), torch.full((6,), 0.1, dtype=torch.float64), rtol=1e-6)
    angles = moved(0.1)
    mean = math.sqrt((5 + 1e-6) / 6)
    assert torch.allclose(angles[1:], angles.new_tensor(0.1), rtol=1e-6)
    assert float(angles[0]) == pytest.approx(0.1 * 1e-3 / (0.1 * mean), rel=1e-4)


def test_the_brake_holds_norms_under_the_scaled_metric() -> None:
    for brake, kept in ((0.0, False), (1.0, True)):
        model = declared(mn.ScaledEuclidean())
        optimizer = mn.constrain(torch.optim.Adam(matrices(model), lr=0.1), brake=brake)
        norms = model.hidden.weight.detach().norm(dim=1)
        for p in matrices(model):
            p.grad = torch.randn(p.shape, generator=source(3), dtype=p.dtype)
        optimizer.step()
        same = torch.allclose(model.hidden.weight.detach().norm(dim=1), norms, rtol=1e-12)
        assert same is kept


def test_unprojected_displacements_are_projected_to_the_set() -> None:
    """`tangent="gradient"`: x ← (x + v)/‖x + v‖ with the tangent gradient (AngularMuown)."""
    model = declared(mn.Oblique())
    x = model.hidden.weight.detach().clone()
    g = torch.randn(x.shape, generator=source(4), dtype=x.dtype)
    model.hidden.weight.grad = g
    muon = Muon([model.hidden.weight], lr=0.1, momentum=0.0, weight_decay=0, adjust_lr_fn="none")
    mn.constrain(muon, tangent="gradient").step()
    u, _, vh = torch.linalg.svd(mn.Oblique().proju(x, g), full_matrices=False)
    end = x - 0.1 * u @ vh
    assert torch.allclose(model.hidden.weight, end / end.norm(dim=1, keepdim=True), atol=1e-14)


# --- every manifold -------------------------------------------------------------------------------


@over([row for row in MANIFOLDS if not isinstance(row[0], mn.Euclidean | mn.Polar)])
@pytest.mark.parametrize("foreach", [None, False])
def test_weights_stay_on_their_manifolds_and_descend(
    manifold: mn.Manifold, shape: tuple[int, ...], foreach: bool | None
) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(point(manifold, shape, 1))
    target = point(manifold, shape, 2)
    mn.declare(module, "weight", manifold)
    optimizer = mn.constrain(torch.optim.AdamW([module.weight], lr=0.01, foreach=foreach))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (module.weight - target).square().sum()
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    mn.verify(module)
    assert losses[-1] < losses[0]


def test_the_paths_agree() -> None:
    scaled = (mn.ScaledEuclidean(1), mn.ScaledEuclidean(retraction="additive"))
    for manifold in (mn.Oblique(), mn.Oblique(1), *scaled, mn.Sphere(1.5)):
        ends = []
        for options in ({}, {"foreach": False}, {"fused": True}):
            model = declared(manifold)
            optimizer = torch.optim.AdamW(matrices(model), lr=1e-2, weight_decay=0.3, **options)
            train(model, mn.constrain(optimizer), 10)
            ends.append(torch.cat([p.flatten() for p in weights(model)]))
        assert torch.allclose(ends[0], ends[1], rtol=1e-10, atol=1e-13)
        assert torch.allclose(ends[0], ends[2], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("foreach", [None, False])
def test_gradients_are_laid_out_as_their_weights(foreach: bool | None) -> None:
    """torch's fused functions ignore the strides of gradients."""
    ends = []
    for order in (torch.contiguous_format, torch.channels_last):
        w = point(mn.Oblique(), (4, 3, 2, 2), 1).contiguous(memory_format=order)
        module = nn.Module()
        module.weight = nn.Parameter(w)
        mn.declare(module, "weight", mn.Oblique())
        fused = None if foreach is False else True
        optimizer = torch.optim.AdamW([module.weight], lr=0.1, fused=fused, foreach=foreach)
        mn.constrain(optimizer)
        for i in range(3):
            module.weight.grad = torch.randn(w.shape, generator=source(i), dtype=w.dtype)
            optimizer.step()
        ends.append(module.weight.detach())
    assert torch.allclose(*ends, rtol=1e-12)


@pytest.mark.parametrize(
    ("base", "dtype"),
    [
        pytest.param("AdamW, fused", torch.float32, marks=pytest.mark.thorough),
        pytest.param("AdamW", torch.bfloat16, marks=pytest.mark.thorough),
        *(
            pytest.param(base, dtype, marks=pytest.mark.slow)
            for base, dtype in [
                ("AdamW", torch.float32),
                ("AdamW, fused", torch.bfloat16),
                ("Muon", torch.float32),
                ("Muon", torch.bfloat16),
            ]
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [3_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_long_runs_do_not_drift(base: str, dtype: torch.dtype, steps: int) -> None:
    most = 1e-2 if dtype is torch.bfloat16 else 1e-6
    model = declared(mn.Oblique(), dtype=dtype)
    p = model.hidden.weight
    if base == "Muon":
        optimizer: Optimizer = Muon([p], lr=2e-2)
    else:
        optimizer = torch.optim.AdamW([p], lr=1e-2, fused="fused" in base)
    mn.constrain(optimizer)
    for i in range(steps):
        p.grad = torch.randn(p.shape, generator=source(i)).to(dtype)
        optimizer.step()
    assert mn.violations(model)["hidden.weight"] <= most


def test_small_steps_are_not_lost_in_half_precision() -> None:
    """The displacement itself is stepped: 1e-4 is below the rounding of a bfloat16 near 1."""
    weight = nn.Parameter(torch.full((1, 4), 0.5, dtype=torch.bfloat16))
    module = nn.Module()
    module.weight = weight
    mn.declare(module, "weight", mn.Oblique())
    optimizer = mn.constrain(torch.optim.SGD([weight], lr=1e-4))
    g = torch.tensor([[1.0, -1.0, 0.0, 0.0]], dtype=torch.bfloat16)
    weight.grad = g
    constraint = next(iter(optimizer._optimizer_step_pre_hooks.values())).__self__
    constraint.enter(optimizer)
    assert not weight.any()
    torch.optim.SGD.step.__wrapped__(optimizer)
    seen = weight.detach().clone()
    assert torch.allclose(seen.float(), -1e-4 * g.float(), rtol=1e-2)
    constraint.restore()
    assert torch.equal(weight, torch.full_like(weight, 0.5))
    assert weight.grad is g


# --- an ordinary optimizer ------------------------------------------------------------------------


def test_it_is_the_same_object_of_the_same_class_and_state() -> None:
    model, other = declared(mn.Oblique()), net()
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-2)
    plain = torch.optim.AdamW(other.named_parameters(), lr=1e-2)
    assert mn.constrain(optimizer) is optimizer
    assert type(optimizer) is torch.optim.AdamW
    train(model, optimizer, 2)
    train(other, plain, 2)
    ours, theirs = optimizer.state_dict(), plain.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert {k: v.keys() for k, v in ours["state"].items()} == {
        k: v.keys() for k, v in theirs["state"].items()
    }


def test_gradients_are_left_as_they_were() -> None:
    model = declared(mn.ScaledEuclidean())
    optimizer = mn.constrain(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    backward(model)
    grads = [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
    optimizer.step()
    for p, (grad, values) in zip(model.parameters(), grads, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, values)


def test_undeclared_parameters_move_bit_for_bit_as_without() -> None:
    model = declared(mn.Oblique())
    other = copy.deepcopy(model)
    optimizer = mn.constrain(torch.optim.AdamW(model.parameters(), lr=1e-2))
    plain = torch.optim.AdamW(other.head.parameters(), lr=1e-2)
    for m in (model, other):
        backward(m)
    optimizer.step()
    plain.step()
    assert torch.equal(model.head.weight, other.head.weight)


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (
            lambda m: torch.optim.AdamW(m.parameters()),
            r"of an optimizer with groups of \[8\] parameters \(of plain training\?\), and this is "
            r"AdamW under constrain with groups of \[2, 6\]",
        ),
        (
            lambda m: torch.optim.SGD(groups(m), momentum=0.9),
            r"kind \(it has dampening, momentum\)",
        ),
        (lambda m: mn.RiemannianAdam(groups(m)), "is of RiemannianSGD or RiemannianAdam"),
        (
            lambda m: mn.undeclare(m, "hidden.weight") or torch.optim.AdamW(groups(m)),
            r"other declarations, with groups of \[1, 7\]",
        ),
    ],
    ids=["plain", "momentum", "riemannian", "other declarations"],
)
def test_checkpoints_of_other_optimizers_are_refused(
    saved: Callable[[Any], Any], said: str
) -> None:
    other = saved(declared(mn.Oblique()))
    model = declared(mn.Oblique())
    optimizer = mn.constrain(torch.optim.AdamW(groups(model), lr=1e-2))
    train(model, optimizer, 2)
    with pytest.raises(ValueError, match=said) as raised:
        optimizer.load_state_dict(other.state_dict())
    assert "load the weights alone" in str(raised.value)
    train(model, optimizer, 1)


def test_a_checkpoint_of_a_close_relative_is_loaded() -> None:
    model = declared(mn.Oblique())
    adam = mn.constrain(torch.optim.Adam(groups(model), lr=1e-2))
    train(model, adam, 2)
    optimizer = mn.constrain(torch.optim.AdamW(groups(model), lr=1e-2))
    optimizer.load_state_dict(adam.state_dict())
    train(model, optimizer, 1)


def test_a_run_resumes_bit_for_bit() -> None:
    whole = declared(mn.ScaledEuclidean())
    optimizer = mn.constrain(torch.optim.AdamW(whole.parameters(), lr=1e-2))
    train(whole, optimizer, 5)
    other = declared(mn.ScaledEuclidean(), seed=3)
    again = mn.constrain(torch.optim.AdamW(other.parameters(), lr=1e-2))
    mn.load_state_dict(other, copy.deepcopy(whole.state_dict()))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(whole, optimizer, 5) == train(other, again, 5)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_with_their_model_step_as_the_original(way: Callable[[Any], Any]) -> None:
    model = declared(mn.Oblique())
    optimizer = mn.constrain(torch.optim.AdamW(model.parameters(), lr=1e-2))
    train(model, optimizer, 2)
    other, copied = way((model, optimizer))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ForeignOptimizerWarning)
        assert train(model, optimizer, 3) == train(other, copied, 3)
    mn.verify(other)
    again = way((other, copied))
    assert train(again[0], again[1], 2) == train(other, copied, 2)


def test_a_copy_without_its_model_refuses_by_name() -> None:
    model = declared(mn.Oblique())
    optimizer = mn.constrain(torch.optim.AdamW(model.named_parameters(), lr=1e-2))
    copied = copy.deepcopy(optimizer)
    for p in copied.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"hidden\.weight"):
        copied.step()


def test_closures_see_weights_on_their_manifolds() -> None:
    model, other = declared(mn.ScaledEuclidean()), declared(mn.ScaledEuclidean())
    optimizer = mn.constrain(torch.optim.AdamW(model.parameters(), lr=1e-2))
    reference = mn.constrain(torch.optim.AdamW(other.parameters(), lr=1e-2))
    for i in range(3):
        before = model.hidden.weight.detach().clone()

        def closure(i: int = i, before: Tensor = before) -> Tensor:
            assert torch.equal(model.hidden.weight, before)
            return backward(model, i)

        loss = optimizer.step(closure=closure) if i else optimizer.step(closure)
        assert float(loss) == float(backward(other, i))
        reference.step()
    for a, b in zip(weights(model), weights(other), strict=True):
        assert torch.equal(a, b)


def test_several_optimizers_share_a_model() -> None:
    model, other = declared(mn.Oblique()), declared(mn.Oblique())
    both = [
        mn.constrain(torch.optim.AdamW([model.hidden.weight], lr=1e-2)),
        mn.constrain(torch.optim.AdamW([model.second.weight], lr=1e-2)),
        torch.optim.AdamW([*model.norm.parameters(), *model.norm2.parameters()], lr=1e-2),
        torch.optim.AdamW(model.head.parameters(), lr=1e-2),
    ]
    one = mn.constrain(torch.optim.AdamW(other.parameters(), lr=1e-2))
    for i in range(3):
        backward(model, i)
        backward(other, i)
        for optimizer in both:
            optimizer.step()
        one.step()
    for a, b in zip(weights(model), weights(other), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("before", [True, False])
def test_schedulers_work_made_before_or_after(before: bool) -> None:
    model = declared(mn.Oblique())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if not before:
        mn.constrain(optimizer)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    if before:
        mn.constrain(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(3):
            backward(model, i)
            optimizer.step()
            scheduler.step()
    assert optimizer.param_groups[0]["lr"] < 1e-2
    mn.verify(model)


def test_a_scaler_skips_a_step_and_nothing_moves() -> None:
    model = declared(mn.Oblique(), dtype=torch.float32)
    optimizer = mn.constrain(torch.optim.AdamW(model.parameters(), lr=1e-2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    x, y = batch(0, dtype=torch.float32)
    for bad in (True, False):
        before = weights(model)
        optimizer.zero_grad()
        scaler.scale(cross_entropy(model(x), y)).backward()
        if bad:
            model.hidden.weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        same = all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
        assert same is bad
    mn.verify(model)


def test_steps_within_backward() -> None:
    model, other = declared(mn.Oblique()), declared(mn.Oblique())
    optimizers = {}
    for p in model.parameters():
        optimizer = torch.optim.SGD([p], lr=0.1)
        optimizers[p] = (
            mn.constrain(optimizer) if any(p is q for q in matrices(model)) else optimizer
        )

        def step(p: Tensor) -> None:
            optimizers[p].step()
            p.grad = None

        p.register_post_accumulate_grad_hook(step)
    one = mn.constrain(torch.optim.SGD(other.parameters(), lr=0.1))
    for i in range(2):
        x, y = batch(i)
        cross_entropy(model(x), y).backward()
    train(other, one, 2)
    for a, b in zip(weights(model), weights(other), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_groups_may_be_added_and_gradients_missing() -> None:
    model = declared(mn.Oblique())
    optimizer = mn.constrain(torch.optim.AdamW([model.hidden.weight], lr=1e-2))
    optimizer.add_param_group({"params": [model.second.weight], "lr": 1e-3})
    train(model, optimizer, 3)
    mn.verify(model)
    before = model.hidden.weight.detach().clone()
    backward(model)
    model.hidden.weight.grad = None
    optimizer.step()
    assert torch.equal(model.hidden.weight, before)


def test_it_works_under_compile() -> None:
    model, other = declared(mn.ScaledEuclidean()), declared(mn.ScaledEuclidean())
    optimizer = mn.constrain(torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9))
    one = mn.constrain(torch.optim.SGD(other.parameters(), lr=1e-2, momentum=0.9))
    step = torch.compile(optimizer.step, backend="eager")
    for i in range(3):
        backward(model, i)
        step()
    train(other, one, 3)
    for a, b in zip(weights(model), weights(other), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


# --- what an optimizer may do ---------------------------------------------------------------------


def test_a_loaded_state_brings_new_groups() -> None:
    """torch puts new groups in place, whose rates schedulers change from then on."""
    model = declared(mn.Oblique(retraction="geodesic"))
    optimizer = mn.constrain(torch.optim.SGD(matrices(model), lr=0.1), length="angle")
    train(model, optimizer, 1)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.param_groups[0]["lr"] = 0.01
    x = model.hidden.weight.detach().clone()
    train(model, optimizer, 1)
    angles = (model.hidden.weight.detach() * x).sum(1).clamp(max=1).acos()
    assert torch.allclose(angles, torch.full_like(angles, 0.01), rtol=1e-6)


class Inherits(torch.optim.SGD):
    """torch runs the hooks of both classes."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_the_step_of_a_base_class_is_the_same_step() -> None:
    torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)  # its class has hooks from now on
    runs = []
    for cls in (torch.optim.SGD, Inherits):
        model = declared(mn.ScaledEuclidean())
        runs.append(train(model, mn.constrain(cls(matrices(model), lr=0.1)), 5))
    assert torch.allclose(*map(torch.tensor, runs), rtol=1e-12)


@pytest.mark.parametrize("bad", [True, False])
def test_a_fused_step_under_a_scaler(bad: bool) -> None:
    """It divides gradients itself, and skips itself."""
    ends = []
    for scale in (None, 1024.0):
        model = declared(mn.ScaledEuclidean(), dtype=torch.float32)
        mn.undeclare(model, "second.weight")
        mn.declare(model, "second.weight", mn.Polar())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1.0, fused=True)
        mn.constrain(optimizer, gains=lambda r: torch.optim.SGD(r, lr=0.1))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        before = weights(model)
        x, y = batch(0, dtype=torch.float32)
        scaler.scale(cross_entropy(model(x), y)).backward()
        if bad and scale:
            model.hidden.weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        ends.append(before if bad and not scale else weights(model))
    for a, b in zip(*ends, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=0.0 if bad else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", ["base", "angle"])
@pytest.mark.parametrize("foreach", [None, False])
def test_without_a_step_weights_stay(dtype: torch.dtype, length: Any, foreach: Any) -> None:
    """Lion is given x/q, and the displacement from there is zero."""
    model = declared(mn.ScaledEuclidean(), dtype=dtype)
    optimizer = Lion(matrices(model), lr=0.1)
    optimizer.param_groups[0]["foreach"] = foreach
    mn.constrain(optimizer, length=length)
    before = weights(model)
    for p in matrices(model):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_decay_is_beside_the_angle() -> None:
    model = declared(mn.ScaledEuclidean())
    optimizer = torch.optim.AdamW(matrices(model), lr=0.1, weight_decay=0.01)
    mn.constrain(optimizer, length="angle")
    before = model.hidden.weight.detach().clone()
    for p in matrices(model):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.allclose(model.hidden.weight, before * math.exp(-1e-3), rtol=1e-12)


class IgnoresClosure(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step()


def test_a_closure_is_evaluated_before_the_step() -> None:
    model = declared(mn.Oblique())
    optimizer = mn.constrain(IgnoresClosure(matrices(model), lr=0.1))
    before = model.hidden.weight.detach().clone()
    optimizer.step(lambda: backward(model))
    mn.verify(model)
    assert not torch.equal(model.hidden.weight, before)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_the_first_step_of_a_copy_may_raise(way: Callable[[Any], Any]) -> None:
    model = declared(mn.ScaledEuclidean())
    model, optimizer = way((model, mn.constrain(Breaks(matrices(model), lr=0.1))))
    backward(model)
    before = [(p.detach().clone(), p.grad) for p in matrices(model)]
    with pytest.raises(KeyError):
        optimizer.step()
    for p, (x, grad) in zip(matrices(model), before, strict=True):
        assert torch.equal(p, x)
        assert p.grad is grad


def test_steps_go_on_after_a_refused_reshape() -> None:
    model, other = declared(mn.Oblique()), declared(mn.Oblique())
    optimizer = mn.constrain(Reshapes(matrices(model), lr=0.1))
    backward(model)
    with pytest.raises(RuntimeError, match="shape"):
        optimizer.step()
    optimizers = []
    for m in (model, other):
        optimizers.append(mn.constrain(torch.optim.SGD(matrices(m), lr=0.1)))
    assert train(model, optimizers[0], 3) == train(other, optimizers[1], 3)


# --- bad input ------------------------------------------------------------------------------------


class Breaks(torch.optim.SGD):
    """Moves the first weight, then raises."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            self.param_groups[0]["params"][0].add_(1.0)
        raise KeyError("midway")


class Reshapes(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        p = self.param_groups[0]["params"][0]
        p.data = p.data[:-1]


class Twice(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            closure()
            closure()


@pytest.mark.parametrize(
    ("cls", "error", "closure"),
    [(Breaks, KeyError, False), (Reshapes, RuntimeError, False), (Twice, RuntimeError, True)],
)
def test_a_step_that_raises_leaves_everything_as_it_was(
    cls: type[Optimizer], error: type[Exception], closure: bool
) -> None:
    model = declared(mn.ScaledEuclidean())
    optimizer = mn.constrain(cls(matrices(model), lr=0.1))
    backward(model)
    before = [(p.detach().clone(), p.grad, p.grad.clone()) for p in matrices(model)]
    with pytest.raises(error):
        optimizer.step((lambda: None) if closure else None)
    for p, (x, grad, values) in zip(matrices(model), before, strict=True):
        assert torch.equal(p, x)
        assert p.grad is grad
        assert torch.equal(grad, values)


class Wrapper(torch.optim.Optimizer):
    """An optimizer that hands another one's steps on, as accelerate's does."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def _bad() -> Iterator[Any]:
    model = declared(mn.Oblique())
    sgd = lambda **k: torch.optim.SGD(matrices(model), lr=0.1, **k)  # noqa: E731
    yield "no optimizer", lambda: mn.constrain(model), TypeError
    yield "a wrapper", lambda: mn.constrain(Wrapper(sgd())), TypeError
    yield "not declared", lambda: mn.constrain(torch.optim.SGD(model.head.parameters())), ValueError
    yield "twice", lambda: mn.constrain(mn.constrain(sgd())), ValueError
    yield "LBFGS", lambda: mn.constrain(torch.optim.LBFGS(matrices(model))), ValueError
    yield "Riemannian", lambda: mn.constrain(mn.RiemannianSGD(matrices(model))), ValueError
    yield "coupled", lambda: mn.constrain(sgd(weight_decay=0.1)), ValueError
    yield "length", lambda: mn.constrain(sgd(), length="arc"), ValueError
    yield "tangent", lambda: mn.constrain(sgd(), tangent="no"), ValueError
    yield "floor", lambda: mn.constrain(sgd(), floor=-1.0, length="angle"), ValueError
    yield "floor of the base's length", lambda: mn.constrain(sgd(), floor=0.1), ValueError
    yield "brake", lambda: mn.constrain(sgd(), brake=2.0), ValueError
    yield "brake on spheres", lambda: mn.constrain(sgd(), brake=0.5), ValueError


@pytest.mark.parametrize(("call", "error"), [pytest.param(c, e, id=name) for name, c, e in _bad()])
def test_bad_input_is_refused(call: Callable[[], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        call()


@pytest.mark.filterwarnings("ignore:.*duplicate parameters")
def test_a_weight_that_is_there_twice_is_refused() -> None:
    model = declared(mn.Oblique())
    optimizer = torch.optim.SGD([model.hidden.weight, model.hidden.weight], lr=0.1)
    with pytest.raises(ValueError, match="twice"):
        mn.constrain(optimizer)


def test_a_weight_off_its_manifold_is_refused() -> None:
    model = declared(mn.Oblique())
    with torch.no_grad():
        model.hidden.weight.mul_(2)
    with pytest.raises(ValueError, match="row 0"):
        mn.constrain(torch.optim.SGD(model.parameters(), lr=0.1))


def test_sparse_gradients_are_refused_before_anything_moves() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 3, bias=False))
    mn.declare(model, "0.weight", mn.Oblique(), project=True)
    mn.declare(model, "1.weight", mn.Oblique(), project=True)
    optimizer = mn.constrain(torch.optim.SGD(model.parameters(), lr=0.1))
    model(torch.tensor([1, 2])).sum().backward()
    before = weights(model)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    for a, b in zip(before, weights(model), strict=True):
        assert torch.equal(a, b)


def test_decay_that_a_schedule_turns_on_is_refused_at_the_step() -> None:
    model = declared(mn.Oblique())
    optimizer = mn.constrain(torch.optim.Adam(model.parameters(), lr=0.1))
    optimizer.param_groups[0]["weight_decay"] = 0.1
    backward(model)
    before = weights(model)
    with pytest.raises(ValueError, match="weight_decay"):
        optimizer.step()
    for a, b in zip(before, weights(model), strict=True):
        assert torch.equal(a, b)


# --- gains and directions -------------------------------------------------------------------------


def _adam(lr: float) -> Callable[[list[Tensor]], Optimizer]:
    return lambda gains: torch.optim.Adam(gains, lr=lr)


def test_gains_and_directions_step_apart() -> None:
    """x = r û: û by the optimizer on its sphere, r by an ordinary one, from the same gradient."""
    model = declared(mn.Polar())
    x = model.hidden.weight.detach().clone()
    r, u = x.norm(dim=1, keepdim=True), x / x.norm(dim=1, keepdim=True)
    optimizer = torch.optim.SGD([model.hidden.weight], lr=0.1)
    mn.constrain(optimizer, gains=lambda r: torch.optim.SGD(r, lr=0.01))
    for i in range(20):
        g = torch.randn(x.shape, generator=source(i), dtype=x.dtype)
        model.hidden.weight.grad = g
        optimizer.step()
        along = (g * u).sum(1, keepdim=True)
        v = u - 0.1 * r * (g - along * u)
        r, u = r - 0.01 * along, v / v.norm(dim=1, keepdim=True)
        assert torch.allclose(model.hidden.weight, r * u, rtol=1e-12, atol=1e-14)


def test_a_gain_that_crosses_zero_carries_its_direction_on() -> None:
    weight = nn.Parameter(torch.tensor([[0.01, 0.0]], dtype=torch.float64))
    module = nn.Module()
    module.weight = weight
    mn.declare(module, "weight", mn.Polar())
    optimizer = mn.constrain(
        torch.optim.SGD([weight], lr=0.0), gains=lambda r: torch.optim.SGD(r, lr=0.1, momentum=0.9)
    )
    r, b = 0.01, 0.0
    for i in range(4):
        weight.grad = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        optimizer.step()
        b = 1.0 if not i else 0.9 * b + 1.0
        r -= 0.1 * b
        assert torch.allclose(weight, torch.tensor([[r, 0.0]], dtype=torch.float64))


def test_rows_of_zero_take_their_direction_from_the_first_gradient() -> None:
    weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    module = nn.Module()
    module.weight = weight
    mn.declare(module, "weight", mn.Polar())
    optimizer = mn.constrain(torch.optim.AdamW([weight], lr=0.1), gains=_adam(1e-2))
    g = torch.randn(2, 3, generator=source(0), dtype=torch.float64)
    weight.grad = g.clone()
    optimizer.step()
    assert torch.allclose(weight, -1e-2 * g / g.norm(dim=1, keepdim=True), rtol=1e-6)


def test_gains_are_part_of_checkpoints_and_copies() -> None:
    def made(seed: int) -> tuple[Net, Optimizer]:
        model = declared(mn.Polar(), seed=seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return model, mn.constrain(optimizer, gains=_adam(1e-2))

    whole, optimizer = made(0)
    train(whole, optimizer, 5)
    other, again = made(3)
    other.load_state_dict(copy.deepcopy(whole.state_dict()))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    copied, third = copy.deepcopy((whole, optimizer))
    runs = [train(*pair, 5) for pair in ((whole, optimizer), (other, again), (copied, third))]
    assert runs[0] == runs[1] == runs[2]


def test_gains_without_a_gradient_stand_still() -> None:
    model = declared(mn.Polar())
    optimizer = torch.optim.SGD(matrices(model), lr=0.1)
    mn.constrain(optimizer, gains=lambda r: torch.optim.SGD(r, lr=0.1, momentum=0.9))
    train(model, optimizer, 2)
    backward(model)
    model.second.weight.grad = None
    before = model.second.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.second.weight, before)


def test_small_steps_of_gains_add_up_in_half_precision() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16))
    module = nn.Module()
    module.weight = weight
    mn.declare(module, "weight", mn.Polar())
    optimizer = torch.optim.SGD([weight], lr=0.0)
    mn.constrain(optimizer, gains=lambda r: torch.optim.SGD(r, lr=1e-3))
    for _ in range(200):
        weight.grad = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16)
        optimizer.step()
    assert float(weight.detach()[0, 0]) == pytest.approx(0.8, abs=1e-2)


def test_gains_in_groups_are_all_saved() -> None:
    model = declared(mn.Polar())
    optimizer = torch.optim.SGD(matrices(model), lr=0.1)
    mn.constrain(optimizer, gains=lambda r: torch.optim.SGD([{"params": [p]} for p in r], lr=0.1))
    train(model, optimizer, 1)
    assert len(optimizer.state_dict()["gains"]["values"]) == 2
    mn.declare(nn.Linear(3, 2), "weight", mn.Oblique(), project=True)
    train(model, optimizer, 1)


@pytest.mark.parametrize("polar", [True, False])
def test_a_checkpoint_without_gains_says_so(polar: bool) -> None:
    def made(polar: bool) -> Optimizer:
        model = declared(mn.Polar() if polar else mn.Oblique())
        gains = _adam(0.1) if polar else None
        return mn.constrain(torch.optim.SGD(matrices(model), lr=0.1), gains=gains)

    with pytest.warns(UserWarning, match="gains"):
        made(polar).load_state_dict(made(not polar).state_dict())


def test_gains_need_weights() -> None:
    model = declared(mn.Oblique())
    with pytest.raises(ValueError, match="gains"):
        mn.constrain(torch.optim.SGD(matrices(model)), gains=_adam(0.1))


def test_gains_need_an_optimizer() -> None:
    model = declared(mn.Polar())
    with pytest.raises(ValueError, match="gains"):
        mn.constrain(torch.optim.AdamW(model.parameters()))
