"""Batched conjugate gradient, the hot loop of every data-consistency step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]

# Products are summed in the tensor's own precision over runs of this many entries, and those sums in float64: it costs
# no more than one long sum (it is faster on large images, whose products then stay in the cache), for two more digits.
_RUN = 1024


@dataclass(frozen=True)
class SolveResult:
    """What an iterative solve did, one entry per batch item.

    Args:
        x: solution, same shape as the right-hand side.
        residual: relative residual ||rhs - H x|| / ||rhs||, shape (B,); 0 where rhs = 0.
        iterations: iterations in which the entry was still moving, shape (B,), int64.
        converged: whether the tolerance was met, shape (B,), bool.
        breakdown: whether the operator showed itself not positive definite or not finite, shape (B,), bool. Such
            an entry keeps the last iterate before the breakdown.
        stalled: whether the precision of the numbers ended the descent before the tolerance was met, shape (B,), bool.
    """

    x: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor
    breakdown: Tensor
    stalled: Tensor


@dataclass
class State:
    """The vectors and per-entry scalars of a running iteration, all changed in place."""

    x: Tensor
    residual: Tensor
    direction: Tensor
    image: Tensor
    shift: Tensor  # (B, 1, ...), as all that multiplies images
    delta: Tensor  # <r, r>; this and all below have shape (B,)
    gamma: Tensor  # <r, M r> of the last iteration, M the preconditioner; infinite before the first
    goal: Tensor
    breakdown: Tensor
    stalled: Tensor
    iterations: Tensor

    def active(self) -> Tensor:
        """Entries that go on, shape (B,), bool."""
        return (self.delta > self.goal) & ~(self.breakdown | self.stalled)


class Block(Protocol):
    """A replayable run of iterations; see `graphs`."""

    def adopt(self, state: State) -> State:
        """`state` in the memory that the block works on."""

    def __call__(self, count: int) -> None:
        """`count` iterations on the adopted state."""


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Real part of the Hermitian inner product per batch entry: Re sum conj(a) b, shape (B,)."""
    product: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1)).real
    return product


def inner64(a: Tensor, b: Tensor) -> Tensor:
    """`inner`, summed in float64 where the device has it."""
    wide = torch.float32 if a.device.type == "mps" else torch.float64
    a, b = a.flatten(1), b.flatten(1)
    whole = a.shape[1] // _RUN * _RUN
    total: Tensor = torch.linalg.vecdot(a[:, whole:], b[:, whole:]).real.to(wide)
    if whole:
        shape = len(a), whole // _RUN, _RUN
        runs = torch.linalg.vecdot(a[:, :whole].reshape(shape), b[:, :whole].reshape(shape))
        total = total + runs.real.sum(1, dtype=wide)
    return total


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
    normal: Map,
    rhs: Tensor,
    damping: float | Tensor = 0.0,
    *,
    x0: Tensor | None = None,
    rtol: float | None = None,
    max_iter: int = 500,
    check_every: int | None = None,
    preconditioner: Map | None = None,
    capture: Callable[[State], Block | None] | None = None,
) -> SolveResult:
    """Solve (N + damping I) x = rhs for a Hermitian positive semi-definite N, entry by entry of the batch.

    Hestenes and Stiefel 1952, with every scalar of the recursion kept per batch entry. An entry that met its
    tolerance, or broke down, is frozen: its step length is zero from then on, so a slow neighbour does not move it.
    Nothing inside an iteration waits for the device; "is everyone done?" is asked every `check_every` iterations.

    The recursion carries its residual along, which drifts from the true one by round-off. Where that could matter
    (a tolerance near the precision, or many iterations), a finished entry's residual is computed anew, and the
    iteration starts over from there until the true residual meets the tolerance or no longer halves.

    Args:
        normal: x -> N x on batches, linear, same shape out as in.
        rhs: right-hand side, shape (B, ...), real or complex.
        damping: >= 0, a number or one per batch entry, shape (B,).
        x0: start; zero if None.
        rtol: stop where ||rhs - H x|| <= rtol ||rhs||; 1e-6 (single precision) or 1e-12 (double) if None. This is the
            plain residual, also with a preconditioner.
        max_iter: largest number of iterations.
        check_every: iterations between two questions to the device; 1 on the CPU, where asking is free, and 8
            elsewhere if None.
        preconditioner: r -> M r with M Hermitian positive definite and close to (N + damping I)^-1, per batch entry.
        capture: makes a captured run of `check_every` iterations for solves like this one, or None; see `graphs`.

    Returns:
        SolveResult. An entry with rhs = 0 has x = 0 and counts as converged after 0 iterations.

    Raises:
        ValueError: a damping of the wrong size, or `x0` of another shape.
    """
    shift = per_entry(damping, rhs)
    tolerance = default_rtol(rhs.dtype) if rtol is None else rtol
    if x0 is not None and x0.shape != rhs.shape:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}, the right-hand side {tuple(rhs.shape)}.")
    if check_every is None:
        check_every = 1 if rhs.device.type == "cpu" else 8

    rhs = rhs.contiguous()
    rhs_norm2 = inner64(rhs, rhs)
    zero_rhs = rhs_norm2 == 0
    if x0 is None:
        x = torch.zeros_like(rhs)
        residual = rhs.clone()
    else:
        x = x0.to(rhs.dtype).clone(memory_format=torch.contiguous_format)
        _clear(x, zero_rhs)
        residual = rhs - normal(x) - shift * x
    state = _begin(x, residual, shift, tolerance**2 * rhs_norm2)
    block = capture(state) if capture is not None else None
    if block is not None:
        state = block.adopt(state)

    eps = torch.finfo(shift.dtype).eps
    last_true = torch.full_like(state.delta, torch.inf)
    step = last_check = 0
    while True:
        if not bool(state.active().any()):
            drifted = step > last_check and (tolerance < 100 * eps or step > 50)
            if not drifted or not _restart(state, rhs, normal, last_true):
                break
            last_check = step
        if step >= max_iter:
            break
        count = min(check_every, max_iter - step)
        if block is None:
            advance(state, normal, preconditioner, count)
        else:
            block(count)
        step += count

    relative = torch.where(zero_rhs, 0, (state.delta / rhs_norm2).sqrt()).to(shift.dtype)
    converged = (state.delta <= state.goal) & ~state.breakdown
    x = state.x if block is None else state.x.clone()
    return SolveResult(x, relative, state.iterations.clone(), converged, state.breakdown.clone(), state.stalled.clone())


