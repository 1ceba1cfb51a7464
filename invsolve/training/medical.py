"""Random views of medical slices in model units: turned, zoomed, with other contrasts, shading and phase."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor

from invsolve.training.phantoms import phantom, smooth_field
from invsolve.training.slices import Slice

HOUNSFIELD_UNIT = 1000.0
"""CT in model units is the Hounsfield number over this: air -1, water 0, bone 0.3 to 1.5.

In attenuation that is mu_water (1 + x). With 0.02/mm for water, `data_range` (0, 0.04) 1/mm is (-1, 1) in the model.
"""
LARGEST_CT = 3.071
"""Metal is clipped here, at the end of the scanners' usual range."""


class SliceSource(ABC):
    """Random square views of slices and of simulated anatomy, reproducible from (seed, step) alone.

    Two views in five are windows of the slice as it is, turned by quarters and mirrored, with the scan's own sharpness
    and noise; the others are turned by any angle and zoomed.

    Args:
        images: planes (C, H, W) each; what they mean is up to the class.
        patients: whose slice each of them is. A patient's share of the views grows as the root of the number of slices.
        scenes: simulated ones, the same planes.
        crop: side of the views in pixels.
        share: share of the views that come from `scenes`.
        zoom: smallest and largest step in pixels of the slice between pixels of the view.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        patients: Sequence[str],
        scenes: Sequence[Tensor],
        crop: int,
        share: float,
        zoom: tuple[float, float] = (0.6, 2.2),
    ) -> None:
        self.images, self.scenes, self.crop, self.zoom = images, scenes, crop, zoom
        self.share = share if scenes else 0.0
        weights = np.array([patients.count(name) ** -0.5 for name in patients])
        self._upto = np.cumsum(weights / weights.sum())
        self._inside = {id(image): self.interesting(image).nonzero().to(torch.int16) for image in (*images, *scenes)}

    @abstractmethod
    def interesting(self, image: Tensor) -> Tensor:
        """Where the body is, bool (H, W)."""

    @abstractmethod
    def finish(self, view: Tensor, rng: Generator) -> Tensor:
        """Planes of a view (C, crop, crop) -> the training image in model units."""

    def batch(self, size: int, seed: int, step: int) -> Tensor:
        """float32 batch in model units, (size, channels, crop, crop)."""
        rng = np.random.default_rng((seed, step))
        views = []
        for _ in range(size):
            if rng.random() < self.share:
                image = self.scenes[int(rng.integers(len(self.scenes)))]
            else:
                image = self.images[min(int(np.searchsorted(self._upto, rng.random())), len(self.images) - 1)]
            view = self._window(image, rng) if rng.random() < 0.4 else self._turned(image, rng)
            view = view.rot90(int(rng.integers(4)), dims=(-2, -1))
            view = view.flip(-1) if rng.random() < 0.5 else view
            views.append(self.finish(view, rng))
        return torch.stack(views)

    def _centre(self, image: Tensor, rng: Generator) -> tuple[int, int]:
        """Middle of a view: mostly a place inside the body, as most of a slice is air."""
        inside = self._inside[id(image)]
        if len(inside) and rng.random() < 0.9:
            row, column = inside[int(rng.integers(len(inside)))].tolist()
            return row, column
        return int(rng.integers(image.shape[-2])), int(rng.integers(image.shape[-1]))

    def _cut(self, image: Tensor, centre: tuple[int, int], side: int) -> Tensor:
        """A window of about this centre that lies inside; slices that are too small are continued at their edges."""
        if min(image.shape[-2:]) < side:
            missing = [max(0, side - n) for n in image.shape[-2:]]
            around = (missing[1] // 2, -(-missing[1] // 2), missing[0] // 2, -(-missing[0] // 2))
            image = F.pad(image[None], around, mode="replicate")[0]
        top, left = (min(max(0, c - side // 2), n - side) for c, n in zip(centre, image.shape[-2:], strict=True))
        return image[:, top : top + side, left : left + side]

    def _window(self, image: Tensor, rng: Generator) -> Tensor:
        return self._cut(image, self._centre(image, rng), self.crop).clone()

    def _turned(self, image: Tensor, rng: Generator) -> Tensor:
        step = math.exp(rng.uniform(*np.log(self.zoom)))
        angle = rng.uniform(-math.pi / 4, math.pi / 4)  # quarter turns come on top
        side = math.ceil(self.crop * step * math.sqrt(2)) + 4
        side += side % 2
        source = self._cut(image, self._centre(image, rng), side)[None]
        if step > 1.4:  # against aliasing
            source = F.avg_pool2d(source, 2)
        reach = step * self.crop / side
        cos, sin = reach * math.cos(angle), reach * math.sin(angle)
        affine = torch.tensor([[[cos, -sin, 0.0], [sin, cos, 0.0]]])
        grid = F.affine_grid(affine, [1, 1, self.crop, self.crop], align_corners=False)
        return F.grid_sample(source, grid, mode="bicubic", padding_mode="border", align_corners=False)[0]


class ComplexSource(SliceSource):
    """MR images, real and imaginary part, with the 99th percentile of a slice's magnitude at about 1.

    Magnitudes get a smooth random phase; all views get a smooth shading as of receive coils and a random brightness,
    half of them a background of exactly 0 as behind coil maps, and magnitudes another contrast curve.

    Args:
        slices: magnitudes or complex images of any scale.
        scenes: number of simulated slices.
        crop: side of the views.
        share: share of the views that come from simulated slices.
        seed: of the simulated slices.
    """

    def __init__(self, slices: Sequence[Slice], scenes: int, crop: int, share: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        used = [item for item in slices if np.abs(item.pixels).max() > 0]
        images = [_planes(item.pixels) for item in used]
        simulated = [_planes(phantom(rng, max(256, crop), "mri")) for _ in range(scenes)]
        super().__init__(images, [item.patient for item in used], simulated, crop, share)

    def interesting(self, image: Tensor) -> Tensor:
        return image[2] > 0.5

    def finish(self, view: Tensor, rng: Generator) -> Tensor:
        size = self.crop
        real, imaginary, body = view.numpy()
        image = real + 1j * imaginary
        if not imaginary.any():
            image = _contrast(np.maximum(real, 0), rng).astype(np.complex64)
        if rng.random() < 0.5:
            image = image * np.clip(body, 0, 1)
        phase = rng.uniform(0, 2 * np.pi) + rng.uniform(0, 1.5) * smooth_field(rng, size, 3)
        brightness = -0.4 + 0.4 * rng.standard_normal() + rng.uniform(0, 0.5) * smooth_field(rng, size, 3)
        image = image * np.exp(brightness + 1j * phase)
        return torch.from_numpy(np.stack((image.real, image.imag)).astype(np.float32))


def _planes(pixels: np.ndarray) -> Tensor:
    """Real part, imaginary part, and where the object is (its holes filled), (3, H, W)."""
    from scipy.ndimage import binary_fill_holes, gaussian_filter

    image = pixels.astype(np.complex64) / max(float(np.percentile(np.abs(pixels), 99)), 1e-30)
    body = binary_fill_holes(gaussian_filter(np.abs(image), 1.5) > 0.1)
    return torch.from_numpy(np.stack((image.real, image.imag, body)).astype(np.float32))


def _contrast(magnitude: np.ndarray, rng: Generator) -> np.ndarray:
    """Another weighting of the tissues: a power, or now and then a curve that need not rise."""
    if rng.random() < 0.1:
        knots = np.linspace(0, 1.5, 5)
        return np.asarray(np.interp(magnitude, knots, np.concatenate(([0.0], rng.uniform(0.05, 1.0, 4)))))
    return np.asarray(magnitude ** math.exp(0.25 * rng.standard_normal()))


class AttenuationSource(SliceSource):
    """CT slices as Hounsfield numbers over 1000, with other calibrations, soft-tissue contrasts and bone densities.

    Args:
        slices: Hounsfield numbers.
        scenes: number of simulated slices.
        crop: side of the views.
        share: share of the views that come from simulated slices.
        seed: of the simulated slices.
    """

    def __init__(self, slices: Sequence[Slice], scenes: int, crop: int, share: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        images = [ct_planes(item) for item in slices]
        simulated = [torch.from_numpy(phantom(rng, max(256, crop), "ct")[None]) for _ in range(scenes)]
        super().__init__(images, [item.patient for item in slices], simulated, crop, share)

    def interesting(self, image: Tensor) -> Tensor:
        return image[0] > -0.6

    def finish(self, view: Tensor, rng: Generator) -> Tensor:
        pixels = view.numpy().clip(-1.024, LARGEST_CT)
        if rng.random() < 0.6:
            knots = np.array([-1.024, -1.0, -0.2, 0.0, 0.2, LARGEST_CT])
            steps = np.diff(knots) * np.exp(np.array([0, 0.05, 0.3, 0.3, 0.15]) * rng.standard_normal(5))
            curve = np.concatenate(([0.0], np.cumsum(steps)))
            curve += 0.02 * rng.standard_normal() - curve[3]  # water stays near 0
            curve[0], curve[1] = -1.024, -1.0  # and air where it is
            pixels = np.interp(pixels, knots, np.maximum.accumulate(curve)).clip(-1.024, LARGEST_CT)
        return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))


def ct_planes(item: Slice) -> Tensor:
    """A slice in model units, (1, H, W)."""
    return torch.from_numpy((item.pixels / HOUNSFIELD_UNIT).clip(-1.024, LARGEST_CT).astype(np.float32))[None]


def mri_planes(item: Slice) -> Tensor:
    """A slice in model units: the 99th percentile of its magnitude is 1; (2, H, W)."""
    return _planes(item.pixels)[:2]
