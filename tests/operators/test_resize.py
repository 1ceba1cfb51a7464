"""Downsampling: the FFHQ benchmark's resizer, its singular values, closed-form solves."""

import pytest
import torch
import torch.nn.functional as F

from invsolve.operators import Blur, Downsample, dot_test, gaussian_kernel, resize
from invsolve.operators.algebra import Composed
from invsolve.operators.resize import DecimatedBlur

F64 = torch.float64
# Taps of the x4 resizer of the FFHQ tasks, first half (they are symmetric).
BENCHMARK_TAPS = [-0.0017, -0.0110, -0.0183, -0.0120, 0.0227, 0.0974, 0.1819, 0.2410]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def axis_matrix(factor, size):
    """The bicubic filter along one axis, measured from outside with an image of one row."""
    operator = Downsample(factor, (1, factor, size), dtype=F64)
    bars = torch.eye(size, dtype=F64)[:, None, None, :].expand(size, 1, factor, size)
    return operator(bars)[:, 0, 0].T


def test_benchmark_weights():
    row = axis_matrix(4, 64)[6]  # taps 4j - 6 ... 4j + 9
    assert row[:18].abs().max() == 0
    assert row[34:].abs().max() == 0
    taps = row[18:34]
    half = torch.tensor(BENCHMARK_TAPS, dtype=F64)
    assert torch.allclose(taps[:8], half, atol=5.1e-5)
    assert torch.allclose(taps, taps.flip(0), atol=1e-15)
    assert taps.sum() == pytest.approx(1, abs=1e-14)


def test_singular_values_of_the_benchmark():
    table = axis_matrix(4, 256)
    gram = table @ table.T
    assert gram[30, 30] == pytest.approx(0.2035, abs=1e-4)
    assert gram[30, 31] == pytest.approx(0.0317, abs=1e-4)
    singular = torch.linalg.svdvals(table)
    assert float(singular.min()) == pytest.approx(0.349, abs=1e-3)
    assert float(singular.max()) == pytest.approx(0.5, abs=1e-3)
    operator = Downsample(4, (3, 256, 256))
    assert operator.norm() == pytest.approx(0.25, abs=1e-3)
    assert operator.row_gram is None


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_interior_agrees_with_torch(factor):
    size = 12 * factor
    x = random(2, 3, size, size).float()
    y = Downsample(factor, (3, size, size))(x)
    other = F.interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True, align_corners=False)
    assert y.shape == other.shape
    assert (y - other)[..., 2:-2, 2:-2].abs().max() < 1e-6
    assert (y - other).abs().max() > 1e-3, "torch treats the border differently"


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_borders_are_mirrored_with_the_edge_pixel(factor, relative):
    size = 8 * factor
    x = random(1, 1, size, size)
    mirrored = torch.cat([x.flip(-1), x, x.flip(-1)], -1)
    mirrored = torch.cat([mirrored.flip(-2), mirrored, mirrored.flip(-2)], -2)
    large = Downsample(factor, (1, 3 * size, 3 * size), dtype=F64)(mirrored)
    assert relative(Downsample(factor, (1, size, size), dtype=F64)(x), large[..., 8:16, 8:16]) < 1e-13
    # Also where the filter is longer than the image.
    tiny = x[..., :factor, :factor]
    tiled = torch.cat([tiny.flip(-1), tiny] * 8, -1)
    tiled = torch.cat([tiled.flip(-2), tiled] * 8, -2)
    large = Downsample(factor, (1, 16 * factor, 16 * factor), dtype=F64)(tiled)
    assert relative(Downsample(factor, (1, factor, factor), dtype=F64)(tiny), large[..., 7:8, 7:8]) < 1e-12


@pytest.mark.parametrize("name", ["bicubic", "box", "none"])
def test_constants_and_the_identity(name):
    grey = torch.full((1, 2, 12, 18), 0.3, dtype=F64)
    assert torch.allclose(Downsample(3, (2, 12, 18), name, dtype=F64)(grey), torch.tensor(0.3, dtype=F64))
    x = random(1, 2, 5, 7)
    assert torch.allclose(Downsample(1, (2, 5, 7), name, dtype=F64)(x), x, atol=1e-15)


def test_box_and_decimation():
    x = random(2, 3, 6, 9)
    box = Downsample(3, (3, 6, 9), "box")
    assert torch.allclose(box(x), F.avg_pool2d(x, 3))
    none = Downsample(3, (3, 6, 9), "none")
    y = none(x)
    assert torch.equal(y, x[..., ::3, ::3])
    y += 1  # a measurement is the caller's own, not a view of the image
    assert not torch.equal(y, x[..., ::3, ::3])
    for operator, gram in ((box, 1 / 9), (none, 1.0)):
        assert operator.row_gram == gram
        assert operator.norm() == pytest.approx(gram**0.5)
        assert torch.allclose(operator(operator.adjoint(y)), gram * y)


@pytest.mark.parametrize("name", ["bicubic", "box", "none"])
def test_solve_in_closed_form(name, dense, relative, monkeypatch):
    operator = Downsample(3, (2, 9, 15), name, dtype=F64)
    monkeypatch.setattr(operator, "solve_cg", None)
    table, rhs = dense(operator), random(2, 2, 9, 15)
    damping = torch.tensor([1e-3, 2.0], dtype=F64)
    systems = table.T @ table + damping[:, None, None] * torch.eye(table.shape[1], dtype=F64)
    exact = torch.linalg.solve(systems, rhs.flatten(1)).reshape(rhs.shape)
    assert operator.solve_method.startswith("closed form")
    assert relative(operator.solve(rhs, damping), exact) < 1e-11


