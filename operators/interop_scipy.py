"""Operators from scipy and back: sparse matrices and `scipy.sparse.linalg.LinearOperator`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator, Operator, Shape, derived
from invsolve.operators.function import check_adjoint
from invsolve.operators.registry import register


def from_scipy(
    linear_operator: Any,
    in_shape: Sequence[int],
    out_shape: Sequence[int] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    check: bool = True,
) -> LinearOperator:
    """An operator from any scipy sparse matrix or `scipy.sparse.linalg.LinearOperator` of shape (m, n).

    A sparse matrix becomes a `SparseOperator`, which runs where torch does. A LinearOperator is called through numpy on
    the CPU, with gradients by its adjoint. Where the matrix is complex, so are the measurements; its images are real
    for prod(in_shape) = n, and complex ones in two channels (real, imag) for prod(in_shape) = 2 n.

    Args:
        linear_operator: sparse matrix or array, or a LinearOperator with `rmatvec` or `rmatmat`.
        in_shape: image shape, for example (C, H, W); the matrix sees it in that order, flattened.
        out_shape: measurement shape with m entries; (m,) if None.
        dtype: floating-point type of the stored matrix.
        check: whether to dot-test a LinearOperator here.

    Raises:
        TypeError: something else than a sparse matrix or LinearOperator.
        ValueError: shapes that do not fit, or an adjoint that is missing or wrong.
    """
    from scipy import sparse
    from scipy.sparse import linalg

    if sparse.issparse(linear_operator):
        return SparseOperator(linear_operator, in_shape, out_shape, dtype=dtype)
    if not isinstance(linear_operator, linalg.LinearOperator):
        raise TypeError(
            f"expected a scipy sparse matrix or LinearOperator, got {type(linear_operator).__name__}; a dense array "
            "makes a MatrixOperator."
        )
    operator = SciPyOperator(linear_operator, in_shape, out_shape)
    if check:
        double = np.dtype(linear_operator.dtype or np.float64) in (np.float64, np.complex128)
        check_adjoint(
            operator,
            torch.empty(0, dtype=torch.float64 if double else torch.float32),
            remedy="Correct rmatvec, or pass check=False to take it as it is.",
        )
    return operator


def _sparse_examples() -> list[Operator]:
    from scipy import sparse

    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> Any:
        values = rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) < 0.3)
        return sparse.csr_array(values)

    double = torch.float64
    return [
        SparseOperator(matrix(7, 24), (2, 3, 4), dtype=double),
        SparseOperator(matrix(15, 12), (1, 3, 4), (3, 5), dtype=double),
        SparseOperator(matrix(5, 12) + 1j * matrix(5, 12), (1, 3, 4), dtype=double),
        SparseOperator(matrix(6, 10) + 1j * matrix(6, 10), (2, 2, 5), (2, 3), dtype=double),
    ]


@register("sparse", _sparse_examples)
class SparseOperator(LinearOperator):
    """A sparse matrix times the flattened image, as one product for the whole batch.

    ::

        rows     0 0 1      x  1 2 3      y  1 + 2 * 3      7
        columns  0 2 1         4 5 6         3 * 2       =  6
        values   1 2 3

    The matrix and its transpose are kept in compressed rows with the scipy matrix's own index type, int32 for fewer
    than 2^31 entries. A complex matrix is kept as its real and imaginary parts, one above the other.

    Args:
        matrix: scipy sparse matrix or array (m, n).
        in_shape: image shape of n entries, or of 2 n for complex images in two channels.
        out_shape: measurement shape of m entries; (m,) if None.
        dtype: floating-point type of the stored values.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """

    crow: Tensor
    column: Tensor
    values: Tensor

    def __init__(
        self,
        matrix: Any,
        in_shape: Sequence[int],
        out_shape: Sequence[int] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from scipy import sparse

        is_complex = np.iscomplexobj(matrix)
        images, measurements, self._two_channels = _shapes(matrix.shape, is_complex, in_shape, out_shape)
        super().__init__(images, measurements)
        self.is_complex = is_complex
        if self._two_channels:
            matrix = sparse.hstack([matrix, 1j * matrix])  # A (a + i b) = (A, i A) (a, b)
        if is_complex:
            matrix = sparse.vstack([matrix.real, matrix.imag])
        rows = matrix.tocsr()
        rows.sum_duplicates()
        if not np.isfinite(rows.data).all():
            raise ValueError("the sparse matrix holds NaN or Inf.")
        self.register_buffer("crow", torch.from_numpy(rows.indptr.copy()))
        self.register_buffer("column", torch.from_numpy(rows.indices.copy()))
        self.register_buffer("values", torch.from_numpy(rows.data.copy()).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        stored, transposed = self._matrices(x)
        flat = _SparseProduct.apply(x.flatten(1), stored, transposed)  # type: ignore[no-untyped-call]
        y = torch.complex(*flat.reshape(len(x), 2, -1).unbind(1)) if self.is_complex else flat
        return y.reshape(len(x), *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        if self.is_complex:
            y = torch.stack((y.real, y.imag), 1)
        stored, transposed = self._matrices(y)
        flat = _SparseProduct.apply(y.flatten(1), transposed, stored)  # type: ignore[no-untyped-call]
        return flat.reshape(len(y), *self.in_shape)  # type: ignore[no-any-return]

    def _matrices(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The matrix and its transpose as torch's CSR tensors."""

        def make() -> tuple[Tensor, Tensor]:
            size = len(self.crow) - 1, math.prod(self.in_shape)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # CSR is "in beta state", invariants are ours to keep
                stored = torch.sparse_csr_tensor(self.crow, self.column, self.values.to(like.dtype), size)
                columns = stored.to_sparse_csc()
                index, place = columns.ccol_indices(), columns.row_indices()
                transposed = torch.sparse_csr_tensor(
                    index.to(self.crow.dtype), place.to(self.column.dtype), columns.values(), size[::-1]
                )
            return stored, transposed

        return derived(self, "matrices", like, make)


