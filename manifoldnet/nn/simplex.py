"""Scale-invariant classification by the vertices of a simplex: targets, classifier, loss.

    y = A x        z = y/‖y‖        c = ‖z − t_j‖² = 2 − 2 z·t_j ∈ [0, 4]

Targets t_1 … t_k are unit vectors, one for each class:

    regular     equal distances and mean 0: t_i·t_j = −1/(k−1)
    standard    the first k vectors of the standard basis: t_i·t_j = 0

In m ≥ k dimensions the regular targets are the standard ones, centred and normalized,

    t_j = √(k/(k−1)) (e_j − 1/k (e_1 + … + e_k)),

so that for both the nearest target is that of the largest among the first k coordinates. The
regular simplex exists in m = k − 1 dimensions as well.

The predicted class is that of the nearest target, which has the largest of the cosines z·t_1 …
z·t_k. Neither the class nor the loss changes if x or A is multiplied by α > 0. (The paper says "any
nonzero number", but α < 0 changes the sign of z.) The norm of A is therefore arbitrary. A stays on
the sphere ‖A‖_F = √m, where a learning rate is a step relative to the norm.

Huge and tiny features neither overflow nor underflow (`manifoldnet.nn.normalize`). Features that
are all zero have no direction: z = 0, all cosines are 0, the loss is 2 and its gradient 0.

Source: [tygert2015scale], Sections 3 and 4, appendices A and B.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn

from manifoldnet.geometry import Retraction, Sphere
from manifoldnet.nn.normalize import normalize, rescale

__all__ = ["Simplex", "SimplexClassifier", "SimplexLoss", "simplex_targets"]

Simplex = Literal["regular", "standard"]
"""Targets: the vertices of a simplex with mean 0, or standard basis vectors."""


def simplex_targets(
    num_classes: int,
    embedding_dim: int | None = None,
    simplex: Simplex = "regular",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Targets t_1 … t_k as rows: ``(num_classes, embedding_dim)``, each of norm 1.

    Args:
        num_classes: k, two or more.
        embedding_dim: m; by default k.
        simplex: ``"regular"`` (m ≥ k − 1) or ``"standard"`` (m ≥ k).
        dtype: floating type of the result; torch's default if None.
        device: device of the result.

    Raises:
        ValueError: if there are fewer than two classes, or they do not fit into m dimensions.
    """
    m = num_classes if embedding_dim is None else embedding_dim
    _check_simplex(num_classes, m, simplex)
    k = num_classes
    targets = torch.eye(k, m, dtype=torch.float64)
    if simplex == "regular" and m >= k:
        targets[:, :k] -= 1 / k
        targets *= (k / (k - 1)) ** 0.5
    elif simplex == "regular":
        targets = _minimal_simplex(k)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return targets.to(dtype=dtype, device=device)


