"""Scaling groups of a wide or deep model, from those of a narrow copy.

    narrow exponents -> families as patterns -> families of all blocks -> of the model's widths

Where sizes do not determine how a pattern is written, all factorizations are tried, those with the
most generators first, and the first one that holds on the wide model is taken. A family holds if
random elements of it, with factors up to e, leave the loss as it is, at the model's weights and
near them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from manifoldnet.symmetry.batches import Batch, as_pair, cast
from manifoldnet.symmetry.blocks import Structure, check_modules, check_names, deepen
from manifoldnet.symmetry.losses import LossFunction, RepeatableLoss, evaluate, relative_change
from manifoldnet.symmetry.patterns import (
    MEMBER,
    RUNNING,
    Digit,
    Exponents,
    Pattern,
    Shapes,
    Site,
    patterns,
    size_of,
    sized,
    ways,
)
from manifoldnet.symmetry.reparameterize import named_tensors
from manifoldnet.symmetry.scaling import Slice
from manifoldnet.symmetry.working_copy import working_copy, working_loss

__all__ = ["Widened", "WrongPatternError", "widen"]

# Largest |ln factor| of one generator in a verification.
_SPREAD = 1.0
# Largest relative change of the loss, by the type it is computed in.
_VERIFIED = {torch.float64: 1e-8, torch.float32: 1e-4}
# Numbers above which losses are computed in float32: three copies in float64 need 12 GiB.
_MOST_FLOAT64 = 500_000_000
# Smallest relative change of the loss that shows that it depends on a family.
_RESPONSE = 1e-6


class WrongPatternError(Exception):
    """A family that is no symmetry of the wide model.

    Attributes:
        exponents: the first generator of the family.
        deviation: relative change of the loss under a finite element of it.
    """

    def __init__(self, message: str, exponents: Exponents, deviation: float) -> None:
        super().__init__(message)
        self.exponents, self.deviation = exponents, deviation


@dataclass(frozen=True)
class Widened:
    """Result of `widen`.

    Attributes:
        exponents: of the non-trivial generators, in the order of the model.
        matrices: names of the parameters that have a trivial generator.
        families: number of families.
        verified: largest relative change of the loss under a random element of any family.
        dtype: type that losses were computed in.
    """

    exponents: list[Exponents]
    matrices: list[str]
    families: int
    verified: float
    dtype: torch.dtype


def widen(
    generators: Sequence[Mapping[Slice, float]],
    matrices: Iterable[str],
    shapes: Shapes,
    structure: Structure,
    unreached: Iterable[Slice],
    model: nn.Module,
    loss_fn: LossFunction | None,
    batch: Batch,
    *,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Widened:
    """Generators of a model of another width or depth.

    Args:
        generators: exponents of the non-trivial generators of the narrow copy.
        matrices: its parameters with a trivial generator.
        shapes: shapes of its tensors.
        structure: its modules; without them, names of tensors tell repeated blocks.
        unreached: slices of the copy that no gradient reached. A generator of all other slices of
            an axis scales these, too.
        model: the wide model; it is not changed.
        loss_fn: `loss_fn(output, target)`, or None (`evaluate`).
        batch: one batch for the wide model.
        seed: decides the random elements and weights.
        on_progress: as in `discover`.

    Raises:
        ValueError: if the models are not of one architecture, a family is no pattern that can be
            written for the wide model, or the narrow copy does not determine it.
        WrongPatternError: if a family changes the loss, however it is written.
    """
    on_progress = on_progress or (lambda *_: None)
    wide = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    modules = tuple((name, type(m).__qualname__) for name, m in model.named_modules())
    families = patterns(generators, shapes, unreached)
    families, counterpart = deepen(families, dict(shapes), structure, wide, modules)
    check_names(counterpart, shapes, wide)
    templates: dict[object, list[Pattern]] = {}
    for family in families:
        templates.setdefault(family.template(wide), []).append(family)
    check = _Check(model, loss_fn, batch, seed)
    found: list[Exponents] = []
    worst = 0.0
    for i, members in enumerate(templates.values()):
        on_progress("widening", i, len(templates))
        for written, deviation in _written(members, wide, check):
            found += written.exponents()
            worst = max(worst, deviation)
    on_progress("widening", len(templates), len(templates))
    check.repeatable.check()
    check_modules(counterpart, structure, modules)
    order = {name: i for i, name in enumerate(wide)}
    found.sort(key=lambda one: [(order[w.parameter], w.dim or 0, w.index) for w in one])
    own = set(matrices)
    return Widened(
        found,
        [name for name in wide if counterpart[name] in own],
        len(families),
        worst,
        check.dtype,
    )


def _written(
    members: list[Pattern], wide: Shapes, check: _Check
) -> Iterator[tuple[Pattern, float]]:
    """Families of one template, written for the wide model and verified.

    Raises:
        ValueError: if sizes do not fit, or a family of one generator could be divided.
        WrongPatternError: if a family holds in no way.
    """
    first = members[0]
    found = ways(first, wide)
    if not found:
        raise ValueError(
            f"{first.describe()}: the sizes "
            + ", ".join(f"{s.name}[dim={s.dim}]={size_of(wide, s)}" for s in first.sites)
            + " do not follow the pattern of the narrow copy. It may be too narrow (one head, one "
            "group, one head per key head: take at least two of each), or of another architecture"
        )
    # All families at once first: blocks of one architecture are written in one way.
    for sizes in found:
        written = [sized(family, sizes) for family in members]
        deviation = check.deviation(written)
        if deviation <= check.tolerance:
            if first.count == 1:
                _check_whole(written, check)
            check.respond(written)
            yield from ((family, deviation) for family in written)
            return
    for family in members:
        least: tuple[float, Pattern] | None = None
        for sizes in found if len(members) > 1 else found[:0]:
            one = sized(family, sizes)
            deviation = check.deviation([one])
            if deviation <= check.tolerance:
                check.respond([one])
                yield one, deviation
                break
            if least is None or deviation < least[0]:
                least = deviation, one
        else:
            if least is None:
                closest = sized(family, found[-1])
                least = check.deviation([closest]), closest
            raise WrongPatternError(
                f"the family of {least[1].count} generators on {family.describe()} does not hold "
                f"on the model: factors up to e change the loss by {least[0]:.2g} relative"
                + (f" ({len(found)} ways to write it were tried)" if len(found) > 1 else "")
                + ". The narrow copy is of another architecture (an activation, a normalization), "
                "or so narrow that it has symmetries of its own",
                least[1].exponents()[0],
                least[0],
            )


def _check_whole(families: list[Pattern], check: _Check) -> None:
    """Raise a ValueError if families of one generator hold in parts, too.

    A narrow copy with one group of channels does not show that there may be several.
    """
    family = families[0]
    digits = [s.digits for s in family.sites if s.dim is not None and s.digits]
    if not digits or any(len(d) != 1 or d[0].kind != MEMBER for d in digits):
        return
    common = math.gcd(*(d[0].count for d in digits))
    if common < 2:
        return
    parts = next(p for p in range(2, common + 1) if common % p == 0)
    for inner in (False, True):
        divided = []
        for family in families:
            sites = []
            for site in family.sites:
                if site.digits:
                    running = Digit(RUNNING, 0, parts)
                    rest = Digit(MEMBER, 0, site.digits[0].count // parts)
                    site = replace(site, digits=(running, rest) if inner else (rest, running))
                sites.append(site)
            divided.append(Pattern((parts,), tuple(sites)))
        if check.deviation(divided) <= check.tolerance:
            raise ValueError(
                f"{family.describe()} scale as a whole in the narrow copy, and in {parts} parts or "
                "more in the model: it has several groups or heads there. Discover a narrow copy "
                "with at least two of each"
            )


class _Check:
    """Changes of a wide model's loss under families, at its own weights and at perturbed ones.

    Args:
        model: it is not changed.
        loss_fn: `loss_fn(output, target)`, or None.
        batch: one batch.
        seed: decides weights and elements.

    Attributes:
        dtype: type of the losses.
        tolerance: largest relative change of an invariant loss.
        repeatable: the loss of the batch, to be checked again at the end.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction | None, batch: Batch, seed: int
    ) -> None:
        self.source = torch.Generator().manual_seed(seed)
        device = next(model.parameters()).device
        numbers = sum(p.numel() for p in model.parameters())

        def prepare(dtype: torch.dtype) -> None:
            self.dtype, self.tolerance = dtype, _VERIFIED[dtype]
            self.loss_fn = working_loss(loss_fn, dtype, device)
            self.batch = cast(as_pair(batch, loss_fn is None), dtype, device)
            self.model = working_copy(model, dtype, keep_eps=False)
            self.repeatable = RepeatableLoss(self.model, self.loss_fn, self.batch)

        try:
            prepare(torch.float64 if numbers <= _MOST_FLOAT64 else torch.float32)
        except RuntimeError:  # numbers of another type inside the model or the loss function
            prepare(torch.float32)
        own = {name: p.detach() for name, p in self.model.named_parameters()}
        self.weights = [own, {name: self._near(w) for name, w in own.items()}]
        self.losses = [self._loss(weights) for weights in self.weights]
        # A model in evaluation mode has its running averages in the loss; they scale, too.
        self.buffers = {name: b for name, b in self.model.named_buffers() if b.is_floating_point()}

    def deviation(self, families: Iterable[Pattern]) -> float:
        """Largest relative change of the loss under a random element of all families."""
        logs: dict[tuple[str, int | None], Tensor] = {}
        for family in families:
            largest = max(abs(site.exponent) for site in family.sites)
            scales = 2 * torch.rand(family.count, generator=self.source, dtype=torch.float64) - 1
            self._add(logs, family.sites, family.running, scales * (_SPREAD / largest))
        return max(self._changes(logs))

    def respond(self, families: list[Pattern]) -> None:
        """Raise a ValueError if the loss does not depend on a family that scales up and down."""
        logs: dict[tuple[str, int | None], Tensor] = {}
        for family in families:
            up = [site for site in family.sites if site.exponent > 0]
            if len(up) in (0, len(family.sites)):
                return
            scales = torch.rand(family.count, generator=self.source, dtype=torch.float64)
            self._add(logs, up, family.running, 0.5 + scales)
        # One of several weights is enough; the loss may not be finite far from the symmetry.
        changes = self._changes(logs, stop=False)
        if max(changes) < _RESPONSE:
            raise ValueError(
                f"the loss hardly depends on {families[0].describe()} (it changes by "
                f"{max(changes):.1e} relative), so that nothing can be verified there: give a "
                "batch of more samples, or inputs of ordinary size"
            )

    def _add(
        self,
        logs: dict[tuple[str, int | None], Tensor],
        sites: Iterable[Site],
        running: Sequence[int],
        scales: Tensor,
    ) -> None:
        for site in sites:
            tensor = self.weights[0].get(site.name, self.buffers.get(site.name))
            if tensor is None:  # a running average, which does not enter the loss
                continue
            size = 1 if site.dim is None else tensor.shape[site.dim]
            log = logs.setdefault((site.name, site.dim), torch.zeros(size, dtype=torch.float64))
            indices = site.indices(running)
            values = (site.exponent * scales)[:, None].expand(indices.shape)
            log.index_add_(0, indices.flatten(), values.flatten())

    def _changes(
        self, logs: Mapping[tuple[str, int | None], Tensor], stop: bool = True
    ) -> list[float]:
        """Relative changes of the loss, by weights; up to the first one that is too large."""
        factors: dict[str, Tensor] = {}
        for (name, dim), log in logs.items():
            tensor = self.weights[0].get(name, self.buffers.get(name))
            assert tensor is not None
            shape = [-1 if d == dim else 1 for d in range(tensor.ndim)]
            factors[name] = factors.get(name, 0.0) + log.reshape(shape)
        changes = []
        for weights, before in zip(self.weights, self.losses, strict=True):
            every = self.buffers | weights
            scaled = {
                name: every[name] * factor.exp().to(every[name]) for name, factor in factors.items()
            }
            try:
                after = self._loss(weights | scaled)
            except ValueError:
                changes.append(math.inf)
            else:
                changes.append(relative_change(before, after))
            if stop and changes[-1] > self.tolerance:
                break
        return changes

    def _loss(self, weights: Mapping[str, Tensor]) -> float:
        return evaluate(self.model, self.loss_fn, self.batch, weights)

    def _near(self, w: Tensor) -> Tensor:
        """Weights of the same size, none of them zero."""
        size = float(w.square().mean().sqrt()) if w.numel() else 0.0
        jitter, fresh = (
            torch.randn(w.shape, generator=self.source, dtype=w.dtype).to(w.device)
            for _ in range(2)
        )
        return w * (0.3 * jitter).exp() + 0.3 * (size or 1.0) * fresh
