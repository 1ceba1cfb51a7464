"""Views of a scan that are the same view of a turned or mirrored image.

A view at theta + pi/2 of an image is the view at theta of the image turned by -pi/2, and so for mirrored images. Evenly
spread views fall into groups of up to eight, of which the weights of one suffice: a single projector row is applied to
eight pictures of the image at once. That divides memory and building time by eight, and turns the product of a matrix
with one image, which only moves the matrix through the machine, into one with eight, which computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from invsolve.operators.ct_geometry import FanGeometry, ParallelGeometry

Element = tuple[int, bool]
"""(quarter turns counter-clockwise, whether mirrored top to bottom before)."""

_TURN: tuple[Element, ...] = ((0, False), (1, False), (2, False), (3, False))
_MIRROR: tuple[Element, ...] = ((0, False), (2, False), (0, True), (2, True))
_ALL: tuple[Element, ...] = (*_TURN, (0, True), (1, True), (2, True), (3, True))
_GROUPS: tuple[tuple[Element, ...], ...] = (
    _ALL,
    _TURN,
    _MIRROR,
    ((0, False), (2, False)),
    ((0, False), (0, True)),
    ((0, False), (2, True)),
    ((0, False),),
)

# Rays computed and thrown away, as a share of those needed, up to which a larger group is worth it.
_WASTE = 0.25


@dataclass(frozen=True, eq=False)
class Symmetry:
    """Which rays are computed, of which pictures of the image, and where they go.

    Args:
        elements: the pictures, G of them, the image itself first.
        angles: views that are computed.
        first_bin: bins before this one are not computed.
        rows: computed rays per picture, views times bins.
        index: for every ray of the scan (views * bins), its row times G plus its picture, int64.
        counts: how often each (row, picture) occurs in `index`, shape (rows, G); None where each occurs once.
    """

    elements: tuple[Element, ...]
    angles: tuple[float, ...]
    first_bin: int
    rows: int
    index: Tensor
    counts: Tensor | None

    def expand(self, x: Tensor) -> Tensor:
        """The pictures of images (B, H, W), shape (H * W, G * B)."""
        batch, height, width = x.shape
        out = x.new_empty((height, width, len(self.elements), batch))
        x = x.permute(1, 2, 0)
        for number, (turns, mirrored) in enumerate(self.elements):
            out[:, :, number] = torch.rot90(x.flip(0) if mirrored else x, turns) if turns or mirrored else x
        return out.flatten(2).flatten(0, 1)

    def collapse(self, pictures: Tensor, height: int, width: int) -> Tensor:
        """The transpose of `expand`."""
        parts = pictures.reshape(height, width, len(self.elements), -1)
        out = parts[:, :, 0].clone()
        for number, (turns, mirrored) in enumerate(self.elements[1:], 1):
            part = torch.rot90(parts[:, :, number], -turns) if turns else parts[:, :, number]
            out += part.flip(0) if mirrored else part
        return out.permute(2, 0, 1).contiguous()

    def gather(self, rays: Tensor) -> Tensor:
        """All rays of the scan (B, views * bins) from the computed ones (rows, G * B)."""
        return rays.reshape(self.rows * len(self.elements), -1).index_select(0, self.index).T.contiguous()

    def scatter(self, y: Tensor) -> Tensor:
        """The transpose of `gather`."""
        rays = y.new_zeros((self.rows * len(self.elements), len(y)))
        return rays.index_add_(0, self.index, y.T.contiguous()).reshape(self.rows, -1)

    def gram(self, rays: Tensor) -> Tensor:
        """`scatter(gather(rays))`, in place."""
        if self.counts is not None:
            counts = self.counts.to(rays.dtype)[..., None]
            rays.reshape(self.rows, len(self.elements), -1).mul_(counts)
        return rays

    def to(self, device: torch.device) -> Symmetry:
        counts = None if self.counts is None else self.counts.to(device)
        return Symmetry(self.elements, self.angles, self.first_bin, self.rows, self.index.to(device), counts)


@dataclass(frozen=True)
class Reduction:
    """Which views are computed of which pictures, before the single rays are looked at.

    Args:
        elements: as in `Symmetry`.
        angles: as in `Symmetry`.
        first_bin: as in `Symmetry`.
        places: for every view of the scan its computed view, and the (picture, detector reversed) that give it.
    """

    elements: tuple[Element, ...]
    angles: tuple[float, ...]
    first_bin: int
    places: tuple[tuple[int, list[tuple[int, bool]]], ...]

    def rows(self, detector_count: int) -> int:
        return len(self.angles) * (detector_count - self.first_bin)


def reduce_views(geometry: ParallelGeometry) -> Reduction:
    """The largest group of pictures that the scan can use without computing many rays for nothing."""
    needed = geometry.num_views * geometry.detector_count
    found = None
    for elements in _GROUPS:
        if _allowed(geometry, elements):
            found = _match(geometry, elements)
            if found.rows(geometry.detector_count) * len(elements) <= (1 + _WASTE) * needed:
                break
    if found is None:
        raise AssertionError("the last group is always allowed")
    return found


def find_symmetry(geometry: ParallelGeometry) -> Symmetry:
    """`reduce_views`, and where every ray of the scan is then found."""
    reduced, bins = reduce_views(geometry), geometry.detector_count
    num_elements, kept = len(reduced.elements), bins - reduced.first_bin
    bin_numbers = torch.arange(bins)
    index = torch.full((geometry.num_views, bins), -1, dtype=torch.int64)
    for view, (number, ways) in enumerate(reduced.places):
        for position, reversed_detector in ways:
            source = (bins - 1 - bin_numbers if reversed_detector else bin_numbers) - reduced.first_bin
            place = (number * kept + source) * num_elements + position
            index[view] = torch.where((index[view] < 0) & (source >= 0), place, index[view])
    rows = reduced.rows(bins)
    counts = torch.bincount(index.flatten(), minlength=rows * num_elements).reshape(rows, num_elements)
    uneven = counts if bool((counts != 1).any()) else None
    return Symmetry(reduced.elements, reduced.angles, reduced.first_bin, rows, index.flatten(), uneven)


def _allowed(geometry: ParallelGeometry, elements: tuple[Element, ...]) -> bool:
    x, y = geometry.image_offset
    turned = any(turns for turns, _ in elements)
    quarter = any(turns % 2 for turns, _ in elements)
    if (turned and (x, y) != (0, 0)) or (quarter and geometry.image_shape[0] != geometry.image_shape[1]):
        return False
    # A mirrored fan falls on the mirrored detector. A parallel beam mirrored top to bottom keeps its detector.
    uneven = (x, y) != (0, 0) or (isinstance(geometry, FanGeometry) and geometry.detector_offset != 0)
    return not (uneven and any(mirrored for _, mirrored in elements))


def _images(geometry: ParallelGeometry, angle: float, element: Element) -> list[tuple[float, bool]]:
    """The (angle, detector reversed) of the scan's views that a view of a picture of the image amounts to."""
    turns, mirrored = element
    angle = angle - turns * math.pi / 2
    if isinstance(geometry, FanGeometry):
        return [(math.pi - angle, True)] if mirrored else [(angle, False)]
    angle = -angle if mirrored else angle
    return [(angle, False)] if geometry.detector_offset != 0 else [(angle, False), (angle + math.pi, True)]


