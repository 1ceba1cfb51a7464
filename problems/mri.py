"""MRI tasks: accelerated scans with a named sampling pattern, and k-space from files."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from invsolve.operators.mri import CartesianMRI
from invsolve.operators.mri_coils import espirit, root_sum_of_squares
from invsolve.operators.mri_fourier import centred_ifft2, check_kspace
from invsolve.operators.mri_masks import centre_fraction, equispaced_mask, variable_density_mask

Shape = tuple[int, int]


@dataclass(frozen=True)
class MRITask:
    """One way to sample less of k-space than there is.

    Args:
        name: as listed.
        summary: one line.
        make_mask: ((H, W), seed) -> mask, (W,) or (H, W), 1 = sampled.
        centre: rows and columns around the zero frequency that are fully sampled for the coil maps.
    """

    name: str
    summary: str
    make_mask: Callable[[Shape, int], Tensor]
    centre: Callable[[Shape], Shape]

    def mask(self, image_shape: Shape, seed: int = 0) -> Tensor:
        """The sampling pattern for images of this shape."""
        return self.make_mask(image_shape, seed)

    def operator(self, image_shape: Shape, coil_maps: Tensor | None = None, *, seed: int = 0) -> CartesianMRI:
        """The scan as an operator; a single coil without maps.

        Args:
            image_shape: (H, W).
            coil_maps: (coils, H, W), complex.
            seed: of the pattern.
        """
        return CartesianMRI(self.mask(image_shape, seed), coil_maps, image_shape=image_shape)


@dataclass(frozen=True)
class MRIScan:
    """A scan that was accelerated in retrospect.

    Args:
        y: sampled k-space (1, coils, H, W), the rest 0, in units in which the image is about 0 to 1.
        operator: the scan, with coil maps estimated from `y` alone.
        reference: the image from all of k-space, combined by the same maps; (1, 2, H, W), real and imaginary.
        scale: what `y` was multiplied by to get from the scanner's units to these.
    """

    y: Tensor
    operator: CartesianMRI
    reference: Tensor
    scale: float


def _equispaced(rate: int) -> MRITask:
    return MRITask(
        f"mri-equispaced-{rate}",
        f"every {rate}th line of k-space or so, and the centre, as in fastMRI",
        lambda shape, seed: equispaced_mask(shape[1], rate, seed=seed),
        lambda shape: (24, _symmetric_lines(shape[1], rate)),
    )


def _variable_density(rate: int) -> MRITask:
    def make(shape: Shape, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return variable_density_mask(shape, rate, centre=_square(shape), generator=generator)

    return MRITask(
        f"mri-variable-density-{rate}",
        f"one point of k-space in {rate}, most of them near the centre",
        make,
        lambda shape: (_square(shape),) * 2,
    )


def _symmetric_lines(width: int, rate: int) -> int:
    """How many of the centre lines of an equispaced mask lie evenly around the zero frequency."""
    low = round(width * centre_fraction(rate))
    return low - 1 if width % 2 == 1 and low % 2 == 0 else low


def _square(shape: Shape) -> int:
    """Width of the calibrated square: 24, or an eighth of small images."""
    return min(24, max(2, min(shape) // 8))


MRI_TASKS: dict[str, MRITask] = {
    task.name: task for task in (*map(_equispaced, (4, 8)), *map(_variable_density, (4, 8)))
}


def mri_problem(name: str) -> MRITask:
    """The task called `name`; KeyError with the known names otherwise."""
    if name not in MRI_TASKS:
        raise KeyError(f"unknown MRI task {name!r}; known: {', '.join(MRI_TASKS)}.")
    return MRI_TASKS[name]


def accelerate(task: MRITask, kspace: Tensor, *, seed: int = 0) -> MRIScan:
    """A fully sampled multi-coil slice as the task would have measured it.

    The coil maps come from the sampled data only (ESPIRiT on the fully sampled centre). Units: the brightest percent
    of the zero-filled root sum of squares becomes 1, so that nothing of the unsampled data leaks in.

    Args:
        task: the sampling pattern.
        kspace: centred, fully sampled k-space (coils, H, W), complex.
        seed: of the pattern.

    Raises:
        TypeError, ValueError: see `invsolve.operators.mri_fourier.check_kspace`.
    """
    check_kspace(kspace)
    shape = (int(kspace.shape[-2]), int(kspace.shape[-1]))
    mask = task.mask(shape, seed).to(kspace.device)
    y = kspace * mask
    zero_filled = root_sum_of_squares(centred_ifft2(y)).flatten()
    scale = 1 / float(zero_filled.kthvalue(max(1, round(0.99 * zero_filled.numel()))).values)
    if len(kspace) == 1:
        maps = None
        combined = centred_ifft2(kspace[0])
    else:
        centre = task.centre(shape)
        maps = espirit(y, calibration=centre, kernel=min(6, (min(centre) + 1) // 2))
        combined = (maps.conj() * centred_ifft2(kspace)).sum(0)
    reference = scale * torch.stack((combined.real, combined.imag))[None]
    return MRIScan(scale * y[None], CartesianMRI(mask, maps, image_shape=shape), reference, scale)


def read_kspace(path: str | Path, key: str | None = None) -> Tensor:
    """K-space from a .npy or .npz file: coil first, centred, complex.

    Args:
        path: of the file; (H, W), (coils, H, W) or (slices, coils, H, W).
        key: name of the array in an .npz file; its only one, or "ksp" or "kspace", if None.

    Returns:
        complex64 tensor (coils, H, W), or (slices, coils, H, W); one coil for (H, W).

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: the array is not complex.
        ValueError: the file holds something else.

    Warns:
        KSpaceWarning: the zero frequency is not in the middle.
    """
    path = Path(path)
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no .npy or .npz file of numbers.") from error
    if isinstance(loaded, np.lib.npyio.NpzFile):
        with loaded:
            names = loaded.files
            if key is None:
                candidates = [name for name in ("ksp", "kspace") if name in names] or names
                key = candidates[0] if len(candidates) == 1 or candidates != names else None
            if key is None or key not in names:
                raise ValueError(f"{path} holds the arrays {', '.join(names)}; name that of k-space by `key`.")
            array = loaded[key]
    else:
        array = loaded
    if array.ndim not in (2, 3, 4) or array.dtype.kind not in "fciub":
        raise ValueError(f"{path} holds {array.dtype} of shape {array.shape}; expected complex (coils, H, W).")
    kspace = torch.from_numpy(np.ascontiguousarray(array))
    kspace = kspace[None] if kspace.ndim == 2 else kspace
    check_kspace(kspace)
    return kspace.to(torch.complex64)
