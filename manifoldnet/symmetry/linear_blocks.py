"""Split of a Lie algebra of linear maps and translations into named blocks.

    null space -> translations | linear maps, in a sparse basis
      -> shifts (implied by translations) | ideals that commute with each other (modulo shifts)
      -> classification by dimension, bases of symmetric and skew generators, names

Ideals are connected components of the relation "does not commute" on a sparse basis. A component
acts on a few rows or columns of each parameter; the smallest set on which it acts faithfully
decides its kind: m² generators on m rows are GL(m), m(m − 1)/2 that preserve a definite form O(m).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manifoldnet.symmetry.linear import LinearBlock, LinearGroup, field_at
from manifoldnet.symmetry.linear_columns import LinearColumns
from manifoldnet.symmetry.linear_names import name_block, name_shift
from manifoldnet.symmetry.null_space import TrivialGenerator, sparse_basis

__all__ = ["Factor", "split"]

# Relative size below which numbers are rounding errors.
_ZERO = 1e-7


@dataclass(frozen=True)
class Factor:
    """Representation of a block on some rows or columns of one parameter.

    Attributes:
        parameter: its name.
        dim: 0 for rows, 1 for columns.
        indices: rows or columns that are mixed.
        matrices: one for each generator, on these indices.
    """

    parameter: str
    dim: int
    indices: tuple[int, ...]
    matrices: Tensor

    @property
    def size(self) -> int:
        """Dimension of the space that the matrices act on effectively."""
        return _rank(self.matrices.transpose(0, 1).flatten(1))

    @property
    def faithful(self) -> bool:
        """True if the matrices are linearly independent."""
        return _rank(self.matrices.flatten(1)) == len(self.matrices)


def split(
    model: nn.Module,
    layout: LinearColumns,
    basis: Tensor,
    live: Tensor,
    source: torch.Generator,
) -> LinearGroup:
    """Group with the algebra that a null space spans, in blocks.

    Args:
        model: for the names of its layers.
        layout: meaning of the entries.
        basis: orthonormal null vectors as columns.
        live: mask of entries that can be told from zero.
        source: source of random choices.
    """
    translations, linear = _translations(layout, basis)
    linear = _without_implied(layout, linear, translations)
    vectors = _sparse(layout, linear, layout.trivial(live))
    moved = _sparse(layout, translations, [])
    shifts, others = _shifts(layout, vectors, moved, source)
    blocks = []
    for members in _components(layout, others, shifts):
        block = _ideal(model, layout, members)
        parts = [members]
        if block[0].kind == "other" and len(members) > 1:
            parts = _center_and_rest(layout, members, shifts)
        blocks += [_ideal(model, layout, each) for each in parts] if len(parts) > 1 else [block]
    blocks = _merged(model, layout, blocks)
    found = [block for block, _ in blocks]
    for kind, part in (("shift", shifts), ("translation", moved)):
        for members in _by_parameters(layout, part):
            name, where = name_shift(model, layout.generator(members[0]), kind)
            generators = [layout.generator(v, kind, name) for v in _symmetrized(layout, members)]
            found = _appended(found, LinearBlock(name, kind, tuple(generators), where))
    order = {name: i for i, name in enumerate(layout.shapes)}
    found.sort(key=lambda b: (_RANK.get(b.kind, 0), order[b.generators[0].parameters[0]]))
    return LinearGroup(tuple(found), layout.shapes)


def _appended(blocks: list[LinearBlock], new: LinearBlock) -> list[LinearBlock]:
    """Blocks with a further one, joined with that of the same name if there is one."""
    for i, block in enumerate(blocks):
        if (block.name, block.kind) == (new.name, new.kind):
            joined = LinearBlock(
                new.name, new.kind, block.generators + new.generators, f"{block.where}, {new.where}"
            )
            return [*blocks[:i], joined, *blocks[i + 1 :]]
    return [*blocks, new]


_RANK = {"scaling": 1, "shift": 2, "translation": 3}


# --- subspaces -----------------------------------------------------------------------------------


def _translations(layout: LinearColumns, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Null vectors without a linear part, and an orthogonal complement of these."""
    if basis.shape[1] == 0:
        return basis, basis
    _, singular, right = torch.linalg.svd(basis[layout.linear()], full_matrices=True)
    rank = int((singular > _ZERO).sum())
    return basis @ right[rank:].mT, basis @ right[:rank].mT


