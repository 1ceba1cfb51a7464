"""From the options of a command to the task, the prior and the device it names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invsolve.cli import sidecar
from invsolve.cli.errors import UserError, show_path
from invsolve.cli.naming import IMAGE_SUFFIXES, Job
from invsolve.cli.options import DEVICES, RestoreOptions
from invsolve.cli.reading import read_kernel, read_mask
from invsolve.operators import LinearOperator
from invsolve.operators.kernels import gaussian_kernel, motion_kernel
from invsolve.priors.base import Prior
from invsolve.priors.registry import SHIPPED, load_prior
from invsolve.problems.photo import (
    BOUNDARIES,
    PHOTO_TASKS,
    Colorize,
    Deblur,
    Denoise,
    Inpaint,
    PhotoTask,
    SuperResolve,
    luma_operator,
    suggest,
)
from invsolve.samplers.presets import PRESETS, SAMPLERS


def check_names(options: RestoreOptions) -> None:
    """Raise UserError, with the nearest known name, for names that mean nothing."""
    for flag, name, known in (
        ("--task", options.task, tuple(PHOTO_TASKS)),
        ("--method", options.method, ("auto", *SAMPLERS)),
        ("--preset", options.preset, PRESETS),
        ("--dtype", options.dtype, ("auto", "float32", "bfloat16")),
        ("--boundary", options.boundary, BOUNDARIES),
        ("--mask-hole", options.mask_hole, ("black", "white")),
        ("--format", options.format, ("same", "png", "tiff", "jpg", "webp")),
    ):
        if name not in known:
            raise UserError(f"{flag} {name!r} is unknown; {suggest(name, known)}")
    check_device(options.device)


def check_device(name: str) -> None:
    """Raise UserError unless torch can compute on this device now."""
    if name == "auto":
        return
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"--device {name!r} cannot be used here; expected {DEVICES}, and `invsolve doctor` tells which."
        ) from None


@dataclass(frozen=True, eq=False)
class TaskSource:
    """Makes the task of each photograph; only masks differ from one to the next."""

    options: RestoreOptions
    fixed: PhotoTask | None
    description: dict[str, Any]

    @classmethod
    def of(cls, options: RestoreOptions) -> TaskSource:
        """Read what is common to all photographs.

        Raises:
            UserError: a kernel, scale or mask that cannot be used.
        """
        try:
            return cls(options, *_fixed_task(options))
        except ValueError as error:
            where = f"{show_path(options.kernel)}: " if options.kernel else ""
            raise UserError(where + str(error)) from error

    def mask_path(self, job: Job) -> Path | None:
        """The mask of one photograph: the one file, or the one of the same name in a folder of masks."""
        mask = self.options.mask
        if mask is None or not mask.is_dir():
            return mask
        stem = mask / job.relative.with_suffix("")
        for suffix in (job.relative.suffix, *sorted(IMAGE_SUFFIXES)):
            candidate = stem.with_name(stem.name + suffix)
            if candidate.is_file():
                return candidate
        raise UserError(f"{show_path(mask)} holds no mask for {show_path(job.source)} ({stem.name}.png, ...).")

    def settings(self, job: Job) -> dict[str, Any]:
        """The task and its parameters as plain values; masks and kernels by their hash."""
        path = self.mask_path(job)
        if path is None:
            return self.description
        return {**self.description, "mask_sha256": sidecar.file_hash(path)}

    def task(self, job: Job) -> PhotoTask:
        """The task of one photograph."""
        if self.fixed is not None:
            return self.fixed
        path = self.mask_path(job)
        assert path is not None
        known = read_mask(path, self.options.mask_hole, self.options.max_pixels)
        try:
            return Inpaint(torch.from_numpy(known))
        except ValueError as error:
            raise UserError(f"{show_path(path)}: {error}") from error


def _fixed_task(options: RestoreOptions) -> tuple[PhotoTask | None, dict[str, Any]]:
    name = options.task
    if name == "deblur":
        kernel: Tensor
        if options.kernel is not None:
            kernel = torch.from_numpy(read_kernel(options.kernel))
            said: dict[str, Any] = {"kernel": options.kernel.name, "kernel_sha256": sidecar.file_hash(options.kernel)}
        elif options.blur_sigma is not None:
            kernel = gaussian_kernel(options.blur_sigma)
            said = {"blur_sigma": options.blur_sigma}
        else:
            assert options.motion_length is not None  # RestoreOptions.check
            kernel = motion_kernel(options.motion_length, options.motion_angle)
            said = {"motion_length": options.motion_length, "motion_angle": options.motion_angle}
        boundary = BOUNDARIES[BOUNDARIES.index(options.boundary)]
        return Deblur(kernel, boundary), {"task": name, **said, "boundary": boundary}
    if name == "sr":
        task = SuperResolve(options.scale)
        return task, {"task": name, "scale": task.scale, "filter": task.filter}
    if name == "inpaint":
        return None, {"task": name, "mask_hole": options.mask_hole}
    return (Colorize() if name == "colorize" else Denoise()), {"task": name}


@dataclass(frozen=True, eq=False)
class LoadedPrior:
    """A prior and what identifies it."""

    prior: Prior
    name: str
    sha256: str

    @classmethod
    def of(cls, name: str) -> LoadedPrior:
        """Load a prior by name or path.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        path = SHIPPED[name].path if name in SHIPPED else Path(name)
        try:
            prior = load_prior(name)
        except (ValueError, OSError) as error:
            raise UserError(f"--prior: {str(error).splitlines()[0]}") from error
        return cls(prior, name, sidecar.file_hash(path))

    @property
    def channels(self) -> int | None:
        """Channels of the images it models; None for any."""
        return None if self.prior.shape is None else self.prior.shape[0]


def operator_for(
    task: PhotoTask, image_shape: tuple[int, ...], prior: LoadedPrior, shown: str
) -> tuple[LinearOperator, bool]:
    """The operator to solve with, and whether it solves for colour although the image is grey.

    Raises:
        UserError: the task does not fit the image, or the prior models other images.
    """
    channels = image_shape[0]
    in_colour = channels == 1 and prior.channels == 3
    if prior.channels not in (None, channels) and not in_colour:
        kinds = {1: "grey", 2: "complex", 3: "colour"}
        own = kinds.get(prior.channels or 0, "other")
        raise UserError(
            f"the prior {prior.name} models {own} images with {prior.channels} channel(s), but {shown} needs "
            f"{channels} ({kinds[channels]}); choose another --prior."
        )
    try:
        return (luma_operator(task, image_shape) if in_colour else task.operator(image_shape)), in_colour
    except ValueError as error:
        raise UserError(f"{shown}: {error}") from error
