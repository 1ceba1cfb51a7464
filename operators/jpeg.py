"""JPEG compression as a differentiable operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.operators.base import Operator, derived
from invsolve.operators.hdr import check_range
from invsolve.operators.registry import register

Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]
Rounding = Literal["straight-through", "cubic"]

# Pixels of luma per pixel of chroma, rows and columns.
_FACTORS: dict[str, tuple[int, int]] = {"4:4:4": (1, 1), "4:2:2": (1, 2), "4:2:0": (2, 2)}

# What libjpeg adds to even and to odd columns before it cuts off the fraction, where chroma shrinks and where it grows.
_SHRINK_BIAS = {"4:2:2": (0.0, 0.5), "4:2:0": (0.25, 0.5)}
_GROW_BIAS = {"4:2:2": (0.25, 0.5), "4:2:0": (0.5, 0.4375)}

# Quantisation tables of the standard, ITU-T T.81 Annex K.1, in rows: luma, chroma.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8 for _ in range(4)),
)

# RGB -> YCbCr of JFIF (ITU-R BT.601, full range), with 128 to be added to Cb and Cr; and back.
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def _jpeg_examples() -> list[Operator]:
    # The smooth surrogate: a straight-through gradient is not the derivative, which the conformance tests check.
    return [
        JPEG((3, 9, 13), 60, rounding="cubic", dtype=torch.float64),
        JPEG((3, 8, 18), 30, "4:4:4", rounding="cubic", data_range=(-1.0, 1.0), dtype=torch.float64),
        JPEG((1, 7, 10), 85, rounding="cubic", dtype=torch.float64),
    ]


@register("jpeg", _jpeg_examples)
class JPEG(Operator):
    """Compression to a JPEG file and back, in everything that loses information.

    ::

        RGB -> Y Cb Cr -> fewer pixels of Cb, Cr -> 8 x 8 cosine transforms -> divide by the table and round
        RGB <- Y Cb Cr <- as many as before      <- back                    <- multiply by the table

    The measurement y is the decoded picture. The arithmetic is that of libjpeg: its quality scale, the tables of the
    standard, averaged chroma, linear ("fancy") interpolation on the way back, values of 8 bits in between, borders
    that go on to full blocks. Only its cosine transform in whole numbers is not imitated: now and then a coefficient
    is rounded to the other side, and decoded pictures agree with those of Pillow to about 50 dB.

    Rounding has the derivative 0, so that another one has to stand in:

    ==================  ===============================================================================================
    "straight-through"  the result is that of the codec; its gradient is taken as if nothing had been rounded
    "cubic"             round(v) + (v - round(v))^3 instead of rounding the coefficients (Shin and Song 2017,
                        "JPEG-resistant adversarial images"), and no rounding to 8 bits: not quite the codec, but a map
                        that is smooth apart from its jumps, with its true gradient
    ==================  ===============================================================================================

    Nonlinear. Images outside `data_range` are not clipped before, but the decoded picture is, as files hold no more.

    Args:
        in_shape: image shape, (3, H, W) for colour or (1, H, W) for grey pictures.
        quality: 1 (worst) ... 100, as of Pillow and libjpeg.
        subsampling: pixels of chroma: "4:4:4" all, "4:2:2" half, "4:2:0" a quarter of them (Pillow's default).
        rounding: see above.
        data_range: values (low, high) of black and white in x and y.
        dtype: floating-point type of the stored tables; computations follow the type of the images.

    Raises:
        ValueError: another number of channels, a quality out of range, an unknown option or an empty range.
    """

    tables: Tensor

    def __init__(
        self,
        in_shape: Sequence[int],
        quality: int = 75,
        subsampling: Subsampling = "4:2:0",
        *,
        rounding: Rounding = "straight-through",
        data_range: tuple[float, float] = (0.0, 1.0),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = tuple(int(n) for n in in_shape)
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(f"JPEG takes images (3, height, width) or (1, height, width), got in_shape {shape}.")
        if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
            raise ValueError(f"quality is {quality!r}; expected a whole number 1 ... 100.")
        if subsampling not in _FACTORS:
            raise ValueError(f"unknown subsampling {subsampling!r}; expected one of {', '.join(_FACTORS)}.")
        if rounding not in get_args(Rounding):
            raise ValueError(f"unknown rounding {rounding!r}; expected one of {', '.join(get_args(Rounding))}.")
        super().__init__(shape, shape)
        self.quality, self.subsampling, self.rounding = quality, subsampling, rounding
        self.data_range = check_range(data_range)
        # Follow from the arguments, so they are no part of the state; a buffer all the same, to know type and device.
        self.register_buffer("tables", quantisation_tables(quality).to(dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        low, high = self.data_range
        pixels = self._to_8_bits((x - low) * (255 / (high - low)))
        decoded = self._grey(pixels) if self.in_shape[0] == 1 else self._colour(pixels)
        return decoded.clamp(0, 255) * ((high - low) / 255) + low

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, quality {self.quality}, {self.subsampling}, {self.rounding}"

    def _grey(self, pixels: Tensor) -> Tensor:
        return self._to_8_bits(self._coded(pixels, 0))

    def _colour(self, pixels: Tensor) -> Tensor:
        height, width = self.in_shape[1:]
        factor = _FACTORS[self.subsampling]
        ycc = self._to_8_bits(torch.einsum("ij,bjhw->bihw", _matrix(self, "to_ycc", pixels), pixels) + _offset(pixels))
        luma, chroma = ycc[:, :1], ycc[:, 1:]
        if factor != (1, 1):
            even = F.pad(chroma, (0, width % factor[1], 0, height % factor[0]), mode="replicate")
            chroma = self._to_8_bits(F.avg_pool2d(even, factor), _SHRINK_BIAS[self.subsampling])
        luma = self._to_8_bits(self._coded(luma, 0)).clamp(0, 255)
        chroma = self._to_8_bits(self._coded(chroma, 1)).clamp(0, 255)
        if factor != (1, 1):
            scale = [float(n) for n in factor]
            chroma = F.interpolate(chroma, scale_factor=scale, mode="bilinear", align_corners=False)
            chroma = self._to_8_bits(chroma, _GROW_BIAS[self.subsampling])[..., :height, :width]
        ycc = torch.cat([luma, chroma], 1) - _offset(pixels)
        return self._to_8_bits(torch.einsum("ij,bjhw->bihw", _matrix(self, "to_rgb", pixels), ycc))

    def _coded(self, plane: Tensor, which: int) -> Tensor:
        """(B, C, h, w) through the quantised cosine transform of 8 x 8 blocks with table `which`, and back."""
        batch, channels, height, width = plane.shape
        full = F.pad(plane - 128, (0, -width % 8, 0, -height % 8), mode="replicate")
        rows, columns = full.shape[2] // 8, full.shape[3] // 8
        blocks = full.reshape(batch, channels, rows, 8, columns, 8).transpose(3, 4)
        cosine = _matrix(self, "cosine", plane)
        table = self.tables[which].to(plane.dtype)
        coefficients = self._rounded(cosine @ blocks @ cosine.mT / table) * table
        restored = (cosine.mT @ coefficients @ cosine).transpose(3, 4).reshape(full.shape)
        return restored[..., :height, :width] + 128

    def _rounded(self, values: Tensor) -> Tensor:
        rounded = values.detach().round()
        if self.rounding == "cubic":
            return rounded + (values - rounded) ** 3
        return _through(values, rounded)

    def _to_8_bits(self, values: Tensor, bias: tuple[float, float] = (0.5, 0.5)) -> Tensor:
        """Whole numbers where the codec stores such, with the gradient of the identity."""
        if self.rounding == "cubic":
            return values
        added = values.new_tensor(bias).repeat(-(-values.shape[-1] // 2))[: values.shape[-1]]
        return _through(values, (values.detach() + added).floor())


def quantisation_tables(quality: int) -> Tensor:
    """Tables of luma and chroma for a quality of libjpeg, float64 (2, 8, 8), whole numbers 1 ... 255."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = torch.tensor((_LUMA, _CHROMA), dtype=torch.int64)
    return ((base * percent + 50) // 100).clamp(1, 255).double()


def _through(values: Tensor, result: Tensor) -> Tensor:
    """`result`, with the gradient of `values`."""
    return result + (values - values.detach())


def _offset(like: Tensor) -> Tensor:
    """What is added to Y, Cb and Cr, (3, 1, 1)."""
    return like.new_tensor([0.0, 128.0, 128.0])[:, None, None]


def _matrix(operator: Operator, name: Literal["to_ycc", "to_rgb", "cosine"], like: Tensor) -> Tensor:
    def make() -> Tensor:
        if name == "cosine":
            order = torch.arange(8, dtype=torch.float64)
            values = torch.cos(math.pi / 8 * torch.outer(order, order + 0.5)) / 2
            values[0] /= math.sqrt(2)
        else:
            values = torch.tensor(_TO_YCC if name == "to_ycc" else _TO_RGB, dtype=torch.float64)
        return values.to(like.device, like.dtype)

    return derived(operator, name, like, make)
