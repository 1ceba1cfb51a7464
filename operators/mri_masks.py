"""Which points of k-space an accelerated scan samples.

Masks of lines are (W,), 1 = sampled: put them across columns as they are, or across rows as `mask[:, None]`. Masks of
points are (H, W). The zero frequency is at index n // 2. What was really drawn differs a little from what was asked
for: `acceleration` tells.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def acceleration(mask: Tensor) -> float:
    """Points over sampled points, the exact acceleration of a mask."""
    return mask.numel() / float((mask != 0).sum())


def centre_fraction(accelerate: float) -> float:
    """Share of fully sampled centre lines that fastMRI pairs with an acceleration: 0.08 up to 4, 0.04 above."""
    return 0.08 if accelerate <= 4 else 0.04


def equispaced_mask(
    width: int, accelerate: float, *, centre_fraction: float | None = None, offset: int | None = None, seed: int = 0
) -> Tensor:
    """Evenly spaced lines and a sampled centre, as fastMRI draws them for its public multi-coil data.

    The spacing is a * (low - width) / (low * a - width), larger than `accelerate` so that the total with the `low`
    centre lines is width / accelerate; it is no whole number in general, and positions are rounded half to even.
    The centre lines begin at (width - low + 1) // 2. The last line is never an evenly spaced one.

    Args:
        width: number of lines.
        accelerate: acceleration aimed at, >= 1.
        centre_fraction: share of fully sampled lines in the centre; fastMRI's 0.08 up to 4-fold and 0.04 above if None.
        offset: the first line, 0 <= offset < round(spacing); drawn from `seed` if None.
        seed: of the offset (fastMRI draws it from NumPy, so that equal seeds do not give equal offsets).

    Returns:
        float32 tensor (width,).
    """
    low = _centre_lines(width, accelerate, centre_fraction)
    if low * accelerate >= width:
        raise ValueError(f"{low} centre lines of {width} are too many for {accelerate:g}-fold acceleration.")
    spacing = accelerate * (low - width) / (low * accelerate - width)
    if offset is None:
        offset = int(torch.randint(round(spacing), (1,), generator=torch.Generator().manual_seed(seed)))
    if not 0 <= offset < max(1, round(spacing)):
        raise ValueError(f"offset is {offset}; expected 0 <= offset < {round(spacing)}, the spacing.")
    mask = _centre(width, low)
    count = max(0, math.ceil((width - 1 - offset) / spacing))
    mask[(offset + spacing * torch.arange(count, dtype=torch.float64)).round().long()] = 1
    return mask


def random_line_mask(
    width: int,
    accelerate: float,
    *,
    centre_fraction: float | None = None,
    exact: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Lines drawn evenly at random and a sampled centre.

    Args:
        width: number of lines.
        accelerate: acceleration aimed at, >= 1.
        centre_fraction: as in `equispaced_mask`.
        exact: draw exactly round(width / accelerate) lines in all, without replacement; False keeps each line with the
            same probability, as fastMRI does, so that the number is right in the mean only.
        generator: source of randomness.

    Returns:
        float32 tensor (width,).
    """
    low = _centre_lines(width, accelerate, centre_fraction)
    mask = _centre(width, low)
    if exact:
        return _draw(mask, torch.ones(width, dtype=torch.float64), round(width / accelerate), generator)
    probability = (width / accelerate - low) / max(1, width - low)
    drawn = torch.rand(width, generator=generator, dtype=torch.float64) < probability
    return torch.maximum(mask, drawn.float())


