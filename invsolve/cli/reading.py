"""Reading photographs of any kind, and the two files that tasks need: masks and blur kernels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from invsolve.cli import png16, tiff
from invsolve.cli.errors import UserError, explain_os_error, show_path
from invsolve.cli.photo import Depth, Photo, check_size, to_floats, upright

MAX_PIXELS = 100_000_000
ORIENTATION, EXIF_IFD, GPS_IFD = 0x0112, 0x8769, 0x8825
EXIF_SIZES = (0xA002, 0xA003)
# A TIFF's EXIF is its own directory; all other tags there say how that very file is laid out.
KEPT_TIFF_TAGS = {270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, EXIF_IFD, GPS_IFD}


def read_photo(path: Path, *, white: float = 1.0, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read a photograph at its full depth, upright.

    Args:
        path: PNG, JPEG, TIFF, WebP, BMP, ... of 8 or 16 bits or floating point; grey, colour, palette or CMYK.
        white: the number that is white in a floating-point file.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        UserError: not a readable photograph, too large, or with NaN in it.
    """
    shown = show_path(path)
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{shown} is empty (0 bytes).")
        return _checked(_decoded(path, white, max_pixels), shown)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{shown} does not exist.") from None
    except IsADirectoryError:
        raise UserError(f"{shown} is a folder, expected an image.") from None
    except PermissionError as error:
        raise explain_os_error(error, f"reading {shown}") from error
    except MemoryError:
        raise UserError(f"{shown} does not fit into memory; cut it into parts.") from None
    except Exception as error:  # decoders raise anything on damaged files: SyntaxError, struct.error, zlib.error, ...
        raise UserError(f"{shown} is damaged or not an image ({_first_line(error)}).") from error


def _decoded(path: Path, white: float, max_pixels: int) -> Photo:
    shown = show_path(path)
    try:
        with _quiet_decoders(), Image.open(path) as image:
            check_size(shown, *image.size, max_pixels)
            return _read(path, image, white, max_pixels)
    except UnidentifiedImageError:
        photo = _read_by_tifffile(path, white, max_pixels)
        if photo is None:
            raise UserError(f"{shown} is not an image that can be read (PNG, JPEG, TIFF, WebP, BMP).") from None
        return photo


@contextmanager
def _quiet_decoders() -> Iterator[None]:
    """Pillow without its own size limit (ours is checked before decoding) and without warnings on odd metadata."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _read(path: Path, image: Image.Image, white: float, max_pixels: int) -> Photo:
    notes: tuple[str, ...] = ()
    values: NDArray[Any]
    deep = _deep(path, image, max_pixels)
    if deep is not None:
        values, has_alpha, pages = deep
    else:
        pages = getattr(image, "n_frames", 1)
        if image.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
            notes += (f"converted from {image.mode} to RGB",)
        values, has_alpha = _plain(image)
    if pages > 1 and image.format != "MPO":
        notes += (f"has {pages} frames or pages, only the first is restored",)
    # Only now: Pillow turns TIFFs upright by itself while it decodes them, and resets their orientation.
    exif, orientation, exif_notes = _exif(image)
    photo = _assemble(upright(values, orientation), has_alpha, white)
    return replace(photo, icc=image.info.get("icc_profile"), exif=exif, notes=notes + exif_notes)


def _deep(path: Path, image: Image.Image, max_pixels: int) -> tuple[NDArray[Any], bool, int] | None:
    """Values that Pillow would cut to 8 bits, or None."""
    if image.format == "TIFF":
        return tiff.read_deep(path, max_pixels)
    header = png16.bits_and_channels(path) if image.format == "PNG" else None
    if header is None or header[0] != 16:
        return None
    channels = header[1]
    if channels == 1:
        grey = np.array(image).astype(np.uint16)[..., None]
        return _keyed(grey, image.info.get("transparency"))
    values = png16.read(path, channels)
    if channels == 3:
        return _keyed(values, image.info.get("transparency"))
    return values, True, 1


def _keyed(values: NDArray[np.uint16], key: Any) -> tuple[NDArray[np.uint16], bool, int]:
    """Turn PNG's "this colour is transparent" into an alpha channel."""
    if key is None or isinstance(key, bytes):
        return values, False, 1
    opaque = (values != np.asarray(key, np.uint16)).any(-1, keepdims=True)
    return np.concatenate([values, np.where(opaque, 65535, 0).astype(np.uint16)], -1), True, 1


def _plain(image: Image.Image) -> tuple[NDArray[Any], bool]:
    """(values (H, W, C), whether the last channel is alpha) of an image that Pillow decodes without loss."""
    transparent = "transparency" in image.info
    mode = image.mode
    if mode in ("I;16", "I;16B", "I;16L", "I;16N"):
        return np.array(image).astype(np.uint16)[..., None], False
    if mode == "F":
        return np.array(image)[..., None], False
    if mode == "I":
        integers = np.array(image)
        if integers.min() < 0 or integers.max() > 65535:
            raise UserError(f"{image.format} with 32-bit integers up to {integers.max()}; expected 8 or 16 bits.")
        return integers.astype(np.uint16)[..., None], False
    if mode in ("1", "L") and not transparent:
        return np.array(image.convert("L"))[..., None], False
    if mode in ("LA", "La") or (mode in ("1", "L") and transparent):
        return np.array(image.convert("LA")), True
    if mode in ("RGBA", "RGBa", "PA") or transparent:
        return np.array(image.convert("RGBA")), True
    return np.array(image.convert("RGB")), False


