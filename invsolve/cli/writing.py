"""Writing photographs, and several files at once or none."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from invsolve.cli import png16, tiff
from invsolve.cli.errors import UserError, explain_os_error, show_path
from invsolve.cli.photo import Depth, Floats, Photo, from_floats

FORMATS = {"png": ".png", "tiff": ".tif", "jpg": ".jpg", "webp": ".webp"}
SUFFIX_FORMATS = {
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".jpg": "jpg",
    ".jpeg": "jpg",
    ".webp": "webp",
}
MAX_SIDE = {"jpg": 65535, "webp": 16383}


class Transaction:
    """Files that appear together once all of them are complete; until then they carry temporary names.

    ::

        with Transaction() as files:
            write_photo(files.path(out), ...)
            files.commit()
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Path, Path]] = []

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for temporary, _ in self._pending:
            temporary.unlink(missing_ok=True)

    def path(self, final: Path) -> Path:
        """The temporary name to write `final` under; its folder is made if need be."""
        temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
        self._pending.append((temporary, final))
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, f"making the folder {show_path(final.parent)}") from error
        return temporary

    def commit(self, first_remove: Path | None = None) -> None:
        """Give all files their names, in the order in which they were asked for.

        Args:
            first_remove: a file that vouches for the old versions and must not survive a half-done change.
        """
        final = first_remove
        try:
            if first_remove is not None:
                first_remove.unlink(missing_ok=True)
            for temporary, final in self._pending:
                os.replace(temporary, final)
        except OSError as error:
            raise explain_os_error(error, f"writing {show_path(final or '.')}") from error
        self._pending.clear()


def check_writable(folder: Path) -> None:
    """Raise UserError unless files can be made in `folder`; the folder is made if need be."""
    probe = folder / f".invsolve.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise explain_os_error(error, f"writing into {show_path(folder)}") from error


def output_depth(depth: Depth, kind: str) -> Depth:
    """The deepest numbers a file type holds, up to those of the input."""
    if kind in ("jpg", "webp"):
        return "uint8"
    return "uint16" if kind == "png" and depth == "float32" else depth


def write_photo(
    path: Path, pixels: Floats, like: Photo, kind: str, *, final: Path, alpha: Floats | None = None
) -> None:
    """Write an image with the depth, profile and EXIF of another.

    Args:
        path: where to write now.
        pixels: (H, W, C) on [0, 1].
        like: the photograph whose depth, colour profile and EXIF are kept.
        kind: "png", "tiff", "jpg" or "webp".
        final: the name it gets in the end, for messages.
        alpha: (H, W) opacity.

    Raises:
        UserError: the disk is full or the file type cannot hold the picture.
    """
    if pixels.shape[-1] == 1 and like.repeat_grey:
        pixels = np.repeat(pixels, 3, axis=-1)
    if alpha is not None and kind == "jpg":
        raise UserError(f"{show_path(final)}: JPEG holds no alpha channel; use --format png, tiff or webp.")
    if max(pixels.shape[:2]) > MAX_SIDE.get(kind, 1 << 30):
        raise UserError(
            f"{show_path(final)}: {kind} holds at most {MAX_SIDE[kind]} pixels per side, the image is "
            f"{pixels.shape[1]} x {pixels.shape[0]}; use --format png or tiff."
        )
    depth = output_depth(like.depth, kind)
    white = like.white if depth == "float32" else 1.0
    layers = [from_floats(pixels, depth, white)]
    if alpha is not None:
        layers.append(from_floats(alpha[..., None], depth))
    values = np.ascontiguousarray(np.concatenate(layers, axis=-1))  # pixels may be a view in another order
    icc = fitting_profile(like.icc, pixels.shape[-1])
    try:
        if depth != "uint8" and kind == "png":
            png16.write(path, values, icc=icc, exif=like.exif)
        elif depth != "uint8":
            tiff.write_deep(path, values, alpha=alpha is not None, icc=icc, exif=like.exif)
        else:
            _write_eight_bits(path, values, kind, icc, like.exif)
    except OSError as error:
        raise explain_os_error(error, f"writing {show_path(final)}") from error


def _write_eight_bits(path: Path, values: np.ndarray, kind: str, icc: bytes | None, exif: bytes | None) -> None:
    image = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
    block = Image.Exif()
    if exif:
        block.load(exif)
    with path.open("wb") as file:
        if kind == "png":
            image.save(file, format="PNG", icc_profile=icc, exif=block)
        elif kind == "tiff":
            # libtiff, which compresses, cannot write the EXIF directory.
            compression = "raw" if exif else "tiff_adobe_deflate"
            image.save(file, format="TIFF", compression=compression, icc_profile=icc, exif=block)
        elif kind == "jpg":
            image.save(file, format="JPEG", quality=95, subsampling=0, icc_profile=icc, exif=block)
        else:
            image.save(file, format="WEBP", quality=95, icc_profile=icc, exif=block)


def fitting_profile(icc: bytes | None, channels: int) -> bytes | None:
    """The colour profile if it is one for that many channels: a grey profile does not describe a colourised picture."""
    if icc is None or len(icc) < 20:
        return None
    return icc if icc[16:20] == (b"GRAY" if channels == 1 else b"RGB ") else None
