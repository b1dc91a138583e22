"""The scale-invariant classification stage: a direction is compared with the targets.

    y = A x        z = y/‖y‖        c = ‖z − t_j‖² = 2 − 2 z·t_j ∈ [0, 4]

The class is that of the nearest target, the largest of the cosines z·t_1 … z·t_k, which is what the
stage gives. Multiplying x, or A, by α > 0 changes nothing ("any nonzero number" in the paper: α < 0
turns z around and changes the class). So A has a length that means nothing; it is kept on the
sphere ‖A‖_F = √m, and a learning rate is what it says: the step over the length.

Neither huge nor tiny features overflow or vanish (`manifoldnet.nn.direction`). Features that are
all zero have no direction: z = 0 for them, all cosines are 0, their loss is 2 and their gradient 0.

Source: [tygert2015scale], Sections 3 and 4, appendices A and B.
"""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor, nn

from manifoldnet.geometry import Retraction, Sphere
from manifoldnet.nn.direction import direction, evened
from manifoldnet.nn.simplex import Simplex, check_simplex, simplex_targets

__all__ = ["SimplexClassifier", "SimplexLoss"]


@final
class SimplexClassifier(nn.Module):
    """The stage: features ``(…, in_features)`` to cosines ``(…, num_classes)`` in [−1, 1].

    It takes the place of a model's last linear layer, with `SimplexLoss` in place of the
    cross-entropy:

        model.fc = SimplexClassifier(model.fc.in_features, 10)
        loss_fn = SimplexLoss()

    Its weight is declared on the sphere ‖A‖_F = √m. `RiemannianSGD` without momentum is then the
    paper's own update, a Euclidean step and a rescaling: the gradient of the loss has no radial
    part, so nothing is projected away. Torch's own optimizers train it too, but leave the sphere:
    the longer A gets, the less a step turns it.

    Args:
        in_features: n, the length of x.
        num_classes: k.
        embedding_dim: m, the dimension of z; by default k. The paper takes more, for "extra space
            to help facilitate learning". Two or more: in one dimension z is ±1, which no small
            step changes.
        simplex: ``"regular"`` or ``"standard"`` targets, as in `simplex_targets`.
        retraction: of the sphere: ``"projective"`` (the paper's) or ``"geodesic"``.
        generator: where the Gaussian start is drawn from; torch's global one by default.
        dtype: of the weight; torch's default if None.
        device: of the weight.

    Attributes:
        weight: A, ``(embedding_dim, in_features)``, a `ManifoldParameter`.

    Raises:
        ValueError: if the targets do not fit into the embedding (`simplex_targets`), it has one
            dimension only, or a size is not positive.
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
        check_simplex(num_classes, m, simplex)
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
        """The vertices, ``(num_classes, embedding_dim)``, of the weight's type."""
        size = self.num_classes, self.embedding_dim, self.simplex
        return simplex_targets(*size, dtype=self.weight.dtype, device=self.weight.device)

    def embed(self, features: Tensor) -> Tensor:
        """z = Ax/‖Ax‖, ``(…, embedding_dim)``: of norm 1, or 0 where the features are all zero.

        Raises:
            ValueError: if the features have another length; or, in the first call, for features
                that are not finite. Later ones give NaN.
        """
        if features.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"features have shape {tuple(features.shape)}; the last dimension must be "
                f"in_features = {self.in_features}"
            )
        # In this order, so that compiled code does not depend on whether the check has been made.
        if not torch.compiler.is_compiling() and not self._checked:
            _check_finite(features)
            self._checked = True
        return direction(nn.functional.linear(evened(features), self.weight))

    def forward(self, features: Tensor) -> Tensor:
        """The cosines z·t_1 … z·t_k; the largest is that of the nearest target.

        In float32 for half-precision features, under autocast too: the loss is a difference of
        numbers near 1.
        """
        return self.cosines(self.embed(features))

    def cosines(self, z: Tensor) -> Tensor:
        """What `forward` gives, of what `embed` gives."""
        k = self.num_classes
        if self.embedding_dim < k:
            return (z.unsqueeze(-2) * self.targets).sum(-1)
        z = z[..., :k]
        if self.simplex == "standard":
            return z
        centred: Tensor = (z - z.mean(-1, keepdim=True)) * (k / (k - 1)) ** 0.5
        return centred

    def extra_repr(self) -> str:
        """What the constructor was given."""
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, "
            f"embedding_dim={self.embedding_dim}, simplex={self.simplex!r}"
        )


@final
class SimplexLoss(nn.Module):
    """c = ‖z − t_j‖² for the target of the right class j, from cosines: 2 − 2 z·t_j, in [0, 4].

    Bounded, unlike the cross-entropy: an outlier or a wrong label costs at most 4, and its gradient
    is bounded, ‖∂c/∂x‖ ≤ 2‖A‖/‖Ax‖ (half of what the paper's (6) grants).

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
        """The loss.

        Args:
            cosines: of a `SimplexClassifier`, ``(…, num_classes)``.
            labels: the right classes, int64, ``(…)``.

        Raises:
            ValueError: if the shapes do not fit, or labels are no whole numbers.
            ValueError: on a processor, for a label outside 0 … num_classes − 1, or scores that are
                no cosines; elsewhere, where looking would wait for the device, labels are torch's.
        """
        if labels.shape != cosines.shape[:-1] or labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be int64 of shape {tuple(cosines.shape[:-1])}, one for each sample, "
                f"not {labels.dtype} of shape {tuple(labels.shape)}"
            )
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            _check_labels(cosines, labels)
        right = cosines.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        # Rounding may put a cosine a little outside [−1, 1]; there the gradient is 0 anyway.
        loss = (2 - 2 * right).clamp(0, 4)
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()

    def extra_repr(self) -> str:
        """What the constructor was given."""
        return f"reduction={self.reduction!r}"


def _check_finite(features: Tensor) -> None:
    odd = ~features.detach().isfinite()
    if _known(odd.any()):
        where = tuple(odd.nonzero()[0].tolist())
        raise ValueError(
            f"{int(odd.sum())} of {odd.numel()} features are not finite, the first at {where}: "
            f"{float(features[where])}; look at the layers before, or at the data"
        )


def _check_labels(cosines: Tensor, labels: Tensor) -> None:
    outside = (labels < 0) | (labels >= cosines.shape[-1])
    if _known(outside.any()):
        where = tuple(outside.nonzero()[0].tolist())
        raise ValueError(
            f"the label at {where} is {int(labels[where])}; classes are 0 … {cosines.shape[-1] - 1}"
        )
    largest = cosines.detach().abs()
    if _known((largest > 1.01).any()):
        raise ValueError(
            f"the scores reach {float(largest.max()):.3g}, so they are no cosines: give what a "
            "SimplexClassifier gives, without another layer in between"
        )


def _known(condition: Tensor) -> bool:
    """Whether it holds; False for tensors without numbers (meta, fake, under vmap)."""
    try:
        return bool(condition)
    except RuntimeError:
        return False
