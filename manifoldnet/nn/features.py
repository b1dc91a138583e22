"""Features of an image from complex moduli: the networks of the scale-invariant paper.

    image − its mean -> stage -> … -> stage -> flatten ┐
    image -> standard deviation of its pixels ─────────┴─> features

Every part is homogeneous, so features(αx) = α features(x) for α ≥ 0: a scale-invariant stage after
them does not see the contrast of a picture, nor, by the subtraction, its brightness.

Source: [tygert2015scale], Section 5 and Tables 1-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from manifoldnet.nn.direction import evening
from manifoldnet.nn.modulus import ComplexModulusStage

__all__ = ["ModulusFeatures"]


@final
class ModulusFeatures(nn.Module):
    """Images ``(batch, channels, height, width)`` to features ``(batch, out_features)``.

    Args:
        image: channels, height and width of an image.
        widths: output images of each stage.
        kernels: size of the kernels of each stage.
        generator: where the start is drawn from; torch's global one by default.
        dtype: of the weights; torch's default if None.
        device: of the weights.

    Attributes:
        image: as given.
        stages: the `ComplexModulusStage` after each other.
        out_features: how many features come out: all pixels of the last stage, and one more.

    Raises:
        ValueError: if there are no stages, or images of that size do not fit through them.
    """

    def __init__(
        self,
        image: Sequence[int],
        widths: Sequence[int],
        kernels: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if len(widths) == 0 or len(widths) != len(kernels):
            raise ValueError(
                f"widths {tuple(widths)} and kernels {tuple(kernels)}: give one of each for every "
                "stage, one stage or more"
            )
        self.stages = nn.Sequential()
        self.image = size = tuple(image)
        for number, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
            stage = ComplexModulusStage(
                size[0], width, kernel, generator=generator, dtype=dtype, device=device
            )
            try:
                size = stage.output_size(size)
            except ValueError as error:
                raise ValueError(f"stage {number + 1} of {len(widths)}: {error}") from error
            self.stages.append(stage)
        self.out_features = size[0] * size[1] * size[2] + 1

    def forward(self, images: Tensor) -> Tensor:
        """The features.

        Raises:
            ValueError: if the images are of another size.
        """
        if tuple(images.shape[1:]) != self.image:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; they must be (batch, "
                f"{', '.join(map(str, self.image))}), for which this was made"
            )
        pixels = images.flatten(1)
        pixels = pixels - pixels.mean(1, keepdim=True)
        factor = evening(pixels)  # so that no square overflows or vanishes
        norm = (pixels * factor).norm(dim=1, keepdim=True) / factor
        features = self.stages(pixels.view_as(images)).flatten(1)
        return torch.cat([features, norm / pixels.shape[1] ** 0.5], 1)
