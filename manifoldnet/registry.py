"""The registry: which weight lives on which manifold. The one source of truth.

Attributes of a tensor and subclasses of Parameter are dropped by many torch operations, and so
cannot hold a declaration. It is kept on the *module*, by parameter name:

    module.__dict__["_manifold_declarations"]  ->  Declarations {"weight": Oblique(dim=0)}

`Declarations` also refers to the module's own dictionary of parameters, so that whatever tensor
stands under that name at the moment is the declared one, however it got there: deepcopy, pickle,
`.to("meta")`, `load_state_dict(assign=True)`, swapped tensors. All live ones are known here, and
an optimizer that is given bare tensors finds their manifolds by asking `index()`.

A declared tensor that is assigned to another module (tied, parametrized, pruned, traced) is
declared there too, so that no module depends on another one's record.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import geoopt
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from manifoldnet.geometry import Manifold, from_geoopt

__all__ = [
    "Declarations",
    "Home",
    "declared_modules",
    "declared_parameters",
    "index",
    "records",
    "version",
    "watch",
]

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
        self.borrowed: set[str] = set()  # by assigning a tensor that was declared elsewhere
        self.parameters = parameters
        _live.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy or an unpickled one: its `parameters` is already the new module's dictionary.
        self.__dict__.update(state)
        _live.add(self)
        _touch()
        watch()

    @staticmethod
    def of(module: nn.Module) -> Declarations | None:
        """The declarations of a module, if it has any."""
        found: Declarations | None = module.__dict__.get(_KEY)
        return found

    @staticmethod
    def set(module: nn.Module, name: str, manifold: Manifold, *, borrowed: bool = False) -> None:
        """Record that the parameter `name` of `module` lives on `manifold`."""
        declarations = Declarations.of(module)
        if declarations is None:
            declarations = module.__dict__[_KEY] = Declarations(module._parameters)
        if not borrowed:
            declarations.borrowed.discard(name)
        elif name not in declarations.manifolds:
            declarations.borrowed.add(name)
        declarations.manifolds[name] = manifold
        _touch()
        watch()

    def remove(self, name: str) -> None:
        """Forget the declaration of `name`."""
        if self.manifolds.pop(name, None) is not None:
            _touch()


_hook: Any = None


def watch() -> None:
    """From now on, assigning a declared tensor or a ManifoldParameter to a module declares it."""
    global _hook
    if _hook is None:
        _hook = nn_module.register_module_parameter_registration_hook(_on_registration)


def _on_registration(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    if parameter is None:
        return
    here = Declarations.of(module)
    before = here.manifolds.get(name) if here is not None else None
    for declarations, other in records(parameter):
        manifold = declarations.manifolds[other]
        if before is not None and before != manifold:
            raise ValueError(
                f"{name} of this {type(module).__name__} is declared on {before}, and the tensor "
                f"to put there on {manifold} (where it is called {other}); one tensor cannot live "
                "on both: undeclare one of them first"
            )
        Declarations.set(module, name, manifold, borrowed=True)
        return
    if isinstance(parameter, geoopt.ManifoldTensor):
        Declarations.set(module, name, from_geoopt(parameter.manifold))


@dataclass(frozen=True, eq=False)
class Home:
    """Where the declaration of one tensor stands."""

    tensor: Tensor
    manifold: Manifold
    declarations: Declarations
    rival: Manifold | None = None


def index() -> dict[int, Home]:
    """All declared tensors alive in this process, by `id`."""
    homes: dict[int, Home] = {}
    for declarations in list(_live):
        for name, manifold in declarations.manifolds.items():
            tensor = declarations.parameters.get(name)
            if tensor is None:
                continue
            known = homes.get(id(tensor))
            if known is None:
                homes[id(tensor)] = Home(tensor, manifold, declarations)
            elif known.manifold != manifold:
                homes[id(tensor)] = replace(known, rival=manifold)
    return homes


def records(tensor: Tensor) -> Iterator[tuple[Declarations, str]]:
    """Every record of one tensor: of a tied one, each of its modules may have one."""
    for declarations in list(_live):
        for name in list(declarations.manifolds):
            if declarations.parameters.get(name) is tensor:
                yield declarations, name


def manifold_of(tensor: Tensor, homes: dict[int, Home]) -> Manifold | None:
    """The manifold that a tensor is declared on, by a module or by its own attribute.

    Args:
        tensor: any tensor.
        homes: the result of `index()`.

    Raises:
        ValueError: if it is declared on two different manifolds.
    """
    home = homes.get(id(tensor))
    if home is not None:
        if home.rival is not None:
            raise ValueError(
                f"one tensor (shape {tuple(tensor.shape)}) is declared on {home.manifold} in one "
                f"module and on {home.rival} in another: undeclare it, then declare it once"
            )
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
        ValueError: if one tensor is declared on two different manifolds.
    """
    seen: dict[int, tuple[str, Manifold]] = {}
    for prefix, module, declarations in declared_modules(model):
        for local, manifold in declarations.manifolds.items():
            name = qualified(prefix, local)
            declared = module._parameters.get(local)
            if declared is None and local in declarations.borrowed:
                continue  # only its first name was ever declared: that one is reported
            if declared is None:
                raise RuntimeError(
                    f"{name} was declared on {manifold}, but its module has no such parameter any "
                    "more (parametrized, pruned or deleted?): "
                    f"call undeclare(module, {local!r}) before such a change"
                )
            first, other = seen.setdefault(id(declared), (name, manifold))
            if other != manifold:
                raise ValueError(
                    f"{first} and {name} are one tensor, but are declared on {other} and "
                    f"{manifold}: undeclare it, then declare it once"
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
