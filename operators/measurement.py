"""A measurement together with how it was made."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invsolve.operators.base import Operator
from invsolve.operators.noise import Noise


@dataclass(frozen=True)
class Measurement:
    """y = operator(x) + noise for a batch of images.

    Args:
        y: measurements, shape (B, *operator.out_shape).
        operator: the forward operator.
        noise: the noise model, in the units of y.

    Raises:
        ValueError: `y` does not have the operator's output shape.
    """

    y: Tensor
    operator: Operator
    noise: Noise

    def __post_init__(self) -> None:
        self.operator.check_output(self.y)
