"""Rules for `declare_all`.

Table 1 of [badrinarayanan2015symmetry], for any feed-forward network:

    unit_norm(classifier="head")       every filter of a hidden layer on the unit sphere; the
                                       classifier free
    scaled_metric(classifier="head")   hidden layers scaled by filters, the classifier by columns

Hidden layers are the linear, convolution and transposed convolution layers of a model; biases,
normalization layers and everything else stay free. The classifier is given by name.

The directions of [loshchilov2024ngpt], for any network with a residual stream:

    transformer(tokens)                what reads the stream by the vectors that read, what writes
                                       it by the vectors that are written, embeddings by their rows

Which weight reads and which one writes is seen in a forward pass on an example, and for torch's own
layers known without one. No name is matched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from manifoldnet.dataflow import Use, uses
from manifoldnet.declarations import FEW_DIMENSIONS
from manifoldnet.geometry import Manifold, Oblique, Retraction, ScaledEuclidean, from_spec
from manifoldnet.geometry.settled import settle

__all__ = ["scaled_metric", "transformer", "unit_norm"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def unit_norm(
    classifier: str | tuple[str, ...], retraction: Retraction | str = "projective"
) -> Callable[[str, nn.Module, nn.Parameter], Manifold | None]:
    """Unit-norm filters in every hidden layer, with a free classifier (UN).

    Args:
        classifier: the qualified name of the layer (or layers) that classify: `"head"`,
            `"backbone.fc"`; an empty tuple if there is none.
        retraction: as in `Oblique`.

    Returns:
        A rule for `declare_all`, usually with `project=True`.

    Raises:
        TypeError: if `classifier` is no string, and no tuple of strings.
        ValueError: for an unknown retraction; from `declare_all`, if the model has no such layer.
    """
    Oblique(retraction=retraction)  # refuse a bad one here, not at the first layer
    return _ByLayer(
        _names(classifier), lambda dim: Oblique(dim, retraction=retraction), by_columns=False
    )


def scaled_metric(
    classifier: str | tuple[str, ...], retraction: Retraction | str = "geodesic"
) -> Callable[[str, nn.Module, nn.Parameter], Manifold | None]:
    """The scaled metric, by filters (rows) in hidden layers, by columns in the classifier (SM).

    Args:
        classifier: as in `unit_norm`.
        retraction: as in `ScaledEuclidean`; "additive" is the paper's update.

    Returns:
        A rule for `declare_all`; the values of the weights stay as they are.

    Raises:
        TypeError: as `unit_norm`.
        ValueError: as `unit_norm`.
    """
    ScaledEuclidean(retraction=retraction)
    return _ByLayer(
        _names(classifier), lambda dim: ScaledEuclidean(dim, retraction), by_columns=True
    )


def _names(classifier: str | tuple[str, ...]) -> tuple[str, ...]:
    names = (classifier,) if isinstance(classifier, str) else classifier
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            "classifier must be the qualified name of a layer, such as 'head', or a tuple of "
            f"names, not {classifier!r}"
        )
    return tuple(names)


@final
@dataclass(frozen=True)
class _ByLayer:
    classifier: tuple[str, ...]
    manifold: Callable[[int], Manifold]
    by_columns: bool

    def validate(self, model: nn.Module) -> None:
        """Raise ValueError unless the model has the classifier: all layers would be hidden."""
        modules = dict(model.named_modules())
        for name in self.classifier:
            if not isinstance(modules.get(name), _LAYERS + _TRANSPOSED):
                candidates = [n for n, m in modules.items() if isinstance(m, _LAYERS + _TRANSPOSED)]
                raise ValueError(
                    f"classifier={name!r} is no linear or convolution layer of this model; "
                    f"there are: {', '.join(candidates) or 'none'}"
                )

    def __call__(self, name: str, module: nn.Module, parameter: nn.Parameter) -> Manifold | None:
        """The manifold of a parameter in Table 1; None for a free one."""
        layer, _, local = name.rpartition(".")
        if local != "weight" or not isinstance(module, _LAYERS + _TRANSPOSED):
            return None
        classifies = layer in self.classifier
        if classifies and not self.by_columns:
            return None
        filters = 0
        if isinstance(module, _TRANSPOSED):
            if module.groups > 1:
                raise ValueError(
                    f"{name}: the filters of a grouped transposed convolution are not the slices "
                    "of one dimension; leave it free with a rule of your own"
                )
            filters = 1
        return self.manifold(1 - filters if classifies else filters)

    def why(self, name: str, module: nn.Module, parameter: nn.Parameter) -> str:
        """The reason of the answer, for the report of `declare_all`."""
        layer, _, local = name.rpartition(".")
        if parameter.ndim < 2:
            return FEW_DIMENSIONS
        if local != "weight" or not isinstance(module, _LAYERS + _TRANSPOSED):
            return "no weight of a linear or convolution layer"
        return "the classifier" if layer in self.classifier else "filters of a hidden layer"


def transformer(
    example: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
    *,
    manifold: Callable[[int], Manifold] = Oblique,
    head: Manifold | None = None,
) -> Callable[[str, nn.Module, nn.Parameter], Manifold | None]:
    """Directions of a transformer as in nGPT [loshchilov2024ngpt], found by the use of each weight.

    A matrix that reads the residual stream (query, key, value, gate, up) is a set of vectors that
    its outputs index, one that writes the stream (attention's output, down) a set of vectors that
    its inputs index: with weights stored as out × in, rows (`manifold(0)`) and columns
    (`manifold(1)`). An embedding is its rows, and so is a head that is tied to it.

    Uses are seen in one forward pass on `example` (`manifoldnet.dataflow`), whatever the modules
    are, with functional layers, packed weights and weights stored as in × out. Without an example
    they are known by type for `torch.nn`'s own layers: MultiheadAttention, TransformerEncoderLayer
    and TransformerDecoderLayer, embeddings, and recurrent layers (gates read their input and their
    state, by rows; a projection of the state writes it, by columns). These types decide with an
    example, too, except for embeddings. Biases, gains, convolutions and all whose use is not
    determined are left free; the report of `declare_all` says why.

    Args:
        example: an input of the model, as small as it may be: a tensor, a tuple of positional
            arguments, or a dictionary of named ones. Leave labels out, so that the model gives
            scores and no loss.
        manifold: gives the manifold for the dimension that indexes the vectors: `Oblique`,
            `ScaledEuclidean`, or a function of your own, such as
            `lambda dim: Oblique(dim, retraction="geodesic")`.
        head: the manifold of heads, the matrices whose outputs leave the model; free if left out,
            since their length sets the sharpness of the softmax. A tied head gets it as well.

    Returns:
        A rule for `declare_all`.

    Raises:
        TypeError: if `manifold` is no such function, `head` no manifold, or `example` something
            else.
        ValueError: from `declare_all`, if the model does not run on the example, or `head` is given
            and no head is found.
    """
    made = manifold(0) if callable(manifold) else None
    if not isinstance(made, Manifold):
        raise TypeError(
            "manifold must give the manifold for a dimension, as manifoldnet.Oblique or "
            f"`lambda dim: Oblique(dim, radius=2.0)` do, not {made or manifold!r}"
        )
    if not isinstance(head, Manifold | None):
        raise TypeError(f"head must be a manifold such as ScaledEuclidean(dim=1), not {head!r}")
    if not isinstance(example, Tensor | tuple | Mapping | None):
        raise TypeError(
            "example must be a tensor, a tuple of arguments, or a dictionary of named ones, not "
            f"{type(example).__name__}"
        )
    return _Transformer(example, manifold, head)


_UNKNOWN = Use("", why="no layer whose type tells its use: give rules.transformer an example")
_REASONS = {
    "reads": "vectors that read the residual stream",
    "writes": "vectors that are written to the residual stream",
    "embedding": "vectors of an embedding",
    "tied": "vectors of an embedding and of the head that is tied to it",
    "head": "a head",
}


@final
@dataclass(frozen=True, eq=False, repr=False)
class _Transformer:
    example: Tensor | tuple[Any, ...] | Mapping[str, Any] | None
    manifold: Callable[[int], Manifold]
    head: Manifold | None

    def __repr__(self) -> str:
        return "transformer(…)"

    def __call__(self, name: str, module: nn.Module, parameter: nn.Parameter) -> Manifold | None:
        raise RuntimeError(
            "the rule looks at the whole model: give it to declare_all, or call rule.bind(model)"
        )

    def bind(self, model: nn.Module) -> _Chosen:
        """The rule for one model: its weights, seen in use.

        Raises:
            ValueError: if the model does not run on the example; if there is no head for `head`.
        """
        recurrent = dict(_recurrent(model))
        if self.example is None:
            found = dict(_embeddings(model))
        elif isinstance(self.example, Mapping):
            found = uses(model, (), self.example, recurrent)
        else:
            args = self.example if isinstance(self.example, tuple) else (self.example,)
            found = uses(model, args, {}, recurrent)
        found |= recurrent | dict(_attention(model))
        zero = dict(_zero_rows(model))
        for key in _tied_heads(model):
            if key in found and found[key].role == "embedding":
                found[key] = Use("tied", 0)
        if self.head is not None and not {u.role for u in found.values()} & {"head", "tied"}:
            raise ValueError(
                f"head={self.head} is given, and no head is seen in this {type(model).__name__}: "
                "give rules.transformer an example whose outputs are the head's"
            )
        answers: dict[int, tuple[Manifold | None, str]] = {}
        for p in model.parameters():
            use = found.get(id(p), _UNKNOWN)
            if p.ndim < 2:
                answers[id(p)] = None, FEW_DIMENSIONS
            else:
                answers[id(p)] = self._answer(use, zero.get(id(p)))
        return _Chosen(answers)

    def _answer(self, use: Use, zero: int | None) -> tuple[Manifold | None, str]:
        """Manifold and reason of a matrix, of which a row may be zero."""
        why = use.why or _REASONS.get(use.role, "")
        if use.role == "head" or (use.role == "tied" and self.head is not None):
            if self.head is None:
                return None, f"{why}: its length sets the sharpness of the softmax"
            return self.head, why
        if use.dim is None or not use.role:
            return None, why
        found = self.manifold(1 - use.dim if use.role == "writes" else use.dim)
        if zero is None:
            return found, why
        excepted = _except(found, zero)
        return excepted, f"{why}, row {zero} zero (padding_idx)" + (
            "" if excepted else f", which {type(found).__name__} does not except"
        )


@final
@dataclass(frozen=True)
class _Chosen:
    """The manifold of each parameter with the reason, by the parameter's id."""

    answers: dict[int, tuple[Manifold | None, str]]

    def __call__(self, name: str, module: nn.Module, parameter: nn.Parameter) -> Manifold | None:
        return self.answers[id(parameter)][0]

    def why(self, name: str, module: nn.Module, parameter: nn.Parameter) -> str:
        """The reason of the answer, for the report of `declare_all`."""
        return self.answers[id(parameter)][1]


def _embeddings(model: nn.Module) -> Iterator[tuple[int, Use]]:
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            yield id(module.weight), Use("embedding", 0)


def _zero_rows(model: nn.Module) -> Iterator[tuple[int, int]]:
    """The rows of embeddings that stay zero, since padding has no gradient."""
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None:
            row = module.weight.detach()[module.padding_idx]
            if row.is_meta or not settle(row.count_nonzero()):
                yield id(module.weight), module.padding_idx


def _except(manifold: Manifold, zero: int) -> Manifold | None:
    """The same manifold with one slice that is zero; None where a manifold knows no such slices."""
    if manifold.validate(torch.zeros(2, 2)) is None:
        return manifold
    if "zero_slices" not in getattr(type(manifold), "__dataclass_fields__", {}):
        return None
    spec = manifold.spec()
    return from_spec({**spec, "fields": {**spec["fields"], "zero_slices": [zero]}})


def _tied_heads(model: nn.Module) -> set[int]:
    """Weights of embeddings that a layer of another kind has as well."""
    owners: dict[int, set[bool]] = {}
    for module in model.modules():
        for p in module._parameters.values():
            is_embedding = isinstance(module, nn.Embedding | nn.EmbeddingBag)
            owners.setdefault(id(p), set()).add(is_embedding)
    return {key for key, kinds in owners.items() if len(kinds) == 2}


def _attention(model: nn.Module) -> Iterator[tuple[int, Use]]:
    """Uses of weights of torch's attention and transformer layers, by the layers' types."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            for local in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                yield id(module._parameters.get(local)), Use("reads", 0)
            yield id(module.out_proj._parameters.get("weight")), Use("writes", 0)
        elif isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            yield id(module.linear1._parameters.get("weight")), Use("reads", 0)
            yield id(module.linear2._parameters.get("weight")), Use("writes", 0)


def _recurrent(model: nn.Module) -> Iterator[tuple[int, Use]]:
    """Uses of weights of torch's recurrent layers: gates read, projections of the state write."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            for local, p in module._parameters.items():
                if local.startswith("weight_hr"):
                    yield id(p), Use("writes", 0, "vectors that are written to the layer's state")
                else:
                    yield id(p), Use("reads", 0, "vectors that read the layer's input or state")
