"""Non-Cartesian MRI against sums written out, the Toeplitz normal operator, and the measured spiral."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from invsolve.operators import CartesianMRI, NonCartesianMRI, dot_test
from invsolve.operators import mri_nufft as module
from invsolve.operators.mri_nufft import density_compensation
from invsolve.operators.mri_trajectories import radial_density, radial_trajectory, spiral_trajectory

SPIRAL = next(
    (p / "shared/data/mri/spiral_8coil.npz" for p in Path(__file__).resolve().parents if (p / "shared").is_dir()), None
)
BACKENDS = [
    "exact",
    pytest.param(
        "finufft",
        marks=pytest.mark.skipif(importlib.util.find_spec("finufft") is None, reason="finufft is not installed"),
    ),
]


def complex_normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)


def random_points(*shape, seed=0):
    return torch.rand((*shape, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5


def channels(image):
    return torch.stack((image.real, image.imag), 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(5, 8), (8, 7), (1, 3)])
def test_forward_is_the_sum(backend, size, relative):
    points, maps, image = random_points(3, 4), complex_normal(2, *size), complex_normal(2, *size, seed=1)
    operator = NonCartesianMRI(points, coil_maps=maps, backend=backend)
    y = operator(channels(image))
    assert y.shape == (2, 2, 3, 4)
    expected = torch.zeros_like(y)
    for row in range(size[0]):
        for column in range(size[1]):
            turns = points[..., 0] * (column - size[1] // 2) + points[..., 1] * (row - size[0] // 2)
            wave = torch.polar(torch.ones_like(turns), -2 * math.pi * turns)
            expected += (maps[:, row, column] * image[:, None, row, column])[..., None, None] * wave
    assert relative(y, expected / math.sqrt(size[0] * size[1])) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_on_grid_positions_it_is_cartesian(backend, relative):
    size = (6, 9)
    rows, columns = ((torch.arange(n, dtype=torch.float64) - n // 2) / n for n in size)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1)
    maps, x = complex_normal(3, *size), torch.randn(2, 2, *size).double()
    cartesian, free = CartesianMRI(torch.ones(size), maps), NonCartesianMRI(grid, coil_maps=maps, backend=backend)
    assert relative(free(x), cartesian(x)) < 1e-12
    assert relative(free.normal(x), cartesian.normal(x)) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(5, 8), (16, 11)])
def test_normal_is_adjoint_of_forward(backend, size, relative):
    for points in (random_points(40), radial_trajectory(7, 12), torch.tensor([[0.5, -0.5], [-0.5, 0.5], [0.0, 0.0]])):
        operator = NonCartesianMRI(points, coil_maps=complex_normal(2, *size), backend=backend)
        x = torch.randn(2, 2, *size).double()
        assert relative(operator.normal(x), operator.adjoint(operator(x))) < 1e-11
        single = operator.to(torch.float32)
        assert relative(single.normal(x.float()), single.adjoint(single(x.float()))) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_adjoint_and_gradients(backend):
    operator = NonCartesianMRI(random_points(9), (4, 5), backend=backend)
    assert dot_test(operator, dtype=torch.float64) < 1e-12
    assert dot_test(operator, dtype=torch.float32) < 1e-5
    x = torch.randn(2, 2, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(operator, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda v: operator(v).abs().square(), (x,), fast_mode=True)


def test_blocks_of_the_written_out_sum_change_nothing(monkeypatch, relative):
    operator = NonCartesianMRI(random_points(23), (4, 5), backend="exact")
    x = torch.randn(2, 2, 4, 5).double()
    expected = operator(x), operator.adjoint(operator(x))
    monkeypatch.setattr(module, "_BLOCK", 30)
    assert relative(operator(x), expected[0]) < 1e-14
    assert relative(operator.adjoint(operator(x)), expected[1]) < 1e-14


def test_trajectories_stay_in_their_units():
    for trajectory in (
        radial_trajectory(5, 8),
        radial_trajectory(5, 9, golden=True),
        spiral_trajectory(3, 50, turns=4),
    ):
        assert trajectory.shape[-1] == 2
        assert 0.4 < float(trajectory.norm(dim=-1).max()) <= 0.5
    spokes = radial_trajectory(4, 8)
    assert torch.allclose(spokes[0, :, 1], torch.zeros(8, dtype=torch.float64))
    assert bool((spokes[:, 4] == 0).all())
    angle = torch.atan2(spokes[1, -1, 1], spokes[1, -1, 0])
    assert float(angle) == pytest.approx(math.pi / 4)
    golden = radial_trajectory(2, 8, golden=True)
    assert math.degrees(math.acos(float(golden[0, -1] @ golden[1, -1]) / 0.375**2)) == pytest.approx(111.246, abs=1e-3)
    spiral = spiral_trajectory(4, 401, turns=5)
    radius = spiral.norm(dim=-1)
    turn = torch.atan2(spiral[1, 400, 1], spiral[1, 400, 0])
    assert float(radius[0, 200]) == pytest.approx(0.25)
    assert float(turn) == pytest.approx(math.pi / 2)


@pytest.mark.parametrize("kind", ["radial", "spiral"])
def test_density_compensation_returns_the_image(kind):
    """A gridded image of a smooth object is the object, in its own units."""
    size = (24, 25)
    rows, columns = (torch.arange(n, dtype=torch.float64) - n // 2 for n in size)
    x = torch.exp(-(rows[:, None] ** 2 / 40 + (columns - 2) ** 2 / 30))
    x = torch.stack((x, 0.5 * x))[None]
    trajectory = radial_trajectory(50, 50) if kind == "radial" else spiral_trajectory(10, 300, turns=4)
    operator = NonCartesianMRI(trajectory, size, dtype=torch.float64)
    y = operator(x)
    weights = density_compensation(trajectory, size)
    assert weights.shape == trajectory.shape[:-1]
    assert bool((weights > 0).all())
    assert float((operator.adjoint(weights * y) - x).norm() / x.norm()) < 0.12
    assert float((operator.adjoint(y) / operator.adjoint(y).max() - x).norm() / x.norm()) > 0.3
    if kind == "radial":
        analytic = radial_density(trajectory) * size[0] * size[1]
        assert float((operator.adjoint(analytic * y) - x).norm() / x.norm()) < 0.05


def test_solve_recovers_the_image(relative):
    trajectory, maps = radial_trajectory(9, 24), complex_normal(4, 10, 11)
    operator, x = NonCartesianMRI(trajectory, coil_maps=maps), torch.randn(1, 2, 10, 11).double()
    assert relative(operator.pseudo_inverse(operator(x), 1e-9, max_iter=2000), x) < 1e-5


@pytest.mark.skipif(SPIRAL is None or not SPIRAL.is_file(), reason="the measured spiral is not here")
def test_the_measured_spiral_has_these_units():
    """Positions in cycles per pixel and its own density weights give an image: a compact object, not noise."""
    data = np.load(SPIRAL)
    trajectory, dcf = torch.from_numpy(data["traj"]), torch.from_numpy(data["dcf"])
    kspace = torch.from_numpy(data["ksp"])
    assert float(trajectory.abs().max()) <= 0.5
    assert float(trajectory.abs().max()) > 0.45
    # Every third arm and the middle of k-space, at a quarter of the resolution, keep the written-out sums small.
    arms = slice(None, None, 3)
    near = trajectory[arms].norm(dim=-1) < 0.125
    samples = kspace[:, arms][:, near][None]
    swapped = trajectory[arms].clone()
    swapped[::2] = swapped[::2].flip(-1)
    residuals = []
    for positions in (trajectory[arms], swapped):
        operator = NonCartesianMRI(4 * positions[near], (64, 64))
        image = operator.solve_cg(operator.adjoint(samples[:, :1]), 0.3, max_iter=20).x
        residuals.append(float((operator(image) - samples[:, :1]).norm() / samples[:, :1].norm()))
    # An image explains the data, and no longer does where kx and ky are exchanged on every other arm.
    assert residuals[0] < 0.2, residuals
    assert residuals[1] > 1.7 * residuals[0]
    # The file's own weights are those of the trajectory.
    own = density_compensation(4 * trajectory[arms][near], (64, 64))
    assert float(torch.corrcoef(torch.stack((own, dcf[arms][near])))[0, 1]) > 0.8


BAD = [
    (lambda: NonCartesianMRI(torch.ones(4, 3), (5, 5)), ValueError, "expected real"),
    (lambda: NonCartesianMRI(torch.ones(4, 2), (5, 5)), ValueError, "cycles per pixel"),
    (lambda: NonCartesianMRI(torch.full((4, 2), torch.nan), (5, 5)), ValueError, "NaN"),
    (lambda: NonCartesianMRI(random_points(4)), ValueError, "pass image_shape"),
    (lambda: NonCartesianMRI(random_points(4), (5, 5), complex_normal(2, 5, 6)), ValueError, "maps are 5 x 6"),
    (lambda: NonCartesianMRI(random_points(4), (5, 5), complex_normal(1, 2, 5, 5)), ValueError, "coils, H, W"),
    (lambda: NonCartesianMRI(random_points(4), (5, 5), backend="fast"), ValueError, "unknown backend 'fast'"),
    (lambda: NonCartesianMRI(random_points(4), (5, 5)).adjoint(torch.ones(1, 1, 4)), TypeError, "complex64"),
    (lambda: radial_trajectory(0, 5), ValueError, "spokes is 0"),
    (lambda: spiral_trajectory(2, 5, turns=0), ValueError, "turns is 0"),
]


@pytest.mark.parametrize(("make", "error", "sentence"), BAD)
def test_bad_input(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def test_too_large_without_the_library(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"invsolve\[nufft\]"):
        NonCartesianMRI(random_points(20000), (256, 256))
    assert NonCartesianMRI(random_points(20), (25, 25)).backend == "exact"
