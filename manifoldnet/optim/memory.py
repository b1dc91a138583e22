"""Checks of the memory of a weight, its gradient and its optimizer state before a step.

A weight may change under an optimizer: `model.double()`, `.to(memory_format=…)`, a layer that grew
or was pruned through `.data`, a checkpoint written in another order of memory. All paths of a step
rely on one contract, which is checked here, for all weights, before anything is written:

    gradient               shape and device of the weight
    state of its shape     its shape, device and order of memory, in the type it is computed in
    one number a slice     the same type and device, contiguous
    step                   one floating-point number

State in another type, on another device or in another order of memory is converted; another shape
and memory that is not there are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from manifoldnet.geometry import Manifold, PairFactor, Slices, slices
from manifoldnet.geometry.slices import Dim
from manifoldnet.optim import backends, shards
from manifoldnet.optim.step import SliceGeometry, slice_geometry

__all__ = [
    "Entries",
    "Entry",
    "Expected",
    "Seen",
    "check",
    "expected",
    "expected_on",
    "fitted",
    "form",
    "scalar_dtype",
]

Form = tuple[type, torch.dtype, torch.Size, tuple[int, ...], torch.device]
"""Class, element type, shape, strides and device of a tensor."""

Entry = Literal["weight", "slice", "step"]
"""The shape of a state's entry: the weight's, one number a slice, or a step count."""

Entries = Mapping[str, Entry]
"""The shape of each key of a state that an optimizer knows."""

_COUNTS = (torch.float32, torch.float64)
# Nothing but memory. Of other classes (DTensor, say) only torch knows where the numbers are.
_PLAIN = (Tensor, torch.nn.Parameter)


def form(x: Tensor) -> Form:
    """The form of a tensor in memory."""
    return type(x), x.dtype, x.shape, x.stride(), x.device


def scalar_dtype() -> torch.dtype:
    """The type of step counts, as in torch: never a half type, which cannot count beyond 2048."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


class Expected(NamedTuple):
    """The forms that a gradient and the state of a weight must have.

    Attributes:
        weight: the weight's own form, for which the others were found.
        whole: of state with the weight's shape.
        per_slice: of state with one number a slice.
        plain: whether the weight is nothing but memory.
        sharded: whether a piece of it is here that is nothing but memory.
        dense: whether its numbers fill that memory without holes.
        layout: how the kernel of its device reads it; None if it does not.
    """

    weight: Form
    whole: Form
    per_slice: Form
    plain: bool
    sharded: bool
    dense: bool
    layout: backends.Layout | None = None


def expected(p: Tensor, manifold: Manifold | None) -> Expected:
    """The forms for a weight; for an undeclared one (None) those of torch."""
    geometry = None if manifold is None else slice_geometry(manifold)
    if geometry is not None:
        return expected_on(p, geometry)
    if manifold is None:
        want = _expected(p, p.dtype, p.shape)
        return want._replace(per_slice=want.whole)
    (point,) = slices.promote(p.detach())
    if isinstance(manifold, PairFactor):  # whose metric its partner knows
        return _expected(p, point.dtype, torch.Size((1, 1)))
    shape = manifold.component_inner(point, torch.zeros_like(point)).shape
    return _expected(p, point.dtype, shape)


def expected_on(p: Tensor, geometry: SliceGeometry) -> Expected:
    """The forms for a weight on one of the manifolds that the fast paths know."""
    shape = Slices(geometry.dim).shape_of(p.shape)
    want = _expected(p, slices.promote(p.detach())[0].dtype, shape)
    if not want.dense and not want.sharded:
        return want
    return want._replace(layout=backends.layout(p, geometry))


def _expected(p: Tensor, dtype: torch.dtype, per_slice: torch.Size) -> Expected:
    x = p.detach()
    plain = type(x) in _PLAIN
    like = torch.empty_like(x, dtype=dtype, device="meta") if plain else x
    contiguous = torch.empty(per_slice, device="meta").stride()
    return Expected(
        form(p),
        (type(x), dtype, x.shape, like.stride(), x.device),
        (type(x), dtype, per_slice, contiguous, x.device),
        plain,
        shards.is_sharded(x),
        plain and like.stride() == x.stride(),
    )


