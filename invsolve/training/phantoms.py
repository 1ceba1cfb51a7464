"""Simulated anatomy: cross-sections of a body with organs, bones and vessels, for CT and for MRI."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.random import Generator
from PIL import Image

Modality = Literal["ct", "mri"]

# Attenuation of tissues as (mean, spread) of the Hounsfield number over 1000; textbook values.
_ATTENUATION = {
    "air": (-1.0, 0.0),
    "lung": (-0.83, 0.06),
    "fat": (-0.1, 0.01),
    "muscle": (0.05, 0.02),
    "organ": (0.05, 0.04),
    "vessel": (0.15, 0.12),
    "bone": (0.8, 0.4),
    "marrow": (0.15, 0.1),
}


def smooth_field(rng: Generator, size: int, points: int) -> np.ndarray:
    """Gaussian values of unit variance at points x points places, bicubic in between; float32 (size, size)."""
    grid = Image.fromarray(rng.standard_normal((points, points)).astype(np.float32))
    return np.array(grid.resize((size, size), Image.Resampling.BICUBIC))


def phantom(rng: Generator, size: int, modality: Modality) -> np.ndarray:
    """One random cross-section: skin, fat and muscle around organs, lungs, bones with marrow, vessels and lesions.

    Ellipses in coordinates that are bent at random; values are shaded and textured.

    Args:
        rng: source of randomness.
        size: side of the image in pixels.
        modality: "ct" for Hounsfield numbers over 1000, "mri" for magnitudes between 0 and about 1, with contrasts
            between the tissues that are drawn anew for every image.

    Returns:
        float32 array (size, size).
    """
    if modality == "ct":
        level = {kind: mean + spread * rng.standard_normal() for kind, (mean, spread) in _ATTENUATION.items()}
    else:
        level = dict(zip(_ATTENUATION, rng.uniform(0.05, 1.0, len(_ATTENUATION)), strict=True))
        level.update(air=0.0, lung=rng.uniform(0, 0.15), bone=rng.uniform(0, 0.15))
    rows, columns = np.mgrid[:size, :size].astype(np.float32) * np.float32(2 / size) - 1
    bend = np.float32(rng.uniform(0.02, 0.12))
    y, x = (axis + bend * smooth_field(rng, size, 5) for axis in (rows, columns))
    image = np.full((size, size), level["air"], np.float32)

    def cover(centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
        """Share of every pixel inside an ellipse, with an edge about one pixel wide."""
        angle = rng.uniform(0, np.pi)
        u = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
        v = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
        distance = (1 - np.hypot(u / radii[0], v / radii[1])) * min(radii)
        share: np.ndarray = np.clip(distance * (size / 2) + 0.5, 0, 1).astype(np.float32)
        return share

    def paint(share: np.ndarray, kind: str, spread: float) -> None:
        value = level[kind] + spread * rng.standard_normal()
        shading = np.float32(0.5 * spread) * smooth_field(rng, size, 4)
        nonlocal image
        image += share * (np.float32(value) + shading - image)

    spread = 0.02 if modality == "ct" else 0.08
    body = float(rng.uniform(0.6, 0.95))
    flat = float(rng.uniform(0.6, 1.0))
    for kind in ("muscle", "fat", "muscle"):  # skin, the fat below it, and what that encloses
        paint(cover((0, 0), (body, body * flat)), kind, spread)
        body -= float(rng.uniform(0.01, 0.1))
    for _ in range(rng.integers(12, 45)):
        kind = str(rng.choice(["organ", "organ", "fat", "vessel", "vessel", "bone", "lung"]))
        largest = {"vessel": 0.05, "bone": 0.15}.get(kind, 0.4)
        distance, direction = body * np.sqrt(rng.random()) * 0.85, rng.uniform(0, 2 * np.pi)
        centre = (distance * np.cos(direction), distance * np.sin(direction) * flat)
        radius = largest * float(rng.uniform(0.1, 1.0)) * max(0.3, 1 - distance)
        radii = (radius, radius * float(rng.uniform(0.4, 1.0)))
        outline = cover(centre, radii)
        paint(outline, kind, spread)
        if kind == "bone":  # marrow inside the cortex
            inner = np.clip(outline + smooth_field(rng, size, 48) * 0.1 - 0.1, 0, 1) * cover(
                centre, (0.7 * radii[0],) * 2
            )
            paint(inner, "marrow", 2 * spread)
    texture = smooth_field(rng, size, int(rng.integers(size // 8, size + 1)))
    image += np.float32(spread * rng.random()) * texture * (image > level["air"] + 0.02)
    return image if modality == "ct" else np.maximum(image, 0)
