"""Downsampling: super-resolution operators whose solves are exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from invsolve.operators.algebra import Composed
from invsolve.operators.base import LinearOperator, Operator, derived
from invsolve.operators.blur import Blur
from invsolve.operators.cg import per_entry
from invsolve.operators.registry import register

Filter = Literal["bicubic", "box", "none"]

# Output rows or columns up to which the bicubic solve holds one dense cosine matrix per axis: 144 MB each in float32,
# no more than the filter's own matrices, and cheaper than conjugate gradients at any such size.
_LARGEST_GRAM = 6000


def _downsample_examples() -> list[Operator]:
    generator = torch.Generator().manual_seed(3)

    def kernel(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) / (shape[-1] * shape[-2]) * 2

    examples: list[Operator] = []
    filters: tuple[Filter, ...] = get_args(Filter)
    for name in filters:
        examples += [
            Downsample(2, (2, 10, 6), name, dtype=torch.float64),
            Downsample(3, (1, 9, 15), name, dtype=torch.float64),
            Downsample(4, (1, 12, 4), name, dtype=torch.float64),
        ]
    for name in filters[1:]:
        examples += [
            Downsample(2, (1, 6, 10), name, dtype=torch.float64) @ Blur(kernel(3, 4), (1, 6, 10), dtype=torch.float64),
            Downsample(3, (2, 9, 6), name, dtype=torch.float64) @ Blur(kernel(2, 4, 5), (2, 9, 6), dtype=torch.float64),
        ]
    examples.append(
        Downsample(2, (1, 6, 10), "none", dtype=torch.float64)
        @ Blur(kernel(3, 4), (1, 6, 10), "reflect", dtype=torch.float64)
    )
    return examples


@register("downsample", _downsample_examples)
class Downsample(LinearOperator):
    """Fewer pixels: smoothing and decimation by a whole factor.

    ::

        box, factor 2:   x  1 3 5 7      y  2 6        none, factor 2:  y  1 5
                            1 3 5 7

    ==========  =====================================================================================================
    "bicubic"   the cubic of Keys 1981 (a = -0.5) stretched by the factor, 4 * factor taps per axis with sum 1, borders
                mirrored including the edge pixel: MATLAB's imresize, and the x4 task of the FFHQ benchmarks
    "box"       average of each factor x factor block, as a camera pixel collects light
    "none"      every factor-th pixel, beginning with the first; with a blur before it, `Downsample(k, shape, "none") @
                Blur(kernel, shape)`, this is the classical degradation model
    ==========  =====================================================================================================

    All three solve in closed form, and so do "box" and "none" behind a circular `Blur`. Bicubic A A^T is not a multiple
    of the identity (singular values 0.121 ... 0.250 for factor 4); its solve diagonalises it with a cosine transform
    per axis, and falls back to conjugate gradients beyond 1500 output rows or columns.

    Args:
        factor: whole number >= 1.
        in_shape: shape (C, H, W) of the large image, H and W multiples of the factor.
        filter: see above.
        dtype: floating-point type of the stored taps; computations follow the type of the images.

    Raises:
        ValueError: a factor below 1, a size that the factor does not divide, or an unknown filter.
    """

    capturable = True
    weights: Tensor

    def __init__(
        self,
        factor: int,
        in_shape: Sequence[int],
        filter: Filter = "bicubic",
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if isinstance(factor, bool) or int(factor) != factor or factor < 1:
            raise ValueError(f"factor is {factor!r}; expected a whole number >= 1.")
        if filter not in get_args(Filter):
            raise ValueError(f"unknown filter {filter!r}; expected one of {', '.join(get_args(Filter))}.")
        factor, shape = int(factor), tuple(int(n) for n in in_shape)
        if len(shape) != 3:
            raise ValueError(f"Downsample takes images (channels, height, width), got in_shape {shape}.")
        if shape[1] % factor or shape[2] % factor:
            raise ValueError(
                f"an image of {shape[1]} x {shape[2]} pixels does not shrink by a factor of {factor}; "
                f"crop or pad it to {_nearest(shape[1], factor)} x {_nearest(shape[2], factor)}."
            )
        super().__init__(shape, (shape[0], shape[1] // factor, shape[2] // factor))
        self.factor, self.filter = factor, filter
        # Follows from the arguments, so it is no part of the state; a buffer all the same, to know type and device.
        self.register_buffer("weights", _taps(factor, filter).to(dtype), persistent=False)
        if filter == "bicubic":
            self._separable = max(self.out_shape[1:]) <= _LARGEST_GRAM
            if self._separable:
                self.solve_method = "closed form (separable)"
        else:
            self.row_gram = 1.0 if filter == "none" else 1 / factor**2
            self.solve_method = "closed form (orthogonal rows)"

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        if self.filter == "none":
            return x[..., :: self.factor, :: self.factor].clone()
        if self.filter == "box":
            channels, height, width = self.out_shape
            return x.reshape(len(x), channels, height, self.factor, width, self.factor).mean((3, 5))
        return self._matrix(1, x) @ x @ self._matrix(2, x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        if self.filter == "none":
            x = y.new_zeros((len(y), *self.in_shape))
            x[..., :: self.factor, :: self.factor] = y
            return x
        if self.filter == "box":
            y = y / self.factor**2
            return y.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)
        return self._matrix(1, y).mT @ (y @ self._matrix(2, y))

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        if self.row_gram is not None:
            return math.sqrt(self.row_gram)
        if not self._separable:
            return super().norm(iterations, rtol, device=device)
        (rows, _), (columns, _) = self._gram(1, self.weights), self._gram(2, self.weights)
        return math.sqrt(float(rows.max() * columns.max()))

    def solve(
        self,
        rhs: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        self.check_input(rhs)
        if self.row_gram is not None or not self._separable:
            return super().solve(rhs, damping, x0=x0, rtol=rtol, max_iter=max_iter)
        # A is a product of one matrix per axis, so the eigenvectors of A A^T are too: Woodbury in their basis.
        shift = per_entry(damping, rhs)
        (row_values, rows), (column_values, columns) = self._gram(1, rhs), self._gram(2, rhs)
        coefficients = rows.mT @ self.forward(rhs) @ columns
        coefficients = coefficients / (row_values[:, None] * column_values + shift)
        return (rhs - self.adjoint(rows @ coefficients @ columns.mT)) / shift

    def pseudo_inverse(
        self,
        y: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        if self.row_gram is not None or not self._separable:
            return super().pseudo_inverse(y, damping, x0=x0, rtol=rtol, max_iter=max_iter)
        (row_values, rows), (column_values, columns) = self._gram(1, y), self._gram(2, y)
        coefficients = (rows.mT @ y @ columns) / (row_values[:, None] * column_values + per_entry(damping, y))
        return self.adjoint(rows @ coefficients @ columns.mT)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, factor {self.factor}, {self.filter}"

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        if isinstance(other, Blur) and other.boundary == "circular" and self.filter in ("none", "box"):
            return DecimatedBlur(self, other)
        return super().__matmul__(other)

    def _matrix(self, axis: int, like: Tensor) -> Tensor:
        """Bicubic filter along rows (1) or columns (2): shape (size / factor, size), in the type of `like`."""
        return derived(self, f"matrix {axis}", like, lambda: self._make_matrix(axis).to(like.device, like.dtype))

    def _make_matrix(self, axis: int) -> Tensor:
        size = self.in_shape[axis]
        taps = self.weights.detach().to("cpu", torch.float64)
        first = self.factor * torch.arange(size // self.factor) - _taps_before(self.factor)
        index = (first[:, None] + torch.arange(len(taps))) % (2 * size)
        index = torch.minimum(index, 2 * size - 1 - index)  # ... 2 1 0 0 1 2 ..., as often as a small image needs it
        return torch.zeros((len(first), size), dtype=torch.float64).scatter_add_(1, index, taps.expand(index.shape))

    def _gram(self, axis: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues (n,) and eigenvectors (n, n) of the Gram matrix of one axis, in the type of `like`."""

        def make() -> tuple[Tensor, Tensor]:
            # A symmetric filter on an image mirrored with its edge pixel maps each cosine of the DCT-II to one of the
            # small grid: the DCT-II of that grid diagonalises A A^T.
            matrix = self._make_matrix(axis)
            count = len(matrix)
            order = torch.arange(count, dtype=torch.float64)
            vectors = torch.cos(math.pi / count * torch.outer(order + 0.5, order)) * math.sqrt(2 / count)
            vectors[:, 0] /= math.sqrt(2)
            values = (matrix.mT @ vectors).square().sum(0)
            return values.to(like.device, like.dtype), vectors.to(like.device, like.dtype)

        return derived(self, f"gram {axis}", like, make)


