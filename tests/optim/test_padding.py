"""Slices that are declared to stay zero, on every path of a step, and the padding of embeddings."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from cases import ZEROED, apart, few, over, point, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet.optim.step import slice_geometry

PATHS: dict[str, dict[str, Any]] = {
    "reference": {"foreach": False},
    "torch": {},
    "kernel": {"fused": True},
}
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (mn.RiemannianSGD, {}),
    "momentum": (mn.RiemannianSGD, {"momentum": 0.9}),
    "nesterov": (mn.RiemannianSGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (mn.RiemannianAdam, {}),
    "amsgrad": (mn.RiemannianAdam, {"amsgrad": True, "slice_scale": "rms", "eps": 0.0}),
}
PADDED = [mn.Oblique(zero_slices=(0,)), mn.ScaledEuclidean(zero_slices=(0,))]

each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
each_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)
each_padded = pytest.mark.parametrize("manifold", PADDED, ids=str)


def _run(
    manifold: mn.Manifold, x: Tensor, seed: int, kind: str, path: dict[str, Any], zero: float
) -> tuple[Tensor, dict[str, Any]]:
    """A weight after some steps, with gradients at the zero slices that are `zero` as large."""
    module = nn.Module()
    module.weight = nn.Parameter(x.clone())
    mn.declare(module, "weight", manifold)
    make, options = OPTIMIZERS[kind]
    optimizer = make(module.parameters(), lr=0.02, **options, **path)
    source = torch.Generator().manual_seed(seed + 10**6)
    share = torch.ones(x.shape[manifold.dim], dtype=x.dtype)
    share[list(manifold.zero_slices)] = zero
    share = share.view([-1 if d == manifold.dim else 1 for d in range(x.ndim)])
    for _ in range(4):
        p = module.weight.detach()
        g = torch.randn(x.shape, generator=source, dtype=torch.float64).to(x)
        length = manifold.component_inner(p, manifold.egrad2rgrad(p, g)).sqrt()
        module.weight.grad = g * share / torch.where(length > 0, length, 1.0).to(x)
        optimizer.step()
    assert mn.violations(module)["weight"] < (1e-12 if x.dtype == torch.float64 else 1e-5)
    return module.weight.detach(), optimizer.state[module.weight]


@over(ZEROED)
@each_path
@given(kind=st.sampled_from(sorted(OPTIMIZERS)), seed=seeds)
@few
def test_they_stay_zero_without_a_warning_and_the_others_are_stepped(
    manifold: mn.Manifold, shape: tuple[int, ...], path: dict[str, Any], kind: str, seed: int
) -> None:
    """Whatever their gradient is; warnings are errors here."""
    x = point(manifold, shape, seed)
    weight, state = _run(manifold, x, seed, kind, path, 1.0)
    plain, _ = _run(manifold, x, seed, kind, {"foreach": False}, 0.0)
    assert apart(weight, plain, manifold.dim) < 1e-11
    for index in manifold.zero_slices:
        assert not bool(weight.select(manifold.dim, index).any())
        for key in ("momentum_buffer", "exp_avg"):
            if key in state:
                assert not bool(state[key].select(manifold.dim, index).any())
    for value in state.values():
        assert bool(torch.as_tensor(value).isfinite().all())
    moved = (weight - x).abs().amax([d for d in range(x.ndim) if d != manifold.dim]) > 0
    assert moved.tolist() == [i not in manifold.zero_slices for i in range(len(moved))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_path
@each_padded
def test_in_every_type(manifold: mn.Manifold, path: dict[str, Any], dtype: torch.dtype) -> None:
    x = manifold.projx(point(manifold, (6, 8), 0, dtype))
    for kind in OPTIMIZERS:
        if dtype == torch.bfloat16:
            module = nn.Module()
            module.weight = nn.Parameter(x.clone())
            mn.declare(module, "weight", manifold)
            optimizer = OPTIMIZERS[kind][0](module.parameters(), lr=0.02, **path)
            module.weight.grad = torch.randn_like(x)
            optimizer.step()
            weight = module.weight.detach()
        else:
            weight, _ = _run(manifold, x, 0, kind, path, 1.0)
        assert not bool(weight[0].any())
        assert bool(weight.isfinite().all())


@over(ZEROED)
def test_they_take_the_fast_paths(manifold: mn.Manifold, shape: tuple[int, ...]) -> None:
    found = slice_geometry(manifold)
    assert found is not None
    assert found.dim == manifold.dim
    assert found.radius == getattr(manifold, "radius", None)


@each_path
@each_padded
def test_another_slice_that_becomes_zero_is_named(
    manifold: mn.Manifold, path: dict[str, Any]
) -> None:
    layer = nn.Embedding(5, 4, padding_idx=0, dtype=torch.float64)
    mn.declare(layer, "weight", manifold, project=True)
    optimizer = mn.RiemannianSGD(layer.parameters(), lr=0.01, **path)

    def step() -> None:
        layer.weight.grad = torch.randn(5, 4, dtype=torch.float64)
        optimizer.step()

    step()
    with torch.no_grad():
        layer.weight[3] = 0
    with pytest.warns(mn.optim.ZeroSliceWarning, match=r"1 of 5 slices .* row 3"):
        step()
    optimizer._steps = 199  # looked at every 100 steps from then on
    optimizer._warned.clear()
    with pytest.warns(mn.optim.ZeroSliceWarning, match=r"1 of 5 slices .* row 3"):
        step()
    step()


@each_padded
def test_a_row_that_was_given_values_is_refused_when_the_run_begins(
    manifold: mn.Manifold,
) -> None:
    layer = nn.Embedding(5, 4, padding_idx=0)
    mn.declare(layer, "weight", manifold, project=True)
    with torch.no_grad():
        layer.weight[0] = 1.0
    with pytest.raises(ValueError, match=r"weight.* row 0"):
        mn.RiemannianAdam(layer.named_parameters(), lr=0.01)
    mn.project_(layer)
    assert not bool(layer.weight[0].any())
    mn.RiemannianAdam(layer.named_parameters(), lr=0.01)


@each_padded
def test_a_state_is_loaded_on_the_same_manifold_alone(manifold: mn.Manifold) -> None:
    layer = nn.Embedding(5, 4, padding_idx=0)
    mn.declare(layer, "weight", manifold, project=True)
    optimizer = mn.RiemannianAdam(layer.named_parameters(), lr=0.01)
    layer.weight.grad = torch.randn(5, 4)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    other = nn.Embedding(5, 4)
    mn.declare(other, "weight", type(manifold)(), project=True)
    with pytest.raises(ValueError, match="zero_slices"):
        mn.RiemannianAdam(other.named_parameters(), lr=0.01).load_state_dict(saved)


@pytest.mark.parametrize("how", [{}, {"length": "angle"}, {"length": "angle", "tangent": False}])
@pytest.mark.parametrize("foreach", [False, None])
@each_padded
def test_under_a_constrained_optimizer(
    manifold: mn.Manifold, foreach: bool | None, how: dict[str, Any]
) -> None:
    """Whatever the gradient of the row is, and without a warning."""
    layer = nn.Embedding(6, 4, padding_idx=0, dtype=torch.float64)
    mn.declare(layer, "weight", manifold, project=True)
    before = layer.weight.detach().clone()
    base = torch.optim.AdamW(layer.parameters(), lr=0.05, weight_decay=0.0, foreach=foreach)
    optimizer = mn.constrain(base, **how)
    for _ in range(3):
        layer.weight.grad = torch.randn(6, 4, dtype=torch.float64)
        optimizer.step()
    assert not bool(layer.weight[0].any())
    assert mn.violations(layer)["weight"] < 1e-12
    assert bool((layer.weight.detach() != before)[1:].any(1).all())


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::Warning")  # what torch says of itself while it traces
@pytest.mark.parametrize("manifold", PADDED, ids=str)
def test_inside_a_compiled_step(manifold: mn.Manifold) -> None:
    ends = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        layer = nn.Embedding(6, 4, padding_idx=0)
        mn.declare(layer, "weight", manifold, project=True)
        optimizer: Any = mn.RiemannianAdam(layer.parameters(), lr=0.05)
        step = optimizer.step
        if compiled:
            step = torch.compile(step, backend="aot_eager", fullgraph=True)
        for i in range(3):
            layer.weight.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(i))
            step()
        ends.append(layer.weight.detach().clone())
        assert not bool(ends[-1][0].any())
    torch.testing.assert_close(*ends)


# --- a network ------------------------------------------------------------------------------------


class Bag(nn.Module):
    """Sentences of words, some of them padded: the mean of unit word vectors, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16, padding_idx=0)
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, 4)
        self.double()

    def forward(self, words: Tensor) -> Tensor:
        count = (words > 0).sum(1, keepdim=True)
        return self.head(torch.tanh(self.hidden(4 * self.words(words).sum(1) / count.sqrt())))


def _sentences() -> tuple[Tensor, Tensor]:
    """Classes by the words that a sentence has, with zeros behind its end."""
    source = torch.Generator().manual_seed(0)
    words = torch.randint(1, 50, (512, 12), generator=source)
    length = torch.randint(3, 13, (512, 1), generator=source)
    words = torch.where(torch.arange(12) < length, words, 0)
    weight = torch.randn(50, 4, generator=source)
    weight[0] = 0
    return words, weight[words].sum(1).argmax(1)


@pytest.mark.thorough
def test_an_embedding_with_a_padding_row_trains_as_the_free_one() -> None:
    words, target = _sentences()
    losses = []
    for declared in (False, True):
        torch.manual_seed(0)
        model = Bag()
        optimizer: Any = torch.optim.Adam(model.parameters(), lr=1e-2)
        if declared:
            mn.declare(model, "words.weight", PADDED[0], project=True)
            optimizer = mn.RiemannianAdam(
                mn.param_groups(model), lr=1e-2, slice_scale="rms", error_if_nonfinite=True
            )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(60):
                loss = nn.functional.cross_entropy(model(words), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        losses.append(float(loss.detach()))
        assert not bool(model.words.weight[0].any())
    free, ours = losses
    assert ours < 1.05 * free
