"""Samples over the exact posterior, in two dimensions."""

from __future__ import annotations

from pathlib import Path

import torch

from invsolve.certify.mixture import SCALE, MixtureProblem, draw, weight_error
from invsolve.samplers.base import Sampler

SEED = 3
"""Of the problem in the picture: a posterior with several modes."""


def picture(sampler: Sampler, path: Path, title: str, samples: int = 1000, seed: int = 0) -> float:
    """Write a PNG with a sampler's cloud beside exact samples, both over the exact density; returns the weight error.

    Args:
        sampler: any.
        path: file to write.
        title: above the picture.
        samples: points in each panel.
        seed: of the draws.
    """
    from matplotlib.figure import Figure

    problem = MixtureProblem.make(2, 1, SEED)
    generator = torch.Generator().manual_seed(seed)
    x, _ = draw(sampler, problem, samples, generator)
    x = x.detach().flatten(1)
    exact = problem.exact(samples, generator).flatten(1)
    axis = torch.linspace(-21, 21, 211, dtype=torch.float64) / SCALE
    grid = torch.cartesian_prod(axis, axis)
    density = problem.log_density(grid.reshape(-1, 1, 1, 2)).reshape(211, 211)
    density = (density - density.max()).clamp_min(-12)
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    error = weight_error(x, problem)
    for axes, points, caption in (
        (left, exact, "exact samples"),
        (right, x, f"{title}; {100 * error:.0f} % of the weight in wrong modes"),
    ):
        edges = (SCALE * axis).tolist()
        axes.contourf(edges, edges, density.T.tolist(), levels=12, cmap="Blues")
        shown = (SCALE * points).clamp(-21, 21)
        axes.scatter(shown[:, 0].tolist(), shown[:, 1].tolist(), s=3, c="tab:orange", linewidths=0)
        axes.set_title(caption, fontsize=10)
        axes.set_aspect("equal")
    figure.savefig(path, format="png", dpi=110)
    return error
