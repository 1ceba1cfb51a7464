"""Training images: photographs from a folder, and procedurally generated scenes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, UnidentifiedImageError
from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".npy"}


def load_images(folder: str | os.PathLike[str], channels: int) -> list[Tensor]:
    """All images below a folder as uint8 tensors.

    `.npy` files hold one packed uint8 array, (N, H, W), (N, H, W, C) or (H, W, C) with C in 1, 2, 3.

    Args:
        folder: searched recursively.
        channels: 1, 2 or 3; pictures are converted to grey or colour, arrays must match.

    Returns:
        One (C, H, W) uint8 tensor per image, in the order of the file names.

    Raises:
        ValueError: no usable image, or an array of another type or number of channels.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of training images.")
    images: list[Tensor] = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        if path.suffix.lower() == ".npy":
            images += _load_packed(path, channels)
            continue
        if channels == 2:
            raise ValueError(f"{path}: a 2-channel (complex) prior trains on packed .npy arrays, not on pictures.")
        try:
            with Image.open(path) as picture:
                if picture.mode[0] in "IF":  # PIL would clip them at 255
                    raise ValueError(
                        f"{path} has 16-bit or float pixels (PIL mode {picture.mode}); convert it to 8 bits."
                    )
                array = np.array(picture.convert("RGB" if channels == 3 else "L"))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{path} is not a readable image ({error}).") from error
        images.append(torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1))
    if not images:
        raise ValueError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}).")
    return images


def _load_packed(path: Path, channels: int) -> list[Tensor]:
    try:
        array = np.load(path, allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable array ({error}).") from error
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ValueError(f"{path}: expected a uint8 array (N, H, W[, C]), found {array.dtype} {array.shape}.")
    if array.ndim == 3:
        array = array[None] if array.shape[-1] == channels else array[..., None]
    if array.shape[-1] != channels:
        raise ValueError(f"{path}: {array.shape[-1]} channels, expected {channels}.")
    return list(torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2))))


def dead_leaves(count: int, size: int, channels: int, seed: int) -> list[Tensor]:
    """Procedural scenes: overlapping discs, boxes and half-planes whose radii follow r^-3, flat, shaded or textured.

    The dead-leaves model has the occlusion edges and scale invariance of photographs (Lee, Mumford and Huang 2001),
    and costs no data.

    Returns:
        `count` uint8 tensors (C, size, size).
    """
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(_scene(rng, size, channels)) for _ in range(count)]


def _scene(rng: Generator, size: int, channels: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    canvas = _texture(rng, rows, columns, channels)
    smallest, largest = 2.0, size / 2
    radii = (
        smallest**-2 - rng.random(rng.integers(60, 500)) * (smallest**-2 - largest**-2)
    ) ** -0.5  # inverse CDF of r^-3
    for radius in radii:
        row, column = rng.uniform(0, size, 2)
        box = tuple(slice(max(0, int(c - radius)), min(size, int(c + radius) + 2)) for c in (row, column))
        r, c = rows[box] - row, columns[box] - column
        angle = rng.uniform(0, np.pi)
        u, v = r * np.cos(angle) + c * np.sin(angle), c * np.cos(angle) - r * np.sin(angle)
        aspect = rng.uniform(0.3, 1.0)
        kind = rng.integers(3)
        distance = (
            np.hypot(u, v / aspect)
            if kind == 0
            else np.maximum(abs(u), abs(v) / aspect) * 1.3
            if kind == 1
            else np.maximum(np.hypot(r, c), u * 3)
        )
        softness = rng.choice([0.5, 0.5, 1.0, 2.0])
        cover = np.clip((radius - distance) / softness + 0.5, 0, 1)
        canvas[:, *box] += cover * (_texture(rng, r, c, channels) - canvas[:, *box])
    pixels: np.ndarray = (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels


def _texture(rng: Generator, rows: np.ndarray, columns: np.ndarray, channels: int) -> np.ndarray:
    shape = (channels, 1, 1)
    grey = rng.random()
    colour = np.clip(grey + rng.choice([0.05, 0.25]) * rng.standard_normal(shape), 0, 1).astype(np.float32)
    fill = np.broadcast_to(colour, (channels, *rows.shape)).copy()
    kind = rng.random()
    if kind < 0.35:
        slope = rng.normal(0, 0.004, (2, *shape)).astype(np.float32)
        fill += slope[0] * rows + slope[1] * columns
    elif kind < 0.5:
        frequency, angle = 10 ** rng.uniform(-1.5, -0.4), rng.uniform(0, np.pi)
        wave = np.sin(2 * np.pi * frequency * (rows * np.cos(angle) + columns * np.sin(angle)) + rng.uniform(0, 6))
        fill += rng.normal(0, 0.12, shape).astype(np.float32) * (np.sign(wave) if rng.random() < 0.3 else wave)
    elif kind < 0.65:
        fill += rng.uniform(0.01, 0.1) * rng.standard_normal((1, *rows.shape)).astype(np.float32)
    return fill


class CropSource:
    """Random square crops with flips and quarter turns, reproducible from (seed, step) alone.

    Drawing depends on the step and not on what was drawn before, so a run resumed at step k sees what an
    uninterrupted run would have seen.
    """

    def __init__(self, photographs: Sequence[Tensor], scenes: Sequence[Tensor], crop: int, share: float) -> None:
        self.photographs = [image for image in photographs if min(image.shape[-2:]) >= crop]
        if not self.photographs:
            raise ValueError(f"no training image is at least {crop} x {crop} pixels; use a smaller --crop.")
        self.scenes = scenes
        self.crop = crop
        self.share = share if scenes else 0.0

    def batch(self, size: int, seed: int, step: int) -> Tensor:
        """uint8 batch of shape (size, C, crop, crop)."""
        rng = np.random.default_rng((seed, step))
        crops = []
        for _ in range(size):
            pool = self.scenes if rng.random() < self.share else self.photographs
            image = pool[int(rng.integers(len(pool)))]
            top, left = (int(rng.integers(n - self.crop + 1)) for n in image.shape[-2:])
            crop = image[:, top : top + self.crop, left : left + self.crop]
            crop = crop.rot90(int(rng.integers(4)), dims=(-2, -1))
            crops.append(crop.flip(-1) if rng.random() < 0.5 else crop)
        return torch.stack(crops)