def variable_density_line_mask(
    width: int,
    accelerate: float,
    *,
    centre_fraction: float | None = None,
    density: str = "polynomial",
    power: float = 3.0,
    std: float = 15 / 128,
    generator: torch.Generator | None = None,
) -> Tensor:
    """round(width / accelerate) lines, more of them near the centre.

    Args:
        width: number of lines.
        accelerate: acceleration aimed at, >= 1.
        centre_fraction: as in `equispaced_mask`.
        density: "polynomial", (1 - |k|)^power with |k| = 1 at the edge, or "gaussian" of width `std`.
        power: see `density`.
        std: standard deviation over the width; 15/128 as in score-MRI and DDS, which draw with replacement.
        generator: source of randomness.

    Returns:
        float32 tensor (width,).
    """
    distance = _distance(width)
    mask = _centre(width, _centre_lines(width, accelerate, centre_fraction))
    return _draw(mask, _density(density, distance, power, std), round(width / accelerate), generator)


def variable_density_mask(
    shape: tuple[int, int],
    accelerate: float,
    *,
    centre: int = 24,
    density: str = "polynomial",
    power: float = 3.0,
    std: float = 0.11,
    generator: torch.Generator | None = None,
) -> Tensor:
    """round(H * W / accelerate) points, more of them near the centre, and a sampled square; `density` "uniform" too.

    Args:
        shape: (H, W).
        accelerate: acceleration aimed at, >= 1.
        centre: width of the fully sampled square in the centre, 0 for none.
        density: "polynomial" or "gaussian" as for lines, of the distance with |k| = 1 at the corners, or "uniform".
        power: see `variable_density_line_mask`.
        std: standard deviation over the width of k-space.
        generator: source of randomness.

    Returns:
        float32 tensor (H, W).
    """
    rows, columns = (_distance(size) for size in shape)
    distance = torch.hypot(rows[:, None], columns) / (math.sqrt(2) if density == "polynomial" else 1)
    mask = _square(shape, centre)
    return _draw(mask, _density(density, distance, power, std), round(mask.numel() / accelerate), generator)


