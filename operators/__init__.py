"""Forward operators A, their adjoints, the noise of a measurement, and the solves of data consistency."""

if __name__ != "invsolve.operators":
    raise ImportError(f"import invsolve.operators, not {__name__!r}")

from invsolve.operators.base import LinearOperator, Operator, SolveWarning, Stack, dot_test, stack
from invsolve.operators.basic import (
    FunctionOperator,
    Grayscale,
    Identity,
    Mask,
    MatrixOperator,
    box_mask,
    random_mask,
)
from invsolve.operators.cg import SolveResult, conjugate_gradient
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import GaussianNoise, Noise, PoissonNoise, standard_normal

__all__ = [
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
    "box_mask",
    "conjugate_gradient",
    "dot_test",
    "random_mask",
    "stack",
    "standard_normal",
]
