"""The registry of declarations: the manifold of each declared weight.

Many operations of torch drop the attributes of a tensor and its subclass, so that a tensor cannot
hold its declaration. It is kept on the *module*, by parameter name:

    module.__dict__["_manifold_declarations"]  ->  Declarations {"weight": Oblique(dim=0)}

`Declarations` also refers to the module's own dictionary of parameters. The declared tensor is the
one that the dictionary holds under that name at the moment, however it got there: deepcopy, pickle,
`.to("meta")`, `load_state_dict(assign=True)`, swapped tensors.

An index from the `id` of a tensor to its records serves callers that have only the tensor: the
registration hook of modules, `declare`, the optimizers. torch replaces tensors in a module without
notice, and ids are used again, so that an entry is valid only if its record still holds that very
tensor under that name. Outdated entries are corrected whenever their module is asked
(`declared_parameters`) and by `refresh`, a pass over all records, which optimizers call.

A declared tensor that is assigned to another module (tied, parametrized, pruned, traced) is
declared there too, so that no module depends on another one's record.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from manifoldnet.geometry import Manifold, from_geoopt

__all__ = [
    "Declarations",
    "DeclaredTensor",
    "at_first_declaration",
    "changed_since",
    "check_module",
    "declared_modules",
    "declared_parameters",
    "find",
    "install_hook",
    "is_geoopt",
    "is_shared",
    "manifold_of",
    "partner_of",
    "qualified",
    "records",
    "refresh",
    "refuse_flat_parameter",
    "refuse_flattening",
    "unwrapped",
    "version",
]

_KEY = "_manifold_declarations"

# Parts of parameter names that come from torch's wrappers: torch.compile, DistributedDataParallel
# (and AveragedModel), activation checkpointing, FullyShardedDataParallel.
_WRAPPERS = frozenset({"_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


class _Record(weakref.ref["Declarations"]):
    """A weak reference to the declarations of a module, with their ids in the index.

    The tensors have no weak references: torch does not swap those that have.
    """

    __slots__ = ("ids",)
    ids: dict[str, int]  # parameter name -> id in the index


# Every change below is made under the lock. Entries of the index are replaced as a whole, so that
# a look-up needs no lock. A record that is collected (in any thread, also within the lock) is only
# noted, and removed from the index at the next change.
_lock = threading.RLock()
_live: set[_Record] = set()
_index: dict[int, tuple[tuple[_Record, str], ...]] = {}
_dead: deque[_Record] = deque()
_version = 0
_changed: deque[int] = deque(maxlen=4096)  # ids of the tensors that changed, one for each version


def version() -> int:
    """The number of changes so far: it grows with every declaration made or removed."""
    return _version


def changed_since(earlier: int) -> set[int] | None:
    """Ids of the tensors that were declared or undeclared after a version.

    Returns:
        The ids (of tensors that may be gone); None if the version is too old to know.
    """
    with _lock:
        count = _version - earlier
        if earlier < 0 or count > len(_changed):
            return None
        return set(islice(reversed(_changed), count))


def _note_change(*tensors: int | None) -> None:
    global _version
    for each in tensors:
        if each is not None:
            _changed.append(each)
            _version += 1


def _clear_dead() -> None:
    while _dead:
        record = _dead.popleft()
        _live.discard(record)
        for name, key in record.ids.items():
            _forget(record, name, key)


def _forget(record: _Record, name: str, key: int) -> None:
    left = tuple(e for e in _index.get(key, ()) if e[0] is not record or e[1] != name)
    if left:
        _index[key] = left
    else:
        _index.pop(key, None)


class Declarations:
    """The declarations of one module: parameter name -> manifold."""

    manifolds: dict[str, Manifold]
    inherited: set[str]  # by assigning a tensor that was declared elsewhere
    labels: dict[str, str]  # the parameter's name in messages
    partners: dict[str, tuple[Declarations, str]]  # the other factor of a pair
    parameters: dict[str, nn.Parameter | None]
    _record: _Record

    def __init__(self, parameters: dict[str, nn.Parameter | None]) -> None:
        self.manifolds, self.inherited, self.labels, self.partners = {}, set(), {}, {}
        self.parameters = parameters
        self._enter()

    def _enter(self) -> None:
        record = _Record(self, _dead.append)
        record.ids = {}
        self._record = record
        with _lock:
            _clear_dead()
            _live.add(record)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_record"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy or an unpickled one. Its `parameters` is the new module's dictionary, which may
        # still be empty; its tensors are new, so that no optimizer has to look anything up.
        self.__dict__.update(state)
        # Models that were pickled by an earlier version.
        self.__dict__.setdefault("inherited", self.__dict__.pop("borrowed", set()))
        self.__dict__.setdefault("labels", {})
        self.__dict__.setdefault("partners", {})
        self._enter()
        self.refresh()
        install_hook()

    @staticmethod
    def of(module: nn.Module) -> Declarations | None:
        """The declarations of a module, if it has any."""
        found: Declarations | None = module.__dict__.get(_KEY)
        return found

    @staticmethod
    def set(
        module: nn.Module,
        name: str,
        manifold: Manifold,
        tensor: Tensor,
        *,
        inherited: bool = False,
        label: str | None = None,
    ) -> None:
        """Record the manifold of a parameter.

        Args:
            module: the module that owns the parameter.
            name: its name there.
            manifold: its manifold.
            tensor: the parameter, which is registered under `name` or is about to be.
            inherited: the declaration is taken over from another module with the same tensor.
            label: its name in messages; `name` and the type of the module if left out.
        """
        with _lock:
            declarations = Declarations.of(module)
            if declarations is None:
                declarations = module.__dict__[_KEY] = Declarations(module._parameters)
            if not inherited:
                declarations.inherited.discard(name)
            elif name not in declarations.manifolds:
                declarations.inherited.add(name)
            declarations.manifolds[name] = manifold
            declarations.labels[name] = label or f"{name} of a {type(module).__name__}"
            declarations.track(name, tensor)
            _note_change(id(tensor))
        install_hook()

    @staticmethod
    def pair(module: nn.Module, name: str, partner: tuple[Declarations, str]) -> None:
        """Record the other factor of a declared factor of a pair.

        Args:
            module: the module of the factor.
            name: its name there.
            partner: the record of the other one, and its name there.
        """
        declarations = Declarations.of(module)
        assert declarations is not None  # it was declared before
        with _lock:
            declarations.partners[name] = partner
            tensor = declarations.parameters.get(name)
            _note_change(None if tensor is None else id(tensor))

    def remove(self, name: str) -> None:
        """Remove the declaration of `name`; of both factors, if it is one of a pair."""
        with _lock:
            if self.manifolds.pop(name, None) is None:
                return
            self.inherited.discard(name)
            self.labels.pop(name, None)
            partner = self.partners.pop(name, None)
            tensor = self.parameters.get(name)
            _note_change(self._record.ids.get(name), None if tensor is None else id(tensor))
            self.track(name, None)
        if partner is not None:
            partner[0].remove(partner[1])

    def track(self, name: str, tensor: Tensor | None) -> None:
        """Index the tensor registered under `name`, in place of an older one."""
        ids, key = self._record.ids, None if tensor is None else id(tensor)
        if ids.get(name) == key:
            return
        with _lock:
            _clear_dead()
            old = ids.pop(name, None)
            if old is not None:
                _forget(self._record, name, old)
            if key is not None:
                ids[name] = key
                _index[key] = (*_index.get(key, ()), (self._record, name))

    def refresh(self) -> None:
        """Index the tensors that are registered under the declared names now."""
        for name in list(self.manifolds):
            self.track(name, self.parameters.get(name))


_hook: Any = None
_first_uses: list[Callable[[], object]] = []


def at_first_declaration(action: Callable[[], object]) -> None:
    """Register an action for the time when this process makes or reads its first declaration.

    Until then no hook of torch is installed.
    """
    _first_uses.append(action)


def install_hook() -> None:
    """Declare tensors on assignment: those declared elsewhere, and ManifoldParameters."""
    global _hook
    if _hook is not None:
        return
    with _lock:
        if _hook is not None:
            return
        _hook = nn_module.register_module_parameter_registration_hook(_on_registration)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_new_lock)
        for action in _first_uses:
            action()


def _new_lock() -> None:
    # The old one may be held by a thread of the parent, which the child does not have.
    global _lock
    _lock = threading.RLock()


def _on_registration(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    if parameter is None:
        return
    here = Declarations.of(module)
    before = here.manifolds.get(name) if here is not None else None
    for declarations, other in records(parameter):
        manifold = declarations.manifolds.get(other)
        if manifold is None:
            continue  # undeclared in another thread
        if before is not None and before != manifold:
            raise ValueError(
                f"{name} of this {type(module).__name__} is declared on {before}, and the tensor "
                f"to assign on {manifold} (under the name {other}); one tensor cannot live "
                "on both: undeclare one of them first"
            )
        label = declarations.labels.get(other)
        Declarations.set(module, name, manifold, parameter, inherited=True, label=label)
        if (partner := declarations.partners.get(other)) is not None:
            Declarations.pair(module, name, partner)
        return
    if is_geoopt(parameter, "tensor", "ManifoldTensor"):
        manifold = from_geoopt(parameter.manifold)  # type: ignore[attr-defined]
        Declarations.set(module, name, manifold, parameter)
    elif here is not None and before is not None:
        here.track(name, parameter)


@dataclass(frozen=True, eq=False)
class DeclaredTensor:
    """One declared tensor: its manifold, the record of it, and a conflicting manifold if any."""

    tensor: Tensor
    manifold: Manifold
    declarations: Declarations
    name: str
    conflicting: Manifold | None = None

    @property
    def label(self) -> str:
        """The tensor's name in messages."""
        return self.declarations.labels.get(self.name, self.name)


