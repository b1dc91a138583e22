"""Riemannian Adam.

For a declared weight x with first moment m (tangent) and second moment v (one number per slice):

    d = egrad2rgrad(x, grad)                    (−grad with maximize)
    m = β₁ m + (1 − β₁) d
    v = β₂ v + (1 − β₂) ⟨d, d⟩ₓ
    u = m̂ / (√v̂ + ε),   m̂ = m/(1 − β₁ᵗ),  v̂ = v/(1 − β₂ᵗ)
    x, m = retr_transp(x, −λ u, m)

One second moment per slice, measured in the metric, is what makes the step follow the geometry
[becigneul2019riemannian]: entry by entry it would depend on the coordinates. It also makes a step
about λ long per slice, where Adam's is λ√n long for a slice of n entries; `slice_scale="rms"`
measures ⟨d, d⟩ₓ/n and gives that length back. Undeclared parameters go to
`torch.optim.adam.adam`. The single-tensor path below is the specification; the faster ones are
those of `manifoldnet.optim.sgd`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor
from torch.optim import adam as torch_adam

from manifoldnet.geometry import Manifold, slices
from manifoldnet.optim.checks import check_number
from manifoldnet.optim.riemannian import (
    Declared,
    RiemannianOptimizer,
    plain_tensors,
)
from manifoldnet.optim.work import Rates, Work

__all__ = ["RiemannianAdam"]


@final
class RiemannianAdam(RiemannianOptimizer):
    """Adam along the geometry of declared weights; exactly `torch.optim.Adam` for all others.

    Args:
        params: as in torch: tensors, named tensors, or groups (`manifoldnet.param_groups`).
        lr: learning rate λ ≥ 0: the Riemannian length of a step of one slice, about.
        betas: decay of the moments (β₁, β₂), each in [0, 1).
        eps: ε ≥ 0, added to the root of the second moment.
        weight_decay: for undeclared parameters only.
        amsgrad: use the largest second moment so far.
        foreach: as in `RiemannianSGD`.
        maximize: ascend.
        capturable: as in torch: a step never waits for the device, and may go into a CUDA graph.
        differentiable: refused; a step is taken without a graph.
        fused: as in `RiemannianSGD`.
        decoupled_weight_decay: decay undeclared parameters as AdamW does.
        slice_scale: "norm" for steps of length λ per slice, "rms" for λ√n as in plain Adam.
        error_if_nonfinite: refuse to step, naming the parameter, when a gradient is NaN or
            infinite (a synchronization with the device in every step); otherwise as torch does.

    Raises:
        ValueError: for numbers out of range, flags that are not supported, weight decay on a group
            of nothing but declared weights, and weights off their manifolds.
    """

    state_keys: ClassVar[frozenset[str]] = frozenset(
        {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    )

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        slice_scale: Literal["norm", "rms"] = "norm",
        error_if_nonfinite: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
            "slice_scale": slice_scale,
            "error_if_nonfinite": error_if_nonfinite,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            check_number(name, group[name])
        for i, beta in enumerate(group["betas"]):
            check_number(f"betas[{i}]", beta, below=1.0)
        if group["slice_scale"] not in ("norm", "rms"):
            raise ValueError(f"slice_scale must be 'norm' or 'rms', not {group['slice_scale']!r}")
        if isinstance(group["lr"], Tensor) and group["foreach"] and not group["capturable"]:
            raise ValueError("lr as a tensor needs capturable=True with foreach=True")

    def _step_plain(self, group: dict[str, Any], plain: list[Tensor]) -> None:
        on_device = group["capturable"] or group["fused"]
        states = [self.state[p] for p in plain]
        for p, state in zip(plain, states, strict=True):
            if p.grad is not None and p.grad.is_sparse:
                raise RuntimeError(
                    "RiemannianAdam does not support sparse gradients; torch.optim.SparseAdam does"
                )
            if not state:
                state["step"] = torch.zeros(
                    (),
                    device=p.device if on_device else "cpu",
                    dtype=torch.float32 if group["fused"] else None,
                )
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                if group["amsgrad"]:
                    state["max_exp_avg_sq"] = torch.zeros_like(
                        p, memory_format=torch.preserve_format
                    )
        beta1, beta2 = group["betas"]
        torch_adam.adam(
            list(plain_tensors(plain)),
            [p.grad for p in plain if p.grad is not None],  # all of them: so chosen by _split
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [s["max_exp_avg_sq"] for s in states] if group["amsgrad"] else [],
            [s["step"] for s in states],
            foreach=group["foreach"],
            capturable=group["capturable"],
            differentiable=group["differentiable"],
            fused=group["fused"],
            has_complex=any(torch.is_complex(p) for p in plain),
            decoupled_weight_decay=group["decoupled_weight_decay"],
            amsgrad=group["amsgrad"],
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )

    def _step_reference(
        self,
        group: dict[str, Any],
        x: Tensor,
        grad: Tensor,
        state: dict[str, Any],
        manifold: Manifold,
    ) -> None:
        _single_tensor_adam(
            x,
            grad,
            state,
            manifold,
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
            capturable=group["capturable"],
            slice_scale=group["slice_scale"],
        )

    def _works(self, group: dict[str, Any], declared: list[Declared]) -> list[Work]:
        for p, manifold, _ in declared:
            state = self.state[p]
            if not state:
                assert manifold is not None  # so chosen by _split
                (point,) = slices.promote(p.detach())
                _begin(state, point, manifold, group["amsgrad"], group["capturable"])
        states = [self.state[p] for p, _, _ in declared]
        torch._foreach_add_([state["step"] for state in states], 1)
        works = []
        for (p, _, kind), state in zip(declared, states, strict=True):
            assert p.grad is not None
            assert kind is not None
            top = state["max_exp_avg_sq"] if group["amsgrad"] else None
            unbias = _unbias(state["step"], group["betas"], group["capturable"])
            v, s = state["exp_avg"], state["exp_avg_sq"]
            works.append(Work(p.detach(), p.grad, kind, v, False, s, top, unbias))
        return works

    def _rates(self, group: dict[str, Any]) -> Rates:
        beta1, beta2 = group["betas"]
        return Rates(
            lr=group["lr"],
            sign=-1.0 if group["maximize"] else 1.0,
            keep=beta1,
            fresh=1 - beta1,
            beta2=beta2,
            eps=group["eps"],
            amsgrad=group["amsgrad"],
            rms=group["slice_scale"] == "rms",
        )

    def _adopt(
        self, group: dict[str, Any], x: Tensor, state: dict[str, Any], manifold: Manifold
    ) -> dict[str, Any]:
        if not state or any(
            state[key].shape != x.shape for key in self.state_keys & state.keys() - {"step"}
        ):
            return state
        (point,) = slices.promote(x)
        adopted = {"step": state["step"]}
        adopted["exp_avg"] = manifold.egrad2rgrad(point, state["exp_avg"].to(point))
        for key in ("exp_avg_sq", "max_exp_avg_sq"):
            if key in state:
                # ⟨d, d⟩ₓ for a gradient whose squared entries are the plain second moments.
                d = manifold.metric.sharp(point, state[key].to(point).sqrt())
                adopted[key] = _second_moment(point, d, manifold, group["slice_scale"])
        return adopted

    def _state_shape(self, key: str, p: Tensor, manifold: Manifold | None) -> torch.Size:
        if manifold is None or key == "exp_avg":
            return p.shape
        return manifold.component_inner(p.detach(), torch.zeros_like(p)).shape


def _second_moment(x: Tensor, d: Tensor, manifold: Manifold, slice_scale: str) -> Tensor:
    """⟨d, d⟩ₓ of each slice, or its mean over the slice's entries."""
    squared = manifold.component_inner(x, d)
    return squared if slice_scale == "norm" else squared * (squared.numel() / d.numel())


