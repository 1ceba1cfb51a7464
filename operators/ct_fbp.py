"""Filtered back-projection: the direct reconstruction of a full scan, in the units of the attenuation."""

from __future__ import annotations

import math
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from invsolve.operators.ct import CTOperator
from invsolve.operators.ct_geometry import FanGeometry, GeometryWarning, ParallelGeometry
from invsolve.operators.ct_weights import pixel_axes

Window = Literal["ram-lak", "shepp-logan", "cosine", "hamming", "hann"]

# A gap between neighbouring views this many times the usual one is the part of the circle that was not scanned.
_GAP = 3.0


def filtered_backprojection(
    operator: CTOperator, y: Tensor, window: Window = "ram-lak", *, cutoff: float = 1.0
) -> Tensor:
    """Image whose line integrals are `y`: ramp filter and back-projection (Kak and Slaney 1988, chapter 3).

    A disc of attenuation mu comes back as mu, whatever the pixel size, the bins and the number of views. A parallel
    scan needs half a circle, a fan-beam scan half a circle and its opening (short scans are weighted after Parker,
    Medical Physics 1982, doi 10.1118/1.595078). Views may be unevenly spread. Linear and differentiable in `y`.

    Args:
        operator: the scan.
        y: line integrals, shape (B, C, views, bins).
        window: taper of the ramp, from sharp and noisy ("ram-lak") to smooth ("hann").
        cutoff: where the window ends, as a share of the highest frequency of the detector, in (0, 1].

    Returns:
        Images (B, C, H, W), in 1/mm where y is a number.

    Raises:
        ValueError: an unknown window or a cutoff outside (0, 1].

    Warns:
        GeometryWarning: the views do not cover what the reconstruction needs.
    """
    operator.check_output(y)
    geometry = operator.geometry
    turn = _weights_of_views(geometry).to(y)
    step = geometry.detector_spacing
    bins = torch.arange(geometry.detector_count, dtype=torch.float64)
    across = ((bins + 0.5) * step + geometry.detector_start).to(y)
    if isinstance(geometry, FanGeometry):
        # As if the detector lay on the rotation axis.
        step, across = step / geometry.magnification, across / geometry.magnification
        turn = turn * _short_scan_weights(geometry, across)
        turn = turn * geometry.source_distance / torch.hypot(across, across.new_tensor(geometry.source_distance))
    filtered = _filter(y * turn, step, window, cutoff)
    image = _backproject(geometry, filtered.flatten(0, 1), float(across[0]), step)
    return image.reshape(len(y), *operator.in_shape)


def _filter(y: Tensor, step: float, window: Window, cutoff: float) -> Tensor:
    """Convolution of every view with the band-limited ramp, times the bin width."""
    if window not in get_args(Window):
        raise ValueError(f"unknown window {window!r}; expected one of {', '.join(get_args(Window))}.")
    if not 0 < cutoff <= 1:
        raise ValueError(f"cutoff is {cutoff}; expected a share of the highest frequency, above 0 and up to 1.")
    length = 1 << (2 * y.shape[-1] - 1).bit_length()
    # Made in the image domain: the sampled |f| would lose the mean value of the image.
    lag = torch.arange(length, dtype=torch.float64)
    lag = torch.minimum(lag, length - lag)
    kernel = torch.where(lag % 2 == 1, -1 / (math.pi * lag.clamp(min=1)) ** 2, 0.0)
    kernel[0] = 0.25
    frequency = torch.fft.rfftfreq(length, dtype=torch.float64) * 2 / cutoff
    taper = {
        "ram-lak": torch.ones_like(frequency),
        "shepp-logan": torch.sinc(frequency / 2),
        "cosine": torch.cos(math.pi / 2 * frequency),
        "hamming": 0.54 + 0.46 * torch.cos(math.pi * frequency),
        "hann": 0.5 + 0.5 * torch.cos(math.pi * frequency),
    }[window]
    ramp = torch.fft.rfft(kernel).real * taper * (frequency <= 1) / step
    filtered: Tensor = torch.fft.irfft(torch.fft.rfft(y, n=length) * ramp.to(y), n=length)
    return filtered[..., : y.shape[-1]]


