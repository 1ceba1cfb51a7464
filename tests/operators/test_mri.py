"""Cartesian MRI against NumPy's centred transform, slices with their own maps, and input that cannot be right."""

import numpy as np
import pytest
import torch

from invsolve.operators import CartesianMRI, LinearOperator, dot_test
from invsolve.operators import mri as module
from invsolve.operators.mri_fourier import KSpaceWarning, centred_fft2, centred_ifft2, check_kspace


def complex_normal(*shape, seed=0, dtype=torch.complex128):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def channels(image):
    return torch.stack((image.real, image.imag), 1)


def numpy_kspace(image):
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes=axes), axes=axes, norm="ortho"), axes=axes)


def a_mask(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (5, 8), (1, 4)])
def test_forward_is_the_centred_transform(size, relative):
    image, maps, mask = complex_normal(2, *size), complex_normal(3, *size, seed=1), a_mask(*size)
    expected = torch.from_numpy(numpy_kspace((maps * image[:, None]).numpy())) * mask
    operator = CartesianMRI(mask, maps)
    assert relative(operator(channels(image)), expected) < 1e-14
    single = CartesianMRI(mask, image_shape=size, dtype=torch.float64)
    assert relative(single(channels(image)), torch.from_numpy(numpy_kspace(image.numpy()))[:, None] * mask) < 1e-14
    assert relative(centred_fft2(image), torch.from_numpy(numpy_kspace(image.numpy()))) < 1e-14
    assert relative(centred_ifft2(centred_fft2(image)), image) < 1e-14


def test_a_constant_image_lands_in_the_middle():
    y = CartesianMRI(torch.ones(5, 6))(torch.ones(1, 2, 5, 6))
    assert y.abs().flatten().argmax() == 2 * 6 + 3
    assert float(y[0, 0, 2, 3].real) == pytest.approx(30**0.5, rel=1e-6)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 1), (5, 7)])
def test_lines_equal_the_same_mask_written_as_points(shape, relative):
    mask, maps, x = a_mask(*shape), complex_normal(3, 5, 7), torch.randn(2, 2, 5, 7).double()
    lines, points = CartesianMRI(mask, maps), CartesianMRI(mask.expand(5, 7), maps)
    assert relative(lines(x), points(x)) < 1e-14
    assert relative(lines.normal(x), points.normal(x)) < 1e-14
    assert lines.num_measured == points.num_measured
    assert lines.acceleration == pytest.approx(points.acceleration)
    y = complex_normal(2, 3, 5, 7)
    assert torch.equal(lines.restrict(y), points.restrict(y))
    assert torch.equal(lines.restrict(lines(x)), lines(x))


def test_lines_are_transformed_across_only(monkeypatch):
    """The normal operator of whole lines takes transforms along one axis, along memory, and no shifts."""
    used = []
    real = module._transform
    monkeypatch.setattr(
        module, "_transform", lambda a, dims, **k: used.append((dims, a.is_contiguous())) or real(a, dims, **k)
    )
    monkeypatch.setattr(torch.fft, "fftshift", lambda *_, **__: pytest.fail("shifted"))
    for mask in (a_mask(7), a_mask(5, 1)):
        operator = CartesianMRI(mask, complex_normal(3, 5, 7))
        x = torch.randn(1, 2, 5, 7).double()
        operator.normal(x)
        monkeypatch.setattr(torch.fft, "ifftshift", lambda *_, **__: pytest.fail("shifted in the loop"))
        operator.normal(x)
        monkeypatch.undo()
        monkeypatch.setattr(
            module, "_transform", lambda a, dims, **k: used.append((dims, a.is_contiguous())) or real(a, dims, **k)
        )
    assert {dims for dims, _ in used} == {(-1,)}
    assert all(contiguous for _, contiguous in used)


