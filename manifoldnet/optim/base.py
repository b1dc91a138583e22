"""Base of the Riemannian optimizers: groups, checks, and the choice of a path for each weight.

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
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from manifoldnet import registry
from manifoldnet.geometry import Euclidean, Manifold, slices
from manifoldnet.optim import checkpoint, memory
from manifoldnet.optim.backends import compiled, cpp, torch_ops
from manifoldnet.optim.checks import check_point, refuse_nonfinite, users_level
from manifoldnet.optim.memory import Entry, Expected
from manifoldnet.optim.motion import Motion
from manifoldnet.optim.overflow import (
    NormGrowthWarning,
    ZeroSliceWarning,
    growing,
    overflowing,
    zero_slices,
)
from manifoldnet.optim.step import HyperParameters, SliceGeometry, StepInput, slice_geometry

__all__ = ["RiemannianOptimizer"]


# A weight, its manifold, and what the fast paths know of that. Not a named tuple: Dynamo (2.13)
# cannot guard one.
Declared = tuple[Tensor, Manifold | None, SliceGeometry | None]

# A group with its undeclared parameters and declared weights that have gradients.
StepWork = tuple[dict[str, Any], list[Tensor], list[Declared]]


class PlainCall(NamedTuple):
    """One call of a functional optimizer of torch: `fused`, and its lists of tensors."""

    fused: bool | None
    params: list[Tensor]
    grads: list[Tensor]
    state: tuple[list[Any], ...]
    special: bool  # whether there is a sparse gradient (SGD) or a complex parameter (Adam)


_EMPTY: dict[str, Any] = {}

# How a step is computed, which a checkpoint of another machine does not decide.
_PATHS: tuple[str, ...] = ("foreach", "fused", "capturable")


class RiemannianOptimizer(Optimizer, ABC):
    """Base of the optimizers that follow the geometry of declared weights."""

    #: The state that a parameter may have, and the shape of each entry.
    state_entries: ClassVar[dict[str, Entry]]
    #: Whether torch's function needs the state of undeclared parameters in their own type.
    converts_plain: ClassVar[bool] = False
    #: Anything else belongs to another optimizer.
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
        self._warned: set[tuple[str, type[UserWarning]]] = set()
        self._options: dict[int, tuple[Any, ...]] = {}
        self._option_values: Callable[[dict[str, Any]], tuple[Any, ...]] | None = None
        self._expected: dict[int, Expected] = {}
        self._seen: memory.Seen | None = None
        self._alarming: list[tuple[dict[str, Any], Declared]] = []
        # Undeclared parameters, by `id`, whose memory has holes.
        self._strewn: set[int] = set()
        # Gradients in the order of memory of their weights, for the time of a step.
        self._laid_out: dict[int, Tensor] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_cache" not in self.__dict__:
            self._reset()
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
        self._forget_checks()

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
        number = len(self.param_groups) - 1
        try:
            registry.refresh()
            found = [_manifold(p) for p in group["params"]]
            group["manifolds"] = [None if m is None else m.spec() for m in found]
            self._check_group(number, group, any(m is not None for m in found))
            if group["fused"]:
                self._check_devices(group, found)
            for name, parameter, manifold in zip(
                self._names(group), group["params"], found, strict=True
            ):
                check_point(name, parameter, manifold)
        except Exception:
            self.param_groups.pop()
            self._options.pop(number, None)
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
        """The names of the parameters of a group in messages."""
        names: list[str] | None = group.get("param_names")
        if names is not None and len(names) == len(group["params"]):
            return names
        number = next(i for i, g in enumerate(self.param_groups) if g is group)
        return [
            f"parameter {i} of group {number} (shape {tuple(p.shape)})"
            for i, p in enumerate(group["params"])
        ]

    def _name_of(self, group: dict[str, Any], p: Tensor) -> str:
        """The name of one parameter of a group in messages."""
        return self._names(group)[next(i for i, q in enumerate(group["params"]) if q is p)]

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
                raise RuntimeError(
                    f"{self._name_of(group, p)} has a sparse gradient, and a step on {manifold} "
                    "needs all of a slice: make the layer with sparse=False, or undeclare it"
                )
            declared.append(entry)
        return plain, declared

    def _entry_at(self, group: dict[str, Any], place: int) -> Declared:
        number = next(i for i, g in enumerate(self.param_groups) if g is group)
        p, manifold, geometry = self._places[number][place]
        return p, manifold, geometry

    def _resolve(self) -> None:
        """Look all manifolds up again; RuntimeError if a declaration has changed."""
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
        self._forget_checks()

    def _forget_checks(self) -> None:
        """Make the next step check options and memory again."""
        self._options.clear()
        self._expected.clear()
        self._strewn.clear()
        self._seen = None

    # --- the step -----------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` as in torch: it recomputes the loss, with gradients enabled.

        A zero slice has no direction: it stays as it is, with a `ZeroSliceWarning`. A slice whose
        step is zero keeps its bits.

        Raises:
            RuntimeError: for sparse gradients of declared weights; for weights that were resized
                without their state; for gradients that are not finite, if the group asks for that
                with `error_if_nonfinite`.
            ValueError: for options of a group that are out of range, or that declared weights
                cannot honour.
            TypeError: for options that are no numbers.

        Whatever is raised, no weight and no state has been changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        works = [(group, *self._split(group)) for group in self.param_groups]
        if torch.compiler.is_compiling():
            self._take(works)
            return loss
        self._laid_out.clear()
        self._alarming.clear()
        self._check(works)
        self._take(works)
        self._laid_out.clear()
        self._steps += 1
        self._warn_of_norms()
        return loss

    def _take(self, works: list[StepWork]) -> None:
        """Step all weights, those of torch's functions after all of them were prepared."""
        prepared = [self._prepare_plain(group, plain) for group, plain, _ in works]
        for (group, _, declared), calls in zip(works, prepared, strict=True):
            for call in calls:
                self._step_plain(group, call)
            if declared:
                self._step_declared(group, declared)

    def _check(self, works: list[StepWork]) -> None:
        """Check all groups for a step; only then convert state to the form of its weights."""
        for number, (group, _, declared) in enumerate(works):
            self._check_group(number, group, bool(declared))
            if declared and group["fused"]:
                cpp.there()  # it may have to be compiled, and warns if it cannot
        if not self._verified:
            self._verify(works)
        for group, _, _ in works:
            if group["error_if_nonfinite"]:
                refuse_nonfinite(self._names(group), group["params"])
        if self._seen is not None and self._seen.same(*self._tensors(works)):
            return
        self._seen = None
        found: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
        for group, plain, declared in works:
            for p, manifold, _ in declared:
                found += self._check_state_of(group, p, manifold)
            for p in plain:
                found += self._check_state_of(group, p, None)
        for state, values in found:
            state.update(values)
        tensors, places = self._tensors(works)
        if not self._laid_out and all(x.layout is torch.strided for x in tensors):
            self._seen = memory.Seen(tensors, places)

    def _tensors(self, works: list[StepWork]) -> tuple[list[Any], list[int]]:
        """All tensors of a step (weights, gradients, state), and the numbers that identify them."""
        found: list[Any] = []
        places: list[int] = []
        state, empty = self.state, _EMPTY
        for number, (_, plain, declared) in enumerate(works):
            places.append(number)
            for p in plain:
                found += (p, p.grad, *state.get(p, empty).values())
                places.append(id(p))
            for p, _, _ in declared:
                found += (p, p.grad, *state.get(p, empty).values())
                places.append(id(p))
        return found, places

    def _check_group(self, number: int, group: dict[str, Any], any_declared: bool) -> None:
        """Check the options of a group unless they are those of the last step."""
        if self._option_values is None:
            self._option_values = itemgetter(*self.defaults)
        options = (any_declared, *self._option_values(group))
        try:
            if self._options.get(number) == options:
                return
        except RuntimeError:  # tensors of several elements have no truth value
            pass
        if group["differentiable"]:
            raise ValueError(
                "differentiable=True is not supported: a step is taken without a graph"
            )
        if group["fused"] and group["foreach"]:
            raise ValueError("fused=True excludes foreach=True")
        self._check_options(group)
        if any_declared:
            only = all(spec is not None for spec in group["manifolds"])
            self._check_declared_options(group, only)
        self._options[number] = options
        self._seen = None

    def _check_state_of(
        self, group: dict[str, Any], p: Tensor, manifold: Manifold | None
    ) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
        """Check one weight and its state; return the entries of the state to replace."""
        want = self._expected.get(id(p))
        if want is None or want.weight != memory.form(p):
            want = self._expected[id(p)] = memory.expected(p, manifold)
            if manifold is None:
                mark = self._strewn.add if want.plain and not want.dense else self._strewn.discard
                mark(id(p))
        grad = p.grad
        assert grad is not None  # so chosen by _split
        state: dict[str, Any] = self.state.get(p, {})

        def name() -> str:
            return self._name_of(group, p)

        fused, plain = bool(group["fused"]), manifold is None
        if plain:
            self._check_plain(name, group, p, grad)
        on_device = group.get("capturable") or (fused and plain)
        values = memory.check(
            name,
            p,
            grad,
            state,
            want,
            self.state_entries,
            # torch's fused functions take a weight's state and gradient to lie as the weight does,
            # and some others take them to be of its type.
            convert=not plain or (want.dense if fused else self.converts_plain),
            count_on=p.device if on_device else None,
        )
        if state:
            values |= self._missing_entries(name, group, state | values)
        if fused and grad.layout is torch.strided and want.dense:
            fitting = memory.laid_out(grad, p.detach())
            if fitting is not grad:
                self._laid_out[id(p)] = fitting
        return [(state, values)] if values else []

    @staticmethod
    def _memory_of(p: Tensor) -> Tensor:
        """The weight as an ordinary tensor on the same memory."""
        return p if type(p) is torch.nn.Parameter else p.detach()

    def _gradient(self, p: Tensor) -> Tensor:
        """The gradient of a weight as its step reads it."""
        grad = self._laid_out.get(id(p), p.grad) if self._laid_out else p.grad
        assert grad is not None  # so chosen by _split
        return grad

    def _check_plain(
        self, name: Callable[[], str], group: dict[str, Any], p: Tensor, grad: Tensor
    ) -> None:
        """Raise RuntimeError for an undeclared parameter that torch would refuse to step."""

    def _missing_entries(
        self, name: Callable[[], str], group: dict[str, Any], state: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Entries that a state lacks for the options of its group; RuntimeError without a value."""
        return {}

    @abstractmethod
    def _prepare_plain(self, group: dict[str, Any], plain: list[Tensor]) -> list[PlainCall]:
        """Calls of torch's own function that step undeclared parameters."""

    @abstractmethod
    def _step_plain(self, group: dict[str, Any], call: PlainCall) -> None:
        """Step undeclared parameters with torch's own function."""

    def _for_fused(
        self, group: dict[str, Any], plain: list[Tensor]
    ) -> list[tuple[bool | None, list[Tensor]]]:
        """Undeclared parameters with the `fused` to step them with.

        On a processor torch's fused functions run over memory from a weight's first number on; one
        with holes is for the others.
        """
        if not plain or not group["fused"] or not self._strewn:
            return [(group["fused"], plain)] if plain else []
        dense = [p for p in plain if id(p) not in self._strewn]
        strewn = [p for p in plain if id(p) in self._strewn]
        return [(fused, some) for fused, some in ((True, dense), (False, strewn)) if some]

    def _step_declared(self, group: dict[str, Any], declared: list[Declared]) -> None:
        """Step declared weights, each by the fastest path that supports it and is allowed."""
        if torch.compiler.is_compiling():
            self._step_compiled(group, declared)
            return
        by_kernel: list[Declared] = []
        layouts: list[cpp.Layout] = []
        by_torch: list[Declared] = []
        alarming: list[Declared] = []  # that a warning may be due for
        fast = group["foreach"] is not False
        fused = group["fused"] and cpp.there()
        scheduled = self._steps <= 128 or self._steps % 100 == 0
        for entry in declared:
            p, manifold, geometry = entry
            want = self._expected[id(p)]
            if fused and want.layout is not None:
                by_kernel.append(entry)
                layouts.append(want.layout)
                continue
            if not want.plain:
                geometry = None
            if geometry is not None and fast:
                by_torch.append(entry)
            elif self._step_alone(group, entry):
                alarming.append(entry)
            grows = manifold is not None and manifold.scale_invariant
            if scheduled and (grows or (self._steps % 100 == 0 and p.device.type != "cpu")):
                alarming.append(entry)
        if by_torch:
            works = self._works(group, by_torch)
            zero = torch_ops.step(works, self._hyper(group))
            self._keep_buffers(by_torch, works)
            alarming += [entry for entry, found in zip(by_torch, zero, strict=True) if found]
        if by_kernel:
            works = self._works(group, by_kernel)
            squares = cpp.step(works, self._hyper(group), layouts)
            self._keep_buffers(by_kernel, works)
            alarming += [
                entry
                for entry, (least, most) in zip(by_kernel, squares, strict=True)
                if not least > 0 or growing(most, entry[0].dtype)
            ]
        self._alarming += [(group, entry) for entry in alarming]

    def _step_compiled(self, group: dict[str, Any], declared: list[Declared]) -> None:
        """Step declared weights inside a graph, without reading values."""
        known = []
        for entry in declared:
            _, _, geometry = entry
            if geometry is not None:
                known.append(entry)
            else:
                self._step_alone(group, entry)
        if known:
            works = self._works(group, known)
            compiled.step(works, self._hyper(group), bool(group["fused"]))
            self._keep_buffers(known, works)

    def _step_alone(self, group: dict[str, Any], entry: Declared) -> bool:
        """Step one weight by the formulas; return whether a slice is known to be zero."""
        p, manifold, geometry = entry
        assert manifold is not None  # so chosen by _split
        assert p.grad is not None
        # Under `detach` a ManifoldParameter is an ordinary tensor on the same memory.
        x = p.detach()
        motion = Motion(x, manifold, geometry)
        state = self.state.get(p, {})
        self._step_reference(group, motion, p.grad, state)
        if state:
            self.state[p] = state
        return motion.any_zero

    @abstractmethod
    def _step_reference(
        self, group: dict[str, Any], motion: Motion, grad: Tensor, state: dict[str, Any]
    ) -> None:
        """Step one declared weight, in place, by the reference formulas."""

    @abstractmethod
    def _works(self, group: dict[str, Any], declared: list[Declared]) -> list[StepInput]:
        """The input of the fast paths, with new buffers where there are none."""

    def _keep_buffers(self, declared: list[Declared], works: list[StepInput]) -> None:
        """Put new buffers into the state, once a step has given them values."""

    @abstractmethod
    def _hyper(self, group: dict[str, Any]) -> HyperParameters:
        """The hyperparameters of a group, for the fast paths."""

    def _verify(self, works: list[StepWork]) -> None:
        """Check the points of a group, before the first step and after loading."""
        for group, _, declared in works:
            manifold_of = {id(p): m for p, m, _ in declared}
            for name, p in zip(self._names(group), group["params"], strict=True):
                check_point(name, p, manifold_of.get(id(p)))
        self._verified = True

    def _warn_of_norms(self) -> None:
        """Warn once of each weight that has a zero slice or whose norm will overflow.

        After the step, since a warning may be an error.
        """
        for group, (p, manifold, geometry) in self._alarming:
            assert manifold is not None  # so chosen by _split
            found: list[tuple[type[UserWarning], str | None]] = [
                (NormGrowthWarning, overflowing(p, manifold)),
                (ZeroSliceWarning, zero_slices(p, manifold) if geometry is not None else None),
            ]
            for category, trouble in found:
                if trouble is None:
                    continue
                name = self._name_of(group, p)
                if (name, category) not in self._warned:
                    self._warned.add((name, category))
                    warnings.warn(f"{name}: {trouble}", category, stacklevel=users_level())

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
        """Convert the state of declared weights to its type.

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
        """The Riemannian state of a declared weight, from the state of a plain optimizer."""

    def _check_state(
        self, name: str, p: Tensor, state: dict[str, Any], manifold: Manifold | None
    ) -> None:
        want = memory.expected(p, manifold)
        for key, entry in self.state_entries.items():
            value = state.get(key)
            shape = (want.whole if entry == "weight" else want.per_slice)[2]
            if entry != "step" and isinstance(value, Tensor) and value.shape != shape:
                raise ValueError(
                    f"{key} of {name} has shape {tuple(value.shape)} in the saved state, and "
                    f"{tuple(shape)} is needed: it belongs to another model"
                )


def _declared(p: Tensor, manifold: Manifold | None) -> Declared:
    return p, manifold, (None if manifold is None else slice_geometry(manifold))


def _manifold(p: Tensor) -> Manifold | None:
    """The manifold to step a tensor on; None for Euclidean space, declared or not."""
    manifold = registry.manifold_of(p)
    return None if isinstance(manifold, Euclidean) else manifold


def _said(spec: Any) -> str:
    return "not declared" if spec is None else f"declared on {spec['manifold']} {spec['fields']}"


def plain_tensors(parameters: list[Tensor]) -> Iterator[Tensor]:
    """Parameters as plain tensors: torch's fast paths refuse subclasses."""
    return (p if type(p) is torch.nn.Parameter else p.detach() for p in parameters)