def test_bicubic_falls_back_to_iteration_when_it_is_large(monkeypatch, relative):
    closed = Downsample(2, (1, 8, 12), dtype=F64)
    monkeypatch.setattr(resize, "_LARGEST_GRAM", 5)
    large = Downsample(2, (1, 8, 12), dtype=F64)
    assert (closed.solve_method, large.solve_method) == ("closed form (separable)", "conjugate gradient")
    rhs = random(2, 1, 8, 12)
    assert relative(large.solve(rhs, 0.1), closed.solve(rhs, 0.1)) < 1e-9
    assert large.norm() == pytest.approx(closed.norm(), rel=1e-3)


@pytest.mark.parametrize("name", ["none", "box"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_decimated_circular_blur(name, per_channel, dense, relative, monkeypatch):
    kernel = random(2, 3, 4) if per_channel else random(4, 3)
    operator = Downsample(2, (2, 6, 10), name, dtype=F64) @ Blur(kernel, (2, 6, 10), dtype=F64)
    assert isinstance(operator, DecimatedBlur)
    assert operator.solve_method == "closed form (decimated circulant)"
    monkeypatch.setattr(operator, "solve_cg", None)
    monkeypatch.setattr(operator, "_lanczos", None)
    table, rhs = dense(operator), random(3, 2, 6, 10)
    damping = torch.tensor([1e-2, 0.5, 2.0], dtype=F64)
    systems = table.T @ table + damping[:, None, None] * torch.eye(table.shape[1], dtype=F64)
    exact = torch.linalg.solve(systems, rhs.flatten(1)).reshape(rhs.shape)
    assert relative(operator.solve(rhs, damping), exact) < 1e-11
    assert operator.norm() == pytest.approx(float(torch.linalg.matrix_norm(table, 2)), rel=1e-12)
    scaled = 0.5 * operator
    assert scaled.solve_method == operator.solve_method
    assert relative(scaled.solve(rhs, damping), operator.solve(4 * rhs, 4 * damping)) < 1e-12


def test_decimated_blur_as_the_reference_formula(relative):
    # DiffPIR's closed form, with explicit aliases of the full complex spectrum.
    k, size, rho = 2, 8, 0.3
    blurring = Blur(random(3, 3), (1, size, size), dtype=F64)
    operator = Downsample(k, (1, size, size), "none", dtype=F64) @ blurring
    rhs = random(1, 1, size, size, seed=4)
    delta = torch.zeros(1, 1, size, size, dtype=F64)
    delta[..., 0, 0] = 1
    h, r = torch.fft.fft2(blurring(delta)), torch.fft.fft2(rhs)

    def block_mean(a):
        return a.unflatten(-1, (k, -1)).unflatten(-3, (k, -1)).mean((-4, -2))

    q = block_mean(h * r) / (block_mean(h.abs() ** 2) + rho)
    exact = torch.fft.ifft2((r - h.conj() * q.tile((k, k))) / rho).real
    assert relative(operator.solve(rhs, rho), exact) < 1e-12


def test_other_compositions_are_plain():
    shape = (1, 8, 8)
    for name, boundary in (("none", "reflect"), ("bicubic", "circular"), ("box", "zero")):
        operator = Downsample(2, shape, name) @ Blur(gaussian_kernel(0.5), shape, boundary)
        assert type(operator) is Composed
        assert operator.solve_method == "conjugate gradient"
    assert dot_test(operator) < 1e-6


def test_loading_another_kernel_renews_the_closed_form(relative):
    def build(seed):
        return Downsample(2, (1, 6, 8), "none", dtype=F64) @ Blur(random(3, 3, seed=seed), (1, 6, 8), dtype=F64)

    first, second, rhs = build(1), build(2), random(1, 1, 6, 8)
    expected = second.solve(rhs, 0.1)
    assert relative(first.solve(rhs, 0.1), expected) > 0.01
    first.load_state_dict(second.state_dict())
    assert relative(first.solve(rhs, 0.1), expected) < 1e-14
    assert list(first.state_dict()) == ["inner.kernel"]


def test_bad_arguments():
    with pytest.raises(
        ValueError,
        match="an image of 250 x 256 pixels does not shrink by a factor of 4; crop or pad it to 248 or 252 x 256",
    ):
        Downsample(4, (3, 250, 256))
    with pytest.raises(ValueError, match="crop or pad it to 4 x 8 or 12"):
        Downsample(4, (3, 3, 10))
    for factor in (0, -2, 1.5, True):
        with pytest.raises(ValueError, match="expected a whole number >= 1"):
            Downsample(factor, (3, 8, 8))
    with pytest.raises(ValueError, match="unknown filter 'cubic'; expected one of bicubic, box, none"):
        Downsample(2, (3, 8, 8), "cubic")
    with pytest.raises(ValueError, match=r"got in_shape \(8, 8\)"):
        Downsample(2, (8, 8))
    for name in ("bicubic", "box", "none"):
        operator = Downsample(2, (1, 8, 8), name)
        with pytest.raises(ValueError, match=r"x has shape \(1, 1, 8, 10\), Downsample expects \(batch, 1, 8, 8\)"):
            operator(torch.zeros(1, 1, 8, 10))
        with pytest.raises(ValueError, match=r"y has shape \(1, 1, 8, 8\), Downsample expects \(batch, 1, 4, 4\)"):
            operator.adjoint(torch.zeros(1, 1, 8, 8))
