"""Phase retrieval: only the magnitude of the image's Fourier transform is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invsolve.operators.base import Operator
from invsolve.operators.hdr import check_range
from invsolve.operators.registry import register


def _phase_examples() -> list[Operator]:
    return [
        PhaseRetrieval((2, 5, 8)),
        PhaseRetrieval((1, 7, 4), 4.0),
        PhaseRetrieval((1, 9, 11), 1.0, (-1.0, 1.0)),
    ]


@register("phase-retrieval", _phase_examples)
class PhaseRetrieval(Operator):
    """Magnitude of the Fourier transform of the zero-padded image, as an X-ray detector sees a diffraction pattern.

    ::

        x           padded             y
        1 2         . . . .            |centred orthonormal FFT|,
        3 4    ->   . 1 2 .     ->     one real number >= 0 per
                    . 3 4 .            frequency and channel
                    . . . .

    The task of the FFHQ benchmarks (DPS, arXiv 2209.14687; DAPS, arXiv 2407.01521): int(oversampling / 8 * side) zeros
    on each side, so that "oversampling 2" means 256 -> 384 pixels, 1.5 times per axis; frequency 0 lies in the centre.
    A shift within the padding, a rotation by 180 degrees and the sign of the image leave no trace in y.

    Where the magnitude is 0 the gradient, which does not exist there, is 0.

    Args:
        in_shape: image shape (C, H, W).
        oversampling: >= 0 as above; 4 pads by half a side, so that both axes double.
        data_range: values (low, high) of black and white in x, moved to (0, 1) before the transform: (-1, 1) is the
            task of DAPS on images in [-1, 1]. With (0, 1) the image is transformed as it is; given images in [-1, 1],
            that is the task of DPS.

    Raises:
        ValueError: an image that is not (C, H, W), an oversampling below 0, or an empty range.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        oversampling: float = 2.0,
        data_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        shape = tuple(int(n) for n in in_shape)
        if len(shape) != 3:
            raise ValueError(f"PhaseRetrieval takes images (channels, height, width), got in_shape {shape}.")
        if not (math.isfinite(oversampling) and oversampling >= 0):
            raise ValueError(f"oversampling is {oversampling}; expected a number >= 0, 2 for the FFHQ task.")
        height, width = (side + 2 * int(oversampling / 8 * side) for side in shape[1:])
        super().__init__(shape, (shape[0], height, width))
        self.oversampling, self.data_range = float(oversampling), check_range(data_range)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        low, high = self.data_range
        if (low, high) != (0, 1):
            x = (x - low) / (high - low)
        # Where in the padded frame the image lies changes only the phase: all zeros may follow it.
        spectrum = torch.fft.fft2(x, s=self.out_shape[1:], norm="ortho")
        # The derivative of torch's complex abs is 0 at 0, where that of sqrt(re^2 + im^2) is NaN.
        magnitude: Tensor = torch.fft.fftshift(spectrum.abs(), dim=(-2, -1))
        return magnitude

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, oversampling {self.oversampling:g}, range {self.data_range}"
