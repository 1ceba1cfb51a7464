"""Cutting images out and putting them into a larger frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator, Operator, Shape
from invsolve.operators.isometry import Isometry
from invsolve.operators.registry import register


def _crop_examples() -> list[Operator]:
    return [Crop((2, 5, 7), (4, 2)), Crop((1, 3, 4, 5), (2, 3, 4), (1, 0, 1)), Crop((2, 4, 5), (4, 3), (0, 2))]


@register("crop", _crop_examples)
class Crop(LinearOperator):
    """A window of the image is measured; solving means painting what lies around it.

    ::

        x  1 2 3 4      size (1, 2), offset (1, 1)      y  6 7
           5 6 7 8

    `Crop(shape, size).T` and `Pad` of the window back to the frame are the same map.

    Args:
        in_shape: image shape.
        size: of the window along the last len(size) axes.
        offset: its first row, column, ...; in the middle, (frame - size) // 2, if None.

    Raises:
        ValueError: a window that does not lie inside the image.
    """

    row_gram = 1.0
    pixelwise = True
    solve_method = "closed form (orthogonal rows)"

    def __init__(self, in_shape: Sequence[int], size: Sequence[int], offset: Sequence[int] | None = None) -> None:
        self.offset = _window("Crop", tuple(in_shape), tuple(size), offset)
        super().__init__(in_shape, (*tuple(in_shape)[: len(in_shape) - len(size)], *size))

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return _cut(x, self.offset, self.out_shape).clone()

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        return _framed(y, self.offset, self.in_shape)

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        return 1.0

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, offset {self.offset}"


def _pad_examples() -> list[Operator]:
    return [Pad((2, 3, 4), (5, 7)), Pad((1, 2, 3, 4), (4, 3, 7), (1, 0, 2)), Pad((2, 4, 3), (4, 6), (0, 3))]


@register("pad", _pad_examples)
class Pad(Isometry):
    """The image in a larger frame of zeros, the adjoint of `Crop`; before a blur it keeps the borders from wrapping.

    ::

        x  6 7      size (2, 4), offset (1, 1)      y  0 0 0 0
                                                       0 6 7 0

    Args:
        in_shape: image shape.
        size: of the frame along the last len(size) axes.
        offset: where the image begins in it; in the middle, (size - image) // 2, if None.

    Raises:
        ValueError: a frame in which the image does not lie.
    """

    pixelwise = True
    solve_method = "closed form (diagonal)"

    def __init__(self, in_shape: Sequence[int], size: Sequence[int], offset: Sequence[int] | None = None) -> None:
        lead = tuple(in_shape)[: len(in_shape) - len(size)]
        self.offset = _window("Pad", (*lead, *size), tuple(in_shape)[len(lead) :], offset)
        super().__init__(in_shape, (*lead, *size))

    @property
    def num_measured(self) -> int:
        return math.prod(self.in_shape)

    def restrict(self, y: Tensor) -> Tensor:
        return self.forward(self.adjoint(y))

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return _framed(x, self.offset, self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        return _cut(y, self.offset, self.in_shape).clone()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, offset {self.offset}"


def _window(name: str, frame: Shape, size: Shape, offset: Sequence[int] | None) -> Shape:
    """The offset of a window of `size` in the last axes of `frame`."""
    if not 1 <= len(size) <= len(frame):
        raise ValueError(f"{name}: a size of {len(size)} numbers does not go with images of {len(frame)} axes.")
    outer = frame[len(frame) - len(size) :]
    start = tuple((n - m) // 2 for n, m in zip(outer, size, strict=True)) if offset is None else tuple(offset)
    inside = len(start) == len(size) and all(
        m >= 1 and o >= 0 and o + m <= n for o, m, n in zip(start, size, outer, strict=True)
    )
    if not inside:
        raise ValueError(f"{name}: a window of size {size} at {start} does not lie inside {outer}.")
    return start


def _cut(x: Tensor, offset: Shape, shape: Shape) -> Tensor:
    size = shape[len(shape) - len(offset) :]
    for axis, (first, length) in enumerate(zip(offset, size, strict=True), start=x.ndim - len(size)):
        x = x.narrow(axis, first, length)
    return x


def _framed(x: Tensor, offset: Shape, shape: Shape) -> Tensor:
    before_after: list[int] = []
    for axis in range(1, len(offset) + 1):
        before_after += [offset[-axis], shape[-axis] - offset[-axis] - x.shape[-axis]]
    return torch.nn.functional.pad(x, before_after)