def _match(geometry: ParallelGeometry, elements: tuple[Element, ...]) -> Reduction:
    # Angles stored in float32 are known to that precision only: views that agree to it count as the same.
    exact = np.asarray(geometry.angles)
    step = 1e-6 if np.array_equal(exact, exact.astype(np.float32)) else 1e-11
    # Where the half turn maps each view of a parallel beam onto itself, half of the detector is enough.
    half = not isinstance(geometry, FanGeometry) and geometry.detector_offset == 0 and (2, False) in elements
    first_bin = geometry.detector_count // 2 if half else 0

    known: dict[int, tuple[int, list[tuple[int, bool]]]] = {}
    angles: list[float] = []
    places: list[tuple[int, list[tuple[int, bool]]]] = []
    for angle in geometry.angles:
        key = _key(angle, step)
        found = next((known[k] for k in (key, *_neighbours(key, step)) if k in known), None)
        if found is None:
            number = len(angles)
            angles.append(angle)
            for position, element in enumerate(elements):
                for seen, reversed_detector in _images(geometry, angle, element):
                    entry = known.setdefault(_key(seen, step), (number, []))
                    if entry[0] == number:
                        entry[1].append((position, reversed_detector))
            found = known[key]
        places.append(found)

    return Reduction(elements, tuple(angles), first_bin, tuple(places))


def _key(angle: float, step: float) -> int:
    return round(math.fmod(math.fmod(angle, 2 * math.pi) + 2 * math.pi, 2 * math.pi) / step)


def _neighbours(key: int, step: float) -> tuple[int, ...]:
    turn = round(2 * math.pi / step)
    return key - 1, key + 1, key + turn, key - turn, key + turn - 1, key - turn + 1
