"""Muon for every weight that is made of matrices.

For a weight W with gradient G and buffer B, block by block,

    B ← μ B + (1 − μ) G,   M = μ B + (1 − μ) G with Nesterov, else B
    W ← (1 − λ η) W − η a msign(M)

where msign(M) = U Vᵀ for M = U Σ Vᵀ is the polar factor [jordan2024muon], and a depends on the
shape of a block alone. It is `torch.optim.Muon` with three differences: convolution kernels are
taken as out × rest; a weight that packs several matrices (query, key and value; heads; experts)
says so by `blocks`; and on a processor the polar factor is exact, in float32 or float64, instead of
five Newton–Schulz steps in bfloat16, so that the invariance of a constrained Muon
(`manifoldnet.constrain`) holds to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from manifoldnet.geometry.settled import copy_into, is_sharded, settle
from manifoldnet.optim.checks import check_number

__all__ = ["Blocks", "Muon", "polar_factor"]

Blocks = int | tuple[int, int]
"""Equal blocks of a matrix: how many along its rows, or along rows and columns."""

# Singular values below this share of the largest are rounding.
_CUT = 1e-9
# Newton–Schulz: three coefficients of an odd polynomial, and how often it is applied.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5


@final
class Muon(Optimizer):
    """Muon [jordan2024muon] for matrices, convolution kernels, and weights that pack several.

    Args:
        params: as in torch: tensors of two or more dimensions, named tensors, or groups.
        lr: learning rate η.
        weight_decay: λ, decoupled.
        momentum: μ, from 0 to 1.
        nesterov: Nesterov momentum.
        blocks: the blocks of each weight: a number for all of a group, or by name, for named
            parameters: `{"*.qkv.weight": 3}` for packed query, key and value, `{"*.out.weight":
            (1, heads)}` for heads along the columns. A weight of experts × out × in has as many
            blocks as experts.
        adjust_lr_fn: a as in `torch.optim.Muon`: "original" (or None) `√max(1, rows/columns)`,
            "match_rms_adamw" `0.2 √max(rows, columns)`, "none" 1.

    Raises:
        ValueError: for numbers out of range, weights of fewer than two dimensions, blocks that do
            not divide them, and names of blocks that match no parameter.
        TypeError: for blocks that are no whole numbers.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        *,
        blocks: Blocks | Mapping[str, Blocks] = 1,
        adjust_lr_fn: Literal["original", "match_rms_adamw", "none"] | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "blocks": blocks,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as in torch, after checking its options and the shapes in it."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for name, most in (("lr", math.inf), ("weight_decay", math.inf), ("momentum", 1.0)):
                check_number(name, group[name], below=most)
            if group["adjust_lr_fn"] not in (None, "original", "match_rms_adamw", "none"):
                raise ValueError(f"adjust_lr_fn={group['adjust_lr_fn']!r} is not supported")
            group["blocks"] = _blocks(group)
        except Exception:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` as in torch.

        Raises:
            RuntimeError: for sparse and complex gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p, blocks in zip(group["params"], group["blocks"], strict=True):
                if p.grad is None:
                    continue
                if p.grad.is_sparse or p.is_complex():
                    raise RuntimeError("Muon takes dense, real gradients")
                self._step_one(group, p, p.grad, blocks)
        return loss

    def _step_one(self, group: dict[str, Any], p: Tensor, grad: Tensor, blocks: Any) -> None:
        state, momentum = self.state[p], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        buffer = state["momentum_buffer"].lerp_(grad.to(p.dtype), 1 - momentum)
        direction = grad.to(p.dtype).lerp(buffer, momentum) if group["nesterov"] else buffer
        # Of a sharded weight each process computes the factor of the whole.
        whole = _matrices(settle(direction), blocks)
        factor = _joined(polar_factor(whole), p.shape, blocks).to(p.dtype)
        if is_sharded(p):
            factor = _sharded_as(p, factor)
        x = p.detach()
        rate = group["lr"] * _adjustment(group["adjust_lr_fn"], *whole.shape[-2:])
        copy_into(x, x * (1 - group["lr"] * group["weight_decay"]) - rate * factor)


def polar_factor(m: Tensor) -> Tensor:
    """The polar factor U Vᵀ of matrices U Σ Vᵀ, in float32 or float64.

    Singular directions with σ ≤ 1e-9 σ₁, or within rounding (ε max(rows, columns) σ₁), are left
    out: the factor of rounding is arbitrary. Matrices with numbers that are not finite give NaN. On
    accelerators, where singular values take long, it
    is approximated by five Newton–Schulz steps in bfloat16, as in `torch.optim.Muon`.

    Args:
        m: matrices, of shape (…, rows, columns).
    """
    if m.device.type != "cpu":
        return _newton_schulz(m)
    computed = torch.promote_types(m.dtype, torch.float32)
    m = m.to(computed)
    finite = m.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    u, s, vh = torch.linalg.svd(torch.where(finite, m, 0.0), full_matrices=False)
    cut = max(_CUT, torch.finfo(computed).eps * max(m.shape[-2:]))
    kept = s > cut * s[..., :1]
    factor: Tensor = torch.where(finite, (u * kept.unsqueeze(-2)) @ vh, torch.nan)
    return factor


def _newton_schulz(m: Tensor) -> Tensor:
    a, b, c = _NEWTON_SCHULZ
    tall = m.shape[-2] > m.shape[-1]
    x = m.bfloat16()
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def _adjustment(name: str | None, rows: int, columns: int) -> float:
    if name == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return 1.0 if name == "none" else math.sqrt(max(1.0, rows / columns))


def _matrices(x: Tensor, blocks: tuple[int, int]) -> Tensor:
    """The blocks of a weight, of shape (blocks, rows, columns)."""
    down, across = blocks
    # Each expert is a matrix, instead of a filter.
    rows = x.shape[1] if x.ndim > 2 and down == x.shape[0] else x.shape[0] // down
    m = x.reshape(down, rows, across, -1)
    return m.transpose(1, 2).reshape(down * across, rows, -1)


def _joined(m: Tensor, shape: torch.Size, blocks: tuple[int, int]) -> Tensor:
    """The weight of a shape that has such blocks."""
    down, across = blocks
    parts = m.reshape(down, across, *m.shape[-2:]).transpose(1, 2)
    return parts.reshape(shape)


def _sharded_as(p: Any, whole: Tensor) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)


def _blocks(group: dict[str, Any]) -> list[tuple[int, int]]:
    """The blocks of each parameter of a group, checked."""
    given, parameters = group["blocks"], group["params"]
    names = group.get("param_names") or [
        f"parameter {i} (shape {tuple(p.shape)})" for i, p in enumerate(parameters)
    ]
    if isinstance(given, list):  # of a group that was checked before
        return [_checked(*each) for each in zip(names, parameters, given, strict=True)]
    by_name = dict(given) if isinstance(given, Mapping) else {"*": given}
    for pattern in by_name:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"blocks: no parameter of this group has a name like {pattern!r}; there are: "
                f"{', '.join(names)}. Names come with named parameters: "
                "Muon(model.named_parameters(), …) or manifoldnet.param_groups"
            )
    found = []
    for name, p in zip(names, parameters, strict=True):
        of_it = [b for pattern, b in by_name.items() if fnmatchcase(name, pattern)]
        if len(set(of_it)) > 1:
            raise ValueError(f"blocks: {name} is given {of_it}: one of them is to be left out")
        found.append(_checked(name, p, of_it[0] if of_it else 1))
    return found


def _checked(name: str, p: Tensor, blocks: Any) -> tuple[int, int]:
    pair = blocks if isinstance(blocks, tuple) else (blocks, 1)
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) for n in pair):
        raise TypeError(f"blocks of {name} must be a whole number or two of them, not {blocks!r}")
    if p.ndim < 2:
        raise ValueError(
            f"{name} has shape {tuple(p.shape)}, and Muon takes matrices, kernels and experts: "
            "give it to another optimizer, such as AdamW"
        )
    down, across = pair
    rest = math.prod(p.shape[1:])
    if p.ndim > 2 and down == p.shape[0]:
        rest = math.prod(p.shape[2:])
    if min(pair) < 1 or p.shape[0] % down or rest % across:
        raise ValueError(f"blocks={blocks} does not divide {name}, which is {p.shape[0]} × {rest}")
    return down, across