@pytest.mark.parametrize("group", [1, 40, 100, 1 << 20])
def test_the_size_of_the_groups_changes_nothing(monkeypatch, relative, group):
    operator = CartesianMRI(a_mask(5, 7), complex_normal(3, 5, 7))
    x, y = torch.randn(3, 2, 5, 7).double(), complex_normal(3, 3, 5, 7)
    expected = operator(x), operator.adjoint(y), operator.normal(x)
    monkeypatch.setattr(module, "_GROUP_CPU", group)
    for value, reference in zip((operator(x), operator.adjoint(y), operator.normal(x)), expected, strict=True):
        assert relative(value, reference) < 1e-14


@pytest.mark.parametrize("own", ["maps", "mask", "both"])
@pytest.mark.parametrize("lines", [True, False])
def test_slices_with_their_own_mask_and_maps(own, lines, relative):
    mask = a_mask(3, 1, 7) if lines else a_mask(3, 5, 7)
    maps = complex_normal(3, 2, 5, 7)
    mask, maps = mask if own != "maps" else mask[0], maps if own != "mask" else maps[0]
    stack = CartesianMRI(mask, maps)
    assert stack.entries == 3
    assert dot_test(stack, batch=3) < 1e-13
    x, y = torch.randn(3, 2, 5, 7).double(), complex_normal(3, 2, 5, 7)
    damping = torch.tensor([0.1, 0.2, 1.0], dtype=torch.float64)
    for index in range(3):
        alone, one = stack.entry(index), slice(index, index + 1)
        assert alone.entries is None
        assert relative(stack(x)[one], alone(x[one])) < 1e-14
        assert relative(stack.adjoint(y)[one], alone.adjoint(y[one])) < 1e-14
        assert relative(stack.normal(x)[one], alone.normal(x[one])) < 1e-14
        assert relative(stack.solve(x, damping)[one], alone.solve(x[one], damping[one])) < 1e-9
    assert stack.norm() == pytest.approx(max(stack.entry(i).norm() for i in range(3)))
    with pytest.raises(ValueError, match="3 images, the batch holds 2"):
        stack(x[:2])


def test_single_coil_slices_with_their_own_masks(relative):
    mask = a_mask(3, 5, 7)
    stack = CartesianMRI(mask, dtype=torch.float64)
    x, y = torch.randn(3, 2, 5, 7).double(), complex_normal(3, 1, 5, 7)
    exact = LinearOperator.solve(stack, x, 0.3)
    assert relative(stack.solve(x, 0.3), exact) < 1e-10
    assert relative(stack.pseudo_inverse(y, 0.3), LinearOperator.solve(stack, stack.adjoint(y), 0.3)) < 1e-10
    assert stack.num_measured == int(mask.sum()) // 3


def test_a_volume_goes_into_the_batch(relative):
    """Slices of a volume share maps, and the result of one does not depend on how many there are."""
    operator, volume = CartesianMRI(a_mask(7), complex_normal(3, 5, 7)), torch.randn(4, 2, 5, 7).double()
    y = operator(volume)
    together = operator.pseudo_inverse(y, 0.01)
    for index in range(4):
        assert relative(together[index : index + 1], operator.pseudo_inverse(y[index : index + 1], 0.01)) < 1e-9


def test_sense_unfolds_what_aliases(relative):
    """Every second line and four coils determine the image; a single coil does not."""
    mask = torch.arange(16) % 2
    maps, x = complex_normal(4, 9, 16), torch.randn(1, 2, 9, 16).double()
    several, single = CartesianMRI(mask, maps), CartesianMRI(mask, image_shape=(9, 16), dtype=torch.float64)
    assert relative(several.pseudo_inverse(several(x), 1e-10, max_iter=3000), x) < 1e-6
    assert relative(single.pseudo_inverse(single(x), 1e-10), x) > 0.5