def _assemble(values: NDArray[Any], has_alpha: bool, white: float) -> Photo:
    depths: dict[str, Depth] = {"uint8": "uint8", "uint16": "uint16"}
    depth = depths.get(str(values.dtype), "float32")
    floats = to_floats(values, depth)
    alpha = np.ascontiguousarray(floats[..., -1]) if has_alpha else None
    pixels = np.ascontiguousarray(floats[..., :-1] if has_alpha else floats)
    if depth == "float32":
        pixels /= np.float32(white)
    repeated = pixels.shape[-1] == 3 and bool((pixels == pixels[..., :1]).all())
    if repeated:
        pixels = np.ascontiguousarray(pixels[..., :1])
    return Photo(pixels, alpha, depth, repeat_grey=repeated, white=white if depth == "float32" else 1.0)


def _read_by_tifffile(path: Path, white: float, max_pixels: int) -> Photo | None:
    """TIFF kinds that Pillow does not even recognise, for example floating-point colour."""
    with path.open("rb") as file:
        if file.read(4)[:2] not in (b"II", b"MM"):
            return None
    deep = tiff.read_deep(path, max_pixels)
    if deep is None:
        return None
    values, has_alpha, pages = deep
    import tifffile

    with tifffile.TiffFile(path) as tif:
        tags = tif.pages.first.tags
        icc = tags.valueof(34675)
        orientation = int(tags.valueof(274, default=1))
        exif = Image.Exif()
        for code in tiff.EXIF_TEXT_TAGS:
            text = tags.valueof(code)
            if isinstance(text, str):
                exif[code] = text
    notes = (f"has {pages} pages, only the first is restored",) if pages > 1 else ()
    photo = _assemble(upright(values, orientation), has_alpha, white)
    return replace(photo, icc=icc, exif=_bare(exif) if len(exif) else None, notes=notes)


def _exif(image: Image.Image) -> tuple[bytes | None, int, tuple[str, ...]]:
    """(EXIF block made upright, the orientation it had, notes)."""
    try:
        exif = image.getexif()
        orientation = exif.get(ORIENTATION, 1)
        if image.format == "TIFF":
            for tag in set(exif) - KEPT_TIFF_TAGS:
                del exif[tag]
        if not len(exif):
            return None, 1, ()
        if ORIENTATION in exif:
            exif[ORIENTATION] = 1
        if EXIF_IFD in exif:
            details = exif.get_ifd(EXIF_IFD)
            for tag in EXIF_SIZES:
                details.pop(tag, None)
        return _bare(exif), int(orientation), ()
    except Exception:  # EXIF written by a broken camera must not cost the picture
        return None, 1, ("has unreadable EXIF data, which is dropped",)


def _bare(exif: Image.Exif) -> bytes:
    return exif.tobytes().removeprefix(b"Exif\0\0")


def _checked(photo: Photo, shown: str) -> Photo:
    for values in (photo.pixels, photo.alpha):
        if values is not None and not np.isfinite(values).all():
            raise UserError(f"{shown} holds NaN or Inf in {int((~np.isfinite(values)).sum())} places; repair it first.")
    if photo.depth == "float32":
        white = photo.white
        low, high = float(photo.pixels.min()) * white, float(photo.pixels.max()) * white
        if low < -white or high > 2 * white:
            raise UserError(
                f"{shown} is a floating-point image with values from {low:.4g} to {high:.4g}; expected 0 (black) to "
                f"{white:g} (white); say which number is white with --white."
            )
    return photo


def read_mask(path: Path, hole: str, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """A mask image as (H, W), True where a pixel is known.

    Args:
        path: any image; colours count by their brightness, and half-way grey and brighter is white.
        hole: "black" if white means known, "white" if white marks the holes.
        max_pixels: see `read_photo`.
    """
    photo = read_photo(path, max_pixels=max_pixels)
    light: NDArray[np.bool_] = photo.pixels.mean(-1) >= 0.5
    return light if hole == "black" else ~light


def read_kernel(path: Path) -> NDArray[np.float64]:
    """A blur kernel from an image (brightness) or a .npy file, (h, w), not yet checked or scaled."""
    if path.suffix.lower() != ".npy":
        brightness: NDArray[np.float64] = read_photo(path).pixels.mean(-1, dtype=np.float64)
        return brightness
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{show_path(path)} does not exist.") from None
    except OSError as error:
        raise explain_os_error(error, f"reading {show_path(path)}") from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{show_path(path)} is not a .npy array ({_first_line(error)}).") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif":
        raise UserError(f"{show_path(path)} does not hold real numbers; expected a 2-D array.")
    return values.astype(np.float64)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
