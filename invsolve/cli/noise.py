"""The noise level of a photograph nobody measured."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from invsolve.cli.errors import UserError
from invsolve.cli.photo import FULL_SCALE, Depth, Floats

MEDIAN_OF_HALF_NORMAL = 0.6744897501960817


def estimate_noise(pixels: Floats, known: NDArray[np.bool_] | None = None) -> float:
    """Standard deviation of white noise, from the median size of the finest diagonal Haar details.

    Edges are few among those details, so that the median hardly sees them (Donoho and Johnstone 1994). Very fine
    texture counts as noise.

    Args:
        pixels: (H, W, C) on [0, 1].
        known: (H, W), False where pixels hold nothing; details that touch such a pixel are left out.

    Returns:
        Noise standard deviation on the scale of `pixels`; 0 for images too small to tell.
    """
    height, width, channels = pixels.shape
    good = np.ones((height, width), bool) if known is None else known
    if min(height, width) > 1:
        a, b, c, d = (pixels[i : height - 1 + i, j : width - 1 + j] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)))
        details: NDArray[np.floating] = (a - b - c + d) / 2
        whole = good[:-1, :-1] & good[:-1, 1:] & good[1:, :-1] & good[1:, 1:]
    else:
        line, marks = pixels.reshape(-1, channels), good.reshape(-1)
        details, whole = (line[1:] - line[:-1]) / np.float32(math.sqrt(2)), marks[1:] & marks[:-1]
    if not whole.any():
        return 0.0
    sizes = np.abs(details[whole])
    return float(np.mean(np.median(sizes, axis=0))) / MEDIAN_OF_HALF_NORMAL


def rounding_noise(depth: Depth) -> float:
    """Standard deviation of the rounding to whole numbers that an image file did."""
    return 1e-5 if depth == "float32" else 1 / FULL_SCALE[depth] / math.sqrt(12)


def parse_noise(text: str) -> float | None:
    """`--noise-std` as a number, None for "auto"; "25/255" is understood.

    Raises:
        UserError: not a number, negative, or more than the whole range from black to white.
    """
    if text.strip().lower() == "auto":
        return None
    top, _, bottom = text.partition("/")
    try:
        value = float(top) / (float(bottom) if bottom else 1.0)
    except (ValueError, ZeroDivisionError):
        raise UserError(
            f"--noise-std is {text!r}; expected auto, or a number for black = 0 and white = 1 such as 0.1 or 25/255."
        ) from None
    if not math.isfinite(value) or value < 0:
        raise UserError(f"--noise-std is {text}; expected a number >= 0, for black = 0 and white = 1.")
    if value > 1:
        hint = f"; did you mean {value:g}/255?" if value <= 255 else "."
        raise UserError(f"--noise-std is {text}, more than the whole range from black (0) to white (1){hint}")
    return value