def records(tensor: Tensor) -> list[tuple[Declarations, str]]:
    """All records of one tensor: each module that shares it may have one."""
    found = []
    for record, name in _index.get(id(tensor), ()):
        declarations = record()
        if (
            declarations is not None
            and name in declarations.manifolds
            and declarations.parameters.get(name) is tensor
        ):
            found.append((declarations, name))
    return found


def refresh() -> None:
    """Correct all entries of the index, in one pass over the records of the process."""
    with _lock:
        _clear_dead()
        live = list(_live)
    for record in live:
        declarations = record()
        if declarations is not None:
            declarations.refresh()


def find(tensor: Tensor) -> DeclaredTensor | None:
    """The declaration of a tensor by the index, which is not refreshed; None if there is none."""
    found = None
    for declarations, name in records(tensor):
        manifold = declarations.manifolds.get(name)
        if manifold is None:
            continue  # undeclared in another thread
        if found is None:
            found = DeclaredTensor(tensor, manifold, declarations, name)
        elif found.manifold != manifold:
            return DeclaredTensor(tensor, found.manifold, found.declarations, found.name, manifold)
    return found


def manifold_of(tensor: Tensor) -> Manifold | None:
    """The manifold of a tensor, declared by a module or by its own attribute.

    Raises:
        ValueError: if it is declared on two different manifolds.
    """
    found = find(tensor)
    if found is not None:
        if found.conflicting is not None:
            raise ValueError(
                f"one tensor (shape {tuple(tensor.shape)}) is declared on {found.manifold} in one "
                f"module and on {found.conflicting} in another: undeclare it, then declare it once"
            )
        return found.manifold
    if is_geoopt(tensor, "tensor", "ManifoldTensor"):
        return from_geoopt(tensor.manifold)  # type: ignore[attr-defined]
    return None


