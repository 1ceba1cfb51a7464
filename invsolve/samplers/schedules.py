"""Noise levels that samplers walk down. All return float64 tensors, largest first."""

from __future__ import annotations

import torch
from torch import Tensor

from invsolve.priors.conversions import DiscreteVPSchedule


def polynomial(sigma_max: float, sigma_min: float, count: int, power: float = 7.0, intervals: int = 0) -> Tensor:
    """Levels that are evenly spaced in sigma^(1/power) (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    Args:
        sigma_max: first level.
        sigma_min: level at position `intervals`.
        count: how many levels to return.
        power: 7 in the paper; larger puts more levels near sigma_min.
        intervals: number of steps from sigma_max to sigma_min; count - 1 if 0, so that the last level is sigma_min.
    """
    if not 0 < sigma_min <= sigma_max:
        raise ValueError(f"sigma_min {sigma_min} and sigma_max {sigma_max} must satisfy 0 < sigma_min <= sigma_max.")
    position = torch.arange(count, dtype=torch.float64) / max(1, intervals or count - 1)
    first, last = sigma_max ** (1 / power), sigma_min ** (1 / power)
    levels: Tensor = (first + position * (last - first)) ** power
    return levels


def geometric(sigma_max: float, sigma_min: float, count: int) -> Tensor:
    """Levels with a constant ratio."""
    position = torch.linspace(0, 1, count, dtype=torch.float64)
    return sigma_max * (sigma_min / sigma_max) ** position


def ddpm(num_steps: int) -> Tensor:
    """Levels of `num_steps` evenly spread timesteps 999 ... 0 of the linear 1000-step VP schedule."""
    return DiscreteVPSchedule.linear().respaced(num_steps)


def ddim(num_steps: int) -> Tensor:
    """Levels of the timesteps 1000 - k, 1000 - 2k, ... 0 with k = 1000 / num_steps, as DDIM and DDS count them."""
    schedule = DiscreteVPSchedule.linear()
    total = len(schedule.sigmas)
    if not 1 <= num_steps <= total:
        raise ValueError(f"num_steps is {num_steps}; expected 1 to {total}.")
    return schedule.sigmas[torch.arange(num_steps - 1, -1, -1) * total // num_steps]


def with_zero(levels: Tensor) -> list[float]:
    """Levels as numbers, with the final 0 appended."""
    return [*levels.tolist(), 0.0]
