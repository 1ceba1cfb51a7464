"""Spatially varying blur: a kernel that changes across the image, as a sum of a few convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.operators.base import LinearOperator, Operator, derived
from invsolve.operators.borders import Boundary, extend, fast_length, fold
from invsolve.operators.kernels import finite_kernel
from invsolve.operators.registry import register


def _varying_examples() -> list[Operator]:
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    examples: list[Operator] = [
        SpatiallyVaryingBlur(random(3, 3, 4) / 6, random(3, 7, 6) - 0.3, (2, 7, 6), boundary, dtype=torch.float64)
        for boundary in get_args(Boundary)
    ]
    tiles = random(2, 3, 4, 3) / 6
    examples.append(SpatiallyVaryingBlur.from_tiles(tiles, (1, 8, 9), "reflect", dtype=torch.float64))
    examples.append(SpatiallyVaryingBlur.from_tiles(tiles, (2, 5, 7), "circular", rank=2, dtype=torch.float64))
    return examples


@register("varying-blur", _varying_examples)
class SpatiallyVaryingBlur(LinearOperator):
    """A blur whose kernel changes across the image: A x = sum_k h_k * (w_k . x).

    ::

        x  1 . . . 1       h_1 on the left, h_2 on      y  1 . . 1 1
           . . . . .       the right, mixed between        1 . . 1 1

    Weight maps w_k (what is multiplied with the image) and kernels h_k (what it is then convolved with) describe any
    such blur: a pixel's light is spread by sum_k w_k(pixel) h_k, its own point spread function. Maps may be negative,
    as those of eigen-kernels are. `from_tiles` makes them from kernels measured on a grid. Kernel centre and
    boundaries are those of `Blur`; beyond the border the image and its maps go on together.

    A product costs K + 1 transforms of the image, whatever the size of the kernels. Solved by conjugate gradients
    without a preconditioner: the pixels' mean spectrum helps where kernels are alike and hurts where directions differ.

    Args:
        kernels: shape (K, kh, kw).
        weights: shape (K, H, W).
        in_shape: image shape (C, H, W); all channels are blurred alike.
        boundary: as in `Blur`.
        dtype: floating-point type of the stored arrays; computations follow the type of the images.

    Raises:
        ValueError: kernels or maps that are not finite, do not belong together or do not fit the image, or an unknown
            boundary.
    """

    kernels: Tensor
    weights: Tensor

    def __init__(
        self,
        kernels: Tensor | np.ndarray,
        weights: Tensor | np.ndarray,
        in_shape: Sequence[int],
        boundary: Boundary = "reflect",
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = _checked_shape(in_shape)
        values, maps = finite_kernel(kernels).to(dtype), torch.as_tensor(weights).to(dtype)
        if values.ndim != 3:
            raise ValueError(f"the kernels have shape {tuple(values.shape)}; expected (K, kh, kw).")
        if tuple(maps.shape) != (len(values), *shape[1:]):
            raise ValueError(
                f"the weight maps have shape {tuple(maps.shape)}; {len(values)} kernels on images {shape} need "
                f"({len(values)}, {shape[1]}, {shape[2]})."
            )
        if not bool(torch.isfinite(maps).all()):
            raise ValueError("the weight maps hold NaN or Inf.")
        if boundary not in get_args(Boundary):
            raise ValueError(f"unknown boundary {boundary!r}; expected one of {', '.join(get_args(Boundary))}.")
        size = (int(values.shape[1]), int(values.shape[2]))
        if size[0] > shape[1] or size[1] > shape[2]:
            raise ValueError(
                f"the kernels are {size[0]} x {size[1]}, larger than the image of {shape[1]} x {shape[2]}; "
                "crop the kernels or enlarge the image."
            )
        lost = (size[0] - 1, size[1] - 1) if boundary == "valid" else (0, 0)
        super().__init__(shape, (shape[0], shape[1] - lost[0], shape[2] - lost[1]))
        self.boundary: Boundary = boundary
        self.register_buffer("kernels", values)
        self.register_buffer("weights", maps)

        # Output pixel i needs the inputs i - before ... i + after; a transform must be so long that what it wraps
        # around lands outside the output.
        self._after = (size[0] // 2, size[1] // 2)
        self._before = (size[0] - 1 - self._after[0], size[1] - 1 - self._after[1])
        self._extends = boundary in ("reflect", "replicate")
        spare = {"circular": (0, 0), "valid": (0, 0), "zero": self._after}.get(boundary, (size[0] - 1, size[1] - 1))
        lengths = (shape[1] + spare[0], shape[2] + spare[1])
        self._lengths = lengths if boundary == "circular" else (fast_length(lengths[0]), fast_length(lengths[1]))

    @classmethod
    def from_tiles(
        cls,
        kernels: Tensor | np.ndarray,
        in_shape: Sequence[int],
        boundary: Boundary = "reflect",
        *,
        rank: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> SpatiallyVaryingBlur:
        """The blur whose kernel at the centre of each tile of the image is the given one.

        Between the centres the kernels fade into one another along a raised cosine; the weights of all tiles sum to 1
        at every pixel. Beyond the outermost centres the kernel stays as it is.

        Args:
            kernels: shape (rows, cols, kh, kw), one kernel per tile of a regular grid over the image.
            in_shape: image shape (C, H, W), with at least as many pixels as tiles along each axis.
            boundary: as in `Blur`.
            rank: keep this many eigen-kernels, the best approximation of the tiles' kernels in least squares (by their
                SVD): the cost falls from rows * cols + 1 transforms to rank + 1. None keeps all tiles as they are.
            dtype: as above.

        Raises:
            ValueError: kernels of another shape, more tiles than pixels, a rank out of range.
        """
        shape, tiles = _checked_shape(in_shape), finite_kernel(kernels)
        if tiles.ndim != 4:
            raise ValueError(f"the tiles' kernels have shape {tuple(tiles.shape)}; expected (rows, cols, kh, kw).")
        rows, columns = tiles.shape[:2]
        if rows > shape[1] or columns > shape[2]:
            raise ValueError(
                f"a grid of {rows} x {columns} tiles does not fit an image of {shape[1]} x {shape[2]} pixels."
            )
        along_y, along_x = _fading(shape[1], rows), _fading(shape[2], columns)
        maps = (along_y[:, None, :, None] * along_x[None, :, None, :]).flatten(0, 1)
        flat = tiles.flatten(0, 1).double()
        if rank is not None:
            largest = min(len(flat), flat[0].numel())
            if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= largest:
                raise ValueError(f"rank is {rank!r}; expected a whole number 1 ... {largest} for these tiles.")
            u, s, vt = torch.linalg.svd(flat.flatten(1), full_matrices=False)
            maps = torch.tensordot((u * s)[:, :rank].T, maps, 1)
            flat = vt[:rank].reshape(rank, *flat.shape[1:])
        return cls(flat, maps, shape, boundary, dtype=dtype)

    def kernel_at(self, row: int, column: int) -> Tensor:
        """Point spread function of one pixel, shape (kh, kw)."""
        kernel: Tensor = torch.tensordot(self.weights[:, row, column], self.kernels, 1)
        return kernel

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        y: Tensor = torch.fft.irfft2(self._mixed(x), s=self._lengths)
        return y[..., : self.out_shape[1], : self.out_shape[2]].contiguous()

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        return self._unmixed(torch.fft.rfft2(y, s=self._lengths))

    def normal(self, x: Tensor) -> Tensor:
        if self.boundary != "circular":
            return super().normal(x)
        self.check_input(x)
        return self._unmixed(self._mixed(x))  # nothing is cropped between: one transform there and back less

    def extra_repr(self) -> str:
        size = " x ".join(str(n) for n in self.kernels.shape)
        return f"{super().extra_repr()}, {size} kernels, {self.boundary}"

    def _mixed(self, x: Tensor) -> Tensor:
        """Transform of the blurred image, as long as `_lengths`."""
        x = self._extended(x)
        total: Tensor | None = None
        for spectrum, weight in zip(self._spectra(x), self._maps(x), strict=True):
            part = torch.fft.rfft2(x * weight, s=self._lengths).mul_(spectrum)
            total = part if total is None else total.add_(part)
        assert total is not None  # there is a kernel: finite_kernel refuses an empty array
        return total

    def _unmixed(self, transform: Tensor) -> Tensor:
        """Transpose of `_mixed` behind the transform."""
        total: Tensor | None = None
        maps = self._maps(transform.real)
        for spectrum, weight in zip(self._spectra(transform.real), maps, strict=True):
            part = torch.fft.irfft2(transform * spectrum.conj(), s=self._lengths)
            part = part[..., : weight.shape[0], : weight.shape[1]] * weight
            total = part if total is None else total.add_(part)
        assert total is not None
        if not self._extends:
            return total
        return fold(total, (self.in_shape[1], self.in_shape[2]), self._before, self._after, self.boundary)

    def _extended(self, x: Tensor) -> Tensor:
        return extend(x, self._before, self._after, self.boundary) if self._extends else x

    def _maps(self, like: Tensor) -> Tensor:
        """Weight maps on the extended image, (K, H', W')."""

        def make() -> Tensor:
            return self._extended(self.weights.detach()[None])[0].to(like.device, like.dtype)

        return derived(self, "maps", like, make)

    def _spectra(self, like: Tensor) -> Tensor:
        """Transforms of the kernels, placed so that output pixel 0 lands on index 0, for images like `like`."""

        def make() -> Tensor:
            # In float64 and on the CPU, once: some accelerators have no float64, and the kernels are small.
            kernels = self.kernels.detach().to("cpu", torch.float64)
            canvas = F.pad(kernels, (0, self._lengths[1] - kernels.shape[2], 0, self._lengths[0] - kernels.shape[1]))
            # Extended (or with nothing assumed) output 0 is the first place where the whole kernel lies on the input.
            centre = self._after
            if self._extends or self.boundary == "valid":
                centre = kernels.shape[1] - 1, kernels.shape[2] - 1
            spectra: Tensor = torch.fft.rfft2(torch.roll(canvas, (-centre[0], -centre[1]), (1, 2)))
            return spectra.to(like.device, torch.complex128 if like.dtype == torch.float64 else torch.complex64)

        return derived(self, "spectra", like, make)


def _checked_shape(in_shape: Sequence[int]) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in in_shape)
    if len(shape) != 3:
        raise ValueError(f"SpatiallyVaryingBlur takes images (channels, height, width), got in_shape {shape}.")
    return shape


def _fading(size: int, count: int) -> Tensor:
    """Weights of `count` tiles along an axis of `size` pixels, float64 (count, size), columns sum to 1."""
    position = (torch.arange(size, dtype=torch.float64) + 0.5) * count / size - 0.5  # tile centres: 0, 1, ...
    position = position.clamp(0, count - 1)
    distance = (position - torch.arange(count, dtype=torch.float64)[:, None]).abs().clamp_max(1)
    return 0.5 + 0.5 * torch.cos(math.pi * distance)
