"""Complex convolution, modulus and average: the networks of the scale-invariant paper.

    stage       u = W * x (complex W, real x; no padding)     v = |u|     means of 2×2 patches of v

    features    image − its mean -> stage -> … -> stage -> flatten ┐
                image -> standard deviation of its pixels ─────────┴─> features

A complex convolution of a real image is a real convolution with twice the output channels: real
parts first, then imaginary parts. Without biases, stage(αx) = α stage(x) and features(αx) =
α features(x) for α ≥ 0, and features do not change with the mean of the image. A scale-invariant
classifier of features is therefore invariant under changes of contrast and brightness.

|a + bi| = √(a² + b²) has no gradient at 0; it is taken as 0 there.

Source: [tygert2015scale], Section 5 and Tables 1-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd import Function

from manifoldnet.nn.normalize import power_of_two_scale

__all__ = ["ComplexModulusStage", "ModulusFeatures", "averaged_modulus"]


@final
class ComplexModulusStage(nn.Module):
    """Images ``(batch, in_channels, h, w)`` to ``(batch, out_channels, (h−q+1)/2, (w−q+1)/2)``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: q, the side of the square kernels.
        generator: source of the Gaussian initial weight; torch's global one by default. The
            variance 1/(in_channels q²) preserves the size of the pixels.
        dtype: type of the weight; torch's default if None.
        device: device of the weight.

    Attributes:
        weight: ``(2 out_channels, in_channels, q, q)``: real parts, then imaginary ones.

    Raises:
        ValueError: for sizes that are not positive.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": kernel_size,
        }
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a positive whole number, not {size!r}")
        self.in_channels, self.out_channels, self.kernel_size = (
            in_channels,
            out_channels,
            kernel_size,
        )
        shape = (2 * out_channels, in_channels, kernel_size, kernel_size)
        weight = torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)
        self.weight = nn.Parameter(weight.div_((in_channels * kernel_size**2) ** 0.5))

    def forward(self, images: Tensor) -> Tensor:
        """Averaged moduli.

        Raises:
            ValueError: if the images have other channels, or a size that 2×2 patches do not tile
                after the convolution.
        """
        if images.ndim != 4:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; it must be (batch, channels, height, "
                "width): give a single one a batch of its own with images[None]"
            )
        self.output_size(tuple(images.shape[1:]))
        return averaged_modulus(nn.functional.conv2d(images, self.weight))

    def output_size(self, size: tuple[int, ...]) -> tuple[int, int, int]:
        """Channels, height and width of the output, given those of the input.

        Raises:
            ValueError: as `forward`.
        """
        q = self.kernel_size
        if len(size) != 3 or size[0] != self.in_channels:
            raise ValueError(
                f"images are {_by(size)}; this stage takes {self.in_channels} channels, as "
                "(batch, channels, height, width)"
            )
        for name, length in zip(("height", "width"), size[1:], strict=True):
            left = length - q + 1
            if left < 2 or left % 2:
                raise ValueError(
                    f"images of {_by(size)} have {name} {length}, of which a {q}x{q} kernel leaves "
                    f"{max(left, 0)}; 2x2 averages need an even number, 2 or more: pad or crop them"
                )
        return self.out_channels, (size[1] - q + 1) // 2, (size[2] - q + 1) // 2

    def extra_repr(self) -> str:
        """Arguments of the constructor, for `repr`."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"


@final
class ModulusFeatures(nn.Module):
    """Images ``(batch, channels, height, width)`` to features ``(batch, out_features)``.

    Args:
        image: channels, height and width of an image.
        widths: output channels of each stage.
        kernels: kernel size of each stage.
        generator: source of the initial weights; torch's global one by default.
        dtype: type of the weights; torch's default if None.
        device: device of the weights.

    Attributes:
        image: channels, height and width of an image.
        stages: sequence of `ComplexModulusStage`.
        out_features: number of features: all pixels of the last stage, and one more.

    Raises:
        ValueError: if there are no stages, or a stage does not accept its input size.
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
        """Features of images.

        Raises:
            ValueError: if the images have another size.
        """
        if tuple(images.shape[1:]) != self.image:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; they must be (batch, "
                f"{', '.join(map(str, self.image))}), for which this was made"
            )
        pixels = images.flatten(1)
        pixels = pixels - pixels.mean(1, keepdim=True)
        scale = power_of_two_scale(pixels)  # so that no square overflows or vanishes
        norm = (pixels * scale).norm(dim=1, keepdim=True) / scale
        features = self.stages(pixels.view_as(images)).flatten(1)
        return torch.cat([features, norm / pixels.shape[1] ** 0.5], 1)


def averaged_modulus(u: Tensor) -> Tensor:
    """Means over 2×2 patches of √(a² + b²), with channels a (first half) and b (second half).

    The modulus neither overflows nor underflows unless it is outside of the type's range; its
    gradient is 0 where it is 0. The backward pass is written by hand, as plain autograd would take
    most of the time of a small network.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the operations
        a, b = u.chunk(2, dim=1)
        return nn.functional.avg_pool2d(_modulus(u) * (a.ne(0) | b.ne(0)), 2)
    # torch does not type `Function.apply`.
    result: Tensor = _AveragedModulus.apply(u)[0]  # type: ignore[no-untyped-call]
    return result


class _AveragedModulus(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor) -> tuple[Tensor, Tensor]:
        r = torch.hypot(*u.chunk(2, dim=1))
        top, bottom = r[..., ::2, :], r[..., 1::2, :]
        mean = top[..., ::2] + top[..., 1::2]
        mean += bottom[..., ::2]
        mean += bottom[..., 1::2]
        # Where r is 0, so are a and b; divided by a tiny number they stay 0.
        return mean.mul_(0.25), r.clamp_min_(torch.finfo(r.dtype).tiny)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        u, r = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative, r must be differentiable
            r = _modulus(u)
        each = nn.functional.interpolate(gradient * 0.25, scale_factor=2, mode="nearest")
        unit = u.unflatten(1, (2, -1)) / r.unsqueeze(1)
        try:
            return unit.mul_(each.unsqueeze(1)).flatten(1, 2)
        except RuntimeError:  # under vmap, several gradients share this one unit
            return (unit * each.unsqueeze(1)).reshape(u.shape)


def _modulus(u: Tensor) -> Tensor:
    """√(a² + b²), or 1 where that is 0."""
    a, b = u.chunk(2, dim=1)
    return torch.hypot(torch.where(a.ne(0) | b.ne(0), a, 1.0), b)


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
