"""Blur against SciPy, its boundaries, its closed forms, and what it refuses."""

import copy

import numpy as np
import pytest
import torch

from invsolve.operators import Blur, blur, borders, conjugate_gradient, dot_test, gaussian_kernel

F64 = torch.float64
SCIPY = {"circular": "wrap", "zero": "constant", "reflect": "mirror", "replicate": "nearest"}
SIZES = [(3, 5), (4, 2), (1, 6), (5, 5), (9, 11), (2, 1), (1, 1)]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("boundary", SCIPY)
def test_against_scipy(boundary, size, relative):
    from scipy.ndimage import convolve

    kernel, x = random(*size), random(2, 3, 9, 12, seed=1)
    y = Blur(kernel, (3, 9, 12), boundary, dtype=F64)(x)
    expected = [[convolve(channel, kernel.numpy(), mode=SCIPY[boundary]) for channel in image] for image in x.numpy()]
    assert relative(y, torch.from_numpy(np.array(expected))) < 1e-12


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_valid_against_scipy(size, relative):
    from scipy.signal import convolve2d

    kernel, x = random(*size), random(1, 2, 9, 12, seed=1)
    operator = Blur(kernel, (2, 9, 12), "valid", dtype=F64)
    expected = np.array([[convolve2d(channel, kernel.numpy(), mode="valid") for channel in x[0].numpy()]])
    assert operator.out_shape == (2, 9 - size[0] + 1, 12 - size[1] + 1)
    assert relative(operator(x), torch.from_numpy(expected)) < 1e-12


@pytest.mark.parametrize("boundary", [*SCIPY, "valid"])
def test_the_interior_does_not_know_the_boundary(boundary, relative):
    kernel, x = random(3, 4), random(1, 1, 10, 11, seed=1)
    reference = Blur(kernel, (1, 10, 11), "zero", dtype=F64)(x)[..., 1:-1, 1:-2]
    y = Blur(kernel, (1, 10, 11), boundary, dtype=F64)(x)
    assert relative(y if boundary == "valid" else y[..., 1:-1, 1:-2], reference) < 1e-12


