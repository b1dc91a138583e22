"""The loss of a declared model as a function of one vector, for solvers and for checks.

    with Objective(model, lambda: loss_fn(model(images), labels)) as objective:
        x = objective.start                          a point of objective.manifold, a `Product`
        objective.cost(x), objective.gradient(x), objective.hessian(x, u)
        objective.keep(x)                            the model has this point at the end

Within the block the model computes in float64. Its weights are views of one vector, so that a new
point is one copy. Cost, gradient and Hessian at the same point share one forward pass. At the end
everything else is restored: types, gradients, running statistics; and without `keep`, or after an
error, the weights as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from manifoldnet.declarations import manifolds, verify
from manifoldnet.geometry import Euclidean, Product
from manifoldnet.symmetry.batches import cast

__all__ = ["Objective"]

# The accepted relative difference of two evaluations at one point, by threads that sum in another
# order.
_REPEATS = {torch.float64: 1e-9, torch.float32: 1e-4}


class Objective:
    """The cost over the manifold of all trainable parameters; use it as a context manager.

    Args:
        model: with its declarations; undeclared parameters are free. Frozen ones stay fixed.
        loss_closure: called without arguments, returns the loss of the model on the *whole* batch.
            Inputs of the model are cast to `dtype`.
        dtype: torch.float64 or torch.float32.

    Attributes:
        manifold: the `Product` of the parameters' manifolds.
        names: of the parameters, in that order.
        start: the model's own point, on the CPU.
        calls: the numbers of losses, gradients and Hessian-vector products that were computed.

    Raises:
        TypeError: if `model` is no module, `loss_closure` no function, or `dtype` no type.
        ValueError: for complex parameters, and those that share memory or have gradient hooks. On
            entering: if the loss is no differentiable function of the weights (not one finite
            number, different from call to call, or independent of a parameter); for dropout in
            training mode; for weights off their manifolds.
    """

    start: Tensor
    _originals: list[Tensor]
    _grads: list[Tensor | None]
    _at: Tensor
    _vector: Tensor
    _loss: Tensor | None
    _partials: tuple[Tensor, ...]
    _gradient: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        loss_closure: Callable[[], Tensor],
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype must be torch.float64 or torch.float32, not {dtype!r}")
        if dtype not in _REPEATS:
            raise ValueError(f"dtype must be torch.float64 or torch.float32, not {dtype}")
        if not callable(loss_closure):
            raise TypeError(
                f"loss_closure must be a function without arguments that returns the loss, not "
                f"{type(loss_closure).__name__}"
            )
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not named:
            raise ValueError(f"{type(model).__name__} has no parameters that require gradients")
        _refuse_parameters(named)
        devices = {str(p.device) for p in named.values()}
        if len(devices) > 1:
            raise ValueError(
                f"the parameters are on {', '.join(sorted(devices))}: move them to one"
            )
        declared = manifolds(model)
        self.names = tuple(named)
        self.manifold = Product(
            (declared.get(name, Euclidean()), p.shape) for name, p in named.items()
        )
        self.calls = {"cost": 0, "gradient": 0, "hessian": 0}
        self._model, self._closure, self._dtype = model, loss_closure, dtype
        self._parameters = list(named.values())
        self._kept: Tensor | None = None
        self._stack = ExitStack()
        self._open = False
        self._forget()

    def cost(self, x: Tensor) -> float:
        """The loss at `x`; ∞ where it is NaN, which no solver would leave otherwise."""
        value = float(self._loss_at(x).detach())
        return math.inf if math.isnan(value) else value

    def gradient(self, x: Tensor, *, differentiable: bool = False) -> Tensor:
        """The Euclidean gradient at `x`, on the CPU.

        Args:
            x: a point.
            differentiable: keep the graph, for Hessians at the same point.
        """
        loss = self._loss_at(x)
        if self._gradient is None or (differentiable and not self._partials):
            if not loss.requires_grad:  # a gradient without a graph has used that of the loss
                self._loss = None
                loss = self._loss_at(x)
            self.calls["gradient"] += 1
            gradients = torch.autograd.grad(
                loss, self._parameters, create_graph=differentiable, materialize_grads=True
            )
            self._partials = gradients if differentiable else ()
            self._loss = loss if differentiable else loss.detach()
            self._gradient = self._join(gradients)
        return self._gradient.clone()

    def hessian(self, x: Tensor, u: Tensor) -> Tensor:
        """The Euclidean Hessian at `x` times `u`, on the CPU.

        For a loss with kinks (ReLU, max) it is that of the smooth piece around `x`.

        Raises:
            ValueError: if a layer has no second derivative.
        """
        self.gradient(x, differentiable=True)
        self.calls["hessian"] += 1
        direction = self.manifold.split(u.to(self._vector))
        if not any(g.requires_grad for g in self._partials):
            return torch.zeros_like(u)  # the loss is linear
        try:
            curved = [
                (g, d) for g, d in zip(self._partials, direction, strict=True) if g.requires_grad
            ]
            products = torch.autograd.grad(
                [g for g, _ in curved],
                self._parameters,
                [d for _, d in curved],
                retain_graph=True,
                materialize_grads=True,
            )
        except RuntimeError as error:
            raise ValueError(
                f"the loss cannot be differentiated twice ({error}): use a solver that needs no "
                "Hessian, such as conjugate-gradient"
            ) from error
        return self._join(products)

    def keep(self, x: Tensor) -> None:
        """Give this point to the model at the end, or after an interrupt; not after an error."""
        self._kept = x.detach().clone()

    def __enter__(self) -> Objective:
        _refuse_randomness(self._model)
        verify(self._model)
        self._kept = None
        self._originals = [p.detach() for p in self._parameters]
        self._grads = [p.grad for p in self._parameters]
        # A point that is rounded to the type of the model is off its manifold in float64.
        start = self.manifold.join(p.cpu().to(self._dtype) for p in self._originals)
        self.start = self.manifold.projx(start, name="the model")
        self._at = self.start.clone()
        self._vector = self.start.to(self._originals[0].device, copy=True)
        with ExitStack() as stack:
            stack.callback(self._detach)
            self._attach(stack)
            self._open = True
            self._check()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None and not issubclass(error, KeyboardInterrupt):
            self._kept = None
        self._stack.close()

    def _attach(self, stack: ExitStack) -> None:
        """Make the weights views of the vector, and cast everything else until the end."""
        for p, view in zip(self._parameters, self.manifold.split(self._vector), strict=True):
            p.grad = None
            p.data = view
        mine = {id(p) for p in self._parameters}
        for p in self._model.parameters():
            if id(p) not in mine and p.is_floating_point():
                stack.callback(setattr, p, "data", p.data)
                p.data = p.data.to(self._dtype)
        for module in self._model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    stack.callback(module._buffers.__setitem__, name, buffer)
                    module._buffers[name] = cast(buffer.clone(), self._dtype, buffer.device)
            # The gradient of an embedding leaves out the padding: it is not that of the loss.
            if isinstance(module, nn.Embedding):
                stack.callback(setattr, module, "padding_idx", module.padding_idx)
                stack.callback(setattr, module, "sparse", module.sparse)
                module.padding_idx, module.sparse = None, False

        def cast_input(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return cast((args, kwargs), self._dtype, self._vector.device)

        hook = self._model.register_forward_pre_hook(cast_input, with_kwargs=True)
        stack.callback(hook.remove)

    def _detach(self) -> None:
        """Restore the memory and type of the weights, with the kept point or the original one."""
        self._forget()
        self._open = False
        values: list[Tensor] = self._originals
        if self._kept is not None:
            values = self.manifold.split(self._kept)
        for p, own, value in zip(self._parameters, self._originals, values, strict=True):
            p.grad = None
            p.data = own.copy_(value)
        for p, grad in zip(self._parameters, self._grads, strict=True):
            p.grad = grad

    def _check(self) -> None:
        """Raise ValueError unless the closure is a differentiable function of the weights."""
        first = self._loss_at(self.start)
        if not bool(first.detach().isfinite()):
            raise ValueError(
                f"the loss is {float(first.detach())} at the start: look for weights or inputs "
                "that are not finite"
            )
        if any(p.grad is not None for p in self._parameters):
            raise ValueError(
                "loss_closure calls backward(): it must return the loss only, which is "
                "differentiated here"
            )
        if first.dtype != self._dtype:
            raise ValueError(
                f"the loss comes in {first.dtype}, not in {self._dtype}: take out what casts it, "
                "in loss_closure or in the model's last layers"
            )
        gradients = torch.autograd.grad(first, self._parameters, allow_unused=True)
        unused = [name for name, s in zip(self.names, gradients, strict=True) if s is None]
        if unused:
            raise ValueError(
                f"the loss does not depend on {', '.join(unused)}: freeze them with "
                "requires_grad_(False), or let the loss use them"
            )
        gradient = self._join(gradients)
        if not bool(gradient.isfinite().all()):
            raise ValueError("the gradient is not finite at the start: use other weights")
        self._forget()
        again = self.cost(self.start), self.gradient(self.start)
        before = float(first.detach()), gradient
        # The gradient as well: with a head of zeros all batches have the same loss.
        off = max(
            abs(again[0] - before[0]) / max(abs(before[0]), 1e-300),
            float((again[1] - gradient).norm() / gradient.norm().clamp(min=1e-300)),
        )
        if off > _REPEATS[self._dtype]:
            raise ValueError(
                f"the loss was {before[0]:.17g} and then {again[0]:.17g} with the same weights, "
                f"and the two differ, or their gradients do, by {off:.1g}: it must be a function "
                "of the weights. Use one fixed batch and no randomness"
            )
        self.restart()

    def restart(self) -> None:
        """Reset the counts, and forget all values."""
        self.calls = dict.fromkeys(self.calls, 0)
        self._forget()

    def _loss_at(self, x: Tensor) -> Tensor:
        """The loss at a point, with its graph if it is new."""
        if not self._open:
            raise RuntimeError("an Objective has values inside its with block only")
        if self._loss is None or not torch.equal(x, self._at):
            self._forget()
            self._at.copy_(x)
            self._vector.copy_(x)
            self.calls["cost"] += 1
            with torch.enable_grad():
                self._loss = self._evaluate()
        return self._loss

    def _evaluate(self) -> Tensor:
        try:
            loss = self._closure()
        except RuntimeError as error:
            if "dtype" not in str(error) and "scalar type" not in str(error):
                raise
            raise ValueError(
                f"the loss cannot be computed in {self._dtype} ({error}). What `model(...)` is "
                "given is cast, and its buffers; targets, class weights, constants in `forward` "
                "and inputs of other methods must have that type already, or ask for "
                f"dtype={self._originals[0].dtype}"
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"loss_closure must return one real number, not {what}: use a loss with "
                "reduction='mean' or 'sum'"
            )
        if not loss.requires_grad:
            raise ValueError(
                "the loss is not differentiable in the weights: loss_closure must compute it from "
                "the model, without detach(), item() or no_grad()"
            )
        return loss.reshape(())

    def _join(self, parts: Any) -> Tensor:
        """Parts on the device of the model as one vector on the CPU, in one transfer."""
        return self.manifold.join(part.detach() for part in parts).cpu()

    def _forget(self) -> None:
        self._loss = None
        self._partials = ()
        self._gradient = None


def _refuse_parameters(named: Mapping[str, nn.Parameter]) -> None:
    """Raise ValueError for parameters that cannot be part of one vector, or have gradient hooks."""
    places: list[tuple[int, int, int, str]] = []
    for name, p in named.items():
        if not p.is_floating_point():
            raise ValueError(f"{name} has type {p.dtype}: only real parameters can be minimized")
        if p._backward_hooks:
            raise ValueError(
                f"{name} has a hook that may change its gradient, which must be that of the loss: "
                "remove it"
            )
        last = sum((n - 1) * int(step) for n, step in zip(p.shape, p.stride(), strict=True))
        first = int(p.storage_offset())
        if p.numel() > last + 1:
            raise ValueError(
                f"{name} has entries that share memory (an expanded tensor): give it memory of "
                "its own with contiguous()"
            )
        places.append((p.untyped_storage().data_ptr(), first, first + last, name))
    for one, other in pairwise(sorted(places)):
        if one[0] == other[0] and other[1] <= one[2]:
            raise ValueError(
                f"{one[3]} and {other[3]} share memory but are two parameters: tie them by using "
                "one parameter twice, or copy one of them"
            )


def _refuse_randomness(model: nn.Module) -> None:
    for name, module in model.named_modules():
        active = module.training and getattr(module, "p", 1) > 0
        if isinstance(module, nn.modules.dropout._DropoutNd) and active:
            raise ValueError(
                f"{name or type(module).__name__} drops units at random, so the loss is no "
                "function of the weights: call model.eval(), or that layer's eval()"
            )