def _without_implied(layout: LinearColumns, linear: Tensor, translations: Tensor) -> Tensor:
    """Linear part modulo maps of a vector into its own translations."""
    linear = linear.clone()
    for name, shape in layout.shapes.items():
        span = layout.spans[name]
        if len(shape) > 1 or translations.shape[1] == 0:
            continue
        outside = torch.ones(layout.columns, dtype=torch.bool)
        outside[span.shift : span.end] = False
        _, singular, right = torch.linalg.svd(translations[outside], full_matrices=True)
        rank = int((singular > _ZERO).sum())
        own = (translations @ right[rank:].mT)[span.shift : span.end]
        n = len(own)
        a = linear[span.left : span.right].reshape(n, -1)
        linear[span.left : span.right] = (a - own @ (own.mT @ a)).reshape(n * n, -1)
    if linear.shape[1] == 0:
        return linear
    left, singular, _ = torch.linalg.svd(linear, full_matrices=False)
    return left[:, singular > _ZERO]


def _sparse(
    layout: LinearColumns,
    basis: Tensor,
    trivial: Sequence[TrivialGenerator],
) -> Tensor:
    """Sparse basis of a subspace modulo trivial vectors, as rows."""
    involved = (basis.norm(dim=1) > _ZERO).nonzero().flatten()
    rank = len(involved) - basis.shape[1]
    if rank == 0:  # every entry is free
        kept = set(range(len(involved)))
        position = {int(c): i for i, c in enumerate(involved)}
        for each in trivial:
            kept.discard(position[int(torch.cat([each.positive, each.negative])[-1])])
        result = torch.zeros(len(kept), layout.columns, dtype=torch.float64)
        result[torch.arange(len(kept)), involved[sorted(kept)]] = 1.0
        return result
    place = torch.full((layout.columns,), -1)
    place[involved] = torch.arange(len(involved))
    there = [TrivialGenerator(place[t.positive], place[t.negative]) for t in trivial]
    rows = torch.linalg.qr(basis[involved], mode="complete").Q[:, basis.shape[1] :].mT.contiguous()
    sides = layout.sides()
    dims = [sides[int(c)] for c in involved]
    ones = torch.ones(rank, dtype=torch.float64)
    vectors, _ = sparse_basis(ones, rows, dims, there, _ZERO)
    result = torch.zeros(len(vectors), layout.columns, dtype=torch.float64)
    for i, vector in enumerate(vectors):
        result[i, involved] = vector
    return result


