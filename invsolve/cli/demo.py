"""`invsolve demo`: a bundled photograph, spoilt and restored, side by side."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from invsolve.cli.errors import UserError, show_path
from invsolve.cli.one_photo import restore_photo
from invsolve.cli.options import RestoreOptions
from invsolve.cli.photo import Floats, from_floats
from invsolve.cli.progress import Reporter
from invsolve.cli.reading import read_photo
from invsolve.cli.tasks import LoadedPrior, TaskSource, check_names
from invsolve.cli.writing import Transaction, check_writable
from invsolve.problems.photo import Inpaint, PhotoTask

MARGIN, CAPTION = 8, 26


def run(out: Path, task: str, method: str, preset: str, prior: str, seed: int, device: str, quiet: bool) -> int:
    """Restore the demo picture; see `invsolve demo --help`."""
    if out.suffix.lower() != ".png":
        raise UserError(f"-o is {show_path(out)}; expected a .png file.")
    options = RestoreOptions(
        inputs=(),
        task=task,
        blur_sigma=2.0 if task == "deblur" else None,
        degrade=True,
        method=method,
        preset=preset,
        prior=prior,
        seed=seed,
        device=device,
        quiet=quiet,
    )
    check_names(options)
    check_writable(out.parent)
    loaded = LoadedPrior.of(prior)
    with as_file(files("invsolve.data").joinpath("demo.png")) as path:
        photo = read_photo(path)
    with Reporter(quiet) as reporter:
        reporter.start(f"demo, {task}")
        restored = restore_photo(photo, _task(options, photo.pixels.shape[:2]), options, loaded, "the demo", reporter)
    assert restored.degraded is not None
    before, after = restored.record["psnr_before"], restored.record["psnr_after"]
    panels = [
        (restored.degraded, f"degraded, {before:.2f} dB"),
        (restored.mean, f"restored, {after:.2f} dB"),
        (photo.pixels, "original"),
    ]
    with Transaction() as transaction:
        picture = side_by_side(panels)
        with transaction.path(out).open("wb") as file:
            picture.save(file, format="PNG")
        transaction.commit()
    if not quiet:
        print(f"PSNR before {before:.2f} dB, after {after:.2f} dB; picture: {show_path(out)}")
    return 0


def _task(options: RestoreOptions, size: tuple[int, ...]) -> PhotoTask:
    if options.task != "inpaint":
        task = TaskSource.of(options).fixed
        assert task is not None
        return task
    known = torch.ones(size)
    height, width = size
    for k in range(4):  # scratches, and a lost corner of the face
        rows = torch.arange(height)
        columns = (width * (0.15 + 0.22 * k) + 0.15 * rows * (-1) ** k).long()
        for thickness in range(3):
            known[rows, (columns + thickness).clamp(0, width - 1)] = 0
    known[height // 2 : height // 2 + height // 8, width // 4 : width // 4 + width // 6] = 0
    return Inpaint(known)


def side_by_side(panels: list[tuple[Floats, str]]) -> Image.Image:
    """Pictures next to each other, each with its caption above; smaller ones are enlarged without smoothing."""
    height = max(pixels.shape[0] for pixels, _ in panels)
    width = max(pixels.shape[1] for pixels, _ in panels)
    sheet = Image.new("RGB", (len(panels) * (width + MARGIN) + MARGIN, height + CAPTION + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for index, (pixels, caption) in enumerate(panels):
        values = from_floats(pixels, "uint8")
        colour = np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values
        left = MARGIN + index * (width + MARGIN)
        sheet.paste(Image.fromarray(colour).resize((width, height), Image.Resampling.NEAREST), (left, CAPTION))
        draw.text((left, 4), caption, fill="black", font=font)
    return sheet
