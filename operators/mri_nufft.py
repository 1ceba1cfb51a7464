"""Non-Cartesian MRI: k-space sampled along radial, spiral or any other trajectories."""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator, Operator, derived
from invsolve.operators.mri_checks import check_maps
from invsolve.operators.mri_trajectories import radial_trajectory, spiral_trajectory
from invsolve.operators.registry import register

Backend = Literal["auto", "finufft", "exact"]

# Points times pixels up to which the sum is written out where finufft is missing.
_EXACT_LIMIT = 1 << 26
# Entries of one block of the written-out exponentials.
_BLOCK = 1 << 22


def _examples() -> list[Operator]:
    generator = torch.Generator().manual_seed(4)
    maps = torch.randn((3, 5, 6), generator=generator, dtype=torch.complex128) / 2
    points = torch.rand((11, 2), generator=generator, dtype=torch.float64) - 0.5
    return [
        NonCartesianMRI(radial_trajectory(3, 7), (4, 5), dtype=torch.float64),
        NonCartesianMRI(spiral_trajectory(2, 9, turns=1.5), coil_maps=maps),
        NonCartesianMRI(points, (5, 4), dtype=torch.float64),
    ]


@register("noncartesian-mri", _examples)
class NonCartesianMRI(LinearOperator):
    """MRI off the grid: the Fourier transform of the image as each coil sees it, along a trajectory.

    ::

        image x          coil c sees          k-space        \\ | /     samples y_c
        real, imag  -->  S_c * x        -->   along    -->   --+--  -->  (points)
                                              spokes         / | \\

    y_c(k) = sum over the pixels of S_c x exp(-2 pi i (kx column + ky row)) / sqrt(H W), rows and columns counted from
    (H // 2, W // 2). On grid positions this is `CartesianMRI`. Images are (B, 2, H, W), channels real and imaginary;
    measurements (B, coils, ...) complex, with the shape of the trajectory.

    `forward` and `adjoint` are non-uniform fast Fourier transforms by finufft (cufinufft on a GPU), from the optional
    extra "nufft"; small problems are summed as written where it is missing. A^H A, all that a solve needs, is neither:
    it is a convolution, done exactly by Fourier transforms on a grid twice as large (its kernel is computed once).

    Args:
        trajectory: positions in cycles per pixel, (..., 2) with (kx, ky), within -0.5 ... 0.5.
        image_shape: (H, W); that of the maps if None.
        coil_maps: complex sensitivities (coils, H, W); None for one coil that sees all alike.
        backend: "auto", "finufft" or "exact".
        dtype: floating-point type of the stored arrays; that of the maps, or of the trajectory, if None. Computations
            follow the type of the images.

    Raises:
        ModuleNotFoundError: the problem is too large for the written-out sum and finufft is not installed.
        TypeError: maps that are not complex.
        ValueError: a trajectory or maps that do not fit.
    """

    trajectory: Tensor
    maps: Tensor | None

    def __init__(
        self,
        trajectory: Tensor | np.ndarray,
        image_shape: Sequence[int] | None = None,
        coil_maps: Tensor | np.ndarray | None = None,
        *,
        backend: Backend = "auto",
        dtype: torch.dtype | None = None,
    ) -> None:
        points = _check_trajectory(torch.as_tensor(trajectory))
        maps = None if coil_maps is None else check_maps(torch.as_tensor(coil_maps))
        if maps is not None and maps.ndim != 3:
            raise ValueError(f"the coil maps have shape {tuple(maps.shape)}; expected (coils, H, W).")
        if image_shape is None:
            if maps is None:
                raise ValueError("the size of the image is not known; pass image_shape=(H, W) or coil maps.")
            image_shape = maps.shape[-2:]
        height, width = (int(n) for n in image_shape)
        if maps is not None and tuple(maps.shape[-2:]) != (height, width):
            raise ValueError(f"the coil maps are {maps.shape[-2]} x {maps.shape[-1]}, the image {height} x {width}.")
        super().__init__((2, height, width), (1 if maps is None else len(maps), *points.shape[:-1]))
        self.backend = _choose(backend, points.numel() // 2 * height * width)
        if dtype is None:
            dtype = points.dtype if maps is None else maps.real.dtype
        self.register_buffer("trajectory", points.to(dtype))
        self.register_buffer("maps", None if maps is None else torch.view_as_real(maps.resolve_conj()).to(dtype))

    @property
    def coil_maps(self) -> Tensor | None:
        """Complex maps (coils, H, W); None for a single coil without maps."""
        return None if self.maps is None else torch.view_as_complex(self.maps)

    def check_output(self, y: Tensor) -> None:
        super().check_output(y)
        if not y.is_complex():
            raise TypeError(f"y has type {y.dtype}; k-space is complex64 or complex128.")

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        seen = _complex(x)[:, None]
        if self.maps is not None:
            seen = self._maps(seen) * seen
        samples = _transform(seen, self.trajectory, self.in_shape[1:], self.backend, adjoint=False)
        return samples.reshape(len(x), *self.out_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        samples = y.reshape(*y.shape[:2], -1)
        seen = _transform(samples, self.trajectory, self.in_shape[1:], self.backend, adjoint=True)
        if self.maps is not None:
            seen = self._maps(seen).conj() * seen
        return _channels(seen.sum(1))

    def normal(self, x: Tensor) -> Tensor:
        self.check_input(x)
        height, width = self.in_shape[1:]
        image = _complex(x)
        kernel = self._kernel(image)
        total = torch.zeros_like(image)
        for coil in range(self.out_shape[0]):
            maps = None if self.maps is None else self._maps(image)[coil]
            seen = image if maps is None else maps * image
            # Rows first: only those of the image are filled, and only those are needed on the way back.
            spectrum = torch.fft.fft(torch.fft.fft(seen, n=2 * width, dim=-1), n=2 * height, dim=-2).mul_(kernel)
            seen = torch.fft.ifft(torch.fft.ifft(spectrum, dim=-2)[..., :height, :], dim=-1)[..., :width]
            total = total + (seen if maps is None else maps.conj() * seen)
        return _channels(total)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.trajectory.numel() // 2} points, {self.backend}"

    def _maps(self, like: Tensor) -> Tensor:
        assert self.maps is not None
        kind = torch.float64 if like.dtype == torch.complex128 else torch.float32
        maps: Tensor = torch.view_as_complex(self.maps.to(like.device, kind))
        return maps

    def _kernel(self, like: Tensor) -> Tensor:
        """Spectrum (2H, 2W) of the convolution A^H A of a single coil, real."""

        def make() -> Tensor:
            # The kernel at offsets -H ... H - 1: the adjoint of ones on an image twice as large. In double precision.
            height, width = self.in_shape[1:]
            points = self.trajectory.detach().to("cpu", torch.float64).reshape(-1, 2)
            ones = torch.ones(1, len(points), dtype=torch.complex128)
            kernel = _adjoint(ones, points, (2 * height, 2 * width), self.backend)[0]
            # `_adjoint` divides by sqrt(4 H W), A^H A by H W.
            kernel = torch.fft.ifftshift(kernel) * (2 / math.sqrt(height * width))
            # Offsets -H and -W occur in no image; without them the kernel is Hermitian and its spectrum real.
            kernel[height, :] = 0
            kernel[:, width] = 0
            spectrum: Tensor = torch.fft.fft2(kernel).real
            return spectrum.to(like.device, torch.float64 if like.dtype == torch.complex128 else torch.float32)

        return derived(self, "kernel", like, make)


def density_compensation(
    trajectory: Tensor, image_shape: Sequence[int], *, iterations: int = 10, backend: Backend = "auto"
) -> Tensor:
    """Weights w that make the gridded image adjoint(w * y) look like the image.

    Pipe and Menon 1999, "Sampling density compensation in MRI": w / (K w) until K w is 1 at the samples, K the
    convolution with a narrow kernel. A weight is then the area of k-space that its sample stands for, in units of one
    grid point, so that the gridded image has the units of the image.

    Args:
        trajectory: (..., 2), as for `NonCartesianMRI`.
        image_shape: (H, W).
        iterations: of the fixed point; 10 are enough.
        backend: as for `NonCartesianMRI`.

    Returns:
        Weights > 0 with the shape of the trajectory without its last axis, in its type.
    """
    points = _check_trajectory(trajectory)
    # The kernel of the iteration must be as narrow as the image is wide: it lives on a grid twice as large.
    height, width = (2 * int(n) for n in image_shape)
    chosen = _choose(backend, points.numel() // 2 * height * width)
    flat = points.to(torch.float64).reshape(-1, 2)
    weights = torch.ones(1, len(flat), dtype=torch.complex128, device=flat.device)
    for _ in range(iterations):
        image = _adjoint(weights, flat, (height, width), chosen)
        # A triangle window on the image makes the kernel of A A^H non-negative, as the method needs it.
        image = image * torch.outer(_triangle(height), _triangle(width)).to(flat.device)
        density = _forward(image, flat, chosen).abs()
        weights = weights / density.clamp_min(1e-12 * float(density.max()))
    # At the fixed point a weight is its area of k-space times the points of the twice larger grid.
    return (weights.real[0] / 4).reshape(points.shape[:-1]).to(points.dtype)


def _triangle(size: int) -> Tensor:
    offsets = (torch.arange(size, dtype=torch.float64) - size // 2).abs()
    return 1 - offsets / (size // 2 + 1)


def _transform(array: Tensor, trajectory: Tensor, image_shape: Sequence[int], backend: str, *, adjoint: bool) -> Tensor:
    """Images (..., H, W) to samples (..., points), or the adjoint; differentiable."""
    result: Tensor = _Transform.apply(array, trajectory, tuple(image_shape), backend, adjoint)  # type: ignore[no-untyped-call]
    return result


class _Transform(torch.autograd.Function):
    """The transform or its adjoint; each is the gradient of the other."""

    @staticmethod
    def forward(
        ctx: Any, array: Tensor, trajectory: Tensor, image_shape: tuple[int, int], backend: str, adjoint: bool
    ) -> Tensor:
        ctx.settings = trajectory, image_shape, backend, adjoint
        points = trajectory.detach().reshape(-1, 2)
        if adjoint:
            images = _adjoint(array.flatten(0, -2), points, image_shape, backend)
            return images.reshape(*array.shape[:-1], *image_shape)
        samples = _forward(array.flatten(0, -3), points, backend)
        return samples.reshape(*array.shape[:-2], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        trajectory, image_shape, backend, adjoint = ctx.settings
        gradient = _transform(grads[0], trajectory, image_shape, backend, adjoint=not adjoint)
        return gradient, None, None, None, None


def _forward(images: Tensor, points: Tensor, backend: str) -> Tensor:
    """Images (n, H, W) to samples (n, points), complex."""
    height, width = images.shape[1:]
    scale = 1 / math.sqrt(height * width)
    if backend == "finufft":
        # type 2: modes to points; the first axis of the modes belongs to the first coordinate
        return _finufft(2, images, points, None) * scale
    columns, rows = _waves(points, width, 0, images), _waves(points, height, 1, images)
    parts = []
    step = max(1, _BLOCK // (height * max(1, len(images))))
    for start in range(0, len(points), step):
        part = slice(start, start + step)
        along = images @ columns[part].T  # (n, H, points)
        parts.append((along * rows[part].T).sum(1))
    return torch.cat(parts, -1) * scale


def _adjoint(samples: Tensor, points: Tensor, image_shape: tuple[int, int], backend: str) -> Tensor:
    """Samples (n, points) to images (n, H, W), the conjugate transpose of `_forward`."""
    height, width = image_shape
    scale = 1 / math.sqrt(height * width)
    if backend == "finufft":
        return _finufft(1, samples, points, image_shape) * scale
    columns, rows = _waves(points, width, 0, samples), _waves(points, height, 1, samples)
    images = samples.new_zeros(len(samples), height, width)
    step = max(1, _BLOCK // (height * max(1, len(samples))))
    for start in range(0, len(points), step):
        part = slice(start, start + step)
        images += (samples[:, None, part] * rows[part].mH) @ columns[part].conj()
    return images * scale


def _waves(points: Tensor, size: int, axis: int, like: Tensor) -> Tensor:
    """exp(-2 pi i k j) for centred pixels j of one axis, (points, size)."""
    pixels = torch.arange(size, dtype=torch.float64, device=points.device) - size // 2
    angles = -2 * math.pi * torch.outer(points[:, axis].double(), pixels)
    return torch.polar(torch.ones_like(angles), angles).to(like.device, like.dtype)


def _finufft(kind: int, array: Tensor, points: Tensor, image_shape: tuple[int, int] | None) -> Tensor:
    """One library call; kind 1 sums over the points with exp(+i), kind 2 evaluates there with exp(-i)."""
    double = array.dtype == torch.complex128
    real = torch.float64 if double else torch.float32
    tolerance = 1e-14 if double else 1e-6
    # Angles are formed in double precision and wrapped, whatever the precision of the sum.
    angles = (2 * math.pi * points.double()).to(array.device)
    angles = torch.remainder(angles + math.pi, 2 * math.pi) - math.pi
    columns, rows = (angles[:, axis].to(real).contiguous() for axis in (0, 1))
    array = array.contiguous()
    if array.is_cuda:
        if importlib.util.find_spec("cufinufft") is None:
            raise ModuleNotFoundError("non-uniform transforms on a GPU need cufinufft: pip install cufinufft.")
        cufinufft = importlib.import_module("cufinufft")
        if kind == 1:
            gridded: Tensor = cufinufft.nufft2d1(rows, columns, array, image_shape, eps=tolerance, isign=1)
            return gridded
        samples: Tensor = cufinufft.nufft2d2(rows, columns, array, eps=tolerance, isign=-1)
        return samples
    finufft = importlib.import_module("finufft")
    x, y, data = rows.numpy(), columns.numpy(), array.numpy()
    with warnings.catch_warnings():
        # A tolerance at the limit of the precision is what is wanted; finufft says that it cannot promise it.
        warnings.simplefilter("ignore")
        threads = torch.get_num_threads()
        if kind == 1:
            result = finufft.nufft2d1(x, y, data, image_shape, eps=tolerance, isign=1, nthreads=threads)
        else:
            result = finufft.nufft2d2(x, y, data, eps=tolerance, isign=-1, nthreads=threads)
    transformed: Tensor = torch.from_numpy(result)
    return transformed


def _choose(backend: str, work: int) -> str:
    """The backend that will run: "finufft" or "exact"."""
    if backend not in ("auto", "finufft", "exact"):
        raise ValueError(f"unknown backend {backend!r}; expected 'auto', 'finufft' or 'exact'.")
    installed = importlib.util.find_spec("finufft") is not None
    if backend == "exact" or (backend == "auto" and not installed and work <= _EXACT_LIMIT):
        return "exact"
    if not installed:
        raise ModuleNotFoundError(
            f"a non-uniform transform of {work:.2g} points times pixels needs finufft: pip install 'invsolve[nufft]' "
            "(backend='exact' writes the sum out, slowly)."
        )
    return "finufft"


def _check_trajectory(trajectory: Tensor) -> Tensor:
    if trajectory.ndim < 2 or trajectory.shape[-1] != 2 or not trajectory.is_floating_point() or not len(trajectory):
        raise ValueError(
            f"the trajectory is {trajectory.dtype} of shape {tuple(trajectory.shape)}; expected real (..., 2) "
            "with (kx, ky) last."
        )
    if not bool(torch.isfinite(trajectory).all()):
        raise ValueError("the trajectory holds NaN or Inf.")
    largest = float(trajectory.abs().max())
    if largest > 0.5 + 1e-3:
        raise ValueError(
            f"the trajectory reaches {largest:.4g}; positions are in cycles per pixel, -0.5 to 0.5. Divide cycles per "
            "field of view by the number of pixels, and radians per pixel by 2 pi."
        )
    return trajectory


def _complex(x: Tensor) -> Tensor:
    return torch.complex(x[:, 0], x[:, 1])


def _channels(image: Tensor) -> Tensor:
    return torch.stack((image.real, image.imag), 1)
