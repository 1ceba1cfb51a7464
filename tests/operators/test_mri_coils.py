"""Coil maps from calibration data, compression, combination."""

from pathlib import Path

import numpy as np
import pytest
import torch

from invsolve.operators import CartesianMRI
from invsolve.operators.mri_coils import compress_coils, espirit, root_sum_of_squares, sum_of_squares_maps
from invsolve.operators.mri_fourier import centred_fft2, centred_ifft2

HEAD = next(
    (
        p / "shared/data/mri/brain_head_8coil_full_ksp.npy"
        for p in Path(__file__).resolve().parents
        if (p / "shared").is_dir()
    ),
    None,
)


def simulated(coils=5, size=(48, 55), dtype=torch.complex128):
    """Smooth maps with sum |S|^2 = 1, an object with phase, and where it is."""
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in size)
    rows, columns = torch.meshgrid(rows, columns, indexing="ij")
    maps = []
    for c in range(coils):
        angle = torch.tensor(2 * torch.pi * c / coils)
        y, x = 1.3 * angle.sin(), 1.3 * angle.cos()
        size2 = torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 1.6)
        maps.append(torch.polar(size2, angle + 0.8 * x * rows - 0.6 * y * columns))
    maps = torch.stack(maps)
    maps = maps / root_sum_of_squares(maps)
    inside = (rows / 0.7) ** 2 + (columns / 0.6) ** 2 < 1
    texture = 1 + 0.4 * torch.cos(9 * rows + 4 * columns) + 0.3 * (rows > 0.2)
    image = torch.polar(texture * inside, 0.7 * rows)
    return maps.to(dtype), image.to(dtype), inside


def unexplained(maps, images, inside=...):
    """Share of the coil images that their own combination by the maps does not explain."""
    combined = (maps.conj() * images).sum(-3, keepdim=True)
    rest = (images - maps * combined)[..., inside] if inside is not ... else images - maps * combined
    whole = images[..., inside] if inside is not ... else images
    return float(rest.norm() / whole.norm())


def test_espirit_finds_the_maps_up_to_phase():
    maps, image, inside = simulated()
    found = espirit(centred_fft2(maps * image), calibration=20)
    agreement = (found.conj() * maps).sum(0).abs()
    assert float(agreement[inside].min()) > 0.998
    assert torch.allclose(root_sum_of_squares(found)[inside], torch.ones(1, dtype=torch.float64), atol=1e-10)
    assert unexplained(found, maps * image) < 0.02


def test_espirit_crops_what_is_outside():
    maps, image, inside = simulated()
    found = root_sum_of_squares(espirit(centred_fft2(maps * image), calibration=20, crop=0.98))
    outside = torch.ones_like(inside)
    outside[4:-4, 6:-6] = False
    assert bool((found[inside] > 0).all())
    assert float((found[outside] == 0).double().mean()) > 0.8
    assert bool((root_sum_of_squares(espirit(centred_fft2(maps * image), crop=0)) > 0.99).all())


def test_espirit_phase_is_smooth():
    """The phase that is free at each pixel follows one combination of the coils: no jumps inside the object."""
    maps, image, inside = simulated()
    found = espirit(centred_fft2(maps * image), calibration=20)
    for axis in (-2, -1):
        step = (found * found.roll(1, axis).conj()).sum(0)
        both = inside & inside.roll(1, axis)
        assert float(step.angle()[both].abs().max()) < 0.5


def test_espirit_chunks_and_slices_change_nothing(monkeypatch):
    from invsolve.operators import mri_coils

    maps, image, _ = simulated(coils=3, size=(24, 27))
    kspace = centred_fft2(maps * image)
    whole = espirit(kspace, calibration=16, kernel=5)
    stack = espirit(torch.stack((kspace, 2j * kspace)), calibration=16, kernel=5)
    assert torch.allclose(stack[0], whole)
    assert torch.allclose(stack[1].abs(), whole.abs(), atol=1e-6)
    monkeypatch.setattr(mri_coils, "_CHUNK", 1)
    assert torch.allclose(espirit(kspace, calibration=16, kernel=5), whole)


