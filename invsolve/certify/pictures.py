"""Samples over the exact posterior, in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from invsolve.certify.mixture import SCALE, MixtureProblem, draw, weight_error
from invsolve.samplers.base import Sampler

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEED = 3
"""Of the problem in the picture: a posterior with several modes."""
LIMIT = 21.0
"""Half the width of the panels, in the units of the paper; points outside are shown on the edge."""


def pictured_problem() -> MixtureProblem:
    """The two-dimensional problem of all pictures."""
    return MixtureProblem.make(2, 1, SEED)


@dataclass(frozen=True)
class PointCloud:
    """Samples of `pictured_problem`.

    Args:
        points: shape (N, 2), model units.
        weight_error: see `invsolve.certify.mixture.weight_error`.
    """

    points: Tensor
    weight_error: float


def point_cloud(sampler: Sampler | None, samples: int = 1000, seed: int = 0) -> PointCloud:
    """Samples of a sampler, or exact ones."""
    problem, generator = pictured_problem(), torch.Generator().manual_seed(seed)
    x = problem.exact(samples, generator) if sampler is None else draw(sampler, problem, samples, generator)[0]
    points = x.detach().flatten(1)
    return PointCloud(points, weight_error(points, problem))


def picture(clouds: Mapping[str, PointCloud], path: Path) -> None:
    """Write a PNG with a panel of exact samples and one for each cloud, all over the exact density.

    Args:
        clouds: by method.
        path: file to write.
    """
    from matplotlib.figure import Figure

    panels = {"exact": point_cloud(None), **clouds}
    columns = min(len(panels), 5)
    rows = math.ceil(len(panels) / columns)
    side = 4.3 if len(panels) == 2 else 2.3
    figure = Figure(figsize=(side * columns, (side + 0.3) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, (name, cloud) in zip(axes, panels.items(), strict=False):
        _draw_panel(panel, cloud.points)
        note = "" if name == "exact" else f": {100 * cloud.weight_error:.0f} % in wrong modes"
        panel.set_title(name + note, fontsize=9)
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    figure.savefig(path, format="png", dpi=100)


def _draw_panel(axes: Axes, points: Tensor) -> None:
    problem = pictured_problem()
    edge = torch.linspace(-LIMIT, LIMIT, 211, dtype=torch.float64)
    grid = torch.cartesian_prod(edge, edge) / SCALE
    density = problem.log_density(grid.reshape(-1, 1, 1, 2)).reshape(211, 211)
    density = (density - density.max()).clamp_min(-12)
    axes.contourf(edge.tolist(), edge.tolist(), density.T.tolist(), levels=12, cmap="Blues")
    shown = (SCALE * points).clamp(-LIMIT, LIMIT)
    axes.scatter(shown[:, 0].tolist(), shown[:, 1].tolist(), s=2, c="tab:orange", linewidths=0)
    axes.set_aspect("equal")
