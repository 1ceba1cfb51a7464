"""A photograph in memory, as the files store it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from invsolve.cli.errors import UserError

Floats = NDArray[np.float32]
Depth = Literal["uint8", "uint16", "float32"]

FULL_SCALE: dict[str, float] = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}


@dataclass(frozen=True, eq=False)
class Photo:
    """Pixels on [0, 1] and what else the file held.

    Args:
        pixels: (H, W, C) float32, C = 1 (grey) or 3 (colour); black is 0, white is 1, upright.
        alpha: (H, W) opacity on [0, 1], or None.
        depth: how the file stores numbers.
        icc: colour profile.
        exif: EXIF block in TIFF form, with the orientation reset to upright.
        repeat_grey: the file stores three equal channels, and so shall the output.
        white: the number that is white in a floating-point file.
        notes: what was left out or converted when reading, one sentence each.
    """

    pixels: Floats
    alpha: Floats | None = None
    depth: Depth = "uint8"
    icc: bytes | None = None
    exif: bytes | None = None
    repeat_grey: bool = False
    white: float = 1.0
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        """Width x height, as people say it."""
        return f"{self.pixels.shape[1]} x {self.pixels.shape[0]}"


def check_size(shown: str, width: int, height: int, max_pixels: int) -> None:
    """Raise UserError for a picture of more than `max_pixels`."""
    if width * height > max_pixels:
        raise UserError(
            f"{shown} has {width} x {height} pixels, {width * height / 1e6:.0f} megapixels, more than the limit of "
            f"{max_pixels / 1e6:g}; cut it into parts or raise --max-megapixels if there is memory for it."
        )


def to_floats(values: NDArray[np.generic], depth: Depth) -> Floats:
    """Stored numbers -> float32 on [0, 1]."""
    return (values.astype(np.float32) / np.float32(FULL_SCALE[depth])).astype(np.float32, copy=False)


def from_floats(values: Floats, depth: Depth, white: float = 1.0) -> NDArray[np.generic]:
    """float32 on [0, 1] -> stored numbers, rounded and clipped; floating-point files are not clipped."""
    if depth == "float32":
        return (values * np.float32(white)).astype(np.float32)
    scale = FULL_SCALE[depth]
    stored: NDArray[np.generic] = np.rint(np.clip(values, 0, 1).astype(np.float64) * scale).astype(depth)
    return stored


def upright(values: NDArray[np.generic], orientation: int) -> NDArray[np.generic]:
    """Undo an EXIF orientation (1 to 8) on an array (H, W, ...)."""
    turned = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }.get(orientation, lambda a: a)(values)
    return np.ascontiguousarray(turned)