def test_complex_maps_survive_a_change_of_type(relative):
    operator = CartesianMRI(a_mask(7), complex_normal(3, 5, 7))
    x = torch.randn(1, 2, 5, 7).double()
    y = operator(x)
    assert relative(operator.to(torch.float32)(x.float()).to(y.dtype), y) < 1e-6


BAD = [
    (lambda: CartesianMRI(torch.zeros(7), image_shape=(5, 7)), ValueError, "samples nothing"),
    (lambda: CartesianMRI(torch.stack((torch.ones(5, 7), torch.zeros(5, 7)))), ValueError, "samples nothing"),
    (lambda: CartesianMRI(torch.full((5, 7), 0.5)), ValueError, "other than 0 and 1"),
    (lambda: CartesianMRI(torch.ones(7)), ValueError, "pass image_shape"),
    (lambda: CartesianMRI(torch.ones(8), complex_normal(2, 5, 7)), ValueError, r"mask has shape \(8,\).*5 x 7"),
    (lambda: CartesianMRI(torch.ones(7), complex_normal(2, 5, 7), image_shape=(6, 7)), ValueError, "maps are 5 x 7"),
    (lambda: CartesianMRI(torch.ones(7), torch.ones(2, 5, 7)), TypeError, "coil maps have type torch.float32"),
    (lambda: CartesianMRI(torch.ones(7), 0 * complex_normal(2, 5, 7)), ValueError, "zero everywhere"),
    (lambda: CartesianMRI(torch.ones(7), complex_normal(5, 7)), ValueError, "expected .coils, H, W."),
    (lambda: CartesianMRI(torch.ones(7), complex_normal(2, 5, 7) * torch.inf), ValueError, "NaN or Inf"),
    (lambda: CartesianMRI(torch.ones(2, 1, 7), complex_normal(3, 2, 5, 7)), ValueError, "different numbers of images"),
]


@pytest.mark.parametrize(("make", "error", "sentence"), BAD)
def test_bad_construction(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


def test_bad_images_and_measurements():
    operator = CartesianMRI(torch.ones(7), image_shape=(5, 7))
    with pytest.raises(TypeError, match="complex64"):
        operator.adjoint(torch.ones(1, 1, 5, 7))
    with pytest.raises(ValueError, match="y has shape"):
        operator.adjoint(complex_normal(1, 2, 5, 7))
    with pytest.raises(ValueError, match="x has shape"):
        operator(torch.ones(1, 1, 5, 7))
    with pytest.raises(TypeError):
        operator(torch.ones(1, 2, 5, 7, dtype=torch.bfloat16))
    with pytest.raises(TypeError):
        operator(complex_normal(1, 2, 5, 7))


@pytest.mark.parametrize("size", [(32, 32), (33, 40), (41, 27)])
def test_check_kspace_tells_where_the_energy_is(size, recwarn):
    rows, columns = (torch.arange(n) - n // 2 for n in size)
    image = torch.exp(-(rows[:, None] ** 2 + columns**2) / 30.0) * torch.exp(0.3j * rows[:, None])
    kspace = centred_fft2(image.to(torch.complex64))[None].repeat(2, 1, 1)
    check_kspace(kspace)
    assert not recwarn.list
    with pytest.warns(KSpaceWarning, match="fftshift"):
        check_kspace(torch.fft.ifftshift(kspace, dim=(-2, -1)))
    with pytest.warns(KSpaceWarning, match="far from the centre"):
        check_kspace(torch.roll(kspace, (9, 9), (-2, -1)))


def test_check_kspace_refuses():
    kspace = complex_normal(2, 8, 8)
    with pytest.raises(TypeError, match="complex64"):
        check_kspace(kspace.real)
    with pytest.raises(ValueError, match="nothing but zeros"):
        check_kspace(0 * kspace)
    with pytest.raises(ValueError, match="NaN"):
        check_kspace(kspace * torch.nan)
    with pytest.raises(ValueError, match="coils, H, W"):
        check_kspace(kspace[0])
