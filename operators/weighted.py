"""Measurements whose entries are not equally certain."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invsolve.operators.algebra import Composed, Scaled
from invsolve.operators.base import LinearOperator, Operator, derived
from invsolve.operators.basic import Grayscale, Mask, MatrixOperator
from invsolve.operators.cg import Map, per_entry
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
        self,
        y: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
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
            return self.solve(x, damping, x0=x0, rtol=rtol, max_iter=max_iter)
        return x / (self.normal(torch.ones_like(x)) + per_entry(damping, x))

    def preconditioner(self, damping: Tensor) -> Map | None:
        """D^-1 M D^-1 with the preconditioner M of A and D^2 the mean squared weight that each pixel is seen with.

        Fessler and Booth 1999 (IEEE Trans. Image Process. 8(5), "Conjugate-gradient preconditioning methods for
        shift-variant PET image reconstruction"). None where A has none.
        """
        certainty = derived(self, "certainty", damping, lambda: self._certainty(damping))
        mean = certainty.square().flatten(1).mean(1)
        inner = self.operator.preconditioner(damping / mean.reshape(-1, *[1] * (damping.ndim - 1)))
        return None if inner is None else lambda r: inner(r / certainty) / certainty

    def _certainty(self, like: Tensor) -> Tensor:
        """D, (1 or B, *in_shape)."""
        squares = self._squares()
        image = self.operator(torch.ones((1, *self.in_shape), dtype=like.dtype, device=like.device))
        ratio = self.operator.adjoint(squares * image) / self.operator.adjoint(image)
        lowest, highest = squares.min(), squares.max()
        # A mean lies between the two; negative entries of A, and pixels that nothing sees, can say otherwise.
        return torch.nan_to_num(ratio, nan=float(highest)).clamp(lowest, highest).sqrt()

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
