"""Scan geometries of two-dimensional computed tomography, in physical units."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Angles = Sequence[float] | np.ndarray | Tensor


class GeometryWarning(UserWarning):
    """A scan that can be computed but does not see the whole object."""


@dataclass(frozen=True, kw_only=True)
class ParallelGeometry:
    """A parallel-beam scan of a square-pixel image.

    ::

                    y                        x points right, y up, the rotation axis is the origin.
                    |    /  rays              View theta: the detector lies along u = (cos theta, sin theta), rays
               -----+---/----> x              run along (-sin theta, cos theta). A ray at position s is the line
                    |  /  theta               x cos(theta) + y sin(theta) = s; at theta = 0 a view sums columns.

    Pixel (i, j) of an H x W image is centred at x = (j - (W-1)/2) pixel_size + image_offset[0],
    y = ((H-1)/2 - i) pixel_size + image_offset[1]; bin k at s = (k - (n-1)/2) detector_spacing + detector_offset.

    Args:
        image_shape: (H, W).
        angles: view angles in radians, counter-clockwise.
        detector_count: number n of bins.
        detector_spacing: width of a bin in mm.
        detector_offset: shift of the detector along u in mm.
        pixel_size: side of a pixel in mm.
        image_offset: centre (x, y) of the image with respect to the rotation axis in mm.

    Raises:
        ValueError: a length that is not positive, no views, or angles that look like degrees.
    """

    image_shape: tuple[int, int]
    angles: tuple[float, ...]
    detector_count: int
    detector_spacing: float = 1.0
    detector_offset: float = 0.0
    pixel_size: float = 1.0
    image_offset: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.image_shape)
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"image_shape is {self.image_shape}; expected (height, width), both positive.")
        object.__setattr__(self, "image_shape", shape)
        object.__setattr__(self, "angles", checked_angles(self.angles))
        object.__setattr__(self, "image_offset", tuple(float(v) for v in self.image_offset))
        if isinstance(self.detector_count, bool) or int(self.detector_count) != self.detector_count:
            raise ValueError(f"detector_count is {self.detector_count!r}; expected a whole number of bins.")
        if self.detector_count < 1:
            raise ValueError(f"detector_count is {self.detector_count}; a detector has at least one bin.")
        for name in ("detector_spacing", "pixel_size"):
            positive_length(name, getattr(self, name))
        for name, value in (("detector_offset", self.detector_offset), ("image_offset", max(self.image_offset))):
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}; expected a length in mm.")
        self._check_distances()

    @property
    def num_views(self) -> int:
        return len(self.angles)

    @property
    def detector_start(self) -> float:
        """Left edge of bin 0 in mm."""
        return self.detector_offset - self.detector_count * self.detector_spacing / 2

    @property
    def field_of_view(self) -> float:
        """Radius in mm of the circle around the rotation axis that every view sees whole (<= 0: none)."""
        return min(-self.detector_start, self.detector_start + self.detector_count * self.detector_spacing)

    @property
    def image_radius(self) -> float:
        """Distance in mm from the rotation axis to the farthest corner of the image."""
        height, width = self.image_shape
        x = abs(self.image_offset[0]) + width * self.pixel_size / 2
        return math.hypot(x, abs(self.image_offset[1]) + height * self.pixel_size / 2)

    def shadow(self, angle: float, radius: float) -> tuple[float, float]:
        """Interval in mm of the detector on which a disc about the image's centre falls."""
        x, y = self.image_offset
        centre = x * math.cos(angle) + y * math.sin(angle)
        return centre - radius, centre + radius

    def _check_distances(self) -> None:
        """Room for the distances of the geometries with a source."""

    def warn_if_truncated(self) -> None:
        """GeometryWarning if the detector ends within the circle inscribed in the image, in some views."""
        # Corners are empty in most scans and detectors are built for the inscribed circle, so only that is asked for.
        radius = min(self.image_shape) * self.pixel_size / 2
        start, end = self.detector_start, self.detector_start + self.detector_count * self.detector_spacing
        shadows = [self.shadow(angle, radius) for angle in self.angles]
        slack = 1.5 * self.detector_spacing  # as much as conventions about the middle pixel differ by
        for side, missing in (
            ("low (bin 0)", [start - low for low, _ in shadows]),
            ("high (last bin)", [high - end for _, high in shadows]),
        ):
            count, worst = sum(m > slack for m in missing), max(missing)
            if count:
                warnings.warn(
                    f"the detector of {self.detector_count} x {self.detector_spacing:g} mm is too narrow: in {count} "
                    f"of {self.num_views} views its {side} side ends up to {worst:.3g} mm short of the circle of "
                    f"radius {radius:g} mm inscribed in the image and truncates it; use more or wider bins.",
                    GeometryWarning,
                    stacklevel=4,
                )


