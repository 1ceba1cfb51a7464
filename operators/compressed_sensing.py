"""Compressed sensing: few random projections of the image, by a fast transform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator, Operator, derived
from invsolve.operators.registry import register

Transform = Literal["dct", "hadamard"]


def _compressed_examples() -> list[Operator]:
    return [
        CompressedSensing((2, 5, 6), 17, dtype=torch.float64),
        CompressedSensing((1, 7, 3), 21, generator=3, dtype=torch.float64),
        CompressedSensing((1, 1, 9), 4, generator=5, dtype=torch.float64),
        CompressedSensing((3, 4, 8), 31, "hadamard", generator=1, dtype=torch.float64),
    ]


@register("compressed-sensing", _compressed_examples)
class CompressedSensing(LinearOperator):
    """Random projections: signs flipped at random, an orthonormal transform, and a random part of its coefficients.

    ::

        x  1 2   signs  + -   ->   1 -2    transform    a b    keep 3     y  a c d
           3 4          + +        3  4  ----------->   c d   -------->

    The signs spread every image evenly over all coefficients, so that any few of them tell the same about it (a
    subsampled randomised transform; Do et al. 2012, "Fast and efficient compressive sensing using structurally random
    matrices"). Each channel is transformed by itself; the coefficients are drawn from those of all channels. The rows
    are orthonormal, A A^T = I, and every solve is in closed form. Cost: one transform, O(n log n).

    ==========  ======================================================================================
    "dct"       2-D cosine transform, images of any size
    "hadamard"  2-D Walsh-Hadamard transform (natural order): patterns of +1 and -1, as a single-pixel
                camera shows them; the sides must be powers of two
    ==========  ======================================================================================

    Args:
        in_shape: image shape (C, H, W).
        num_measurements: how many numbers are measured, 1 ... C * H * W.
        transform: see above.
        generator: source of the signs and of the kept coefficients, or a seed for one.
        dtype: floating-point type of the stored signs; computations follow the type of the images.

    Raises:
        ValueError: an image that is not (C, H, W), a number of measurements out of range, an unknown transform or one
            that does not fit the image.
    """

    row_gram = 1.0
    solve_method = "closed form (orthogonal rows)"
    signs: Tensor
    index: Tensor

    def __init__(
        self,
        in_shape: Sequence[int],
        num_measurements: int,
        transform: Transform = "dct",
        *,
        generator: torch.Generator | int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = tuple(int(n) for n in in_shape)
        if len(shape) != 3:
            raise ValueError(f"CompressedSensing takes images (channels, height, width), got in_shape {shape}.")
        size = math.prod(shape)
        if isinstance(num_measurements, bool) or not isinstance(num_measurements, int):
            raise ValueError(f"num_measurements is {num_measurements!r}; expected a whole number, not a share.")
        if not 1 <= num_measurements <= size:
            raise ValueError(f"num_measurements is {num_measurements}; expected 1 ... {size} for images {shape}.")
        if transform not in get_args(Transform):
            raise ValueError(f"unknown transform {transform!r}; expected one of {', '.join(get_args(Transform))}.")
        if transform == "hadamard" and any(side & (side - 1) for side in shape[1:]):
            raise ValueError(f'"hadamard" needs sides that are powers of two, got {shape[1]} x {shape[2]}; use "dct".')
        super().__init__(shape, (num_measurements,))
        self.transform: Transform = transform
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        coins = torch.randint(2, shape, generator=generator, device=generator.device)
        order = torch.randperm(size, generator=generator, device=generator.device)
        self.register_buffer("signs", (2 * coins - 1).to("cpu", dtype))
        self.register_buffer("index", order[:num_measurements].sort().values.cpu())

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return self._transformed(self.signs * x).flatten(1)[:, self.index]

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        coefficients = y.new_zeros((len(y), math.prod(self.in_shape))).index_copy(1, self.index, y)
        return self.signs * self._restored(coefficients.reshape(-1, *self.in_shape))

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        return 1.0

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.transform}"

    def _transformed(self, x: Tensor) -> Tensor:
        if self.transform == "hadamard":
            return self._hadamard(self._hadamard(x).mT).mT
        return self._cosine(self._cosine(x).mT).mT

    def _restored(self, x: Tensor) -> Tensor:
        """Inverse, and transpose, of `_transformed`."""
        if self.transform == "hadamard":
            return self._transformed(x)
        return self._inverse_cosine(self._inverse_cosine(x.mT).mT)

    def _hadamard(self, x: Tensor) -> Tensor:
        """Orthonormal Walsh-Hadamard transform along the last axis, as a Kronecker product of two small ones."""
        size = x.shape[-1]
        small = 1 << (size.bit_length() // 2)
        first, second = self._factor(size // small, x), self._factor(small, x)
        return (first @ x.reshape(*x.shape[:-1], size // small, small) @ second).reshape(x.shape)

    def _factor(self, size: int, like: Tensor) -> Tensor:
        return derived(self, f"factor {size}", like, lambda: _sylvester(size).to(like.device, like.dtype))

    def _cosine(self, x: Tensor) -> Tensor:
        """Orthonormal DCT-II along the last axis, by one real FFT of the same length (Makhoul 1980)."""
        size = x.shape[-1]
        folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
        half = torch.fft.rfft(folded) * self._phase(size, x)
        return torch.cat([half.real, -half.imag[..., 1 : (size + 1) // 2].flip(-1)], -1)

    def _inverse_cosine(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        # Coefficients k and size - k are real and (negative) imaginary part of one number; that of size is 0.
        mirrored = torch.nn.functional.pad(x[..., (size + 1) // 2 :].flip(-1), (1, 0))
        half = torch.complex(x[..., : size // 2 + 1], -mirrored[..., : size // 2 + 1])
        folded = torch.fft.irfft(half / self._phase(size, x), n=size)
        even = (size + 1) // 2
        pairs = torch.stack([folded[..., : size // 2], folded[..., even:].flip(-1)], -1).flatten(-2)
        return torch.cat([pairs, folded[..., size // 2 : even]], -1)

    def _phase(self, size: int, like: Tensor) -> Tensor:
        def make() -> Tensor:
            angle = torch.arange(size // 2 + 1, dtype=torch.float64) * (-math.pi / (2 * size))
            phase = torch.polar(torch.full_like(angle, math.sqrt(2 / size)), angle)
            phase[0] /= math.sqrt(2)
            return phase.to(like.device, torch.complex128 if like.dtype == torch.float64 else torch.complex64)

        return derived(self, f"phase {size}", like, make)


def _sylvester(size: int) -> Tensor:
    """Orthonormal Hadamard matrix of Sylvester's order, float64, for a power of two."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / math.sqrt(2)
    return matrix
