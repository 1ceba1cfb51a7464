"""What products with an operator tell about it: its largest eigenvalue, and whether its adjoint is one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from invsolve.operators.cg import Map, inner

if TYPE_CHECKING:
    from torch import Tensor

    from invsolve.operators.base import LinearOperator


@torch.no_grad()
def largest_eigenvalue(normal: Map, start: Tensor, iterations: int, rtol: float) -> float:
    """Largest eigenvalue of a Hermitian positive semi-definite map, by the Lanczos iteration.

    Power iteration stops too early where the largest eigenvalues lie close together, as those of blurs do.

    Args:
        normal: the map, on batches.
        start: random image, a batch of one.
        iterations: largest number of products.
        rtol: stop when the residual of the eigenpair is this small against the eigenvalue.

    Returns:
        The eigenvalue, >= 0; NaN where the map gave numbers that are not finite.
    """
    x = start / inner(start, start).sqrt()
    before, coupling = torch.zeros_like(x), 0.0
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    largest = 0.0
    for _ in range(iterations):
        image = normal(x) - coupling * before
        diagonal.append(float(inner(x, image)))
        image = image - diagonal[-1] * x
        coupling = math.sqrt(float(inner(image, image)))
        if not math.isfinite(diagonal[-1] + coupling):
            return math.nan
        table = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        table += torch.diag(torch.tensor(off_diagonal, dtype=torch.float64), -1)
        values, vectors = torch.linalg.eigh(table)  # reads the lower triangle
        largest = max(float(values[-1]), 0.0)
        if coupling * abs(float(vectors[-1, -1])) <= rtol * largest or coupling == 0:
            break
        off_diagonal.append(coupling)
        before, x = x, image / coupling
    return largest


def dot_test(operator: LinearOperator, *, batch: int = 2, seed: int = 0, dtype: torch.dtype | None = None) -> float:
    """How far the adjoint is from being one: |Re<A u, v> - <u, A^H v>| / (||A u|| ||v||), the worst of a batch.

    Round-off is about 1e-7 in float32 and 1e-16 in float64; anything above 1e-4 is a wrong adjoint.

    Args:
        operator: operator to test, with white-noise inputs (smooth ones hide errors).
        batch: number of random pairs.
        seed: of the random inputs.
        dtype: floating-point type of the inputs; the operator's own if None.
    """
    generator = torch.Generator().manual_seed(seed)
    real = dtype or operator.dtype
    u = torch.randn((batch, *operator.in_shape), generator=generator, dtype=torch.float64).to(operator.device, real)
    forward = operator(u)
    shape = (batch, *operator.out_shape)
    v = torch.randn(shape, generator=generator, dtype=torch.float64).to(operator.device, real)
    if forward.is_complex():
        v = torch.complex(v, torch.randn(shape, generator=generator, dtype=torch.float64).to(operator.device, real))
    if tuple(forward.shape) != shape:
        raise ValueError(f"forward gave shape {tuple(forward.shape)}, out_shape promises {shape}.")
    backward = operator.adjoint(v)
    if backward.shape != u.shape:
        raise ValueError(f"adjoint gave shape {tuple(backward.shape)}, in_shape promises {tuple(u.shape)}.")
    scale = (inner(forward, forward) * inner(v, v)).sqrt().clamp_min(torch.finfo(real).tiny)
    return float(((inner(forward, v) - inner(u, backward)).abs() / scale).max())