class Seen:
    """The forms of some tensors, for a comparison with others in microseconds.

    Args:
        tensors: strided ones.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._count = len(tensors)
        self._sharded = any(map(shards.is_sharded, tensors))
        if self._sharded:
            tensors = shards.pieces(tensors)
        # What torch.compile asks before it runs a graph again: class, type, device, shape, strides.
        guards = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
        make = getattr(guards, "TensorGuards", None)
        self._guards = make and make(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        self._forms = None if self._guards else [form(x) for x in tensors]

    def addresses(self, tensors: Sequence[Any]) -> list[int] | None:
        """The addresses of tensors; None unless they have the same forms and plain memory.

        Of DTensors, those of the pieces that are here; empty ones are left out.
        """
        if len(tensors) != self._count:
            return None
        if self._sharded:
            tensors = shards.pieces(tensors)
        try:
            if self._guards is not None:
                same = bool(self._guards.check(*tensors))
            else:
                same = self._forms == [_is_strided(x) and form(x) for x in tensors]
            found = [*map(Tensor.data_ptr, tensors)] if same else [0]
        except TypeError:  # something that is no tensor
            return None
        return None if 0 in found else found


def _is_strided(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout is torch.strided


def check(
    name: Callable[[], str],
    p: Tensor,
    grad: Tensor,
    state: Mapping[str, Any],
    want: Expected,
    entries: Entries,
    *,
    convert: bool,
    count_on: torch.device | None = None,
    dim: Dim | Literal["weight", "unknown"] = "weight",
) -> dict[str, Tensor]:
    """Check the forms of a weight, its gradient and its state before a step.

    Args:
        name: gives what messages call the weight.
        p: the weight.
        grad: its gradient.
        state: its optimizer state.
        want: what `expected` gave.
        entries: the shape of each key of the state; other keys are left alone.
        convert: whether type, device and order of memory matter, or only the shapes.
        count_on: the device that step counts must be on, if that matters.
        dim: the dimension that indexes slices, where state with one number a slice is sharded as
            they are; "weight" where it has the weight's shape.

    Returns:
        The entries that are to be replaced before the step, with their new values.

    Raises:
        RuntimeError: for a shape that does not fit, values that are no numbers, and tensors whose
            memory was freed.
    """
    _, _, shape, strides, device = want.weight
    if want.plain and any(step == 0 and n > 1 for step, n in zip(strides, shape, strict=True)):
        raise RuntimeError(
            f"{name()} has numbers that share memory (strides {strides}, from expand?): give the "
            "layer memory of its own with weight.data = weight.data.clone(). No weight was changed"
        )
    if grad.shape != shape or grad.device != device:
        raise RuntimeError(
            f"{name()} has shape {tuple(shape)} on {device}, and its gradient "
            f"{tuple(grad.shape)} on {grad.device}: the weight was changed after backward. Call "
            "zero_grad and backward again. No weight was changed"
        )
    if shards.is_sharded(grad) != want.sharded:
        raise RuntimeError(
            f"{name()} is a {type(p).__name__} and its gradient a {type(grad).__name__}: both must "
            "be sharded, or neither. No weight was changed"
        )
    if convert:
        _check_there(name, "the values", p)
        _check_there(name, "the gradient", grad)
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        entry = entries.get(key)
        if entry is None or value is None:
            continue
        if entry == "step":
            counted = _counted(name, value, count_on)
            if counted is not value:
                found[key] = counted
            continue
        form_ = want.whole if entry == "weight" else want.per_slice
        fit = fitted(name, key, value, form_, convert=convert)
        place = "weight" if entry == "weight" else dim
        if want.sharded and place != "unknown":
            fit = shards.fitted(fit, p.detach(), form_[1], place)
        if fit is not value:
            found[key] = fit
    return found


def laid_out(grad: Tensor, p: Tensor) -> Tensor:
    """The gradient, copied if its type or memory order is not that of the weight."""
    if grad.stride() == p.stride() and grad.dtype == p.dtype and not grad.is_neg():
        return grad
    return torch.empty_like(p, memory_format=torch.preserve_format).copy_(grad)


def fitted(
    name: Callable[[], str], key: str, value: Any, form_: Form, *, convert: bool = True
) -> Tensor:
    """An entry of a state, copied if its form is not the one that a step needs.

    Args:
        name: gives what messages call the weight.
        key: of the entry.
        value: the entry.
        form_: the form.
        convert: whether type, device and order of memory matter, or only the shape.

    Raises:
        RuntimeError: for another shape, and for what is no tensor with memory.
    """
    class_, dtype, shape, strides, device = form_
    if not isinstance(value, Tensor):
        raise RuntimeError(
            f"{key} of {name()} is a {type(value).__name__}, and must be a tensor of shape "
            f"{tuple(shape)}. No weight was changed"
        )
    if value.shape != shape:
        raise RuntimeError(
            f"{key} in the state of {name()} has shape {tuple(value.shape)}, and the weight as it "
            f"is now needs {tuple(shape)}: it was resized after its first step. Resize its state "
            "too, or let it start anew with `del optimizer.state[weight]`. No weight was changed"
        )
    if not convert:
        return value
    _check_there(name, key, value)
    if form(value) == form_ and not value.is_neg():
        return value
    if class_ not in _PLAIN:  # torch knows how it lies
        return value.to(device, dtype)
    return torch.empty_strided(shape, strides, dtype=dtype, device=device).copy_(value)


def _check_there(name: Callable[[], str], what: str, x: Tensor) -> None:
    if type(x) not in _PLAIN or x.is_meta or x.layout is not torch.strided:
        return
    if not x.data_ptr() and x.numel():
        raise RuntimeError(
            f"the memory of {what} of {name()} was freed: load or gather the weights before a "
            "step. No weight was changed"
        )


def _counted(name: Callable[[], str], value: Any, device: torch.device | None) -> Tensor:
    """A step count as a tensor; older versions of torch and geoopt save plain numbers."""
    if isinstance(value, Tensor) and value.numel() == 1:
        good = value.dtype in _COUNTS
        if good and (device is None or value.device == device):
            return value
        return value.to(device or value.device, value.dtype if good else scalar_dtype())
    if isinstance(value, int | float):
        return torch.tensor(float(value), dtype=scalar_dtype(), device=device or "cpu")
    raise RuntimeError(f"step of {name()} must be a number, not {value!r}. No weight was changed")
