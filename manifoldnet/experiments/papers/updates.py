"""The weight updates that the papers compare, as data.

Each names the rule of `manifoldnet.rules` that declares the weights, and its options: those of
Table 1 of [badrinarayanan2015symmetry], and the scaled metric with its exact geodesics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

from manifoldnet import rules
from manifoldnet.declarations import declare_all


@dataclass(frozen=True)
class Update:
    """A weight update of the comparison: which weights it declares on which manifolds.

    Attributes:
        rule: name of the factory in `manifoldnet.rules`; None declares nothing (Euclidean weights).
        options: keyword arguments of that factory, besides ``classifier="head"``.
        words: its name in the legends of pictures.
        summary: one line for people.
    """

    words: str
    summary: str
    rule: str | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def _update(words: str, summary: str, rule: str, retraction: str) -> Update:
    return Update(words, summary, rule, MappingProxyType({"retraction": retraction}))


UPDATES: Mapping[str, Update] = MappingProxyType(
    {
        "b-sgd": Update("plain SGD", "balanced SGD: Euclidean updates from a unit-norm start"),
        "sm": _update(
            "scaled metric, additive",
            "scaled metric, additive step (Table 1)",
            *("scaled_metric", "additive"),
        ),
        "sm-geodesic": _update(
            "scaled metric, geodesic",
            "scaled metric, exact geodesic step",
            *("scaled_metric", "geodesic"),
        ),
        "un": _update(
            "unit norm",
            "unit-norm filters, projective step (Table 1)",
            *("unit_norm", "projective"),
        ),
    }
)
"""The updates of the comparison, by name."""

ABBREVIATIONS = (
    "b-sgd is plain SGD from a balanced start (B-SGD), sm the scaled metric (SM), and un unit "
    "norms (UN)"
)
"""The names of the updates in words, for reports."""


def in_words(update: str) -> str:
    """The name of an update, or of AdamW on free weights, in legends of pictures."""
    return UPDATES[update].words if update in UPDATES else {"adamw": "AdamW"}.get(update, update)


def declare(network: nn.Module, update: str) -> None:
    """Declare the weights of a network, whose classifier is `head`, for an update."""
    row = UPDATES[update]
    if row.rule is not None:
        declare_all(network, getattr(rules, row.rule)(classifier="head", **row.options))
