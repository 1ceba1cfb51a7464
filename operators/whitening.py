"""Measurements whose noise is correlated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator, Operator, derived
from invsolve.operators.basic import MatrixOperator
from invsolve.operators.cg import per_entry
from invsolve.operators.registry import register


def _whitening_examples() -> list[Operator]:
    generator = torch.Generator().manual_seed(3)

    def covariance(size: int) -> Tensor:
        root = torch.randn((size, size), generator=generator, dtype=torch.float64)
        return root @ root.T / size + 0.3 * torch.eye(size, dtype=torch.float64)

    matrix = MatrixOperator(torch.randn((6, 10), generator=generator, dtype=torch.float64), (1, 2, 5))
    return [
        Whitening(covariance(3), (3, 2, 5), axis=0),
        Whitening(covariance(5), (2, 5), axis=-1),
        Whitening(covariance(6), (2, 3)),
        Whitening(covariance(6), (6,)) @ matrix,
    ]


@register("whitening", _whitening_examples)
class Whitening(LinearOperator):
    """Decorrelates the noise of y: with C = L L^H its covariance, L^-1 y has white noise of level 1.

    ::

        covariance  4 2      L  2 0      y  2      L^-1 y  1
                    2 2         1 1         3              2

    `Whitening(C, A.out_shape, axis=0) @ A` is then the operator of L^-1 y, for example of multi-coil k-space with the
    coils' noise covariance.

    Args:
        covariance: (n, n), Hermitian and positive definite, real or complex (for complex y: of n, with E|n|^2 twice the
            variance of each part).
        shape: of one measurement.
        axis: the axis of `shape`, of length n, along which the noise is correlated; all entries, n = prod(shape), if
            None.

    Raises:
        ValueError: a matrix of another size, not Hermitian or not positive definite.
    """

    solve_method = "closed form (eigenvectors)"
    root: Tensor

    def __init__(self, covariance: Tensor, shape: Sequence[int], *, axis: int | None = None) -> None:
        super().__init__(shape, shape)
        size = math.prod(self.in_shape) if axis is None else self.in_shape[axis]
        if tuple(covariance.shape) != (size, size):
            raise ValueError(f"the covariance has shape {tuple(covariance.shape)}; expected ({size}, {size}).")
        if not torch.allclose(covariance, covariance.mH, rtol=1e-4, atol=1e-6 * float(covariance.abs().max())):
            raise ValueError("the covariance is not Hermitian; expected C[i, j] = conj(C[j, i]).")
        double = covariance.to(torch.complex128 if covariance.is_complex() else torch.float64)
        lower, failed = torch.linalg.cholesky_ex(double)
        if int(failed):
            raise ValueError("the covariance is not positive definite; add the detector's own noise to its diagonal.")
        if double.is_complex():
            lower = lower / math.sqrt(2)  # level 1 in each part
        unit = torch.eye(size, dtype=lower.dtype, device=lower.device)
        root = torch.linalg.solve_triangular(lower, unit, upper=False)
        # Two real matrices: a change of the module's type would strip a complex one of its imaginary part.
        real = covariance.real.dtype if covariance.is_complex() else covariance.dtype
        self.register_buffer("root", torch.view_as_real(root + 0j).movedim(-1, 0).to(real).contiguous())
        self.axis = axis
        self.is_complex = covariance.is_complex()

    def forward(self, x: Tensor) -> Tensor:
        return self._along_axis(self._matrix(x), x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._along_axis(self._matrix(y).mH, y)

    def solve(
        self,
        rhs: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        _, values, vectors = self._svd(rhs)
        return self._in_basis(vectors, values.square(), vectors, rhs, damping, 1)

    def pseudo_inverse(
        self,
        y: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        left, values, right = self._svd(y)
        return self._in_basis(left, values.square(), right, y, damping, values)

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        return float(self._svd(self.root)[1].max())

    def _matrix(self, like: Tensor) -> Tensor:
        root = torch.complex(*self.root) if self.is_complex else self.root[0]
        return root.to(like.dtype) if like.is_complex() else root

    def _svd(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Left vectors, singular values and right vectors, in columns."""

        def make() -> tuple[Tensor, Tensor, Tensor]:
            left, values, right = torch.linalg.svd(self._matrix(like))
            return left, values, right.mH

        return derived(self, "svd", like, make)

    def _in_basis(
        self, come: Tensor, squares: Tensor, go: Tensor, value: Tensor, damping: float | Tensor, gain: Tensor | int
    ) -> Tensor:
        """go diag(gain / (squares + damping)) come^H value."""
        coefficients = self._columns(come.mH, value)
        coefficients = (coefficients.mT * (gain / (squares + per_entry(damping, coefficients)))).mT
        return self._restored(go @ coefficients, value)

    def _along_axis(self, matrix: Tensor, value: Tensor) -> Tensor:
        return self._restored(self._columns(matrix, value), value)

    def _columns(self, matrix: Tensor, value: Tensor) -> Tensor:
        """matrix times the correlated axis: (B, n, everything else)."""
        if self.axis is None:
            return matrix @ value.reshape(len(value), -1, 1)
        moved = value.movedim(self._dim(), 1)
        return matrix @ moved.reshape(len(value), moved.shape[1], -1)

    def _restored(self, columns: Tensor, like: Tensor) -> Tensor:
        if self.axis is None:
            return columns.reshape(like.shape)
        return columns.reshape(like.movedim(self._dim(), 1).shape).movedim(1, self._dim())

    def _dim(self) -> int:
        axis = self.axis or 0
        return axis + 1 if axis >= 0 else axis + 1 + len(self.in_shape)