def _backproject(geometry: ParallelGeometry, y: Tensor, first: float, step: float) -> Tensor:
    """Sum over the views of the values at the pixels' shadows, (N, views, bins) -> (N, H, W)."""
    x_axis, y_axis = (axis.to(y.device) for axis in pixel_axes(geometry))
    padded = torch.nn.functional.pad(y, (1, 1))  # 0 beyond the detector
    image = y.new_zeros((len(y), math.prod(geometry.image_shape)))
    for view, angle in enumerate(geometry.angles):
        cos, sin = math.cos(angle), math.sin(angle)
        place = x_axis * cos + y_axis * sin
        weight: Tensor | None = None
        if isinstance(geometry, FanGeometry):
            nearness = geometry.source_distance / (geometry.source_distance - x_axis * sin + y_axis * cos)
            place = place * nearness
            weight = (nearness**2).flatten().to(y.dtype)
        place = ((place - first) / step + 1).flatten().clamp_(0, geometry.detector_count + 1)
        left = place.long().clamp_(max=geometry.detector_count)
        share = (place - left).to(y.dtype)
        row = padded[:, view]
        value = torch.lerp(row[:, left], row[:, left + 1], share)
        image = image + (value if weight is None else value * weight)
    return image


def _weights_of_views(geometry: ParallelGeometry) -> Tensor:
    """Radians that each view stands for, shape (views, 1): half the way to both neighbours, lines counted once."""
    fan = isinstance(geometry, FanGeometry)
    period = 2 * math.pi if fan else math.pi
    angles = torch.tensor(geometry.angles, dtype=torch.float64) % period
    order = angles.argsort()
    ordered = angles[order]
    gaps = torch.cat([ordered.diff(), ordered[:1] + period - ordered[-1:]])
    usual = float(gaps.median()) if len(gaps) > 2 else period / len(gaps)
    missing = gaps > max(_GAP * usual, 1e-9)
    if bool(missing.any()) and not fan:
        scanned = math.degrees(period - float(gaps[missing].sum()))
        warnings.warn(
            f"the views cover about {scanned:.0f} of the 180 degrees that filtered back-projection needs; edges along "
            "the missing directions will be lost; use solve, or a sampler, for a limited-angle scan.",
            GeometryWarning,
            stacklevel=3,
        )
    gaps = torch.where(missing, usual, gaps)
    weights = torch.empty_like(gaps)
    weights[order] = (gaps + gaps.roll(1)) / 2
    return weights[:, None]


def _short_scan_weights(geometry: FanGeometry, across: Tensor) -> Tensor:
    """Share of every ray in its line, shape (1 or views, bins): 1/2 in a full circle, Parker's in a short scan."""
    angles = torch.tensor(geometry.angles, dtype=torch.float64) % (2 * math.pi)
    ordered = angles.sort().values
    gaps = torch.cat([ordered.diff(), ordered[:1] + 2 * math.pi - ordered[-1:]])
    usual = float(gaps.median())
    widest = int(gaps.argmax())
    if len(angles) < 3 or float(gaps[widest]) <= _GAP * usual:
        return across.new_full((1, len(across)), 0.5)
    since = (angles - ordered[(widest + 1) % len(ordered)]) % (2 * math.pi)
    arc = float(since.max()) + usual
    opening = torch.atan(across.double().cpu() / geometry.source_distance)
    half = (arc - math.pi) / 2
    if half < float(opening.abs().max()) - usual:
        need = math.degrees(math.pi + 2 * float(opening.abs().max()))
        warnings.warn(
            f"the views cover about {math.degrees(arc):.0f} degrees, filtered back-projection of this fan needs "
            f"{need:.0f}; parts of the image will be shaded; use solve, or a sampler, for a limited-angle scan.",
            GeometryWarning,
            stacklevel=3,
        )
    half = max(half, float(opening.abs().max()) + 1e-6)
    since = (since + usual / 2)[:, None]
    rise = (since / (half + opening)).clamp(0, 2)
    fall = ((math.pi + 2 * half - since) / (half - opening)).clamp(0, 2)
    weights = torch.sin(math.pi / 4 * rise) ** 2 * torch.sin(math.pi / 4 * fall) ** 2
    return weights.to(across)
