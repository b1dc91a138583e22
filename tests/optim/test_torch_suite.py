"""torch's own list of optimizer inputs and errors over both optimizers, on undeclared parameters.

`torch.testing._internal.common_optimizers.optim_db` is what torch's `test_optim.py` runs over. Each
configuration × path × type × order of memory must move parameters and state bit for bit as torch
does; each error input must be refused with the type that torch refuses it with.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import manifoldnet as mn

common = pytest.importorskip(
    "torch.testing._internal.common_optimizers",
    reason="torch's test helpers need the package expecttest (extra dev)",
)

OURS = {torch.optim.SGD: mn.RiemannianSGD, torch.optim.Adam: mn.RiemannianAdam}
INFOS = {info.optim_cls: info for info in common.optim_db if info.optim_cls in OURS}
PATHS: list[dict[str, bool]] = [{}, {"foreach": False}, {"foreach": True}, {"fused": True}]


def _inputs() -> list[tuple[Any, dict[str, Any]]]:
    """Every configuration with every path, an accelerator's (capturable) too."""
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
    for optimizer, info in INFOS.items():
        for device in ("cpu", "cuda"):
            for case in info.optim_inputs_func(device=device):
                for path in PATHS:
                    options = {**case.kwargs, **path}
                    found.setdefault(f"{optimizer.__name__} {options}", (optimizer, options))
    return list(found.values())


def _name(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "default"
    return getattr(value, "__name__", str(value))


FORMS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last) if x.ndim == 4 else x,
    "empty": lambda x: x[:0],
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.complex64]


def _run(make: Any, options: dict[str, Any], dtype: torch.dtype, form: Any) -> Any:
    """Parameters and state after seven steps, some without a gradient; an error if it raises."""
    source = torch.Generator().manual_seed(0)
    options = {
        key: value.clone() if isinstance(value, Tensor) else value for key, value in options.items()
    }

    def random(shape: tuple[int, ...]) -> Tensor:
        real = torch.randn(*shape, 2, generator=source, dtype=torch.float64)
        value = torch.view_as_complex(real) if dtype.is_complex else real[..., 0].contiguous()
        return form(value.to(dtype))

    shapes = [(5, 7), (7,), (3, 2, 2, 2)]
    parameters = [torch.nn.Parameter(random(shape)) for shape in shapes]
    try:
        optimizer = make(parameters, **options)
        for step in range(7):
            for i, (p, shape) in enumerate(zip(parameters, shapes, strict=True)):
                g = random(shape)
                p.grad = None if (step + i) % 5 == 4 else g
            optimizer.step()
    except Exception as error:
        return error
    return [(p.detach(), optimizer.state.get(p, {})) for p in parameters]


@pytest.mark.parametrize(("torchs", "options"), _inputs(), ids=_name)
def test_undeclared_parameters_equal_torchs_bit_for_bit(
    torchs: Any, options: dict[str, Any]
) -> None:
    if options.get("differentiable"):
        with pytest.raises(ValueError, match="differentiable=True is not supported"):
            OURS[torchs]([torch.nn.Parameter(torch.zeros(2))], **options)
        return
    for dtype, form in itertools.product(DTYPES, FORMS):
        if options.get("fused") and dtype == torch.bfloat16:
            continue  # torch 2.13 on a processor is wrong in the last numbers of such an array
        mine = _run(OURS[torchs], options, dtype, FORMS[form])
        theirs = _run(torchs, options, dtype, FORMS[form])
        if isinstance(theirs, Exception):
            assert isinstance(mine, Exception), (dtype, form, theirs)
            continue
        assert not isinstance(mine, Exception), (dtype, form, mine)
        for (x, state), (y, other) in zip(mine, theirs, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)
            assert x.stride() == y.stride()
            assert state.keys() == other.keys()
            for key, value in other.items():
                if isinstance(value, Tensor):
                    torch.testing.assert_close(state[key], value, rtol=0, atol=0)


def _error_inputs() -> list[tuple[Any, Any]]:
    return [
        (optimizer, case)
        for optimizer, info in INFOS.items()
        for case in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    ]


@pytest.mark.parametrize(
    ("torchs", "case"),
    _error_inputs(),
    ids=lambda v: getattr(getattr(v, "optimizer_error_input", v), "desc", _name(v)),
)
def test_options_that_torch_refuses_are_refused(torchs: Any, case: Any) -> None:
    given = case.optimizer_error_input
    if given.params is None:  # torch's suite fills in its own
        given.params = [torch.nn.Parameter(torch.randn(2, 3))]
    if case.error_on == common.OptimizerErrorEnum.CONSTRUCTION_ERROR:
        with pytest.raises(case.error_type):
            OURS[torchs](given.params, **given.kwargs)
        return
    optimizer = OURS[torchs](given.params, **given.kwargs)
    with pytest.raises(case.error_type):
        optimizer.step()


@pytest.mark.parametrize("make", OURS.values())
def test_fused_refuses_the_tensors_that_torchs_does(make: Any) -> None:
    """Weights on the meta device, and types that are no floating point."""
    for p in (torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.complex64)):
        parameter = torch.nn.Parameter(p)
        parameter.grad = torch.zeros_like(parameter)
        optimizer = make([parameter], fused=True)
        with pytest.raises(RuntimeError, match="floating point Tensors"):
            optimizer.step()
