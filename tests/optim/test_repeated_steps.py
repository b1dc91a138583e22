"""Steps that are like the last one are prepared from it: every change in between is seen."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import manifoldnet as mn
from manifoldnet.optim import memory

ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (mn.RiemannianSGD, {}),
    "momentum": (mn.RiemannianSGD, {"momentum": 0.9}),
    "adam": (mn.RiemannianAdam, {}),
    "amsgrad": (mn.RiemannianAdam, {"amsgrad": True}),
}
PATHS: dict[str, dict[str, Any]] = {"few passes": {}, "kernel": {"fused": True}}
SHAPES = {"rows": (6, 4), "columns": (6, 4), "scaled": (5, 3), "free": (6, 4), "late": (4, 3)}


class Training:
    """Four declared weights, of which the last has no gradient at first, and a free one."""

    def __init__(self, algorithm: str, path: dict[str, Any]) -> None:
        self.source = torch.Generator().manual_seed(0)
        self.net = nn.ParameterDict({n: nn.Parameter(self.random(s)) for n, s in SHAPES.items()})
        mn.declare(self.net, "rows", mn.Oblique(), project=True)
        mn.declare(self.net, "columns", mn.Oblique(1, retraction="geodesic"), project=True)
        mn.declare(self.net, "scaled", mn.ScaledEuclidean())
        mn.declare(self.net, "late", mn.Oblique(), project=True)
        make, options = ALGORITHMS[algorithm]
        self.optimizer = make(mn.param_groups(self.net), lr=0.05, **options, **path)
        self.idle = {"late"}

    def random(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.source, dtype=torch.float64)

    def step(self, count: int = 1, *, keep: bool = False) -> None:
        """Steps along new gradients, in the memory of the last ones with `keep`."""
        for _ in range(count):
            for name, p in self.net.items():
                g = 0.3 * self.random(p.shape)
                if name in self.idle:
                    p.grad = None
                elif keep and p.grad is not None:
                    p.grad.copy_(g)
                else:
                    p.grad = g
            self.optimizer.step()


def _options(run: Training, **options: Any) -> None:
    for group in run.optimizer.param_groups:
        group.update({key: value for key, value in options.items() if key in group})


def _reordered_state(run: Training) -> None:
    """State by hand: other dictionaries, their keys in another order."""
    for p in run.net.values():
        state = run.optimizer.state.get(p)
        if state:
            run.optimizer.state[p] = {key: state[key].clone() for key in reversed(state)}


def _new_memory(run: Training) -> None:
    for p in run.net.values():
        p.data = p.data.clone()


def _swapped_parameters(run: Training) -> None:
    for group in run.optimizer.param_groups:
        group["params"].reverse()
        group["manifolds"].reverse()
        group.get("param_names", []).reverse()


def _other_groups(run: Training) -> None:
    run.optimizer.param_groups[:] = [dict(g, lr=0.02) for g in run.optimizer.param_groups]


def _another_group(run: Training) -> None:
    run.net["more"] = nn.Parameter(torch.ones(3, dtype=torch.float64))
    run.optimizer.add_param_group({"params": [run.net["more"]], "lr": 0.1})


CHANGES: dict[str, Callable[[Training], object]] = {
    "nothing": lambda run: None,
    "gradients in place": lambda run: run.step(2, keep=True),
    "a gradient more": lambda run: run.idle.clear(),
    "a gradient less": lambda run: run.idle.add("columns"),
    "another rate": lambda run: _options(run, lr=0.01),
    "a rate as a tensor": lambda run: _options(run, lr=torch.tensor(0.02, dtype=torch.float64)),
    "no momentum": lambda run: _options(run, momentum=0.0, betas=(0.0, 0.9)),
    "ascent": lambda run: _options(run, maximize=True),
    "state in another order": _reordered_state,
    "state anew": lambda run: run.optimizer.state.clear(),
    "a loaded state": lambda run: run.optimizer.load_state_dict(run.optimizer.state_dict()),
    "weights in new memory": _new_memory,
    "parameters in another order": _swapped_parameters,
    "other groups": _other_groups,
    "another group": _another_group,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("path", PATHS)
def test_a_change_between_steps_is_seen(path: str, algorithm: str, change: str) -> None:
    ends = []
    for options in (PATHS[path], {"foreach": False}):
        run = Training(algorithm, options)
        run.step(4)
        CHANGES[change](run)
        run.step(4)
        ends.append({name: p.detach().clone() for name, p in run.net.items()})
    for name, x in ends[1].items():
        torch.testing.assert_close(ends[0][name], x, rtol=1e-10, atol=1e-11, msg=name)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_memory_is_checked_again_only_where_something_has_changed(
    path: str, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Tensor] = []
    inner = memory.check
    monkeypatch.setattr(
        memory, "check", lambda name, p, *a, **k: checked.append(p) or inner(name, p, *a, **k)
    )
    run = Training(algorithm, PATHS[path])
    run.step(2)
    checked.clear()
    run.step(3)
    _options(run, lr=0.01)
    run.step(2)
    assert not checked
    _options(run, maximize=True)
    run.step()
    assert len(checked) == 4


@pytest.mark.parametrize("path", PATHS)
def test_no_gradient_is_kept_after_a_step(path: str) -> None:
    run = Training("momentum", PATHS[path])
    run.step(4)
    grads = [weakref.ref(p.grad) for p in run.net.values() if p.grad is not None]
    for p in run.net.values():
        p.grad = None
    gc.collect()
    assert [ref() for ref in grads] == [None] * 4


def test_a_new_declaration_is_seen() -> None:
    run = Training("momentum", {"fused": True})
    run.step(4)
    mn.undeclare(run.net, "rows")
    with pytest.raises(RuntimeError, match=r"rows was declared on .* and is not declared now"):
        run.step()
