"""The options of `invsolve restore` and what its --help teaches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from invsolve.cli.guard import guarded

TASK, NOISE, HOW, OUTPUT = "What happened to the image", "Noise", "How to restore", "Output"


def restore(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE|FOLDER|GLOB", help="Photographs, folders of them (with all below), or globs."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            rich_help_panel=OUTPUT,
            help="Output folder, or output file if there is one input. [default: restored/]",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            "-t", "--task", rich_help_panel=TASK, help="denoise, deblur, inpaint, sr (too few pixels) or colorize."
        ),
    ] = "denoise",
    blur_sigma: Annotated[
        float | None,
        typer.Option(rich_help_panel=TASK, help="deblur: standard deviation of a Gaussian blur, in pixels."),
    ] = None,
    motion_length: Annotated[
        float | None, typer.Option(rich_help_panel=TASK, help="deblur: length of a straight motion, in pixels.")
    ] = None,
    motion_angle: Annotated[
        float,
        typer.Option(rich_help_panel=TASK, help="deblur: its direction, degrees counter-clockwise from the right."),
    ] = 0.0,
    kernel: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=TASK,
            help="deblur: the blur of a single bright point, as an image or a .npy array; scaled to sum 1.",
        ),
    ] = None,
    boundary: Annotated[
        str,
        typer.Option(
            rich_help_panel=TASK,
            help="deblur: what lies beyond the frame: reflect (as in the FFHQ benchmarks; result and data of "
            "one size), replicate, zero, circular (fast, wraps around), "
            "or valid (assumes nothing and solves for what lies there, best for blur by a camera; "
            "with --degrade a border is lost).",
        ),
    ] = "reflect",
    mask: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=TASK,
            help="inpaint: image of the photograph's size, white where pixels are known; "
            "or a folder of masks with the photographs' names.",
        ),
    ] = None,
    mask_hole: Annotated[
        str,
        typer.Option(
            rich_help_panel=TASK, help="inpaint: the colour that marks the holes in the mask, black or white."
        ),
    ] = "black",
    scale: Annotated[int, typer.Option(rich_help_panel=TASK, help="sr: enlarge 2, 3, 4 or 8 times.")] = 4,
    degrade: Annotated[
        bool,
        typer.Option(
            "--degrade",
            rich_help_panel=TASK,
            help="The photographs are clean: spoil them first (NAME_degraded), then restore them and print the PSNR.",
        ),
    ] = False,
    noise_std: Annotated[
        str,
        typer.Option(
            rich_help_panel=NOISE,
            help="Standard deviation of the noise on a scale where black is 0 and white is 1, "
            "whatever the bit depth: 0.1 or 25/255. auto estimates and prints it "
            "(with --degrade: 0.1 for denoise, else 0.02).",
        ),
    ] = "auto",
    method: Annotated[
        str, typer.Option("-m", "--method", rich_help_panel=HOW, help="Sampler, or auto; see `invsolve list samplers`.")
    ] = "auto",
    preset: Annotated[
        str, typer.Option(rich_help_panel=HOW, help="fast, balanced or best: how many network evaluations to spend.")
    ] = "balanced",
    samples: Annotated[
        int,
        typer.Option(
            "-n",
            "--samples",
            rich_help_panel=HOW,
            help="With 1 and --method auto, denoise, inpaint and colorize give a point estimate of small squared "
            "error, not a random draw. With more, NAME is the mean of that many posterior samples, "
            "NAME_sample01, ... are the samples, and NAME_spread.png shows where they differ.",
        ),
    ] = 1,
    prior: Annotated[
        str,
        typer.Option(
            rich_help_panel=HOW,
            help="Prior by name (`invsolve list priors`) or a .safetensors file of `invsolve train prior`.",
        ),
    ] = "natural",
    seed: Annotated[
        int, typer.Option(rich_help_panel=HOW, help="Random seed; the same seed gives the same result.")
    ] = 0,
    device: Annotated[str, typer.Option(rich_help_panel=HOW, help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(rich_help_panel=HOW, help="Arithmetic of the network: auto, float32 or bfloat16.")
    ] = "auto",
    tile: Annotated[
        str,
        typer.Option(
            rich_help_panel=HOW,
            help="Side of the tiles in which large images are denoised, in pixels; auto, or none for never.",
        ),
    ] = "auto",
    checkpoint: Annotated[
        bool,
        typer.Option(
            "--checkpoint",
            rich_help_panel=HOW,
            help="Methods that need the network's gradient (dps, pigdm, ...): about 40 % less memory for a third more "
            "time.",
        ),
    ] = False,
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            rich_help_panel=OUTPUT,
            help="same, png, tiff, jpg or webp. same keeps PNG and TIFF; JPEG and all else "
            "become PNG, which loses nothing.",
        ),
    ] = "same",
    white: Annotated[
        float, typer.Option(rich_help_panel=OUTPUT, help="Floating-point TIFF: the number that is white.")
    ] = 1.0,
    max_megapixels: Annotated[float, typer.Option(rich_help_panel=OUTPUT, help="Refuse larger images.")] = 100.0,
    force: Annotated[
        bool,
        typer.Option(
            "-f",
            "--force",
            rich_help_panel=OUTPUT,
            help="Redo what is done already, and replace files that invsolve did not make.",
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", rich_help_panel=OUTPUT, help="Print nothing but errors.")
    ] = False,
) -> None:
    """Restore photographs.

    Keeps 8 or 16 bits, floating point, grey, alpha, colour profile and EXIF.
    Images are turned upright. The tree of a folder is mirrored.

    Beside each photo.png, photo.png.json says how it was made; what is done
    already with the same settings is skipped.

    Exit status: 2 if any image failed (the others are done), 130 after Ctrl-C.

    [bold]Examples[/bold]

      invsolve restore photo.jpg

      invsolve restore scans/ -o clean/ --noise-std 10/255

      invsolve restore blurred.png -t deblur --blur-sigma 1.5

      invsolve restore shaken.png -t deblur --motion-length 15 --motion-angle 30

      invsolve restore "shots/*.tif" -t deblur --kernel psf.npy

      invsolve restore torn.png -t inpaint --mask mask.png --samples 8

      invsolve restore small.png -t sr --scale 4 --preset best -o large.png

      invsolve restore old.png -t colorize

    Try things out on a good photograph, and see the PSNR:

      invsolve restore good.png -t deblur --blur-sigma 2 --degrade
    """
    from invsolve.cli.options import RestoreOptions

    options = RestoreOptions(
        inputs=tuple(inputs),
        out=out,
        task=task,
        blur_sigma=blur_sigma,
        motion_length=motion_length,
        motion_angle=motion_angle,
        kernel=kernel,
        boundary=boundary,
        mask=mask,
        mask_hole=mask_hole,
        scale=scale,
        noise_std=noise_std,
        degrade=degrade,
        method=method,
        preset=preset,
        samples=samples,
        seed=seed,
        prior=prior,
        device=device,
        dtype=dtype,
        tile=tile,
        checkpoint=checkpoint,
        format=file_format,
        white=white,
        max_megapixels=max_megapixels,
        force=force,
        quiet=quiet,
    )

    def run() -> int:
        from invsolve.cli.restore import run as run_restore

        return run_restore(options)

    guarded(run)
