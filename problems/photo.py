"""Restoration tasks on photographs: what happened to the picture, as an operator for a picture of any size."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from invsolve.operators import Grayscale, Identity, LinearOperator, Mask
from invsolve.operators.blur import Blur
from invsolve.operators.borders import Boundary
from invsolve.operators.kernels import check_kernel
from invsolve.operators.resize import Downsample, Filter

Shape = tuple[int, ...]

SCALES = (2, 3, 4, 8)
BOUNDARIES: tuple[Boundary, ...] = get_args(Boundary)


class PhotoTask(ABC):
    """One way in which a photograph was spoilt.

    Shapes are (C, H, W); `photo_shape` is the shape of the spoilt photograph and `image_shape` of the good one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def operator(self, image_shape: Sequence[int]) -> LinearOperator:
        """The operator from a good image of this shape to the photograph.

        Raises:
            ValueError: the task does not fit an image of this shape.
        """

    def image_shape(self, photo_shape: Sequence[int]) -> Shape:
        """Shape of the image that a photograph of this shape was made from."""
        return tuple(photo_shape)

    def usable_shape(self, image_shape: Sequence[int]) -> Shape:
        """Largest top-left part of a clean image that the operator takes; for simulating the damage."""
        return tuple(image_shape)

    def frame(self, image_shape: Sequence[int]) -> tuple[slice, slice]:
        """Rows and columns of the image that the photograph shows; all of them, unless it depends on more."""
        return slice(0, image_shape[-2]), slice(0, image_shape[-1])


@dataclass(frozen=True)
class Denoise(PhotoTask):
    """Noise and nothing else."""

    name = "denoise"
    summary = "noise and nothing else"

    def operator(self, image_shape: Sequence[int]) -> LinearOperator:
        return Identity(image_shape)


@dataclass(frozen=True, eq=False)
class Deblur(PhotoTask):
    """A known blur.

    Args:
        kernel: point spread function (h, w); it is scaled to sum 1.
        boundary: what the blur sees beyond the frame, one of `BOUNDARIES`. "circular" is solved in closed form, but
            wraps the picture around; the others are solved by conjugate gradients. "valid" assumes nothing: the image
            reaches beyond the frame by the width of the kernel, which describes real photographs best. "reflect" is
            the default because image and photograph have the same size, as in the FFHQ benchmarks.

    Raises:
        ValueError: an unusable kernel, see `invsolve.operators.kernels.check_kernel`, or an unknown boundary.
    """

    name = "deblur"
    summary = "a known blur: Gaussian, straight motion, or a kernel of your own"

    kernel: Tensor
    boundary: Boundary = "reflect"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", check_kernel(self.kernel))
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"unknown boundary {self.boundary!r}; {suggest(self.boundary, BOUNDARIES)}")

    def operator(self, image_shape: Sequence[int]) -> LinearOperator:
        height, width = self.kernel.shape
        if height > image_shape[-2] or width > image_shape[-1]:
            raise ValueError(
                f"the blur kernel is {width} x {height} pixels, larger than the image ({image_shape[-1]} x "
                f"{image_shape[-2]}); crop the kernel or check that it belongs to this image."
            )
        return Blur(self.kernel, image_shape, boundary=self.boundary)

    def image_shape(self, photo_shape: Sequence[int]) -> Shape:
        if self.boundary != "valid":
            return super().image_shape(photo_shape)
        channels, height, width = photo_shape
        return (channels, height + self.kernel.shape[0] - 1, width + self.kernel.shape[1] - 1)

    def frame(self, image_shape: Sequence[int]) -> tuple[slice, slice]:
        if self.boundary != "valid":
            return super().frame(image_shape)
        rows, columns = (
            slice(size - 1 - size // 2, side - size // 2)
            for size, side in zip(self.kernel.shape, image_shape[-2:], strict=True)
        )
        return rows, columns


@dataclass(frozen=True, eq=False)
class Inpaint(PhotoTask):
    """Lost pixels.

    Args:
        known: (H, W), nonzero where a pixel is known, 0 where it is lost.

    Raises:
        ValueError: not a 2-D array of finite numbers, or one that keeps nothing.
    """

    name = "inpaint"
    summary = "lost or unwanted pixels, marked by a mask"

    known: Tensor

    def __post_init__(self) -> None:
        if self.known.ndim != 2:
            raise ValueError(f"the mask has shape {tuple(self.known.shape)}; expected (height, width).")
        if not bool((self.known != 0).any()):
            raise ValueError("the mask keeps no pixel at all; white means known, unless holes are declared white.")
        object.__setattr__(self, "known", (self.known != 0).to(torch.float32))

    def operator(self, image_shape: Sequence[int]) -> LinearOperator:
        height, width = self.known.shape
        if (height, width) != tuple(image_shape[-2:]):
            raise ValueError(
                f"the mask is {width} x {height} pixels, the image {image_shape[-1]} x {image_shape[-2]}; "
                "they must have the same size."
            )
        return Mask(self.known, image_shape)


@dataclass(frozen=True)
class SuperResolve(PhotoTask):
    """Too few pixels.

    Args:
        scale: how many times wider and higher the image was, one of `SCALES`.
        filter: how it was reduced, see `invsolve.operators.Downsample`.
    """

    name = "sr"
    summary = f"too few pixels: enlarge by {', '.join(str(s) for s in SCALES)}"

    scale: int = 4
    filter: Filter = "bicubic"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale is {self.scale}; expected {', '.join(str(s) for s in SCALES)}.")

    def operator(self, image_shape: Sequence[int]) -> LinearOperator:
        return Downsample(self.scale, image_shape, filter=self.filter)

    def image_shape(self, photo_shape: Sequence[int]) -> Shape:
        channels, height, width = photo_shape
        return (channels, self.scale * height, self.scale * width)

    def usable_shape(self, image_shape: Sequence[int]) -> Shape:
        channels, height, width = image_shape
        if min(height, width) < self.scale:
            raise ValueError(
                f"scale {self.scale} does not fit an image of {width} x {height} pixels; "
                "it must be at least that many pixels wide and high."
            )
        return (channels, height - height % self.scale, width - width % self.scale)


@dataclass(frozen=True)
class Colorize(PhotoTask):
    """Lost colours: a grey photograph."""

    name = "colorize"
    summary = "lost colours: a grey photograph"

    def operator(self, image_shape: Sequence[int]) -> LinearOperator:
        if image_shape[0] != 3:
            raise ValueError(f"colorize makes colour images, shape (3, height, width), not {tuple(image_shape)}.")
        return Grayscale(image_shape)

    def image_shape(self, photo_shape: Sequence[int]) -> Shape:
        return (3, *photo_shape[1:])


PHOTO_TASKS: dict[str, type[PhotoTask]] = {
    task.name: task for task in (Denoise, Deblur, Inpaint, SuperResolve, Colorize)
}


def luma_operator(task: PhotoTask, image_shape: Sequence[int]) -> LinearOperator:
    """The operator of a grey photograph (1, H, W) that takes a colour image, so that a colour prior can restore it.

    The damage acts on the luma of the unknown colour image; the luma of the solution is the restored photograph.
    """
    if image_shape[0] != 1:
        raise ValueError(f"a grey image has shape (1, height, width), not {tuple(image_shape)}.")
    grey = Grayscale((3, *image_shape[1:]))
    return grey if isinstance(task, Denoise) else task.operator(image_shape) @ grey


def suggest(name: str, known: Sequence[str]) -> str:
    """The remedy for an unknown name: the nearest known one, or all of them."""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}."
