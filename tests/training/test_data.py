"""Training images: folders, packed arrays, generated scenes and crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invsolve.training.data import CropSource, load_images, pack_images
from invsolve.training.scenes import dead_leaves, mixed_scenes


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (7, 5)) -> np.ndarray:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (size[1], size[0], 3 if mode == "RGB" else 1), dtype=np.uint8)
    Image.fromarray(array if mode == "RGB" else array[..., 0], mode="RGB" if mode == "RGB" else "L").save(path)
    return array


def test_pictures_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    colour = picture(tmp_path / "b.png")
    grey = picture(tmp_path / "deeper" / "a.PNG", "L", (4, 3))
    (tmp_path / "notes.txt").write_text("not an image")
    images = load_images(tmp_path, 3)
    assert [tuple(image.shape) for image in images] == [(3, 5, 7), (3, 3, 4)]
    assert all(image.dtype == torch.uint8 for image in images)
    assert (images[0].permute(1, 2, 0).numpy() == colour).all()
    assert (images[1].numpy() == grey.transpose(2, 0, 1)).all()
    assert [tuple(image.shape) for image in load_images(str(tmp_path), 1)] == [(1, 5, 7), (1, 3, 4)]


def test_packed_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (4, 6, 5, 2), dtype=np.uint8)
    np.save(tmp_path / "pack.npy", array)
    images = load_images(tmp_path, 2)
    assert len(images) == 4
    assert (images[3].numpy() == array[3].transpose(2, 0, 1)).all()
    np.save(tmp_path / "pack.npy", array[..., 0])
    assert [tuple(image.shape) for image in load_images(tmp_path, 1)] == [(1, 6, 5)] * 4
    np.save(tmp_path / "pack.npy", array[0])
    assert [tuple(image.shape) for image in load_images(tmp_path, 2)] == [(2, 6, 5)]


def test_folders_without_usable_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder of training images"):
        load_images(tmp_path / "none", 3)
    with pytest.raises(ValueError, match=r"holds no image \(.*\.png"):
        load_images(tmp_path, 3)
    picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: a 2-channel \(complex\) prior trains on packed \.npy arrays"):
        load_images(tmp_path, 2)
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"a\.png is not a readable image"):
        load_images(tmp_path, 3)


@pytest.mark.parametrize(("name", "dtype"), [("a.png", np.uint16), ("a.tif", np.float32)])
def test_deep_pictures_are_not_clipped_in_silence(tmp_path: Path, name: str, dtype: type) -> None:
    Image.fromarray(np.full((4, 4), 0.5 if dtype is np.float32 else 40_000, dtype)).save(tmp_path / name)
    with pytest.raises(ValueError, match=r"has 16-bit or float pixels .*; convert it to 8 bits"):
        load_images(tmp_path, 1)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((2, 4, 4), np.float32), r"expected a uint8 array .*found float32 \(2, 4, 4\)"),
        (np.zeros((4, 4), np.uint8), r"expected a uint8 array .*found uint8 \(4, 4\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "3 channels, expected 1"),
    ],
)
def test_arrays_of_another_kind(tmp_path: Path, array: np.ndarray, sentence: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"a\.npy: {sentence}"):
        load_images(tmp_path, 1)


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_a_broken_array_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npy is not a readable array"):
        load_images(tmp_path, 1)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_dead_leaves(channels: int) -> None:
    scenes = dead_leaves(3, 48, channels, seed=4)
    assert [tuple(scene.shape) for scene in scenes] == [(channels, 48, 48)] * 3
    assert all(scene.dtype == torch.uint8 for scene in scenes)
    again = dead_leaves(3, 48, channels, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(scenes, again, strict=True))
    assert not torch.equal(scenes[0], scenes[1])
    assert not torch.equal(scenes[0], dead_leaves(1, 48, channels, seed=5)[0])
    for scene in scenes:
        assert float(scene.float().std()) > 10  # neither empty nor clipped to one value
        assert 0 < float(scene.float().mean()) < 255
    assert dead_leaves(0, 48, channels, seed=4) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_mixed_scenes(channels: int) -> None:
    scenes = mixed_scenes(4, 96, channels, seed=2)
    assert [tuple(scene.shape) for scene in scenes] == [(channels, 96, 96)] * 4
    assert all(torch.equal(a, b) for a, b in zip(scenes, mixed_scenes(4, 96, channels, seed=2), strict=True))
    assert all(float(scene.float().std()) > 5 for scene in scenes)


def test_packed_photographs(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", size=(4, 9))
    images = load_images(tmp_path, 3)
    pack_images(images, tmp_path / "pack.npz")
    again = load_images(tmp_path / "pack.npz", 3)
    assert len(again) == 2
    assert all(torch.equal(a, b) for a, b in zip(images, again, strict=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png", "pack.npz"]
    with pytest.raises(ValueError, match=r"pack\.npz holds uint8 \(5, 7, 3\); expected uint8 \(H, W, 1\)"):
        load_images(tmp_path / "pack.npz", 1)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz holds no packed photographs"):
        load_images(tmp_path / "other.npz", 3)
    (tmp_path / "other.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"other\.npz is not a readable packed file"):
        load_images(tmp_path / "other.npz", 3)


def test_crops() -> None:
    photograph = torch.arange(30 * 40, dtype=torch.int64).reshape(1, 30, 40)
    small = torch.zeros(1, 8, 40, dtype=torch.int64)
    source = CropSource([small, photograph], [], crop=16, share=0.5)
    batch = source.batch(50, seed=1, step=7)
    assert batch.shape == (50, 1, 16, 16)
    assert torch.equal(batch, source.batch(50, seed=1, step=7))
    assert not torch.equal(batch, source.batch(50, seed=1, step=8))
    assert not torch.equal(batch, source.batch(50, seed=2, step=7))
    orientations = set()
    for crop in batch[:, 0]:
        values = crop.flatten().sort().values
        row, column = divmod(int(values[0]), 40)
        window = photograph[0, row : row + 16, column : column + 16]
        assert torch.equal(values, window.flatten().sort().values)  # a window of the photograph, turned or mirrored
        orientations.add((int(crop[0, 0] - crop[0, 1]), int(crop[0, 0] - crop[1, 0])))
    assert len(orientations) == 8


def test_scenes_have_their_share() -> None:
    photograph, scene = torch.zeros(1, 20, 20), torch.ones(1, 20, 20)
    share = float(CropSource([photograph], [scene], 8, 0.25).batch(2000, 0, 0).mean())
    assert share == pytest.approx(0.25, abs=0.04)
    assert float(CropSource([photograph], [scene], 8, 0.0).batch(50, 0, 0).max()) == 0
    assert float(CropSource([photograph], [scene], 8, 1.0).batch(50, 0, 0).min()) == 1


def test_no_image_is_large_enough() -> None:
    with pytest.raises(ValueError, match="no training image is at least 32 x 32 pixels; use a smaller --crop"):
        CropSource([torch.zeros(1, 31, 64)], [], 32, 0.0)