class _SparseProduct(torch.autograd.Function):
    """x -> x M^T for a batch of rows x, with the product by the stored transpose as its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.matrices = matrix, transposed
        return (matrix @ x.mT).mT.contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        matrix, transposed = ctx.matrices
        return _SparseProduct.apply(grads[0], transposed, matrix), None, None  # type: ignore[no-untyped-call]


def _scipy_examples() -> list[Operator]:
    from scipy.sparse import linalg

    rng = np.random.default_rng(1)
    plain, twisted = rng.standard_normal((7, 12)), rng.standard_normal((2, 5, 6))
    return [
        SciPyOperator(linalg.aslinearoperator(plain), (1, 3, 4)),
        SciPyOperator(linalg.aslinearoperator(twisted[0] + 1j * twisted[1]), (2, 2, 3)),
    ]


@register("scipy", _scipy_examples)
class SciPyOperator(LinearOperator):
    """A `scipy.sparse.linalg.LinearOperator`, called through numpy on the CPU; differentiable through its adjoint.

    ::

        x (B, *in_shape)  ->  numpy columns (n, B)  ->  matmat  ->  (m, B)  ->  y (B, *out_shape)

    Args:
        linear_operator: of shape (m, n), with an adjoint.
        in_shape: image shape of n entries, or of 2 n for complex images in two channels.
        out_shape: measurement shape of m entries; (m,) if None.

    Raises:
        ValueError: shapes that do not fit, or no adjoint.
    """

    def __init__(self, linear_operator: Any, in_shape: Sequence[int], out_shape: Sequence[int] | None = None) -> None:
        self.is_complex = np.issubdtype(linear_operator.dtype or np.float64, np.complexfloating)
        images, measurements, self._two_channels = _shapes(linear_operator.shape, self.is_complex, in_shape, out_shape)
        super().__init__(images, measurements)
        self.linear_operator = linear_operator
        try:
            linear_operator.rmatvec(np.zeros(linear_operator.shape[0], linear_operator.dtype))
        except NotImplementedError as error:
            raise ValueError("the LinearOperator has no adjoint; give it rmatvec or rmatmat.") from error

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return _NumpyProduct.apply(x, self, False)  # type: ignore[no-any-return, no-untyped-call]

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        return _NumpyProduct.apply(y, self, True)  # type: ignore[no-any-return, no-untyped-call]

    def product(self, value: Tensor, transposed: bool) -> Tensor:
        """A x, or A^H y, by way of numpy."""
        array = value.detach().cpu().numpy().reshape(len(value), -1)
        if not transposed:
            if self._two_channels:
                real, imaginary = np.split(array, 2, axis=1)
                array = real + 1j * imaginary
            result = np.asarray(self.linear_operator.matmat(array.T)).T
            result = result if self.is_complex else result.real
            shape = self.out_shape
        else:
            result = np.asarray(self.linear_operator.rmatmat(array.T)).T
            result = np.concatenate((result.real, result.imag), axis=1) if self._two_channels else result.real
            shape = self.in_shape
        tensor = torch.from_numpy(np.ascontiguousarray(result)).reshape(len(value), *shape)
        real_type = value.real.dtype if value.is_complex() else value.dtype
        return tensor.to(value.device, real_type.to_complex() if tensor.is_complex() else real_type)


class _NumpyProduct(torch.autograd.Function):
    """A product with the operator or its adjoint, each the other's gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, operator: SciPyOperator, transposed: bool) -> Tensor:
        ctx.settings = operator, transposed
        return operator.product(value, transposed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        operator, transposed = ctx.settings
        return _NumpyProduct.apply(grads[0], operator, not transposed), None, None  # type: ignore[no-untyped-call]


def to_scipy(operator: LinearOperator) -> Any:
    """A real `scipy.sparse.linalg.LinearOperator` of shape (m, n), for lsqr, cg, svds and the like.

    Vectors are flattened images and measurements; complex measurements count as 2 m real ones, first all real parts,
    then all imaginary parts. Products run on the operator's device, many columns as one batch.

    Args:
        operator: any linear operator of real images.
    """
    from scipy.sparse import linalg

    blank = torch.zeros((1, *operator.in_shape), device=operator.device, dtype=operator.dtype)
    with torch.no_grad():
        is_complex = operator(blank).is_complex()
    rows, columns = math.prod(operator.out_shape) * (2 if is_complex else 1), math.prod(operator.in_shape)

    def batch(array: Any) -> Tensor:
        flat = np.ascontiguousarray(np.asarray(array).reshape(len(array), -1).T)
        return torch.from_numpy(flat).to(operator.device, operator.dtype)

    @torch.no_grad()
    def matmat(array: Any) -> Any:
        y = operator(batch(array).reshape(-1, *operator.in_shape)).flatten(1)
        return (torch.cat((y.real, y.imag), 1) if is_complex else y).cpu().numpy().T

    @torch.no_grad()
    def rmatmat(array: Any) -> Any:
        y = batch(array)
        if is_complex:
            y = torch.complex(*y.chunk(2, 1))
        return operator.adjoint(y.reshape(-1, *operator.out_shape)).flatten(1).cpu().numpy().T

    return linalg.LinearOperator(
        (rows, columns),
        matvec=lambda x: matmat(x)[:, 0],
        rmatvec=lambda y: rmatmat(y)[:, 0],
        matmat=matmat,
        rmatmat=rmatmat,
        dtype=torch.empty(0, dtype=operator.dtype).numpy().dtype,
    )


def _shapes(
    size: tuple[int, int], is_complex: bool, in_shape: Sequence[int], out_shape: Sequence[int] | None
) -> tuple[Shape, Shape, bool]:
    """Image and measurement shape, and whether the images are complex in two channels."""
    rows, columns = size
    images, measurements = tuple(in_shape), (rows,) if out_shape is None else tuple(out_shape)
    two_channels = is_complex and images[:1] == (2,) and math.prod(images) == 2 * columns
    if math.prod(images) != columns and not two_channels:
        also = " or (2, ...) for complex ones" if is_complex else ""
        raise ValueError(f"a matrix with {columns} columns does not take images of shape {images}{also}.")
    if math.prod(measurements) != rows:
        raise ValueError(f"a matrix with {rows} rows does not give measurements of shape {measurements}.")
    return images, measurements, two_channels
