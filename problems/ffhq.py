"""The FFHQ benchmark tasks: 256 x 256 faces, as in the papers of DPS and DAPS.

Everything is in the units of those papers: images in [-1, 1], noise of standard deviation 0.05 on every entry of the
measurement (0.025 for images in [0, 1]). The papers draw masks and kernels without a seed; here they follow from one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor

from invsolve.operators import (
    HDR,
    Blur,
    CameraBlur,
    Downsample,
    GaussianNoise,
    Mask,
    Measurement,
    NonlinearBlur,
    Operator,
    PhaseRetrieval,
    box_mask,
    gaussian_kernel,
    random_mask,
    random_motion_kernel,
)
from invsolve.operators.noise import Generators
from invsolve.problems.photo import suggest

IMAGE_SHAPE = (3, 256, 256)
DATA_RANGE = (-1.0, 1.0)
NOISE_STD = 0.05


@dataclass(frozen=True, eq=False)
class FFHQProblem:
    """One task of the suite, ready to measure.

    Args:
        name: as in `FFHQ_TASKS`.
        operator: takes images (B, 3, 256, 256) with values in `data_range`.
        noise: Gaussian, in the units of the measurement.
        data_range: values of black and white.
    """

    name: str
    operator: Operator
    noise: GaussianNoise
    data_range: tuple[float, float] = DATA_RANGE

    def measure(self, images: Tensor, generator: Generators = None) -> Measurement:
        """Noisy measurement of clean images (B, 3, 256, 256) with values in `data_range`.

        Raises:
            ValueError: images of another shape, or values outside the range.
        """
        self.operator.check_input(images)
        low, high = self.data_range
        if not bool(((images >= low) & (images <= high)).all()):
            raise ValueError(
                f"the images hold values {float(images.min()):.3g} ... {float(images.max()):.3g}; the FFHQ tasks "
                f"expect {low:g} ... {high:g}."
            )
        return Measurement(self.noise.sample(self.operator(images), generator), self.operator, self.noise)


@dataclass(frozen=True)
class FFHQTask:
    """How to make one task.

    Args:
        summary: what happened to the image.
        make: operator from a source of randomness (masks, kernels, latents).
        from_weights: operator from a source of randomness and a checkpoint, for the task that needs one.
    """

    summary: str
    make: Callable[[torch.Generator], Operator] | None = None
    from_weights: Callable[[torch.Generator, str | PathLike[str]], Operator] | None = None


def _box(generator: torch.Generator) -> Operator:
    side, margin, size = 128, 16, IMAGE_SHAPE[1]
    top, left = torch.randint(margin, size - side - margin, (2,), generator=generator).tolist()
    return Mask(box_mask(IMAGE_SHAPE[1:], top, left, side, side), IMAGE_SHAPE)


def _random(share_lost: float) -> Callable[[torch.Generator], Operator]:
    return lambda generator: Mask(random_mask(IMAGE_SHAPE[1:], share_lost, generator), IMAGE_SHAPE)


def _motion(generator: torch.Generator) -> Operator:
    # The papers' code correlates with the kernel; `Blur` convolves.
    return Blur(random_motion_kernel(61, 0.5, generator).flip(0, 1), IMAGE_SHAPE, "reflect")


FFHQ_TASKS: dict[str, FFHQTask] = {
    "ffhq-sr4": FFHQTask("bicubic reduction by 4, 256 -> 64 pixels", lambda _: Downsample(4, IMAGE_SHAPE, "bicubic")),
    "ffhq-box": FFHQTask("a lost box of 128 x 128 pixels, 16 or more from the border", _box),
    "ffhq-random": FFHQTask("70 % of the pixels lost (DAPS)", _random(0.7)),
    "ffhq-random92": FFHQTask("92 % of the pixels lost (DPS)", _random(0.92)),
    "ffhq-gaussian": FFHQTask(
        "Gaussian blur, std 3 pixels, reflecting borders",
        lambda _: Blur(gaussian_kernel(3.0, 61), IMAGE_SHAPE, "reflect"),
    ),
    "ffhq-motion": FFHQTask("random motion blur, 61 x 61, intensity 0.5, reflecting borders", _motion),
    "ffhq-phase": FFHQTask(
        "Fourier magnitudes of the image brought to [0, 1], oversampling 2 (DAPS)",
        lambda _: PhaseRetrieval(IMAGE_SHAPE, 2.0, DATA_RANGE),
    ),
    "ffhq-hdr": FFHQTask("twice the exposure, clipped (DAPS)", lambda _: HDR(IMAGE_SHAPE, 2.0, DATA_RANGE)),
    "ffhq-nonlinear": FFHQTask(
        "learned nonlinear blur; needs the published weights GOPRO_wVAE.pth",
        from_weights=lambda generator, path: NonlinearBlur.from_checkpoint(
            path, IMAGE_SHAPE, generator=generator, data_range=DATA_RANGE
        ),
    ),
    "ffhq-nonlinear-standin": FFHQTask(
        "motion blur in linear light; needs no weights, not comparable with ffhq-nonlinear",
        lambda generator: CameraBlur(
            random_motion_kernel(61, 0.5, generator), IMAGE_SHAPE, "reflect", data_range=DATA_RANGE
        ),
    ),
}


def ffhq_problem(name: str, *, seed: int = 0, checkpoint: str | PathLike[str] | None = None) -> FFHQProblem:
    """One task of the FFHQ suite.

    Args:
        name: a key of `FFHQ_TASKS`.
        seed: of masks, kernels and latents; the same seed makes the same operator.
        checkpoint: the weights that "ffhq-nonlinear" needs, see `NonlinearBlur.from_checkpoint`.

    Raises:
        ValueError: an unknown name, no checkpoint where one is needed, or one where none is.
    """
    if name not in FFHQ_TASKS:
        raise ValueError(f"there is no FFHQ task {name!r}; {suggest(name, tuple(FFHQ_TASKS))}")
    task, generator = FFHQ_TASKS[name], torch.Generator().manual_seed(seed)
    if task.make is not None:
        if checkpoint is not None:
            raise ValueError(f"{name} needs no checkpoint, got {checkpoint}; leave it out.")
        operator = task.make(generator)
    elif checkpoint is None:
        raise ValueError(
            f"{name} needs checkpoint=..., the file GOPRO_wVAE.pth of github.com/VinAIResearch/"
            'blur-kernel-space-exploring; "ffhq-nonlinear-standin" is another nonlinear blur that needs none.'
        )
    else:
        assert task.from_weights is not None
        operator = task.from_weights(generator, checkpoint)
    return FFHQProblem(name, operator, GaussianNoise(NOISE_STD))
