"""Windows and frames, by hand and as each other's adjoint."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invsolve.operators import Blur, Crop, Pad

F64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_by_hand() -> None:
    x = torch.arange(1.0, 9.0).reshape(1, 1, 2, 4)
    assert Crop((1, 2, 4), (1, 2), (1, 1))(x).tolist() == [[[[6, 7]]]]
    y = torch.tensor([[[[6.0, 7.0]]]])
    assert Pad((1, 1, 2), (2, 4), (1, 1))(y).tolist() == [[[[0, 0, 0, 0], [0, 6, 7, 0]]]]


@pytest.mark.parametrize(
    ("frame", "size", "offset"),
    [
        ((2, 5, 7), (2, 4), (3, 1)),
        ((2, 5, 7), (4, 7), None),
        ((2, 5, 7), (3,), (2,)),
        ((3, 4, 5), (2, 3, 4), None),
        ((6,), (6,), None),
    ],
)
def test_crop_and_pad_are_adjoint(
    frame: tuple[int, ...], size: tuple[int, ...], offset: tuple[int, ...] | None
) -> None:
    crop = Crop(frame, size, offset)
    pad = Pad(crop.out_shape, size=frame[len(frame) - len(size) :], offset=offset)
    assert (pad.in_shape, pad.out_shape) == (crop.out_shape, crop.in_shape)
    x, y = random(2, *frame), random(2, *crop.out_shape)
    assert torch.equal(crop.adjoint(y), pad(y))
    assert torch.equal(pad.adjoint(x), crop(x))
    assert torch.equal(crop(pad(y)), y)
    assert torch.equal(pad.restrict(x), pad(crop(x)))
    assert pad.num_measured == crop.num_measured == y[0].numel()


def test_the_middle() -> None:
    assert Crop((1, 7, 6), (3, 3)).offset == (2, 1)
    assert Pad((1, 3, 3), (7, 6)).offset == (2, 1)


def test_the_result_is_a_copy() -> None:
    x = random(1, 1, 4, 4)
    y = Crop((1, 4, 4), (2, 2))(x)
    y.zero_()
    assert bool((x != 0).all())


def test_a_blur_that_does_not_wrap() -> None:
    """Crop @ circular blur @ Pad is the convolution with zeros around the image."""
    kernel = random(3, 4).abs()
    kernel = kernel / kernel.sum()
    frame = (1, 10, 12)
    operator = Crop(frame, (5, 6)) @ Blur(kernel, frame, dtype=F64) @ Pad((1, 5, 6), frame[1:])
    zeros = Blur(kernel, (1, 5, 6), "zero", dtype=F64)
    x = random(2, 1, 5, 6, seed=1)
    torch.testing.assert_close(operator(x), zeros(x))


@pytest.mark.parametrize(
    ("size", "offset"), [((6, 3), None), ((2, 2), (4, 0)), ((2, 2), (-1, 0)), ((2, 2), (0,)), ((0, 2), None)]
)
def test_a_window_outside(size: tuple[int, ...], offset: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match=r"Crop: a window of size .* does not lie inside \(5, 4\)"):
        Crop((1, 5, 4), size, offset)


def test_a_frame_too_small() -> None:
    with pytest.raises(ValueError, match=r"Pad: a window of size \(5, 4\) at \(-1, 0\) does not lie inside \(4, 4\)"):
        Pad((1, 5, 4), (4, 4))
    with pytest.raises(ValueError, match="a size of 3 numbers does not go with images of 2 axes"):
        Crop((5, 4), (1, 5, 4))
    with pytest.raises(ValueError, match=r"x has shape \(2, 1, 4, 4\), Crop expects \(batch, 1, 5, 4\)"):
        Crop((1, 5, 4), (2, 2))(random(2, 1, 4, 4))
