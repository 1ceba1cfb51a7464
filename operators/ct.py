"""Computed tomography: line integrals of a slice in a parallel or fan-shaped beam, in physical units."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator, Operator, derived
from invsolve.operators.ct_geometry import (
    Angles,
    FanGeometry,
    ParallelGeometry,
    checked_angles,
    positive_length,
    uniform_angles,
)
from invsolve.operators.ct_projector import Projector, goes_without_matrix, shared_projector
from invsolve.operators.registry import register

Method = Literal["auto", "matrix", "matrix-free"]
Backend = Literal["torch", "astra"]

# Share of the largest eigenvalue of A^T A from which on a damping is solved with the preconditioner.
_LEAST_DAMPING = 1e-6


class CTOperator(LinearOperator):
    """Line integrals through images along the rays of a geometry; the class behind the parallel and the fan beam.

    Args:
        geometry: scan.
        channels: number of image channels, each projected by itself.
        method: see `ParallelBeamCT`.
        backend: see `ParallelBeamCT`.
        dtype: floating-point type that `operator.dtype` reports; computations follow the type of the images.
    """

    angles: Tensor

    def __init__(
        self, geometry: ParallelGeometry, channels: int, method: Method, backend: Backend, dtype: torch.dtype
    ) -> None:
        super().__init__((channels, *geometry.image_shape), (channels, geometry.num_views, geometry.detector_count))
        if method not in get_args(Method):
            raise ValueError(f"unknown method {method!r}; expected one of {', '.join(get_args(Method))}.")
        if backend not in get_args(Backend):
            raise ValueError(f"unknown backend {backend!r}; expected one of {', '.join(get_args(Backend))}.")
        geometry.warn_if_truncated()
        self.geometry = geometry
        self.backend: Backend = backend
        self.matrix_free = goes_without_matrix(geometry, method, dtype)
        # Follows from the arguments, so it is no part of the state; a buffer all the same, to know type and device.
        self.register_buffer("angles", torch.tensor(geometry.angles, dtype=dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return self._linear(x, self.out_shape, "forward", "adjoint")

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        return self._linear(y, self.in_shape, "adjoint", "forward")

    def normal(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return self._linear(x, self.in_shape, "normal", "normal")

    def preconditioner(self, damping: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Division by a mean spectrum of A^T A, about 1/|f|, plus the damping, in the Fourier domain.

        None for a damping below 1e-6 of the largest eigenvalue, where plain conjugate gradients are more accurate.
        """
        spectrum = derived(self, "spectrum", damping, lambda: self._make_spectrum(damping))
        # Its steps leave the range of A^T. What it leaves in the null space, only the damping takes away again.
        if float(damping.min()) < _LEAST_DAMPING * float(spectrum.max()):
            return None
        inverse, (height, width) = 1 / (spectrum + damping), self.in_shape[1:]
        size = _padded(height), _padded(width)

        def apply(residual: Tensor) -> Tensor:
            image: Tensor = torch.fft.irfft2(torch.fft.rfft2(residual, s=size).mul_(inverse), s=size)
            return image[..., :height, :width].contiguous()

        return apply

    def extra_repr(self) -> str:
        how = "ASTRA weights" if self.backend == "astra" else "matrix-free" if self.matrix_free else "matrix"
        return f"{super().extra_repr()}, {how}"

    def projector(self, like: Tensor) -> Projector:
        """The weights for images like `like`, made at the first call and shared by all operators of this geometry."""
        kind = "astra" if self.backend == "astra" else "matrix-free" if self.matrix_free else "matrix"
        return derived(self, "projector", like, lambda: shared_projector(self.geometry, kind, like.dtype, like.device))

    def _linear(self, value: Tensor, shape: Sequence[int], name: str, transpose: str) -> Tensor:
        projector = self.projector(value)
        flat = value.flatten(0, 1).flatten(1)
        image = _Linear.apply(flat, projector, name, transpose)  # type: ignore[no-untyped-call]
        return image.reshape(len(value), *shape)  # type: ignore[no-any-return]

    def _make_spectrum(self, like: Tensor) -> Tensor:
        """Eigenvalues of a circulant matrix close to A^T A, from what it makes of the image's middle pixel."""
        height, width = self.in_shape[1:]
        impulse = like.new_zeros((1, height * width))
        impulse[0, (height // 2) * width + width // 2] = 1
        response = self.projector(like).normal(impulse.reshape(1, height, width))[0].to("cpu", torch.float64)
        rows, columns = _lags(height), _lags(width)
        # Between no taper, which leaves eigenvalues far below 0, and that of T. Chan's nearest circulant (1988).
        taper = ((1 - rows.abs() / height)[:, None] * (1 - columns.abs() / width)).sqrt()
        # The response falls off as 1/r, so that beyond the image it is half of what it is at half the way.
        far = (rows.abs()[:, None] > (height - 1) // 2) | (columns.abs() > (width - 1) // 2)
        reach = torch.where(far, 2, 1)
        kernel = response[
            height // 2 + torch.div(rows[:, None], reach, rounding_mode="trunc"),
            width // 2 + torch.div(columns, reach, rounding_mode="trunc"),
        ]
        kernel = kernel * taper / reach
        size = _padded(height), _padded(width)
        circulant = kernel.new_zeros(size)
        circulant.index_put_((rows[:, None] % size[0], columns[None] % size[1]), kernel, accumulate=True)
        spectrum = torch.fft.rfft2(circulant).real
        # The most negative value tells how far off the others may be.
        floor = max(-float(spectrum.min()), 1e-6 * float(spectrum.max()), torch.finfo(torch.float32).tiny)
        floored: Tensor = spectrum.clamp_min(floor).to(like)
        return floored


def _padded(size: int) -> int:
    """Length of the transforms: half as long again as the image, so that its edges hardly see each other."""
    return 3 * -(-size // 2)


def _lags(size: int) -> Tensor:
    return torch.arange(1 - size, size)


class _Linear(torch.autograd.Function):
    """One of a projector's products; its derivative is another one."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, projector: Projector, name: str, transpose: str) -> Tensor:
        ctx.other = projector, transpose, name
        if name != "adjoint":
            value = value.reshape(-1, *projector.geometry.image_shape)
        return getattr(projector, name)(value.detach()).flatten(1)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _Linear.apply(grads[0], *ctx.other), None, None, None  # type: ignore[no-untyped-call]


def _parallel_examples() -> list[Operator]:
    some = torch.tensor([0.1, 0.9, 2.0], dtype=torch.float64)
    return [
        ParallelBeamCT((1, 6, 6), uniform_angles(8), pixel_size=0.7, dtype=torch.float64),
        ParallelBeamCT(
            (2, 7, 5), some, pixel_size=0.8, detector_count=4, detector_spacing=2.1, detector_offset=0.2,
            image_offset=(0.3, -0.2), dtype=torch.float64,
        ),
        ParallelBeamCT((1, 4, 5), uniform_angles(3), method="matrix-free", dtype=torch.float64),
    ]  # fmt: skip


@register("parallel-beam-ct", _parallel_examples)
class ParallelBeamCT(CTOperator):
    """Parallel-beam CT: the integral of the image along every ray, averaged over each detector bin.

    ::

        x  . . . .       views at 0 and pi/2:   y  0 2 2 0      (2 is the length of the way through
           . 1 1 .       column and row sums,      0 2 2 0       the square, in pixels of 1 mm)
           . 1 1 .       in mm
           . . . .

    With x in 1/mm, y is a number: the -log of the transmitted share of the light. `invsolve.operators.ct_geometry`
    says where pixels, views and bins lie, `ct_weights` how a pixel is weighted. The adjoint is the exact transpose.

    Views that are turns or reflections of each other share their weights (`ct_symmetry`); evenly spread views of a
    square image need an eighth of the matrix. The matrix is built at the first use and shared by all operators of one
    geometry, type and device. Solves are by conjugate gradients, preconditioned in the Fourier domain.

    Args:
        in_shape: image shape (C, H, W).
        angles: view angles in radians, shape (views,); `uniform_angles` and `limited_angles` make the usual ones.
        pixel_size: side of a pixel in mm.
        detector_count: number of bins; as many as cover the image's diagonal if None.
        detector_spacing: width of a bin in mm; the pixel size if None.
        detector_offset: shift of the detector in mm, towards growing bin numbers for growing s.
        image_offset: centre (x, y) of the image with respect to the rotation axis in mm.
        method: "matrix" stores the weights; "matrix-free" makes them anew in every product, slower but without the
            memory; "auto" stores them up to 512 x 512 pixels and 720 views (eight times that with symmetry).
        backend: "astra" takes the weights of the optional astra-toolbox instead (its strip model for the CPU).
        dtype: floating-point type; computations follow the type of the images.

    Raises:
        ValueError: a geometry that makes no sense, or a matrix larger than the machine's memory.

    Warns:
        GeometryWarning: the detector is too narrow for the circle inscribed in the image.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        angles: Angles,
        *,
        pixel_size: float = 1.0,
        detector_count: int | None = None,
        detector_spacing: float | None = None,
        detector_offset: float = 0.0,
        image_offset: tuple[float, float] = (0.0, 0.0),
        method: Method = "auto",
        backend: Backend = "torch",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        channels, *image_shape = _three(in_shape)
        positive_length("pixel_size", pixel_size)
        spacing = pixel_size if detector_spacing is None else detector_spacing
        positive_length("detector_spacing", spacing)
        if detector_count is None:
            half = math.hypot(*image_shape) * pixel_size / 2 + math.hypot(*image_offset) + abs(detector_offset)
            detector_count = math.ceil(2 * half / spacing - 1e-9)
        geometry = ParallelGeometry(
            image_shape=(image_shape[0], image_shape[1]),
            angles=checked_angles(angles),
            detector_count=detector_count,
            detector_spacing=spacing,
            detector_offset=detector_offset,
            pixel_size=pixel_size,
            image_offset=image_offset,
        )
        super().__init__(geometry, channels, method, backend, dtype)


def _fan_examples() -> list[Operator]:
    some = torch.tensor([0.2, 1.9, 3.1], dtype=torch.float64)
    return [
        FanBeamCT((1, 6, 6), uniform_angles(8, 2 * math.pi), source_distance=15, detector_distance=9, pixel_size=0.7,
                  dtype=torch.float64),
        FanBeamCT((2, 7, 5), some, source_distance=12, detector_distance=8, detector_count=5, detector_spacing=3.1,
                  detector_offset=0.3, image_offset=(0.2, 0.1), dtype=torch.float64),
    ]  # fmt: skip


@register("fan-beam-ct", _fan_examples)
class FanBeamCT(CTOperator):
    """Fan-beam CT with a flat detector: as `ParallelBeamCT`, with rays that spread from a point source.

    ::

              detector          a scan of the whole circle, `uniform_angles(views, 2 * math.pi)`, sees every ray
           ---------------      twice; half a circle and the opening of the fan (a short scan) suffice
            \\    | x |   /
             \\   +---+  /
               \\      /        magnification at the axis:
                \\    /         (source_distance + detector_distance) / source_distance
                 source

    Args:
        in_shape: image shape (C, H, W).
        angles: view angles in radians, shape (views,).
        source_distance: from the source to the rotation axis in mm, larger than the image's radius.
        detector_distance: from the rotation axis to the detector in mm, >= 0.
        pixel_size: side of a pixel in mm.
        detector_count: number of bins; as many as cover the whole image if None.
        detector_spacing: width of a bin in mm, on the detector; the magnified pixel size if None.
        detector_offset: shift of the detector in mm, on the detector.
        image_offset: centre (x, y) of the image with respect to the rotation axis in mm.
        method: see `ParallelBeamCT`.
        backend: see `ParallelBeamCT`.
        dtype: floating-point type; computations follow the type of the images.

    Raises:
        ValueError: a geometry that makes no sense, or a matrix larger than the machine's memory.

    Warns:
        GeometryWarning: the detector is too narrow for the circle inscribed in the image.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        angles: Angles,
        *,
        source_distance: float,
        detector_distance: float,
        pixel_size: float = 1.0,
        detector_count: int | None = None,
        detector_spacing: float | None = None,
        detector_offset: float = 0.0,
        image_offset: tuple[float, float] = (0.0, 0.0),
        method: Method = "auto",
        backend: Backend = "torch",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        channels, *image_shape = _three(in_shape)
        positive_length("pixel_size", pixel_size)
        positive_length("source_distance", source_distance)
        length = source_distance + detector_distance
        spacing = pixel_size * length / source_distance if detector_spacing is None else detector_spacing
        if detector_spacing is not None:
            positive_length("detector_spacing", spacing)
        if detector_count is None:
            radius = math.hypot(*image_shape) * pixel_size / 2 + math.hypot(*image_offset)
            # A source inside the image is refused below; until then any width will do.
            edge = length * math.tan(math.asin(min(radius / source_distance, 0.9)))
            detector_count = max(1, math.ceil(2 * (edge + abs(detector_offset)) / spacing - 1e-9))
        geometry = FanGeometry(
            image_shape=(image_shape[0], image_shape[1]),
            angles=checked_angles(angles),
            detector_count=detector_count,
            detector_spacing=spacing,
            detector_offset=detector_offset,
            pixel_size=pixel_size,
            image_offset=image_offset,
            source_distance=source_distance,
            detector_distance=detector_distance,
        )
        super().__init__(geometry, channels, method, backend, dtype)


def ct_operator(
    geometry: ParallelGeometry,
    channels: int = 1,
    *,
    method: Method = "auto",
    backend: Backend = "torch",
    dtype: torch.dtype = torch.float32,
) -> ParallelBeamCT | FanBeamCT:
    """The operator of a geometry; the arguments are those of `ParallelBeamCT`."""
    shape = (channels, *geometry.image_shape)
    common: dict[str, Any] = {
        "pixel_size": geometry.pixel_size,
        "detector_count": geometry.detector_count,
        "detector_spacing": geometry.detector_spacing,
        "detector_offset": geometry.detector_offset,
        "image_offset": geometry.image_offset,
        "method": method,
        "backend": backend,
        "dtype": dtype,
    }
    if isinstance(geometry, FanGeometry):
        common["source_distance"] = geometry.source_distance
        common["detector_distance"] = geometry.detector_distance
        return FanBeamCT(shape, geometry.angles, **common)
    return ParallelBeamCT(shape, geometry.angles, **common)


def _three(in_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(int(n) for n in in_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"CT takes images (channels, height, width), got in_shape {shape}.")
    return shape
