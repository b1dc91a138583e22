"""Complex stage and features: formula, homogeneity, gradient at 0."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from manifoldnet.nn import ComplexModulusStage, ModulusFeatures
from manifoldnet.nn.complex_modulus import averaged_modulus

seeds = st.integers(0, 2**32 - 1)


@st.composite
def stages(draw):
    source = torch.Generator().manual_seed(draw(seeds))
    channels, out, q = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    stage = ComplexModulusStage(channels, out, q, generator=source, dtype=torch.float64)
    height, width = (2 * draw(st.integers(1, 4)) + q - 1 for _ in range(2))
    shape = (draw(st.integers(1, 3)), channels, height, width)
    return stage, torch.randn(shape, generator=source, dtype=torch.float64)


@given(stages())
def test_formula_of_the_stage(case):
    stage, images = case
    real, imaginary = stage.weight.detach().chunk(2)
    complex_kernel = torch.complex(real, imaginary)
    moduli = nn.functional.conv2d(images.to(torch.complex128), complex_kernel).abs()
    batch, out, height, width = moduli.shape
    patches = moduli.reshape(batch, out, height // 2, 2, width // 2, 2).mean((3, 5))
    result = stage(images)
    assert torch.allclose(result, patches, atol=1e-13)
    assert stage.output_size(images.shape[1:]) == result.shape[1:]


@given(stages(), st.floats(-200, 200))
def test_stage_is_homogeneous(case, exponent):
    stage, images = case
    factor = 2.0 ** round(exponent)
    assert torch.equal(stage(images * factor), stage(images) * factor)  # powers of two: exactly
    scale = 10.0 ** (exponent / 10)
    assert torch.allclose(stage(images * scale), stage(images) * scale, rtol=1e-12, atol=0)
    assert torch.equal(stage(-images), stage(images))


@given(stages())
def test_gradient_of_the_stage(case):
    stage, images = case
    assert torch.autograd.gradcheck(stage, images.requires_grad_())


def test_gradient_of_a_zero_modulus():
    u = torch.zeros(1, 4, 2, 2, requires_grad=True)
    averaged_modulus(u).sum().backward()
    assert u.grad.eq(0).all()
    stage = ComplexModulusStage(1, 2, 3)
    images = torch.zeros(2, 1, 6, 6, requires_grad=True)  # a black picture
    stage(images).sum().backward()
    assert images.grad.eq(0).all()
    assert stage.weight.grad.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", ["huge", "tiny"])
def test_huge_and_tiny_moduli(dtype, size):
    unit = {"huge": torch.finfo(dtype).max / 8, "tiny": torch.finfo(dtype).tiny}[size]
    pixel = (torch.tensor([3.0, 4.0], dtype=dtype) * unit).reshape(1, 2, 1, 1)
    u = torch.zeros(1, 2, 2, 2, dtype=dtype)
    u[..., 1:, :1] = pixel
    mean = averaged_modulus(u.requires_grad_())
    assert mean.item() == pytest.approx(1.25 * float(unit), rel=1e-2)
    mean.sum().backward()
    expected = torch.tensor([0.15, 0.2]).double()
    assert torch.allclose(u.grad[0, :, 1, 0].double(), expected, atol=3e-3)
    assert u.grad.count_nonzero() == 2


def test_a_black_patch_has_no_gradient_when_denormals_are_flushed():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormal numbers")
    try:
        u = torch.zeros(1, 4, 4, 4, requires_grad=True)
        averaged_modulus(u).sum().backward()
    finally:
        torch.set_flush_denormal(False)
    assert u.grad.eq(0).all()


def test_second_derivatives():
    u = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    u[0, :, 0, 0] = 0
    u.requires_grad_()
    away = u.detach().clone()
    away[0, :, 0, 0] = 1.0
    assert torch.autograd.gradgradcheck(averaged_modulus, (away.requires_grad_(),))
    (once,) = torch.autograd.grad(averaged_modulus(u).sum(), u, create_graph=True)
    once.square().sum().backward()
    assert u.grad.isfinite().all()
    assert u.grad.abs().max() < 1e-12  # the length of the gradient of |a + bi| is 1 everywhere


def test_initial_weight():
    one, other = (
        ComplexModulusStage(8, 64, 3, generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(one.weight, other.weight)
    images = torch.randn(4, 8, 16, 16)
    assert one(images).mean().item() == pytest.approx(math.sqrt(math.pi / 2), rel=0.1)


def test_compilation_and_torch_func():
    stage = ComplexModulusStage(1, 2, 3).double()
    images = torch.randn(3, 1, 6, 6).double()
    compiled = torch.compile(stage, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(images), stage(images))
    jacobian = torch.autograd.functional.jacobian
    for result in (jacobian(stage, images, vectorize=True), torch.func.jacrev(stage)(images)):
        assert torch.equal(result, jacobian(stage, images))
    black = torch.zeros_like(images).requires_grad_()
    assert compiled(black).eq(0).all()
    compiled(black).sum().backward()
    assert black.grad.eq(0).all()
    each = torch.func.vmap(torch.func.grad(lambda x: stage(x[None]).sum()))(images)
    images.requires_grad_()
    stage(images).sum().backward()
    assert torch.allclose(each, images.grad)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((3, 8, 8), "1 channels"),
        ((1, 7, 8), "height 7, of which a 3x3 kernel leaves 5; 2x2 averages need an even"),
        ((1, 8, 9), "width 9"),
        ((1, 8, 2), "width 2"),
    ],
)
def test_invalid_image_sizes(size, message):
    stage = ComplexModulusStage(1, 2, 3)
    with pytest.raises(ValueError, match="batch, channels"):
        stage(torch.zeros(*size))
    with pytest.raises(ValueError, match=message):
        stage(torch.zeros(2, *size))
    with pytest.raises(ValueError, match=message):
        stage.output_size(size)


@pytest.mark.parametrize("sizes", [(0, 2, 3), (1, -1, 3), (1, 2, 0), (1, 2.0, 3), (True, 2, 3)])
def test_invalid_sizes(sizes):
    with pytest.raises(ValueError, match="positive whole number"):
        ComplexModulusStage(*sizes)


# The features


@st.composite
def pictures(draw):
    source = torch.Generator().manual_seed(draw(seeds))
    channels = draw(st.sampled_from([1, 3]))
    features = ModulusFeatures((channels, 16, 16), (4, 6), (3, 2), generator=source).double()
    images = torch.rand(draw(st.integers(1, 3)), channels, 16, 16, generator=source).double()
    return features, images


@given(pictures(), st.integers(-100, 100))
def test_features_are_homogeneous_and_invariant_under_brightness(case, exponent):
    features, images = case
    result = features(images)
    assert result.shape == (len(images), features.out_features)
    assert torch.equal(features(images * 2.0**exponent), result * 2.0**exponent)
    assert torch.allclose(features(images * 0.3), result * 0.3, rtol=1e-12, atol=0)
    assert torch.allclose(features(images + 0.7), result, atol=1e-12)


@pytest.mark.parametrize("exponent", [-100, -60, 60, 100])
def test_features_are_homogeneous_in_single_precision_too(exponent):
    source = torch.Generator().manual_seed(0)
    features = ModulusFeatures((1, 16, 16), (4, 6), (3, 2), generator=source)
    images = torch.rand(3, 1, 16, 16, generator=source)
    factor = torch.tensor(2.0).pow(exponent)
    assert torch.equal(features(images * factor), features(images) * factor)


def test_the_last_feature_is_the_standard_deviation_of_the_pixels():
    images = torch.rand(3, 3, 16, 16)
    result = ModulusFeatures((3, 16, 16), (4, 6), (3, 2))(images)
    assert torch.allclose(result[:, -1], images.flatten(1).std(1, correction=0))


def test_constant_images():
    features = ModulusFeatures((1, 16, 16), (4, 6), (3, 2))
    images = torch.full((2, 1, 16, 16), 0.5, requires_grad=True)
    result = features(images)
    assert result.eq(0).all()
    result.sum().backward()
    assert images.grad.isfinite().all()
    assert all(parameter.grad.eq(0).all() for parameter in features.parameters())


def test_invalid_features():
    with pytest.raises(ValueError, match="stage 2 of 2: .*height 6"):
        ModulusFeatures((1, 14, 14), (4, 6), (3, 2))
    with pytest.raises(ValueError, match="every stage"):
        ModulusFeatures((1, 16, 16), (4, 6), (3,))
    with pytest.raises(ValueError, match="one stage or more"):
        ModulusFeatures((1, 16, 16), (), ())
    features = ModulusFeatures((1, 16, 16), (4, 6), (3, 2))
    for shape in ((2, 3, 16, 16), (2, 1, 20, 20), (1, 16, 16)):
        with pytest.raises(ValueError, match="batch, 1, 16, 16"):
            features(torch.zeros(shape))
