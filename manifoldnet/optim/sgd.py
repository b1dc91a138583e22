"""Riemannian stochastic gradient descent.

For a declared weight x with buffer b, both tangent at every step:

    d = egrad2rgrad(x, grad)                    (−grad with maximize)
    b = d at first, then μ b + (1 − τ) d        momentum μ, dampening τ; b made tangent at x
    u = d + μ b with Nesterov, else b
    x, b = retr_transp(x, −λ u, b)

Without momentum, under the additive scaled metric it is the paper's update (7), on the oblique
manifold (9) of [badrinarayanan2015symmetry]; convergence: [bonnabel2013stochastic]. Undeclared
parameters go to `torch.optim.sgd.sgd`. The single-tensor path below is the specification; the same
step is taken in fewer passes by `manifoldnet.optim.backends.torch_ops`, and by a compiled kernel in
`manifoldnet.optim.backends.cpp`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.optim import sgd as torch_sgd

from manifoldnet.geometry import Manifold, slices
from manifoldnet.optim import shards
from manifoldnet.optim.base import RiemannianOptimizer
from manifoldnet.optim.checks import as_number, check_number
from manifoldnet.optim.groups import Declared, Plain, PlainCall
from manifoldnet.optim.memory import Entry
from manifoldnet.optim.pairs import AnyMotion
from manifoldnet.optim.step import HyperParameters, StepInput

__all__ = ["RiemannianSGD"]


@final
class RiemannianSGD(RiemannianOptimizer):
    """Riemannian SGD for declared weights; exactly `torch.optim.SGD` for all others.

    Args:
        params: as in torch: tensors, named tensors, or groups (`manifoldnet.param_groups`).
        lr: learning rate λ ≥ 0, a number or a tensor of one element. A step has the Riemannian
            length λ‖d‖: under the scaled metric it is relative to the weight's length.
        momentum: μ ≥ 0. Buffers are tangent vectors, transported with every step; those of
            half-precision declared weights are float32.
        dampening: τ.
        weight_decay: for undeclared parameters only.
        nesterov: Nesterov momentum; needs a momentum and no dampening.
        maximize: ascend.
        foreach: False takes the formulas as they are written, tensor by tensor; None and True take
            declared weights in few sweeps (`manifoldnet.optim.backends.torch_ops`), and others as
            torch does.
        differentiable: refused; a step is taken without a graph.
        fused: True takes a kernel that is compiled at first use, in seconds, for declared float32
            and float64 weights on a processor (`manifoldnet.optim.backends.cpp`), and torch's own
            for the others.
        error_if_nonfinite: refuse to step, naming the parameter, when a gradient is NaN or
            infinite (a synchronization with the device in every step); otherwise as torch does.

    Raises:
        ValueError: for numbers out of range, flags that are not supported, weight decay on a group
            of nothing but declared weights, and weights off their manifolds.
    """

    state_entries: ClassVar[dict[str, Entry]] = {"momentum_buffer": "weight"}
    state_keys: ClassVar[frozenset[str]] = frozenset(state_entries)
    plain_optimizer: ClassVar[Any] = torch_sgd.SGD
    plain_lists: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        error_if_nonfinite: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
            "error_if_nonfinite": error_if_nonfinite,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            check_number(name, group[name])
        check_number("dampening", group["dampening"], least=-math.inf)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("nesterov=True needs momentum > 0 and dampening = 0")

    def _entries(self, group: dict[str, Any]) -> tuple[str | None, ...]:
        return ("momentum_buffer" if group["momentum"] != 0 else None,)

    def _check_plain(
        self, name: Callable[[], str], group: dict[str, Any], p: Tensor, grad: Tensor
    ) -> None:
        if group["fused"] and grad.layout is not torch.strided:
            raise RuntimeError(
                f"{name()} has a sparse gradient, which fused=True does not take: give it to a "
                "group without fused. No weight was changed"
            )

    def _is_special(self, weight: Plain) -> bool:
        return weight.grad.is_sparse

    def _step_plain(self, group: dict[str, Any], call: PlainCall) -> None:
        params, grads, (buffers,) = call.pieces()
        new = [i for i, buffer in enumerate(buffers) if buffer is None]
        if group["nesterov"] and not call.fused and group["foreach"] is not False:
            # torch's foreach function adds the momentum to the gradients it is given, in place.
            grads = [g.clone() for g in grads]
        torch_sgd.sgd(
            params,
            grads,
            buffers,
            has_sparse_grad=call.special,
            foreach=group["foreach"],
            fused=call.fused,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        for i in new:
            p = call.params[i]
            self.state[p]["momentum_buffer"] = shards.wrapped(buffers[i], p)

    def _step_reference(
        self, group: dict[str, Any], motion: AnyMotion, grad: Tensor, state: dict[str, Any]
    ) -> None:
        _single_tensor_sgd(
            motion,
            grad,
            state,
            lr=group["lr"],
            momentum=as_number(group["momentum"]),
            dampening=as_number(group["dampening"]),
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )

    def _inputs(self, group: dict[str, Any], declared: list[Declared]) -> list[StepInput]:
        works, heavy = [], group["momentum"] != 0
        for weight in declared:
            assert weight.geometry is not None  # so chosen by _step_declared
            x = weight.x
            buffer = self.state[weight.p].get("momentum_buffer") if heavy else None
            first = heavy and buffer is None
            if first:
                (point,) = slices.promote(x)
                buffer = torch.empty_like(point, memory_format=torch.preserve_format)
            works.append(StepInput(x, weight.grad, weight.geometry, buffer, first))
        return works

    def _keep_buffers(self, declared: list[Declared], works: list[StepInput]) -> None:
        for weight, work in zip(declared, works, strict=True):
            if work.first:
                self.state[weight.p]["momentum_buffer"] = work.b

    def _hyper(self, group: dict[str, Any]) -> HyperParameters:
        return HyperParameters(
            lr=group["lr"],
            sign=-1.0 if group["maximize"] else 1.0,
            keep=as_number(group["momentum"]),
            fresh=1 - as_number(group["dampening"]),
            nesterov=group["nesterov"],
        )

    def _adopt(
        self, group: dict[str, Any], x: Tensor, state: dict[str, Any], manifold: Manifold
    ) -> dict[str, Any]:
        buffer = state.get("momentum_buffer")
        if buffer is None or buffer.shape != x.shape:
            return state
        x_, buffer_ = slices.promote(x, buffer.to(x.device))
        return {"momentum_buffer": manifold.egrad2rgrad(x_, buffer_.to(x_.dtype))}


def _single_tensor_sgd(
    motion: AnyMotion,
    grad: Tensor,
    state: dict[str, Any],
    *,
    lr: float | Tensor,
    momentum: Any,
    dampening: Any,
    nesterov: bool,
    maximize: bool,
) -> None:
    """One step of one weight, in place, by the formulas of the module's docstring."""
    d = motion.gradient(-grad if maximize else grad)
    if momentum == 0:
        motion.move(-lr * d)
        return
    buffer = state.get("momentum_buffer")
    if buffer is None:
        buffer = d.clone(memory_format=torch.preserve_format)
    else:
        buffer = motion.tangent(buffer).mul(momentum).add_(d, alpha=1 - dampening)
    direction = d.add(buffer, alpha=momentum) if nesterov else buffer
    state["momentum_buffer"] = motion.move(-lr * direction, buffer)
