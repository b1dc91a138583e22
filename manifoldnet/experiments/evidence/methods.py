"""The methods: which weights are declared, and optimizers of the public library for them.

    adamw, muon      nothing declared
    adamh, muonh     each matrix on the sphere of its first norm; a step turns it by the rate
    angular-muown    rows as directions and gains; Muon turns directions, Adam steps gains
    ngpt             unit vectors by rows and columns, embeddings included; RiemannianAdam with one
                     second moment a vector, a step of which is as long as the rate
    …-scaled         hidden matrices under the scaled metric, the optimizer in its frame
    adamw-moving     all parameters in the moving frame of the network's scaling group
    …-unit           unit vectors by rows; RiemannianSGD, or Muon constrained
    sgd              nothing declared; SGD and RiemannianSGD have one rate for all parameters

Muon has momentum 0.95 with Nesterov's correction and exact polar factors on a processor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

import manifoldnet as mn
from manifoldnet import rules
from manifoldnet.experiments.evidence.config import (
    BETAS,
    DECAY,
    METHODS,
    MOMENTUM,
    SGD_DECAY,
    EvidenceConfig,
)
from manifoldnet.experiments.evidence.networks import Network, scalings


class Optimizers(NamedTuple):
    """The optimizers of a run: those that it steps, and those of gains, which step with them."""

    stepped: list[Optimizer]  # the first has the method's rate
    gains: list[Optimizer]


def optimizers(config: EvidenceConfig, network: Network) -> Optimizers:
    """Declare the weights of a network for a method, and make its optimizers.

    The weights that are to have unit norms are projected.
    """
    made = _METHODS[config.method](config, network)
    if config.rest_lr is None:
        return made
    held = {id(p) for group in made.stepped[0].param_groups for p in group["params"]}
    rest = [p for p in network.parameters() if id(p) not in held]
    made.stepped.append(_adamw(rest, config.rest_lr))
    return made


def _groups(parameters: Iterable[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Groups of matrices, which decay, and of gains, which do not."""
    matrices: list[nn.Parameter] = []
    gains: list[nn.Parameter] = []
    for p in parameters:
        (matrices if p.ndim > 1 else gains).append(p)
    groups = [(matrices, decay), (gains, 0.0)]
    return [{"params": some, "weight_decay": each} for some, each in groups if some]


def _adamw(parameters: Iterable[nn.Parameter], lr: float) -> Optimizer:
    return AdamW(_groups(parameters, DECAY), lr=lr, betas=BETAS)


def _hidden(config: EvidenceConfig, network: Network) -> list[nn.Parameter]:
    return [network.get_parameter(name) for name in config.matrices]


def _plain_adamw(config: EvidenceConfig, network: Network) -> Optimizers:
    return Optimizers([_adamw(network.parameters(), _rate(config))], [])


def _sgd(config: EvidenceConfig, network: Network) -> Optimizers:
    groups = _groups(network.parameters(), SGD_DECAY)
    return Optimizers([SGD(groups, lr=_rate(config), momentum=MOMENTUM)], [])


def _riemannian_sgd(config: EvidenceConfig, network: Network) -> Optimizers:
    _declare(config, network)
    declared, free = (group["params"] for group in mn.param_groups(network, names=False))
    groups = [{"params": declared}, *_groups(free, SGD_DECAY)]
    return Optimizers([mn.RiemannianSGD(groups, lr=_rate(config), momentum=MOMENTUM)], [])


def _declare(config: EvidenceConfig, network: Network) -> None:
    """Declare the hidden matrices under the scaled metric, or project them to unit norms."""
    unit = config.method.endswith("unit")
    made = mn.Oblique if unit else mn.ScaledEuclidean
    mn.declare_all(network, {n: made(d) for n, d in config.matrices.items()}, project=unit)


def _muon(config: EvidenceConfig, network: Network) -> Optimizers:
    hidden = _hidden(config, network)
    return Optimizers([mn.optim.Muon(hidden, lr=_rate(config), weight_decay=DECAY)], [])


def _base(config: EvidenceConfig, network: Network) -> Optimizer:
    """Adam or Muon for the hidden matrices, without decay."""
    hidden, lr = _hidden(config, network), _rate(config)
    if METHODS[config.method].base == "muon":
        return mn.optim.Muon(hidden, lr=lr, weight_decay=0.0)
    return Adam(hidden, lr=lr, betas=BETAS)


def _hyperball(config: EvidenceConfig, network: Network) -> Optimizers:
    """AdamH and MuonH [wen2026hyperball]."""
    norms = {name: network.get_parameter(name).detach().norm() for name in config.matrices}
    mn.declare_all(network, {n: mn.Sphere(float(r)) for n, r in norms.items()}, project=True)
    made = mn.constrain(_base(config, network), length="angle", tangent=False)
    return Optimizers([made], [])


def _angular_muown(config: EvidenceConfig, network: Network) -> Optimizers:
    """AngularMuown [hubler2026muown], its gains at the rate of the other parameters."""
    assert config.rest_lr is not None
    lr, kept = config.rest_lr, []

    def gains(r: list[Tensor]) -> Optimizer:
        kept.append(Adam(r, lr=lr, betas=BETAS))
        return kept[0]

    mn.declare_all(network, dict.fromkeys(config.matrices, mn.Polar()))
    made = mn.constrain(_base(config, network), tangent="gradient", gains=gains)
    return Optimizers([made], list(kept))


def _ngpt(config: EvidenceConfig, network: Network) -> Optimizers:
    """RiemannianAdam on the unit vectors of [loshchilov2024ngpt]."""
    if config.kind == "text":
        example = torch.zeros(1, config.block, dtype=torch.long)
        mn.declare_all(network, rules.transformer(example), project=True)
    else:
        mn.declare_all(network, rules.unit_norm(classifier="head"), project=True)
    declared = mn.param_groups(network)[0]["params"]
    made = mn.RiemannianAdam(declared, lr=_rate(config), betas=BETAS, slice_scale="norm")
    return Optimizers([made], [])


def _constrained(config: EvidenceConfig, network: Network) -> Optimizers:
    _declare(config, network)
    return Optimizers([mn.constrain(_base(config, network))], [])


def _moving(config: EvidenceConfig, network: Network) -> Optimizers:
    group = scalings(network)
    made = _plain_adamw(config, network)
    mn.symmetry.make_invariant(made.stepped, network, group)
    return made


_METHODS = {
    "adamw": _plain_adamw,
    "muon": _muon,
    "adamh": _hyperball,
    "muonh": _hyperball,
    "angular-muown": _angular_muown,
    "ngpt": _ngpt,
    "adamw-scaled": _constrained,
    "muon-scaled": _constrained,
    "adamw-moving": _moving,
    "sgd": _sgd,
    "sgd-unit": _riemannian_sgd,
    "sgd-scaled": _riemannian_sgd,
    "muon-unit": _constrained,
}


def _rate(config: EvidenceConfig) -> float:
    assert config.lr is not None  # the field has a number by default, and takes no None
    return config.lr
