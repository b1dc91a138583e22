"""Riemannian stochastic gradient descent.

For a declared weight x with buffer b, both tangent at every step:

    d = egrad2rgrad(x, grad)                    (−grad with maximize)
    b = d at first, then μ b + (1 − τ) d        momentum μ, dampening τ
    u = d + μ b with Nesterov, else b
    x, b = retr_transp(x, −λ u, b)

Without momentum, under the additive scaled metric it is the paper's update (7), on the oblique
manifold (9) of [badrinarayanan2015symmetry]; convergence: [bonnabel2013stochastic]. Undeclared
parameters go to `torch.optim.sgd.sgd`. The single-tensor path below is the specification; the same
step is taken in fewer passes by `manifoldnet.optim.plane`, and by a compiled kernel in
`manifoldnet.optim.native`.
"""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.optim import sgd as torch_sgd

from manifoldnet.geometry import Manifold, slices
from manifoldnet.optim.checks import check_number
from manifoldnet.optim.riemannian import (
    Declared,
    RiemannianOptimizer,
    plain_tensors,
)
from manifoldnet.optim.work import Rates, Work

__all__ = ["RiemannianSGD"]


@final
class RiemannianSGD(RiemannianOptimizer):
    """SGD along the geometry of declared weights; exactly `torch.optim.SGD` for all others.

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
            declared weights in few passes (`manifoldnet.optim.plane`), and others as torch does.
        differentiable: refused; a step is taken without a graph.
        fused: True takes a kernel that is compiled at first use, in seconds, for declared float32
            and float64 weights on a processor (`manifoldnet.optim.native`), and torch's own for
            the others.
        error_if_nonfinite: refuse to step, naming the parameter, when a gradient is NaN or
            infinite (a synchronization with the device in every step); otherwise as torch does.

    Raises:
        ValueError: for numbers out of range, flags that are not supported, weight decay on a group
            of nothing but declared weights, and weights off their manifolds.
    """

    state_keys: ClassVar[frozenset[str]] = frozenset({"momentum_buffer"})

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
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("nesterov=True needs momentum > 0 and dampening = 0")

    def _step_plain(self, group: dict[str, Any], plain: list[Tensor]) -> None:
        buffers: list[Tensor | None] = []
        if group["momentum"] != 0:
            buffers = [self.state[p].get("momentum_buffer") for p in plain]
        grads = [p.grad for p in plain if p.grad is not None]
        if group["nesterov"] and not group["fused"] and group["foreach"] is not False:
            # torch's foreach function adds the momentum to the gradients it is given, in place.
            grads = [g.clone() for g in grads]
        torch_sgd.sgd(
            list(plain_tensors(plain)),
            grads,
            buffers,
            has_sparse_grad=any(g.is_sparse for g in grads),
            foreach=group["foreach"],
            fused=group["fused"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        if group["momentum"] != 0:
            for p, buffer in zip(plain, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer

    def _step_reference(
        self,
        group: dict[str, Any],
        x: Tensor,
        grad: Tensor,
        state: dict[str, Any],
        manifold: Manifold,
    ) -> None:
        _single_tensor_sgd(
            x,
            grad,
            state,
            manifold,
            lr=group["lr"],
            momentum=group["momentum"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )

    def _works(self, group: dict[str, Any], declared: list[Declared]) -> list[Work]:
        works = []
        for p, _, kind in declared:
            assert p.grad is not None  # so chosen by _split
            assert kind is not None
            x = p.detach()
            if group["momentum"] == 0:
                works.append(Work(x, p.grad, kind))
                continue
            state = self.state[p]
            first = state.get("momentum_buffer") is None
            if first:
                (point,) = slices.promote(x)
                state["momentum_buffer"] = torch.empty_like(
                    point, memory_format=torch.preserve_format
                )
            works.append(Work(x, p.grad, kind, state["momentum_buffer"], first))
        return works

    def _rates(self, group: dict[str, Any]) -> Rates:
        return Rates(
            lr=group["lr"],
            sign=-1.0 if group["maximize"] else 1.0,
            keep=group["momentum"],
            fresh=1 - group["dampening"],
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
    x: Tensor,
    grad: Tensor,
    state: dict[str, Any],
    manifold: Manifold,
    *,
    lr: float | Tensor,
    momentum: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """The formulas of this module's docstring, on one weight, in place."""
    point, grad = slices.promote(x, grad)
    d = manifold.egrad2rgrad(point, -grad if maximize else grad)
    if momentum == 0:
        x.copy_(manifold.retr(point, -lr * d))
        return
    buffer = state.get("momentum_buffer")
    if buffer is None:
        buffer = d.clone(memory_format=torch.preserve_format)
    else:
        buffer.mul_(momentum).add_(d, alpha=1 - dampening)
    direction = d.add(buffer, alpha=momentum) if nesterov else buffer
    point, state["momentum_buffer"] = manifold.retr_transp(point, -lr * direction, buffer)
    x.copy_(point)
