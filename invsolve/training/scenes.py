"""Procedural training scenes: dead leaves, alone or with shading, drawn lines, checks and text on them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?()[]&%+-=/"


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


def mixed_scenes(count: int, size: int, channels: int, seed: int) -> list[Tensor]:
    """Scenes with what dead leaves lack: pages of text, smooth gradients, thin lines, outlines and checks.

    Every second one is drawn over dead leaves, the others over a shaded page.

    Returns:
        `count` uint8 tensors (C, size, size).
    """
    rng = np.random.default_rng(seed)
    scenes = []
    for index in range(count):
        canvas = _scene(rng, size, channels).astype(np.float32) / 255 if index % 2 else _page(rng, size, channels)
        for _ in range(rng.integers(2, 9)):
            cover = _drawing(rng, size)
            colour = rng.random((channels, 1, 1), dtype=np.float32) * np.float32(rng.random() < 0.6)
            canvas += cover * (colour - canvas)
        scenes.append(torch.from_numpy((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)))
    return scenes


def _page(rng: Generator, size: int, channels: int) -> np.ndarray:
    """A background that changes slowly: its colour at 4 x 4 points, smoothly in between."""
    shades = np.clip(rng.random() + rng.choice([0.0, 0.1, 0.4]) * rng.standard_normal((channels, 4, 4)), 0, 1)
    planes = [
        Image.fromarray(plane.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC) for plane in shades
    ]
    return np.stack([np.asarray(plane, dtype=np.float32) for plane in planes])


def _drawing(rng: Generator, size: int) -> np.ndarray:
    """Share of every pixel that one drawn thing covers, (size, size); drawn twice as large for smooth edges."""
    layer = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(layer)
    kind = rng.integers(4)
    points = [(float(x), float(y)) for x, y in rng.uniform(0, 2 * size, (int(rng.integers(2, 7)), 2))]
    width = int(rng.integers(1, 9))
    if kind == 0:
        font = ImageFont.load_default(float(2 ** rng.uniform(4, 6.5)))
        for _ in range(rng.integers(1, 8)):
            text = "".join(_LETTERS[i] for i in rng.integers(0, len(_LETTERS), rng.integers(3, 25)))
            draw.text((rng.uniform(-size / 2, size), rng.uniform(0, 2 * size)), text, fill=255, font=font)
    elif kind == 1:
        draw.line(points, fill=255, width=width, joint="curve")
    elif kind == 2:
        left, top = points[0]
        box = (left, top, left + rng.uniform(8, size), top + rng.uniform(8, size))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, outline=255, width=width)
    else:
        step, high = rng.uniform(4, 60, 2)
        left, top = points[0]
        for row in range(6):
            for column in range(row % 2, 12, 2):
                x, y = left + column * step, top + row * high
                draw.rectangle((x, y, x + step, y + high), fill=255)
    if rng.random() < 0.5:
        layer = layer.rotate(float(rng.uniform(0, 360)), Image.Resampling.BILINEAR)
    return np.asarray(layer.reduce(2), dtype=np.float32) / 255
