"""The registry: which weight lives on which manifold. The one source of truth.

Attributes of a tensor and subclasses of Parameter are dropped by many torch operations, and so
cannot hold a declaration. It is kept on the *module*, by parameter name:

    module.__dict__["_manifold_declarations"]  ->  Declarations {"weight": Oblique(dim=0)}

`Declarations` also refers to the module's own dictionary of parameters, so that whatever tensor
stands under that name at the moment is the declared one, however it got there: deepcopy, pickle,
`.to("meta")`, `load_state_dict(assign=True)`, swapped tensors. All live ones are known here, and
an optimizer that is given bare tensors finds their manifolds by asking `index()`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import geoopt
from torch import Tensor, nn

from manifoldnet.geometry import Manifold, from_geoopt

__all__ = ["Declarations", "Home", "declared_modules", "declared_parameters", "index", "version"]

_KEY = "_manifold_declarations"
_live: weakref.WeakSet[Declarations] = weakref.WeakSet()
_version = 0


def version() -> int:
    """A number that changes whenever a declaration is made, copied or taken back."""
    return _version


def _touch() -> None:
    global _version
    _version += 1


class Declarations:
    """The declarations of one module: parameter name -> manifold."""

    def __init__(self, parameters: dict[str, nn.Parameter | None]) -> None:
        self.manifolds: dict[str, Manifold] = {}
        self.parameters = parameters
        _live.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy or an unpickled one: its `parameters` is already the new module's dictionary.
        self.__dict__.update(state)
        _live.add(self)
        _touch()

    @staticmethod
    def of(module: nn.Module) -> Declarations | None:
        """The declarations of a module, if it has any."""
        found: Declarations | None = module.__dict__.get(_KEY)
        return found

    @staticmethod
    def set(module: nn.Module, name: str, manifold: Manifold) -> None:
        """Record that the parameter `name` of `module` lives on `manifold`."""
        declarations = Declarations.of(module)
        if declarations is None:
            declarations = module.__dict__[_KEY] = Declarations(module._parameters)
        declarations.manifolds[name] = manifold
        _touch()

    @staticmethod
    def remove(module: nn.Module, name: str) -> None:
        """Forget the declaration of `name`."""
        declarations = Declarations.of(module)
        if declarations is not None and declarations.manifolds.pop(name, None) is not None:
            _touch()


@dataclass(frozen=True, eq=False)
class Home:
    """Where the declaration of one tensor stands."""

    tensor: Tensor
    manifold: Manifold
    declarations: Declarations


def index() -> dict[int, Home]:
    """All declared tensors alive in this process, by `id`."""
    homes = {}
    for declarations in list(_live):
        for name, manifold in declarations.manifolds.items():
            tensor = declarations.parameters.get(name)
            if tensor is not None:
                homes[id(tensor)] = Home(tensor, manifold, declarations)
    return homes


def manifold_of(tensor: Tensor, homes: dict[int, Home]) -> Manifold | None:
    """The manifold that a tensor is declared on, by a module or by its own attribute.

    Args:
        tensor: any tensor.
        homes: the result of `index()`.
    """
    home = homes.get(id(tensor))
    if home is not None:
        return home.manifold
    if isinstance(tensor, geoopt.ManifoldTensor):
        return from_geoopt(tensor.manifold)
    return None


def declared_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, Declarations]]:
    """The modules of a model that carry declarations, with their qualified names."""
    for prefix, module in model.named_modules():
        declarations = Declarations.of(module)
        if declarations is not None:
            yield prefix, module, declarations


def declared_parameters(
    model: nn.Module, *, tied: bool = False
) -> dict[str, tuple[nn.Parameter, Manifold]]:
    """The declared parameters of a model by qualified name, in the order of `named_parameters`.

    Args:
        model: any module.
        tied: give each name of a tensor that several modules share, not only the first.

    Raises:
        RuntimeError: if a declared parameter is gone from its module.
    """
    for prefix, module, declarations in declared_modules(model):
        for name, manifold in declarations.manifolds.items():
            if module._parameters.get(name) is None:
                raise RuntimeError(
                    f"{qualified(prefix, name)} was declared on {manifold}, but its module has no "
                    "such parameter any more (parametrized, pruned or deleted?): "
                    f"call undeclare(module, {name!r}) before such a change"
                )
    homes = index()
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=not tied):
        manifold_ = manifold_of(parameter, homes)
        if manifold_ is not None:
            found[name] = (parameter, manifold_)
    return found


def qualified(prefix: str, name: str) -> str:
    """The name of a parameter as `named_parameters` gives it."""
    return f"{prefix}.{name}" if prefix else name