def _begin(
    state: dict[str, Any], x: Tensor, manifold: Manifold, amsgrad: bool, capturable: bool
) -> None:
    """The state before the first step: zeros."""
    state["step"] = torch.zeros((), device=x.device if capturable else "cpu")
    state["exp_avg"] = torch.zeros_like(x, memory_format=torch.preserve_format)
    state["exp_avg_sq"] = torch.zeros_like(manifold.component_inner(x, state["exp_avg"]))
    if amsgrad:
        state["max_exp_avg_sq"] = torch.zeros_like(state["exp_avg_sq"])


def _unbias(
    step: Tensor, betas: tuple[float, float], capturable: bool
) -> tuple[float | Tensor, float | Tensor]:
    """1 − β₁ᵗ and 1 − β₂ᵗ: numbers, or tensors where nobody may wait for the device."""
    beta1, beta2 = betas
    t = step if capturable or torch.compiler.is_compiling() else float(step)
    return 1 - beta1**t, 1 - beta2**t


def _single_tensor_adam(
    x: Tensor,
    grad: Tensor,
    state: dict[str, Any],
    manifold: Manifold,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    amsgrad: bool,
    maximize: bool,
    capturable: bool,
    slice_scale: str,
) -> None:
    """The formulas of this module's docstring, on one weight, in place."""
    beta1, beta2 = betas
    point, grad = slices.promote(x, grad)
    d = manifold.egrad2rgrad(point, -grad if maximize else grad)
    squared = _second_moment(point, d, manifold, slice_scale)
    if not state:
        _begin(state, point, manifold, amsgrad, capturable)
    state["step"] += 1
    unbias1, unbias2 = _unbias(state["step"], betas, capturable)
    m = state["exp_avg"].mul_(beta1).add_(d, alpha=1 - beta1)
    v = state["exp_avg_sq"].mul_(beta2).add_(squared, alpha=1 - beta2)
    if amsgrad:
        v = torch.maximum(state["max_exp_avg_sq"], v, out=state["max_exp_avg_sq"])
    root = (v / unbias2).sqrt().add_(eps)
    direction = m / (root * unbias1)
    point, state["exp_avg"] = manifold.retr_transp(point, -lr * direction, m)
    x.copy_(point)
