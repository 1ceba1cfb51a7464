"""`invsolve train prior` and `invsolve train pack`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from invsolve.cli.errors import UserError, explain_os_error, show_path
from invsolve.cli.progress import Reporter
from invsolve.cli.tasks import check_device
from invsolve.cli.writing import check_writable
from invsolve.priors.unet import UNetPrior
from invsolve.training import TrainingSettings, find_recipe, psnr_by_sigma, train_prior
from invsolve.training.data import load_images, pack_images
from invsolve.training.prior import Images
from invsolve.training.slices import pack_slices, read_slices


@dataclass(frozen=True)
class TrainOptions:
    """What `invsolve train prior` was asked for; see its --help. None leaves a value to the recipe."""

    data: Path
    out: Path
    recipe: str
    start: Path | None
    channels: int | None
    steps: int | None
    batch_size: int | None
    crop: int | None
    lr: float | None
    ema: float | None
    widths: str | None
    blocks: str | None
    scenes: int | None
    seed: int | None
    device: str
    checkpoint_every: float
    fresh: bool
    validation: Path | None
    quiet: bool

    def settings(self) -> TrainingSettings:
        """Hyper-parameters for `train_prior`: the recipe's, and what was given beside it.

        Raises:
            UserError: a value that cannot be.
        """
        if self.ema is not None and not 0 <= self.ema < 1:
            raise UserError(f"--ema is {self.ema}; expected 0 <= ema < 1.")
        for flag, value in (("--scenes", self.scenes), ("--seed", self.seed)):
            if value is not None and value < 0:
                raise UserError(f"{flag} is {value}; expected a whole number >= 0.")
        network = {
            "channels": self.channels,
            "widths": None if self.widths is None else _whole("--widths", self.widths),
            "blocks": None if self.blocks is None else _whole("--blocks", self.blocks),
        }
        others = {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "crop": self.crop,
            "learning_rate": self.lr,
            "ema_decay": self.ema,
            "scenes": self.scenes,
            "seed": self.seed,
        }
        try:
            settings = find_recipe(self.recipe).settings
            return replace(settings, network=replace(settings.network, **_given(network)), **_given(others))
        except ValueError as error:
            raise UserError(str(error)) from error


def pack(data: Path, out: Path, recipe: str) -> int:
    """Write the training data of a recipe to one packed file; see `invsolve train pack --help`."""
    try:
        images = find_recipe(recipe).settings.images
        if out.suffix.lower() != ".npz" or out.is_dir():
            raise UserError(f"--out {show_path(out)}: name an .npz file.")
        check_writable(out.parent)
        if images == "photographs":
            photographs = load_images(data, 3)
            pack_images(photographs, out)
            count = len(photographs)
        else:
            slices = read_slices(data, images)
            pack_slices(slices, images, out)
            count = len(slices)
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise explain_os_error(error, f"writing {show_path(out)}") from error
    print(f"wrote {count} images to {show_path(out)}, {out.stat().st_size / 1e6:.1f} MB")
    return 0


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _whole(flag: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise UserError(f"{flag} is {text!r}; expected positive whole numbers such as 32,64,128.")
    return numbers


def run(options: TrainOptions) -> int:
    """Train, save, and measure if there are validation images."""
    settings = options.settings()
    check_device(options.device)
    if options.out.is_dir():
        raise UserError(f"--out {show_path(options.out)} is a folder; name a .safetensors file.")
    for data in filter(None, (options.data, options.validation)):
        if not data.is_dir() and not (data.is_file() and data.suffix.lower() in {".npy", ".npz"}):
            raise UserError(f"{show_path(data)} is not a folder of images, nor a packed .npy or .npz file.")
    if options.start is not None and not options.start.is_file():
        raise UserError(f"--start {show_path(options.start)}: there is no such checkpoint.")
    check_writable(options.out.parent)
    device = options.device if options.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    state = options.out.with_name(options.out.name + ".state")
    with Reporter(options.quiet) as reporter:

        def report(step: int, steps: int, loss: float, rate: float) -> None:
            reporter.step(step, steps, f"loss {loss:.4f}, {rate:.0f} images/s")

        try:
            if state.exists() and not options.fresh:
                reporter.line(f"going on from {show_path(state)} (--fresh starts over)")
            reporter.start("training")
            prior = train_prior(
                options.data,
                options.out,
                settings,
                device=device,
                checkpoint_every=options.checkpoint_every,
                fresh=options.fresh,
                start=options.start,
                report=report,
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        except OSError as error:
            raise explain_os_error(error, f"writing {show_path(options.out)}") from error
        except KeyboardInterrupt:
            reporter.line(_how_to_resume(state, options.fresh))
            raise
    if not options.quiet:
        print(f"wrote {show_path(options.out)}; use it with --prior {show_path(options.out)}")
    if options.validation is not None:
        _print_table(prior, options.validation, settings.images)
    return 0


def _how_to_resume(state: Path, fresh: bool) -> str:
    if not state.exists():
        return "stopped before the first step; there was nothing to save."
    command = "the same command without --fresh" if fresh else "the same command"
    return f"stopped; the state is in {show_path(state)}, and {command} goes on from it."


def _print_table(prior: UNetPrior, folder: Path, images: Images) -> None:
    try:
        rows = psnr_by_sigma(prior, folder, images=images)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(f"{'noise std':>10} {'noisy':>10} {'denoised':>10}")
    for sigma, noisy, denoised in rows:
        print(f"{sigma:10.4f} {noisy:7.2f} dB {denoised:7.2f} dB")
