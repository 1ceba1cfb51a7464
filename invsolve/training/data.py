"""Training photographs: a folder or packed arrays, and random crops of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".npy"}


def load_images(folder: str | os.PathLike[str], channels: int) -> list[Tensor]:
    """All images below a folder, or in one packed .npy file, as uint8 tensors.

    `.npy` files hold one packed uint8 array, (N, H, W), (N, H, W, C) or (H, W, C) with C in 1, 2, 3.

    Args:
        folder: searched recursively; or an .npy file, or an .npz file made by `pack_images`.
        channels: 1, 2 or 3; pictures are converted to grey or colour, arrays must match.

    Returns:
        One (C, H, W) uint8 tensor per image, in the order of the file names.

    Raises:
        ValueError: no usable image, or an array of another type or number of channels.
    """
    folder = Path(folder)
    if folder.suffix.lower() == ".npz" and folder.is_file():
        return _load_pack(folder, channels)
    if folder.suffix.lower() == ".npy" and folder.is_file():
        return _load_packed(folder, channels)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of training images.")
    images: list[Tensor] = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        if path.suffix.lower() == ".npy":
            images += _load_packed(path, channels)
            continue
        if channels == 2:
            raise ValueError(f"{path}: a 2-channel (complex) prior trains on packed .npy arrays, not on pictures.")
        try:
            with Image.open(path) as picture:
                if picture.mode[0] in "IF":  # PIL would clip them at 255
                    raise ValueError(
                        f"{path} has 16-bit or float pixels (PIL mode {picture.mode}); convert it to 8 bits."
                    )
                array = np.array(picture.convert("RGB" if channels == 3 else "L"))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{path} is not a readable image ({error}).") from error
        images.append(torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1))
    if not images:
        raise ValueError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}).")
    return images


def _load_packed(path: Path, channels: int) -> list[Tensor]:
    try:
        array = np.load(path, allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable array ({error}).") from error
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ValueError(f"{path}: expected a uint8 array (N, H, W[, C]), found {array.dtype} {array.shape}.")
    if array.ndim == 3:
        array = array[None] if array.shape[-1] == channels else array[..., None]
    if array.shape[-1] != channels:
        raise ValueError(f"{path}: {array.shape[-1]} channels, expected {channels}.")
    return list(torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2))))


def pack_images(images: Sequence[Tensor], out: str | os.PathLike[str]) -> None:
    """Write images of any sizes, (C, H, W) uint8, to one .npz file, to carry a data set to another machine."""
    out = Path(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp.npz")
    arrays: dict[str, Any] = {
        f"image_{index:05d}": image.permute(1, 2, 0).numpy() for index, image in enumerate(images)
    }
    try:
        np.savez_compressed(temporary, **arrays)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _load_pack(path: Path, channels: int) -> list[Tensor]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = [archive[name] for name in sorted(archive.files) if name.startswith("image_")]
    except Exception as error:  # zip and header errors alike
        raise ValueError(f"{path} is not a readable packed file ({error}).") from error
    if not arrays:
        raise ValueError(f"{path} holds no packed photographs; make it with `invsolve train pack`.")
    if any(a.dtype != np.uint8 or a.ndim != 3 or a.shape[-1] != channels for a in arrays):
        raise ValueError(f"{path} holds {arrays[0].dtype} {arrays[0].shape}; expected uint8 (H, W, {channels}).")
    return [torch.from_numpy(np.ascontiguousarray(a.transpose(2, 0, 1))) for a in arrays]


class CropSource:
    """Random square crops with flips and quarter turns, reproducible from (seed, step) alone.

    Drawing depends on the step and not on what was drawn before, so a run resumed at step k sees what an
    uninterrupted run would have seen.
    """

    def __init__(self, photographs: Sequence[Tensor], scenes: Sequence[Tensor], crop: int, share: float) -> None:
        self.photographs = [image for image in photographs if min(image.shape[-2:]) >= crop]
        if not self.photographs:
            raise ValueError(f"no training image is at least {crop} x {crop} pixels; use a smaller --crop.")
        self.scenes = scenes
        self.crop = crop
        self.share = share if scenes else 0.0

    def batch(self, size: int, seed: int, step: int) -> Tensor:
        """uint8 batch of shape (size, C, crop, crop)."""
        rng = np.random.default_rng((seed, step))
        crops = []
        for _ in range(size):
            pool = self.scenes if rng.random() < self.share else self.photographs
            image = pool[int(rng.integers(len(pool)))]
            top, left = (int(rng.integers(n - self.crop + 1)) for n in image.shape[-2:])
            crop = image[:, top : top + self.crop, left : left + self.crop]
            crop = crop.rot90(int(rng.integers(4)), dims=(-2, -1))
            crops.append(crop.flip(-1) if rng.random() < 0.5 else crop)
        return torch.stack(crops)
