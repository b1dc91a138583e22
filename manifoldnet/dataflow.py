"""Uses of a network's matrices, read from the autograd graph of one forward pass.

A residual stream is a tensor that layers read and add to: h ← h + W f(h). With *plain* operations
(sums, products by numbers and gains, norms, dropout, views, casts) told from all others:

    stream       an addition of two terms, where one comes plainly from a product with a matrix,
                 and the other is plainly what the input of that matrix was computed from
    writes       the product goes plainly into such an addition, or starts the stream
    reads        the input of the product comes plainly from the stream
    head         the product goes plainly to the output of the model
    embedding    rows are looked up

Modules and their names are not asked: functional layers, packed weights and matrices that are kept
as in × out (Hugging Face's `Conv1D`) are seen as they are used. Not seen is what autograd's graph
hides: weights in reentrant checkpointing or in custom functions, experts that the example is not
routed to, and shards, so that weights are declared before they are sharded. A recurrence that is
written out over time steps may look like a stream.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Use", "uses"]

_SUMS = frozenset({"Add", "Sub", "Rsub", "Lerp", "Addcmul", "IndexAdd", "ScatterAdd"})
_PRODUCTS = frozenset({"Mul", "Div"})
_NORMS = frozenset(
    {"NativeLayerNorm", "FusedRmsNorm", "NativeGroupNorm", "NativeBatchNorm", "CudnnBatchNorm"}
    | {"MiopenBatchNorm"}
)
_VIEWS = frozenset(
    {"View", "UnsafeView", "ReshapeAlias", "Transpose", "T", "Permute", "Expand", "Repeat", "Alias"}
    | {"Squeeze", "Unsqueeze", "Slice", "Select", "Split", "SplitWithSizes", "UnsafeSplit"}
    | {"Unbind", "AsStrided", "Cat", "Stack", "Clone", "ToCopy", "CopySlices", "Copys", "Index"}
    | {"IndexSelect", "Gather", "IndexPut", "Scatter", "MaskedFill", "MaskedScatter", "Where"}
    | {"ConstantPadNd", "Roll", "Flip"}
)
_PLAIN = _SUMS | _PRODUCTS | _NORMS | _VIEWS | {"NativeDropout", "Neg", "Mean", "Sum"}

# Between a matrix and the product that it is used in.
_SAME_MATRIX = frozenset(
    {"ToCopy", "Clone", "Alias", "Slice", "Split", "SplitWithSizes", "UnsafeSplit"}
)
# (inputs of the node that are matrices) -> (that of the other factor, dimension of the outputs).
_MATRIX_PRODUCTS: dict[str, dict[int, tuple[int, int]]] = {
    "Addmm": {1: (2, 0), 2: (1, 1)},
    "Mm": {0: (1, 0), 1: (0, 1)},
    "Linear": {1: (0, 0)},
    "MkldnnLinear": {1: (0, 0)},
}
_LOOKUPS = frozenset({"Embedding", "EmbeddingBag"})


@dataclass(frozen=True)
class Use:
    """The use of one parameter in a forward pass.

    Attributes:
        role: "reads" or "writes" the residual stream, "head", "embedding", "tied" for both of
            these, or "" for all else.
        dim: the dimension that indexes the outputs of the matrix; None where it is used as none.
        why: the reason for an empty role.
    """

    role: str
    dim: int | None = None
    why: str = ""


class _Product(NamedTuple):
    """A product with a matrix: its value, that of the input, the matrix's dimension of outputs."""

    value: int
    source: int | None
    dim: int


def uses(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    known: Iterable[int] = (),
) -> dict[int, Use]:
    """The uses of the parameters of a model in one forward pass, by the `id` of the parameter.

    The pass is run in evaluation mode, uncompiled, with gradients; flags are put back after it.

    Args:
        model: the network, outside wrappers that shard it.
        args: positional arguments of the forward pass.
        kwargs: its named ones.
        known: ids of parameters to leave aside, their uses being known: sums of their products (in
            the gates of recurrent layers, say) are taken for no stream.

    Raises:
        ValueError: if the model fails on these arguments, or gives no tensor that depends on its
            parameters.
    """
    parameters = dict(_floating(model))
    graph = _Graph(_forward(model, args, kwargs), parameters, frozenset(known))
    return {key: graph.use(key) for key in parameters}


def _floating(model: nn.Module) -> Iterator[tuple[int, nn.Parameter]]:
    return ((id(p), p) for p in model.parameters() if p.is_floating_point() or p.is_complex())


