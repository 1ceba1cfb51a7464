"""Blur: convolution with a known kernel, for five boundary conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.operators.base import LinearOperator, Operator, derived
from invsolve.operators.borders import Boundary, axis_matrix, extend, fast_length, fold
from invsolve.operators.cg import Map, per_entry
from invsolve.operators.kernels import finite_kernel
from invsolve.operators.precondition import circulant, cosine, separable
from invsolve.operators.registry import register

Factors = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]

# Pixels that the preconditioner's canvas is larger than the image; more changes nothing.
_MARGIN = 16

# Length of an image's side up to which the matrices of both axes are decomposed: a second of work at the first solve.
_LARGEST_DENSE = 1024

# Singular values of a kernel beside the first, up to which it counts as a column times a row: float32 round-off.
_SEPARABLE = 1e-6

# Values of one batch from which channels are filtered one by one, to keep the spectra small beside the image.
_LARGE = 1 << 23


def _blur_examples() -> list[Operator]:
    generator = torch.Generator().manual_seed(2)

    def kernel(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) / (shape[-1] * shape[-2]) * 2

    examples: list[Operator] = []
    for boundary in get_args(Boundary):
        examples += [
            Blur(kernel(3, 5), (2, 7, 6), boundary, dtype=torch.float64),
            Blur(kernel(2, 4, 3), (2, 5, 8), boundary, dtype=torch.float64),
            Blur(kernel(5, 6), (1, 5, 6), boundary, dtype=torch.float64),
        ]
    return examples


@register("blur", _blur_examples)
class Blur(LinearOperator):
    """Convolution of every channel with a known kernel.

    ::

        x  . . . . .      kernel  1 2      y  . . . . .
           . . 1 . .              3 4         . 1 2 . .
           . . . . .                          . 3 4 . .

    A true convolution (a single bright pixel shows the kernel as it is, not mirrored), with the convention of
    `scipy.ndimage.convolve`: the kernel's centre is the element k // 2, also for even sizes. The kernel is applied as
    given; `check_kernel` brings its sum to 1.

    What lies beyond the border, for a row a b c d:

    =============  ================  ===============================================================
    "circular"     c d | abcd | a b  the image repeats; the only boundary whose solve is closed-form
    "zero"         0 0 | abcd | 0 0  black
    "reflect"      c b | abcd | c b  mirrored without the edge pixel (torch "reflect", SciPy "mirror")
    "replicate"    a a | abcd | d d  the edge pixel goes on (SciPy "nearest")
    "valid"                          nothing is assumed: only pixels whose whole neighbourhood is in the
                                     image are measured, (H - kh + 1, W - kw + 1) of them
    =============  ================  ===============================================================

    A photograph of a larger scene is best described by "valid"; the FFHQ benchmarks use "reflect".
    The kernel's transform is kept: make a new operator for another kernel rather than changing `kernel` in place.

    Args:
        kernel: shape (kh, kw), one for all channels, or (C, kh, kw), one for each.
        in_shape: image shape (C, H, W).
        boundary: see above.
        dtype: floating-point type of the stored kernel; computations follow the type of the images.

    Raises:
        ValueError: an unusable kernel, one that is larger than the image or does not fit its channels, or an unknown
            boundary.
    """

    capturable = True
    kernel: Tensor

    def __init__(
        self,
        kernel: Tensor | np.ndarray,
        in_shape: Sequence[int],
        boundary: Boundary = "circular",
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        values = finite_kernel(kernel).to(dtype)
        shape = tuple(int(n) for n in in_shape)
        if len(shape) != 3:
            raise ValueError(f"Blur takes images (channels, height, width), got in_shape {shape}.")
        if values.ndim not in (2, 3):
            raise ValueError(f"the kernel has shape {tuple(values.shape)}; expected (kh, kw) or (channels, kh, kw).")
        if values.ndim == 3 and values.shape[0] not in (1, shape[0]):
            raise ValueError(
                f"{values.shape[0]} kernels for an image with {shape[0]} channels; pass one, or one per channel."
            )
        if boundary not in get_args(Boundary):
            raise ValueError(f"unknown boundary {boundary!r}; expected one of {', '.join(get_args(Boundary))}.")
        size = (int(values.shape[-2]), int(values.shape[-1]))
        if size[0] > shape[1] or size[1] > shape[2]:
            raise ValueError(
                f"the kernel is {size[0]} x {size[1]}, larger than the image of {shape[1]} x {shape[2]}; "
                "crop the kernel or enlarge the image."
            )
        lost = (size[0] - 1, size[1] - 1) if boundary == "valid" else (0, 0)
        super().__init__(shape, (shape[0], shape[1] - lost[0], shape[2] - lost[1]))
        self.boundary: Boundary = boundary
        self.register_buffer("kernel", values)
        if boundary == "circular":
            self.solve_method = "closed form (circulant)"

        # Output pixel i needs the inputs i - before ... i + after. A transform of length n convolves modulo n:
        # n must be so long that what wraps around lands outside the output.
        self._after = (size[0] // 2, size[1] // 2)
        self._before = (size[0] - 1 - self._after[0], size[1] - 1 - self._after[1])
        self._padded = boundary in ("reflect", "replicate")
        height, width = shape[1:]
        if boundary == "circular":
            self._lengths = height, width
        elif boundary == "zero":
            self._lengths = fast_length(height + self._after[0]), fast_length(width + self._after[1])
        elif boundary == "valid":
            self._lengths = fast_length(height), fast_length(width)
        else:
            self._lengths = fast_length(height + size[0] - 1), fast_length(width + size[1] - 1)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return self._by_channel(x, self._forward)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        return self._by_channel(y, self._adjoint)

    def normal(self, x: Tensor) -> Tensor:
        if self.boundary != "circular":
            return super().normal(x)
        self.check_input(x)
        return self._by_channel(x, lambda part, pick: self._transformed(part, pick(self._power(part))))

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
        shift = per_entry(damping, rhs)
        if self.boundary != "circular":
            if self._factors(shift) is not None:
                x0 = None  # the inverse is at hand: a start would save nothing and cost a product
            return super().solve(rhs, damping, x0=x0, rtol=rtol, max_iter=max_iter)
        return self._by_channel(rhs, lambda part, pick: self._transformed(part, 1 / (pick(self._power(part)) + shift)))

    def pseudo_inverse(
        self,
        y: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        if self.boundary != "circular":
            return super().pseudo_inverse(y, damping, x0=x0, rtol=rtol, max_iter=max_iter)
        self.check_output(y)
        shift = per_entry(damping, y)

        def invert(part: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
            return self._transformed(part, pick(self.spectrum(part)).conj() / (pick(self._power(part)) + shift))

        return self._by_channel(y, invert)

    def preconditioner(self, damping: Tensor) -> Map | None:
        """The exact inverse for separable kernels, such as Gaussians along the axes.

        For others an inverse on a canvas with a margin, for "zero" and "valid", or by cosines, if the kernel is
        symmetric.
        """
        if self.boundary == "circular":
            return None  # solved in closed form
        factors = self._factors(damping)
        if factors is not None:
            return separable(*factors, damping)
        if self.boundary in ("zero", "valid"):
            lengths = self._canvas()
            power = derived(self, "canvas power", damping, lambda: self._make_power(damping, lengths))
            return circulant(power[..., : lengths[1] // 2 + 1], lengths, damping)
        mirrored = derived(self, "mirrored", damping, lambda: self._make_mirrored(damping))
        return None if mirrored is None else cosine(*mirrored, damping)

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        if self.boundary != "circular":
            return super().norm(iterations, rtol, device=device)
        return float(self._power(self.kernel).max().sqrt())

    def extra_repr(self) -> str:
        size = " x ".join(str(n) for n in self.kernel.shape)
        return f"{super().extra_repr()}, {size} kernel, {self.boundary}"

    def _forward(self, x: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        if self._padded:
            x = extend(x, self._before, self._after, self.boundary)
        blurred = self._transformed(x, pick(self.spectrum(x)))
        return blurred[..., : self.out_shape[1], : self.out_shape[2]].contiguous()

    def _adjoint(self, y: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        x = self._transformed(y, pick(self.spectrum(y)).conj())
        if self._padded:
            return fold(x, (self.in_shape[1], self.in_shape[2]), self._before, self._after, self.boundary)
        return x[..., : self.in_shape[1], : self.in_shape[2]].contiguous()

    def _transformed(self, x: Tensor, factor: Tensor) -> Tensor:
        """Multiplication by `factor` in the Fourier domain."""
        image: Tensor = torch.fft.irfft2(torch.fft.rfft2(x, s=self._lengths).mul_(factor), s=self._lengths)
        return image

    def _by_channel(self, x: Tensor, function: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]) -> Tensor:
        """`function(x, pick)`, channel by channel if x is large; `pick` takes the channel's part of a (1 or C, ...)."""
        if x.numel() < _LARGE or x.shape[1] == 1:
            return function(x, lambda spectra: spectra)

        def pick_for(channel: int) -> Callable[[Tensor], Tensor]:
            return lambda spectra: spectra if len(spectra) == 1 else spectra[channel : channel + 1]

        return torch.cat([function(x[:, c : c + 1], pick_for(c)) for c in range(x.shape[1])], dim=1)

    def spectrum(self, like: Tensor) -> Tensor:
        """Transform of the kernel, placed so that output pixel 0 lands on index 0, for images like `like`.

        Returns:
            Complex tensor (1 or C, n, m // 2 + 1) for transforms of lengths (n, m), on the device of `like`.
        """
        return derived(self, "spectrum", like, lambda: self._make_spectrum(like))

    def _make_spectrum(self, like: Tensor) -> Tensor:
        # In float64 and on the CPU, once: some accelerators have no float64, and the kernel is small.
        kernel, canvas = self._placed(self._lengths)
        # With padding (or nothing assumed) output 0 is the first place where the whole kernel lies on the input.
        centre = self._after
        if self._padded or self.boundary == "valid":
            centre = kernel.shape[1] - 1, kernel.shape[2] - 1
        spectrum: Tensor = torch.fft.rfft2(torch.roll(canvas, (-centre[0], -centre[1]), (1, 2)))
        return spectrum.to(like.device, torch.complex128 if like.dtype == torch.float64 else torch.complex64)

    def _placed(self, lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The kernel (1 or C, kh, kw) and a canvas (1 or C, *lengths) that begins with it, in float64 on the CPU."""
        kernel = self.kernel.to("cpu", torch.float64)
        kernel = kernel if kernel.ndim == 3 else kernel[None]
        rows, columns = lengths[0] - kernel.shape[1], lengths[1] - kernel.shape[2]
        return kernel, F.pad(kernel, (0, columns, 0, rows))

    def _canvas(self) -> tuple[int, int]:
        height, width = (
            max(fast_length(size + _MARGIN), length)
            for size, length in zip(self.in_shape[1:], self._lengths, strict=True)
        )
        return height, width

    def _make_power(self, like: Tensor, lengths: tuple[int, int]) -> Tensor:
        """|spectrum|^2 on a canvas of `lengths`, shape (1 or C, *lengths)."""
        _, canvas = self._placed(lengths)
        power: Tensor = torch.fft.fft2(canvas).abs().square()
        return power.to(like.device, like.dtype)

    def _factors(self, like: Tensor) -> Factors | None:
        return derived(self, "factors", like, lambda: self._make_factors(like))

    def _make_factors(self, like: Tensor) -> Factors | None:
        """For `separable`; None where the kernel is not one, or the image too large for the decompositions."""
        if max(self.in_shape[1:]) > _LARGEST_DENSE:
            return None
        kernel, _ = self._placed((self.in_shape[1], self.in_shape[2]))
        u, s, vt = torch.linalg.svd(kernel, full_matrices=False)
        if bool((s[:, 1:] > _SEPARABLE * s[:, :1]).any()):
            return None
        factors = []
        for taps, size in ((u[..., 0] * s[:, :1], self.in_shape[1]), (vt[:, 0], self.in_shape[2])):
            matrix = axis_matrix(taps, size, self.boundary)
            values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
            factors.append((values.clamp_min(0).to(like.device, like.dtype), vectors.to(like.device, like.dtype)))
        return factors[0], factors[1]

    def _make_mirrored(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """For `cosine`, the power at the frequencies of the cosines and the scale; None without the symmetry."""
        kernel, _ = self._placed((self.in_shape[1], self.in_shape[2]))
        symmetric = all(torch.allclose(kernel, kernel.flip(dim), rtol=0, atol=1e-6) for dim in (1, 2))
        if not symmetric or any(size % 2 == 0 for size in kernel.shape[1:]) or self.boundary == "circular":
            return None
        height, width = self.in_shape[1:]
        power = self._make_power(like, (2 * height, 2 * width))[:, :height, :width]
        rows, columns = (
            _border_scale(kernel.mean(0).sum(2 - dim), self.in_shape[dim], self.boundary) for dim in (1, 2)
        )
        return power, torch.outer(rows, columns).to(like.device, like.dtype)

    def _power(self, like: Tensor) -> Tensor:
        """|spectrum|^2, the eigenvalues of A^H A for the circular boundary."""

        def make() -> Tensor:
            spectrum = self.spectrum(like)
            return spectrum.real**2 + spectrum.imag**2

        return derived(self, "power", like, make)


def _border_scale(taps: Tensor, size: int, boundary: Boundary) -> Tensor:
    """How much more a pixel at the border of one axis tells than one inside: column norms of A, (size,), 1 inside."""
    short = min(size, 4 * len(taps) + 1)
    matrix = axis_matrix(taps, short, boundary)
    scale = matrix.norm(dim=0)
    scale = (scale / scale[short // 2]).clamp_min(1e-3)
    half = short // 2
    return torch.cat([scale[:half], scale.new_ones(size - short), scale[half:]])
