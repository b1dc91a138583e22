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

import inspect
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from manifoldnet import registry
from manifoldnet.geometry import Manifold, PairFactor, slices
from manifoldnet.optim import backends, checkpoint, memory, pairs, shards
from manifoldnet.optim.backends import compiled
from manifoldnet.optim.checks import (
    check_point,
    is_elsewhere,
    refuse_missing,
    refuse_nonfinite,
    users_level,
)
from manifoldnet.optim.groups import (
    Declared,
    GroupWork,
    Plain,
    PlainCall,
    described,
    spec_of,
    weight_of,
)
from manifoldnet.optim.memory import Entry
from manifoldnet.optim.motion import Motion
from manifoldnet.optim.overflow import (
    NormGrowthWarning,
    ZeroSliceWarning,
    alarming,
    overflowing,
    zero_slices,
)
from manifoldnet.optim.pairs import AnyMotion
from manifoldnet.optim.step import HyperParameters, StepInput, Unbias

__all__ = ["RiemannianOptimizer"]


_EMPTY: dict[str, Any] = {}

# How a step is computed, which a checkpoint of another machine does not decide.
_PATHS: tuple[str, ...] = ("foreach", "fused", "capturable")


class RiemannianOptimizer(Optimizer, ABC):
    """Base of the optimizers that follow the geometry of declared weights."""

    #: The state that a parameter may have, and the shape of each entry.
    state_entries: ClassVar[dict[str, Entry]]
    #: Whether torch's function needs the state of undeclared parameters in their own type.
    converts_plain: ClassVar[bool] = False
    #: torch's optimizer of undeclared parameters, and the lists of state that its function takes.
    plain_optimizer: ClassVar[Any]
    plain_lists: ClassVar[tuple[str, ...]]
    #: Anything else belongs to another optimizer.
    state_keys: ClassVar[frozenset[str]]

    #: For `manifoldnet.foreign`, which warns of all optimizers without it.
    _follows_declarations: ClassVar[bool] = True

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._reset()
        super().__init__(params, defaults)

    def _reset(self) -> None:
        # What is known of the parameters of each group, in their order. Not by weak reference:
        # torch swaps no tensor that has one (swap_module_params).
        self._weights: list[list[Plain]] = []
        self._ids: list[list[int]] = []
        self._copied: list[Plain] = []
        self._clock = -1
        self._options: dict[int, tuple[Any, ...]] = {}
        self._verified = False
        self._seen: memory.Seen | None = None
        self._works: list[GroupWork] = []
        self._plans = backends.Plans()
        self._steps = 0
        self._warned: set[tuple[str, type[UserWarning]]] = set()

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_weights" not in self.__dict__:
            self._reset()
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
        self._forget_checks()

    def __repr__(self) -> str:
        """A line for each group: its weights by manifold, and the options that are set."""
        usual = inspect.signature(type(self)).parameters
        lines = []
        for number, group in enumerate(self.param_groups):
            places = Counter(str(registry.manifold_of(p) or "") for p in group["params"])
            weights = [f"{n} on {on}" if on else f"{n} free" for on, n in places.items()]
            options = [
                f"{key}={value}"
                for key, value in group.items()
                if key in usual and key != "params"
                if key == "lr" or value != usual[key].default
            ]
            lines.append(f"  group {number}: {', '.join(weights)}; {', '.join(options)}")
        return "\n".join((f"{type(self).__name__}(", *lines, ")"))

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
            weights = [weight_of(p) for p in group["params"]]
            group["manifolds"] = [spec_of(weight) for weight in weights]
            any_declared = any(isinstance(weight, Declared) for weight in weights)
            self._check_group(number, group, any_declared)
            for name, weight in zip(self._names(group), weights, strict=True):
                if isinstance(weight, Declared):
                    if group["fused"]:
                        self._check_device(name, weight)
                    check_point(name, weight.p, weight.manifold)
        except Exception:
            self.param_groups.pop()
            self._options.pop(number, None)
            raise
        self._weights.append(weights)
        self._ids.append([id(weight.p) for weight in weights])

    @abstractmethod
    def _check_options(self, group: dict[str, Any]) -> None:
        """Raise ValueError for options that are out of range."""

    def _check_declared_options(self, group: dict[str, Any], only_declared: bool) -> None:
        if group["fused"] and any(map(is_elsewhere, group["params"])):
            for name in ("momentum", "dampening", "betas", "eps"):
                value = group.get(name)
                if any(map(is_elsewhere, value if isinstance(value, tuple | list) else [value])):
                    raise ValueError(
                        f"{name} as a tensor on a device with fused=True: the kernels for declared "
                        "weights take a number, and only lr may be on the device. Give a number, a "
                        "tensor on the CPU, or leave fused out"
                    )
        if only_declared and group["weight_decay"] != 0:
            raise ValueError(
                f"weight_decay={group['weight_decay']} for a group of declared weights: on a "
                "norm-constrained weight it has no effect, and it breaks the invariance of the "
                "scaled metric. Use param_groups(model, weight_decay=…), which gives it to the "
                "other parameters only"
            )

    def _check_device(self, name: str, weight: Declared) -> None:
        device = weight.p.device
        if is_elsewhere(weight.p) and not backends.has_kernel(device):
            raise ValueError(
                f"fused=True: {name} is declared on {weight.manifold} and is on {device}, and the "
                "kernels are for processors, and with Triton for CUDA and ROCm. Install triton, "
                "leave fused out and compile the step with torch.compile(optimizer.step), or give "
                "fused=True to undeclared weights only"
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

    def _split(self, number: int) -> GroupWork:
        """The parameters of a group that have a gradient: undeclared and declared ones."""
        group, compiling = self.param_groups[number], torch.compiler.is_compiling()
        if not compiling:  # a graph is of the declarations that it was made with
            self._refresh(number)
        plain: list[Plain] = []
        declared: list[Declared] = []
        idle: list[Tensor] = []
        for weight in self._weights[number]:
            grad = weight.p.grad
            if grad is None:
                idle.append(weight.p)
                continue
            if not isinstance(weight, Declared):
                plain.append(weight)
                continue
            if grad.is_sparse:
                raise RuntimeError(
                    f"{self._name_of(group, weight.p)} has a sparse gradient, and a step on "
                    f"{weight.manifold} needs all of a slice: make the layer with sparse=False, "
                    "or undeclare it"
                )
            declared.append(weight)
        params = [weight.p for weight in plain]
        params += [weight.p for weight in declared]
        return GroupWork(group, plain, declared, params, idle, self._entries(group))

    @abstractmethod
    def _entries(self, group: dict[str, Any]) -> tuple[str | None, ...]:
        """The entries of `plain_lists`, with None for those that the options make no use of."""

    def _refresh(self, number: int) -> None:
        """Look manifolds up again if declarations or the parameters of a group have changed."""
        if self._clock != (version := registry.version()):
            changed = registry.changed_since(self._clock)
            ours = {id(weight.p) for weights in self._weights for weight in weights}
            if changed is None or not changed.isdisjoint(ours):
                self._resolve()
            self._clock = version
        known = self._ids[number] if number < len(self._ids) else []
        if known != list(map(id, self.param_groups[number]["params"])):
            self._resolve()

    def _resolve(self) -> None:
        """Look all manifolds up again; RuntimeError if a declaration has changed."""
        version = registry.version()
        registry.refresh()
        old = {id(weight.p): weight for weights in self._weights for weight in weights}
        present = {id(p) for group in self.param_groups for p in group["params"]}
        lost = any(isinstance(w, Declared) and key not in present for key, w in old.items())
        resolved = []
        for group in self.param_groups:
            weights = [weight_of(p) for p in group["params"]]
            specs = group.get("manifolds", ())
            known = specs if len(specs) == len(weights) else [...] * len(weights)
            for i, (weight, spec) in enumerate(zip(weights, known, strict=True)):
                now = spec_of(weight)
                if spec is ... and id(weight.p) not in old and now is None and lost:
                    raise RuntimeError(
                        f"{self._names(group)[i]} is not declared, and stands in groups that were "
                        "rewritten and have lost declared weights: put the parameters of the "
                        "declared model there"
                    )
                if spec is not ... and spec != now:
                    raise RuntimeError(
                        f"{self._names(group)[i]} was {described(spec)} when it was given to this "
                        f"optimizer and is {described(now)} now (declared, undeclared, copied "
                        "without its module, or sharded since?): make the optimizer after the "
                        "declarations, and after fully_shard"
                    )
            group["manifolds"] = [spec_of(weight) for weight in weights]
            resolved.append(weights)
        self._weights = resolved
        self._ids = [[id(weight.p) for weight in weights] for weights in resolved]
        self._clock = version
        self._forget_checks()

    def _check_idle(self) -> None:
        """Refuse declared weights that their model no longer holds, and that get no gradient.

        `fully_shard` puts new parameters into modules past their registration, which
        `registry.version` does not see.
        """
        every = (weight for weights in self._weights for weight in weights)
        idle = [w.p for w in every if isinstance(w, Declared) and w.p.grad is None]
        if any(registry.find(p) is None for p in idle):
            self._resolve()

    def _forget_checks(self) -> None:
        """Make the next step check options and memory again."""
        self._options.clear()
        self._seen, self._works = None, []
        for weights in self._weights:
            for weight in weights:
                weight.want = None

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

        All of this is checked before any weight or state is changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            self._take([self._split(number) for number in range(len(self.param_groups))])
            return loss
        works: list[GroupWork] | None = None
        try:
            works = self._repeated()
            if works is None:
                works = [self._split(number) for number in range(len(self.param_groups))]
                self._check_idle()
                self._check(works)
            watched = self._take(works)
        finally:  # no gradient is kept
            for work in works or self._works:
                work.columns, work.addresses = [], []
            for weight in self._copied:
                weight.copied = None
            self._copied.clear()
        self._steps += 1
        self._warn_of_norms(watched)
        return loss

    def _repeated(self) -> list[GroupWork] | None:
        """The work of the last step, if nothing but values and addresses has changed since.

        Options, declarations, parameters, which of them have gradients, and the forms of all
        tensors are looked at; addresses are taken anew.
        """
        works, tensors = self._works, list[Any]()
        if self._seen is None or len(works) != len(self.param_groups):
            return None
        for number, (work, group) in enumerate(zip(works, self.param_groups, strict=True)):
            self._refresh(number)
            self._check_group(number, group, bool(work.declared))
            if not all(p.grad is None for p in work.idle):
                return None
            work.group, work.columns = group, self._columns(work)
            for column in work.columns:
                tensors += column
        # By now declarations and options may have made it forget.
        addresses = None if self._seen is None else self._seen.addresses(tensors)
        if addresses is None or not self._verified:
            return None
        self._check_finite()
        start = 0
        for work in works:
            for column in work.columns:
                end = start + len(column)
                work.addresses.append(addresses[start + len(work.plain) : end])
                start = end
        return works

    def _columns(self, work: GroupWork) -> list[list[Any]]:
        """Parameters, gradients and entries of state; None stands for what is not there."""
        params, state = work.params, self.state
        columns: list[list[Any]] = [params, [p.grad for p in params]]
        states = [state.get(p, _EMPTY) for p in params] if any(work.entries) else []
        for key in work.entries:
            columns.append([each.get(key) for each in states] if key else [])
        return columns

    def _take(self, works: list[GroupWork]) -> list[tuple[dict[str, Any], Declared]]:
        """Step all weights, those of torch's functions after all of them were prepared.

        Returns:
            Weights that a warning may be due for, with their groups.
        """
        prepared = [self._plain_calls(work) for work in works]
        watched = []
        moving = pairs.motions(weight for work in works for weight in work.declared)
        for work, calls in zip(works, prepared, strict=True):
            for call in calls:
                self._step_plain(work.group, call)
            if work.declared:
                # Zero slices that are declared would be found in every step.
                looks = self._step_declared(work, moving)
                looks = [weight for weight in looks if not weight.manifold.zero_slices]
                watched += [(work.group, weight) for weight in looks]
        if moving:
            pairs.move_together(moving)
        return watched

    def _check(self, works: list[GroupWork]) -> None:
        """Check all groups for a step; only then convert state to the form of its weights."""
        self._seen, self._works = None, []
        for number, work in enumerate(works):
            self._check_group(number, work.group, bool(work.declared))
        if not self._verified:
            self._verify(works)
        self._check_finite()
        found: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
        for work in works:
            for weight in (*work.declared, *work.plain):
                found += self._check_state_of(work.group, weight)
        for state, values in found:
            state.update(values)
        tensors = [x for work in works for column in self._columns(work) for x in column]
        alike = all(isinstance(x, Tensor) and x.layout is torch.strided for x in tensors)
        if alike and not self._copied:
            self._seen, self._works = memory.Seen(tensors), works

    def _check_finite(self) -> None:
        """Check gradients for entries that are not finite, where a group asks for that."""
        for group in self.param_groups:
            if group["error_if_nonfinite"]:
                refuse_nonfinite(self._names(group), group["params"])

    def _check_group(self, number: int, group: dict[str, Any], any_declared: bool) -> None:
        """Check the options of a group unless they are those of the last step."""
        options = (any_declared, *map(group.__getitem__, self.defaults))
        known = self._options.get(number)
        try:
            if known == options:
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
        names = ("", *self.defaults)
        changed = [n for n, a, b in zip(names, known or names, options, strict=True) if a is not b]
        if changed != ["lr"]:  # which says nothing of memory
            self._seen = None

    def _check_state_of(
        self, group: dict[str, Any], weight: Plain
    ) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
        """Check one weight and its state; return the entries of the state to replace."""
        p, grad, plain = weight.p, weight.grad, not isinstance(weight, Declared)
        want = weight.want
        if want is None or want.weight != memory.form(p):
            manifold = weight.manifold if isinstance(weight, Declared) else None
            want = weight.want = memory.expected(p, manifold)
        state: dict[str, Any] = self.state.get(p, {})

        def name() -> str:
            return self._name_of(group, p)

        fused = bool(group["fused"])
        if plain:
            self._check_plain(name, group, p, grad)
        on_device = group.get("capturable") or (fused and plain)
        dim: Any = "weight"
        if isinstance(weight, Declared):
            dim = "unknown" if weight.geometry is None else weight.geometry.dim
            # A kernel may have to be compiled for this, which warns where it cannot be.
            usable = fused and want.layout is not None and backends.has_kernel(p.device)
            weight.layout = want.layout if usable else None
        if isinstance(weight, Declared):
            held = {id(q) for group in self.param_groups for q in group["params"]}
            pairs.check_partner(name, weight, held)
        if isinstance(weight, Declared) and weight.geometry is not None:
            shards.groups_of(p, dim)  # raises for weights that cannot be stepped
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
            dim=dim,
        )
        if state:
            values |= self._missing_entries(name, group, state | values)
        if fused and grad.layout is torch.strided and want.dense:
            fitting = memory.laid_out(grad, p.detach())
            if fitting is not grad:
                weight.copied = fitting
                self._copied.append(weight)
        return [(state, values)] if values else []

    def _check_plain(
        self, name: Callable[[], str], group: dict[str, Any], p: Tensor, grad: Tensor
    ) -> None:
        """Raise RuntimeError for an undeclared parameter that torch would refuse to step."""

    def _missing_entries(
        self, name: Callable[[], str], group: dict[str, Any], state: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Entries that a state lacks for the options of its group; RuntimeError without a value."""
        return {}

    def _plain_calls(self, work: GroupWork) -> list[PlainCall]:
        """Calls of torch's own function that step undeclared parameters."""
        if work.columns and work.form is not None:
            fused, special = work.form
            columns = [column[: len(work.plain)] for column in work.columns]
            return [PlainCall(fused, columns[0], columns[1], tuple(columns[2:]), special)]
        calls, group = [], work.group
        if torch.compiler.is_compiling():
            return [self._traced_call(work)] if work.plain else []
        for fused, some in self._for_fused(group, work.plain):
            params: list[Tensor] = []
            grads: list[Tensor] = []
            state: tuple[list[Any], ...] = tuple([] for _ in self.plain_lists)
            given = {**group, "params": [weight.p for weight in some], "fused": fused}
            special = self.plain_optimizer._init_group(self, given, params, grads, *state)
            # Some are copies in the order of memory of their parameters.
            grads = [g if w.copied is None else w.copied for g, w in zip(grads, some, strict=True)]
            calls.append(PlainCall(fused, params, grads, state, special))
        work.form = (calls[0].fused, calls[0].special) if len(calls) == 1 else None
        return calls

    def _traced_call(self, work: GroupWork) -> PlainCall:
        """The call inside a graph. torch's `_init_group` and fused functions would split it."""
        params = [weight.p for weight in work.plain]
        states = [self._plain_state(work.group, p) for p in params]
        entries = tuple([each.get(key) for each in states] if key else [] for key in work.entries)
        special = any(self._is_special(weight) for weight in work.plain)
        return PlainCall(None, params, [weight.grad for weight in work.plain], entries, special)

    def _plain_state(self, group: dict[str, Any], p: Tensor) -> dict[str, Any]:
        """The state of an undeclared parameter, begun as torch begins it."""
        state: dict[str, Any] = self.state.get(p, _EMPTY)
        return state

    @abstractmethod
    def _is_special(self, weight: Plain) -> bool:
        """True for what torch's function is told of: a sparse gradient, a complex parameter."""

    @abstractmethod
    def _step_plain(self, group: dict[str, Any], call: PlainCall) -> None:
        """Step undeclared parameters with torch's own function."""

    def _for_fused(
        self, group: dict[str, Any], plain: list[Plain]
    ) -> list[tuple[bool | None, list[Plain]]]:
        """Undeclared parameters with the `fused` to step them with.

        On a processor torch's fused functions run over memory from a weight's first number on; one
        with holes is for the others.
        """
        if not plain or not group["fused"]:
            return [(group["fused"], plain)] if plain else []
        with_holes = [weight for weight in plain if weight.has_holes]
        if not with_holes:
            return [(True, plain)]
        dense = [weight for weight in plain if not weight.has_holes]
        return [(fused, some) for fused, some in ((True, dense), (False, with_holes)) if some]

    def _step_declared(
        self, work: GroupWork, moving: Mapping[int, pairs.PairMotion]
    ) -> list[Declared]:
        """Step declared weights, each by the fastest path that supports it and is allowed.

        Factors of pairs note their steps in `moving`.

        Returns:
            Those that a warning may be due for.
        """
        group, declared = work.group, work.declared
        if work.addresses and work.kernel is not None:
            unbias = self._count(group, work.columns[-1][len(work.plain) :])
            looks = work.kernel(work.addresses[:5], self._hyper(group), unbias)
            return [weight for weight, look in zip(declared, looks, strict=True) if look]
        compiling = torch.compiler.is_compiling()
        fast = compiling or group["foreach"] is not False
        watched: list[Declared] = []
        known: list[Declared] = []
        for weight in declared:
            want = weight.want
            by_operators = fast and (want is None or want.plain or want.sharded)
            if weight.geometry is not None and (weight.layout is not None or by_operators):
                known.append(weight)
            elif self._step_alone(group, weight, moving.get(id(weight.p))):
                watched.append(weight)
        if known:
            inputs, hyper = self._inputs(group, known), self._hyper(group)
            if compiling:
                compiled.step(inputs, hyper, bool(group["fused"]))
            else:
                layouts = [weight.layout for weight in known]
                looks = backends.step(inputs, hyper, layouts, self._plans)
                watched += [weight for weight, look in zip(known, looks, strict=True) if look]
                if len(known) == len(declared):
                    work.kernel = backends.repeated(inputs, hyper, layouts)
            self._keep_buffers(known, inputs)
        return watched

    def _step_alone(
        self, group: dict[str, Any], weight: Declared, motion: AnyMotion | None
    ) -> bool:
        """Step one weight by the formulas; return whether a slice is known to be zero."""
        p, grad = weight.p, weight.p.grad
        assert grad is not None  # so chosen by _split
        # Under `detach` a ManifoldParameter is an ordinary tensor on the same memory.
        if motion is None:
            motion = Motion(p.detach(), weight.manifold, weight.geometry)
        state = self.state.get(p, {})
        self._step_reference(group, motion, grad, state)
        if state:
            self.state[p] = state
        return motion.any_zero

    @abstractmethod
    def _step_reference(
        self, group: dict[str, Any], motion: AnyMotion, grad: Tensor, state: dict[str, Any]
    ) -> None:
        """Step one declared weight, in place, by the reference formulas."""

    @abstractmethod
    def _inputs(self, group: dict[str, Any], declared: list[Declared]) -> list[StepInput]:
        """The input of the fast paths, with new buffers where there are none."""

    def _count(self, group: dict[str, Any], counts: list[Tensor]) -> list[Unbias]:
        """Count a step of some weights; their bias corrections, if there are any."""
        return []

    def _keep_buffers(self, declared: list[Declared], works: list[StepInput]) -> None:
        """Put new buffers into the state, once a step has given them values."""

    @abstractmethod
    def _hyper(self, group: dict[str, Any]) -> HyperParameters:
        """The hyperparameters of a group, for the fast paths."""

    def _verify(self, works: list[GroupWork]) -> None:
        """Check the points of all groups, before the first step and after loading."""
        refuse_missing(
            (name, weight.p)
            for group, weights in zip(self.param_groups, self._weights, strict=True)
            for name, weight in zip(self._names(group), weights, strict=True)
            if isinstance(weight, Declared)
        )
        for work in works:
            for weight in work.declared:
                check_point(self._name_of(work.group, weight.p), weight.p, weight.manifold)
        self._verified = True

    def _warn_of_norms(self, watched: list[tuple[dict[str, Any], Declared]]) -> None:
        """Warn once of each weight that has a zero slice or whose norm will overflow.

        After the step, since a warning may be an error. On a processor the kernel sees the norms of
        every step; other paths are followed by a look, in each of the first steps and every 100
        later. Elsewhere all weights are asked every 100 steps, by one number.
        """
        watched = [*watched, *self._due()]
        if not watched:
            return
        for group, weight in {id(weight): (group, weight) for group, weight in watched}.values():
            found: list[tuple[type[UserWarning], str | None]] = [
                (NormGrowthWarning, overflowing(weight.p, weight.manifold)),
                (
                    ZeroSliceWarning,
                    zero_slices(weight.p, weight.manifold) if weight.geometry else None,
                ),
            ]
            for category, trouble in found:
                if trouble is None:
                    continue
                name = self._name_of(group, weight.p)
                if (name, category) not in self._warned:
                    self._warned.add((name, category))
                    warnings.warn(f"{name}: {trouble}", category, stacklevel=users_level())

    def _due(self) -> list[tuple[dict[str, Any], Declared]]:
        """Weights to be looked at after this step, whatever their step has found."""
        seldom = self._steps % 100 == 0
        if not seldom and self._steps > 128:
            return []
        found, elsewhere = [], []
        for group, weights in zip(self.param_groups, self._weights, strict=True):
            for weight in weights:
                if not isinstance(weight, Declared) or weight.p.grad is None:
                    continue
                if weight.p.device.type == "cpu" and not shards.is_sharded(weight.p):
                    # The kernel looks at norms itself.
                    asked = weight.layout is None and weight.manifold.scale_invariant
                    if asked or weight.manifold.zero_slices:
                        found.append((group, weight))
                elif seldom:
                    elsewhere.append((group, weight))
        # Builds of torch without CUDA cannot be asked.
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if elsewhere and not capturing:
            seen = self._plans.alarming()  # by kernels, which look at every step
            found += [place for place in elsewhere if place[1].p.data_ptr() in seen]
            flags = alarming([(weight.p, weight.manifold) for _, weight in elsewhere])
            found += [place for place, flag in zip(elsewhere, flags, strict=True) if flag]
        return found

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
        for group, merged, weights in zip(
            self.param_groups, aligned["param_groups"], self._weights, strict=True
        ):
            manifolds = [w.manifold if isinstance(w, Declared) else None for w in weights]
            kept = _PATHS if any(m is not None for m in manifolds) else ()
            if manifolds and all(m is not None for m in manifolds):
                kept = ("weight_decay", *kept)
            merged.update({key: group[key] for key in kept if key in group})
            self._check_options({**self.defaults, **merged})
            for name, p, manifold, weight in zip(
                self._names(group), group["params"], manifolds, weights, strict=True
            ):
                now = None if manifold is None else manifold.spec()
                if specs is not None and specs[number] != now:
                    raise ValueError(
                        f"{name} was {described(specs[number])} when this state was saved and is "
                        f"{described(now)} now: declare it as it was, or start with a new optimizer"
                    )
                state = aligned["state"].get(number, {})
                checkpoint.check_entries(
                    name, state, self.state_keys, type(self).__name__, manifold is not None
                )
                if manifold is not None:
                    if specs is None:
                        if isinstance(manifold, PairFactor):
                            manifold = pairs.beside(weight)
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