def _check_simplex(num_classes: int, embedding_dim: int, simplex: str) -> None:
    """Raise the ValueError of `simplex_targets`."""
    for name, value in (("num_classes", num_classes), ("embedding_dim", embedding_dim)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, not {value!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}: a simplex of targets needs at least two")
    if simplex not in ("regular", "standard"):
        raise ValueError(f'simplex must be "regular" or "standard", not {simplex!r}')
    least = num_classes - (simplex == "regular")
    if embedding_dim < least:
        raise ValueError(
            f"embedding_dim is {embedding_dim}, too few for the {simplex} simplex of {num_classes} "
            f"classes: it needs {least} or more"
        )


def _minimal_simplex(k: int) -> Tensor:
    """Regular simplex in k − 1 dimensions.

    Coordinate i is positive for vertex i, zero for earlier vertices, and equal for all later ones,
    so that it sums to 0.
    """
    targets = torch.zeros(k, k - 1, dtype=torch.float64)
    for i in range(k - 1):
        later = k - 1 - i  # vertices after the i-th
        height = (k / (k - 1) * later / (later + 1)) ** 0.5
        targets[i, i] = height
        targets[i + 1 :, i] = -height / later
    return targets


@final
class SimplexClassifier(nn.Module):
    """Classifier from features ``(…, in_features)`` to cosines ``(…, num_classes)`` in [−1, 1].

    It replaces a model's last linear layer, and `SimplexLoss` the cross-entropy:

        model.fc = SimplexClassifier(model.fc.in_features, 10)
        loss_fn = SimplexLoss()

    Its weight is declared on the sphere ‖A‖_F = √m. `RiemannianSGD` without momentum is the paper's
    update, a Euclidean step followed by normalization: the gradient of the loss is tangent to the
    sphere. Torch's optimizers leave the sphere, and the effect of a step decreases with ‖A‖.

    Args:
        in_features: n, the length of x.
        num_classes: k.
        embedding_dim: m, the dimension of z, two or more; by default k. The paper takes more, for
            "extra space to help facilitate learning". (In one dimension z is ±1, and the gradient
            is zero.)
        simplex: ``"regular"`` or ``"standard"`` targets, as in `simplex_targets`.
        retraction: retraction of the sphere: ``"projective"`` (the paper's) or ``"geodesic"``.
        generator: source of the Gaussian initial weight; torch's global one by default.
        dtype: type of the weight; torch's default if None.
        device: device of the weight.

    Attributes:
        weight: A, ``(embedding_dim, in_features)``, a `ManifoldParameter`.

    Raises:
        ValueError: if the targets do not fit into the embedding (`simplex_targets`), the embedding
            has one dimension, or a size is not positive.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        embedding_dim: int | None = None,
        simplex: Simplex = "regular",
        *,
        retraction: Retraction | str = "projective",
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        m = num_classes if embedding_dim is None else embedding_dim
        _check_simplex(num_classes, m, simplex)
        if m == 1:
            raise ValueError(
                "embedding_dim is 1, where a direction is 1 or -1 and the gradient of the loss is "
                "0: nothing would be learned; give 2 or more"
            )
        if isinstance(in_features, bool) or not isinstance(in_features, int) or in_features < 1:
            raise ValueError(f"in_features must be a positive whole number, not {in_features!r}")
        self.in_features = in_features
        self.num_classes = num_classes
        self.embedding_dim = m
        self.simplex = simplex
        sphere = Sphere(m**0.5, retraction=retraction)
        start = torch.empty(m, in_features, dtype=dtype, device=device).normal_(generator=generator)
        from manifoldnet.manifold_parameter import ManifoldParameter  # loads geoopt

        self.weight = ManifoldParameter(sphere.projx(start), sphere)
        self._checked = False

    @property
    def targets(self) -> Tensor:
        """Targets, ``(num_classes, embedding_dim)``, in the type of the weight."""
        size = self.num_classes, self.embedding_dim, self.simplex
        return simplex_targets(*size, dtype=self.weight.dtype, device=self.weight.device)

    def embed(self, features: Tensor) -> Tensor:
        """z = Ax/‖Ax‖, ``(…, embedding_dim)``: of norm 1, or 0 where the features are all zero.

        Raises:
            ValueError: if the features have another length; in the first call, if they are not
                finite. In later calls these give NaN.
        """
        if features.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"features have shape {tuple(features.shape)}; the last dimension must be "
                f"in_features = {self.in_features}"
            )
        # In this order, so that compiled code does not depend on `_checked`.
        if not torch.compiler.is_compiling() and not self._checked:
            _check_finite(features)
            self._checked = True
        return normalize(nn.functional.linear(rescale(features), self.weight))

    def forward(self, features: Tensor) -> Tensor:
        """Cosines z·t_1 … z·t_k; the largest is that of the nearest target.

        They are float32 for half-precision features, and under autocast: the loss is a difference
        of numbers near 1.
        """
        return self.cosines(self.embed(features))

    def cosines(self, z: Tensor) -> Tensor:
        """Cosines of embedded features, as returned by `embed`."""
        k = self.num_classes
        if self.embedding_dim < k:
            return (z.unsqueeze(-2) * self.targets).sum(-1)
        z = z[..., :k]
        if self.simplex == "standard":
            return z
        centred: Tensor = (z - z.mean(-1, keepdim=True)) * (k / (k - 1)) ** 0.5
        return centred

    def extra_repr(self) -> str:
        """Arguments of the constructor, for `repr`."""
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, "
            f"embedding_dim={self.embedding_dim}, simplex={self.simplex!r}"
        )


@final
class SimplexLoss(nn.Module):
    """Squared distance ‖z − t_j‖² = 2 − 2 z·t_j ∈ [0, 4] to the target of class j, from cosines.

    Unlike the cross-entropy, the loss of an outlier or a wrong label is at most 4, and its gradient
    is bounded: ‖∂c/∂x‖ ≤ 2‖A‖/‖Ax‖ (half of the bound (6) of the paper).

    Args:
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, over samples.

    Raises:
        ValueError: for another reduction.
    """

    def __init__(self, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'reduction must be "mean", "sum" or "none", not {reduction!r}')
        self.reduction = reduction

    def forward(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """Loss of labelled samples.

        Args:
            cosines: output of a `SimplexClassifier`, ``(…, num_classes)``.
            labels: classes, int64, ``(…)``.

        Raises:
            ValueError: if the shapes do not fit, or labels are not int64.
            ValueError: on a CPU, for a label outside 0 … num_classes − 1, or scores that are no
                cosines. On other devices these checks would wait for the device and are left out.
        """
        if labels.shape != cosines.shape[:-1] or labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be int64 of shape {tuple(cosines.shape[:-1])}, one for each sample, "
                f"not {labels.dtype} of shape {tuple(labels.shape)}"
            )
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            _check_labels(cosines, labels)
        right = cosines.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        # Rounding may put a cosine slightly outside [−1, 1], where the gradient is 0 anyway.
        loss = (2 - 2 * right).clamp(0, 4)
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()

    def extra_repr(self) -> str:
        """Arguments of the constructor, for `repr`."""
        return f"reduction={self.reduction!r}"


def _check_finite(features: Tensor) -> None:
    bad = ~features.detach().isfinite()
    if _is_true(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{int(bad.sum())} of {bad.numel()} features are not finite, the first at {where}: "
            f"{float(features[where])}; look at the layers before, or at the data"
        )


def _check_labels(cosines: Tensor, labels: Tensor) -> None:
    outside = (labels < 0) | (labels >= cosines.shape[-1])
    if _is_true(outside.any()):
        where = tuple(outside.nonzero()[0].tolist())
        raise ValueError(
            f"the label at {where} is {int(labels[where])}; classes are 0 … {cosines.shape[-1] - 1}"
        )
    largest = cosines.detach().abs()
    if _is_true((largest > 1.01).any()):
        raise ValueError(
            f"the scores reach {float(largest.max()):.3g}, so they are no cosines: give what a "
            "SimplexClassifier gives, without another layer in between"
        )


def _is_true(condition: Tensor) -> bool:
    """Value of a condition; False for tensors without values (meta, fake, under vmap)."""
    try:
        return bool(condition)
    except RuntimeError:
        return False
