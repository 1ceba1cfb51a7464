"""Batched LSQR: regularised least squares without squaring the condition number."""

from __future__ import annotations

import torch
from torch import Tensor

from invsolve.operators.cg import Map, SolveResult, inner64, per_entry


@torch.no_grad()
def lsqr(
    forward: Map,
    adjoint: Map,
    y: Tensor,
    damping: float | Tensor = 0.0,
    *,
    rtol: float | None = None,
    max_iter: int = 500,
    check_every: int | None = None,
) -> SolveResult:
    """Minimise ||A x - y||^2 + damping ||x||^2, entry by entry of the batch, from x = 0.

    Golub-Kahan bidiagonalisation with Givens rotations (Paige and Saunders 1982, "LSQR"). The iterates are those of
    conjugate gradients on (A^H A + damping I) x = A^H y in exact arithmetic; in round-off they stay accurate for a
    condition number of A up to the inverse precision, where conjugate gradients reach only its square root.
    Of many minimisers (damping 0) it finds the shortest. As in `conjugate_gradient`, scalars are kept per entry,
    finished entries are frozen, and nothing inside an iteration waits for the device.

    Args:
        forward: x -> A x on batches.
        adjoint: y -> A^H y.
        y: data, shape (B, ...), real or complex.
        damping: >= 0, a number or one per batch entry, shape (B,).
        rtol: stop where ||A^H (y - A x) - damping x|| <= rtol ||A^H y||; 1e-6 (single precision) or 1e-12 if None.
        max_iter: largest number of iterations, of one product with A and one with A^H each.
        check_every: iterations between two questions to the device; 1 on the CPU and 8 elsewhere if None.

    Returns:
        SolveResult with the residual of the stopping rule, as the recursion carries it.
    """
    real = y.real.dtype
    if rtol is None:
        rtol = 1e-12 if real == torch.float64 else 1e-6
    if check_every is None:
        check_every = 1 if y.device.type == "cpu" else 8
    shift = per_entry(damping, y).flatten().to(inner64(y, y).dtype)

    def normalised(vector: Tensor) -> tuple[Tensor, Tensor]:
        length = inner64(vector, vector).sqrt()
        scale = torch.where(length > 0, 1 / length, 0).to(real)
        return vector * _column(scale, vector), length

    u, beta = normalised(y)
    v, alpha = normalised(adjoint(u))
    x, w = torch.zeros_like(v), v.clone()
    phi_bar, rho_bar = beta, alpha
    first = gradient = alpha * beta  # ||A^H y||, and the norm of the normal equations' residual from now on
    breakdown = ~torch.isfinite(first)
    w.masked_fill_(_column(breakdown, w), 0)
    iterations = torch.zeros_like(first, dtype=torch.int64)

    for step in range(max_iter):
        active = (gradient > rtol * first) & ~breakdown
        if step % check_every == 0 and not bool(active.any()):
            break
        u, beta = normalised(forward(v) - _column(alpha.to(real), u) * u)
        v, alpha = normalised(adjoint(u) - _column(beta.to(real), v) * v)
        # One rotation takes up the damping, the next the bidiagonal's lower element.
        damped = (rho_bar**2 + shift).sqrt()
        phi_bar = phi_bar * rho_bar / damped
        rho = (damped**2 + beta**2).sqrt()
        cosine, sine = damped / rho, beta / rho
        phi = cosine * phi_bar
        phi_bar = sine * phi_bar
        theta, rho_bar = sine * alpha, -cosine * alpha
        breakdown |= active & ~torch.isfinite(phi / rho + theta + alpha)
        active &= ~breakdown
        x.addcmul_(_column(torch.where(active, phi / rho, 0).to(real), x), w)
        w = v - _column(torch.where(active, theta / rho, 0).to(real), w) * w
        w.masked_fill_(_column(~active, w), 0)
        gradient = torch.where(active, alpha * (sine * phi).abs(), gradient)
        iterations += active

    residual = torch.where(first > 0, gradient / first, 0).to(real)
    converged = (gradient <= rtol * first) & ~breakdown
    return SolveResult(x, residual, iterations, converged, breakdown, torch.zeros_like(breakdown))


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))
