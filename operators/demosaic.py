"""Demosaicing: the raw picture behind a Bayer colour filter array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator, Operator
from invsolve.operators.cg import per_entry
from invsolve.operators.registry import register

Pattern = Literal["RGGB", "BGGR", "GRBG", "GBRG"]


def _demosaic_examples() -> list[Operator]:
    patterns: tuple[Pattern, ...] = get_args(Pattern)
    return [
        Demosaic(shape, pattern, dtype=torch.float64)
        for pattern, shape in zip(patterns, ((3, 5, 7), (3, 4, 3), (3, 3, 6), (3, 2, 5)), strict=True)
    ]


@register("demosaic", _demosaic_examples)
class Demosaic(LinearOperator):
    """One colour per pixel, as a camera's sensor records it: (3, H, W) -> (1, H, W).

    ::

        "RGGB":   x  red, green and blue       y  R G R G
                     at every pixel               G B G B
                                                  R G R G

    The pattern names the colours of the top left 2 x 2 pixels, row by row. Each measured value is one value of the
    image: A A^T = I, and A^T A is a mask, so that everything is in closed form. Values are linear sensor values: a
    camera's tone curve comes after demosaicing.

    Args:
        in_shape: image shape (3, H, W): red, green, blue; H and W may be odd.
        pattern: "RGGB", "BGGR", "GRBG" or "GBRG".
        dtype: floating-point type of the stored array.

    Raises:
        ValueError: not a colour image, or an unknown pattern.
    """

    row_gram = 1.0
    pixelwise = True
    reduced_precision = True
    solve_method = "closed form (diagonal)"
    filters: Tensor

    def __init__(
        self, in_shape: Sequence[int], pattern: Pattern = "RGGB", *, dtype: torch.dtype = torch.float32
    ) -> None:
        shape = tuple(int(n) for n in in_shape)
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(f"Demosaic takes colour images (3, height, width), got in_shape {shape}.")
        if pattern not in get_args(Pattern):
            raise ValueError(f"unknown pattern {pattern!r}; expected one of {', '.join(get_args(Pattern))}.")
        super().__init__(shape, (1, *shape[1:]))
        self.pattern: Pattern = pattern
        filters = torch.zeros(shape, dtype=dtype)
        for position, colour in enumerate(pattern):
            filters["RGB".index(colour), position // 2 :: 2, position % 2 :: 2] = 1
        # Follows from the arguments, so it is no part of the state; a buffer all the same, to know type and device.
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return (self.filters * x).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        return self.filters * y

    def normal(self, x: Tensor) -> Tensor:
        return self.filters * x

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        return 1.0

    def solve(
        self,
        rhs: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        return rhs / (self.filters + per_entry(damping, rhs))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.pattern}"
