"""Checks round every operator's methods, written once for all: number types, autocast, dampings; failed solves."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invsolve.operators.cg import SolveResult

if TYPE_CHECKING:
    from invsolve.operators.base import LinearOperator, Operator

_PRECISE = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_REDUCED = (torch.bfloat16, torch.float16)
MOST_ITERATIONS = 500
"""The default of every `max_iter`."""
_PLAIN = ("forward", "adjoint", "normal")
_DAMPED = ("solve", "pseudo_inverse", "solve_cg", "solve_lsqr")


class SolveWarning(UserWarning):
    """A linear solve did not reach its tolerance, or broke down: the system is not positive definite, or not finite."""


def guard_methods(cls: type[Operator]) -> None:
    """Put the checks in front of the methods that `cls` itself defines."""
    for name in (*_PLAIN, *_DAMPED):
        if name in cls.__dict__:
            setattr(cls, name, (_guarded if name in _PLAIN else _guarded_solve)(cls.__dict__[name]))


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(self: Operator, value: Tensor, *args: Any, **options: Any) -> Any:
        _check_type(self, value)
        device = value.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):  # physics keeps its precision beside a network in bfloat16
                return method(self, value, *args, **options)
        return method(self, value, *args, **options)

    return guarded


def _guarded_solve(method: Callable[..., Any]) -> Callable[..., Any]:
    inside = _guarded(method)

    @functools.wraps(method)
    def guarded(self: LinearOperator, value: Tensor, damping: float | Tensor, **options: Any) -> Any:
        zero = _check_damping(damping)
        result = inside(self, value, damping, **options)
        if zero and isinstance(result, Tensor):
            _check_unique(self, value if method.__name__ == "solve" else None, result)
        return result

    return guarded


def _check_type(operator: Operator, value: Tensor) -> None:
    if value.dtype in _PRECISE or (value.dtype in _REDUCED and operator.reduced_precision):
        return
    name, kind = type(operator).__name__, str(value.dtype).removeprefix("torch.")
    if value.dtype in _REDUCED:
        raise TypeError(
            f"{name} does not compute in {kind}: its sums and their adjoints would keep 2 to 3 digits only; "
            "pass x.float() (networks may stay in reduced precision)."
        )
    raise TypeError(f"{name} takes float32 or float64 numbers, got {kind}; convert with x.float() and scale to [0, 1].")


def _check_damping(damping: float | Tensor) -> bool:
    """Whether some damping is 0; ValueError where one is negative or NaN.

    Dampings on an accelerator are trusted: reading them would wait for the device at every step of a sampler.
    """
    if isinstance(damping, Tensor):
        if damping.device.type != "cpu" or damping.numel() == 0:
            return False
        damping = float(damping.detach().min())
    if not damping >= 0:
        raise ValueError(f"damping is {damping:g}; expected a number > 0, or 0 where A^H A is invertible.")
    return damping == 0


@torch.no_grad()
def _check_unique(operator: LinearOperator, rhs: Tensor | None, x: Tensor) -> None:
    """ValueError unless `x`, found without damping, is a solution."""
    sound = bool(torch.isfinite(x).all())
    if sound and rhs is not None:
        error, size = (part.flatten(1).norm(dim=1) for part in (operator.normal(x) - rhs, rhs))
        sound = bool((error <= 0.01 * size).all())
    if not sound:
        raise undetermined(operator, x.dtype)


def undetermined(operator: LinearOperator, dtype: torch.dtype) -> ValueError:
    """What to raise where a solve without damping has no single answer."""
    return ValueError(
        f"damping is 0 and A^H A of {type(operator).__name__} is singular (or too near to it for "
        f"{str(dtype).removeprefix('torch.')}), so that the system has no solution or many; pass damping > 0."
    )


def report(operator: LinearOperator, result: SolveResult, damping: Tensor, max_iter: int) -> None:
    """SolveWarning for the entries that failed, with what would help them; ValueError where that is a damping."""
    trouble = ~result.converged & (result.breakdown | ~result.stalled | (result.residual > 1e-3))
    if not bool(trouble.any()):
        return
    if bool((trouble & (damping == 0) & (result.breakdown | (result.residual > 0.01))).any()):
        raise undetermined(operator, result.x.dtype)
    name, worst = type(operator).__name__, float(result.residual[trouble].max())
    if bool(result.breakdown.any()):
        entries = result.breakdown.nonzero().flatten().tolist()
        what = f"broke down for batch entries {entries}: A^H A + damping I is not positive definite or not finite there"
        remedy = "check the adjoint, and that damping > 0"
    elif bool((trouble & result.stalled).any()):
        what = f"ran out of digits at a relative residual of {worst:.1e}"
        remedy = "use float64, or a larger damping"
    elif max_iter < MOST_ITERATIONS:  # a caller who allows fewer than the default has chosen to stop early
        return
    else:
        what = f"stopped after {max_iter} iterations at a relative residual of {worst:.1e}"
        remedy = "raise max_iter or rtol, or use a larger damping"
    warnings.warn(f"the solve with {name} {what}; {remedy}.", SolveWarning, stacklevel=5)