def test_maps_from_undersampled_data_solve_it():
    """Every second line and a calibrated centre are enough for the whole image."""
    maps, image, _ = simulated(coils=6, size=(49, 56))
    mask = torch.zeros(56)
    mask[1::2] = 1
    mask[18:38] = 1
    kspace = CartesianMRI(mask, maps)(torch.stack((image.real, image.imag))[None])
    operator = CartesianMRI(mask, espirit(kspace[0], calibration=18))
    recovered = operator.pseudo_inverse(kspace, 1e-4)
    magnitude = torch.hypot(recovered[0, 0], recovered[0, 1])
    assert float((magnitude - image.abs()).norm() / image.abs().norm()) < 0.03


def test_sum_of_squares_maps():
    maps, image, inside = simulated()
    found = sum_of_squares_maps(centred_fft2(maps * image))
    norm = root_sum_of_squares(found)
    assert bool(((norm - 1).abs() < 1e-10).logical_or(norm == 0).all())
    assert float((found.conj() * maps).sum(0).abs()[inside].mean()) > 0.98


def test_compression_keeps_what_can_be_kept():
    data = torch.randn((6, 2), dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    kspace = (data @ torch.randn((2, 99), dtype=torch.complex128, generator=torch.Generator().manual_seed(1))).reshape(
        6, 9, 11
    )
    virtual, matrix = compress_coils(kspace, 2)
    assert virtual.shape == (2, 9, 11)
    assert torch.allclose(matrix @ matrix.mH, torch.eye(2, dtype=torch.complex128), atol=1e-12)
    assert torch.allclose(torch.einsum("vc,vhw->chw", matrix.conj(), virtual), kspace)
    assert torch.allclose(root_sum_of_squares(virtual), root_sum_of_squares(kspace))
    one, _ = compress_coils(kspace, 1)
    strongest = torch.linalg.svdvals(kspace.flatten(1))[0]
    assert float(one.norm()) == pytest.approx(float(strongest))


BAD = [
    (lambda: espirit(torch.ones(2, 8, 8)), TypeError, "complex64"),
    (lambda: espirit(torch.ones(8, 8, dtype=torch.complex64)), ValueError, "coils, H, W"),
    (lambda: espirit(torch.eye(8, dtype=torch.complex64)[None]), ValueError, "not fully sampled"),
    (lambda: espirit(torch.ones(2, 8, 8, dtype=torch.complex64), kernel=9), ValueError, "kernel is 9"),
    (lambda: espirit(torch.ones(2, 8, 8, dtype=torch.complex64), calibration=1), ValueError, "width is 1"),
    (lambda: compress_coils(torch.ones(2, 8, 8, dtype=torch.complex64), 3), ValueError, "num_coils is 3"),
]


@pytest.mark.parametrize(("make", "error", "sentence"), BAD)
def test_bad_input(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


@pytest.mark.skipif(HEAD is None or not HEAD.is_file(), reason="the measured head slice is not here")
def test_maps_of_a_measured_head():
    kspace = torch.from_numpy(np.load(HEAD))
    images = centred_ifft2(kspace)
    maps = espirit(kspace)
    inside = root_sum_of_squares(maps) > 0
    assert 0.5 < float(inside.float().mean()) < 0.8
    assert unexplained(maps, images, inside) < 0.07
    assert unexplained(maps, images) < unexplained(sum_of_squares_maps(kspace), images)
    mask = torch.zeros(256)
    mask[::3] = 1
    mask[116:140] = 1
    operator = CartesianMRI(mask, maps)
    recovered = operator.pseudo_inverse(kspace[None] * mask, 1e-3, rtol=1e-4)[0]
    reference = (maps.conj() * images).sum(0)
    assert float((torch.complex(recovered[0], recovered[1]) - reference).norm() / reference.norm()) < 0.12
