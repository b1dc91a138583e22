"""Riemannian Adam.

For a declared weight x with first moment m (tangent) and second moment v (one number per slice):

    d = egrad2rgrad(x, grad)                    (−grad with maximize)
    m = β₁ m + (1 − β₁) d                       m made tangent at x
    v = β₂ v + (1 − β₂) ⟨d, d⟩ₓ/n
    u = m̂ / (√v̂ + ε),   m̂ = m/(1 − β₁ᵗ),  v̂ = v/(1 − β₂ᵗ)
    x, m = retr_transp(x, −λ u, m)

One second moment per slice, measured in the metric, is what makes the step follow the geometry
[becigneul2019riemannian]: entry by entry it would depend on the coordinates. For a slice of n
entries v is the mean of squares ⟨d, d⟩ₓ/n (`slice_scale="rms"`), so that a step is about λ√n long,
as Adam's is, and rates carry over from Adam. `slice_scale="norm"` takes the sum ⟨d, d⟩ₓ, as geoopt
does: a step is then about λ long, on a unit sphere an angle of λ. Undeclared parameters go to
`torch.optim.adam.adam`. The single-tensor path below is the specification; the faster ones are
those of `manifoldnet.optim.sgd`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor
from torch.optim import adam as torch_adam

from manifoldnet.geometry import Manifold, slices
from manifoldnet.geometry.settled import laid_out_as
from manifoldnet.optim import shards
from manifoldnet.optim.base import RiemannianOptimizer
from manifoldnet.optim.checks import as_number, check_number
from manifoldnet.optim.groups import Declared, Plain, PlainCall
from manifoldnet.optim.memory import Entry, scalar_dtype
from manifoldnet.optim.pairs import AnyMotion
from manifoldnet.optim.step import HyperParameters, StepInput, Unbias, slice_geometry

__all__ = ["RiemannianAdam"]


@final
class RiemannianAdam(RiemannianOptimizer):
    """Riemannian Adam for declared weights; exactly `torch.optim.Adam` for all others.

    Args:
        params: as in torch: tensors, named tensors, or groups (`manifoldnet.param_groups`).
        lr: learning rate λ ≥ 0: a step of one slice of n entries is about λ√n long in the metric.
        betas: decay of the moments (β₁, β₂), each in [0, 1): two numbers, or two tensors of one
            element, on the CPU if kernels of an accelerator are to read them (`fused`).
        eps: ε ≥ 0, added to the root of the second moment.
        weight_decay: for undeclared parameters only.
        amsgrad: use the largest second moment so far.
        foreach: as in `RiemannianSGD`.
        maximize: ascend.
        capturable: as in torch: a step never waits for the device, and may go into a CUDA graph.
        differentiable: refused; a step is taken without a graph.
        fused: as in `RiemannianSGD`.
        decoupled_weight_decay: decay undeclared parameters as AdamW does.
        slice_scale: "rms" for steps of length λ√n per slice, as in plain Adam; "norm" for λ.
        error_if_nonfinite: refuse to step, naming the parameter, when a gradient is NaN or
            infinite (a synchronization with the device in every step); otherwise as torch does.

    Raises:
        ValueError: for numbers out of range, flags that are not supported, weight decay on a group
            of nothing but declared weights, and weights off their manifolds.
    """

    state_entries: ClassVar[dict[str, Entry]] = {
        "step": "step",
        "exp_avg": "weight",
        "exp_avg_sq": "slice",
        "max_exp_avg_sq": "slice",
    }
    state_keys: ClassVar[frozenset[str]] = frozenset(state_entries)
    converts_plain: ClassVar[bool] = True
    plain_optimizer: ClassVar[Any] = torch_adam.Adam
    plain_lists: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        slice_scale: Literal["norm", "rms"] = "rms",
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for p in group["params"]:
                count = self.state.get(p, {}).get("step")
                if isinstance(count, int | float):  # torch < 1.12, and geoopt
                    on_device = group["capturable"] or group["fused"]
                    self.state[p]["step"] = torch.tensor(
                        float(count),
                        dtype=scalar_dtype(),
                        device=p.device if on_device else "cpu",
                    )

    def _check_options(self, group: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            check_number(name, group[name])
        betas = group["betas"]
        for i, beta in enumerate(betas):
            check_number(f"betas[{i}]", beta, below=1.0)
        if group["slice_scale"] not in ("norm", "rms"):
            raise ValueError(f"slice_scale must be 'norm' or 'rms', not {group['slice_scale']!r}")
        tensors = [isinstance(beta, Tensor) for beta in betas]
        if len(betas) != 2 or not (all(tensors) or all(isinstance(b, float) for b in betas)):
            raise ValueError(f"betas must be two floats, or two tensors, not {betas!r}")
        if group["foreach"] and not group["capturable"]:
            if isinstance(group["lr"], Tensor):
                raise ValueError("lr as a tensor needs capturable=True with foreach=True")
            if any(tensors):
                raise ValueError("betas as tensors need capturable=True with foreach=True")

    def _missing_entries(
        self, name: Callable[[], str], group: dict[str, Any], state: dict[str, Any]
    ) -> dict[str, Tensor]:
        lacking = [key for key in ("step", "exp_avg", "exp_avg_sq") if state.get(key) is None]
        if lacking:
            raise RuntimeError(
                f"the state of {name()} has {', '.join(state) or 'nothing'} and lacks "
                f"{', '.join(lacking)}: load a state of RiemannianAdam or torch.optim.Adam, or "
                "start it anew with `del optimizer.state[weight]`. No weight was changed"
            )
        if group["amsgrad"] and state.get("max_exp_avg_sq") is None:
            # Switched on later: no second moment has been seen so far.
            return {"max_exp_avg_sq": torch.zeros_like(state["exp_avg_sq"])}
        return {}

    def _entries(self, group: dict[str, Any]) -> tuple[str | None, ...]:
        return tuple(
            None if key == "max_exp_avg_sq" and not group["amsgrad"] else key
            for key in self.plain_lists
        )

    def _check_plain(
        self, name: Callable[[], str], group: dict[str, Any], p: Tensor, grad: Tensor
    ) -> None:
        if grad.layout is not torch.strided:
            raise RuntimeError(
                f"{name()} has a sparse gradient, which RiemannianAdam does not take: make the "
                "layer with sparse=False, or give its weight to torch.optim.SparseAdam. No weight "
                "was changed"
            )
        if group["capturable"] and not group["fused"] and p.device.type == "cpu":
            raise RuntimeError(
                f"capturable=True is for accelerators, and {name()} is on {p.device}. No weight "
                "was changed"
            )

    def _is_special(self, weight: Plain) -> bool:
        return torch.is_complex(weight.p)

    def _plain_state(self, group: dict[str, Any], p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if state:
            state.update(self._missing_entries(lambda: self._name_of(group, p), group, state))
        else:
            device = p.device if group["capturable"] or group["fused"] else "cpu"
            dtype = torch.float32 if group["fused"] else scalar_dtype()
            state["step"] = torch.zeros((), dtype=dtype, device=device)
            for key in self._entries(group):
                if key is not None and key != "step":
                    state[key] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state

    def _step_plain(self, group: dict[str, Any], call: PlainCall) -> None:
        params, grads, (averages, squares, maxima, steps) = call.pieces()
        beta1, beta2 = group["betas"]
        torch_adam.adam(
            params,
            grads,
            averages,
            squares,
            maxima,
            steps,
            foreach=group["foreach"],
            # In a graph `fused` is None, and the counts that it keeps are on the device.
            capturable=group["capturable"] or (call.fused is None and bool(group["fused"])),
            differentiable=group["differentiable"],
            fused=call.fused,
            has_complex=call.special,
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
        self, group: dict[str, Any], motion: AnyMotion, grad: Tensor, state: dict[str, Any]
    ) -> None:
        if not state:
            _begin(state, motion.point, motion.manifold, group["amsgrad"], group["capturable"])
        _single_tensor_adam(
            motion,
            grad,
            state,
            lr=group["lr"],
            betas=_numbers(group["betas"]),
            eps=as_number(group["eps"]),
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
            capturable=group["capturable"],
            slice_scale=group["slice_scale"],
        )

    def _inputs(self, group: dict[str, Any], declared: list[Declared]) -> list[StepInput]:
        states = [self.state[weight.p] for weight in declared]
        for weight, state in zip(declared, states, strict=True):
            if not state:
                (point,) = slices.promote(weight.x)
                _begin(state, point, weight.manifold, group["amsgrad"], group["capturable"])
        corrections = self._count(group, [state["step"] for state in states])
        capturable = group["capturable"] and not torch.compiler.is_compiling()
        works = []
        for weight, state, unbias in zip(declared, states, corrections, strict=True):
            assert weight.geometry is not None  # so chosen by _step_declared
            max_s = state["max_exp_avg_sq"] if group["amsgrad"] else None
            count = state["step"] if capturable else None
            b, s = state["exp_avg"], state["exp_avg_sq"]
            x = weight.x
            s_factor = s.numel() / x.numel() if group["slice_scale"] == "rms" else 1.0
            works.append(
                StepInput(
                    x, weight.grad, weight.geometry, b, False, s, max_s, unbias, s_factor, count
                )
            )
        return works

    def _count(self, group: dict[str, Any], counts: list[Tensor]) -> list[Unbias]:
        torch._foreach_add_(counts, 1)
        if group["capturable"] and not torch.compiler.is_compiling():
            return [(1.0, 1.0)] * len(counts)  # computed on the device
        betas = _numbers(group["betas"])
        return [_unbias(count, betas, False) for count in counts]

    def _hyper(self, group: dict[str, Any]) -> HyperParameters:
        beta1, beta2 = _numbers(group["betas"])
        return HyperParameters(
            lr=group["lr"],
            sign=-1.0 if group["maximize"] else 1.0,
            keep=beta1,
            fresh=1 - beta1,
            beta2=beta2,
            eps=as_number(group["eps"]),
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
                d = manifold.sharp(point, state[key].to(point).sqrt())
                adopted[key] = _second_moment(point, d, manifold, group["slice_scale"])
        return adopted


Betas = tuple[float | Tensor, float | Tensor]


def _numbers(betas: Betas) -> Betas:
    return as_number(betas[0]), as_number(betas[1])


def _second_moment(x: Tensor, d: Tensor, manifold: Manifold, slice_scale: str) -> Tensor:
    """⟨d, d⟩ₓ of each slice, or its mean over the entries of the slice."""
    squared = manifold.component_inner(x, d)
    return _scaled(squared, d, slice_scale)


def _scaled(squared: Tensor, d: Tensor, slice_scale: str) -> Tensor:
    return squared if slice_scale == "norm" else squared * (squared.numel() / d.numel())


def _begin(
    state: dict[str, Any], x: Tensor, manifold: Manifold, amsgrad: bool, capturable: bool
) -> None:
    """The state before the first step: zeros."""
    device = x.device if capturable else "cpu"
    state["step"] = torch.zeros((), dtype=scalar_dtype(), device=device)
    state["exp_avg"] = torch.zeros_like(x, memory_format=torch.preserve_format)
    geometry = slice_geometry(manifold)
    if geometry is None:
        state["exp_avg_sq"] = torch.zeros_like(manifold.component_inner(x, state["exp_avg"]))
    else:
        state["exp_avg_sq"] = shards.per_slice(x, geometry.dim)
    if amsgrad:
        state["max_exp_avg_sq"] = torch.zeros_like(state["exp_avg_sq"])


def _unbias(step: Tensor, betas: Betas, capturable: bool) -> Unbias:
    """The bias corrections 1 − β₁ᵗ and 1 − β₂ᵗ: numbers, or tensors on the device."""
    beta1, beta2 = betas
    t = step if capturable or torch.compiler.is_compiling() else float(step)
    return 1 - beta1**t, 1 - beta2**t


def _single_tensor_adam(
    motion: AnyMotion,
    grad: Tensor,
    state: dict[str, Any],
    *,
    lr: float | Tensor,
    betas: Betas,
    eps: float | Tensor,
    amsgrad: bool,
    maximize: bool,
    capturable: bool,
    slice_scale: str,
) -> None:
    """One step of one weight, in place, by the formulas of the module's docstring."""
    beta1: Any
    beta2: Any
    beta1, beta2 = betas
    d = motion.gradient(-grad if maximize else grad)
    squared = laid_out_as(state["exp_avg_sq"], _scaled(motion.squared(d), d, slice_scale))
    state["step"] += 1
    unbias1, unbias2 = _unbias(state["step"], betas, capturable)
    m = motion.tangent(state["exp_avg"]).mul(beta1).add_(d, alpha=1 - beta1)
    v = state["exp_avg_sq"].mul_(beta2).add_(squared, alpha=1 - beta2)
    if amsgrad:
        v = torch.maximum(state["max_exp_avg_sq"], v, out=state["max_exp_avg_sq"])
    root = (v / unbias2).sqrt().add_(eps)
    # Without eps: where there never was a gradient there is no step.
    direction = torch.where(root == 0, 0.0, m / (root * unbias1))
    state["exp_avg"] = motion.move(-lr * direction, m)
