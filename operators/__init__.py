"""Forward operators A, their adjoints, the noise of a measurement, and the solves of data consistency."""

if __name__ != "invsolve.operators":
    raise ImportError(f"import invsolve.operators, not {__name__!r}")

from invsolve.operators.algebra import Stack, stack
from invsolve.operators.base import LinearOperator, Operator, SolveWarning, dot_test
from invsolve.operators.basic import (
    FunctionOperator,
    Grayscale,
    Identity,
    Mask,
    MatrixOperator,
    box_mask,
    random_mask,
)
from invsolve.operators.blur import Blur
from invsolve.operators.cg import SolveResult, conjugate_gradient
from invsolve.operators.kernels import (
    check_kernel,
    disk_kernel,
    gaussian_kernel,
    motion_kernel,
    random_motion_kernel,
)
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import GaussianNoise, Noise, PoissonNoise, standard_normal
from invsolve.operators.resize import Downsample
from invsolve.operators.weighted import Weighted

__all__ = [
    "Blur",
    "Downsample",
    "FunctionOperator",
    "GaussianNoise",
    "Grayscale",
    "Identity",
    "LinearOperator",
    "Mask",
    "MatrixOperator",
    "Measurement",
    "Noise",
    "Operator",
    "PoissonNoise",
    "SolveResult",
    "SolveWarning",
    "Stack",
    "Weighted",
    "box_mask",
    "check_kernel",
    "conjugate_gradient",
    "disk_kernel",
    "dot_test",
    "gaussian_kernel",
    "motion_kernel",
    "random_mask",
    "random_motion_kernel",
    "stack",
    "standard_normal",
]
