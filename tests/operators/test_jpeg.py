"""JPEG against Pillow's encoder, its tables, gradients, refusals."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from invsolve.operators import JPEG
from invsolve.operators.jpeg import quantisation_tables


def scene(height, width, channels=3, seed=0):
    """Shading, an edge, saturated places, texture and noise: uint8 (H, W, C)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = []
    for channel in range(channels):
        plane = 120 + 100 * np.sin(x / (9 + 7 * channel) + y / 23) + 40 * (x > y + 10 * channel)
        plane[height // 3 : height // 2, : width // 2] += (
            30 * np.sin(x * 1.3 + y * channel)[height // 3 : height // 2, : width // 2]
        )
        planes.append(plane + rng.normal(0, 4, plane.shape))
    return np.clip(np.stack(planes, -1), 0, 255).round().astype(np.uint8)


def decoded(pixels, quality, subsampling):
    file = io.BytesIO()
    picture = Image.fromarray(pixels.squeeze())
    extra = {} if pixels.shape[-1] == 1 else {"subsampling": subsampling}
    picture.save(file, "JPEG", quality=quality, **extra)
    return np.asarray(Image.open(file)).reshape(pixels.shape)


def through(operator, pixels):
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    return operator(x)[0].permute(1, 2, 0).numpy() * 255


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95, 100])
def test_as_pillow(quality, subsampling):
    for pixels in (scene(128, 160), scene(93, 71, seed=1)):
        real = decoded(pixels, quality, subsampling)
        ours = through(JPEG((3, *pixels.shape[:2]), quality, subsampling), pixels)
        assert psnr(ours, real) > 43
        assert psnr(ours, real) > psnr(pixels, real) + (10 if quality < 90 else 1)
        assert np.mean(np.abs(ours - real) < 0.5) > 0.5  # most values are the very same


def test_the_wrong_setting_is_told_apart():
    pixels = scene(93, 71)
    real = decoded(pixels, 50, "4:2:0")
    right = psnr(through(JPEG((3, 93, 71), 50), pixels), real)
    for other in (JPEG((3, 93, 71), 55), JPEG((3, 93, 71), 50, "4:4:4"), JPEG((3, 93, 71), 50, "4:2:2")):
        assert psnr(through(other, pixels), real) < right - 5


def test_grey_as_pillow():
    pixels = scene(90, 61, channels=1)
    for quality in (20, 75):
        assert psnr(through(JPEG((1, 90, 61), quality), pixels), decoded(pixels, quality, None)) > 46


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 99, 100])
def test_tables_as_pillow(quality):
    file = io.BytesIO()
    Image.fromarray(scene(16, 16)).save(file, "JPEG", quality=quality)
    stored = Image.open(file).quantization
    ours = quantisation_tables(quality).reshape(2, 64).tolist()
    assert [list(map(float, stored[0])), list(map(float, stored[1]))] == ours


def test_smooth_rounding_is_close_to_the_codec():
    pixels = scene(93, 71)
    exact = through(JPEG((3, 93, 71), 75), pixels)
    smooth = through(JPEG((3, 93, 71), 75, rounding="cubic"), pixels)
    assert psnr(smooth, exact) > 40


def test_straight_through_gradient():
    """As if nothing were rounded: that of the identity up to lost chroma, and 0 where the decoder clips."""
    x = torch.full((1, 1, 8, 8), 0.4, dtype=torch.float64, requires_grad=True)
    JPEG((1, 8, 8), 40)(x)[0, 0, 2, 3].backward()
    want = torch.zeros(8, 8, dtype=torch.float64)
    want[2, 3] = 1
    assert torch.allclose(x.grad[0, 0], want, atol=1e-12)
    x = torch.full((1, 1, 8, 8), 1.2, dtype=torch.float64, requires_grad=True)
    y = JPEG((1, 8, 8), 40)(x)
    y.sum().backward()
    assert torch.equal(y, torch.ones_like(y))
    assert not bool(x.grad.any())


def test_smooth_gradient_is_the_derivative():
    x = 0.2 + 0.6 * torch.rand(2, 3, 9, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    operator = JPEG((3, 9, 10), 60, rounding="cubic", dtype=torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(operator, (x,), fast_mode=True, eps=1e-7)


def test_range_and_batch():
    x = torch.rand(3, 3, 20, 17, generator=torch.Generator().manual_seed(0))
    operator = JPEG((3, 20, 17), 70)
    y = operator(x)
    assert torch.allclose(JPEG((3, 20, 17), 70, data_range=(-1.0, 1.0))(2 * x - 1), 2 * y - 1, atol=1e-6)
    assert torch.equal(operator(x[1:2]), y[1:2])
    assert 0 <= float(y.min()) <= float(y.max()) <= 1
    assert operator.state_dict() == {}


def test_refusals():
    for quality in (0, 101, 75.0, True):
        with pytest.raises(ValueError, match=rf"quality is {quality}; expected a whole number 1 ... 100"):
            JPEG((3, 8, 8), quality)
    with pytest.raises(ValueError, match="unknown subsampling '4:1:1'; expected one of 4:4:4, 4:2:2, 4:2:0"):
        JPEG((3, 8, 8), 75, "4:1:1")
    with pytest.raises(ValueError, match="unknown rounding 'soft'; expected one of straight-through, cubic"):
        JPEG((3, 8, 8), rounding="soft")
    with pytest.raises(ValueError, match=r"got in_shape \(2, 8, 8\)"):
        JPEG((2, 8, 8))
    with pytest.raises(ValueError, match="low < high"):
        JPEG((3, 8, 8), data_range=(1.0, 0.0))
