"""Operators made from operators: products, multiples, sums, transposes and stacks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invsolve.operators.base import LinearOperator, Operator
from invsolve.operators.cg import Map, per_entry
from invsolve.operators.registry import register


class Composed(LinearOperator):
    """A @ B: first B, then A."""

    def __init__(self, outer: LinearOperator, inner_operator: LinearOperator) -> None:
        if outer.in_shape != inner_operator.out_shape:
            raise ValueError(
                f"cannot compose: {type(outer).__name__} takes {outer.in_shape}, "
                f"{type(inner_operator).__name__} gives {inner_operator.out_shape}."
            )
        super().__init__(inner_operator.in_shape, outer.out_shape)
        self.outer, self.inner = outer, inner_operator
        self.pixelwise = outer.pixelwise and inner_operator.pixelwise
        self.reduced_precision = outer.reduced_precision and inner_operator.reduced_precision
        self.capturable = outer.capturable and inner_operator.capturable
        if outer.row_gram is not None and inner_operator.row_gram is not None:
            self.row_gram = outer.row_gram * inner_operator.row_gram
        self._reduces = inner_operator.row_gram is not None and outer.solve_method != LinearOperator.solve_method
        if self._reduces:
            self.solve_method = f"{outer.solve_method} behind orthogonal rows"

    @property
    def num_measured(self) -> int:
        return self.outer.num_measured

    def restrict(self, y: Tensor) -> Tensor:
        return self.outer.restrict(y)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))  # type: ignore[no-any-return]

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))

    def normal(self, x: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.normal(self.inner(x)))

    def solve(
        self,
        rhs: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        gram = self.inner.row_gram
        if not self._reduces or gram is None:
            return super().solve(rhs, damping, x0=x0, rtol=rtol, max_iter=max_iter)
        # With B B^H = c I the system splits into the range of B^H, where it is A's own, and the null space of B.
        shift = per_entry(damping, rhs)
        reduced = self.inner(rhs) / gram
        inside = self.outer.solve(reduced, (shift / gram).flatten()) / gram
        if reduced.numel() * (1 + reduced.is_complex()) == rhs.numel() * (1 + rhs.is_complex()):
            return self.inner.adjoint(inside)  # B is square: it has no null space
        return self.inner.adjoint(inside - reduced / shift) + rhs / shift

    def pseudo_inverse(
        self,
        y: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        gram = self.inner.row_gram
        if gram is None:
            return super().pseudo_inverse(y, damping, x0=x0, rtol=rtol, max_iter=max_iter)
        start = None if x0 is None else self.inner(x0)
        inside = self.outer.pseudo_inverse(y, damping / gram, x0=start, rtol=rtol, max_iter=max_iter)
        return self.inner.adjoint(inside) / gram

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        gram = self.inner.row_gram
        if gram is None:
            return super().norm(iterations, rtol, device=device)
        return math.sqrt(gram) * self.outer.norm(iterations, rtol, device=device)


class Scaled(LinearOperator):
    """a A for a real number a."""

    def __init__(self, factor: float, operator: LinearOperator) -> None:
        if not math.isfinite(factor) or factor == 0:
            raise ValueError(f"cannot scale an operator by {factor}; expected a finite number other than 0.")
        super().__init__(operator.in_shape, operator.out_shape)
        self.factor, self.operator = factor, operator
        self.pixelwise = operator.pixelwise
        self.reduced_precision, self.capturable = operator.reduced_precision, operator.capturable
        self.solve_method = operator.solve_method
        if operator.row_gram is not None:
            self.row_gram = factor**2 * operator.row_gram

    @property
    def num_measured(self) -> int:
        return self.operator.num_measured

    def restrict(self, y: Tensor) -> Tensor:
        return self.operator.restrict(y)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.operator(x)  # type: ignore[no-any-return]

    def adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.operator.adjoint(y)

    def normal(self, x: Tensor) -> Tensor:
        return self.factor**2 * self.operator.normal(x)

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        return abs(self.factor) * self.operator.norm(iterations, rtol, device=device)

    def solve(
        self,
        rhs: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        square = self.factor**2
        return self.operator.solve(rhs / square, damping / square, x0=x0, rtol=rtol, max_iter=max_iter)

    def preconditioner(self, damping: Tensor) -> Map | None:
        return self.operator.preconditioner(damping / self.factor**2)  # up to a constant, which changes nothing

    def pseudo_inverse(
        self,
        y: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        shift = damping / self.factor**2
        start = None if x0 is None else self.factor * x0
        return self.operator.pseudo_inverse(y, shift, x0=start, rtol=rtol, max_iter=max_iter) / self.factor


class Sum(LinearOperator):
    """A + B."""

    def __init__(self, first: LinearOperator, second: LinearOperator) -> None:
        if first.in_shape != second.in_shape or first.out_shape != second.out_shape:
            raise ValueError(
                f"cannot add operators {first.in_shape} -> {first.out_shape} and "
                f"{second.in_shape} -> {second.out_shape}."
            )
        super().__init__(first.in_shape, first.out_shape)
        self.first, self.second = first, second
        self.capturable = first.capturable and second.capturable

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)  # type: ignore[no-any-return]

    def adjoint(self, y: Tensor) -> Tensor:
        return self.first.adjoint(y) + self.second.adjoint(y)


class Transposed(LinearOperator):
    """A^H as an operator of its own."""

    def __init__(self, operator: LinearOperator) -> None:
        super().__init__(operator.out_shape, operator.in_shape)
        self.operator = operator
        self.capturable = operator.capturable

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.operator(y)  # type: ignore[no-any-return]

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        return self.operator.norm(iterations, rtol, device=device)

    @property
    def T(self) -> LinearOperator:  # noqa: N802
        return self.operator


def _stack_examples() -> list[Operator]:
    from invsolve.operators.basic import Mask, MatrixOperator

    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn((5, 12), generator=generator, dtype=torch.float64)
    mask = (torch.rand((3, 4), generator=generator) < 0.6).double()
    return [Stack([MatrixOperator(matrix, (1, 3, 4)), 0.5 * Mask(mask, (1, 3, 4), dtype=torch.float64)])]


@register("stack", _stack_examples)
class Stack(LinearOperator):
    """Several measurements of one image, flattened and joined into one vector per batch entry.

    ::

        x  -->  A x  (2, 3)     y  [A x, flattened | B x, flattened]
           -->  B x  (4,)          10 entries

    Args:
        operators: at least one, all with the same `in_shape`.
    """

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        if not operators:
            raise ValueError("stack needs at least one operator.")
        shapes = {op.in_shape for op in operators}
        if len(shapes) > 1:
            raise ValueError(f"stacked operators take different images: {sorted(shapes)}.")
        self._sizes = [math.prod(op.out_shape) for op in operators]
        super().__init__(operators[0].in_shape, (sum(self._sizes),))
        self.operators = nn.ModuleList(operators)
        self.capturable = all(op.capturable for op in operators)

    @property
    def num_measured(self) -> int:
        return sum(op.num_measured for op in self.operators)  # type: ignore[misc]

    def restrict(self, y: Tensor) -> Tensor:
        return self.join([op.restrict(part) for op, part in zip(self.operators, self.split(y), strict=True)])  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.join([op(x) for op in self.operators])

    def adjoint(self, y: Tensor) -> Tensor:
        parts = zip(self.operators, self.split(y), strict=True)
        return torch.stack([op.adjoint(part) for op, part in parts]).sum(0)  # type: ignore[operator]

    def normal(self, x: Tensor) -> Tensor:
        return torch.stack([op.normal(x) for op in self.operators]).sum(0)  # type: ignore[operator]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Measurements of the single operators -> one (B, m) tensor."""
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def split(self, y: Tensor) -> list[Tensor]:
        """The inverse of `join`."""
        pieces = torch.split(y, self._sizes, dim=1)
        return [p.reshape(len(y), *op.out_shape) for p, op in zip(pieces, self.operators, strict=True)]  # type: ignore[misc]


def stack(operators: Sequence[LinearOperator]) -> Stack:
    """Operators applied side by side to one image; see `Stack`."""
    return Stack(operators)