@dataclass(frozen=True, kw_only=True)
class FanGeometry(ParallelGeometry):
    """A fan-beam scan with a flat detector.

    The source of view theta is at source_distance * (sin theta, -cos theta), the detector's middle opposite to it at
    detector_distance from the axis, and its bins lie along u as in `ParallelGeometry`. Lengths on the detector are
    measured there, not at the axis: the magnification at the axis is 1 + detector_distance / source_distance.

    Args:
        source_distance: from the source to the rotation axis, in mm; larger than the image's radius.
        detector_distance: from the rotation axis to the detector, in mm; 0 for a detector scaled to the axis.

    Raises:
        ValueError: as for `ParallelGeometry`, and a source that is not outside the image.
    """

    source_distance: float
    detector_distance: float

    @property
    def magnification(self) -> float:
        """Size on the detector of a unit length at the rotation axis."""
        return 1 + self.detector_distance / self.source_distance

    @property
    def field_of_view(self) -> float:
        half = super().field_of_view
        return self.source_distance * math.sin(math.atan2(half, self.source_distance + self.detector_distance))

    def shadow(self, angle: float, radius: float) -> tuple[float, float]:
        x, y = self.image_offset
        across = x * math.cos(angle) + y * math.sin(angle)
        along = self.source_distance - x * math.sin(angle) + y * math.cos(angle)
        distance = math.hypot(across, along)
        if distance <= radius:
            return -math.inf, math.inf
        middle, half = math.atan2(across, along), math.asin(radius / distance)
        length = self.source_distance + self.detector_distance
        return length * math.tan(middle - half), length * math.tan(middle + half)

    def _check_distances(self) -> None:
        positive_length("source_distance", self.source_distance)
        if not (math.isfinite(self.detector_distance) and self.detector_distance >= 0):
            raise ValueError(
                f"detector_distance is {self.detector_distance} mm; expected the distance from the rotation axis to "
                "the detector, 0 or more."
            )
        if self.source_distance <= self.image_radius:
            raise ValueError(
                f"source_distance is {self.source_distance:g} mm, but the image reaches {self.image_radius:g} mm from "
                "the rotation axis: the source would lie inside it; check pixel_size and the unit of the distances."
            )


def uniform_angles(num_views: int, arc: float = math.pi, start: float = 0.0) -> Tensor:
    """`num_views` view angles spread evenly over `arc` radians without its end point, float64.

    A full parallel scan needs an arc of pi, a full fan-beam scan 2 pi. Few views make the scan sparse.
    """
    if num_views < 1:
        raise ValueError(f"num_views is {num_views}; a scan has at least one view.")
    return start + torch.arange(num_views, dtype=torch.float64) * (arc / num_views)


def limited_angles(num_views: int, start: float, stop: float) -> Tensor:
    """`num_views` view angles from `start` to `stop` radians, both included, float64."""
    if num_views < 1:
        raise ValueError(f"num_views is {num_views}; a scan has at least one view.")
    return torch.linspace(start, stop, num_views, dtype=torch.float64)


def sparse_views(angles: Tensor, keep: int) -> Tensor:
    """`keep` of the given view angles, as evenly spread over the list as whole steps allow."""
    if not 1 <= keep <= len(angles):
        raise ValueError(f"keep is {keep}; expected 1 to {len(angles)}, the number of views given.")
    return angles[torch.arange(keep) * len(angles) // keep]


def checked_angles(angles: Angles | float) -> tuple[float, ...]:
    """View angles as numbers; angles stored in float32 keep their rounding (see `invsolve.operators.ct_symmetry`)."""
    values = np.asarray(angles.detach().cpu() if isinstance(angles, Tensor) else angles, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"angles have shape {values.shape}; expected a list of at least one view angle.")
    if not np.isfinite(values).all():
        raise ValueError("angles contain NaN or infinity; every view needs an angle in radians.")
    largest = float(np.abs(values).max())
    if largest > 4 * math.pi:
        raise ValueError(
            f"angles reach {largest:g}, outside -4 pi to 4 pi: they look like degrees; pass radians "
            "(numpy.deg2rad), modulo 2 pi."
        )
    return tuple(values.tolist())


def positive_length(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a positive, finite length in mm."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; expected a length in mm above 0.")
