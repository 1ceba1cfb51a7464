"""Preconditioners for `LinearOperator.preconditioner`: maps r -> M r with M close to (A^H A + damping I)^-1.

Each takes what is known of A^H A and the damping, shape (B, 1, ..., 1), and gives a Hermitian positive definite map
that acts on every batch entry by itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invsolve.operators.cg import Map


def diagonal(values: Tensor, damping: Tensor) -> Map:
    """Jacobi: 1 / (values + damping), with the diagonal of A^H A, >= 0, shape (*in_shape) or one that broadcasts."""
    inverse = 1 / (values + damping)
    return lambda r: inverse * r


def circulant(power: Tensor, lengths: tuple[int, int], damping: Tensor) -> Map:
    """The inverse of a circulant A^H A on a canvas of `lengths`, which may be larger than the image: cut to the image.

    A margin keeps the wrap-around of the canvas away from the image, so that images with borders are served as well.

    Args:
        power: eigenvalues of A^H A on the canvas, >= 0, shape (1 or C, lengths[0], lengths[1] // 2 + 1).
        lengths: size of the canvas, at least that of the image.
        damping: > 0.
    """
    inverse = _inverse(power, damping)

    def apply(r: Tensor) -> Tensor:
        smoothed: Tensor = torch.fft.irfft2(torch.fft.rfft2(r, s=lengths).mul_(inverse), s=lengths)
        return smoothed[..., : r.shape[-2], : r.shape[-1]]

    return apply


def cosine(power: Tensor, scale: Tensor, damping: Tensor) -> Map:
    """D^-1 C^T (power + damping)^-1 C D^-1 with the orthonormal cosine transform C (DCT-II) of both image axes.

    C diagonalises a filter that is symmetric about both axes on an image mirrored with its edge pixels; D^2 takes up
    what another border does to the diagonal of A^H A.

    Args:
        power: eigenvalues of A^H A in the basis of C, >= 0, shape (1 or C, H, W).
        scale: D, > 0, shape (H, W).
        damping: > 0.
    """
    height, width = power.shape[-2:]
    inverse = _packed(_packed(_inverse(power, damping), -1, signed=False), -2, signed=False)
    outer = 1 / scale
    rows, columns = (_twiddles(size, power) for size in (height, width))

    def apply(r: Tensor) -> Tensor:
        coefficients = _cosines(_cosines(r * outer, columns, -1), rows, -2)
        return _from_cosines(_from_cosines(coefficients * inverse, rows, height, -2), columns, width, -1) * outer

    return apply


def separable(rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], damping: Tensor) -> Map:
    """The inverse where A filters the rows and the columns of an image one after the other, A x = R x C^T: exact.

    Args:
        rows: eigenvalues of R^T R, >= 0, shape (1 or C, H), and its eigenvectors (1 or C, H, H).
        columns: the same of C^T C, for W.
        damping: > 0.
    """
    (row_values, u), (column_values, v) = rows, columns
    inverse = _inverse(row_values[:, :, None] * column_values[:, None, :], damping)
    return lambda r: u @ (u.mT @ r @ v * inverse) @ v.mT


def low_rank(vectors: Tensor, values: Tensor, damping: Tensor) -> Map:
    """The inverse on the span of `vectors`, and that of the smallest of `values` on all the rest.

    Frangella, Tropp and Udell 2021 ("Randomized Nystrom preconditioning", equation 1.3), up to a constant factor. For
    operators with few large singular values.

    Args:
        vectors: orthonormal columns, shape (n, r), n = prod(in_shape); see `nystrom`.
        values: their eigenvalues of A^H A, >= 0, shape (r,).
        damping: > 0.
    """
    shift = damping.reshape(-1, 1)
    rest = values.min() + shift
    change = rest / (values + shift) - 1

    def apply(r: Tensor) -> Tensor:
        flat = r.flatten(1)
        return (flat + (flat @ vectors * change) @ vectors.mT).reshape(r.shape)

    return apply


@torch.no_grad()
def nystrom(normal: Map, like: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors (n, rank) and eigenvalues (rank,) of A^H A from `rank` products with random images.

    Algorithm 2.1 of Frangella, Tropp and Udell 2021; good where the eigenvalues fall fast, and below them otherwise.

    Args:
        normal: x -> A^H A x on batches.
        like: an image (1, *in_shape), for shape, type and device.
        rank: number of eigenvectors.
        generator: source of randomness, on the CPU.
    """
    size = like[0].numel()
    probes = torch.randn((size, rank), generator=generator, dtype=torch.float64).to(like.device, like.dtype)
    probes = torch.linalg.qr(probes)[0]
    images = normal(probes.mT.reshape(rank, *like.shape[1:])).flatten(1).mT
    # A small shift makes the Cholesky factor exist in round-off; it is taken off the eigenvalues again.
    shift = torch.finfo(like.dtype).eps * torch.linalg.matrix_norm(images)
    images = images + shift * probes
    gram = probes.mT @ images
    factor = torch.linalg.cholesky((gram + gram.mT) / 2)
    vectors, roots, _ = torch.linalg.svd(torch.linalg.solve_triangular(factor, images.mT, upper=False).mT, False)
    return vectors, (roots**2 - shift).clamp_min(0)


def _inverse(power: Tensor, damping: Tensor) -> Tensor:
    # Without damping, a preconditioner leaves the null space as it is rather than blowing it up.
    return 1 / (power + damping.clamp_min(torch.finfo(power.dtype).eps * power.max()))


# The DCT-II of a real sequence from one real FFT of half its spectrum (Makhoul 1980): with v the even samples followed
# by the odd ones backwards, and U_k = exp(-i pi k / 2n) FFT(v)_k, coefficient k is Re U_k and coefficient n - k is
# -Im U_k. Coefficients stay in this packed order, (Re U_0 ... Re U_h, Im U_0 ... Im U_h), h = n // 2, between the two
# transforms; Im U_0 is 0, and for even n the middle one is there twice.


def _twiddles(size: int, like: Tensor) -> Tensor:
    angles = -math.pi / (2 * size) * torch.arange(size // 2 + 1, dtype=torch.float64)
    kind = torch.complex128 if like.dtype == torch.float64 else torch.complex64
    return torch.polar(torch.ones_like(angles), angles).to(like.device, kind) / math.sqrt(size)


def _packed(coefficients: Tensor, dim: int, *, signed: bool = True) -> Tensor:
    """Natural order -> packed order."""
    size = coefficients.shape[dim]
    first = torch.arange(size // 2 + 1, device=coefficients.device)
    second = coefficients.index_select(dim, (size - first) % size)
    return torch.cat([coefficients.index_select(dim, first), -second if signed else second], dim)


def _cosines(x: Tensor, twiddles: Tensor, dim: int) -> Tensor:
    x = x.transpose(dim, -1)
    spectrum = torch.fft.rfft(torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)) * twiddles
    return torch.cat([spectrum.real, spectrum.imag], -1).transpose(dim, -1)


def _from_cosines(packed: Tensor, twiddles: Tensor, size: int, dim: int) -> Tensor:
    real, imaginary = packed.transpose(dim, -1).chunk(2, -1)
    spectrum = torch.complex(real.contiguous(), imaginary.contiguous()) * (twiddles.conj() * size)
    v = torch.fft.irfft(spectrum, n=size)
    x = torch.empty_like(v)
    half = (size + 1) // 2
    x[..., ::2] = v[..., :half]
    x[..., 1::2] = v[..., half:].flip(-1)
    return x.transpose(dim, -1)
