"""Medical slices: folders, k-space that must stay out, packed files, and patients held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from invsolve.training.slices import Slice, held_out, pack_slices, read_slices


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    (folder / "pictures").mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.save(folder / "head_stack.npy", rng.integers(0, 232, (3, 6, 5)).astype(np.uint16))
    np.savez(folder / "torso.npz", image=rng.standard_normal((2, 4, 4)) + 1j * rng.standard_normal((2, 4, 4)), te=[1.0])
    np.save(folder / "brain_8coil_ksp.npy", np.ones((8, 6, 6), np.complex64))
    np.savez(folder / "spiral.npz", ksp=np.ones((8, 6, 6), np.complex64))
    Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).save(folder / "pictures" / "brain_01.png")
    (folder / "README.txt").write_text("notes")
    return folder


def test_slices_of_a_folder(scans: Path) -> None:
    slices = read_slices(scans, "mri")
    assert [s.name for s in slices] == ["head_stack"] * 3 + ["brain_01"] + ["torso"] * 2  # no k-space among them
    assert (slices[1].pixels == np.load(scans / "head_stack.npy")[1]).all()
    assert np.iscomplexobj(slices[-1].pixels)
    assert [s.patient for s in slices[2:5]] == ["head", "brain", "torso"]


def test_packing_loses_nothing_that_matters(scans: Path, tmp_path: Path) -> None:
    slices = read_slices(scans, "mri")
    pack_slices(slices, "mri", tmp_path / "mri.npz")
    again = read_slices(tmp_path / "mri.npz", "mri")
    assert [s.name for s in again] == [s.name for s in slices]
    for before, after in zip(slices[:4], again[:4], strict=True):
        assert (before.pixels == after.pixels).all()
    image = slices[-1].pixels / np.abs(slices[-1].pixels).max()
    np.testing.assert_allclose(again[-1].pixels, image, atol=1e-3)
    with pytest.raises(ValueError, match=r"mri\.npz holds slices of MRI, expected CT"):
        read_slices(tmp_path / "mri.npz", "ct")

    units = np.array([[-1024.0, -0.4, 60.6], [3071.0, 4600.0, -3024.0]], np.float32)
    pack_slices([Slice("a_1", units)], "ct", tmp_path / "ct.npz")
    (packed,) = read_slices(tmp_path / "ct.npz", "ct")
    assert packed.name == "a_1"
    assert packed.pixels.tolist() == [[-1024, 0, 61], [3071, 4600, -1024]]
    assert not list(tmp_path.glob(".*"))


def test_what_is_no_scan(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a folder of slices nor a packed"):
        read_slices(tmp_path / "none", "ct")
    with pytest.raises(
        ValueError, match=r"torso\.npz holds complex128 of shape \(2, 4, 4\); expected Hounsfield units"
    ):
        read_slices(scans, "ct")
    with pytest.raises(ValueError, match="holds no slices for a prior of CT"):
        read_slices(scans / "pictures", "ct")
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"a\.npz is not a file made by `invsolve train pack`"):
        read_slices(tmp_path / "a.npz", "ct")
    np.save(scans / "pictures" / "bad.npy", np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match=r"bad\.npy holds NaN or infinity"):
        read_slices(scans / "pictures", "mri")
    (scans / "pictures" / "bad.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"bad\.npy is not readable"):
        read_slices(scans / "pictures", "mri")


def test_the_last_two_patients_are_held_out() -> None:
    names = ("x_b_2", "x_a_1", "x_d_1", "x_c_9", "x_d_2", "x_c_1")
    training, validation = held_out([Slice(name, np.zeros((2, 2))) for name in names])
    assert [s.name for s in training] == ["x_b_2", "x_a_1"]
    assert [s.name for s in validation] == ["x_d_1", "x_c_9", "x_d_2", "x_c_1"]
    with pytest.raises(ValueError, match=r"2 patients \(a, b\); expected more than the 2 held out"):
        held_out([Slice(name, np.zeros((2, 2))) for name in ("a_1", "b_1", "b_2")])
