"""The options of `invsolve restore` in one frozen record, checked before anything heavy starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from invsolve.cli.errors import UserError
from invsolve.cli.noise import parse_noise

DEVICES = "auto, cpu, cuda, cuda:N or mps"


@dataclass(frozen=True)
class RestoreOptions:
    """What `invsolve restore` was asked for; see its --help for the meaning of each."""

    inputs: tuple[str, ...]
    out: Path | None = None
    task: str = "denoise"
    blur_sigma: float | None = None
    motion_length: float | None = None
    motion_angle: float = 0.0
    kernel: Path | None = None
    boundary: str = "reflect"
    mask: Path | None = None
    mask_hole: str = "black"
    scale: int = 4
    noise_std: str = "auto"
    degrade: bool = False
    method: str = "auto"
    preset: str = "balanced"
    samples: int = 1
    seed: int = 0
    prior: str = "natural"
    device: str = "auto"
    dtype: str = "auto"
    tile: str = "auto"
    checkpoint: bool = False
    format: str = "same"
    white: float = 1.0
    max_megapixels: float = 100.0
    force: bool = False
    quiet: bool = False

    def check(self) -> None:
        """Raise UserError for values that no image can make right."""
        parse_noise(self.noise_std)
        for flag, value in (("--blur-sigma", self.blur_sigma), ("--white", self.white)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{flag} is {value}; expected a number > 0.")
        if self.motion_length is not None and not (math.isfinite(self.motion_length) and self.motion_length >= 1):
            raise UserError(f"--motion-length is {self.motion_length}; expected pixels >= 1.")
        if not math.isfinite(self.motion_angle):
            raise UserError(f"--motion-angle is {self.motion_angle}; expected degrees.")
        if self.samples < 1:
            raise UserError(f"--samples is {self.samples}; expected at least 1.")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; expected a whole number >= 0.")
        if not self.max_megapixels > 0:
            raise UserError(f"--max-megapixels is {self.max_megapixels}; expected a number > 0.")
        self.tile_size()
        self._check_task_options()

    def _check_task_options(self) -> None:
        blurs = [self.blur_sigma is not None, self.motion_length is not None, self.kernel is not None]
        if self.task == "deblur" and sum(blurs) != 1:
            raise UserError(
                "--task deblur needs to know the blur: give exactly one of --blur-sigma, --motion-length and --kernel."
            )
        if self.task != "deblur" and any(blurs):
            raise UserError(f"--blur-sigma, --motion-length and --kernel belong to --task deblur, not to {self.task}.")
        if self.task == "inpaint" and self.mask is None:
            raise UserError("--task inpaint needs --mask: an image that is white where pixels are known.")
        if self.task != "inpaint" and self.mask is not None:
            raise UserError(f"--mask belongs to --task inpaint, not to {self.task}.")

    def tile_size(self) -> int | str | None:
        """`--tile` as `invsolve.solve` takes it."""
        if self.tile in ("auto", "none"):
            return None if self.tile == "none" else "auto"
        if not self.tile.isdigit() or int(self.tile) < 64:
            raise UserError(f"--tile is {self.tile!r}; expected auto, none, or a number of pixels from 64 on.")
        return int(self.tile)

    @property
    def max_pixels(self) -> int:
        """`--max-megapixels` in pixels."""
        return int(self.max_megapixels * 1e6)
