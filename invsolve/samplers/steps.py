"""Single steps from noise level sigma down to tau, shared by all samplers. tau = 0 is the clean image.

Notation: x the state, d = D(x, sigma) the denoised image, n white noise. Numbers, not tensors, for the levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

Denoiser = Callable[[Tensor, float], Tensor]


def ancestral(x: Tensor, d: Tensor, sigma: float, tau: float, noise: Tensor, variance: float = 0.0) -> Tensor:
    """DDPM posterior step (Ho et al. 2020, arXiv 2006.11239, eq. 6-7, divided by sqrt(abar)).

    Args:
        variance: 0 for the posterior variance ("fixed small"), 1 for beta_t ("fixed large"); between them log-variances
            are interpolated, as networks with a learned range do. No noise is added on the step to 0.
    """
    ratio = (tau / sigma) ** 2
    mean = d + ratio * (x - d)
    if tau == 0:
        return mean
    small = tau**2 * (1 - ratio)
    large = (sigma**2 - tau**2) * (1 + tau**2) / (1 + sigma**2)
    return mean + math.sqrt(small ** (1 - variance) * large**variance) * noise


def ddim(x: Tensor, d: Tensor, sigma: float, tau: float, eta: float, noise: Tensor) -> Tensor:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16): eta = 0 is deterministic, eta = 1 is `ancestral`."""
    spread = eta * tau * math.sqrt(1 - (tau / sigma) ** 2)
    return d + math.sqrt(tau**2 - spread**2) / sigma * (x - d) + spread * noise


def renoise(d: Tensor, epsilon: Tensor, tau: float, eta: float, noise: Tensor) -> Tensor:
    """d + tau (sqrt(1 - eta^2) epsilon + eta n): the variant of DDRM, DDNM and DDS, without DDIM's posterior factor."""
    return d + tau * (math.sqrt(1 - eta**2) * epsilon + eta * noise)


def euler(x: Tensor, d: Tensor, sigma: float, tau: float) -> Tensor:
    """Euler step of the probability-flow ODE dx/dsigma = (x - D)/sigma (arXiv 2206.00364, eq. 3). Order 1."""
    return x + (tau - sigma) / sigma * (x - d)


def heun(denoise: Denoiser, x: Tensor, d: Tensor, sigma: float, tau: float) -> Tensor:
    """Heun step of the same ODE (arXiv 2206.00364, Algorithm 1); Euler on the step to 0. Order 2."""
    slope = (x - d) / sigma
    proposal = x + (tau - sigma) * slope
    if tau == 0:
        return proposal
    return x + (tau - sigma) * 0.5 * (slope + (proposal - denoise(proposal, tau)) / tau)


def integrate(denoise: Denoiser, x: Tensor, levels: Sequence[float], order: int = 1) -> Tensor:
    """Probability-flow ODE from levels[0] to levels[-1], one step between neighbours.

    Args:
        denoise: D(x, sigma).
        x: state at levels[0].
        levels: decreasing noise levels; the last may be 0.
        order: 1 (Euler, one evaluation a step) or 2 (Heun, two).
    """
    if order not in (1, 2):
        raise ValueError(f"order is {order}; expected 1 (Euler) or 2 (Heun).")
    for sigma, tau in pairwise(levels):
        d = denoise(x, sigma)
        x = euler(x, d, sigma, tau) if order == 1 else heun(denoise, x, d, sigma, tau)
    return x