class DecimatedBlur(Composed):
    """Circular blur, then "box" or "none" decimation: `Downsample(k, shape, "none") @ Blur(kernel, shape)`.

    Moving the image by `factor` pixels moves the measurement by one, so that A A^H is circulant on the small grid: its
    spectrum is the mean of |h|^2 over the factor^2 frequencies that decimation maps onto one another (Zhao et al. 2016,
    "Fast single image super-resolution using a new analytical solution for l2-l2 problems"). With the Woodbury
    identity a solve costs one forward, one adjoint and one small transform.
    """

    outer: Downsample
    inner: Blur

    def __init__(self, outer: Downsample, inner_operator: Blur) -> None:
        super().__init__(outer, inner_operator)
        self.solve_method = "closed form (decimated circulant)"

    def solve(
        self,
        rhs: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        shift = per_entry(damping, rhs)
        small = torch.fft.rfft2(self.forward(rhs)) / (self._spectrum(rhs) + shift)
        return (rhs - self.adjoint(torch.fft.irfft2(small, s=self.out_shape[1:]))) / shift

    def pseudo_inverse(
        self,
        y: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        small = torch.fft.rfft2(y) / (self._spectrum(y) + per_entry(damping, y))
        return self.adjoint(torch.fft.irfft2(small, s=self.out_shape[1:]))

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        return math.sqrt(float(self._spectrum(self.inner.kernel).max()))

    def _spectrum(self, like: Tensor) -> Tensor:
        """Eigenvalues of A A^H: the transform of its response to one bright pixel, shape (C, h, w // 2 + 1)."""

        def make() -> Tensor:
            # In float64 and on the CPU, as the kernel's own transform: round-off must stay far below the damping.
            pixel = torch.zeros((1, *self.out_shape), dtype=torch.float64)
            pixel[..., 0, 0] = 1
            gram: Tensor = torch.fft.rfft2(self.forward(self.adjoint(pixel)))[0].real.clamp_min(0)
            return gram.to(like.device, like.dtype)

        return derived(self, "gram", like, make)


def _taps(factor: int, name: Filter) -> Tensor:
    """Filter weights along one axis in float64, sum 1."""
    if name == "none":
        return torch.ones(1, dtype=torch.float64)
    if name == "box":
        return torch.full((factor,), 1 / factor, dtype=torch.float64)
    position = torch.arange(4 * factor, dtype=torch.float64) - _taps_before(factor)
    distance = ((position - (factor - 1) / 2) / factor).abs()
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    taps = torch.where(distance <= 1, near, torch.where(distance < 2, far, 0))
    return taps / taps.sum()


def _taps_before(factor: int) -> int:
    """How many bicubic taps of an output pixel lie before its block of `factor` input pixels."""
    return (3 * factor) // 2


def _nearest(size: int, factor: int) -> str:
    """The multiples of `factor` next to `size`."""
    below, above = size // factor * factor, -(-size // factor) * factor
    return str(size) if below == above else f"{below} or {above}" if below else str(above)
