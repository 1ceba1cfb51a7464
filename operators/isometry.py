"""Operators that keep lengths: A^H A = I."""

from __future__ import annotations

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator
from invsolve.operators.cg import per_entry


class Isometry(LinearOperator):
    """Base of operators with A^H A = I, which write `forward` and `adjoint` only."""

    def normal(self, x: Tensor) -> Tensor:
        return x

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        return 1.0

    def solve(
        self,
        rhs: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        return rhs / (1 + per_entry(damping, rhs))
