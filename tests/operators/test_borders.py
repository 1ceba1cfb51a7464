"""Borders of convolutions, and what separable kernels and masks of lines gain from their structure."""

from typing import get_args

import pytest
import torch

from invsolve.operators import Blur, CartesianMRI
from invsolve.operators.borders import Boundary, axis_matrix, extend, fold

F64 = torch.float64
BOUNDARIES = [boundary for boundary in get_args(Boundary) if boundary != "circular"]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("boundary", ["reflect", "replicate"])
@pytest.mark.parametrize("spare", [0, 3])
def test_fold_is_the_transpose_of_extend(boundary, spare):
    size, before, after = (6, 7), (2, 0), (1, 3)
    x = noise(2, 3, *size)
    extended = extend(x, before, after, boundary)
    y = noise(*extended.shape[:2], extended.shape[2] + spare, extended.shape[3] + spare, seed=1)
    folded = fold(y, size, before, after, boundary)
    assert folded.shape == x.shape
    there = (extended * y[..., : extended.shape[2], : extended.shape[3]]).sum()
    assert float(there) == pytest.approx(float((x * folded).sum()), rel=1e-13)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("length", [1, 4, 5, 8])
def test_axis_matrix_is_the_blur_of_a_line(boundary, length, relative):
    taps, x = noise(length), noise(2, 1, 8, 8, seed=1)
    along_rows = Blur(taps[None], (1, 8, 8), boundary, dtype=F64)
    matrix = axis_matrix(taps, 8, boundary)
    assert relative(along_rows(x), x @ matrix.mT) < 1e-13
    assert relative(Blur(taps[:, None], (1, 8, 8), boundary, dtype=F64)(x), matrix @ x) < 1e-13


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_separable_kernels_are_solved_in_one_step(boundary, dense, relative):
    kernel = torch.stack([torch.outer(noise(3, seed=s), noise(4, seed=s + 5)) for s in (0, 1)])  # one per channel
    operator = Blur(kernel, (2, 9, 8), boundary, dtype=F64)
    rhs, damping = noise(3, 2, 9, 8, seed=2), torch.tensor([1e-3, 0.1, 3.0], dtype=F64)
    result = operator.solve_cg(rhs, damping, rtol=1e-9)
    assert result.converged.all()
    assert result.iterations.max() == 1
    matrix = dense(operator)
    systems = matrix.T @ matrix + damping[:, None, None] * torch.eye(len(matrix.T), dtype=F64)
    exact = torch.linalg.solve(systems, rhs.flatten(1)).reshape(rhs.shape)
    assert relative(operator.solve(rhs, damping, x0=noise(3, 2, 9, 8, seed=3)), exact) < 1e-10


def test_a_kernel_stored_in_single_precision_is_still_solved_to_double():
    column = torch.linspace(1, 2, 5, dtype=F64)
    operator = Blur(torch.outer(column, column).sqrt() / 30, (1, 12, 11), "reflect")  # rounded to float32: not rank 1
    assert not torch.equal(operator.kernel.double(), torch.outer(column, column).sqrt() / 30)
    rhs = noise(1, 1, 12, 11)
    x = operator.solve(rhs, 1e-2)
    assert float((operator.normal(x) + 1e-2 * x - rhs).norm() / rhs.norm()) < 1e-11
    assert operator.solve_cg(rhs, 1e-2).iterations.max() <= 4


@pytest.mark.parametrize("shape", [(1, 7), (5, 1)])
@pytest.mark.parametrize("own", [False, True])
def test_points_that_fill_lines_are_kept_as_lines(shape, own):
    mask = (noise(*((2,) if own else ()), *shape) > 0).double()
    mask[..., 0, 0] = 1
    maps = torch.complex(noise(3, 5, 7), noise(3, 5, 7, seed=1))
    operator = CartesianMRI(mask.expand(*mask.shape[:-2], 5, 7), maps)
    assert torch.equal(operator.mask, mask)
    points = (noise(5, 7) > 0).double()
    assert torch.equal(CartesianMRI(points, maps).mask, points)