def advance(state: State, normal: Map, preconditioner: Map | None, count: int) -> None:
    """`count` iterations, in place and without waiting for the device."""
    s = state
    for _ in range(count):
        active = s.active()
        if preconditioner is None:
            smoothed, gamma = s.residual, s.delta
        else:
            smoothed = preconditioner(s.residual)
            gamma = inner64(s.residual, smoothed)
            s.breakdown |= active & ~((gamma >= 0) & torch.isfinite(gamma))
            active &= ~s.breakdown
        beta = torch.where(active, gamma / s.gamma, 0).to(s.shift.dtype)
        s.gamma.copy_(torch.where(active, gamma, s.gamma))
        torch.addcmul(smoothed, _column(beta, s.x), s.direction, out=s.direction)
        # A frozen entry needs a zero direction: 0 * NaN would carry a breakdown into x.
        _clear(s.direction, ~active)
        torch.addcmul(normal(s.direction), s.shift, s.direction, out=s.image)
        curvature = inner64(s.direction, s.image)
        s.breakdown |= active & ~((curvature > 0) & torch.isfinite(curvature))
        active &= ~s.breakdown
        alpha = torch.where(active, s.gamma / curvature, 0).to(s.shift.dtype)
        s.x.addcmul_(_column(alpha, s.x), s.direction)
        s.residual.addcmul_(_column(alpha, s.x), s.image, value=-1)
        s.delta.copy_(torch.where(active, inner64(s.residual, s.residual), s.delta))
        s.iterations += active


def _begin(x: Tensor, residual: Tensor, shift: Tensor, goal: Tensor) -> State:
    delta = inner64(residual, residual)
    breakdown = ~torch.isfinite(delta)
    none = torch.zeros_like(breakdown)
    iterations = torch.zeros_like(delta, dtype=torch.int64)
    direction, image = torch.zeros_like(x), torch.empty_like(x)
    gamma = torch.full_like(delta, torch.inf)
    return State(x, residual, direction, image, shift, delta, gamma, goal, breakdown, none, iterations)


def _restart(state: State, rhs: Tensor, normal: Map, last_true: Tensor) -> bool:
    """Puts the true residual in the place of the carried one; whether any entry has to go on from it."""
    state.residual.copy_(rhs - normal(state.x) - state.shift * state.x)
    delta = inner64(state.residual, state.residual)
    sound = ~state.breakdown & torch.isfinite(delta)
    state.delta.copy_(torch.where(sound, delta, state.delta))
    state.stalled |= sound & (delta > state.goal) & (delta > last_true / 4)
    last_true.copy_(torch.where(sound, delta, last_true))
    state.direction.zero_()
    state.gamma.fill_(torch.inf)
    return bool(state.active().any())


def _clear(x: Tensor, entries: Tensor) -> None:
    """Zeros in place of some entries of the batch, bool (B,), without waiting for the device."""
    if x.device.type == "cpu":  # asking is free there, and filling under a mask as slow as ten other passes
        x.index_fill_(0, entries.nonzero().flatten(), 0)
    else:
        x.masked_fill_(_column(entries, x), 0)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))
