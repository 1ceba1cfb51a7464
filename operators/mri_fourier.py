"""The centred orthonormal Fourier transform of MRI, and what can be told from k-space alone."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

_SPACE = (-2, -1)


class KSpaceWarning(UserWarning):
    """K-space that looks as if it were not stored the way this package reads it."""


def centred_fft2(image: Tensor) -> Tensor:
    """Image (..., H, W) to k-space with zero frequency at (H // 2, W // 2); keeps the sum of squares."""
    shifted = torch.fft.ifftshift(image, dim=_SPACE)
    kspace: Tensor = torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=_SPACE)
    return kspace


def centred_ifft2(kspace: Tensor) -> Tensor:
    """The inverse of `centred_fft2`, which is also its adjoint."""
    shifted = torch.fft.ifftshift(kspace, dim=_SPACE)
    image: Tensor = torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=_SPACE)
    return image


def check_kspace(kspace: Tensor) -> None:
    """Refuse data that cannot be k-space of this package; warn where it is probably stored another way.

    Meant for data from files, once: `invsolve.problems.mri` calls it. Noise, or k-space of a strange object, passes
    with a warning at most.

    Args:
        kspace: (..., coils, H, W), complex.

    Raises:
        TypeError: not complex.
        ValueError: fewer than three dimensions, NaN, Inf, or nothing but zeros.

    Warns:
        KSpaceWarning: most of the energy of the low frequencies lies around the corner (not shifted), or elsewhere.
    """
    if not kspace.is_complex():
        raise TypeError(
            f"k-space has type {kspace.dtype}; expected complex64 or complex128. Pairs of real numbers in the last "
            "dimension become complex by torch.view_as_complex."
        )
    if kspace.ndim < 3:
        raise ValueError(f"k-space has shape {tuple(kspace.shape)}; expected (..., coils, H, W), also for one coil.")
    if not bool(torch.isfinite(torch.view_as_real(kspace)).all()):
        raise ValueError("k-space holds NaN or Inf.")
    power = kspace.abs().square().double().flatten(0, -3).sum(0)
    if not bool(power.any()):
        raise ValueError("k-space holds nothing but zeros.")
    height, width = power.shape
    half = max(1, height // 16), max(1, width // 16)
    middle = _energy_around(power, height // 2, width // 2, half)
    corner = _energy_around(power, 0, 0, half)
    if corner > max(4 * middle, 0.1 * float(power.sum())):
        warnings.warn(
            f"k-space has its energy at index (0, 0), {corner / max(middle, 1e-300):.3g} times that at the centre "
            f"({height // 2}, {width // 2}): it is probably not centred; pass torch.fft.fftshift(k, dim=(-2, -1)).",
            KSpaceWarning,
            stacklevel=2,
        )
        return
    row, column = divmod(int(power.argmax()), width)
    if abs(row - height // 2) > max(2, height // 8) or abs(column - width // 2) > max(2, width // 8):
        warnings.warn(
            f"the strongest entry of k-space lies at ({row}, {column}), far from the centre ({height // 2}, "
            f"{width // 2}): an image, or k-space centred elsewhere, may have been passed.",
            KSpaceWarning,
            stacklevel=2,
        )


def _energy_around(power: Tensor, row: int, column: int, half: tuple[int, int]) -> float:
    """Sum of `power` within `half` of a place, across the borders."""
    rolled = torch.roll(power, (half[0] - row, half[1] - column), (0, 1))
    return float(rolled[: 2 * half[0] + 1, : 2 * half[1] + 1].sum())
