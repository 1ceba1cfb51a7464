"""TIFF files of 16 bits and of floating-point numbers, which Pillow reads at 8 bits or not at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from invsolve.cli import png16
from invsolve.cli.errors import UserError, show_path
from invsolve.cli.photo import check_size

EXIF_TEXT_TAGS = {
    270: "ImageDescription",
    271: "Make",
    272: "Model",
    306: "DateTime",
    315: "Artist",
    33432: "Copyright",
}


def read_deep(path: Path, max_pixels: int) -> tuple[NDArray[np.generic], bool, int] | None:
    """First page of a TIFF with 16-bit or floating-point numbers.

    Args:
        path: the file.
        max_pixels: larger pictures are refused before they are decoded.

    Returns:
        (values (H, W, channels) as uint16 or float32, whether the last channel is alpha, number of pages), or None
        if Pillow reads this file without loss.

    Raises:
        UserError: numbers or channels that no photograph has, or a picture too large.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        photometric, samples = int(page.photometric), int(page.samplesperpixel)
        if page.dtype is None or page.dtype == np.uint8 or page.bitspersample < 8 or photometric not in (0, 1, 2):
            return None
        check_size(show_path(path), page.imagewidth, page.imagelength, max_pixels)
        if page.dtype.kind not in "uf" or (page.dtype.kind == "u" and page.dtype != np.uint16):
            raise UserError(f"{path} stores {page.dtype} numbers; expected uint8, uint16 or floating point.")
        extra = [int(kind) for kind in page.extrasamples]
        colours = samples - len(extra)
        if colours not in (1, 3) or len(extra) > 1 or page.imagedepth > 1:
            raise UserError(
                f"{path} has {samples} channels; expected 1 (grey) or 3 (colour), with or without one more for alpha."
            )
        try:
            values = page.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            values = _by_pillow(path, page.dtype, samples, str(error))
        else:
            values = _channels_last(values, page.axes)
        if values.dtype.kind == "f":
            values = values.astype(np.float32)
        if photometric == 0:
            values = (65535 if values.dtype.kind == "u" else 1) - values
        if extra == [1]:  # associated alpha: colours are stored multiplied by it
            values = _unmultiply(values)
        return values, bool(extra), len(file.pages)


def _channels_last(values: NDArray[Any], axes: str) -> NDArray[Any]:
    if axes == "YX":
        return values[..., None]
    if axes == "SYX":
        return np.moveaxis(values, 0, -1)
    if axes == "YXS":
        return values
    raise ValueError(f"axes {axes}, expected a flat picture")


def _by_pillow(path: Path, dtype: np.dtype[Any], samples: int, reason: str) -> NDArray[np.uint16]:
    """16-bit numbers in a compression that tifffile alone does not decode, through Pillow's libtiff."""
    modes = {1: None, 3: "RGB", 4: "RGBA"}
    if dtype != np.uint16 or samples not in modes:
        raise UserError(f"{path} cannot be decoded ({reason}); save it without compression or with ZIP compression.")
    mode = modes[samples]
    if mode is None:
        with Image.open(path) as image:
            return np.array(image).astype(np.uint16)[..., None]
    native, foreign = ("L", "B") if sys.byteorder == "little" else ("B", "L")
    high, low = (png16.decode(path, f"{mode};16{order}") for order in (native, foreign))
    return png16.join_bytes(high, low)


def _unmultiply(values: NDArray[Any]) -> NDArray[Any]:
    top = 65535 if values.dtype.kind == "u" else 1
    alpha = values[..., -1:].astype(np.float64) / top
    colour = np.where(alpha > 0, values[..., :-1] / np.where(alpha > 0, alpha, 1), 0)
    if values.dtype.kind == "u":
        colour = np.clip(np.rint(colour), 0, top)
    return np.concatenate([colour.astype(values.dtype), values[..., -1:]], axis=-1)


def write_deep(
    path: Path, values: NDArray[np.generic], *, alpha: bool, icc: bytes | None = None, exif: bytes | None = None
) -> None:
    """Write (H, W, channels) uint16 or float32 as ZIP-compressed TIFF.

    Of the EXIF block the texts of the main directory are kept (camera, date, artist, copyright, description).
    """
    import tifffile

    tags = []
    if exif:
        block = Image.Exif()
        block.load(exif)
        for code in EXIF_TEXT_TAGS:
            text = block.get(code)
            if isinstance(text, str) and text and code != 270:
                tags.append((code, 2, 0, text.encode("ascii", "replace").decode(), True))
        description = block.get(270)
    else:
        description = None
    channels = values.shape[-1]
    tifffile.imwrite(
        path,
        values[..., 0] if channels == 1 else values,
        photometric="rgb" if channels - alpha == 3 else "minisblack",
        planarconfig=None if channels == 1 else "contig",
        extrasamples=["unassalpha"] if alpha else None,
        compression="zlib",
        iccprofile=icc,
        metadata=None,
        description=description if isinstance(description, str) and description.isascii() else None,
        extratags=tags,
    )
