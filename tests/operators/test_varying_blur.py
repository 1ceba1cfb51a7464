"""Spatially varying blur: against a pixel-by-pixel sum, against `Blur`, tiles, compression, refusals."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from invsolve.operators import Blur, SpatiallyVaryingBlur, gaussian_kernel
from invsolve.operators.borders import Boundary

SHAPE = (2, 7, 6)


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiles():
    return random(2, 3, 4, 3, seed=5)


@pytest.mark.parametrize("boundary", get_args(Boundary))
@pytest.mark.parametrize("size", [(3, 4), (2, 5), (7, 6)])
def test_sum_of_blurs(boundary, size, relative):
    kernels, weights, x = random(3, *size), random(3, *SHAPE[1:], seed=1) - 0.5, random(2, *SHAPE, seed=2)
    operator = SpatiallyVaryingBlur(kernels, weights, SHAPE, boundary, dtype=torch.float64)
    parts = [Blur(h, SHAPE, boundary, dtype=torch.float64)(w * x) for h, w in zip(kernels, weights, strict=True)]
    assert operator.out_shape == parts[0].shape[1:]
    assert relative(operator(x), sum(parts)) < 1e-13


def test_each_pixel_spreads_as_its_own_kernel(relative):
    operator = SpatiallyVaryingBlur.from_tiles(tiles(), (1, 9, 8), "zero", dtype=torch.float64)
    for row, column in ((0, 0), (4, 3), (6, 7)):
        x = torch.zeros(1, 1, 9, 8, dtype=torch.float64)
        x[..., row, column] = 1
        want = F.pad(torch.zeros(9, 8, dtype=torch.float64), (3, 3, 3, 3))
        want[row + 1 : row + 5, column + 2 : column + 5] = operator.kernel_at(row, column)  # centre (2, 1) of 4 x 3
        assert relative(operator(x)[:, 0], want[None, 3:-3, 3:-3]) < 1e-13


def test_equal_tiles_are_one_blur(relative):
    kernel, x = random(3, 4), random(2, *SHAPE, seed=2)
    same = SpatiallyVaryingBlur.from_tiles(kernel.expand(3, 2, 3, 4), SHAPE, dtype=torch.float64)
    assert relative(same(x), Blur(kernel, SHAPE, "reflect", dtype=torch.float64)(x)) < 1e-13


def test_tiles_are_met_at_their_centres_and_mixed_between():
    kernels = tiles()
    operator = SpatiallyVaryingBlur.from_tiles(kernels, (1, 10, 15), dtype=torch.float64)  # centres 2, 7 and 2, 7, 12
    assert torch.allclose(operator.kernel_at(2, 7), kernels[0, 1])
    assert torch.allclose(operator.kernel_at(7, 12), kernels[1, 2])
    assert torch.allclose(operator.kernel_at(0, 0), kernels[0, 0])
    assert torch.allclose(operator.kernel_at(9, 14), kernels[1, 2])
    share = 0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * 2 / 5, dtype=torch.float64))  # 2 of 5 pixels further
    assert torch.allclose(operator.kernel_at(4, 2), share * kernels[0, 0] + (1 - share) * kernels[1, 0])
    assert torch.allclose(operator.weights.sum(0), torch.ones(10, 15, dtype=torch.float64))


def test_compression(relative):
    kernels, x = tiles(), random(2, 1, 9, 8, seed=3)
    full = SpatiallyVaryingBlur.from_tiles(kernels, (1, 9, 8), dtype=torch.float64)(x)
    errors = []
    for rank in range(1, 7):
        operator = SpatiallyVaryingBlur.from_tiles(kernels, (1, 9, 8), rank=rank, dtype=torch.float64)
        assert operator.kernels.shape == (rank, 4, 3)
        errors.append(relative(operator(x), full))
    assert errors[-1] < 1e-13
    assert errors[0] > errors[2] > errors[4] > 1e-4
    # Kernels that are mixtures of two are exact at rank 2.
    mixed = random(2, 3, 2, seed=8) @ random(2, 12, seed=9)
    shape = (2, 3, 4, 3)
    exact = SpatiallyVaryingBlur.from_tiles(mixed.reshape(shape), (1, 9, 8), dtype=torch.float64)(x)
    two = SpatiallyVaryingBlur.from_tiles(mixed.reshape(shape), (1, 9, 8), rank=2, dtype=torch.float64)(x)
    assert relative(two, exact) < 1e-13


def test_eigen_kernels_of_a_focus_field():
    """Gaussians of slowly growing width need few eigen-kernels."""
    field = torch.stack([gaussian_kernel(1 + 0.1 * i, 13) for i in range(16)]).reshape(4, 4, 13, 13)
    x = random(1, 1, 32, 40).float()
    full = SpatiallyVaryingBlur.from_tiles(field, (1, 32, 40))(x)
    few = SpatiallyVaryingBlur.from_tiles(field, (1, 32, 40), rank=4)(x)
    assert float((few - full).norm() / full.norm()) < 2e-3


def test_solve_recovers_the_image(relative):
    operator = SpatiallyVaryingBlur.from_tiles(tiles(), (2, 9, 8), dtype=torch.float64)
    x = random(2, 2, 9, 8)
    assert relative(operator.solve(operator.normal(x) + 0.01 * x, 0.01), x) < 1e-8


def test_refusals():
    kernels, weights = random(3, 3, 3), random(3, *SHAPE[1:])
    with pytest.raises(ValueError, match=r"weight maps have shape \(2, 7, 6\); 3 kernels on images .* need \(3, 7, 6"):
        SpatiallyVaryingBlur(kernels, weights[:2], SHAPE)
    with pytest.raises(ValueError, match=r"expected \(K, kh, kw\)"):
        SpatiallyVaryingBlur(kernels[0], weights, SHAPE)
    with pytest.raises(ValueError, match="weight maps hold NaN"):
        SpatiallyVaryingBlur(kernels, weights / 0, SHAPE)
    with pytest.raises(ValueError, match="27 NaN or Inf"):
        SpatiallyVaryingBlur(kernels / 0, weights, SHAPE)
    with pytest.raises(ValueError, match="unknown boundary 'mirror'"):
        SpatiallyVaryingBlur(kernels, weights, SHAPE, "mirror")
    with pytest.raises(ValueError, match="9 x 3, larger than the image of 7 x 6"):
        SpatiallyVaryingBlur(random(3, 9, 3), weights, SHAPE)
    with pytest.raises(ValueError, match=r"images \(channels, height, width\), got in_shape \(7, 6\)"):
        SpatiallyVaryingBlur(kernels, weights, (7, 6))
    with pytest.raises(ValueError, match=r"expected \(rows, cols, kh, kw\)"):
        SpatiallyVaryingBlur.from_tiles(kernels, SHAPE)
    with pytest.raises(ValueError, match="8 x 2 tiles does not fit an image of 7 x 6"):
        SpatiallyVaryingBlur.from_tiles(random(8, 2, 3, 3), SHAPE)
    for rank in (0, 7, 1.5, True):
        with pytest.raises(ValueError, match=r"expected a whole number 1 ... 6"):
            SpatiallyVaryingBlur.from_tiles(tiles(), SHAPE, rank=rank)
