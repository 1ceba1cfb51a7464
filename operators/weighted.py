"""Measurements whose entries are not equally certain."""

from __future__ import annotations

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator, Operator
from invsolve.operators.basic import MatrixOperator
from invsolve.operators.registry import register


def _examples() -> list[Operator]:
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn((7, 12), generator=generator, dtype=torch.float64)
    weights = torch.rand(7, generator=generator, dtype=torch.float64) + 0.2
    return [Weighted(MatrixOperator(matrix, (1, 3, 4)), weights)]


@register("weighted", _examples)
class Weighted(LinearOperator):
    """W A for a diagonal W; with W = 1/std the noise of W y is white of level 1 (weighted least squares).

    Args:
        operator: A.
        weights: real, > 0, shape (*operator.out_shape) or one that broadcasts to it.
    """

    weights: Tensor

    def __init__(self, operator: LinearOperator, weights: Tensor) -> None:
        super().__init__(operator.in_shape, operator.out_shape)
        if not bool((torch.isfinite(weights) & (weights > 0)).all()):
            raise ValueError("weights must be finite and > 0; leave entries out with a Mask instead.")
        self.operator = operator
        self.pixelwise = operator.pixelwise
        self.register_buffer("weights", weights.expand(operator.out_shape).clone())

    @property
    def num_measured(self) -> int:
        return self.operator.num_measured

    def restrict(self, y: Tensor) -> Tensor:
        return self.operator.restrict(y)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights * self.operator(x)  # type: ignore[no-any-return]

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator.adjoint(self.weights * y)
