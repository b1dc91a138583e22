"""The cost of a step, counted instead of timed: operators, new memory, calls of the kernel."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import manifoldnet as mn


class Counter(TorchDispatchMode):
    """Counts operators, and the bytes of what each of them makes anew."""

    def __init__(self, uncounted: Collection[str] = ()) -> None:
        super().__init__()
        self.uncounted = uncounted
        self.calls = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [*args, *(kwargs or {}).values()]
        known = {a.untyped_storage().data_ptr() for a in given if isinstance(a, Tensor)}
        result = func(*args, **(kwargs or {}))
        self.calls += func.overloadpacket.__name__ not in self.uncounted
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in known:
            self.largest = max(self.largest, result.untyped_storage().nbytes())
        return result


def _count(weights: int, shape: tuple[int, ...], make: Any, **options: Any) -> Counter:
    model = nn.ParameterList([nn.Parameter(mn.Oblique().random(shape)) for _ in range(weights)])
    for name, p in model.named_parameters():
        mn.declare(model, name, mn.Oblique())
        p.grad = torch.randn(shape)
    optimizer = make(mn.param_groups(model), lr=0.01, **options)
    optimizer.step()  # makes the buffers, and checks the points
    with Counter() as counter:
        optimizer.step()
    return counter


# What they take today, views included.
STEPS = [
    (mn.RiemannianSGD, {}, 24),
    (mn.RiemannianSGD, {"momentum": 0.9}, 33),
    (mn.RiemannianAdam, {}, 51),
]


@pytest.mark.parametrize(("make", "options", "most"), STEPS)
def test_a_step_of_one_weight_takes_few_operators(
    make: Any, options: dict[str, Any], most: int
) -> None:
    assert _count(1, (64, 64), make, **options).calls <= most


@pytest.mark.parametrize(("make", "options", "most"), STEPS)
def test_weights_of_one_shape_are_stepped_together(
    make: Any, options: dict[str, Any], most: int
) -> None:
    """Each more weight costs its views, and not a step of its own."""
    few, many = (_count(n, (64, 64), make, **options).calls for n in (10, 110))
    assert (many - few) / 100 <= 12


@pytest.mark.parametrize(
    ("options", "most"), [({}, 70), ({"momentum": 0.9}, 85)], ids=["sgd", "momentum"]
)
def test_on_an_accelerator_operators_do_not_grow_with_the_weights(
    options: dict[str, Any], most: int
) -> None:
    """On meta tensors, as on any device that is not asked for values; views are no launches."""
    views = {"detach", "unbind", "view", "unsqueeze"}
    for weights in (1, 50):
        model = nn.ParameterList(
            [nn.Parameter(torch.empty(64, 64, device="meta")) for _ in range(weights)]
        )
        for name, p in model.named_parameters():
            mn.declare(model, name, mn.Oblique())
            p.grad = torch.empty_like(p)
        optimizer = mn.RiemannianSGD(mn.param_groups(model), lr=0.01, **options)
        optimizer.step()
        with Counter(views) as counter:
            optimizer.step()
        assert counter.calls <= most


@pytest.mark.parametrize(("make", "options", "most"), STEPS)
def test_rows_need_no_memory_of_the_size_of_the_weight(
    make: Any, options: dict[str, Any], most: int
) -> None:
    shape = (4096, 1024)
    assert _count(1, shape, make, **options).largest <= 4 * shape[0] * shape[1] / 10


@pytest.mark.parametrize(("make", "options", "most"), STEPS)
def test_the_kernel_is_called_once(
    make: Any, options: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    from manifoldnet.optim.backends import cpp

    inner = cpp.step
    monkeypatch.setattr(cpp, "step", lambda *a: calls.append(1) or inner(*a))
    counter = _count(50, (64, 64), make, fused=True, **options)
    assert len(calls) == 2  # one a step
    assert counter.calls <= 2 * 50 + 10  # a view of each weight; a step count of each
    assert counter.largest <= 4
