"""Batched conjugate gradient, the hot loop of every data-consistency step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SolveResult:
    """What an iterative solve did, one entry per batch item.

    Args:
        x: solution, same shape as the right-hand side.
        residual: relative residual ||rhs - H x|| / ||rhs|| as the recursion carries it, shape (B,); 0 where rhs = 0.
        iterations: iterations in which the entry was still moving, shape (B,), int64.
        converged: whether the tolerance was met, shape (B,), bool.
        breakdown: whether the operator showed itself not positive definite or not finite, shape (B,), bool. Such
            an entry keeps the last iterate before the breakdown.
    """

    x: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor
    breakdown: Tensor


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Real part of the Hermitian inner product per batch entry: Re sum conj(a) b, shape (B,)."""
    product: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1)).real
    return product


def per_entry(value: float | Tensor, like: Tensor) -> Tensor:
    """A number or (B,) tensor as a real (B, 1, ..., 1) tensor that broadcasts against the batch `like`.

    Raises:
        ValueError: if `value` has neither one nor B entries.
    """
    real = like.real.dtype if like.is_complex() else like.dtype
    tensor = torch.as_tensor(value, dtype=real, device=like.device).reshape(-1)
    if tensor.numel() not in (1, like.shape[0]):
        raise ValueError(f"damping has {tensor.numel()} entries for a batch of {like.shape[0]}; pass one or one each.")
    return tensor.expand(like.shape[0]).reshape(-1, *[1] * (like.ndim - 1))


def default_rtol(dtype: torch.dtype) -> float:
    """Relative residual that conjugate gradients reach reliably in this precision."""
    return 1e-12 if dtype in (torch.float64, torch.complex128) else 1e-6


@torch.no_grad()
def conjugate_gradient(
    normal: Callable[[Tensor], Tensor],
    rhs: Tensor,
    damping: float | Tensor = 0.0,
    *,
    x0: Tensor | None = None,
    rtol: float | None = None,
    max_iter: int = 500,
    check_every: int = 4,
) -> SolveResult:
    """Solve (N + damping I) x = rhs for a Hermitian positive semi-definite N, entry by entry of the batch.

    Hestenes and Stiefel 1952, with every scalar of the recursion kept per batch entry. An entry that met its
    tolerance, or broke down, is frozen: its step length is zero from then on, so a slow neighbour does not move it.
    Nothing inside an iteration waits for the device; "is everyone done?" is asked every `check_every` iterations.

    Args:
        normal: x -> N x on batches, linear, same shape out as in.
        rhs: right-hand side, shape (B, ...), real or complex.
        damping: >= 0, a number or one per batch entry, shape (B,).
        x0: start; zero if None.
        rtol: stop where ||rhs - H x|| <= rtol ||rhs||; 1e-6 (single precision) or 1e-12 (double) if None.
        max_iter: largest number of iterations.
        check_every: iterations between two questions to the device.

    Returns:
        SolveResult. An entry with rhs = 0 has x = 0 and counts as converged after 0 iterations.

    Raises:
        ValueError: a damping of the wrong size, or `x0` of another shape.
    """
    shift = per_entry(damping, rhs)
    tolerance = default_rtol(rhs.dtype) if rtol is None else rtol
    if x0 is not None and x0.shape != rhs.shape:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}, the right-hand side {tuple(rhs.shape)}.")

    rhs = rhs.contiguous()
    rhs_norm2 = inner(rhs, rhs)
    zero_rhs = rhs_norm2 == 0
    column = (-1, *[1] * (rhs.ndim - 1))
    if x0 is None:
        x = torch.zeros_like(rhs)
        residual = rhs.clone()
    else:
        x = x0.to(rhs.dtype).clone(memory_format=torch.contiguous_format)
        x.masked_fill_(zero_rhs.reshape(column), 0)
        residual = rhs - normal(x) - shift * x
    direction = residual.clone()
    delta = inner(residual, residual)
    goal = tolerance**2 * rhs_norm2
    breakdown = ~torch.isfinite(delta)
    direction.masked_fill_(breakdown.reshape(column), 0)
    iterations = torch.zeros(rhs.shape[0], dtype=torch.int64, device=rhs.device)

    for step in range(max_iter):
        active = (delta > goal) & ~breakdown
        if step % check_every == 0 and not bool(active.any()):
            break
        image = torch.addcmul(normal(direction), shift, direction)
        curvature = inner(direction, image)
        breakdown |= active & ~((curvature > 0) & torch.isfinite(curvature))
        active &= ~breakdown
        alpha = torch.where(active, delta / curvature, 0)
        x.addcmul_(alpha.reshape(column), direction)
        residual.addcmul_(alpha.reshape(column), image, value=-1)
        previous, delta = delta, torch.where(active, inner(residual, residual), delta)
        beta = torch.where(active, delta / previous, 0)
        torch.addcmul(residual, beta.reshape(column), direction, out=direction)
        # A frozen entry needs a zero direction: 0 * NaN would carry a breakdown into x.
        direction.masked_fill_(~active.reshape(column), 0)
        iterations += active

    relative = torch.where(zero_rhs, 0, (delta / rhs_norm2).sqrt())
    return SolveResult(x, relative, iterations, (delta <= goal) & ~breakdown, breakdown)
