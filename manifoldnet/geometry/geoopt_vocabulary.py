"""geoopt's vocabulary beyond the formulas: checks, origins, packing, and scaling.

`check_…` gives True or False, with `explain` a pair of that and the reason; `assert_check_…` raises
the exception of `validate`. `atol` and `rtol` add up, because what is measured is relative.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from manifoldnet.geometry.validation import Validated, raise_if

__all__ = ["GeooptVocabulary"]


class _Scaling(NamedTuple):
    """Powers of the unit of length: of results, and of arguments by name."""

    results: tuple[float, ...] = ()
    kwargs: Mapping[str, float] = MappingProxyType({})


class GeooptVocabulary(Validated):
    """Methods that geoopt's code calls on a manifold, made of `validate` and `random`."""

    @abstractmethod
    def random(self, *size: Any, **options: Any) -> Tensor:
        """A random point."""

    # How results and arguments grow with the unit of length, for `geoopt.Scaled`.
    __scaling__: ClassVar[Mapping[str, _Scaling]] = {
        "dist": _Scaling((1,)),
        "dist2": _Scaling((2,)),
        "logmap": _Scaling((1,)),
        **dict.fromkeys(
            (
                *("retr", "retr_transp", "transp_follow_retr"),
                *("expmap", "expmap_transp", "transp_follow_expmap"),
            ),
            _Scaling((), {"u": -1}),
        ),
    }

    device: ClassVar[torch.device | None] = None
    dtype: ClassVar[torch.dtype | None] = None

    @property
    def name(self) -> str:
        """The name of the class."""
        return type(self).__name__

    def origin(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = 42,
    ) -> Tensor:
        """One point of this shape, always the same: `random` at a seed.

        With `seed=None` torch's default generator gives it; other arguments are those of `random`.
        """
        source = None
        if seed is not None:
            device = torch.get_default_device() if device is None else device
            source = torch.Generator(device).manual_seed(seed)
        return self.random(*size, dtype=dtype, device=device, generator=source)

    def pack_point(self, *tensors: Tensor) -> Tensor:
        """The tensor itself: a point has one part here.

        Raises:
            ValueError: for any other number of tensors than one.
        """
        if len(tensors) != 1:
            raise ValueError(f"a point of {self} is one tensor, not {len(tensors)}")
        return tensors[0]

    def unpack_tensor(self, tensor: Tensor) -> Any:
        """The tensor itself: a point has one part here."""
        return tensor

    def extra_repr(self) -> str:
        """The fields, as `repr` has them."""
        return repr(self).partition("(")[2].removesuffix(")")

    def check_point(self, x: Tensor, *, explain: bool = False) -> Any:
        """Check that a tensor of this shape and type can be a point."""
        return _answer(self._wrong_tensor(x, "point", "the data"), explain)

    def check_vector(self, u: Tensor, *, explain: bool = False) -> Any:
        """Check that a tensor of this shape and type can be a tangent vector."""
        return _answer(self._wrong_tensor(u, "tangent vector", "the vector"), explain)

    def check_point_on_manifold(
        self, x: Tensor, *, explain: bool = False, **tolerances: float | None
    ) -> Any:
        """Check that `x` is a point, up to `tol`, or `atol + rtol`."""
        return _answer(self.validate(x, tol=_limit(**tolerances)), explain)

    def check_vector_on_tangent(
        self,
        x: Tensor,
        u: Tensor,
        *,
        ok_point: bool = False,
        explain: bool = False,
        **tolerances: float | None,
    ) -> Any:
        """Check that `u` is tangent at the point `x`, up to `tol`, or `atol + rtol`."""
        tol = _limit(**tolerances)
        return _answer(self.validate_tangent(x, u, tol=tol, ok_point=ok_point), explain)

    def assert_check_point(self, x: Tensor, *, name: str = "the data") -> None:
        """Raise `WrongTensorError` if a tensor of this shape or type cannot be a point."""
        raise_if(self._wrong_tensor(x, "point", name))

    def assert_check_vector(self, u: Tensor, *, name: str = "the vector") -> None:
        """Raise `WrongTensorError` if a tensor of this shape or type cannot be tangent."""
        raise_if(self._wrong_tensor(u, "tangent vector", name))

    def assert_check_point_on_manifold(
        self, x: Tensor, *, name: str = "the data", **tolerances: float | None
    ) -> None:
        """Raise the exception of `validate`, if there is one."""
        raise_if(self.validate(x, tol=_limit(**tolerances), name=name))

    def assert_check_vector_on_tangent(
        self,
        x: Tensor,
        u: Tensor,
        *,
        ok_point: bool = False,
        name: str = "the vector",
        **tolerances: float | None,
    ) -> None:
        """Raise the exception of `validate_tangent`, if there is one."""
        tol = _limit(**tolerances)
        raise_if(self.validate_tangent(x, u, tol=tol, name=name, ok_point=ok_point))

    # The checks that geoopt's own base class, and so its `Scaled` and `ProductManifold`, call.

    def _check_shape(self, shape: tuple[int, ...], name: str) -> Any:
        blank = torch.empty(shape, dtype=torch.double, device="meta")
        return _answer(self._wrong_tensor(blank, "point", name), explain=True)

    def _check_point_on_manifold(self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5) -> Any:
        return self.check_point_on_manifold(x, atol=atol, rtol=rtol, explain=True)

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> Any:
        tol = atol + rtol
        return self.check_vector_on_tangent(x, u, ok_point=True, tol=tol, explain=True)


def _answer(error: Exception | None, explain: bool) -> bool | tuple[bool, str | None]:
    if explain:
        return error is None, None if error is None else str(error)
    return error is None


def _limit(
    tol: float | None = None, atol: float | None = None, rtol: float | None = None
) -> float | None:
    """The relative violation to accept; None: by type."""
    if atol is None and rtol is None:
        return tol
    if tol is not None:
        raise ValueError("give a tolerance as tol, or as atol and rtol, not both")
    return (atol or 0.0) + (rtol or 0.0)
