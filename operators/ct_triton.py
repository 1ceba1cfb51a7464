"""The matrix-free CT projector on a GPU: the weights of `ct_weights`, made in registers."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from invsolve.operators.ct_geometry import FanGeometry, ParallelGeometry
from invsolve.operators.ct_projector import Projector
from invsolve.operators.ct_weights import most_bins

_PIXELS = 128
_COLUMNS = 8


@triton.jit  # type: ignore[misc, untyped-decorator, unused-ignore]
def _ramp(z, length):  # type: ignore[no-untyped-def]
    positive = tl.maximum(z, 0.0)
    part = tl.minimum(positive, length)
    return tl.maximum(positive - length, 0.0) + part * part / (2.0 * length)


@triton.jit  # type: ignore[misc, untyped-decorator, unused-ignore]
def _shadow(x, y, cos, sin, lengths, fan: tl.constexpr):  # type: ignore[no-untyped-def]
    """(start, end, rise, fall, height) as in `ct_weights._shadow`."""
    size = tl.load(lengths)
    spacing = tl.load(lengths + 1)
    edge = tl.load(lengths + 2)
    across = x * cos + y * sin
    abs_cos, abs_sin = tl.abs(cos), tl.abs(sin)
    if fan:
        source = tl.load(lengths + 3)
        length = tl.load(lengths + 4)
        along = source - x * sin + y * cos
        side_a, depth_a = (cos + sin) * size / 2, (cos - sin) * size / 2
        side_b, depth_b = (cos - sin) * size / 2, (-cos - sin) * size / 2
        a = length * (across + side_a) / (along + depth_a)
        b = length * (across - side_a) / (along - depth_a)
        c = length * (across + side_b) / (along + depth_b)
        d = length * (across - side_b) / (along - depth_b)
        low_1, high_1 = tl.minimum(a, b), tl.maximum(a, b)
        low_2, high_2 = tl.minimum(c, d), tl.maximum(c, d)
        start, rest_1 = tl.minimum(low_1, low_2), tl.maximum(low_1, low_2)
        rest_2, end = tl.minimum(high_1, high_2), tl.maximum(high_1, high_2)
        rise = tl.maximum((tl.minimum(rest_1, rest_2) - start) / spacing, 1e-12)
        fall = tl.maximum((end - tl.maximum(rest_1, rest_2)) / spacing, 1e-12)
        start, end = (start - edge) / spacing, (end - edge) / spacing
        ray_x, ray_y = tl.abs(across * cos - along * sin), tl.abs(across * sin + along * cos)
        height = size * tl.sqrt(across * across + along * along) / tl.maximum(ray_x, ray_y)
    else:
        centre = (across - edge) / spacing
        outer = (abs_cos + abs_sin) * size / 2 / spacing
        start, end = centre - outer, centre + outer
        rise = tl.maximum(tl.minimum(abs_cos, abs_sin) * size / spacing, 1e-12) + 0.0 * centre
        fall = rise
        height = size / tl.maximum(abs_cos, abs_sin) + 0.0 * centre
    return start, end, rise, fall, height


@triton.jit  # type: ignore[misc, untyped-decorator, unused-ignore]
def _project(  # type: ignore[no-untyped-def]
    pictures,
    rays,
    directions,
    lengths,
    num_pixels,
    width,
    num_columns,
    first_bin,
    kept,
    num_views,
    fan: tl.constexpr,
    bins: tl.constexpr,
    transpose: tl.constexpr,
    block: tl.constexpr,
    columns: tl.constexpr,
) -> None:
    """One block of pixels and columns: added to the rays of one view, or gathered from those of all views."""
    pixel = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    inside = pixel < num_pixels
    mask = inside[:, None] & (column < num_columns)[None, :]
    size = tl.load(lengths)
    x = (pixel % width).to(tl.float64) * size + tl.load(lengths + 5)
    y = tl.load(lengths + 6) - (pixel // width).to(tl.float64) * size
    place = pictures + pixel[:, None] * num_columns + column[None, :]
    if transpose:
        first_view, last_view = 0, num_views
        value = tl.zeros((block, columns), dtype=pictures.dtype.element_ty)
    else:
        first_view, last_view = tl.program_id(2), tl.program_id(2) + 1
        value = tl.load(place, mask=mask, other=0.0)
    for view in range(first_view, last_view):
        cos, sin = tl.load(directions + 2 * view), tl.load(directions + 2 * view + 1)
        start, end, rise, fall, height = _shadow(x, y, cos, sin, lengths, fan)
        first = tl.floor(start)
        before = tl.zeros_like(start)
        for k in range(bins):
            edge = first + k + 1
            up_to = (_ramp(edge - start, rise) - _ramp(edge - end + fall, fall)) * height
            weight = (up_to - before).to(pictures.dtype.element_ty)
            before = up_to
            bin_number = (first + k).to(tl.int64) - first_bin
            seen = mask & ((bin_number >= 0) & (bin_number < kept))[:, None]
            ray = rays + (view * kept + bin_number)[:, None] * num_columns + column[None, :]
            if transpose:
                value += weight[:, None] * tl.load(ray, mask=seen, other=0.0)
            else:
                tl.atomic_add(ray, weight[:, None] * value, mask=seen)
    if transpose:
        tl.store(place, value, mask=mask)


class TritonProjector(Projector):
    """Products with the weights without storing them. Sums in the forward direction are atomic: their order varies."""

    def __init__(self, geometry: ParallelGeometry, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(geometry, dtype, device)
        angles = torch.tensor(self.symmetry.angles, dtype=torch.float64)
        self.directions = torch.stack([angles.cos(), angles.sin()], 1).to(device)
        (height, width), size = geometry.image_shape, geometry.pixel_size
        fan = isinstance(geometry, FanGeometry)
        source, length = 0.0, 0.0
        if isinstance(geometry, FanGeometry):
            source, length = geometry.source_distance, geometry.source_distance + geometry.detector_distance
        left = geometry.image_offset[0] - (width - 1) / 2 * size
        top = geometry.image_offset[1] + (height - 1) / 2 * size
        numbers = [size, geometry.detector_spacing, geometry.detector_start, source, length, left, top]
        self.lengths = torch.tensor(numbers, dtype=torch.float64, device=device)
        self.fan = fan
        self.bins = max(most_bins(geometry, angle) for angle in self.symmetry.angles)

    def multiply(self, pictures: Tensor) -> Tensor:
        rays = pictures.new_zeros((self.symmetry.rows, pictures.shape[1]))
        self._launch(pictures.contiguous(), rays, transpose=False)
        return rays

    def multiply_transpose(self, rays: Tensor) -> Tensor:
        pictures = rays.new_empty((math.prod(self.geometry.image_shape), rays.shape[1]))
        self._launch(pictures, rays.contiguous(), transpose=True)
        return pictures

    def _launch(self, pictures: Tensor, rays: Tensor, *, transpose: bool) -> None:
        num_pixels, num_columns = pictures.shape
        views = len(self.symmetry.angles)
        grid: Any = (triton.cdiv(num_pixels, _PIXELS), triton.cdiv(num_columns, _COLUMNS), 1 if transpose else views)
        _project[grid](
            pictures,
            rays,
            self.directions,
            self.lengths,
            num_pixels,
            self.geometry.image_shape[1],
            num_columns,
            self.symmetry.first_bin,
            self.geometry.detector_count - self.symmetry.first_bin,
            views,
            fan=self.fan,
            bins=self.bins,
            transpose=transpose,
            block=_PIXELS,
            columns=_COLUMNS,
        )
