"""Filtered back-projection brings a disc back at its attenuation."""

import math
from typing import get_args

import pytest
import torch

from invsolve.operators import FanBeamCT, GeometryWarning, ParallelBeamCT, limited_angles, uniform_angles
from invsolve.operators.ct_fbp import Window, filtered_backprojection

DOUBLE = torch.float64
FULL = 2 * math.pi
FAN = {"source_distance": 130.0, "detector_distance": 60.0, "pixel_size": 0.8, "dtype": DOUBLE}
SCANS = {
    "parallel": lambda: ParallelBeamCT((1, 80, 80), uniform_angles(90), pixel_size=0.8, dtype=DOUBLE),
    "parallel, oblong and shifted": lambda: ParallelBeamCT(
        (1, 70, 80), uniform_angles(90, start=0.3), pixel_size=0.8, detector_spacing=1.0, detector_offset=0.4,
        image_offset=(1.0, -2.0), dtype=DOUBLE,
    ),
    "parallel, full circle": lambda: ParallelBeamCT((1, 80, 80), uniform_angles(181, FULL), dtype=DOUBLE),
    "parallel, uneven": lambda: ParallelBeamCT((1, 80, 80), torch.arange(97, dtype=DOUBLE) * 1.941611 % math.pi,
                                               dtype=DOUBLE),
    "fan": lambda: FanBeamCT((1, 80, 80), uniform_angles(180, FULL), **FAN),
    "fan, virtual detector": lambda: FanBeamCT((1, 80, 80), uniform_angles(180, FULL),
                                               **{**FAN, "detector_distance": 0.0}),
    "fan, short scan": lambda: FanBeamCT((1, 80, 80), limited_angles(181, 1.0, 1.0 + 1.45 * math.pi), **FAN),
}  # fmt: skip


def disc(operator, radius, x=6.0, y=-9.0):
    """(pixels inside, line integrals) of a disc of attenuation 0.02."""
    geometry = operator.geometry
    (height, width), size = geometry.image_shape, geometry.pixel_size
    columns = (torch.arange(width, dtype=DOUBLE) - (width - 1) / 2) * size + geometry.image_offset[0]
    rows = ((height - 1) / 2 - torch.arange(height, dtype=DOUBLE)) * size + geometry.image_offset[1]
    distance = torch.hypot(columns - x, rows[:, None] - y)
    n = geometry.detector_count
    s = (torch.arange(n, dtype=DOUBLE) - (n - 1) / 2) * geometry.detector_spacing + geometry.detector_offset
    theta = torch.tensor(geometry.angles, dtype=DOUBLE)[:, None]
    across = x * theta.cos() + y * theta.sin()
    if isinstance(operator, FanBeamCT):
        length = geometry.source_distance + geometry.detector_distance
        depth = geometry.source_distance - x * theta.sin() + y * theta.cos()
        gap = (across * length - depth * s) / torch.hypot(s, torch.tensor(length, dtype=DOUBLE))
    else:
        gap = across - s
    return distance, 0.04 * (radius**2 - gap**2).clamp_min(0).sqrt()[None, None]


@pytest.mark.parametrize("name", SCANS)
def test_a_disc_comes_back_at_its_attenuation(name):
    operator = SCANS[name]()
    distance, y = disc(operator, 14.0)
    image = filtered_backprojection(operator, y, "hann")[0, 0]
    inside, outside = image[distance < 11], image[(distance > 17) & (distance < 22)]
    assert float(inside.mean()) == pytest.approx(0.02, rel=2e-3)
    assert float(inside.std()) < 2e-4
    assert float(outside.abs().mean()) < 3e-4


@pytest.mark.parametrize("window", get_args(Window))
def test_windows(window):
    operator = SCANS["parallel"]()
    distance, y = disc(operator, 14.0)
    image = filtered_backprojection(operator, y, window, cutoff=0.8)[0, 0]
    assert float(image[distance < 10].mean()) == pytest.approx(0.02, rel=3e-3)
    noise = filtered_backprojection(operator, torch.randn(y.shape, generator=torch.Generator().manual_seed(0)), window)
    sharp = filtered_backprojection(operator, torch.randn(y.shape, generator=torch.Generator().manual_seed(0)))
    assert float(noise.std()) <= float(sharp.std())
    assert noise.dtype == torch.float32


def test_inverse_of_the_projector(relative):
    """A smooth image through the projector and back."""
    operator = SCANS["fan"]()
    distance, _ = disc(operator, 1.0)
    x = torch.exp(-((distance / 8) ** 2))[None, None].repeat(2, 1, 1, 1) * torch.tensor([1.0, 3.0])[:, None, None, None]
    assert relative(filtered_backprojection(operator, operator(x)), x) < 0.01


def test_gradient():
    operator = FanBeamCT((1, 5, 6), uniform_angles(7, FULL), source_distance=9, detector_distance=3, dtype=DOUBLE)
    y = torch.rand((2, *operator.out_shape), generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    y.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: filtered_backprojection(operator, v), (y,), fast_mode=True)


def test_what_is_missing_is_named():
    limited = ParallelBeamCT((1, 16, 16), limited_angles(30, 0.0, math.pi / 2))
    with pytest.warns(GeometryWarning, match=r"cover about 9\d of the 180 degrees"):
        filtered_backprojection(limited, torch.zeros((1, *limited.out_shape)))
    fan = FanBeamCT((1, 16, 16), limited_angles(30, 0.0, math.pi / 2), source_distance=40, detector_distance=20)
    with pytest.warns(GeometryWarning, match=r"cover about 9\d degrees"):
        filtered_backprojection(fan, torch.zeros((1, *fan.out_shape)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"window": "boxcar"}, "unknown window"), ({"cutoff": 0.0}, "cutoff"), ({"cutoff": 1.5}, "cutoff")],
)
def test_bad_options(options, message):
    operator = ParallelBeamCT((1, 8, 8), uniform_angles(9))
    with pytest.raises(ValueError, match=message):
        filtered_backprojection(operator, torch.zeros((1, *operator.out_shape)), **options)


def test_wrong_shape():
    operator = ParallelBeamCT((1, 8, 8), uniform_angles(9))
    with pytest.raises(ValueError, match="y has shape"):
        filtered_backprojection(operator, torch.zeros((1, 1, 9, 9)))
