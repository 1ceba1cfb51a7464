"""Gradients of solutions of (A^H A + damping I) x = rhs without unrolling the iteration that found them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from invsolve.operators.cg import inner

if TYPE_CHECKING:
    from invsolve.operators.base import LinearOperator


def differentiable(
    operator: LinearOperator, x: Tensor, rhs: Tensor, shift: Tensor, rtol: float | None, max_iter: int
) -> Tensor:
    """The solution `x` with gradients with respect to `rhs`, `shift` and the operator's own tensors that need one.

    Args:
        operator: A.
        x: the solution, however it was found, without a graph.
        rhs: right-hand side.
        shift: damping, shape (B, 1, ..., 1).
        rtol: of the backward solve.
        max_iter: of the backward solve.
    """
    if not torch.is_grad_enabled():
        return x
    learned = trainable(operator)
    if not (rhs.requires_grad or shift.requires_grad or learned):
        return x
    result: Tensor = _Implicit.apply(rhs, shift, x, operator, rtol, max_iter, *learned.values())  # type: ignore[no-untyped-call]
    return result


def trainable(operator: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that require a gradient, by name."""
    tensors = itertools.chain(operator.named_parameters(), operator.named_buffers())
    return {name: tensor for name, tensor in tensors if tensor.requires_grad}


class _Implicit(torch.autograd.Function):
    """With H = A^H A + damping I, H x = rhs: dx = H^-1 (drhs - ddamping x - d(A^H A) x), and H is self-adjoint.

    The backward solve and the products are differentiable themselves, which gives second derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rhs: Tensor,
        shift: Tensor,
        x: Tensor,
        operator: LinearOperator,
        rtol: float | None,
        max_iter: int,
        *learned: Tensor,
    ) -> Tensor:
        solution = x.clone()
        ctx.save_for_backward(solution, shift, *learned)
        ctx.settings = operator, rtol, max_iter
        return solution

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        operator, rtol, max_iter = ctx.settings
        x, shift, *learned = ctx.saved_tensors
        back = operator.solve(grads[0], shift.flatten(), rtol=rtol, max_iter=max_iter)
        for_shift = -inner(back, x).reshape(shift.shape) if ctx.needs_input_grad[1] else None
        for_learned = _product_gradients(operator, x, back) if learned else ()
        return back, for_shift, None, None, None, None, *for_learned


class _Normal(nn.Module):
    def __init__(self, operator: LinearOperator) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator.normal(x)


def _product_gradients(operator: LinearOperator, x: Tensor, back: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of -<back, A^H A x> with respect to the operator's tensors, with `x` and `back` held fixed."""
    again = torch.is_grad_enabled()  # whether second derivatives are wanted
    with torch.enable_grad():
        # x depends on the same tensors: stand-ins separate the operator's own part from the part through x.
        stand_ins = {f"operator.{name}": tensor.view_as(tensor) for name, tensor in trainable(operator).items()}
        image = torch.func.functional_call(_Normal(operator), stand_ins, (x if again else x.detach(),))
        return torch.autograd.grad(image, list(stand_ins.values()), -back, create_graph=again, allow_unused=True)
