"""A user's own functions as an operator, and the test of other people's adjoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator, Operator
from invsolve.operators.bridges import ChannelsToComplex
from invsolve.operators.registry import register
from invsolve.operators.spectra import dot_test

Function = Callable[[Tensor], Tensor]

TOLERANCE = 1e-4
"""Largest accepted relative difference between an adjoint and the true one; round-off is about 1e-6 in float32."""


def _function_examples() -> list[Operator]:
    return [FunctionOperator(lambda x: x[..., 1:] - x[..., :-1], _difference_adjoint, (1, 3, 6), (1, 3, 5))]


def _difference_adjoint(y: Tensor) -> Tensor:
    return torch.nn.functional.pad(y, (1, 0)) - torch.nn.functional.pad(y, (0, 1))


@register("function", _function_examples)
class FunctionOperator(LinearOperator):
    """A user's own pair of functions, dot-tested when first used.

    ::

        x  --forward-->  y        <forward(x), v> = <x, adjoint(v)> for all x and v
        u  <--adjoint--  v

    Functions of complex images work too; samplers then take `A @ ChannelsToComplex(A.in_shape)`.

    Args:
        forward: x -> A x on batches (B, *in_shape) -> (B, *out_shape), linear.
        adjoint: y -> A^H y, the exact transpose of `forward`.
        in_shape: shape of one image.
        out_shape: shape of one measurement.
        tolerance: largest accepted relative error of the adjoint; see `check_adjoint`.
        check: whether to test at all.

    Raises:
        ValueError: at first use, if `adjoint` is not the adjoint of `forward`.
    """

    def __init__(
        self,
        forward: Function,
        adjoint: Function,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        tolerance: float = TOLERANCE,
        check: bool = True,
    ) -> None:
        super().__init__(in_shape, out_shape)
        self._forward, self._adjoint, self._tolerance, self._check = forward, adjoint, tolerance, check
        self._tested: tuple[bool, ...] = ()  # for complex images or not

    def forward(self, x: Tensor) -> Tensor:
        self._test(x, x.is_complex())
        return self._forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        x = self._adjoint(y)
        self._test(y, x.is_complex())
        return x

    def _test(self, like: Tensor, complex_images: bool) -> None:
        if not self._check or complex_images in self._tested:
            return
        check_adjoint(self, like, complex_images=complex_images, tolerance=self._tolerance)
        self._tested = (*self._tested, complex_images)

    def _pair(self) -> tuple[Function, Function]:
        return self._forward, self._adjoint


def check_adjoint(
    operator: LinearOperator,
    like: Tensor,
    *,
    complex_images: bool = False,
    tolerance: float = TOLERANCE,
    remedy: str = "A wrong scale, a missing conjugate or a flip that is not undone are the usual causes.",
) -> None:
    """Refuse an operator whose adjoint is not the one of its forward map.

    Solvers do not fail with such a pair, they converge to something else. The error of `dot_test` shrinks with the
    square root of the number of measurements m, since <A u, v> of white noise v does. It is compared times sqrt(m),
    about the relative error of A^H itself.

    Args:
        operator: the pair to test, with white noise.
        like: a tensor with the device and precision to test in.
        complex_images: whether the operator takes complex images.
        tolerance: largest accepted relative error.
        remedy: last sentence of the message.

    Raises:
        ValueError: the adjoint fails, has the wrong shape, or gives complex images for an operator of real ones.
    """
    pair = operator._pair() if isinstance(operator, FunctionOperator) else (operator.forward, operator.adjoint)
    probe: LinearOperator = _Probe(pair, operator, like.device, complex_images)
    if complex_images:
        probe = _Probe(
            ((bridged := probe @ ChannelsToComplex(operator.in_shape)).forward, bridged.adjoint), bridged, like.device
        )
    with torch.no_grad():
        error = dot_test(probe, dtype=like.real.dtype if like.is_complex() else like.dtype)
    error *= math.sqrt(math.prod(operator.out_shape))
    if not error <= tolerance:
        raise ValueError(
            f"the adjoint is not the adjoint of the forward function: <A u, v> and <u, A^H v> differ by {error:.2g} of "
            f"their size (at most {tolerance:.0e} passes). {remedy}"
        )


class _Probe(LinearOperator):
    """A bare pair of functions on a device, for the dot test itself."""

    def __init__(
        self,
        pair: tuple[Function, Function],
        operator: LinearOperator,
        device: torch.device,
        complex_images: bool = False,
    ) -> None:
        super().__init__(operator.in_shape, operator.out_shape)
        self._forward, self._adjoint = pair
        self._device, self._complex_images = device, complex_images

    @property
    def device(self) -> torch.device:
        return self._device

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        x = self._adjoint(y)
        if x.is_complex() and not self._complex_images:
            raise ValueError(
                "the adjoint gives complex images, but the operator takes real ones; return the real part, or use "
                "A @ ChannelsToComplex(in_shape) for images of two channels (real, imag)."
            )
        return x
