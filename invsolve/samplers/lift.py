"""An image from the measurement alone, where a method starts from one."""

from __future__ import annotations

from torch import Tensor

from invsolve.operators.base import LinearOperator
from invsolve.operators.measurement import Measurement
from invsolve.samplers.base import Sampler, noise_level, start


def lift(
    sampler: Sampler,
    measurement: Measurement,
    damping: float | None = None,
    max_iter: int = 50,
    rtol: float | None = None,
) -> Tensor:
    """A^H (A A^H + damping I)^-1 y, or zeros where the operator is not linear.

    Args:
        damping: relative to a spectral norm of 1. None for (noise_std / 0.5)^2, which is the ridge estimate of images
            with standard deviation 0.5, and at least 1e-6.
        max_iter: of conjugate gradients, where the operator has no closed form.
        rtol: at which they stop; that of `LinearOperator.solve` if None.
    """
    operator = measurement.operator
    if not isinstance(operator, LinearOperator):
        return start(measurement)
    if damping is None:
        damping = max((noise_level(sampler, measurement) / 0.5) ** 2, 1e-6)
    return operator.pseudo_inverse(measurement.y, damping, rtol=rtol, max_iter=max_iter)
