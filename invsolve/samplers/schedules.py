"""Noise levels that samplers walk down. All return float64 tensors, largest first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from invsolve.priors.conversions import DiscreteVPSchedule, FlowSchedule, VPSchedule


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


def quadratic(num_steps: int) -> Tensor:
    """Levels of the timesteps 999 - sqrt(j / (num_steps - 1)) 1000 of the linear VP schedule: DiffPIR's, mostly low."""
    schedule = DiscreteVPSchedule.linear()
    last = len(schedule.sigmas) - 1
    position = torch.linspace(0, (last + 1) ** 2, num_steps, dtype=torch.float64).sqrt().long()
    return schedule.sigmas[(last - position).clamp(min=0)]


def flow(times: Tensor, sigma_max: float) -> Tensor:
    """Levels t / (1 - t) of rectified-flow times, 1 being pure noise; `sigma_max` stands in for larger ones."""
    return FlowSchedule().sigma(times.double()).clamp(max=sigma_max)


def named(
    name: Literal["ddpm", "ddim", "edm", "geometric"], num_steps: int, sigma_max: float, sigma_min: float
) -> Tensor:
    """Levels by the name that samplers with a choice of schedules take; the first two ignore the limits."""
    if name == "ddpm":
        return ddpm(num_steps)
    if name == "ddim":
        return ddim(num_steps)
    if name == "edm":
        return polynomial(sigma_max, sigma_min, num_steps)
    if name == "geometric":
        return geometric(sigma_max, sigma_min, num_steps)
    raise ValueError(f"unknown schedule {name!r}; expected ddpm, ddim, edm or geometric.")


@dataclass(frozen=True)
class EulerLevel:
    """A level of the reverse SDE that InverseBench integrates in the scaled state c x by Euler's method.

    Attributes:
        sigma: noise level of x.
        scale: c.
        growth: factor of the state in the step from here.
        diffusion: variance that the step adds, and weight of its score.
    """

    sigma: float
    scale: float = 1.0
    growth: float = 1.0
    diffusion: float = 0.0


def euler_edm(num_steps: int) -> list[EulerLevel]:
    """Levels of `polynomial` from 100 to 0.01, then 0, without scaling: the added variance is 2 sigma (sigma - tau)."""
    levels = with_zero(polynomial(100.0, 0.01, num_steps))
    steps = [EulerLevel(sigma, diffusion=2 * sigma * (sigma - tau)) for sigma, tau in pairwise(levels)]
    return [*steps, EulerLevel(levels[-1])]


def euler_vp(num_steps: int) -> list[EulerLevel]:
    """Times from 1 to 0.001 of the variance-preserving SDE with beta = 0.1 + 19.9 t, then the one of sigma = 0.01."""
    schedule = VPSchedule()
    times = torch.linspace(1, 1e-3, num_steps, dtype=torch.float64)
    end = schedule.time(torch.tensor(0.01, dtype=torch.float64))
    times = torch.cat([times, end[None]])
    sigmas, scales = schedule.sigma(times), schedule.scale(schedule.sigma(times))
    # beta dt, by Euler's rule
    added = (0.1 + 19.9 * times[:-1]) * (times[:-1] - times[1:])
    rows = zip(sigmas.tolist(), scales.tolist(), [*added.tolist(), 0.0], strict=True)
    return [EulerLevel(sigma, scale, 1 + change / 2, change) for sigma, scale, change in rows]


def initial_std(name: str, sigma: float) -> float:
    """Standard deviation of the first state: the variance-preserving schedules count the data's own as 1."""
    return math.sqrt(1 + sigma**2) if name in ("ddpm", "ddim") else sigma


def with_zero(levels: Tensor) -> list[float]:
    """Levels as numbers, with the final 0 appended."""
    return [*levels.tolist(), 0.0]
