"""Evaluating the loss of any model on any batch, as a function of its tensors.

    batch = (input, target);   loss = loss_fn(model(input), target)

An input that is a tuple is passed on as positional arguments, a dict as keyword arguments. Random
layers draw the same numbers at every call, and buffers are left alone: what changes from one call
to the next is only what the caller changes. `without_eps` takes the ε out of normalization layers,
which otherwise blurs their scale invariance by O(ε/var) [ioffe2015batch].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

__all__ = [
    "Batch",
    "LossFunction",
    "Repeated",
    "cast",
    "check_penalty",
    "count_bytes",
    "count_samples",
    "eps_fields",
    "evaluate",
    "frozen_randomness",
    "relative_change",
    "scalar_loss",
    "take",
    "without_eps",
    "working_copy",
    "working_loss",
]

Batch = tuple[Any, Any]
"""(inputs, targets), as a data loader gives them."""

LossFunction = Callable[[Any, Any], Tensor]
"""(outputs, targets) -> one number."""

# torch refuses ε = 0 in training; this one vanishes beside any variance that occurs.
_NO_EPS = 1e-38
# So does this one beside nearly all; it keeps rounding errors small where a feature is constant
# (a channel that is dead in a whole minibatch), whose gradient is a sum of numbers near 1/√ε.
_LITTLE_EPS = {torch.float64: 1e-16}
_EPS_NAMES = ("eps", "epsilon", "variance_epsilon")


def call(model: nn.Module, tensors: Mapping[str, Tensor] | None, given: Any) -> Any:
    """The model's output for one input, with its own tensors or with these."""
    args: tuple[Any, ...] = given if isinstance(given, tuple) else (given,)
    kwargs: dict[str, Any] = {}
    if isinstance(given, Mapping):
        args, kwargs = (), dict(given)
    if tensors is None:
        return model(*args, **kwargs)
    return functional_call(model, dict(tensors), args, kwargs)


def scalar_loss(
    model: nn.Module, loss_fn: LossFunction, batch: Batch, tensors: Mapping[str, Tensor] | None
) -> Tensor:
    """The loss of one batch, differentiable in `tensors` (or in the model's own).

    Raises:
        ValueError: if the loss is not one real number.
    """
    given, target = batch
    loss = loss_fn(call(model, tensors, given), target)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"loss_fn must give one real number, not {what}: use a loss with "
            "reduction='mean' or 'sum'"
        )
    return loss.reshape(())


def evaluate(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Batch,
    tensors: Mapping[str, Tensor] | None = None,
) -> float:
    """The loss as a number; random layers repeat their numbers, buffers stay as they are.

    Args:
        model: any module.
        loss_fn: `loss_fn(output, target)`.
        batch: `(input, target)`.
        tensors: parameters or buffers to use instead of the model's, by name.

    Raises:
        ValueError: if the loss is not one finite number.
    """
    used = {name: buffer.clone() for name, buffer in model.named_buffers()} | dict(tensors or {})
    with torch.no_grad(), frozen_randomness():
        value = float(scalar_loss(model, loss_fn, batch, used))
    if not math.isfinite(value):
        raise ValueError(
            f"the loss on this batch is {value}: nothing can be compared with it. Look for weights "
            "or inputs that are not finite, or use smaller weights"
        )
    return value


