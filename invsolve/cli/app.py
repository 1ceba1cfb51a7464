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


@app.command()
def certify(
    methods: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[METHOD]...", help="Samplers by name, or a class of yours as module:Class. All if none."
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(help="fast, balanced or best: settings of the named methods; reference: comparable ones."),
    ] = "best",
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE, a setting of the method; may be repeated.")
    ] = None,
    problems: Annotated[int, typer.Option(help="Problems per cell of the table; 20 in the paper.")] = 20,
    samples: Annotated[
        int, typer.Option(help="Samples per problem, from the method and from the exact posterior.")
    ] = 2000,
    dims: Annotated[str, typer.Option(help="Dimensions of the table, some of 8,80,800.")] = "8,80,800",
    quick: Annotated[bool, typer.Option("--quick", help="d = 8 only, 3 problems, 500 samples: a first look.")] = False,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the table and the pictures.")] = Path("certify"),
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Measure samplers against posteriors that are known exactly.

    Runs each method on three kinds of problems and writes certify.txt, certify.csv, a picture per method and
    clouds.png of all methods:

    - the 25-component Gaussian mixture of the MCGdiff paper: sliced Wasserstein-1 distance to exact samples, with the
      distance of two exact sets as the floor, the weight put into wrong modes, and the published figures;

    - a Gaussian prior, where the posterior's mean and variances are known by hand;

    - calibration: ranks of the truth among the samples, content of density regions, spread against error in the
      directions that the data see and in those they do not.

    No network is involved: the prior is exact, so every error is the sampler's. All methods and cells take hours;
    begin with --quick. The preset "reference" gives every method about 200 levels from the prior's largest on, and
    knows variants: daps-tweedie, diffpir-zeta0.3.

    Examples:

      invsolve certify tds --quick

      invsolve certify mcgdiff daps --dims 8,80 --problems 5 -o proof

      invsolve certify my_code:MySampler --set num_steps=200
    """
    from invsolve.cli.certify import CertifyOptions, run

    options = CertifyOptions(
        methods=tuple(methods or ()),
        preset=preset,
        settings=tuple(setting or ()),
        problems=problems,
        samples=samples,
        dims=dims,
        quick=quick,
        out=out,
        quiet=quiet,
    )
    guarded(lambda: run(options))


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
    data: Annotated[Path, typer.Option(help="Folder of training images (searched recursively), or a packed file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Checkpoint to write (.safetensors).")],
    recipe: Annotated[
        str, typer.Option(help="natural, natural-fine, mri or ct: the settings of a shipped prior.")
    ] = "natural",
    start: Annotated[Path | None, typer.Option(help="Checkpoint whose weights a new run begins with.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 grey, 2 complex, 3 colour.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; may be raised when a run is resumed.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Crops per step.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of the crops in pixels.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of the averaged weights.")] = None,
    widths: Annotated[
        str | None, typer.Option(help="Feature channels per resolution level, for example 32,64,128,192.")
    ] = None,
    blocks: Annotated[str | None, typer.Option(help="Residual blocks per level, for example 2,2,2,2.")] = None,
    scenes: Annotated[int | None, typer.Option(help="Procedural scenes mixed into the images; 0 for none.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides initial weights, crops and noise.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps.")] = "auto",
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 300.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over although a saved state is there.")] = False,
    validation: Annotated[
        Path | None, typer.Option(help="Folder of images for the table of PSNR by noise level at the end.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a denoiser on a folder of images, to be used as --prior.

    Everything that is not given comes from the recipe. MRI data are magnitudes or complex images (.npy, .npz,
    pictures), CT data Hounsfield units (.npy), of which the last two patients are held out for --validation.

    The state of the run is kept beside the output (FILE.state). The same command goes on where an interrupted run
    stopped.

    Example: invsolve train prior --data photos/ --out mine.safetensors --steps 50000 --validation held-out/
    """
    from invsolve.cli.train import TrainOptions, run

    options = TrainOptions(
        data=data,
        out=out,
        recipe=recipe,
        start=start,
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


@train_app.command("pack", no_args_is_help=True)
def train_pack(
    data: Annotated[Path, typer.Argument(help="Folder of training images (searched recursively).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write (.npz).")],
    recipe: Annotated[str, typer.Option(help="natural, mri or ct: what the images are.")] = "natural",
) -> None:
    """Pack training images into one small file, to carry them to another machine.

    Example: invsolve train pack slices/ --recipe ct -o slices.npz
    """
    from invsolve.cli.train import pack

    guarded(lambda: pack(data, out, recipe))
