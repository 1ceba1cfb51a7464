"""Photographs survive reading and writing at full depth, with what else their files hold."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from invsolve.cli import png16, reading
from invsolve.cli.errors import UserError
from invsolve.cli.photo import upright
from invsolve.cli.reading import read_kernel, read_mask, read_photo
from invsolve.cli.writing import write_photo

RNG = np.random.default_rng(0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def pixels(dtype: str, channels: int, height: int = 9, width: int = 13) -> np.ndarray:
    if dtype == "float32":
        return RNG.random((height, width, channels), dtype=np.float32)
    return RNG.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype=dtype, endpoint=True)


def store(path: Path, values: np.ndarray, **extra: object) -> Path:
    """Write with a library, not with the code under test, wherever one can."""
    if path.suffix == ".tif":
        kinds = {1: {}, 2: {"extrasamples": ["unassalpha"]}, 3: {}, 4: {"extrasamples": ["unassalpha"]}}
        colour = "rgb" if values.shape[-1] > 2 else "minisblack"
        squeezed = values[..., 0] if values.shape[-1] == 1 else values
        planar = None if values.shape[-1] == 1 else "contig"
        tifffile.imwrite(
            path, squeezed, photometric=colour, planarconfig=planar, metadata=None, **kinds[values.shape[-1]], **extra
        )
    elif values.dtype == np.uint16 and values.shape[-1] > 1:
        path.write_bytes(reference_png(values, **extra))
    else:
        Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).save(path)
    return path


def reference_png(
    values: np.ndarray, *, interlace: bool = False, chunks: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """The plainest possible 16-bit PNG (no filters), written apart from the code under test."""
    height, width, channels = values.shape
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for top, left, down, across in passes if interlace else [(0, 0, 1, 1)]:
        part = values[top::down, left::across]
        rows += b"".join(b"\0" + row.astype(">u2").tobytes() for row in part if row.size)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, int(interlace))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + body


def load_raw(path: Path) -> np.ndarray:
    """What the file stores, (H, W, C)."""
    if path.suffix == ".tif":
        values = tifffile.imread(path)
    else:
        bits, channels = png16.bits_and_channels(path) or (8, 3)
        values = png16.read(path, channels) if bits == 16 and channels > 1 else np.array(Image.open(path))
    return values if values.ndim == 3 else values[..., None]


KINDS = [(".png", d) for d in ("uint8", "uint16")] + [(".tif", d) for d in ("uint8", "uint16", "float32")]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("suffix", "dtype"), KINDS)
def test_round_trip_at_depth(tmp_path: Path, suffix: str, dtype: str, channels: int) -> None:
    values = pixels(dtype, channels)
    source = store(tmp_path / f"in{suffix}", values)
    photo = read_photo(source)
    assert photo.depth == dtype
    assert photo.pixels.dtype == np.float32
    assert photo.pixels.shape == (9, 13, 1 if channels < 3 else 3)
    assert (photo.alpha is not None) == (channels in (2, 4))
    assert photo.pixels.min() >= 0
    assert photo.pixels.max() <= 1
    out = tmp_path / f"out{suffix}"
    write_photo(out, photo.pixels, photo, "png" if suffix == ".png" else "tiff", final=out, alpha=photo.alpha)
    np.testing.assert_array_equal(load_raw(out), values)
    again = read_photo(out)
    np.testing.assert_array_equal(again.pixels, photo.pixels)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_png_interlaced(tmp_path: Path, channels: int) -> None:
    values = pixels("uint16", channels, 19, 11)
    source = store(tmp_path / "in.png", values, interlace=True)
    np.testing.assert_array_equal(png16.read(source, channels), values)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (300, 1)])
def test_sixteen_bit_png_of_narrow_images(tmp_path: Path, shape: tuple[int, int]) -> None:
    values = pixels("uint16", 4, *shape)
    png16.write(tmp_path / "a.png", values)
    np.testing.assert_array_equal(png16.read(tmp_path / "a.png", 4), values)


def test_dark_sixteen_bit_image_stays_sixteen_bit(tmp_path: Path) -> None:
    values = pixels("uint16", 3) // 512
    photo = read_photo(store(tmp_path / "dark.png", values))
    assert photo.depth == "uint16"
    assert photo.pixels.max() < 0.01


def test_sixteen_bit_png_transparent_colour(tmp_path: Path) -> None:
    values = pixels("uint16", 3)
    key = struct.pack(">HHH", *(int(v) for v in values[2, 3]))
    photo = read_photo(store(tmp_path / "a.png", values, chunks=((b"tRNS", key),)))
    assert photo.alpha is not None
    assert photo.alpha[2, 3] == 0
    assert photo.alpha.sum() == photo.alpha.size - 1


def lzw_literal(data: bytes) -> bytes:
    """Valid TIFF-LZW that never uses its table: every code has 9 bits, and the table is cleared in time."""
    codes: list[int] = []
    for start in range(0, len(data), 200):
        codes += [256, *data[start : start + 200]]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_lzw_tiff(tmp_path: Path, channels: int, order: str) -> None:
    values = pixels("uint16", channels)
    path = tmp_path / "in.tif"
    # tifffile cannot compress LZW itself: write plain, then put the compressed strip and its tags in place.
    tifffile.imwrite(
        path,
        iter([lzw_literal(values.astype(f"{order}u2").tobytes())]),
        shape=values.shape if channels > 1 else values.shape[:2],
        dtype=f"{order}u2",
        byteorder=order,
        photometric="rgb" if channels > 1 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels == 4 else None,
        compression="zlib",
        rowsperstrip=values.shape[0],
        metadata=None,
    )
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["Compression"].overwrite(5)
    photo = read_photo(path)
    assert photo.depth == "uint16"
    np.testing.assert_array_equal(np.rint(photo.pixels * 65535), values[..., : 1 if channels == 1 else 3])


def test_planar_and_inverted_tiff(tmp_path: Path) -> None:
    values = pixels("uint16", 3)
    tifffile.imwrite(tmp_path / "p.tif", values.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(np.rint(read_photo(tmp_path / "p.tif").pixels * 65535), values)
    tifffile.imwrite(tmp_path / "w.tif", values[..., 0], photometric="miniswhite", metadata=None)
    np.testing.assert_array_equal(
        np.rint(read_photo(tmp_path / "w.tif").pixels[..., 0] * 65535), 65535 - values[..., 0]
    )


@pytest.mark.parametrize(
    ("mode", "channels", "alpha"),
    [("1", 1, False), ("L", 1, False), ("LA", 1, True), ("P", 3, False), ("RGB", 3, False), ("RGBA", 3, True)],
)
def test_modes(tmp_path: Path, mode: str, channels: int, alpha: bool) -> None:
    source = Image.fromarray(pixels("uint8", 3 if mode == "P" else 4)).convert(mode)
    source.save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo.pixels.shape[-1] == channels
    assert (photo.alpha is not None) == alpha
    wanted = np.array(source.convert("RGB" if channels == 3 else "L")).reshape(9, 13, channels)
    np.testing.assert_array_equal(np.rint(photo.pixels * 255), wanted)


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(pixels("uint8", 3)).quantize(8)
    image.save(tmp_path / "a.png", transparency=0)
    photo = read_photo(tmp_path / "a.png")
    assert photo.alpha is not None
    np.testing.assert_array_equal(photo.alpha == 0, np.array(image) == 0)


def test_cmyk_is_converted_and_loses_its_profile(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).convert("CMYK")
    image.save(tmp_path / "a.jpg", quality=100, icc_profile=SRGB[:16] + b"CMYK" + SRGB[20:])
    photo = read_photo(tmp_path / "a.jpg")
    assert abs(photo.pixels * 255 - 200).max() < 3
    assert any("CMYK" in note for note in photo.notes)
    write_photo(tmp_path / "b.png", photo.pixels, photo, "png", final=tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as written:
        assert "icc_profile" not in written.info


def test_grey_stored_as_colour_stays_grey(tmp_path: Path) -> None:
    grey = pixels("uint8", 1)
    Image.fromarray(np.repeat(grey, 3, -1)).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo.pixels.shape[-1] == 1
    write_photo(tmp_path / "b.png", photo.pixels, photo, "png", final=tmp_path / "b.png")
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "b.png")), np.repeat(grey, 3, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation_is_applied_and_reset(tmp_path: Path, orientation: int, suffix: str) -> None:
    image = Image.fromarray(RNG.integers(0, 255, (2, 3, 3), dtype=np.uint8)).resize((24, 16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    exif[0x8769] = {0x829A: 0.125}
    options = {"lossless": True} if suffix == ".webp" else {}
    image.save(tmp_path / f"a{suffix}", exif=exif.tobytes(), icc_profile=SRGB, **options)
    photo = read_photo(tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as stored:
        np.testing.assert_array_equal(np.rint(photo.pixels * 255), np.array(ImageOps.exif_transpose(stored)))
    for kind in ("png", "tiff", "jpg", "webp"):
        out = tmp_path / f"b.{kind}"
        write_photo(out, photo.pixels, photo, kind, final=out)
        with Image.open(out) as result:
            written = result.getexif()
            assert written.get(0x0112, 1) == 1
            assert written[0x010F] == "Maker"
            assert float(written.get_ifd(0x8769)[0x829A]) == 0.125
            assert result.info["icc_profile"] == SRGB
            assert result.size == (photo.pixels.shape[1], photo.pixels.shape[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_agrees_with_pillow(orientation: int) -> None:
    image = Image.fromarray(pixels("uint8", 3))
    image.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(upright(np.array(image), orientation), np.array(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_profile_and_exif_survive_at_sixteen_bits(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8298] = 1, "Maker", "someone"
    chunks = ((b"iCCP", b"p\0\0" + zlib.compress(SRGB)), (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    photo = read_photo(store(tmp_path / "a.png", pixels("uint16", 3), chunks=chunks))
    out = tmp_path / f"b.{kind}"
    write_photo(out, photo.pixels, photo, kind, final=out)
    again = read_photo(out)
    assert again.icc == SRGB
    assert again.exif is not None
    block = Image.Exif()
    block.load(again.exif)
    assert (block[0x010F], block[0x8298]) == ("Maker", "someone")
    np.testing.assert_array_equal(again.pixels, photo.pixels)


def test_first_frame_with_a_note(tmp_path: Path) -> None:
    frames = [Image.fromarray(pixels("uint8", 3)) for _ in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert any("3 frames" in note for note in read_photo(tmp_path / "a.gif").notes)


def test_float_tiff_with_its_own_white(tmp_path: Path) -> None:
    values = pixels("float32", 3) * 4095
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    with pytest.raises(UserError, match="--white"):
        read_photo(tmp_path / "a.tif")
    photo = read_photo(tmp_path / "a.tif", white=4095)
    assert photo.pixels.max() <= 1
    write_photo(tmp_path / "b.tif", photo.pixels, photo, "tiff", final=tmp_path / "b.tif")
    np.testing.assert_allclose(tifffile.imread(tmp_path / "b.tif"), values, rtol=1e-6)


def bad_files(folder: Path) -> dict[str, Path]:
    good = folder / "good.png"
    Image.fromarray(pixels("uint8", 3, 64, 64)).save(good)
    tifffile.imwrite(folder / "nan.tif", np.full((4, 4, 3), np.nan, np.float32), photometric="rgb")
    tifffile.imwrite(
        folder / "five.tif", np.zeros((4, 4, 5), np.uint16), photometric="minisblack", planarconfig="contig"
    )
    tifffile.imwrite(folder / "u32.tif", np.zeros((4, 4), np.uint32), photometric="minisblack")
    contents = {
        "empty.png": b"",
        "text.jpg": b"hello, this is no image",
        "cut.png": good.read_bytes()[:-3000],
        "header.png": good.read_bytes()[:20],
        "tiff.tif": b"II*\0\x08\0\0\0garbage",
        "zero.tif": bytes(100),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in [*contents, "nan.tif", "five.tif", "u32.tif", "missing.png"]}


NAMES = ["empty.png", "text.jpg", "cut.png", "header.png", "tiff.tif", "zero.tif", "nan.tif", "five.tif", "u32.tif"]


@pytest.mark.parametrize("name", [*NAMES, "missing.png"])
def test_bad_files_get_one_sentence(tmp_path: Path, name: str) -> None:
    path = bad_files(tmp_path)[name]
    with pytest.raises(UserError) as caught:
        read_photo(path)
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    assert len(message) < 260


def test_huge_pictures_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    data = zlib.compress(bytes(1000))
    body = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    (tmp_path / "bomb.png").write_bytes(png16.SIGNATURE + chunk + body)
    with pytest.raises(UserError, match=r"3600 megapixels.*--max-megapixels"):
        read_photo(tmp_path / "bomb.png")
    small = store(tmp_path / "a.tif", pixels("uint16", 3))
    with pytest.raises(UserError, match="megapixels"):
        read_photo(small, max_pixels=100)
    assert Image.MAX_IMAGE_PIXELS is not None


def test_alpha_does_not_fit_into_jpeg(tmp_path: Path) -> None:
    photo = read_photo(store(tmp_path / "a.png", pixels("uint8", 4)))
    with pytest.raises(UserError, match="alpha"):
        write_photo(tmp_path / "a.jpg", photo.pixels, photo, "jpg", final=tmp_path / "a.jpg", alpha=photo.alpha)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_masks(tmp_path: Path, suffix: str) -> None:
    known = RNG.random((6, 7)) > 0.5
    Image.fromarray((known * 255).astype(np.uint8)).save(tmp_path / f"m{suffix}")
    np.testing.assert_array_equal(read_mask(tmp_path / f"m{suffix}", "black"), known)
    np.testing.assert_array_equal(read_mask(tmp_path / f"m{suffix}", "white"), ~known)


def test_kernels(tmp_path: Path) -> None:
    values = RNG.random((5, 3))
    np.save(tmp_path / "k.npy", values)
    np.testing.assert_array_equal(read_kernel(tmp_path / "k.npy"), values)
    grey = pixels("uint8", 1, 5, 5)
    store(tmp_path / "k.png", grey)
    np.testing.assert_allclose(read_kernel(tmp_path / "k.png"), grey[..., 0] / 255, rtol=1e-6)
    (tmp_path / "bad.npy").write_bytes(b"not an array")
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    np.save(tmp_path / "object.npy", np.array([None, {}], dtype=object), allow_pickle=True)
    for name in ("bad.npy", "text.npy", "object.npy", "missing.npy"):
        with pytest.raises(UserError, match=name):
            read_kernel(tmp_path / name)


def test_limit_is_generous_enough_for_cameras() -> None:
    assert reading.MAX_PIXELS >= 8000 * 12000
