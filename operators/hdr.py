"""Clipping: an over-exposed photograph of a scene with a high dynamic range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invsolve.operators.base import Operator
from invsolve.operators.registry import register


def check_range(data_range: tuple[float, float]) -> tuple[float, float]:
    """`data_range` as two numbers (low, high), the values of black and white; ValueError if it is none."""
    low, high = (float(value) for value in data_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"data_range is {tuple(data_range)}; expected finite (low, high) with low < high.")
    return low, high


@register("hdr", lambda: [HDR((2, 3, 5)), HDR((1, 4, 3), 1.5, (0.0, 0.8))])
class HDR(Operator):
    """Clipping: y = clip(scale * x, low, high), what is too bright or too dark is lost.

    ::

        y  high |     ____        with scale 2 on [-1, 1], the half of the range
                |    /            around mid-grey survives, with twice the contrast
            low |___/
                +----------- x

    The default is the task "HDR x2" of the FFHQ benchmarks (DAPS, arXiv 2407.01521): scale 2 on images in [-1, 1].
    On images in [0, 1], `HDR(shape, 2.0, (0.0, 1.0))` is a photograph exposed twice too long.
    Nonlinear; the gradient is `scale` where nothing is clipped and 0 elsewhere.

    Args:
        in_shape: image shape, for example (C, H, W).
        scale: exposure, > 0.
        data_range: (low, high), the least and the greatest value that the measurement can hold.

    Raises:
        ValueError: a scale that is not positive, or an empty range.
    """

    reduced_precision = True

    def __init__(
        self, in_shape: Sequence[int], scale: float = 2.0, data_range: tuple[float, float] = (-1.0, 1.0)
    ) -> None:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale is {scale}; expected a number > 0, 2 for the FFHQ task.")
        super().__init__(in_shape, in_shape)
        self.scale, self.data_range = float(scale), check_range(data_range)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return torch.clamp(self.scale * x, *self.data_range)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale {self.scale:g}, range {self.data_range}"