class Repeated:
    """The loss of a model on a batch, to be compared with what it is later.

    Args:
        model: any module; its loss is evaluated twice at once.
        loss_fn: `loss_fn(output, target)`.
        batch: `(input, target)`.

    Raises:
        ValueError: if the second loss is another one; if the first is not one finite number.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, batch: Batch) -> None:
        self._arguments = model, loss_fn, batch
        self._value = evaluate(*self._arguments)
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        self._tolerance = torch.finfo(dtype).eps ** 0.6  # 4e-10, 7e-5: above rounding, in any order
        self.check()

    def check(self) -> None:
        """ValueError if the loss is another one now."""
        again = evaluate(*self._arguments)
        if relative_change(self._value, again) > self._tolerance:
            raise ValueError(
                f"the loss of one batch at the same weights was {self._value:.9g} and is "
                f"{again:.9g}: the model or loss_fn has noise of its own (random numbers of "
                "Python, of numpy, or of a torch.Generator of its own, which the seed of torch's "
                "default generator does not rule), or counts its calls. Draw from torch's default "
                "generator, or switch the noise off"
            )


def check_penalty(
    model: nn.Module, loss: Tensor, loss_fn: LossFunction, work_loss: LossFunction | None = None
) -> None:
    """ValueError if a copy's loss depends on the weights that were copied.

    A penalty that loss_fn computes from `model.parameters()` is that of the model's own weights,
    whatever weights the loss is evaluated at: in the loss of a copy it is a constant, and its
    gradient would be left in the model. It shows in the graph of the loss.

    Args:
        model: the one that the user has given.
        loss: of a copy, computed with gradients.
        loss_fn: the one that the user has given.
        work_loss: the copy of it that gave the loss, if it is one.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    if isinstance(loss_fn, nn.Module) and isinstance(work_loss, nn.Module):
        both = zip(loss_fn.parameters(), work_loss.parameters(), strict=True)
        names |= {id(copied): names[id(p)] for p, copied in both if id(p) in names}
    reached = {names[id(leaf)] for leaf in _leaves(loss) if id(leaf) in names}
    if reached:
        raise ValueError(
            f"the loss depends on {', '.join(sorted(reached))} by another way than the model's "
            "output: loss_fn (or a function that the model holds) takes the model's own "
            "parameters, as for a penalty, and they stay as they are in the copies that are "
            "compared here. Leave that term out of loss_fn, or compute it in the model's forward "
            "and return it with the output"
        )


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """The tensors that backward would leave a gradient in."""
    seen: set[Any] = set()
    ahead = [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            yield variable
        ahead += [following for following, _ in node.next_functions]


def relative_change(before: float, after: float) -> float:
    """|after − before| relative to the larger of the two; 0 if both are 0."""
    return 0.0 if before == after else abs(after - before) / max(abs(before), abs(after))


@contextmanager
def frozen_randomness(seed: int = 0) -> Iterator[None]:
    """Within it, torch's default generator starts from `seed`; afterwards, it is as before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def cast(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Every tensor in a nested value on a device; floating-point ones in a type."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device, dtype) if leaf.is_floating_point() else leaf.to(device)

    return pytree.tree_map(one, value)


def take(batch: Any, places: Any) -> Any:
    """The samples at some places (indices, a slice) of every tensor in a batch."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf[places.to(leaf.device) if isinstance(places, Tensor) else places]

    return pytree.tree_map(one, batch)


def count_samples(batch: Any) -> int | None:
    """How many samples a batch has; None if its tensors do not share a first dimension."""
    sizes = {
        leaf.shape[0] if leaf.ndim else None
        for leaf in pytree.tree_leaves(batch)
        if isinstance(leaf, Tensor)
    }
    return sizes.pop() if len(sizes) == 1 else None


def count_bytes(batch: Any) -> int:
    """How much memory the tensors of a batch take."""
    leaves = (leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor))
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)


def working_copy(model: nn.Module, dtype: torch.dtype, *, keep_eps: bool = True) -> nn.Module:
    """A frozen copy of a model to compute with: in a type, and without running averages.

    In training mode the running averages of normalization layers do nothing to the loss; without
    them the loss is a function of the parameters that can be vectorized. Gradients are those of the
    loss: embeddings have no padding that they pass by.
    """
    work = copy.deepcopy(model).to(dtype).requires_grad_(False)
    for module in work.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        if isinstance(module, nn.Embedding):
            # A gradient that leaves out the padding is not that of the loss; nor is a sparse one
            # of use here.
            module.padding_idx, module.sparse = None, False
    if not keep_eps:
        for module, field, _ in eps_fields(work):
            setattr(module, field, _LITTLE_EPS.get(dtype, _NO_EPS))
    return work


def working_loss(loss_fn: LossFunction, dtype: torch.dtype, device: torch.device) -> LossFunction:
    """The loss function to use with a working copy: class weights and the like in its type."""
    if isinstance(loss_fn, nn.Module):
        return copy.deepcopy(loss_fn).to(device, dtype)
    return loss_fn


def eps_fields(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """The ε of every layer that has one: (module, name of the attribute, value)."""
    return [
        (module, field, vars(module)[field])
        for module in model.modules()
        for field in _EPS_NAMES
        if isinstance(vars(module).get(field, ""), float | None)
    ]


@contextmanager
def without_eps(model: nn.Module) -> Iterator[nn.Module]:
    """Within it, the normalization layers of a model have (practically) no ε.

    Their scale invariance is then exact: the loss does not change at all with the length of a
    filter before batch normalization, instead of by O(ε/var) [ioffe2015batch].

    Args:
        model: changed in place, and back at the end. Layers are known by an attribute `eps`,
            `epsilon` or `variance_epsilon`.
    """
    fields = eps_fields(model)
    try:
        for module, field, _ in fields:
            setattr(module, field, _NO_EPS)
        yield model
    finally:
        for module, field, value in fields:
            setattr(module, field, value)
