"""Operators without spatial structure: identity, masks, grey value, dense matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator, Operator, derived
from invsolve.operators.cg import per_entry
from invsolve.operators.isometry import Isometry
from invsolve.operators.registry import register


@register("identity", lambda: [Identity((2, 3, 5))])
class Identity(Isometry):
    """The image itself is measured: y = x, so that solving means denoising.

    ::

        x  1 2 3      y  1 2 3
           4 5 6         4 5 6

    Args:
        in_shape: image shape, for example (C, H, W).
    """

    row_gram = 1.0
    pixelwise = True
    reduced_precision = True
    capturable = True
    solve_method = "closed form (diagonal)"

    def __init__(self, in_shape: Sequence[int]) -> None:
        super().__init__(in_shape, in_shape)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y


def _mask_examples() -> list[Operator]:
    generator = torch.Generator().manual_seed(0)
    return [
        Mask(torch.rand((5, 7), generator=generator) > 0.6, (2, 5, 7), dtype=torch.float64),
        Mask(torch.rand((3, 4, 6), generator=generator), (3, 4, 6), dtype=torch.float64),
    ]


@register("mask", _mask_examples)
class Mask(LinearOperator):
    """Inpainting: pixels are kept or lost, y = mask * x, lost pixels read 0.

    ::

        x  1 2 3      mask  1 0 1      y  1 0 3
           4 5 6            1 1 0         4 5 0

    Args:
        mask: 1 (or True) where a pixel is known and 0 where it is lost; values between weigh. Shape (H, W), shared by
            the channels, or (C, H, W).
        in_shape: image shape; (1, H, W) or the mask's own if None.
        dtype: floating-point type of the stored mask.

    Raises:
        ValueError: the mask does not fit the image, holds nothing or is not finite.
    """

    pixelwise = True
    reduced_precision = True
    capturable = True
    solve_method = "closed form (diagonal)"
    mask: Tensor

    def __init__(
        self,
        mask: Tensor | np.ndarray,
        in_shape: Sequence[int] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        values = torch.as_tensor(mask).to(dtype)
        if values.ndim == 2:
            values = values[None]
        shape = tuple(in_shape) if in_shape is not None else tuple(values.shape)
        if values.ndim != 3 or values.shape[-2:] != shape[-2:] or values.shape[0] not in (1, shape[0]):
            raise ValueError(f"the mask has shape {tuple(torch.as_tensor(mask).shape)}, the image {shape}.")
        if not bool(torch.isfinite(values).all()):
            raise ValueError("the mask holds NaN or Inf.")
        if not bool((values != 0).any()):
            raise ValueError("the mask keeps no pixel at all; 1 means known and 0 lost.")
        super().__init__(shape, shape)
        self.register_buffer("mask", values)

    @property
    def num_measured(self) -> int:
        return int((self.mask != 0).expand(self.in_shape).sum())

    def restrict(self, y: Tensor) -> Tensor:
        return torch.where(self.mask != 0, y, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.mask * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.mask * y

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        return float(self.mask.abs().max())

    def solve(
        self,
        rhs: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        return rhs / (self.mask**2 + per_entry(damping, rhs))


def random_mask(shape: tuple[int, int], share_lost: float, generator: torch.Generator | None = None) -> Tensor:
    """Keep-mask that loses exactly round(share_lost * H * W) pixels, drawn without replacement.

    Args:
        shape: (H, W).
        share_lost: share of lost pixels, 0 <= share < 1; 0.7 is the usual benchmark.
        generator: source of randomness.

    Returns:
        float32 tensor (H, W), 1 = known.
    """
    if not 0 <= share_lost < 1:
        raise ValueError(f"share_lost is {share_lost}; expected 0 <= share < 1.")
    pixels = shape[0] * shape[1]
    keep = torch.ones(pixels)
    keep[torch.randperm(pixels, generator=generator)[: round(share_lost * pixels)]] = 0
    return keep.reshape(shape)


def box_mask(shape: tuple[int, int], top: int, left: int, height: int, width: int) -> Tensor:
    """Keep-mask with one lost rectangle.

    Returns:
        float32 tensor (H, W), 1 = known.
    """
    if height < 1 or width < 1 or not (0 <= top <= shape[0] - height and 0 <= left <= shape[1] - width):
        raise ValueError(f"a {height} x {width} box at ({top}, {left}) does not lie inside {shape[0]} x {shape[1]}.")
    keep = torch.ones(shape)
    keep[top : top + height, left : left + width] = 0
    return keep


@register("grayscale", lambda: [Grayscale((3, 4, 5), dtype=torch.float64)])
class Grayscale(LinearOperator):
    """Luma of a colour image, (3, H, W) -> (1, H, W); solving it colours a grey photograph.

    ::

        x  red 1 0   green 0 1   blue 0 0      y  0.299 0.587

    Args:
        in_shape: (3, H, W).
        weights: of red, green and blue; ITU-R BT.601 by default, as image files define grey.
        dtype: floating-point type of the stored weights.
    """

    pixelwise = True
    solve_method = "closed form (orthogonal rows)"
    weights: Tensor

    def __init__(
        self,
        in_shape: Sequence[int],
        weights: Sequence[float] = (0.299, 0.587, 0.114),
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(in_shape) != 3 or in_shape[0] != len(weights):
            raise ValueError(f"Grayscale takes images ({len(weights)}, H, W), got {tuple(in_shape)}.")
        super().__init__(in_shape, (1, *in_shape[1:]))
        self.register_buffer("weights", torch.tensor(weights, dtype=dtype)[:, None, None])
        self.row_gram = float((self.weights**2).sum())

    def forward(self, x: Tensor) -> Tensor:
        return (self.weights * x).sum(-3, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.weights * y

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        return math.sqrt(self.row_gram or 0.0)


def _matrix_examples() -> list[Operator]:
    generator = torch.Generator().manual_seed(1)
    return [
        MatrixOperator(torch.randn((7, 24), generator=generator, dtype=torch.float64), (2, 3, 4)),
        MatrixOperator(torch.randn((15, 12), generator=generator, dtype=torch.float64), (1, 3, 4)),
    ]


@register("matrix", _matrix_examples)
class MatrixOperator(LinearOperator):
    """A dense real matrix times the flattened image; for tests and small problems.

    ::

        matrix  1 0 0 2      x  1 2      y  1 + 2 * 4      9
                0 1 1 0         3 4         2 + 3       =  5

    Args:
        matrix: shape (m, n) with n = prod(in_shape), in the order C, H, W.
        in_shape: image shape; (n,) if None.
    """

    solve_method = "closed form (SVD)"
    matrix: Tensor

    def __init__(self, matrix: Tensor | np.ndarray, in_shape: Sequence[int] | None = None) -> None:
        values = torch.as_tensor(matrix)
        if values.ndim != 2 or not values.is_floating_point():
            raise ValueError(f"expected a real matrix (m, n), got {values.dtype} of shape {tuple(values.shape)}.")
        shape = tuple(in_shape) if in_shape is not None else (values.shape[1],)
        if math.prod(shape) != values.shape[1]:
            raise ValueError(f"a matrix with {values.shape[1]} columns does not take images of shape {shape}.")
        super().__init__(shape, (values.shape[0],))
        self.register_buffer("matrix", values)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix).reshape(len(y), *self.in_shape)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Thin (U, s, V^T), computed once per device and type."""
        return derived(self, "svd", self.matrix, lambda: tuple(torch.linalg.svd(self.matrix, full_matrices=False)))

    def solve(
        self,
        rhs: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        _, s, vt = self.svd()
        flat = rhs.flatten(1)
        shift = per_entry(damping, flat)
        coefficients = flat @ vt.T
        if len(s) == self.matrix.shape[1]:
            solution = (coefficients / (s**2 + shift)) @ vt
        else:  # the null space of A is damped alone
            solution = (flat - (coefficients * (s**2 / (s**2 + shift))) @ vt) / shift
        return solution.reshape(rhs.shape)

    def pseudo_inverse(
        self,
        y: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        u, s, vt = self.svd()
        x = (y @ u * (s / (s**2 + per_entry(damping, y)))) @ vt
        return x.reshape(len(y), *self.in_shape)
