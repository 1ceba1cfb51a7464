"""Weights of the CT projectors: how much of each pixel every detector bin sees.

A pixel casts a trapezoidal shadow on the detector, and a bin collects its share of it: the mean over the bin of the
line integrals through the image, as a real detector measures. In a parallel beam that is the exact area of strip and
pixel; in a fan beam it is the separable footprint of Long, Fessler and Balter, IEEE TMI 2010, doi
10.1109/TMI.2010.2050898 (trapezoid through the projected corners, height of the chord through the pixel's centre).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from invsolve.operators.ct_geometry import FanGeometry, ParallelGeometry


def pixel_axes(geometry: ParallelGeometry, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """x of the columns, shape (1, W), and y of the rows, shape (H, 1), in mm, float64."""
    (height, width), (x0, y0) = geometry.image_shape, geometry.image_offset
    x = (torch.arange(width, dtype=torch.float64, device=device) - (width - 1) / 2) * geometry.pixel_size + x0
    y = ((height - 1) / 2 - torch.arange(height, dtype=torch.float64, device=device)) * geometry.pixel_size + y0
    return x[None, :], y[:, None]


def view_weights(geometry: ParallelGeometry, angle: float, first_bin: int = 0) -> tuple[Tensor, Tensor]:
    """Bins under the shadow of every pixel in one view, and their weights.

    Args:
        geometry: scan.
        angle: of the view, in radians.
        first_bin: bins before this one are left out, and counted from it.

    Returns:
        (bins, weights), both (H * W, K): bin numbers, int64, and lengths in mm, float64. Bins outside the detector
        have weight 0 and the number of the nearest bin.
    """
    rise, fall, height = _shadow(geometry, angle)
    start, rise_length = rise
    end, fall_length = fall
    # In units of bins from the detector's edge.
    first = start.floor()
    num_bins = int((end.floor() - first).max()) + 1
    offsets = torch.arange(1, num_bins, dtype=torch.float64)
    edges = first[:, None] + offsets
    inside = _ramp(edges - start[:, None], rise_length) - _ramp(edges - (end[:, None] - fall_length), fall_length)
    whole = end - start - (rise_length + fall_length).squeeze(-1) / 2
    cumulative = torch.cat([torch.zeros_like(start)[:, None], inside, whole[:, None]], 1)
    weights = cumulative.diff(dim=1) * height
    weights.masked_fill_(weights < 1e-10 * geometry.pixel_size, 0)  # round-off beyond the shadow's end
    bins = first.long()[:, None] + torch.arange(num_bins) - first_bin
    count = geometry.detector_count - first_bin
    weights.masked_fill_((bins < 0) | (bins >= count), 0)
    return bins.clamp_(0, count - 1), weights


def _ramp(z: Tensor, length: Tensor) -> Tensor:
    """Integral up to z of a function that rises from 0 at 0 to 1 at `length` and stays there."""
    return z.clamp(min=0).sub_(length).clamp_(min=0) + z.clamp(min=0).minimum(length).square_() / (2 * length)


def _shadow(
    geometry: ParallelGeometry, angle: float
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor | float]:
    """The trapezoids of one view: (start, length of the rise), (end, length of the fall) in bins, height in mm.

    start and end have shape (P,), the lengths (P, 1) or (1, 1), the height (P, 1) or is a number.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    size, spacing = geometry.pixel_size, geometry.detector_spacing
    x, y = pixel_axes(geometry)
    across = x * cos + y * sin
    if not isinstance(geometry, FanGeometry):
        outer = (abs(cos) + abs(sin)) * size / 2
        ramp = torch.full((1, 1), max(min(abs(cos), abs(sin)) * size / spacing, _SHORTEST), dtype=torch.float64)
        centre = (across - geometry.detector_start).flatten() / spacing
        return (centre - outer / spacing, ramp), (centre + outer / spacing, ramp), size / max(abs(cos), abs(sin))

    along = geometry.source_distance - x * sin + y * cos
    length = geometry.source_distance + geometry.detector_distance
    corners = []
    for right, up in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        side, depth = (right * cos + up * sin) * size / 2, (up * cos - right * sin) * size / 2
        corners.append(length * (across + side) / (along + depth))
    low, inner_low, inner_high, high = (
        (torch.stack(corners).sort(dim=0).values.flatten(1) - geometry.detector_start) / spacing
    ).unbind()
    # The ray through the pixel's centre, (across u + along d) / distance.
    ray_x, ray_y = across * cos - along * sin, across * sin + along * cos
    chord = size * torch.hypot(across, along) / torch.maximum(ray_x.abs(), ray_y.abs())
    return (
        (low, (inner_low - low).clamp_min(_SHORTEST)[:, None]),
        (high, (high - inner_high).clamp_min(_SHORTEST)[:, None]),
        chord.flatten()[:, None],
    )


# Rises shorter than this many bins are vertical; without a length the quadratic would divide 0 by 0.
_SHORTEST = 1e-12


def view_matrix(
    geometry: ParallelGeometry, angle: float, first_bin: int, dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One view as a sparse matrix, a row per bin from `first_bin` on: (row pointers, pixel numbers, values)."""
    from scipy.sparse import csr_array

    bins, weights = view_weights(geometry, angle, first_bin)
    used = weights > 0
    pointers = np.zeros(len(bins) + 1, dtype=np.int32)
    np.cumsum(used.sum(1).numpy(), out=pointers[1:])
    values, columns = weights[used].to(dtype).numpy(), bins[used].to(torch.int32).numpy()
    shape = (len(bins), geometry.detector_count - first_bin)
    by_bin = csr_array((values, columns, pointers), shape=shape).tocsc()  # a counting sort
    return by_bin.indptr, by_bin.indices, by_bin.data


def most_bins(geometry: ParallelGeometry, angle: float) -> int:
    """The largest number of bins that a pixel's shadow touches in one view."""
    (start, _), (end, _), _ = _shadow(geometry, angle)
    return int((end.floor() - start.floor()).max()) + 1
