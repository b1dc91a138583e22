"""What the Riemannian optimizers share: whose step is whose, and what is checked when.

One step of one declared weight x is always

    d = manifold.egrad2rgrad(x, grad)                  the Riemannian gradient
    u, buffers = the algorithm's direction             SGD: momentum; Adam: moments
    x, buffers = manifold.retr_transp(x, −lr u, …)     the step, and the buffers carried along it

and an undeclared one is handed to torch's own function, so that it moves bit for bit as with
`torch.optim`. Manifolds are looked up in the registry, never guessed from a tensor's type; what
the groups carry about them serves to verify checkpoints. `.grad` is never changed.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from manifoldnet import registry
from manifoldnet.geometry import Euclidean, Manifold, slices
from manifoldnet.optim import checkpoint, native, plane, traced
from manifoldnet.optim.checks import check_point, refuse_nonfinite, users_level
from manifoldnet.optim.growth import NormGrowthWarning, growing, overflowing
from manifoldnet.optim.kind import Kind, kind_of
from manifoldnet.optim.work import Rates, Work

__all__ = ["RiemannianOptimizer"]


# A weight, its manifold, and what the fast paths know of that. Not a named tuple: Dynamo (2.13)
# cannot guard one.
Declared = tuple[Tensor, Manifold | None, Kind | None]

# How a step is computed, which a checkpoint of another machine does not decide.
_PATHS: tuple[str, ...] = ("foreach", "fused", "capturable")


class RiemannianOptimizer(Optimizer, ABC):
    """Base of the optimizers that follow the geometry of declared weights."""

    #: The state that a parameter may have; anything else belongs to another optimizer.
    state_keys: ClassVar[frozenset[str]]

    #: For `manifoldnet.foreign`, which warns of all optimizers without it.
    _follows_declarations: ClassVar[bool] = True

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._reset()
        super().__init__(params, defaults)

    def _reset(self) -> None:
        # Not by weak reference: torch swaps no tensor that has one (swap_module_params).
        self._cache: dict[int, Declared] = {}
        self._places: list[list[Declared]] = []
        self._clock = -1
        self._keep: list[registry.Declarations] = []
        self._verified = False
        self._steps = 0
        self._warned: set[str] = set()

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_cache" not in self.__dict__:
            self._reset()
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    # --- whose step is whose ------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as in torch, after checking its options and the points in it.

        Beside groups with names, one without gets names by its place (`"group2.0"`): callbacks
        that unfreeze layers while a model trains know none.

        Raises:
            ValueError: for options that declared weights cannot honour, and for declared weights
                that are off their manifolds.
        """
        checkpoint.name_parameters(param_group, self.param_groups)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            if group["differentiable"]:
                raise ValueError(
                    "differentiable=True is not supported: a step is taken without a graph"
                )
            if group["fused"] and group["foreach"]:
                raise ValueError("fused=True excludes foreach=True")
            self._check_options(group)
            registry.refresh()
            found = [_manifold(p) for p in group["params"]]
            group["manifolds"] = [None if m is None else m.spec() for m in found]
            if group["fused"]:
                self._check_devices(group, found)
            if any(m is not None for m in found):
                self._check_declared_options(group, all(m is not None for m in found))
            for name, parameter, manifold in zip(
                self._names(group), group["params"], found, strict=True
            ):
                check_point(name, parameter, manifold)
        except Exception:
            self.param_groups.pop()
            raise
        for parameter, manifold in zip(group["params"], found, strict=True):
            self._cache[id(parameter)] = _declared(parameter, manifold)
            # The records outlive a model that is thrown away while its weights still train.
            self._keep += [declarations for declarations, _ in registry.records(parameter)]
        self._places.append([self._cache[id(p)] for p in group["params"]])

    @abstractmethod
    def _check_options(self, group: dict[str, Any]) -> None:
        """Raise ValueError for options that are out of range."""

    def _check_declared_options(self, group: dict[str, Any], only_declared: bool) -> None:
        if only_declared and group["weight_decay"] != 0:
            raise ValueError(
                f"weight_decay={group['weight_decay']} for a group of declared weights: on a "
                "norm-constrained weight it has no effect, and it breaks the invariance of the "
                "scaled metric. Use param_groups(model, weight_decay=…), which gives it to the "
                "other parameters only"
            )

    def _check_devices(self, group: dict[str, Any], found: list[Manifold | None]) -> None:
        for name, p, manifold in zip(self._names(group), group["params"], found, strict=True):
            if manifold is not None and p.device.type not in ("cpu", "meta"):
                raise ValueError(
                    f"fused=True: {name} is declared on {manifold} and is on {p.device}, and the "
                    "kernel is for processors. Leave fused out and compile the step with "
                    "torch.compile(optimizer.step), or give fused=True to undeclared weights only"
                )

    def _names(self, group: dict[str, Any]) -> list[str]:
        """What to call the parameters of a group in messages."""
        names: list[str] | None = group.get("param_names")
        if names is not None and len(names) == len(group["params"]):
            return names
        number = next(i for i, g in enumerate(self.param_groups) if g is group)
        return [
            f"parameter {i} of group {number} (shape {tuple(p.shape)})"
            for i, p in enumerate(group["params"])
        ]

    def _split(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Declared]]:
        """The parameters of a group that have a gradient: the plain ones, and the declared."""
        compiling = torch.compiler.is_compiling()
        if not compiling and self._clock != (version := registry.version()):
            changed = registry.changed_since(self._clock)
            if changed is None or not changed.isdisjoint(self._cache):
                self._resolve()
            self._clock = version
        plain, declared = [], []
        for place, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            if compiling:  # a graph is of the declarations that it was made with
                entry = self._entry_at(group, place)
            else:
                found = self._cache.get(id(p))
                if found is None or found[0] is not p:
                    self._resolve()
                    found = self._cache[id(p)]
                entry = found
            _, manifold, _ = entry
            if manifold is None:
                plain.append(p)
                continue
            if p.grad.is_sparse:
                name = self._names(group)[next(i for i, q in enumerate(group["params"]) if q is p)]
                raise RuntimeError(
                    f"{name} has a sparse gradient, and a step on {manifold} needs all of a "
                    "slice: make the layer with sparse=False, or undeclare it"
                )
            declared.append(entry)
        return plain, declared

    def _entry_at(self, group: dict[str, Any], place: int) -> Declared:
        number = next(i for i, g in enumerate(self.param_groups) if g is group)
        p, manifold, kind = self._places[number][place]
        return p, manifold, kind

    def _resolve(self) -> None:
        """Look all manifolds up anew, and refuse to go on if a declaration has changed."""
        version = registry.version()
        registry.refresh()
        keep: list[registry.Declarations] = []
        old, cache = self._cache, {}
        present = {id(p) for group in self.param_groups for p in group["params"]}
        lost = any(m is not None for key, (_, m, _) in old.items() if key not in present)
        for group in self.param_groups:
            specs = group.get("manifolds", ())
            known = specs if len(specs) == len(group["params"]) else [...] * len(group["params"])
            for i, (p, spec) in enumerate(zip(group["params"], known, strict=True)):
                manifold = _manifold(p)
                now = None if manifold is None else manifold.spec()
                if spec is ... and id(p) not in old and manifold is None and lost:
                    raise RuntimeError(
                        f"{self._names(group)[i]} is not declared, and stands in groups that were "
                        "rewritten and have lost declared weights: put the parameters of the "
                        "declared model there"
                    )
                if spec is not ... and spec != now:
                    raise RuntimeError(
                        f"{self._names(group)[i]} was {_said(spec)} when it was given to this "
                        f"optimizer and is {_said(now)} now (declared, undeclared, or copied "
                        "without its module?): make the optimizer after the declarations"
                    )
                cache[id(p)] = _declared(p, manifold)
                keep += [declarations for declarations, _ in registry.records(p)]
            group["manifolds"] = [
                None if (m := cache[id(p)][1]) is None else m.spec() for p in group["params"]
            ]
        self._keep = list({id(d): d for d in keep}.values())
        self._cache = cache
        self._places = [[cache[id(p)] for p in g["params"]] for g in self.param_groups]
        self._clock = version

    # --- the step -----------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` as in torch: it recomputes the loss, with gradients enabled.

        Raises:
            RuntimeError: for sparse gradients of declared weights; for gradients that are not
                finite, if the group asks for that with `error_if_nonfinite`. No weight has
                been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, *self._split(group)) for group in self.param_groups]
        if not self._verified and not torch.compiler.is_compiling():
            self._verify(work)
        for group, _, _ in work:
            if group["error_if_nonfinite"]:
                refuse_nonfinite(self._names(group), group["params"])
        for group, plain, declared in work:
            if plain:
                self._step_plain(group, plain)
            if declared:
                self._step_declared(group, declared)
        if not torch.compiler.is_compiling():
            self._steps += 1
        return loss

    @abstractmethod
    def _step_plain(self, group: dict[str, Any], plain: list[Tensor]) -> None:
        """Step undeclared parameters with torch's own function."""

    def _step_declared(self, group: dict[str, Any], declared: list[Declared]) -> None:
        """Step declared weights, each by the fastest path that there is for it and is asked for."""
        by_kernel: list[Declared] = []
        layouts: list[native.Layout] = []
        by_plane: list[Declared] = []
        watched: list[Declared] = []
        fused, fast = group["fused"], group["foreach"] is not False and not group.get("nesterov")
        if torch.compiler.is_compiling():
            self._step_traced(group, declared)
            return
        for entry in declared:
            p, _, kind = entry
            if kind is not None and fused and (layout := native.takes(p, kind)) is not None:
                by_kernel.append(entry)
                layouts.append(layout)
                continue
            watched.append(entry)
            if kind is not None and fast:
                by_plane.append(entry)
            else:
                self._step_alone(group, entry)
        if by_plane:
            plane.step(self._works(group, by_plane), self._rates(group))
        if by_kernel:
            squares = native.step(self._works(group, by_kernel), self._rates(group), layouts)
            watched += [
                entry
                for entry, square in zip(by_kernel, squares, strict=True)
                if growing(square, entry[0].dtype)
            ]
        elif self._steps > 128 and self._steps % 100:
            return
        self._watch_growth(group, watched)

    def _step_traced(self, group: dict[str, Any], declared: list[Declared]) -> None:
        """The same inside a graph, where nothing can be asked that waits for an answer."""
        known = []
        for entry in declared:
            _, _, kind = entry
            if kind is not None and not group.get("nesterov"):
                known.append(entry)
            else:
                self._step_alone(group, entry)
        if known:
            traced.step(self._works(group, known), self._rates(group), bool(group["fused"]))

    def _step_alone(self, group: dict[str, Any], entry: Declared) -> None:
        p, manifold, _ = entry
        assert manifold is not None  # so chosen by _split
        assert p.grad is not None
        # Under `detach` a ManifoldParameter is an ordinary tensor on the same memory.
        self._step_reference(group, p.detach(), p.grad, self.state[p], manifold)

    @abstractmethod
    def _step_reference(
        self,
        group: dict[str, Any],
        x: Tensor,
        grad: Tensor,
        state: dict[str, Any],
        manifold: Manifold,
    ) -> None:
        """Step one declared weight, in place, by the formulas as they are written."""

    @abstractmethod
    def _works(self, group: dict[str, Any], declared: list[Declared]) -> list[Work]:
        """What the fast paths are given; buffers that are missing are made."""

    @abstractmethod
    def _rates(self, group: dict[str, Any]) -> Rates:
        """The numbers of a group, for the fast paths."""

    def _verify(self, work: list[Any]) -> None:
        """Before the first step and after loading: are the points on their manifolds?"""
        for group, _, declared in work:
            manifold_of = {id(p): m for p, m, _ in declared}
            for name, p in zip(self._names(group), group["params"], strict=True):
                check_point(name, p, manifold_of.get(id(p)))
        self._verified = True

    def _watch_growth(self, group: dict[str, Any], declared: list[Declared]) -> None:
        """Warn once of each weight whose norm will overflow."""
        for p, manifold, _ in declared:
            assert manifold is not None  # so chosen by _split
            trouble = overflowing(p, manifold)
            if trouble is None:
                continue
            number = next(i for i, q in enumerate(group["params"]) if q is p)
            name = self._names(group)[number]
            if name not in self._warned:
                self._warned.add(name)
                warnings.warn(f"{name}: {trouble}", NormGrowthWarning, stacklevel=users_level())

    # --- checkpoints --------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state: by parameter name where both sides have names, else in torch's order.

        A state that `torch.optim` saved for the same model is taken over: its buffers become
        Riemannian ones. Hooks run as torch documents: those before loading come first, and may
        convert a foreign state; what they give is checked. Entries that a wrapper keeps beside
        ours are kept. Nothing is changed if anything does not fit.

        Raises:
            ValueError: if the parameters, shapes, or manifolds differ from the saved ones, the
                state is of another optimizer, or values are of a wrong type, or not finite for a
                declared weight.
            TypeError: for options that are no numbers.
        """
        exact: dict[Tensor, dict[str, Any]] = {}
        # The last hook before loading and the first one after it.
        handles = [
            self.register_load_state_dict_pre_hook(lambda _, saved: self._fitting(saved, exact)),
            self.register_load_state_dict_post_hook(lambda _: self._put(exact), prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _fitting(self, saved: dict[str, Any], exact: dict[Tensor, dict[str, Any]]) -> Any:
        """A saved state in the order of our groups, after all checks.

        The state of declared weights is put into `exact`, too.
        """
        aligned = checkpoint.align(self.param_groups, saved)
        specs = checkpoint.saved_specs(aligned)
        self._resolve()
        number = 0
        for group, merged in zip(self.param_groups, aligned["param_groups"], strict=True):
            manifolds = [self._cache[id(p)][1] for p in group["params"]]
            kept = _PATHS if any(m is not None for m in manifolds) else ()
            if manifolds and all(m is not None for m in manifolds):
                kept = ("weight_decay", *kept)
            merged.update({key: group[key] for key in kept if key in group})
            self._check_options({**self.defaults, **merged})
            for name, p, manifold in zip(
                self._names(group), group["params"], manifolds, strict=True
            ):
                now = None if manifold is None else manifold.spec()
                if specs is not None and specs[number] != now:
                    raise ValueError(
                        f"{name} was {_said(specs[number])} when this state was saved and is "
                        f"{_said(now)} now: declare it as it was, or start with a new optimizer"
                    )
                state = aligned["state"].get(number, {})
                checkpoint.check_entries(
                    name, state, self.state_keys, type(self).__name__, manifold is not None
                )
                if manifold is not None:
                    if specs is None:
                        more = {k: v for k, v in state.items() if k not in self.state_keys}
                        ours = {k: v for k, v in state.items() if k in self.state_keys}
                        state = {**more, **self._adopt(group, p.detach(), ours, manifold)}
                    exact[p] = state
                self._check_state(name, p, state, manifold)
                if state:
                    aligned["state"][number] = state
                number += 1
            merged["manifolds"] = group["manifolds"]
        return aligned

    def _put(self, exact: dict[Tensor, dict[str, Any]]) -> None:
        """Put the state of declared weights in its own type.

        torch casts it to that of the parameter; ours is float32 for half weights.
        """
        for p, state in exact.items():
            (like,) = slices.promote(p.detach())
            for key in self.state_keys - {"step"}:
                if isinstance(value := state.get(key), Tensor):
                    self.state[p][key] = value.to(like.device, like.dtype, copy=True)
        self._verified = False

    @abstractmethod
    def _adopt(
        self, group: dict[str, Any], x: Tensor, state: dict[str, Any], manifold: Manifold
    ) -> dict[str, Any]:
        """The Riemannian state for a declared weight that a plain optimizer's state stands for."""

    def _check_state(
        self, name: str, p: Tensor, state: dict[str, Any], manifold: Manifold | None
    ) -> None:
        for key in self.state_keys - {"step"}:
            value = state.get(key)
            if not isinstance(value, Tensor):
                continue
            expected = self._state_shape(key, p, manifold)
            if value.shape != expected:
                raise ValueError(
                    f"{key} of {name} has shape {tuple(value.shape)} in the saved state, and "
                    f"{tuple(expected)} is needed: it belongs to another model"
                )

    def _state_shape(self, key: str, p: Tensor, manifold: Manifold | None) -> torch.Size:
        return p.shape


def _declared(p: Tensor, manifold: Manifold | None) -> Declared:
    return p, manifold, (None if manifold is None else kind_of(manifold))


def _manifold(p: Tensor) -> Manifold | None:
    """The manifold to step a tensor on; None for flat space, declared or not."""
    manifold = registry.manifold_of(p)
    return None if isinstance(manifold, Euclidean) else manifold


def _said(spec: Any) -> str:
    return "not declared" if spec is None else f"declared on {spec['manifold']} {spec['fields']}"


def plain_tensors(parameters: list[Tensor]) -> Iterator[Tensor]:
    """Parameters as torch's own functions like them: its fast paths refuse subclasses."""
    return (p if type(p) is torch.nn.Parameter else p.detach() for p in parameters)
