"""The loss of a model on a batch, as a function of the model's tensors.

    batch = (input, target);   loss = loss_fn(model(input), target)

A tuple as input gives positional arguments, a dict keyword arguments. A loss_fn that does not take
the model's output gets the output's `logits`. Without a loss_fn the model computes the loss itself:
the `loss` of its output. Each evaluation starts from the same seed and leaves buffers unchanged, so
two losses differ only if their tensors differ.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from manifoldnet.symmetry.batches import InputTarget

__all__ = [
    "LossFunction",
    "RepeatableLoss",
    "check_penalty",
    "evaluate",
    "frozen_randomness",
    "relative_change",
    "scalar_loss",
]

LossFunction = Callable[[Any, Any], Tensor]
"""(output, target) -> one number. None in its place: the model computes the loss."""


def _call(model: nn.Module, tensors: Mapping[str, Tensor] | None, given: Any) -> Any:
    """Output of a model for one input, at its own tensors or at given ones."""
    args: tuple[Any, ...] = given if isinstance(given, tuple) else (given,)
    kwargs: dict[str, Any] = {}
    if isinstance(given, Mapping):
        args, kwargs = (), dict(given)
    try:
        if tensors is None:
            return model(*args, **kwargs)
        return functional_call(model, dict(tensors), args, kwargs)
    except TypeError as error:
        known = inspect.signature(model.forward).parameters
        unknown = [name for name in kwargs if name not in known]
        if unknown and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            raise ValueError(
                f"the batch has {', '.join(unknown)}, which {type(model).__name__} does not take "
                f"(it takes {', '.join(known)}): rename or leave out"
            ) from error
        raise


def _own_loss(output: Any, given: Any) -> Any:
    """Loss in a model's output, as transformers' Trainer takes it.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(output, Mapping):
        loss = output.get("loss")
    elif isinstance(output, tuple) and not hasattr(output, "loss"):
        loss = output[0] if output else None
    else:
        loss = output if isinstance(output, Tensor) else getattr(output, "loss", None)
    if loss is None:
        raise ValueError(
            f"the output of the model ({type(output).__name__}) has no loss. Without a loss_fn the "
            "model computes it from its labels, and the batch has "
            f"{', '.join(n for n in given if given[n] is not None) or 'nothing'}: add what the "
            "model calls its labels, or give a loss_fn"
        )
    return loss


def _loss(loss_fn: LossFunction, output: Any, target: Any) -> Tensor:
    """loss_fn of an output or, where it does not take that, of the output's logits."""
    if not callable(loss_fn):
        raise TypeError(
            "loss_fn must be a function of output and target, or None for a model that computes "
            f"its loss, not {type(loss_fn).__name__}"
        )
    try:
        return loss_fn(output, target)
    except (TypeError, AttributeError) as error:
        if isinstance(output, Mapping):
            logits = output.get("logits")
        else:
            logits = getattr(output, "logits", None)
        if logits is None:
            raise
        try:
            return loss_fn(logits, target)
        except (TypeError, AttributeError):
            if isinstance(error, AttributeError):  # a wrong name: logits were no better guess
                raise error from None
            raise


def scalar_loss(
    model: nn.Module,
    loss_fn: LossFunction | None,
    batch: InputTarget,
    tensors: Mapping[str, Tensor] | None,
) -> Tensor:
    """Loss of one batch, differentiable in `tensors` (or in the model's own).

    Raises:
        ValueError: if the loss is not one real number, there is none in the model's output, or the
            model does not take the names of a dict.
    """
    given, target = batch
    output = _call(model, tensors, given)
    loss = _own_loss(output, given) if loss_fn is None else _loss(loss_fn, output, target)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        if loss_fn is None:
            raise ValueError(
                f"the model's loss must be one real number, not {found}; in a tuple it comes first"
            )
        raise ValueError(
            f"loss_fn must give one real number, not {found}: use a loss with "
            "reduction='mean' or 'sum'"
        )
    return loss.reshape(())


def evaluate(
    model: nn.Module,
    loss_fn: LossFunction | None,
    batch: InputTarget,
    tensors: Mapping[str, Tensor] | None = None,
) -> float:
    """Loss of one batch as a number, with a fixed seed and unchanged buffers.

    Args:
        model: any module.
        loss_fn: `loss_fn(output, target)`; None for the model's own loss.
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


class RepeatableLoss:
    """A loss that must have the same value at every evaluation.

    Args:
        model: any module.
        loss_fn: `loss_fn(output, target)`.
        batch: `(input, target)`.

    Raises:
        ValueError: if the first two values differ, or the first is not one finite number.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction | None, batch: InputTarget) -> None:
        self._arguments = model, loss_fn, batch
        self._value = evaluate(*self._arguments)
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        self._tolerance = torch.finfo(dtype).eps ** 0.6  # 4e-10, 7e-5: above rounding, in any order
        self.check()

    def check(self) -> None:
        """Raise a ValueError if the loss has another value now."""
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
    model: nn.Module,
    loss: Tensor,
    loss_fn: LossFunction | None,
    copied_loss_fn: LossFunction | None = None,
) -> None:
    """Raise a ValueError if the loss of a copy depends on the weights of the original.

    A penalty that loss_fn computes from `model.parameters()` is evaluated at the model's own
    weights, not at those of the copy: it is a constant there, and its gradient would accumulate in
    the model. The graph of the loss shows it.

    Args:
        model: the original.
        loss: loss of a copy, computed with gradients.
        loss_fn: the original loss function.
        copied_loss_fn: the copy of it that computed the loss, if it was copied.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    if isinstance(loss_fn, nn.Module) and isinstance(copied_loss_fn, nn.Module):
        pairs = zip(loss_fn.parameters(), copied_loss_fn.parameters(), strict=True)
        names |= {id(copied): names[id(p)] for p, copied in pairs if id(p) in names}
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
    """Leaf tensors of the autograd graph of a loss."""
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
    """Seed torch's default generator inside the context; restore its state afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