def test_a_bright_pixel_shows_the_kernel():
    kernel = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    x = torch.zeros(1, 1, 3, 5)
    x[..., 1, 2] = 1
    expected = torch.zeros(3, 5)
    expected[0:2, 1:3] = kernel
    assert torch.allclose(Blur(kernel, (1, 3, 5), "zero")(x)[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("boundary", [*SCIPY, "valid"])
def test_one_kernel_per_channel(boundary, relative):
    kernels, x = random(3, 4, 3), random(2, 3, 6, 7, seed=1)
    y = Blur(kernels, (3, 6, 7), boundary, dtype=F64)(x)
    for channel in range(3):
        single = Blur(kernels[channel], (1, 6, 7), boundary, dtype=F64)(x[:, channel : channel + 1])
        assert relative(y[:, channel : channel + 1], single) < 1e-12
    assert relative(Blur(kernels[:1], (3, 6, 7), dtype=F64)(x), Blur(kernels[0], (3, 6, 7), dtype=F64)(x)) < 1e-15


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("boundary", [*SCIPY, "valid"])
def test_large_images_are_filtered_channel_by_channel(boundary, per_channel, monkeypatch, relative):
    kernel = random(3, 4, 3) if per_channel else random(4, 3)
    operator = Blur(kernel, (3, 7, 6), boundary, dtype=F64)
    x = random(2, 3, 7, 6, seed=1)

    def everything():
        y = operator(x)
        return y, operator.adjoint(y), operator.normal(x), operator.solve(x, 0.5)

    at_once = everything()
    calls = []
    original = Blur._transformed
    monkeypatch.setattr(Blur, "_transformed", lambda self, x, f: calls.append(x.shape[1]) or original(self, x, f))
    monkeypatch.setattr(blur, "_LARGE", 1)
    for one_by_one, reference in zip(everything(), at_once, strict=True):
        assert relative(one_by_one, reference) < 1e-10
    assert set(calls) == {1}


@pytest.mark.parametrize("boundary", [*SCIPY, "valid"])
def test_the_benchmark_kernel_keeps_the_brightness(boundary):
    operator = Blur(gaussian_kernel(3, 61), (3, 64, 72), boundary)
    grey = torch.full((1, 3, 64, 72), 0.7)
    y = operator(grey)
    inner = y if boundary == "valid" else y[..., 30:34, 30:42]
    assert torch.allclose(inner, torch.tensor(0.7), atol=1e-6)
    if boundary != "zero":
        assert torch.allclose(y, torch.tensor(0.7), atol=1e-6)
    else:
        assert y[0, 0, 0, 0] < 0.25
    assert dot_test(operator) < 1e-6


def test_the_largest_kernel_fits():
    for boundary in [*SCIPY, "valid"]:
        operator = Blur(random(6, 7), (1, 6, 7), boundary, dtype=F64)
        assert dot_test(operator, dtype=F64) < 1e-14


def test_circular_norm_and_solve_need_no_iteration(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("an iteration was started")

    operator = Blur(random(3, 4), (2, 8, 9), dtype=F64)
    monkeypatch.setattr(operator, "solve_cg", forbidden)
    monkeypatch.setattr(operator, "_lanczos", forbidden)
    assert operator.solve_method == "closed form (circulant)"
    operator.norm()
    operator.solve(random(1, 2, 8, 9), 0.1)
    assert Blur(random(3, 4), (2, 8, 9), "zero").solve_method == "conjugate gradient"


def test_undamped_solve_inverts_an_invertible_blur(relative):
    kernel = torch.tensor([[0.0, 0.1, 0.0], [0.2, 1.0, 0.1], [0.0, 0.1, 0.0]])
    operator = Blur(kernel, (1, 8, 9), dtype=F64)
    x = random(2, 1, 8, 9)
    assert relative(operator.solve(operator.adjoint(operator(x)), 0.0), x) < 1e-12


def test_results_follow_the_type_of_the_image(relative):
    operator = Blur(gaussian_kernel(1.5), (2, 16, 20), "reflect")
    x = random(1, 2, 16, 20)
    y = operator(x)
    single = operator(x.float())
    assert (y.dtype, single.dtype) == (F64, torch.float32)
    assert relative(single.double(), y) < 1e-6
    assert relative(operator(x), y) == 0  # the float32 call in between has left nothing behind
    assert list(operator.state_dict()) == ["kernel"]
    assert operator.double().kernel.dtype == F64
    assert relative(operator(x), y) < 1e-6


def test_a_copy_and_a_loaded_kernel_are_independent(relative):
    operator = Blur(random(3, 3), (1, 6, 7), dtype=F64)
    x = random(1, 1, 6, 7, seed=2)
    y = operator(x)
    other = copy.deepcopy(operator)
    other.load_state_dict({"kernel": 2 * operator.kernel})
    assert relative(other(x), 2 * y) < 1e-14
    assert relative(other.normal(x), 4 * operator.normal(x)) < 1e-14
    assert other.norm() == pytest.approx(2 * operator.norm())
    assert torch.equal(operator(x), y)


def test_numpy_kernels():
    kernel = np.arange(6).reshape(2, 3)
    operator = Blur(kernel, (1, 4, 5))
    assert operator.kernel.dtype == torch.float32
    assert torch.equal(operator.kernel, torch.arange(6.0).reshape(2, 3))
    assert "2 x 3 kernel, circular" in repr(operator)


def test_fast_lengths():
    assert [borders.fast_length(n) for n in (1, 4, 5, 41, 285, 316, 4060)] == [4, 4, 8, 48, 288, 320, 4096]
    assert borders.fast_length(23) == 24


@pytest.mark.parametrize(
    ("kernel", "shape", "boundary", "sentence"),
    [
        (torch.ones(9, 3), (3, 8, 8), "circular", r"the kernel is 9 x 3, larger than the image of 8 x 8"),
        (torch.ones(3, 9), (3, 8, 8), "valid", r"the kernel is 3 x 9, larger than the image of 8 x 8"),
        (torch.ones(2, 3, 3), (3, 8, 8), "zero", r"2 kernels for an image with 3 channels"),
        (torch.ones(3), (3, 8, 8), "zero", r"the kernel has shape \(3,\); expected \(kh, kw\)"),
        (torch.ones(3, 3), (8, 8), "zero", r"images \(channels, height, width\), got in_shape \(8, 8\)"),
        (torch.ones(3, 3), (3, 8, 8), "mirror", r"unknown boundary 'mirror'; expected one of circular, zero"),
        (torch.zeros(3, 3), (3, 8, 8), "zero", r"the kernel is zero everywhere"),
        (torch.ones(0, 3), (3, 8, 8), "zero", r"the kernel is empty, its shape is \(0, 3\)"),
        (torch.tensor([[1.0, float("nan")]]), (3, 8, 8), "zero", r"the kernel holds 1 NaN or Inf of 2 values"),
        (torch.ones(3, 3, dtype=torch.complex64), (3, 8, 8), "zero", r"a blur kernel is real, got torch.complex64"),
    ],
)
def test_bad_arguments(kernel, shape, boundary, sentence):
    with pytest.raises(ValueError, match=sentence):
        Blur(kernel, shape, boundary)


@pytest.mark.parametrize("boundary", ["circular", "valid"])
def test_images_of_another_size(boundary):
    operator = Blur(torch.ones(3, 3), (3, 8, 8), boundary)
    for call in (operator, operator.normal, lambda x: operator.solve(x, 1.0)):
        with pytest.raises(ValueError, match=r"shape \(1, 3, 8, 9\), Blur expects \(batch, 3, 8, 8\)"):
            call(torch.ones(1, 3, 8, 9))
    with pytest.raises(ValueError, match=r"y has shape \(1, 3, 9, 9\), Blur expects"):
        operator.adjoint(torch.ones(1, 3, 9, 9))


def test_deconvolution_by_iteration_agrees_with_the_closed_form(relative):
    operator = Blur(gaussian_kernel(1.0), (1, 12, 15), dtype=F64)
    rhs = random(2, 1, 12, 15)
    damping = torch.tensor([1e-2, 1.0], dtype=F64)
    assert relative(operator.solve(rhs, damping), conjugate_gradient(operator.normal, rhs, damping).x) < 1e-10
