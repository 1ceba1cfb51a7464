"""Medical training slices: folders of scans, one packed file of them, and which patients are held out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

Modality = Literal["mri", "ct"]

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
_LOWEST_HU = -1024


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice: the name of the file it came from, and its pixels (H, W), real or complex, in the file's units."""

    name: str
    pixels: np.ndarray

    @property
    def patient(self) -> str:
        """The name up to its last underscore: scans of one person are called PERSON_DATE or PERSON_NUMBER."""
        return self.name.rpartition("_")[0] or self.name


def read_slices(path: str | os.PathLike[str], modality: Modality) -> list[Slice]:
    """All slices below a folder, or those of a file made by `pack_slices`, in the order of their names.

    A folder holds .npy arrays (H, W) or (N, H, W), .npz files with such an array called "image", and for MRI pictures.
    What is no image stays out: .npz files without "image", and files with "ksp" or "kspace" in their names.
    CT arrays are Hounsfield units; MRI arrays are magnitudes or complex images of any scale.

    Raises:
        ValueError: nothing usable there, or an array of another kind.
    """
    path = Path(path)
    if path.is_file():
        return _read_pack(path, modality)
    if not path.is_dir():
        raise ValueError(f"{path} is neither a folder of slices nor a packed .npz file.")
    slices = [item for file in sorted(path.rglob("*")) if file.is_file() for item in _read_file(file, modality)]
    if not slices:
        raise ValueError(f"{path} holds no slices for a prior of {modality.upper()}; expected .npy arrays (N, H, W).")
    return slices


def _read_file(file: Path, modality: Modality) -> Iterator[Slice]:
    suffix, name = file.suffix.lower(), file.stem
    if "ksp" in name.lower():
        return
    try:
        if suffix == ".npy":
            array = np.load(file, allow_pickle=False)
        elif suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                if "image" not in archive.files:
                    return
                array = archive["image"]
        elif suffix in _PICTURES and modality == "mri":
            with Image.open(file) as picture:
                array = np.array(picture if picture.mode[0] in "IF" else picture.convert("L"))
        else:
            return
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{file} is not readable ({error}).") from error
    complex_ct = modality == "ct" and np.iscomplexobj(array)
    if array.ndim not in (2, 3) or array.dtype.kind not in "fciu" or complex_ct:
        wanted = "Hounsfield units" if modality == "ct" else "magnitudes or complex images"
        raise ValueError(f"{file} holds {array.dtype} of shape {array.shape}; expected {wanted}, (H, W) or (N, H, W).")
    if not np.isfinite(array).all():
        raise ValueError(f"{file} holds NaN or infinity.")
    yield from (Slice(name, pixels) for pixels in (array if array.ndim == 3 else array[None]))


def held_out(slices: list[Slice], patients: int = 2) -> tuple[list[Slice], list[Slice]]:
    """(training, validation): validation are all slices of the patients whose names come last in the alphabet.

    Raises:
        ValueError: no patient would be left for training.
    """
    names = sorted({item.patient for item in slices})
    if len(names) <= patients:
        raise ValueError(f"{len(names)} patients ({', '.join(names)}); expected more than the {patients} held out.")
    last = set(names[len(names) - patients :])
    return [s for s in slices if s.patient not in last], [s for s in slices if s.patient in last]


def pack_slices(slices: list[Slice], modality: Modality, out: str | os.PathLike[str]) -> None:
    """Write slices to one small .npz file: CT as uint16 (HU + 1024), whole numbers as they are, the rest as float16.

    Complex images are scaled to a largest magnitude of 1, which costs nothing: training does so anyway.
    """
    pack: Callable[[np.ndarray], np.ndarray] = _pack_ct if modality == "ct" else _pack_mri
    arrays: dict[str, Any] = {f"slice_{index:05d}": pack(item.pixels) for index, item in enumerate(slices)}
    out = Path(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp.npz")
    try:
        np.savez_compressed(temporary, modality=np.array(modality), names=np.array([s.name for s in slices]), **arrays)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _pack_ct(pixels: np.ndarray) -> np.ndarray:
    packed: np.ndarray = np.clip(np.rint(pixels) - _LOWEST_HU, 0, 65535).astype(np.uint16)
    return packed


def _pack_mri(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype.kind in "iu" and pixels.min() >= 0 and pixels.max() < 65536:
        return pixels.astype(np.uint8 if pixels.max() < 256 else np.uint16)
    scaled = pixels / max(float(np.abs(pixels).max()), 1e-30)
    return (np.stack((scaled.real, scaled.imag)) if np.iscomplexobj(scaled) else scaled).astype(np.float16)


def _read_pack(path: Path, modality: Modality) -> list[Slice]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            stored, names = str(archive["modality"]), [str(name) for name in archive["names"]]
            arrays = [archive[f"slice_{index:05d}"] for index in range(len(names))]
    except Exception as error:  # zip, header and key errors alike
        raise ValueError(f"{path} is not a file made by `invsolve train pack` ({error}).") from error
    if stored != modality:
        raise ValueError(f"{path} holds slices of {stored.upper()}, expected {modality.upper()}.")
    slices = []
    for name, array in zip(names, arrays, strict=True):
        if modality == "ct":
            array = array.astype(np.float32) + _LOWEST_HU
        elif array.dtype == np.float16:
            array = array.astype(np.float32)
            array = array[0] + 1j * array[1] if array.ndim == 3 else array
        slices.append(Slice(name, array))
    return slices