def partner_of(tensor: Tensor) -> Tensor | None:
    """The other factor of a pair, as its module has it now; None if there is none."""
    for declarations, name in records(tensor):
        if (partner := declarations.partners.get(name)) is not None:
            other, its_name = partner
            if its_name in other.manifolds:
                return other.parameters.get(its_name)
    return None


def is_geoopt(value: object, module: str, name: str) -> bool:
    """Test for an instance of a class of geoopt, which is not imported: there is none without it.

    Args:
        value: any object.
        module: the submodule of geoopt that defines the class.
        name: the name of the class.
    """
    of_geoopt = getattr(sys.modules.get(f"geoopt.{module}"), name, ())
    return isinstance(value, of_geoopt)


def _references(parameters: dict[str, Any], name: str) -> int:
    return sys.getrefcount(parameters[name])


_ALONE = _references({"": object()}, "")


def is_shared(parameters: dict[str, nn.Parameter | None], name: str) -> bool:
    """Test whether anything besides this dictionary refers to the tensor: it may be tied then.

    By the count of Python's references, so that a model need not be searched for other names of
    each of its weights. A reference of an optimizer or a list counts as well.
    """
    return parameters.get(name) is not None and _references(parameters, name) > _ALONE


def check_module(model: nn.Module) -> None:
    """Raise TypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"give the module that holds the weights, not a {type(model).__name__}")


_FLATTENING = (
    "in FullyShardedDataParallel: the old FSDP of torch (FSDP1) flattens weights, which have no "
    "rows and columns then, and is not supported. Shard with torch.distributed.fsdp.fully_shard "
    "(FSDP2) instead, and make the optimizer after it"
)


def refuse_flattening(module: nn.Module) -> None:
    """Raise ValueError for a module that torch's old FSDP has wrapped."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel):
        raise ValueError(f"the weights are wrapped {_FLATTENING}")


