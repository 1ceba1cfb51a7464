"""Blur kernels: shapes, sums, known values, randomness, refusals."""

import math

import numpy as np
import pytest
import torch

from invsolve.operators import (
    check_kernel,
    disk_kernel,
    gaussian_kernel,
    kernels,
    motion_kernel,
    random_motion_kernel,
)


def check_basics(kernel):
    assert kernel.dtype == torch.float32
    assert kernel.ndim == 2
    assert float(kernel.sum(dtype=torch.float64)) == pytest.approx(1, abs=1e-6)
    assert float(kernel.min()) >= 0


def test_gaussian_is_the_benchmark_kernel():
    from scipy.ndimage import gaussian_filter

    delta = np.zeros((61, 61))
    delta[30, 30] = 1
    kernel = gaussian_kernel(3, 61)
    check_basics(kernel)
    assert np.abs(kernel.numpy() - gaussian_filter(delta, 3)).max() < 1e-9
    assert float(kernel.max()) == pytest.approx(0.0177, abs=5e-5)
    support = kernel.nonzero()
    assert support.min(0).values.tolist() == [18, 18]
    assert support.max(0).values.tolist() == [42, 42]


def test_gaussian_sizes():
    assert gaussian_kernel(3).shape == (25, 25)
    assert gaussian_kernel(0.5).shape == (5, 5)
    assert torch.equal(gaussian_kernel(3), gaussian_kernel(3, 61)[18:43, 18:43])
    even = gaussian_kernel(1.0, 4)
    check_basics(even)
    assert divmod(int(even.argmax()), 4) == (2, 2)
    wide = gaussian_kernel((1.0, 2.0))
    check_basics(wide)
    assert wide.shape == (9, 17)
    assert gaussian_kernel((1.0, 2.0), (5, 7)).shape == (5, 7)
    columns = torch.arange(17.0) - 8
    assert float((wide.sum(0) * columns**2).sum()) == pytest.approx(4, rel=0.01)
    assert float((wide.sum(1) * (torch.arange(9.0) - 4) ** 2).sum()) == pytest.approx(1, rel=0.01)
    check_basics(gaussian_kernel(10, 5))


@pytest.mark.parametrize("std", [0, -1.0, float("nan"), float("inf"), (1.0, 0.0)])
def test_gaussian_refuses_std(std):
    with pytest.raises(ValueError, match="expected a number of pixels > 0"):
        gaussian_kernel(std)


@pytest.mark.parametrize("size", [0, -3, 2.5])
def test_gaussian_refuses_size(size):
    with pytest.raises(ValueError, match=f"size is {size}; expected a whole number of pixels >= 1"):
        gaussian_kernel(1.0, size)


def test_straight_motion_along_the_axes():
    for length in (1, 3, 7):
        assert torch.allclose(motion_kernel(length, 0), torch.full((1, length), 1 / length))
        assert torch.allclose(motion_kernel(length, 90), torch.full((length, 1), 1 / length))
        assert torch.allclose(motion_kernel(length, 180), motion_kernel(length, 0))
    assert torch.allclose(motion_kernel(4, 0), torch.tensor([[0.125, 0.25, 0.25, 0.25, 0.125]]))


def test_straight_motion_is_counter_clockwise():
    kernel = motion_kernel(9, 45)
    check_basics(kernel)
    assert kernel.shape[0] == kernel.shape[1]
    # 45 degrees goes up to the right: small rows go with large columns.
    rows = torch.arange(kernel.shape[0], dtype=torch.float32) - kernel.shape[0] // 2
    assert float((kernel * rows[:, None] * rows).sum()) < -1
    assert torch.allclose(kernel, kernel.rot90(2), atol=1e-7)
    assert torch.allclose(motion_kernel(9, 135), kernel.flip(1), atol=1e-7)


@pytest.mark.parametrize("angle", [0, 10, 30, 45, 77, 90, 200, -20])
def test_straight_motion_has_the_length_and_direction(angle):
    length = 21
    kernel = motion_kernel(length, angle).double()
    check_basics(kernel.float())
    rows = torch.arange(kernel.shape[0]).double()[:, None] - kernel.shape[0] // 2
    columns = torch.arange(kernel.shape[1]).double() - kernel.shape[1] // 2
    along = columns * math.cos(math.radians(angle)) - rows * math.sin(math.radians(angle))
    across = columns * math.sin(math.radians(angle)) + rows * math.cos(math.radians(angle))
    # A uniform line of n pixels has variance n^2 / 12 along itself, and at most a fraction of a pixel across.
    assert float((kernel * along**2).sum()) == pytest.approx(length**2 / 12, rel=0.08)
    assert float((kernel * across**2).sum()) < 0.3
    assert abs(float((kernel * along).sum())) < 1e-6


