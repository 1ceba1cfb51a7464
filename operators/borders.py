"""What convolutions share along the border of an image: extension and its transpose, lengths, matrices of one axis."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Boundary = Literal["circular", "zero", "reflect", "replicate", "valid"]
Pair = tuple[int, int]


def extend(x: Tensor, before: Pair, after: Pair, boundary: Boundary) -> Tensor:
    """Images (..., H, W) continued beyond their border by `before` and `after` pixels, (rows, columns) each.

    Args:
        x: shape (B, C, H, W).
        before: rows above and columns to the left.
        after: rows below and columns to the right.
        boundary: "reflect" or "replicate".
    """
    mode = "reflect" if boundary == "reflect" else "replicate"
    extended: Tensor = F.pad(x, (before[1], after[1], before[0], after[0]), mode=mode)
    return extended


def fold(x: Tensor, size: Pair, before: Pair, after: Pair, boundary: Boundary) -> Tensor:
    """The transpose of `extend`: what was read from a pixel goes back to it.

    Args:
        x: shape (..., H', W'), at least as long as the extended images; what lies beyond is dropped.
        size: (H, W) of the images.
        before: as in `extend`.
        after: as in `extend`.
        boundary: as in `extend`.
    """
    for axis in (0, 1):
        x = _fold_axis(x, axis - 2, size[axis], before[axis], after[axis], boundary)
    return x


def _fold_axis(x: Tensor, axis: int, size: int, before: int, after: int, boundary: Boundary) -> Tensor:
    core = x.narrow(axis, before, size).clone()
    head, tail = x.narrow(axis, 0, before), x.narrow(axis, before + size, after)
    if boundary == "reflect":
        core.narrow(axis, 1, before).add_(head.flip(axis))
        core.narrow(axis, size - 1 - after, after).add_(tail.flip(axis))
    else:
        core.narrow(axis, 0, 1).add_(head.sum(axis, keepdim=True))
        core.narrow(axis, size - 1, 1).add_(tail.sum(axis, keepdim=True))
    return core


def axis_matrix(taps: Tensor, size: int, boundary: Boundary) -> Tensor:
    """The convolution of a line of `size` pixels with `taps` as a matrix, in the convention of `Blur`.

    Args:
        taps: shape (..., K), K <= size.
        size: pixels.
        boundary: any but "circular".

    Returns:
        Tensor (..., size, size), or (..., size - K + 1, size) for "valid".
    """
    length = taps.shape[-1]
    valid = boundary == "valid"
    outputs, centre = (size - length + 1, length - 1) if valid else (size, length // 2)
    index = torch.arange(outputs)[:, None] + (centre - torch.arange(length))
    inside = (index >= 0) & (index < size)
    if boundary == "reflect":
        index = index.abs()
        index = torch.where(index >= size, 2 * (size - 1) - index, index)
    elif boundary == "replicate":
        index = index.clamp(0, size - 1)
    values = taps[..., None, :] * (inside if boundary == "zero" else torch.ones_like(inside))
    matrix = taps.new_zeros((*taps.shape[:-1], outputs, size))
    return matrix.scatter_add_(-1, index.clamp(0, size - 1).expand(values.shape), values)


def fast_length(least: int) -> int:
    """Smallest multiple of 4 from `least` on with no prime factor above 7: lengths that every FFT library likes."""
    length = -(-least // 4) * 4
    while True:
        rest = length
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 4
