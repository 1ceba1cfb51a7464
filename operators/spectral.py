"""Functions of an operator's singular values, where its structure gives them cheaply.

With the decomposition A = U S V^H, samplers such as DDRM treat every singular direction by a rule of its own. They need
no singular vectors for that, only V f(S) V^H x on images and V g(S) U^H y on measurements, and both follow from
functions of A A^H, which each operator below diagonalises in its own way::

    V f(S) V^H x = f(0) x + A^H h(A A^H) A x,   h(l) = (f(sqrt l) - f(0)) / l
    V g(S) U^H y = A^H h(A A^H) y,              h(l) = g(sqrt l) / sqrt l

A further operator takes part by registering its `row_spectrum`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from invsolve.operators.algebra import Composed, Scaled
from invsolve.operators.base import LinearOperator
from invsolve.operators.basic import Mask, MatrixOperator
from invsolve.operators.blur import Blur
from invsolve.operators.mri import CartesianMRI
from invsolve.operators.resize import DecimatedBlur, Downsample

Response = Callable[[Tensor], Tensor]
"""A real function of the singular values, elementwise."""


@dataclass(frozen=True)
class RowSpectrum:
    """A A^H = W diag(values) W^H with W unitary.

    Attributes:
        values: eigenvalues >= 0, real, a tensor that broadcasts against `into(y)`.
        into: y -> W^H y, on batches.
        out: c -> W c, its inverse.
        analyse: x -> W^H A x, where that is cheaper than `into` after A; otherwise None.
        synthesise: c -> A^H W c, likewise.
    """

    values: Tensor
    into: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    analyse: Callable[[Tensor], Tensor] | None = None
    synthesise: Callable[[Tensor], Tensor] | None = None


def filter_image(operator: LinearOperator, x: Tensor, response: Response, cutoff: float = 0.0) -> Tensor:
    """V f(S) V^H x, with f(0) on the directions that the operator does not see.

    Args:
        operator: A.
        x: images, shape (B, *in_shape).
        response: f.
        cutoff: singular values up to this one count as 0.

    Returns:
        Images, shape (B, *in_shape).

    Raises:
        ValueError: the operator's singular values are not to be had cheaply.
    """
    return filter_sum(operator, [(x, response)], [], cutoff)


def filter_data(operator: LinearOperator, y: Tensor, response: Response, cutoff: float = 0.0) -> Tensor:
    """V g(S) U^H y, nothing coming from singular values up to `cutoff`; g(s) = 1/s makes it the pseudo-inverse.

    Args:
        operator: A.
        y: measurements, shape (B, *out_shape).
        response: g, only asked about singular values above `cutoff`.
        cutoff: singular values up to this one count as 0.

    Returns:
        Images, shape (B, *in_shape).

    Raises:
        ValueError: as `filter_image`.
    """
    return filter_sum(operator, [], [(y, response)], cutoff)


def filter_sum(
    operator: LinearOperator,
    images: Sequence[tuple[Tensor, Response]],
    data: Sequence[tuple[Tensor, Response]],
    cutoff: float = 0.0,
) -> Tensor:
    """Sum of V f(S) V^H x over `images` (x, f) and of V g(S) U^H y over `data` (y, g), with one way back for all.

    Args:
        operator: A.
        images: batches as for `filter_image`, with their responses.
        data: batches as for `filter_data`, with theirs.
        cutoff: singular values up to this one count as 0.

    Raises:
        ValueError: as `filter_image`.
    """
    like = images[0][0] if images else data[0][0]
    rows = row_spectrum(operator, like.real if like.is_complex() else like)
    singular = rows.values.clamp_min(0).sqrt()
    # Round-off makes tiny singular values out of zeros; dividing by those would amplify nothing but round-off.
    floor = 10 * torch.finfo(singular.dtype).eps ** 0.5 * singular.max()
    seen = singular > torch.clamp(floor, min=cutoff)
    safe = torch.where(seen, singular, torch.ones_like(singular))
    share = outside = singular.new_zeros(())
    for x, response in images:
        unseen = response(singular.new_zeros(()))
        weights = torch.where(seen, (response(safe) - unseen) / safe**2, torch.zeros_like(singular))
        share = share + weights * (rows.analyse(x) if rows.analyse else rows.into(operator(x)))
        outside = outside + unseen * x
    for y, response in data:
        share = share + torch.where(seen, response(safe) / safe, torch.zeros_like(singular)) * rows.into(y)
    return outside + (rows.synthesise(share) if rows.synthesise else operator.adjoint(rows.out(share)))


def has_spectrum(operator: LinearOperator) -> bool:
    """Whether `filter_image` and `filter_data` can serve this operator."""
    try:
        row_spectrum(operator, torch.zeros(1, dtype=operator.dtype, device=operator.device))
    except NoSpectrumError:
        return False
    return True


class NoSpectrumError(ValueError):
    """The singular values of this operator are not to be had cheaply."""


@singledispatch
def row_spectrum(operator: LinearOperator, like: Tensor) -> RowSpectrum:
    """The eigenvalues of A A^H and the transform to its eigenvectors, in the real type and on the device of `like`.

    Raises:
        NoSpectrumError: no structure to get them from.
    """
    if operator.row_gram is None:
        raise NoSpectrumError(
            f"the singular values of {type(operator).__name__} are not available in closed form; they are for masks, "
            "matrices, grey values, single-coil Cartesian MRI, downsampling, circular blur (also downsampled) and "
            "operators with orthogonal rows. "
            "Methods that solve by conjugate gradients (pigdm, dds, diffpir, mmps) take any linear operator."
        )
    return RowSpectrum(_scalar(operator.row_gram, like), _same, _same)


@row_spectrum.register
def _(operator: Mask, like: Tensor) -> RowSpectrum:
    return RowSpectrum(operator.mask.to(like.dtype) ** 2, _same, _same)


@row_spectrum.register
def _(operator: MatrixOperator, like: Tensor) -> RowSpectrum:
    u, s, _ = operator.svd()
    return RowSpectrum(s**2, lambda y: y @ u, lambda c: c @ u.T)


@row_spectrum.register
def _(operator: Blur, like: Tensor) -> RowSpectrum:
    if operator.boundary != "circular":
        raise NoSpectrumError(
            f"the singular values of a blur with boundary {operator.boundary!r} are not available in closed form; "
            "describe it with boundary='circular', or take a method that solves by conjugate gradients "
            "(pigdm, dds, diffpir, mmps)."
        )
    spectrum, inverse = operator.spectrum(like), _inverse_fft(operator)
    return RowSpectrum(
        spectrum.real**2 + spectrum.imag**2,
        torch.fft.rfft2,
        inverse,
        lambda x: spectrum * torch.fft.rfft2(x),
        lambda c: inverse(spectrum.conj() * c),
    )


@row_spectrum.register
def _(operator: DecimatedBlur, like: Tensor) -> RowSpectrum:
    return RowSpectrum(operator._spectrum(like), torch.fft.rfft2, _inverse_fft(operator))


@row_spectrum.register
def _(operator: Downsample, like: Tensor) -> RowSpectrum:
    if operator.row_gram is not None:
        return RowSpectrum(_scalar(operator.row_gram, like), _same, _same)
    if not operator._separable:
        raise NoSpectrumError(
            f"bicubic downsampling to {operator.out_shape} is too large for a dense cosine transform; take a method "
            "that solves by conjugate gradients (pigdm, dds, diffpir, mmps)."
        )
    (row_values, rows), (column_values, columns) = operator._gram(1, like), operator._gram(2, like)
    return RowSpectrum(
        row_values[:, None] * column_values, lambda y: rows.mT @ y @ columns, lambda c: rows @ c @ columns.mT
    )


@row_spectrum.register
def _(operator: CartesianMRI, like: Tensor) -> RowSpectrum:
    if operator.coil_maps is not None or operator.mask.ndim != 2:
        raise NoSpectrumError(
            "the singular values of Cartesian MRI are available for one coil and one mask only; take a method that "
            "solves by conjugate gradients (pigdm, dds, diffpir, mmps)."
        )
    return RowSpectrum(operator.mask.to(like.dtype) ** 2, _same, _same)


@row_spectrum.register
def _(operator: Scaled, like: Tensor) -> RowSpectrum:
    rows = row_spectrum(operator.operator, like)
    return RowSpectrum(
        operator.factor**2 * rows.values,
        rows.into,
        rows.out,
        _scaled(operator.factor, rows.analyse),
        _scaled(operator.factor, rows.synthesise),
    )


@row_spectrum.register
def _(operator: Composed, like: Tensor) -> RowSpectrum:
    gram = operator.inner.row_gram
    if gram is None:
        raise NoSpectrumError(
            f"the singular values of {type(operator.outer).__name__} @ {type(operator.inner).__name__} are not "
            "available in closed form; take a method that solves by conjugate gradients (pigdm, dds, diffpir, mmps)."
        )
    rows = row_spectrum(operator.outer, like)
    return RowSpectrum(gram * rows.values, rows.into, rows.out)


def _scaled(factor: float, function: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor] | None:
    return (lambda x: factor * function(x)) if function is not None else None


def _same(y: Tensor) -> Tensor:
    return y


def _scalar(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def _inverse_fft(operator: LinearOperator) -> Callable[[Tensor], Tensor]:
    return lambda c: torch.fft.irfft2(c, s=operator.out_shape[-2:])