def _forward(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[Any, int]]:
    """The outputs of a model, as outputs of nodes of autograd's graph."""
    with _evaluated(model), torch.enable_grad(), _uncompiled():
        # In front of parallel and compiled wrappers, whose own forward passes have effects.
        inner: Any = model
        while isinstance(inner, nn.parallel.DistributedDataParallel) or hasattr(inner, "_orig_mod"):
            inner = getattr(inner, "_orig_mod", None) or inner.module
        try:
            outputs = inner(*_with_gradient(args), **_with_gradient(dict(kwargs)))
        except Exception as error:
            raise ValueError(
                f"the example does not run through this {type(inner).__name__}: {error}. Give "
                "what its forward takes: a tensor, a tuple of arguments, or a dictionary of named "
                "ones"
            ) from error
        ends = [(t.grad_fn, t.output_nr) for t in _tensors(outputs) if t.grad_fn is not None]
    if not ends:
        raise ValueError(
            f"no output of this {type(inner).__name__} is a tensor that depends on its parameters "
            "by differentiable operations, so that the use of its weights cannot be seen"
        )
    return ends


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and gradients for all parameters, for a while."""
    training = [(module, module.training) for module in model.modules()]
    frozen = [p for _, p in _floating(model) if not p.requires_grad]
    try:
        for module, _ in training:
            module.training = False
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)
        for module, mode in training:
            module.training = mode


def _uncompiled() -> AbstractContextManager[Any]:
    """Compiled functions and modules as they were before; where there are none, nothing."""
    # Without the compiler nothing is compiled, and its import takes seconds.
    present = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if present else nullcontext()


def _with_gradient(value: Any) -> Any:
    """Arguments whose floating-point tensors are seen in the graph, and may be written to."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().requires_grad_(True).clone()
    if isinstance(value, dict):
        return {key: _with_gradient(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_with_gradient(each) for each in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif is_dataclass(value):
        yield from _tensors(list(vars(value).values()))


class _Graph:
    """A graph of autograd: outputs of its nodes are numbered values, sets of values are bits."""

    def __init__(
        self,
        ends: list[tuple[Any, int]],
        parameters: dict[int, nn.Parameter],
        known: frozenset[int],
    ) -> None:
        self.known = known
        nodes = _sorted([node for node, _ in ends])
        number = {node: n for n, node in enumerate(nodes)}
        self.names = [re.sub(r"Backward\d*$", "", node.name()) for node in nodes]
        self.owner: list[int] = []  # the node of each value
        self.outputs: list[dict[int, int]] = [{} for _ in nodes]
        self.readers: list[list[tuple[int, int]]] = []  # the (node, place) that take each value
        self.inputs: list[list[int | None]] = []
        for n, node in enumerate(nodes):
            values = [
                None if f is None else self._value(number[f], k) for f, k in node.next_functions
            ]
            self.inputs.append(values)
            for place, value in enumerate(values):
                if value is not None:
                    self.readers[value].append((n, place))
        out = [self._value(number[node], k) for node, k in ends]
        self.leaves: dict[int, int] = {}
        for n, node in enumerate(nodes):
            if self.names[n].endswith("AccumulateGrad") and id(node.variable) in parameters:
                self.leaves[id(node.variable)] = self._value(n, 0)
        self.products: dict[int, list[_Product]] = {}
        self.others: dict[int, list[int]] = {}
        for key, value in self.leaves.items():
            self._find_products(key, value, parameters[key].ndim)
        self._reach()
        self._find_stream()
        self.out = self._union(map(self.plain, out))

    def _value(self, node: int, output: int) -> int:
        """The number of a value, a new one if it has none."""
        value = self.outputs[node].setdefault(output, len(self.owner))
        if value == len(self.owner):
            self.owner.append(node)
            self.readers.append([])
        return value

    def _find_products(self, key: int, leaf: int, ndim: int) -> None:
        """The products that a parameter is a factor of, and the nodes of its other uses."""
        products = self.products.setdefault(key, [])
        others = self.others.setdefault(key, [])
        ahead = [(leaf, 0)]
        while ahead:
            value, turned = ahead.pop()
            for reader, place in self.readers[value]:
                name = self.names[reader]
                roles = _MATRIX_PRODUCTS.get(name, {})
                if ndim == 2 and place in roles:
                    factor, dim = roles[place]
                    result, source = self._value(reader, 0), self.inputs[reader][factor]
                    products.append(_Product(result, source, dim ^ turned))
                elif ndim == 2 and name in ("T", "Transpose"):
                    ahead += [(out, turned ^ 1) for out in self.outputs[reader].values()]
                elif name in _SAME_MATRIX:
                    ahead += [(out, turned) for out in self.outputs[reader].values()]
                else:
                    others.append(reader)

    def before(self, value: int) -> int:
        """All that a value is computed from, itself included."""
        return 1 << value | self._before[self.owner[value]]

    def plain(self, value: int) -> int:
        """All that a value comes from plainly."""
        return 1 << value | self._plain[self.owner[value]]

    def unscaled(self, value: int) -> int:
        """All that a value comes from plainly, and by no product of two activations."""
        return 1 << value | self._unscaled[self.owner[value]]

    def _reach(self) -> None:
        """The nodes that depend on more than parameters, and the values that each comes from."""
        matrices = {self.owner[p.value] for found in self.products.values() for p in found}
        parameters = {self.owner[value] for value in self.leaves.values()}
        self.active: list[bool] = []
        self._before: list[int] = []
        self._plain: list[int] = []
        self._unscaled: list[int] = []
        for n, name in enumerate(self.names):
            inputs = [i for i in self.inputs[n] if i is not None]
            ahead = [i for i in inputs if self.active[self.owner[i]]]
            argument = name.endswith("AccumulateGrad") and n not in parameters
            self.active.append(argument or name in _LOOKUPS or n in matrices or bool(ahead))
            self._before.append(self._union(map(self.before, inputs)))
            if name not in _PLAIN:
                ahead = []
            self._plain.append(self._union(map(self.plain, ahead)))
            if name in _PRODUCTS and len(ahead) > 1:
                # x · f(x), a norm written out, is x scaled; x · y is neither.
                ahead = [i for i in ahead if all(self.before(j) >> i & 1 for j in ahead if j != i)]
            self._unscaled.append(self._union(map(self.unscaled, ahead)))

    def _find_stream(self) -> None:
        """Additions of a product to what its input was computed from, and what is added to."""
        looked_at = self.products.keys() - self.known
        sources = {p.value: p.source for key in looked_at for p in self.products[key]}
        products = self._union(1 << value for value in sources)
        writers = self.stream = self.start = 0
        for n, name in enumerate(self.names):
            terms = [i for i in self.inputs[n] if i is not None and self.active[self.owner[i]]]
            if name not in _SUMS or len(terms) < 2:
                continue
            for term, other in ((a, b) for a in terms for b in terms if a != b):
                for product in _members(self.plain(term) & products & ~writers):
                    source = sources[product]
                    if source is not None and self.plain(other) & self.before(source):
                        writers |= 1 << product
                        self.stream |= 1 << self._value(n, 0) | self.plain(other)
                        self.start |= self.unscaled(other)
        self.writes = writers | self.start & products

    @staticmethod
    def _union(sets: Iterable[int]) -> int:
        whole = 0
        for each in sets:
            whole |= each
        return whole

    def use(self, key: int) -> Use:
        """The use of one parameter, by its id."""
        if key not in self.leaves:
            return Use("", why="no output of the example is seen to depend on it")
        products, others = self.products[key], self.others[key]
        lookups = [n for n in others if self.names[n] in _LOOKUPS]
        if len(lookups) < len(others):
            names = {self.names[n] for n in others} - _LOOKUPS
            if "Convolution" in names:
                return Use("", why="the kernel of a convolution")
            return Use("", why="used otherwise than as the matrix of a product")
        found = {self._role(product) for product in products}
        if lookups:
            # A tied head has the rows of its embedding.
            role = "tied" if Use("head", 0) in found else "embedding"
            found -= {Use("head", 0), Use("reads", 0)}
            rows = self._union(1 << self._value(n, 0) for n in lookups)
            fed = not self.stream or self.start & rows
            found.add(
                Use(role, 0)
                if fed
                else Use("", why="an embedding that does not go into the residual stream")
            )
        if len(found) > 1:
            return Use("", why="used in two ways")
        return found.pop()

    def _role(self, product: _Product) -> Use:
        value, source, dim = product
        writes = self.writes >> value & 1
        reads = source is not None and self.plain(source) & self.stream
        if reads and writes:
            return Use("", dim, "reads and writes the residual stream")
        if writes:
            return Use("writes", dim)
        if self.out >> value & 1:
            return Use("head", dim)
        if reads:
            return Use("reads", dim)
        if not self.stream:
            return Use("", dim, "no residual stream was seen")
        return Use("", dim, "neither reads nor writes the residual stream")


def _members(bits: int) -> Iterator[int]:
    """The numbers in a set."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _sorted(ends: list[Any]) -> list[Any]:
    """All nodes of a graph, each after those that it comes from."""
    found: list[Any] = []
    known: set[Any] = set()
    ahead = [(end, False) for end in ends]
    while ahead:
        node, ready = ahead.pop()
        if ready:
            found.append(node)
        elif node not in known:
            known.add(node)
            ahead.append((node, True))
            ahead += [(f, False) for f, _ in node.next_functions if f is not None]
    return found