def test_straight_motion_refuses():
    with pytest.raises(ValueError, match=r"length is 0.5; expected a number of pixels >= 1"):
        motion_kernel(0.5, 0)
    with pytest.raises(ValueError, match="angle is nan; expected degrees"):
        motion_kernel(5, float("nan"))


def test_disk():
    assert torch.equal(disk_kernel(0.5), torch.ones(1, 1))
    assert torch.equal(disk_kernel(0.1), torch.ones(1, 1))
    for radius in (0.8, 1.5, 3.0, 7.3):
        kernel = disk_kernel(radius)
        check_basics(kernel)
        side = 2 * math.ceil(radius - 0.5) + 1
        assert kernel.shape == (side, side)
        assert torch.equal(kernel, kernel.T)
        assert torch.allclose(kernel, kernel.flip(0))
        # A pixel wholly inside holds 1 / area.
        assert float(kernel[side // 2, side // 2]) == pytest.approx(1 / (math.pi * radius**2), rel=2e-3)
    # By hand, radius 1: each edge pixel holds the part of the disk beyond x = 0.5, |y| < 0.5 ...
    strip = math.sqrt(3) / 4 + math.pi / 6 - 0.5  # integral of sqrt(1 - y^2) - 0.5 over |y| < 0.5
    kernel = disk_kernel(1.0)
    assert float(kernel[1, 2] / kernel[1, 1]) == pytest.approx(strip, rel=1e-3)
    assert float(kernel[0, 0] / kernel[1, 1]) == pytest.approx((math.pi - 1 - 4 * strip) / 4, rel=1e-2)
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="expected a number of pixels > 0"):
            disk_kernel(bad)


def test_random_motion():
    drawn = [random_motion_kernel(generator=seed) for seed in range(6)]
    for kernel in drawn:
        check_basics(kernel)
        assert kernel.shape == (61, 61)
        assert 10 < int((kernel > 0).sum()) < 1500
        rows, columns = torch.arange(61.0)[:, None] - 30, torch.arange(61.0) - 30
        assert abs(float((kernel * rows).sum())) < 12
        assert abs(float((kernel * columns).sum())) < 12
    assert not torch.equal(drawn[0], drawn[1])


def test_random_motion_repeats_with_its_source():
    for make in (
        lambda: 0,
        lambda: np.random.default_rng(0),
        lambda: torch.Generator().manual_seed(0),
    ):
        assert torch.equal(random_motion_kernel(generator=make()), random_motion_kernel(generator=make()))
    assert torch.equal(random_motion_kernel(generator=0), random_motion_kernel(generator=np.random.default_rng(0)))
    shared = torch.Generator().manual_seed(0)
    assert not torch.equal(random_motion_kernel(generator=shared), random_motion_kernel(generator=shared))
    assert not torch.equal(random_motion_kernel(), random_motion_kernel())


def test_random_motion_leaves_the_global_generators_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    random_motion_kernel()
    random_motion_kernel(generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


@pytest.mark.parametrize("size", [3, 16, 35])
@pytest.mark.parametrize("intensity", [0, 0.3, 1])
def test_random_motion_of_any_size(size, intensity):
    kernel = random_motion_kernel(size, intensity, 3)
    check_basics(kernel)
    assert kernel.shape == (size, size)


def test_intensity_bends_the_path():
    def straightness(intensity):
        """Share of the variance along the main direction, median over kernels."""
        shares = []
        for seed in range(12):
            kernel = random_motion_kernel(61, intensity, seed).double()
            points = torch.cartesian_prod(torch.arange(61.0), torch.arange(61.0)).double().T
            values = torch.linalg.eigvalsh(torch.cov(points, aweights=kernel.flatten()))
            shares.append(float(values[1] / values.sum()))
        return sorted(shares)[6]

    assert straightness(0.0) > 0.99 > 0.97 > straightness(1.0)


def test_headings_are_absolute():
    # At intensity 0 the headings lie within 0.1 of one direction, however long the path is; increments would drift.
    for seed in (0, 1, 4):  # paths of many steps
        steps = np.diff(kernels._random_path(np.random.default_rng(seed), 1000.0, 0.0))
        headings = np.angle(steps / steps[0])
        assert np.ptp(headings) <= 0.2
        assert np.ptp(headings) > 0.1


def test_random_motion_refuses():
    with pytest.raises(ValueError, match="size is 2; expected a whole number of pixels >= 3"):
        random_motion_kernel(2)
    for intensity in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="expected 0 <= intensity <= 1"):
            random_motion_kernel(61, intensity)


def test_check_kernel():
    assert torch.equal(check_kernel([[1, 3]]), torch.tensor([[0.25, 0.75]]))
    assert torch.equal(check_kernel(np.array([[2, 6]], dtype=np.uint8)), torch.tensor([[0.25, 0.75]]))
    assert torch.equal(check_kernel([[1, 3]], normalise=False), torch.tensor([[1.0, 3.0]]))
    assert check_kernel(np.ones((2, 2))).dtype == torch.float64
    assert check_kernel(torch.ones(2, 2, dtype=torch.float16)).dtype == torch.float32
    sharpen = torch.tensor([[-1.0, 3.0, -1.0]])
    assert torch.equal(check_kernel(sharpen), sharpen)
    given = torch.ones(2, 2)
    check_kernel(given)
    assert torch.equal(given, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("kernel", "sentence"),
    [
        (torch.ones(3), r"a blur kernel is 2-D, got shape \(3,\)"),
        (torch.ones(3, 3, 3), r"a blur kernel is 2-D, got shape \(3, 3, 3\)"),
        (torch.ones(0, 2), r"the kernel is empty"),
        (torch.zeros(2, 2), r"zero everywhere"),
        (torch.tensor([[1.0, -1.0]]), r"sum to 0; expected a sum > 0"),
        (torch.tensor([[1.0, -3.0]]), r"sum to -2; expected a sum > 0"),
        (torch.tensor([[1.0, float("inf")]]), r"holds 1 NaN or Inf of 2 values"),
        (torch.ones(2, 2, dtype=torch.complex64), r"a blur kernel is real"),
    ],
)
def test_check_kernel_refuses(kernel, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_kernel(kernel)


def moments(kernel):
    """Covariance (yy, yx, xx) about the centre size // 2, rows upwards."""
    kernel = kernel.double()
    y = kernel.shape[0] // 2 - torch.arange(kernel.shape[0]).double()[:, None]
    x = torch.arange(kernel.shape[1]).double() - kernel.shape[1] // 2
    return [float((kernel * term).sum()) for term in (y * y, y * x, x * x)]


def test_turned_gaussian():
    # A quarter turn exchanges the axes.
    assert torch.allclose(gaussian_kernel((1.5, 3.0), (25, 25), 90), gaussian_kernel((3.0, 1.5), (25, 25)), atol=1e-4)
    assert torch.equal(gaussian_kernel((1.5, 3.0), 25, 180), gaussian_kernel((1.5, 3.0), 25))
    assert torch.equal(gaussian_kernel(2.0, angle=30), gaussian_kernel(2.0))
    for angle in (30.0, 70.0, 135.0, -20.0):
        kernel = gaussian_kernel((1.5, 3.0), angle=angle)
        check_basics(kernel)
        assert torch.allclose(kernel, kernel.flip(0, 1))
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        want = [9 * sine**2 + 2.25 * cosine**2, (9 - 2.25) * sine * cosine, 9 * cosine**2 + 2.25 * sine**2]
        assert moments(kernel) == pytest.approx(want, rel=0.01, abs=0.01)
        # The motion along the same angle leans the same way.
        assert math.copysign(1, moments(kernel)[1]) == math.copysign(1, moments(motion_kernel(15, angle))[1])
        assert torch.allclose(gaussian_kernel((1.5, 3.0), 61, angle).sum(), torch.tensor(1.0))
        edge = max(kernel[0].max(), kernel[:, 0].max())  # the box holds 4 standard deviations, and hardly more
        assert 0 <= float(edge) < 1e-3 * float(kernel.max())


def test_anisotropic_blur_of_ddrm():
    taps = torch.arange(-4.0, 5.0)
    rows, columns = torch.exp(-0.5 * taps**2), torch.exp(-0.5 * (taps / 20) ** 2)
    want = torch.outer(rows / rows.sum(), columns / columns.sum())
    assert torch.allclose(gaussian_kernel((1, 20), 9), want, atol=1e-6)


def test_turned_gaussian_refuses():
    with pytest.raises(ValueError, match="angle is nan; expected degrees"):
        gaussian_kernel((1.0, 2.0), angle=float("nan"))
    with pytest.raises(ValueError, match=r"std is -1.0; expected a number of pixels > 0"):
        gaussian_kernel((-1.0, 2.0), angle=30)
    with pytest.raises(ValueError, match="size is 0"):
        gaussian_kernel((1.0, 2.0), 0, angle=30)
