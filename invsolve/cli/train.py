"""`invsolve train prior`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from invsolve.cli.errors import UserError, explain_os_error, show_path
from invsolve.cli.progress import Reporter
from invsolve.cli.tasks import check_device
from invsolve.cli.writing import check_writable
from invsolve.priors.unet import UNetConfig, UNetPrior
from invsolve.training import TrainingSettings, psnr_by_sigma, train_prior


@dataclass(frozen=True)
class TrainOptions:
    """What `invsolve train prior` was asked for; see its --help."""

    data: Path
    out: Path
    channels: int
    steps: int
    batch_size: int
    crop: int
    lr: float
    ema: float
    widths: str
    blocks: str
    scenes: int
    seed: int
    device: str
    checkpoint_every: float
    fresh: bool
    validation: Path | None
    quiet: bool

    def settings(self) -> TrainingSettings:
        """Hyper-parameters for `train_prior`.

        Raises:
            UserError: a value that cannot be.
        """
        if not 0 <= self.ema < 1:
            raise UserError(f"--ema is {self.ema}; expected 0 <= ema < 1.")
        if self.scenes < 0:
            raise UserError(f"--scenes is {self.scenes}; expected a whole number >= 0.")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; expected a whole number >= 0.")
        try:
            network = UNetConfig(
                channels=self.channels, widths=_whole("--widths", self.widths), blocks=_whole("--blocks", self.blocks)
            )
            return TrainingSettings(
                network=network,
                steps=self.steps,
                batch_size=self.batch_size,
                crop=self.crop,
                learning_rate=self.lr,
                ema_decay=self.ema,
                scenes=self.scenes,
                seed=self.seed,
            )
        except ValueError as error:
            raise UserError(str(error)) from error


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
    for folder in filter(None, (options.data, options.validation)):
        if not folder.is_dir():
            raise UserError(f"{show_path(folder)} is not a folder of images.")
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
        _print_table(prior, options.validation)
    return 0


def _how_to_resume(state: Path, fresh: bool) -> str:
    if not state.exists():
        return "stopped before the first step; there was nothing to save."
    command = "the same command without --fresh" if fresh else "the same command"
    return f"stopped; the state is in {show_path(state)}, and {command} goes on from it."


def _print_table(prior: UNetPrior, folder: Path) -> None:
    try:
        rows = psnr_by_sigma(prior, folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(f"{'noise std':>10} {'noisy':>10} {'denoised':>10}")
    for sigma, noisy, denoised in rows:
        print(f"{sigma:10.4f} {noisy:7.2f} dB {denoised:7.2f} dB")
