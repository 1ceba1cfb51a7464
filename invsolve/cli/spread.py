"""The spread of posterior samples as a picture."""

from __future__ import annotations

import numpy as np

from invsolve.cli.photo import Floats, Photo


def spread_map(spread: Floats) -> tuple[Photo, float]:
    """A standard deviation per pixel in the colours of matplotlib's viridis, dark for small.

    Args:
        spread: (H, W, C) standard deviations; channels are joined by their root mean square.

    Returns:
        (picture, the standard deviation that the brightest colour stands for: the 99.5th percentile).
    """
    import matplotlib

    values = np.sqrt((spread.astype(np.float64) ** 2).mean(-1))
    top = float(np.percentile(values, 99.5))
    colours = matplotlib.colormaps["viridis"](np.clip(values / top if top > 0 else values, 0, 1))
    return Photo(np.ascontiguousarray(colours[..., :3], dtype=np.float32)), top
