"""The commands and their help; nothing heavy is imported before a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from invsolve.cli.guard import guarded
from invsolve.cli.restore_command import restore

app = typer.Typer(
    name="invsolve",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train_app = typer.Typer(no_args_is_help=True, help="Train models of your own.")
app.add_typer(train_app, name="train")
app.command(no_args_is_help=True)(restore)


def _version(asked: bool) -> None:
    if asked:
        from invsolve import __version__

        print(f"invsolve {__version__}")
        raise typer.Exit


@app.callback()
def invsolve(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Restore images with diffusion priors: noise, blur, lost pixels, low resolution, lost colours.

    Start with [bold]invsolve demo[/bold], then try a photograph of yours:

      invsolve restore photo.jpg --task denoise

      invsolve restore photo.jpg --task deblur --blur-sigma 2 --degrade
    """


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="The before/after picture to write.")] = Path(
        "invsolve-demo.png"
    ),
    task: Annotated[str, typer.Option(help="deblur, denoise, inpaint, sr or colorize.")] = "deblur",
    method: Annotated[str, typer.Option(help="Sampler; see `invsolve list samplers`.")] = "auto",
    preset: Annotated[str, typer.Option(help="fast, balanced or best.")] = "fast",
    prior: Annotated[str, typer.Option(help="Name or checkpoint file.")] = "natural",
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps.")] = "auto",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Degrade a bundled photograph, restore it, write a before/after picture and print the PSNR.

    Example: invsolve demo --task inpaint --preset balanced
    """
    from invsolve.cli.demo import run

    guarded(lambda: run(out, task, method, preset, prior, seed, device, quiet))


@app.command("list", no_args_is_help=True)
def list_command(
    what: Annotated[str, typer.Argument(help="operators, samplers, priors or problems.")],
) -> None:
    """Print what there is: operators, samplers, priors or problems."""
    from invsolve.cli.listing import run

    guarded(lambda: run(what))


@app.command()
def doctor() -> None:
    """Check this installation: versions, device, memory, priors, and a tiny computation.

    Exit status 1 if something is broken.
    """
    from invsolve.cli.doctor import run

    guarded(run)


@train_app.command("prior", no_args_is_help=True)
def train_prior(
    data: Annotated[Path, typer.Option(help="Folder of training images (searched recursively), or packed .npy files.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write (.safetensors).")],
    channels: Annotated[int, typer.Option(help="1 grey, 2 complex, 3 colour.")] = 3,
    steps: Annotated[int, typer.Option(help="Optimiser steps; may be raised when a run is resumed.")] = 20_000,
    batch_size: Annotated[int, typer.Option(help="Crops per step.")] = 16,
    crop: Annotated[int, typer.Option(help="Side of the crops in pixels.")] = 64,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights.")] = 0.9995,
    widths: Annotated[str, typer.Option(help="Feature channels per resolution level.")] = "32,64,128,192",
    blocks: Annotated[str, typer.Option(help="Residual blocks per level.")] = "2,2,2,2",
    scenes: Annotated[int, typer.Option(help="Procedural scenes mixed into the photographs; 0 for none.")] = 300,
    seed: Annotated[int, typer.Option(help="Decides initial weights, crops and noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps.")] = "auto",
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 300.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over although a saved state is there.")] = False,
    validation: Annotated[
        Path | None, typer.Option(help="Folder of images for the table of PSNR by noise level at the end.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a denoiser on a folder of images, to be used as --prior.

    The state of the run is kept beside the output (FILE.state). The same command goes on where an interrupted run
    stopped.

    Example: invsolve train prior --data photos/ --out mine.safetensors --steps 50000 --validation held-out/
    """
    from invsolve.cli.train import TrainOptions, run

    options = TrainOptions(
        data=data,
        out=out,
        channels=channels,
        steps=steps,
        batch_size=batch_size,
        crop=crop,
        lr=lr,
        ema=ema,
        widths=widths,
        blocks=blocks,
        scenes=scenes,
        seed=seed,
        device=device,
        checkpoint_every=checkpoint_every,
        fresh=fresh,
        validation=validation,
        quiet=quiet,
    )
    guarded(lambda: run(options))