def poisson_disc_mask(
    shape: tuple[int, int],
    accelerate: float,
    *,
    centre: int = 24,
    slope: float = 2.0,
    tolerance: float = 0.02,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Points that keep a distance which grows outwards, and a sampled square in the centre.

    Candidates come in random order; one is taken unless it lies in the disc of a taken one, of radius
    r (1 + slope |k|) u pixels with |k| = 1 at the middle of the edges. r is found by bisection. u is random in
    0.75 ... 1.25: on a grid equal radii would allow a few accelerations only.

    Args:
        shape: (H, W).
        accelerate: acceleration aimed at, > 1.
        centre: width of the fully sampled square in the centre, 0 for none.
        slope: how much sparser the edge is than the centre; 0 for uniform density.
        tolerance: accepted relative deviation of the acceleration.
        generator: source of randomness.

    Returns:
        float32 tensor (H, W).

    Raises:
        ValueError: an acceleration that the centre alone contradicts, or that no radius reaches.
    """
    _check_acceleration(accelerate)
    height, width = shape
    square = _square(shape, centre)
    if _bound(square) < accelerate:
        raise ValueError(f"a {centre} x {centre} centre alone is more than 1/{accelerate:g} of {height} x {width}.")
    growth = 1 + slope * torch.hypot(_distance(height)[:, None], _distance(width))
    growth = growth * (0.75 + torch.rand(shape, generator=generator, dtype=torch.float64) / 2)
    order = torch.randperm(height * width, generator=generator).tolist()
    low, high = 0.0, 4 * math.sqrt(accelerate)
    for _ in range(24):
        radius = (low + high) / 2
        mask = torch.maximum(_throw_darts(order, radius * growth), square)
        ratio = acceleration(mask) / accelerate
        if abs(ratio - 1) <= tolerance:
            return mask
        low, high = (radius, high) if ratio < 1 else (low, radius)
    raise ValueError(
        f"no Poisson-disc mask of {height} x {width} comes within {tolerance:g} of {accelerate:g}-fold acceleration "
        f"(nearest {ratio * accelerate:.3g}); allow a larger tolerance."
    )


def _bound(square: Tensor) -> float:
    """Largest acceleration with these points sampled; infinite without any."""
    count = float(square.sum())
    return square.numel() / count if count else math.inf


def _throw_darts(order: list[int], radius: Tensor) -> Tensor:
    """Takes points in this order, unless a taken one's disc of its own radius holds them."""
    height, width = radius.shape
    free = torch.ones(height, width, dtype=torch.bool).numpy()
    mask = torch.zeros(height, width)
    taken = mask.numpy()
    squared = radius.square().tolist()
    reach = radius.ceil().int().tolist()
    largest = max(max(row) for row in reach)
    offsets = torch.arange(-largest, largest + 1)
    distance2 = (offsets[:, None] ** 2 + offsets**2).numpy()
    for point in order:
        row, column = divmod(point, width)
        if not free[row, column]:
            continue
        taken[row, column] = 1
        n = reach[row][column]
        top, bottom = max(row - n, 0), min(row + n + 1, height)
        left, right = max(column - n, 0), min(column + n + 1, width)
        disc = distance2[
            top - row + largest : bottom - row + largest, left - column + largest : right - column + largest
        ]
        free[top:bottom, left:right] &= disc >= squared[row][column]
    return mask


def _draw(mask: Tensor, density: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """`mask` with further points drawn without replacement, in proportion to `density`, until it holds `count`."""
    missing = count - int(mask.sum())
    if missing < 0:
        raise ValueError(
            f"the centre alone samples {int(mask.sum())} of {mask.numel()} points, more than the {count} that the "
            "acceleration allows; lower the acceleration or the centre."
        )
    # The largest of u^(1/w) are a weighted draw without replacement (Efraimidis and Spirakis 2006); here as -log(u)/w.
    keys = -torch.rand(mask.shape, generator=generator, dtype=torch.float64).clamp_min(1e-300).log()
    keys = torch.where(mask > 0, torch.inf, keys / density.clamp_min(1e-12))
    drawn = mask.clone()
    drawn.view(-1)[keys.flatten().argsort()[:missing]] = 1
    return drawn


def _density(name: str, distance: Tensor, power: float, std: float) -> Tensor:
    if name == "polynomial":
        return (1 - distance).clamp_min(0) ** power
    if name == "gaussian":
        return torch.exp(-((distance / 2 / std) ** 2) / 2)
    if name == "uniform":
        return torch.ones_like(distance)
    raise ValueError(f"unknown density {name!r}; expected 'polynomial', 'gaussian' or 'uniform'.")


def _distance(size: int) -> Tensor:
    """|k| of the grid points of one axis, 1 at the far end, float64."""
    return (torch.arange(size, dtype=torch.float64) - size // 2).abs() / max(1, size // 2)


def _square(shape: tuple[int, int], width: int) -> Tensor:
    """The fully sampled square around the zero frequency, where coil maps are calibrated."""
    if width < 0:
        raise ValueError(f"centre is {width}; expected 0 or more.")
    square = torch.zeros(shape)
    first = [size // 2 - min(width, size) // 2 for size in shape]
    square[first[0] : first[0] + width, first[1] : first[1] + width] = 1
    return square


def _centre(width: int, count: int) -> Tensor:
    """The centre lines where fastMRI puts them: for odd sizes one further than around the zero frequency."""
    mask = torch.zeros(width)
    first = (width - count + 1) // 2
    mask[first : first + count] = 1
    return mask


def _centre_lines(width: int, accelerate: float, fraction: float | None) -> int:
    _check_acceleration(accelerate)
    if fraction is None:
        fraction = centre_fraction(accelerate)
    if not 0 <= fraction <= 1:
        raise ValueError(f"centre_fraction is {fraction}; expected 0 to 1.")
    return round(width * fraction)


def _check_acceleration(accelerate: float) -> None:
    if not (math.isfinite(accelerate) and accelerate >= 1):
        raise ValueError(f"the acceleration is {accelerate}; expected 1 or more.")
