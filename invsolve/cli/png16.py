"""16-bit PNG, which Pillow reads at 8 bits and cannot write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def bits_and_channels(path: Path) -> tuple[int, int] | None:
    """(bits per channel, channels) from a PNG's header; None if it is not a PNG. Palette images count one channel."""
    with path.open("rb") as file:
        head = file.read(26)
    if len(head) < 26 or not head.startswith(SIGNATURE) or head[12:16] != b"IHDR":
        return None
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(head[25])
    return None if channels is None else (head[24], channels)


def read(path: Path, channels: int) -> NDArray[np.uint16]:
    """All 16 bits of a PNG with 2, 3 or 4 channels, (H, W, channels).

    Pillow's decoder takes one byte of each number, and the raw mode says which: two passes give both.
    """
    if channels == 2:
        # Grey and alpha of 16 bits lie in the file as RGBA of 8 bits do.
        both = decode(path, "RGBA")
        return join_bytes(both[..., 0::2], both[..., 1::2])
    mode = "RGB" if channels == 3 else "RGBA"
    return join_bytes(decode(path, f"{mode};16B"), decode(path, f"{mode};16L"))


def join_bytes(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """16-bit numbers from their two bytes."""
    joined = high.astype(np.uint16)
    joined <<= 8
    joined |= low
    return joined


def decode(path: Path, raw_mode: str) -> NDArray[np.uint8]:
    """The pixels of an image file as Pillow unpacks them in another raw mode than its own."""
    with Image.open(path) as image:
        assert isinstance(image, ImageFile.ImageFile)
        tiles = image.tile
        for index, tile in enumerate(tiles):
            *rest, arguments = tile
            changed = (raw_mode, *arguments[1:]) if isinstance(arguments, tuple) else raw_mode
            # A named tuple in newer versions of Pillow, a plain one in older ones.
            tiles[index] = tile._replace(args=changed) if hasattr(tile, "_replace") else (*rest, changed)  # type: ignore[call-overload]
        return np.array(image)


def write(path: Path, values: NDArray[np.generic], *, icc: bytes | None = None, exif: bytes | None = None) -> None:
    """Write (H, W, 1 to 4 channels) uint16 as PNG.

    Args:
        path: file to write.
        values: pixels; 2 and 4 channels end with alpha.
        icc: colour profile.
        exif: EXIF block in TIFF form, without the "Exif" prefix.
    """
    height, width, channels = values.shape
    rows = np.frombuffer(values.astype(">u2").tobytes(), np.uint8).reshape(height, -1)
    step = 2 * channels
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 1  # filter "Sub": difference from the pixel to the left
    filtered[:, 1:] = rows
    filtered[:, 1 + step :] -= rows[:, :-step]
    with path.open("wb") as file:
        file.write(SIGNATURE)
        _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0))
        if icc:
            _chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
        if exif:
            _chunk(file, b"eXIf", exif)
        compressor = zlib.compressobj(6)
        band = max(1, (1 << 22) // filtered.shape[1])
        for top in range(0, height, band):
            _chunk(file, b"IDAT", compressor.compress(filtered[top : top + band].tobytes()))
        _chunk(file, b"IDAT", compressor.flush())
        _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, kind: bytes, payload: bytes) -> None:
    file.write(struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload)))
