"""Blur kernels: Gaussian, straight and random motion, defocus, and the check of a user's own.

Every function returns a 2-D float32 tensor with sum 1, to be given to `invsolve.operators.Blur`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

RandomSource = torch.Generator | np.random.Generator | int | None


def check_kernel(kernel: Tensor | np.ndarray | Sequence[Sequence[float]], *, normalise: bool = True) -> Tensor:
    """A user's kernel as a floating-point tensor, once it is known to be one.

    `Blur` applies whatever kernel it is given; this check is for blurs that keep the brightness of the image.

    Args:
        kernel: real numbers, shape (kh, kw). Negative values are allowed (sharpening lobes).
        normalise: divide by the sum. If False the values are kept as they are.

    Returns:
        Tensor (kh, kw); float64 stays, everything else becomes float32.

    Raises:
        ValueError: the kernel is not 2-D, empty, complex, holds NaN or Inf, or its sum is not positive.
    """
    values = finite_kernel(kernel)
    if values.ndim != 2:
        raise ValueError(f"a blur kernel is 2-D, got shape {tuple(values.shape)}; take one channel of an image.")
    total = float(values.sum(dtype=torch.float64))
    if not total > 0:
        raise ValueError(f"the kernel's values sum to {total:.6g}; expected a sum > 0, 1 to keep the brightness.")
    return (values.double() / total).to(values.dtype) if normalise else values


def finite_kernel(kernel: Tensor | np.ndarray | Sequence[Sequence[float]]) -> Tensor:
    """The part of `check_kernel` that any convolution needs: real, non-empty, finite, not all zero."""
    values = torch.as_tensor(kernel)
    if values.is_complex():
        raise ValueError(f"a blur kernel is real, got {values.dtype}; pass its real part.")
    values = values.to(torch.float64 if values.dtype == torch.float64 else torch.float32)
    if values.numel() == 0:
        raise ValueError(f"the kernel is empty, its shape is {tuple(values.shape)}.")
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ValueError(f"the kernel holds {bad} NaN or Inf of {values.numel()} values; expected finite numbers.")
    if not bool((values != 0).any()):
        raise ValueError("the kernel is zero everywhere; a kernel that blurs nothing is a single 1.")
    return values


def gaussian_kernel(
    std: float | tuple[float, float], size: int | tuple[int, int] | None = None, angle: float = 0.0
) -> Tensor:
    """Gaussian, cut off at 4 standard deviations.

    `gaussian_kernel(3, 61)` is the kernel of the FFHQ deblurring benchmark (Chung et al. 2023, DPS): SciPy's Gaussian
    filter of a single 1, non-zero on 25 x 25 of its 61 x 61 pixels. `gaussian_kernel((1, 20), 9)` is the anisotropic
    blur of DDRM (arXiv 2201.11793).

    Args:
        std: standard deviation in pixels, > 0; a pair (vertical, horizontal) for an anisotropic blur.
        size: side length in pixels, or a pair (kh, kw); the smallest odd size that holds 4 std if None. A smaller
            size cuts the Gaussian off sooner. The peak lies at size // 2.
        angle: turns an anisotropic Gaussian, degrees counter-clockwise as seen on the screen: the horizontal standard
            deviation then lies along this direction, as the motion of `motion_kernel` does.

    Returns:
        float32 tensor (kh, kw), sum 1.

    Raises:
        ValueError: a standard deviation that is not positive, a size < 1, or an angle that is not finite.
    """
    stds = std if isinstance(std, tuple) else (std, std)
    sizes = size if isinstance(size, tuple) else (size, size)
    if not math.isfinite(angle):
        raise ValueError(f"angle is {angle}; expected degrees.")
    if angle % 180 == 0 or stds[0] == stds[1]:
        rows, columns = (_gaussian_taps(float(s), n) for s, n in zip(stds, sizes, strict=True))
        return _unit_sum(torch.outer(rows, columns))
    return _turned_gaussian(stds, sizes, math.radians(angle))


def _turned_gaussian(stds: tuple[float, float], sizes: tuple[int | None, int | None], angle: float) -> Tensor:
    across, along = (_checked_std(float(s)) for s in stds)
    cosine, sine = math.cos(angle), math.sin(angle)
    # Standard deviations of the turned Gaussian along the rows' and the columns' direction: the box that holds it.
    box = math.hypot(across * cosine, along * sine), math.hypot(across * sine, along * cosine)
    y, x = (
        torch.arange(count, dtype=torch.float64) - count // 2
        for count in (len(_gaussian_taps(s, n)) for s, n in zip(box, sizes, strict=True))
    )
    first = (x * cosine - y[:, None] * sine) / along  # rows count downwards
    second = (x * sine + y[:, None] * cosine) / across
    squared = first**2 + second**2
    return _unit_sum(torch.exp(-0.5 * squared).masked_fill(squared > 4.0**2, 0))


def _gaussian_taps(std: float, size: int | None) -> Tensor:
    radius = int(4 * _checked_std(std) + 0.5)  # SciPy's rounding
    count = 2 * radius + 1 if size is None else _checked_size(size)
    distance = (torch.arange(count, dtype=torch.float64) - count // 2).abs()
    taps = torch.exp(-0.5 * (distance / std) ** 2)
    return taps.masked_fill(distance > radius, 0)


def _checked_std(std: float) -> float:
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"std is {std}; expected a number of pixels > 0.")
    return std


def motion_kernel(length: float, angle: float) -> Tensor:
    """Straight, uniform motion: an anti-aliased line.

    ::

        length 3, angle 0:  1/3 1/3 1/3        angle 90, upwards:  1/3
                                                                   1/3
                                                                   1/3

    A pixel weighs 1 - its distance to the line (0 beyond one pixel), where the line joins the centres of the first and
    the last pixel: horizontal and vertical motions of n pixels are n equal weights.

    Args:
        length: in pixels, >= 1; 1 is no motion.
        angle: degrees counter-clockwise from the x axis, as seen on the screen (rows count downwards).

    Returns:
        float32 tensor (kh, kw) with odd sides just large enough, sum 1.

    Raises:
        ValueError: a length below 1 or a number that is not finite.
    """
    if not (math.isfinite(length) and length >= 1):
        raise ValueError(f"length is {length}; expected a number of pixels >= 1.")
    if not math.isfinite(angle):
        raise ValueError(f"angle is {angle}; expected degrees.")
    half = (length - 1) / 2
    reach = math.ceil(half) + 1
    along_x, along_y = math.cos(math.radians(angle)), -math.sin(math.radians(angle))
    grid = torch.arange(-reach, reach + 1, dtype=torch.float64)
    y, x = grid[:, None], grid[None, :]
    position = (x * along_x + y * along_y).clamp(-half, half)
    distance = torch.hypot(x - position * along_x, y - position * along_y)
    weights = (1 - distance).clamp_min(0)
    weights[weights < 1e-9] = 0  # cos(90 degrees) is 6e-17
    return _unit_sum(_without_margin(weights))


def disk_kernel(radius: float) -> Tensor:
    """Defocus: a uniform disk, each pixel weighted with the area the disk covers in it.

    Args:
        radius: in pixels, > 0; up to 0.5 the disk lies within one pixel and does nothing.

    Returns:
        float32 tensor (k, k), k odd, sum 1.

    Raises:
        ValueError: a radius that is not positive.
    """
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius is {radius}; expected a number of pixels > 0.")
    reach = max(math.ceil(radius - 0.5), 0)
    lines = 64  # per pixel: the area is exact along x and a midpoint rule along y
    centres = torch.arange(-reach, reach + 1, dtype=torch.float64)
    offsets = (torch.arange(lines, dtype=torch.float64) + 0.5) / lines - 0.5
    chord = (radius**2 - (centres[:, None] + offsets) ** 2).clamp_min(0).sqrt().mT[..., None]
    covered = (torch.minimum(centres + 0.5, chord) - torch.maximum(centres - 0.5, -chord)).clamp_min(0)
    weights = covered.mean(0)
    return _unit_sum((weights + weights.mT) / 2)


def random_motion_kernel(size: int = 61, intensity: float = 0.5, generator: RandomSource = None) -> Tensor:
    """Random camera shake: a wandering path with abrupt turns.

    The kernels of the FFHQ motion-deblurring benchmark (size 61, intensity 0.5), drawn as by the generator of Levi
    Borodenko (github.com/LeviBorodenko/motionblur): step lengths are Beta, headings Triangular with random changes
    of side; the path is drawn on a canvas of twice the size, smoothed and shrunk.

    Args:
        size: side length in pixels, >= 3.
        intensity: 0 is a nearly straight path, 1 a wild one.
        generator: a seed, a NumPy or a torch generator. None draws from the system's entropy, never from a global
            generator.

    Returns:
        float32 tensor (size, size), sum 1, in steps of one grey level.

    Raises:
        ValueError: a size or an intensity out of range.
    """
    from PIL import Image, ImageDraw, ImageFilter

    _checked_size(size, least=3)
    if not 0 <= intensity <= 1:
        raise ValueError(f"intensity is {intensity}; expected 0 <= intensity <= 1.")
    rng = _numpy_generator(generator)
    canvas = 2 * size
    diagonal = math.sqrt(2) * canvas
    path = _random_path(rng, diagonal, intensity) + canvas / 2 * (1 + 1j)

    picture = Image.new("RGB", (canvas, canvas))
    points = [(float(p.real), float(p.imag)) for p in path]
    ImageDraw.Draw(picture).line(points, fill="white", width=max(int(diagonal / 150), 1))
    picture = picture.filter(ImageFilter.GaussianBlur(radius=int(0.01 * diagonal)))
    picture = picture.resize((size, size), resample=Image.Resampling.LANCZOS).convert("L")
    return _unit_sum(torch.from_numpy(np.asarray(picture, dtype=np.float64)))


def _random_path(rng: np.random.Generator, diagonal: float, intensity: float) -> np.ndarray:
    """Points of the path in pixels as complex numbers x + iy, centred on their mean."""
    path_length = 0.75 * diagonal * (rng.uniform() + rng.uniform(0, intensity**2))
    steps: list[float] = []
    while sum(steps) < path_length or len(steps) < 2:
        step = rng.beta(1, 30) * (1.1 - intensity) * diagonal
        if step < path_length:
            steps.append(step)

    widest = rng.uniform(0, intensity * math.pi)
    flip_probability = rng.beta(2, 20)
    headings = [rng.uniform(-widest, widest)]
    while len(headings) < len(steps):
        turn = rng.triangular(0, intensity * widest, widest + 0.1)
        side = math.copysign(1, headings[-1])
        if rng.uniform() < flip_probability:
            side = -side
        headings.append(side * turn)

    path = np.cumsum(np.asarray(steps) * np.exp(1j * np.asarray(headings)))
    turned: np.ndarray = (path - path.mean()) * np.exp(1j * rng.uniform(0, math.pi))
    return turned


def _numpy_generator(source: RandomSource) -> np.random.Generator:
    if isinstance(source, torch.Generator):
        source = int(torch.randint(2**62, (), generator=source, device=source.device))
    return np.random.default_rng(source)


def _checked_size(size: Any, least: int = 1) -> int:
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < least:
        raise ValueError(f"size is {size!r}; expected a whole number of pixels >= {least}.")
    return int(size)


def _without_margin(weights: Tensor) -> Tensor:
    """Drop zero rows and columns, as many on each side: the centre stays the centre."""
    rows, columns = (weights.sum(axis) > 0 for axis in (1, 0))
    top, left = int(rows.int().argmax()), int(columns.int().argmax())
    return weights[top : len(rows) - top, left : len(columns) - left]


def _unit_sum(weights: Tensor) -> Tensor:
    return (weights / weights.sum()).to(torch.float32)
