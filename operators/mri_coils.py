"""Receive coils of MRI: sensitivity maps from calibration data, coil compression, coil combination."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invsolve.operators.mri_fourier import centred_ifft2

# Complex numbers of the per-pixel coil matrices that are held at a time, 64 MB in single precision.
_CHUNK = 1 << 23


def root_sum_of_squares(images: Tensor, dim: int = -3) -> Tensor:
    """sqrt(sum over the coils of |image|^2): coil images (..., coils, H, W) -> real (..., H, W)."""
    norm: Tensor = torch.linalg.vector_norm(images, dim=dim)
    return norm


def compress_coils(kspace: Tensor, num_coils: int) -> tuple[Tensor, Tensor]:
    """The `num_coils` orthonormal combinations of the coils that hold most of the energy.

    The singular value decomposition of the (coils, samples) matrix, as in Huang et al. 2008, "A software channel
    compression technique for faster reconstruction with many channels". White noise stays white. The same matrix
    compresses coil maps: `torch.einsum("vc,chw->vhw", matrix, maps)`.

    Args:
        kspace: (coils, ...), complex; entries that were not measured are 0.
        num_coils: virtual coils to keep, 1 to coils.

    Returns:
        The compressed k-space (num_coils, ...) and the matrix (num_coils, coils) that made it, with orthonormal rows,
        strongest combination first.
    """
    _need_complex(kspace)
    if not 1 <= num_coils <= len(kspace):
        raise ValueError(f"num_coils is {num_coils}; expected 1 to {len(kspace)}, the number of coils.")
    flat = kspace.flatten(1)
    # The coils are few: eigenvectors of their covariance, in float64, are the left singular vectors.
    covariance = (flat @ flat.mH).to(torch.complex128)
    matrix = torch.linalg.eigh(covariance)[1].flip(-1)[:, :num_coils].mH.to(kspace.dtype)
    return (matrix @ flat).reshape(num_coils, *kspace.shape[1:]), matrix


def sum_of_squares_maps(kspace: Tensor, *, calibration: int = 24, threshold: float = 0.05) -> Tensor:
    """Coil maps as low-resolution coil images over their root sum of squares.

    Crude beside `espirit` (the phase of the object stays in the maps), but needs nothing tuned.

    Args:
        kspace: centred k-space (coils, H, W), complex, fully sampled in the middle.
        calibration: width of the middle square that is used; a Hann window ends it softly.
        threshold: pixels whose low-resolution image is below this share of its maximum get maps of 0.

    Returns:
        Maps (coils, H, W) with sum |S|^2 = 1, or 0 outside the object.
    """
    rows, columns = _calibration_window(kspace, calibration)
    low = torch.zeros_like(kspace)
    window = [
        torch.hann_window(part.stop - part.start + 2, periodic=False, dtype=kspace.real.dtype, device=kspace.device)
        for part in (rows, columns)
    ]
    low[:, rows, columns] = kspace[:, rows, columns] * torch.outer(window[0][1:-1], window[1][1:-1])
    images = centred_ifft2(low)
    norm = root_sum_of_squares(images)
    return torch.where(norm > threshold * norm.max(), images / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0)


@torch.no_grad()
def espirit(
    kspace: Tensor,
    *,
    calibration: int | tuple[int, int] = 24,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
) -> Tensor:
    """Coil maps from the fully sampled middle of k-space (ESPIRiT, one set of maps).

    Uecker et al. 2014, "ESPIRiT - an eigenvalue approach to autocalibrating parallel MRI". Patches of k-space, all
    coils together, lie in a small subspace. That projecting every patch onto it changes nothing is, pixel by pixel,
    an eigenvalue equation G(r) S(r) = S(r) between the coils. The convolution that projects and averages all patches
    is summed up in k-space, so that G takes one small transform per pair of coils.

    The phase of the maps is free at each pixel: it is chosen so that the strongest combination of the coils is real
    and positive.

    Args:
        kspace: centred k-space (coils, H, W), or (B, coils, H, W) slice by slice; complex.
        calibration: width of the middle square of k-space that is used, or (rows, columns) of a rectangle.
        kernel: width of the patches.
        threshold: singular values of the patches below this share of the largest count as noise.
        crop: pixels whose eigenvalue is below this lie outside the object; their maps are 0. 0 keeps all.

    Returns:
        Maps, same shape as `kspace`, sum |S|^2 = 1 inside the object.

    Raises:
        TypeError: k-space that is not complex.
        ValueError: a calibration region that does not fit or is not fully sampled.
    """
    if kspace.ndim == 4:
        return torch.stack(
            [espirit(k, calibration=calibration, kernel=kernel, threshold=threshold, crop=crop) for k in kspace]
        )
    rows, columns = _calibration_window(kspace, calibration)
    if not 1 <= kernel <= min(rows.stop - rows.start, columns.stop - columns.start):
        raise ValueError(f"kernel is {kernel}; expected 1 to the width of the calibration region ({calibration}).")
    block = kspace[:, rows, columns]
    if bool((block == 0).all(0).any()):
        raise ValueError(
            f"the middle {block.shape[1]} x {block.shape[2]} of k-space is not fully sampled, so that coil maps "
            "cannot be estimated from it; choose a smaller calibration width or estimate from another scan."
        )
    kernels = _patch_kernels(block, kernel, threshold)
    coils, height, width = kspace.shape
    waves = [_waves(size, kernel, kspace) for size in (height, width)]
    along_columns = kernels @ waves[1].T  # (coils, coils, 2 kernel - 1, W)
    _, combination = compress_coils(block, 1)

    maps = torch.empty((height, width, coils), dtype=kspace.dtype, device=kspace.device)
    step = max(1, _CHUNK // (coils * coils * width))
    for start in range(0, height, step):
        pairs = torch.einsum("re,abec->rcab", waves[0][start : start + step], along_columns)
        values, vectors = torch.linalg.eigh(pairs)  # ascending: the last one is the largest
        strongest = vectors[..., -1]
        phase = torch.sgn(strongest @ combination[0])
        inside = values[..., -1] > crop
        maps[start : start + step] = strongest * (phase.conj() * inside)[..., None]
    return maps.movedim(-1, 0).contiguous()


def _patch_kernels(block: Tensor, kernel: int, threshold: float) -> Tensor:
    """g with y_a[k] = sum_b,e g_ab[e] y_b[k + e] for k-space y in the subspace of the patches of `block`.

    Returns:
        (coils, coils, 2 kernel - 1, 2 kernel - 1); offset e lies at index e + kernel - 1.
    """
    coils = len(block)
    patches = block.unfold(1, kernel, 1).unfold(2, kernel, 1)  # (coils, rows, columns, kernel, kernel)
    matrix = patches.permute(1, 2, 0, 3, 4).reshape(-1, coils * kernel * kernel)
    _, values, rows = torch.linalg.svd(matrix, full_matrices=False)
    rows = rows[values > threshold * values[0]]
    projection = (rows.mT @ rows.conj()).reshape(coils, kernel, kernel, coils, kernel, kernel)
    total = block.new_zeros((coils, coils, 2 * kernel - 1, 2 * kernel - 1))
    for i in range(kernel):
        for j in range(kernel):
            place = (..., slice(kernel - 1 - i, 2 * kernel - 1 - i), slice(kernel - 1 - j, 2 * kernel - 1 - j))
            total[place] += projection[:, i, j]
    return total / kernel**2


def _waves(size: int, kernel: int, like: Tensor) -> Tensor:
    """exp(-2 pi i e r / size) for centred pixels r and offsets |e| < kernel, shape (size, 2 kernel - 1)."""
    pixels = torch.arange(size, dtype=torch.float64) - size // 2
    offsets = torch.arange(1 - kernel, kernel, dtype=torch.float64)
    angles = -2 * math.pi / size * torch.outer(pixels, offsets)
    return torch.polar(torch.ones_like(angles), angles).to(like.device, like.dtype)


def _calibration_window(kspace: Tensor, width: int | tuple[int, int]) -> tuple[slice, slice]:
    """The middle rows and columns, as many as there are."""
    _need_complex(kspace)
    if kspace.ndim != 3:
        raise ValueError(f"k-space has shape {tuple(kspace.shape)}; expected (coils, H, W).")
    widths = (width, width) if isinstance(width, int) else width
    if min(widths) < 2:
        raise ValueError(f"the calibration width is {width}; expected at least 2, usually 24.")
    slices = []
    for size, wanted in zip(kspace.shape[1:], widths, strict=True):
        count = min(wanted, size)
        first = size // 2 - count // 2
        slices.append(slice(first, first + count))
    return slices[0], slices[1]


def _need_complex(kspace: Tensor) -> None:
    if not kspace.is_complex():
        raise TypeError(
            f"k-space has type {kspace.dtype}; expected complex64 or complex128. Pairs of real numbers in the last "
            "dimension become complex by torch.view_as_complex."
        )
