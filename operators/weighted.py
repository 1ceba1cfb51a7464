"""Measurements whose entries are not equally certain, or whose noise is correlated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invsolve.operators.algebra import Composed, Scaled
from invsolve.operators.base import LinearOperator, Operator, derived
from invsolve.operators.basic import Grayscale, Mask, MatrixOperator
from invsolve.operators.cg import per_entry
from invsolve.operators.registry import register


def _examples() -> list[Operator]:
    generator = torch.Generator().manual_seed(2)

    def weights(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.2

    matrix = MatrixOperator(torch.randn((7, 12), generator=generator, dtype=torch.float64), (1, 3, 4))
    mask = Mask(torch.rand((3, 5), generator=generator) > 0.4, (2, 3, 5), dtype=torch.float64)
    return [
        Weighted(matrix, weights(7)),
        Weighted(mask, weights(2, 3, 5)),
        Weighted(Grayscale((3, 2, 5), dtype=torch.float64), weights(2, 5)),
        Weighted(-2.0 * mask, weights(3, 1)),
        Weighted(
            Mask(weights(2, 5), (1, 2, 5), dtype=torch.float64) @ Grayscale((3, 2, 5), dtype=torch.float64),
            weights(1, 2, 5),
        ),
    ]


@register("weighted", _examples)
class Weighted(LinearOperator):
    """W A for a diagonal W; with W = 1/std the noise of W y is white of level 1 (weighted least squares).

    ::

        A x  2 4 6      std  1 2 4      W A x  2 2 1.5

    ==================  ===========================================================================
    `weights`           1 / std of every entry, what y is multiplied by; the misfit is ||W (A x - y)||^2
    `from_variance`     for the variances std^2, the diagonal of the noise covariance
    precision, "PWLS"   1 / std^2, the statistical weights of CT papers: pass their square root
    ==================  ===========================================================================

    The solve stays in closed form for masks and other diagonal operators, for those with orthogonal rows (by the
    Woodbury identity), and for multiples and compositions of these.

    Args:
        operator: A.
        weights: real, > 0; shape (*operator.out_shape) or one that broadcasts to it, shared by the batch; or
            (B, *operator.out_shape) with one set per batch entry. The operator then takes batches of B only; `part`
            gives that of some entries.

    Raises:
        ValueError: weights that are not positive and finite, or do not fit.
    """

    weights: Tensor

    def __init__(self, operator: LinearOperator, weights: Tensor) -> None:
        super().__init__(operator.in_shape, operator.out_shape)
        if weights.is_complex() or not bool((torch.isfinite(weights) & (weights > 0)).all()):
            raise ValueError("weights must be real, finite and > 0; leave entries out with a Mask instead.")
        self.operator = operator
        self.pixelwise = operator.pixelwise
        each = weights.ndim == len(self.out_shape) + 1
        target = (len(weights), *self.out_shape) if each else self.out_shape
        pairs = zip(reversed(weights.shape), reversed(target), strict=False)
        if weights.ndim > len(target) or any(have not in (1, want) for have, want in pairs):
            raise ValueError(
                f"weights of shape {tuple(weights.shape)} do not fit measurements {self.out_shape}; expected that "
                "shape, or (batch, ...) for one set per batch entry."
            )
        values = weights.expand(target).clone()
        self.register_buffer("weights", values[0] if each and len(values) == 1 else values)
        self._scheme = _scheme(operator)
        if self._scheme:
            self.solve_method = f"closed form ({self._scheme})"
        if self._scheme == "behind orthogonal rows" and isinstance(operator, Composed):
            self.solve_method = f"{Weighted(operator.outer, self.weights).solve_method} behind orthogonal rows"

    @classmethod
    def from_variance(cls, operator: LinearOperator, variance: Tensor) -> Weighted:
        """W = variance^-1/2, for noise with a diagonal covariance; shapes as for `weights`."""
        return cls(operator, variance.rsqrt())

    @property
    def per_entry(self) -> bool:
        """Whether every batch entry has weights of its own."""
        return self.weights.ndim > len(self.out_shape)

    def part(self, entries: slice) -> Weighted:
        """The operator of some batch entries; itself where the weights are shared."""
        return Weighted(self.operator, self.weights[entries]) if self.per_entry else self

    @property
    def num_measured(self) -> int:
        return self.operator.num_measured

    def restrict(self, y: Tensor) -> Tensor:
        return self.operator.restrict(y)

    def forward(self, x: Tensor) -> Tensor:
        self._check_batch(x)
        return self.weights * self.operator(x)  # type: ignore[no-any-return]

    def adjoint(self, y: Tensor) -> Tensor:
        self._check_batch(y)
        return self.operator.adjoint(self.weights * y)

    def normal(self, x: Tensor) -> Tensor:
        self._check_batch(x)
        return self.operator.adjoint(self._squares() * self.operator(x))

    def solve(
        self,
        rhs: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        self._check_batch(rhs)
        inside = self._pushed_in()
        if inside is not None:
            return inside.solve(rhs, damping)
        gram = self.operator.row_gram
        if gram is None and self._scheme is None:
            return super().solve(rhs, damping, x0=x0, rtol=rtol, max_iter=max_iter)
        shift = per_entry(damping, rhs)
        if gram is None:  # diagonal
            return rhs / (self.normal(torch.ones_like(rhs)) + shift)
        image = self.operator(rhs)
        share = self._squares() / (gram * self._squares() + per_entry(damping, image))
        return (rhs - self.operator.adjoint(share * image)) / shift

    def pseudo_inverse(
        self, y: Tensor, damping: float | Tensor, *, rtol: float | None = None, max_iter: int = 500
    ) -> Tensor:
        self._check_batch(y)
        inside = self._pushed_in()
        if inside is not None:
            return inside.pseudo_inverse(y, damping)
        gram = self.operator.row_gram
        if gram is not None:
            return self.operator.adjoint(self.weights * y / (gram * self._squares() + per_entry(damping, y)))
        x = self.adjoint(y)
        if self._scheme is None:
            return self.solve(x, damping, rtol=rtol, max_iter=max_iter)
        return x / (self.normal(torch.ones_like(x)) + per_entry(damping, x))

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        """Of the batch entry with the largest one, where each has its own weights."""
        if self.per_entry:
            entries = [self.part(slice(b, b + 1)) for b in range(len(self.weights))]
            return max(entry.norm(iterations, rtol, device=device) for entry in entries)
        inside = self._pushed_in()
        if inside is not None:
            return inside.norm(iterations, rtol, device=device)
        if self.operator.row_gram is not None:
            return math.sqrt(self.operator.row_gram) * float(self.weights.max())
        return super().norm(iterations, rtol, device=device)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weights per batch entry" if self.per_entry else super().extra_repr()

    def _squares(self) -> Tensor:
        return derived(self, "squares", self.weights, self.weights.square)

    def _pushed_in(self) -> LinearOperator | None:
        """W (a A) as a (W A) and W (A B) as (W A) B, where the outer part has the closed form."""
        if self._scheme == "behind a factor" and isinstance(self.operator, Scaled):
            return Scaled(self.operator.factor, Weighted(self.operator.operator, self.weights))
        if self._scheme == "behind orthogonal rows" and isinstance(self.operator, Composed):
            return Composed(Weighted(self.operator.outer, self.weights), self.operator.inner)
        return None

    def _check_batch(self, batch: Tensor) -> None:
        if self.per_entry and len(batch) != len(self.weights):
            raise ValueError(
                f"the weights are for a batch of {len(self.weights)}, this one has {len(batch)}; take the entries you "
                "need with part(slice)."
            )


def _scheme(operator: LinearOperator) -> str | None:
    """How A^H W^2 A + damping is solved for any diagonal W: None for by conjugate gradients."""
    if operator.row_gram is not None:
        return "orthogonal rows"
    if isinstance(operator, Scaled) and _scheme(operator.operator):
        return "behind a factor"
    if isinstance(operator, Composed) and operator.inner.row_gram is not None and _scheme(operator.outer):
        return "behind orthogonal rows"
    return "diagonal" if _is_diagonal(operator) else None


@torch.no_grad()
def _is_diagonal(operator: LinearOperator) -> bool:
    """Whether A^H W^2 A is diagonal for any W. A^H A being so is not enough: a rotation of the colours mixes them."""
    if not (operator.pixelwise and "diagonal" in operator.solve_method):
        return False
    generator = torch.Generator().manual_seed(0)

    def positive(*shape: int) -> Tensor:
        values = torch.rand((1, *shape), generator=generator, dtype=torch.float64) + 0.5
        return values.to(operator.device, operator.dtype)

    weights, x = positive(*operator.out_shape), positive(*operator.in_shape)
    product = operator.adjoint(weights * operator(x))
    diagonal = operator.adjoint(weights * operator(torch.ones_like(x)))
    difference = torch.linalg.vector_norm(product - diagonal * x)
    return bool(difference <= 100 * torch.finfo(operator.dtype).eps * torch.linalg.vector_norm(product))


class WeightedNonlinear(Operator):
    """w * A(x) for an operator that need not be linear; w > 0 with the shape of one measurement."""

    weights: Tensor

    def __init__(self, operator: Operator, weights: Tensor) -> None:
        super().__init__(operator.in_shape, operator.out_shape)
        self.operator = operator
        self.register_buffer("weights", weights)

    @property
    def num_measured(self) -> int:
        return self.operator.num_measured

    def restrict(self, y: Tensor) -> Tensor:
        return self.operator.restrict(y)

    def forward(self, x: Tensor) -> Tensor:
        return self.weights * self.operator(x)  # type: ignore[no-any-return]


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
        self, y: Tensor, damping: float | Tensor, *, rtol: float | None = None, max_iter: int = 500
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
