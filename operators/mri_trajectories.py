"""Non-Cartesian trajectories of MRI and their sampling density.

Positions are in cycles per pixel, (kx, ky) in the last axis, within -0.5 ... 0.5; kx belongs to columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2  # 111.25 degrees


def radial_trajectory(spokes: int, samples: int, *, golden: bool = False) -> Tensor:
    """Straight lines through the centre.

    Args:
        spokes: number of lines.
        samples: points of each, from -0.5 to just below 0.5; twice the image width avoids aliasing along the line.
        golden: turn by the golden angle from spoke to spoke, so that any run of spokes covers k-space; evenly over half
            a turn otherwise.

    Returns:
        float64 tensor (spokes, samples, 2).
    """
    _check_counts(spokes=spokes, samples=samples)
    turn = GOLDEN_ANGLE if golden else math.pi / spokes
    angle = turn * torch.arange(spokes, dtype=torch.float64)
    radius = (torch.arange(samples, dtype=torch.float64) - samples // 2) / samples
    return radius[None, :, None] * torch.stack((angle.cos(), angle.sin()), -1)[:, None]


def spiral_trajectory(arms: int, samples: int, *, turns: float, power: float = 1.0) -> Tensor:
    """Archimedean spirals from the centre outwards.

    Args:
        arms: interleaved spirals, evenly turned.
        samples: points of each.
        turns: revolutions of one arm; neighbouring arms lie 0.5 / (turns * arms) apart, and an image of n pixels
            needs 1 / n.
        power: radius = 0.5 * time^power; above 1 samples the centre more densely.

    Returns:
        float64 tensor (arms, samples, 2).
    """
    _check_counts(arms=arms, samples=samples)
    if turns <= 0 or power <= 0:
        raise ValueError(f"turns is {turns} and power {power}; expected both > 0.")
    time = torch.linspace(0, 1, samples, dtype=torch.float64)
    radius = 0.5 * time**power
    start = 2 * math.pi / arms * torch.arange(arms, dtype=torch.float64)
    angle = start[:, None] + 2 * math.pi * turns * time**power
    return radius[None, :, None] * torch.stack((angle.cos(), angle.sin()), -1)


def radial_density(trajectory: Tensor) -> Tensor:
    """Area of k-space that each point of a radial trajectory stands for, in (cycles per pixel)^2: the ramp |k|.

    Exact for spokes spread evenly; (spokes, samples, 2) -> (spokes, samples). Times H W it has the
    units of `density_compensation`.
    """
    spokes, samples = trajectory.shape[:2]
    radius = torch.linalg.vector_norm(trajectory, dim=-1)
    step = 1 / samples
    # The centre of a spoke stands for its share of a disc of half a step.
    area: Tensor = (radius * step).clamp_min(step**2 / 8) * math.pi / spokes
    return area


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; expected at least 1.")
