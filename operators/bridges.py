"""Bridges between complex tensors and the two real channels (real, imag) in which images are kept here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from invsolve.operators.base import Operator
from invsolve.operators.isometry import Isometry
from invsolve.operators.registry import register


def _to_complex_examples() -> list[Operator]:
    return [ChannelsToComplex((1, 3, 4)), ChannelsToComplex((2, 2, 3)), ChannelsToComplex((3, 5))]


@register("channels-to-complex", _to_complex_examples)
class ChannelsToComplex(Isometry):
    """Two real channels become one complex: x[0] + i x[1].

    ::

        x[0]  1 2      x[1]  0 5      y  1  2+5i

    An operator that takes complex images serves the samplers as `A @ ChannelsToComplex(A.in_shape)`. The adjoint is
    that of the real inner product Re<u, v>, under which the map is a rotation: A^H A = A A^H = I.

    Args:
        shape: (C, *size) of the complex images; the real ones have shape (2 C, *size), first all real parts, then all
            imaginary parts. Without channels, (H, W), they have shape (2, H, W).
    """

    row_gram = 1.0
    pixelwise = True
    solve_method = "closed form (diagonal)"

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(_channels(shape), shape)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return _joined(x, self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        return _split(y, self.in_shape)


def _to_channels_examples() -> list[Operator]:
    return [ComplexToChannels(shape) @ ChannelsToComplex(shape) for shape in ((1, 3, 4), (2, 2, 3))]


@register("complex-to-channels", _to_channels_examples)
class ComplexToChannels(Isometry):
    """One complex channel becomes two real ones, (real, imag): the inverse and the adjoint of `ChannelsToComplex`.

    ::

        x  1  2+5i      y[0]  1 2      y[1]  0 5

    `ComplexToChannels(A.out_shape) @ A` gives the complex measurements of A, such as k-space, as real ones.

    Args:
        shape: of the complex tensors, as for `ChannelsToComplex`.
    """

    row_gram = 1.0
    pixelwise = True
    solve_method = "closed form (diagonal)"

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape, _channels(shape))

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return _split(x, self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        return _joined(y, self.in_shape)


def _channels(shape: Sequence[int]) -> tuple[int, ...]:
    return (2 * shape[0], *shape[1:]) if len(shape) > 2 else (2, *shape)


def _joined(x: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.complex(*x.reshape(len(x), 2, *shape).unbind(1))


def _split(y: Tensor, shape: Sequence[int]) -> Tensor:
    parts = (y.real, y.imag) if y.is_complex() else (y, torch.zeros_like(y))
    return torch.stack(parts, 1).reshape(len(y), *shape)
