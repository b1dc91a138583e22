"""A manifold is a frozen value, and its methods are functions of their arguments alone."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from collections.abc import Iterator

import torch

import manifoldnet.geometry
from manifoldnet.geometry import Manifold, from_spec
from manifoldnet.testing.law import Laws, law
from manifoldnet.testing.strategies import seeds

__all__ = ["ValueLaws"]

_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class ValueLaws(Laws):
    """Equality, copies, descriptions; types of results, and arguments left as they were."""

    @law()
    def test_equal_to_its_copies(self) -> None:
        """Copies and pickles of a manifold are equal to it, with equal hashes."""
        for how, other in self._copies():
            self.holds(other == self.manifold, f"its {how} is not equal to it")
            self.holds(hash(other) == hash(self.manifold), f"its {how} has another hash")
        for stranger in (None, str(self.manifold), object()):
            self.holds(self.manifold != stranger, f"it is equal to {stranger!r}")

    def _copies(self) -> Iterator[tuple[str, Manifold]]:
        yield "copy", copy.copy(self.manifold)
        yield "deepcopy", copy.deepcopy(self.manifold)
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            yield f"pickle {protocol}", pickle.loads(pickle.dumps(self.manifold, protocol))

    @law(seed=seeds())
    def test_copies_step_alike(self, seed: int) -> None:
        """A copy takes the same steps, bit for bit."""
        x = self.point(seed)
        u = self.tangent(x, seed + 1)
        y = self.manifold.retr(x, u)
        for how, other in self._copies():
            self.holds(torch.equal(other.retr(x, u), y), f"retr of its {how} is another one")

    @law()
    def test_frozen(self) -> None:
        """Neither a manifold nor its parts can be changed once they are made."""
        m = self.manifold
        fields = ("dim", "metric", "projection", "retraction", "geodesics", "new")
        for field in fields:
            self.holds(_frozen(m, field), f"its attribute {field!r} can be set")
        for part in m.parts:
            self.holds(_frozen(part, "new"), f"attributes of {part} can be set")

    @law()
    def test_spec_survives_json(self) -> None:
        """`from_spec` makes an equal manifold of its spec, also after a way through JSON."""
        spec = self.manifold.spec()
        back = json.loads(json.dumps(spec, allow_nan=False))
        self.holds(back == spec, f"JSON changes its spec {spec} to {back}")
        other = from_spec(back)
        self.holds(other == self.manifold, f"from_spec(spec) is {other}")
        self.holds(other.spec() == spec, f"from_spec(spec).spec() is {other.spec()}")

    @law()
    def test_repr_is_the_call_that_makes_it(self) -> None:
        """`eval(repr(manifold)) == manifold`, if the repr can be evaluated where it is defined."""
        names = dict(vars(manifoldnet.geometry))
        for part in (self.manifold, *self.manifold.parts):
            names |= vars(sys.modules[type(part).__module__])
        try:
            made = eval(repr(self.manifold), names)
        except (NameError, SyntaxError):
            return  # a description in words
        self.holds(made == self.manifold, f"eval(repr(manifold)) is {made!r}, not equal to it")

    @law(seed=seeds())
    def test_arguments_are_not_changed(self, seed: int) -> None:
        """No method changes the tensors that it is given."""
        m = self.manifold
        x, y = self.pair(seed)
        u, v = (self.tangent(x, seed + i) for i in (2, 3))
        before = [t.clone() for t in (x, y, u, v)]
        for name, arguments in {
            "projx": (x,),
            "proju": (x, u),
            "egrad2rgrad": (x, u),
            "inner": (x, u, v),
            "norm": (x, u),
            "violation": (x,),
            "tangent_violation": (x, u),
            "expmap": (x, u),
            "expmap_transp": (x, u, v),
            "retr": (x, u),
            "retr_transp": (x, u, v),
            "logmap": (x, y),
            "dist": (x, y),
            "transp": (x, y, v),
        }.items():
            getattr(m, name)(*arguments)
            same = all(torch.equal(a, b) for a, b in zip((x, y, u, v), before, strict=True))
            self.holds(same, f"{name} changes its arguments")

    @law(seed=seeds())
    def test_results_have_the_type_of_the_point(self, seed: int) -> None:
        """Tensors come back in the type and shape of the point; numbers in float32 at least."""
        m = self.manifold
        start, end = self.pair(seed)
        for dtype in _TYPES:
            x, y = start.to(dtype), end.to(dtype)
            u, v = (self.tangent(x, seed + i, 0.1).to(dtype) for i in (2, 3))
            for name, result in {
                "projx": m.projx(x),
                "proju": m.proju(x, u),
                "egrad2rgrad": m.egrad2rgrad(x, u),
                "expmap": m.expmap(x, u),
                "retr": m.retr(x, u),
                "logmap": m.logmap(x, y),
                "transp": m.transp(x, y, v),
                "expmap_transp": m.expmap_transp(x, u, v)[1],
                "retr_transp": m.retr_transp(x, u, v)[1],
            }.items():
                ok = result.dtype == dtype and result.shape == x.shape
                self.holds(ok, f"{name} of {dtype} gives {result.dtype}, {tuple(result.shape)}")
            wide = torch.promote_types(dtype, torch.float32)
            for name, number in {
                "component_inner": m.component_inner(x, u, v),
                "inner": m.inner(x, u, v),
                "norm": m.norm(x, u),
                "dist": m.dist(x, y),
                "dist2": m.dist2(x, y),
                "violation": m.violation(x),
                "tangent_violation": m.tangent_violation(x, u),
            }.items():
                self.holds(
                    number.dtype == wide, f"{name} of {dtype} gives {number.dtype}, not {wide}"
                )


def _frozen(value: object, field: str) -> bool:
    """Whether setting this attribute is refused."""
    try:
        if hasattr(value, field):
            setattr(value, field, getattr(value, field))
        else:
            setattr(value, field, None)
            delattr(value, field)
    except AttributeError:
        return True
    return False