def refuse_flat_parameter(p: Tensor) -> None:
    """Raise ValueError for a parameter of torch's old FSDP that stands for declared weights."""
    if not getattr(p, "_fsdp_flattened", False):
        return
    found = find(p)
    names = [found.label] if found is not None else []
    for info in getattr(p, "_param_infos", ()):  # of a parameter that several weights make up
        declared = Declarations.of(info.module)
        if declared is not None and info.param_name in declared.manifolds:
            names.append(qualified(info.module_name, info.param_name))
    if names:
        raise ValueError(f"{names[0]} is declared, and is wrapped {_FLATTENING}")


def declared_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, Declarations]]:
    """The modules of a model that have declarations, with their qualified names."""
    check_module(model)
    for prefix, module in model.named_modules():
        refuse_flattening(module)
        declarations = Declarations.of(module)
        if declarations is not None:
            yield prefix, module, declarations


def declared_parameters(
    model: nn.Module, *, tied: bool = False
) -> dict[str, tuple[nn.Parameter, Manifold]]:
    """The declared parameters of a model by qualified name, in the order of `named_parameters`.

    Args:
        model: any module.
        tied: include every name of a shared tensor, not only the first.

    Raises:
        TypeError: if `model` is no module.
        RuntimeError: if a declared parameter is gone from its module.
        ValueError: if one tensor is declared on two different manifolds, or torch's old FSDP has
            flattened weights of the model.
    """
    seen: dict[int, tuple[str, Manifold]] = {}
    for prefix, module, declarations in declared_modules(model):
        for local, manifold in list(declarations.manifolds.items()):
            name = qualified(prefix, local)
            declared = module._parameters.get(local)
            if declared is None and local in declarations.inherited:
                continue  # only its first name was declared: that one is reported
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
        declarations.refresh()
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=not tied):
        manifold_ = manifold_of(parameter)
        if manifold_ is not None:
            found[name] = (parameter, manifold_)
    return found


def qualified(prefix: str, name: str) -> str:
    """The name of a parameter as `named_parameters` gives it."""
    return f"{prefix}.{name}" if prefix else name


def unwrapped(names: Iterable[str]) -> list[str]:
    """Names of parameters without the parts that come from torch's wrappers.

    `"_orig_mod.body._checkpoint_wrapped_module.weight"` is `"body.weight"`. If two names became
    equal (a model may have a part of its own called `module`), all are returned as they are.
    """
    names = list(names)
    bare = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names]
    return bare if len(set(bare)) == len(set(names)) else names