def _shifts(
    layout: LinearColumns, vectors: Tensor, translations: Tensor, source: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Linear maps whose velocities are those of translations at all weights, and the others."""
    if len(vectors) == 0 or len(translations) == 0:
        return vectors[:0], vectors
    weights = [
        {
            name: torch.randn(shape, generator=source, dtype=torch.float64)
            for name, shape in layout.shapes.items()
        }
        for _ in range(3)
    ]

    def fields(rows: Tensor, at: dict[str, Tensor]) -> Tensor:
        return torch.stack([field_at(layout.generator(v), at) for v in rows], dim=1)

    span = torch.linalg.qr(fields(translations, weights[0])).Q
    parts = [fields(vectors, at) for at in weights]
    values = torch.cat([v - span @ (span.mT @ v) for v in parts])
    sizes = torch.cat(parts).norm(dim=0)
    implied = values.norm(dim=0) <= _ZERO * sizes
    _, singular, right = torch.linalg.svd(values / sizes, full_matrices=True)
    rank = int((singular > _ZERO * singular[0]).sum()) if float(singular[0]) > _ZERO else 0
    if len(vectors) - rank == int(implied.sum()):
        return vectors[implied], vectors[~implied]
    shifts = right[rank:] / sizes @ vectors
    return shifts, _independent(torch.cat([shifts, vectors]), len(vectors))[len(shifts) :]


def _independent(candidates: Tensor, most: int) -> Tensor:
    """First linearly independent rows."""
    kept: list[Tensor] = []
    basis = candidates[:0]
    for vector in candidates:
        if len(kept) == most:
            break
        rest = vector / vector.norm().clamp(min=1e-300)
        for _ in range(2):
            rest = rest - (basis @ rest) @ basis
        if float(rest.norm()) > 1e-6:
            kept.append(vector)
            basis = torch.cat([basis, (rest / rest.norm())[None]])
    return torch.stack(kept) if kept else candidates[:0]


def _components(layout: LinearColumns, vectors: Tensor, shifts: Tensor) -> list[Tensor]:
    """Smallest sets of basis vectors such that those of different sets commute modulo shifts."""
    brackets = _brackets(layout, vectors, shifts)
    sizes = vectors.norm(dim=1)
    mixed = brackets.norm(dim=2) > _ZERO * sizes[:, None] * sizes
    found = _connected(mixed | torch.eye(len(vectors), dtype=torch.bool))
    return [vectors[torch.tensor(each)] for each in found]


def _brackets(layout: LinearColumns, vectors: Tensor, shifts: Tensor) -> Tensor:
    """Commutators of all pairs modulo shifts, on the entries that occur."""
    involved = (vectors != 0).any(dim=0) | (shifts != 0).any(dim=0)
    span = torch.linalg.qr(shifts.mT).Q
    found = []
    for one in vectors:
        each = layout.brackets(one, vectors)
        if len(shifts):
            each = each - (each @ span) @ span.mT
        involved |= (each.abs() > _ZERO).any(dim=0)
        found.append(each)
    if not found:
        return vectors.new_zeros(0, 0, 0)
    return torch.stack([each[:, involved] for each in found])


def _center_and_rest(layout: LinearColumns, vectors: Tensor, shifts: Tensor) -> list[Tensor]:
    """Center of an algebra, and its commutators if both together are all of it (modulo shifts)."""
    brackets = _brackets(layout, vectors, shifts)
    count = len(vectors)
    _, singular, right = torch.linalg.svd(brackets.flatten(1).mT, full_matrices=True)
    rank = int((singular > _ZERO * singular[0].clamp(min=_ZERO)).sum())
    center = right[rank:] @ vectors
    every = torch.cat([layout.brackets(one, vectors) for one in vectors])
    if len(shifts):
        span = torch.linalg.qr(shifts.mT).Q
        every = every - (every @ span) @ span.mT
    _, singular, right = torch.linalg.svd(every, full_matrices=False)
    derived = right[: int((singular > _ZERO * singular[0].clamp(min=_ZERO)).sum())]
    if len(center) == 0 or len(derived) == 0 or len(center) + len(derived) != count:
        return [vectors]
    return [derived, *(each[None] for each in center)]


def _by_parameters(layout: LinearColumns, vectors: Tensor) -> Iterable[Tensor]:
    """Vectors that move the same parameters."""
    found: dict[tuple[str, ...], list[Tensor]] = {}
    for vector in vectors:
        found.setdefault(layout.generator(vector).parameters, []).append(vector)
    return (torch.stack(each) for each in found.values())


# --- blocks --------------------------------------------------------------------------------------


def _ideal(
    model: nn.Module, layout: LinearColumns, vectors: Tensor
) -> tuple[LinearBlock, list[Tensor]]:
    factors = _factors(layout, vectors)
    kind, size = classify(factors, len(vectors))
    label = (
        kind
        if size is None
        else kind.replace("(", f"({size},")
        if "ℂ" in kind
        else f"{kind}({size})"
    )
    basis = _symmetrized(layout, vectors)
    name, where = name_block(model, layout.shapes, label, factors, len(vectors))
    generators = tuple(layout.generator(v, kind, name) for v in basis)
    return LinearBlock(name, label, generators, where), list(basis)


def _merged(
    model: nn.Module, layout: LinearColumns, blocks: list[tuple[LinearBlock, list[Tensor]]]
) -> list[tuple[LinearBlock, list[Tensor]]]:
    """Blocks, those of one generator in common ones where they move the same parameters alike."""
    families: dict[object, list[Tensor]] = {}
    found = []
    for block, vectors in blocks:
        if block.dimension > 1:
            found.append((block, vectors))
            continue
        generator = block.generators[0]
        key = (
            block.kind,
            tuple(generator.left),
            tuple(generator.right),
            bool(generator.translation),
        )
        families.setdefault(key, []).append(vectors[0])
    for members in families.values():
        stacked = torch.stack(members)
        factors = _factors(layout, stacked[:1])
        kind, size = classify(factors, 1)
        label = kind if size is None else f"{kind}({size})"
        name, where = name_block(
            model, layout.shapes, label, _factors(layout, stacked), len(members)
        )
        generators = tuple(layout.generator(v, kind, name) for v in members)
        found.append((LinearBlock(name, label, generators, where), members))
    return found


def _factors(layout: LinearColumns, vectors: Tensor) -> list[Factor]:
    """Representations on the rows or columns of each parameter that a block mixes."""
    generators = [layout.generator(v) for v in vectors]
    found = []
    for name, shape in layout.shapes.items():
        for dim in (0, 1):
            parts = [(g.right if dim else g.left).get(name) for g in generators]
            n = (shape[dim] if shape else 1) if dim < max(len(shape), 1) else 0
            if all(p is None for p in parts):
                continue
            zero = torch.zeros(n, n, dtype=torch.float64)
            stack = torch.stack([zero if p is None else p for p in parts])
            for indices in _connected((stack.abs() > _ZERO * stack.abs().max()).any(dim=0)):
                at = torch.tensor(indices)
                found.append(Factor(name, dim, indices, stack[:, at[:, None], at]))
    return found


def _connected(mixed: Tensor) -> list[tuple[int, ...]]:
    """Connected components of indices under a relation; indices in no relation are left out."""
    mixed = mixed | mixed.mT
    left = mixed.any(dim=0).nonzero().flatten().tolist()
    found = []
    while left:
        members, ahead = {left[0]}, [left[0]]
        while ahead:
            for j in mixed[ahead.pop()].nonzero().flatten().tolist():
                if j not in members:
                    members.add(j)
                    ahead.append(j)
        found.append(tuple(sorted(members)))
        left = [i for i in left if i not in members]
    return found


def classify(factors: Sequence[Factor], dimension: int) -> tuple[str, int | None]:
    """Kind and size of a block, from its smallest faithful representation."""
    faithful = [f for f in factors if f.faithful]
    if dimension == 1:
        matrices = [f.matrices[0] for f in factors]
        if all(bool(((m - m.mT).abs() <= _ZERO * m.abs().max()).all()) for m in matrices):
            return "scaling", None
        if all(bool(((m + m.mT).abs() <= _ZERO * m.abs().max()).all()) for m in matrices):
            return "O", 2
    if not faithful:
        return "other", None
    smallest = min(faithful, key=lambda f: f.size)
    m = smallest.size
    if dimension == m * m:
        return "GL", m
    if dimension == m * m - 1:
        return "SL", m
    if dimension == m * (m - 1) // 2 and _preserves_a_form(smallest.matrices):
        return "O", m
    if m % 2 == 0 and dimension == m * m // 2:
        return "GL(ℂ)", m // 2
    return "other", None


def _preserves_a_form(matrices: Tensor) -> bool:
    """True if A S + S Aᵀ = 0 for all matrices and a definite S on the space they act on."""
    left, singular, _ = torch.linalg.svd(matrices.transpose(0, 1).flatten(1), full_matrices=False)
    space = left[:, singular > _ZERO * singular[0]]
    reduced = space.mT @ matrices @ space
    n = reduced.shape[1]
    eye = torch.eye(n, dtype=torch.float64)
    maps = [torch.kron(a.contiguous(), eye) + torch.kron(eye, a.contiguous()) for a in reduced]
    _, singular, right = torch.linalg.svd(torch.cat(maps))
    null = right[int((singular > _ZERO * singular[0]).sum()) :]
    for candidate in null:
        s = candidate.reshape(n, n)
        values = torch.linalg.eigvalsh(s + s.mT)
        if bool(
            (values > _ZERO * values.abs().max()).all()
            or (values < -_ZERO * values.abs().max()).all()
        ):
            return True
    return False


def _symmetrized(layout: LinearColumns, vectors: Tensor) -> Tensor:
    """Basis of the same span: symmetric vectors first, skew ones next, then what is neither."""
    transposed = layout.transpose(vectors)
    found: list[Tensor] = []
    for sign in (1.0, -1.0):
        found += _part(vectors, transposed, sign, lambda x: layout.transpose(x))
    every = torch.stack([*found, *vectors])
    return _independent(every, len(vectors))


def _part(
    vectors: Tensor, transposed: Tensor, sign: float, transpose: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Basis of the symmetric (sign 1) or skew (sign −1) vectors of a span, sparse if possible."""
    _, singular, right = torch.linalg.svd((vectors - sign * transposed).mT, full_matrices=True)
    scale = float(vectors.norm())
    rank = int((singular > _ZERO * scale).sum())
    wanted = len(vectors) - rank
    if wanted == 0:
        return []
    exact = right[rank:] @ vectors
    span = torch.linalg.qr(vectors.mT).Q
    candidates = vectors + sign * transposed
    size = candidates.norm(dim=1)
    inside = (candidates - (candidates @ span) @ span.mT).norm(dim=1) <= _ZERO * scale
    good = candidates[inside & (size > _ZERO * scale)]
    good = torch.stack([_shortened(v) for v in good]) if len(good) else good
    kept = _independent(good, wanted)
    return list(kept if len(kept) == wanted else exact)


def _shortened(vector: Tensor) -> Tensor:
    """Multiple of a vector whose smallest entry is ±1, the first one positive."""
    nonzero = vector[vector.abs() > _ZERO * vector.abs().max()]
    return vector / nonzero.abs().min() * nonzero[0].sign()


def _rank(matrix: Tensor) -> int:
    singular = torch.linalg.svdvals(matrix)
    return int((singular > _ZERO * singular[0]).sum()) if len(singular) else 0
