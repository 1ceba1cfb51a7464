"""`invsolve restore` in this process: every task on every kind of image, repeats, and what goes wrong."""

from __future__ import annotations

import errno
import inspect
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from invsolve.cli import png16, restore, restore_command, writing
from invsolve.cli.errors import UserError
from invsolve.cli.options import RestoreOptions
from invsolve.cli.reading import read_photo
from invsolve.operators import Grayscale

TASKS: dict[str, dict[str, Any]] = {
    "denoise": {},
    "deblur": {"blur_sigma": 0.7},
    "inpaint": {"mask": Path("mask.png")},
    "sr": {"scale": 2},
    "colorize": {},
}


@pytest.fixture
def options(tiny_prior: Path, here: Path) -> RestoreOptions:
    return RestoreOptions(
        inputs=("a.png",), preset="fast", method="dds", prior=str(tiny_prior), dtype="float32", quiet=True
    )


def record(path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(path).read_text())
    return content


def look(path: str) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image.copy()


def files(folder: str = "restored") -> set[str]:
    return {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("degrade", [False, True])
def test_every_task_on_every_kind(options: RestoreOptions, picture: Any, mode: str, task: str, degrade: bool) -> None:
    source = picture("a.png", mode, 13, 11)
    picture("mask.png", "1", 13, 11)
    settings = replace(options, task=task, degrade=degrade, **TASKS[task])
    grey = mode in ("L", "LA")
    if task == "colorize" and degrade and grey:
        assert restore.run(settings) == 2
        return
    assert restore.run(settings) == 0
    before, after = read_photo(source), read_photo(Path("restored/a.png"))
    factor = 2 if task == "sr" and not degrade else 1
    height, width = (10, 12) if task == "sr" and degrade else (11, 13)
    assert after.pixels.shape[:2] == (factor * height, factor * width)
    assert (after.alpha is None) == (before.alpha is None)
    if task != "colorize":
        assert look("restored/a.png").mode == mode
    else:
        assert look("restored/a.png").mode == ("RGBA" if before.alpha is not None else "RGB")
    if before.alpha is not None and after.alpha is not None and factor == 1:
        np.testing.assert_array_equal(after.alpha, before.alpha[:height, :width])
    made = record("restored/a.png.json")
    assert made["method"] == "dds"
    assert made["evaluations"] == 20
    assert len(made["data_residual"]) == 1
    assert made["seed"] == 0
    assert len(made["settings_hash"]) == len(made["input_sha256"]) == 64
    assert {"invsolve", "torch", "python"} <= set(made["versions"])
    assert ("psnr_after" in made) == degrade
    assert files() == {"a.png", "a.png.json"} | ({"a_degraded.png"} if degrade else set())


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (33, 2)])
@pytest.mark.parametrize("task", ["denoise", "sr"])
def test_narrow_images(options: RestoreOptions, picture: Any, shape: tuple[int, int], task: str) -> None:
    picture("a.png", "RGB", *shape)
    assert restore.run(replace(options, task=task, scale=2)) == 0
    factor = 2 if task == "sr" else 1
    assert look("restored/a.png").size == (factor * shape[0], factor * shape[1])


def test_sixteen_bits_in_and_out(options: RestoreOptions) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (9, 8, 4), dtype=np.uint16)
    png16.write(Path("a.png"), values)
    assert restore.run(options) == 0
    assert png16.bits_and_channels(Path("restored/a.png")) == (16, 4)
    np.testing.assert_array_equal(png16.read(Path("restored/a.png"), 4)[..., 3], values[..., 3])
    tifffile.imwrite("b.tif", values[..., :3].astype(np.float32) / 65535, photometric="rgb")
    assert restore.run(replace(options, inputs=("b.tif",))) == 0
    assert tifffile.imread("restored/b.tif").dtype == np.float32


def test_a_solver_that_returns_its_input_changes_no_pixel(
    options: RestoreOptions, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading, units and writing alone are lossless at every depth."""
    from invsolve.cli import one_photo
    from invsolve.inference import Posterior, SolveInfo

    def echo(y: torch.Tensor, operator: Any, **rest: Any) -> Posterior:
        info = SolveInfo("echo", {}, 0, 0, 0.0, 0, 0.1, [[1.0]], "", "cpu", "auto", "0")
        return Posterior(operator.adjoint(y)[None] / (operator.row_gram or 1), info)

    monkeypatch.setattr(one_photo, "solve", echo)
    values = np.random.default_rng(0).integers(0, 65536, (9, 8, 3), dtype=np.uint16)
    png16.write(Path("a.png"), values)
    picture("b.png", "L")
    assert restore.run(replace(options, inputs=("a.png", "b.png"))) == 0
    np.testing.assert_array_equal(png16.read(Path("restored/a.png"), 3), values)
    np.testing.assert_array_equal(np.array(look("restored/b.png")), np.array(look("b.png")))


@pytest.mark.parametrize("mode", ["RGBA", "L"])
@pytest.mark.parametrize("degrade", [False, True])
def test_valid_boundary_solves_beyond_the_frame_and_cuts_back(
    options: RestoreOptions, picture: Any, monkeypatch: pytest.MonkeyPatch, mode: str, degrade: bool
) -> None:
    """A kernel of one bright centre measures the frame alone, and the adjoint puts it back where it was."""
    from invsolve.cli import one_photo
    from invsolve.inference import Posterior, SolveInfo

    def adjoint(y: torch.Tensor, operator: Any, **rest: Any) -> Posterior:
        assert operator.in_shape[1:] == ((11, 13) if degrade else (13, 16))
        info = SolveInfo("adjoint", {}, 0, 0, 0.0, 0, 0.1, [[1.0]], "", "cpu", "auto", "0")
        return Posterior(operator.adjoint(y)[None] / gram, info)

    gram = Grayscale((3, 1, 1)).row_gram if mode == "L" else 1.0  # grey photographs are solved in colour
    monkeypatch.setattr(one_photo, "solve", adjoint)
    kernel = np.zeros((3, 4))
    kernel[1, 2] = 1
    np.save("k.npy", kernel)
    pixels = np.array(Image.open(picture("a.png", mode, 13, 11)))
    settings = replace(options, task="deblur", kernel=Path("k.npy"), boundary="valid", noise_std="0", degrade=degrade)
    assert restore.run(settings) == 0
    frame = pixels[1:-1, 1:-2] if degrade else pixels
    for name in ("a", "a_degraded") if degrade else ("a",):
        difference = np.array(look(f"restored/{name}.png")).astype(int) - frame
        assert abs(difference).max() == 0
    if degrade:
        assert record("restored/a.png.json")["psnr_after"] > 45


def test_valid_boundary_with_a_real_sampler(options: RestoreOptions, picture: Any) -> None:
    picture("a.png", "LA", 13, 11)
    assert restore.run(replace(options, task="deblur", blur_sigma=1.0, boundary="valid", samples=2)) == 0
    assert {look(f"restored/{name}.png").size for name in ("a", "a_sample01", "a_spread")} == {(13, 11)}


def test_the_command_and_its_record_have_the_same_defaults() -> None:
    asked = inspect.signature(restore_command.restore).parameters
    for field in fields(RestoreOptions):
        name = {"format": "file_format"}.get(field.name, field.name)
        assert name == "inputs" or asked[name].default == field.default
    assert len(asked) == len(fields(RestoreOptions))


def test_samples_mean_and_spread(options: RestoreOptions, picture: Any) -> None:
    picture("a.png")
    assert restore.run(replace(options, samples=3, task="deblur", blur_sigma=1.0)) == 0
    names = ["a.png", "a_sample01.png", "a_sample02.png", "a_sample03.png", "a_spread.png"]
    assert files() == {*names, "a.png.json"}
    mean, *samples = (np.array(look(f"restored/{name}")).astype(float) for name in names[:4])
    inside = np.all([(sample > 0) & (sample < 255) for sample in samples], axis=0)  # clipping comes after the mean
    assert inside.mean() > 0.3
    assert abs(np.mean(samples, axis=0) - mean)[inside].max() <= 1
    made = record("restored/a.png.json")
    assert made["outputs"] == names
    assert len(made["data_residual"]) == 3
    assert made["spread_map"]["brightest"] > 0
    alone = restore.run(replace(options, task="deblur", blur_sigma=1.0, out=Path("one")))
    assert alone == 0
    np.testing.assert_array_equal(np.array(look("one/a.png")), samples[0])


def test_skips_what_is_done(options: RestoreOptions, picture: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source = picture("a.png")
    loud = replace(options, quiet=False)
    result = Path("restored/a.png")

    def run(changed: RestoreOptions) -> tuple[str, int]:
        assert restore.run(changed) == 0
        return capsys.readouterr().out, result.stat().st_mtime_ns

    first, stamp = run(loud)
    assert "noise standard deviation estimated" in first
    again, same = run(loud)
    assert "already done" in again
    assert same == stamp
    assert run(replace(loud, device="cpu"))[1] == stamp
    assert run(replace(loud, force=True))[1] != stamp
    other, changed = run(replace(loud, seed=1))
    assert "already done" not in other
    result.unlink()
    assert "already done" not in run(replace(loud, seed=1))[0]
    picture(source.name, "RGB", 25, 20)
    assert "already done" not in run(replace(loud, seed=1))[0]
    assert changed


def test_does_not_replace_what_it_did_not_make(
    options: RestoreOptions, picture: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("a.png")
    precious = picture("restored/a.png", "L")
    content = precious.read_bytes()
    assert restore.run(options) == 2
    assert "not made by invsolve" in capsys.readouterr().err
    assert precious.read_bytes() == content
    assert restore.run(replace(options, force=True)) == 0
    assert precious.read_bytes() != content


@pytest.mark.parametrize("name", ["a_sample01.png", "a_spread.png", "a_degraded.png", "a.png.json"])
@pytest.mark.parametrize("content", [b"precious", b'{"versions": "invsolve"}', b'{"versions": null}'])
def test_nothing_in_the_way_is_lost(
    options: RestoreOptions, picture: Any, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    picture("a.png")
    Path("restored").mkdir()
    precious = Path("restored", name)
    precious.write_bytes(content)
    settings = replace(options, samples=2, degrade=True)
    assert restore.run(settings) == 2
    err = capsys.readouterr().err
    assert f"restored/{name} exists and was not made by invsolve" in err
    assert "--force" in err
    assert precious.read_bytes() == content
    assert files() == {name}
    assert restore.run(replace(settings, force=True)) == 0
    assert precious.read_bytes() != content
    assert restore.run(replace(settings, seed=1)) == 0


def test_a_file_beside_own_results_is_not_lost(
    options: RestoreOptions, picture: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("a.png")
    assert restore.run(options) == 0
    made = Path("restored/a.png.json").read_bytes()
    precious = picture("restored/a_spread.png", "L")
    content = precious.read_bytes()
    assert restore.run(replace(options, samples=2)) == 2
    assert "a_spread.png exists" in capsys.readouterr().err
    assert precious.read_bytes() == content
    assert Path("restored/a.png.json").read_bytes() == made
    assert restore.run(replace(options, seed=1)) == 0  # writes no spread


def test_own_results_are_replaced_whatever_the_number_of_samples(options: RestoreOptions, picture: Any) -> None:
    picture("a.png")
    for samples in (3, 1, 2, 3):
        assert restore.run(replace(options, samples=samples)) == 0
        made = record("restored/a.png.json")
        assert {*made["outputs"], *made.get("earlier_outputs", ()), "a.png.json"} == files()
    assert "earlier_outputs" not in made


def test_one_bad_file_does_not_stop_the_rest(
    options: RestoreOptions, picture: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("in/a.png", "in/sub/c.jpg"):
        picture(name)
    Path("in/b.png").write_bytes(b"no image")
    Path("in/empty.png").touch()
    tifffile.imwrite("in/nan.tif", np.full((4, 4), np.nan, np.float32))
    assert restore.run(replace(options, inputs=("in",), quiet=False)) == 2
    assert files() == {"a.png", "a.png.json", "sub/c.png", "sub/c.png.json"}
    out, err = capsys.readouterr()
    assert "2 restored, 0 already done, 3 failed." in out
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert [("b.png" in line, "empty.png" in line, "NaN" in line).index(True) for line in lines] == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "deblurr"}, "did you mean 'deblur'"),
        ({"task": "deblurr", "blur_sigma": 1.0}, "did you mean 'deblur'"),
        ({"task": "inpiant", "mask": Path("a.png")}, "did you mean 'inpaint'"),
        ({"method": "dpss"}, "did you mean 'dps'"),
        ({"preset": "quick"}, "fast, balanced, best"),
        ({"device": "tpu"}, "doctor"),
        ({"dtype": "float8"}, "--dtype"),
        ({"prior": "naturel"}, "did you mean 'natural'"),
        ({"prior": "missing.safetensors"}, "missing.safetensors"),
        ({"noise_std": "-1"}, ">= 0"),
        ({"noise_std": "25"}, "25/255"),
        ({"samples": 0}, "--samples"),
        ({"seed": -1}, "--seed"),
        ({"tile": "12"}, "--tile"),
        ({"task": "deblur"}, "exactly one"),
        ({"task": "deblur", "blur_sigma": 1.0, "motion_length": 4.0}, "exactly one"),
        ({"task": "deblur", "blur_sigma": -1.0}, "> 0"),
        ({"blur_sigma": 1.0}, "belong to"),
        ({"task": "deblur", "blur_sigma": 1.0, "boundary": "mirror"}, "known"),
        ({"task": "inpaint"}, "--mask"),
        ({"task": "sr", "scale": 5}, "scale is 5"),
        ({"task": "deblur", "kernel": Path("empty.npy")}, "empty"),
        ({"task": "deblur", "kernel": Path("negative.npy")}, "sum"),
        ({"task": "deblur", "kernel": Path("nan.npy")}, "NaN"),
        ({"task": "deblur", "kernel": Path("missing.npy")}, "missing.npy"),
        ({"inputs": ("*.xyz",)}, "no file matches"),
    ],
)
def test_bad_options_fail_before_anything_runs(
    options: RestoreOptions, picture: Any, changes: dict[str, Any], message: str
) -> None:
    picture("a.png")
    np.save("empty.npy", np.zeros((0, 3)))
    np.save("negative.npy", -np.ones((3, 3)))
    np.save("nan.npy", np.full((3, 3), np.nan))
    with pytest.raises(UserError, match=message) as caught:
        restore.run(replace(options, **changes))
    assert "\n" not in str(caught.value)
    assert not list(Path().rglob("*.tmp"))


def test_bad_files_for_one_image(
    options: RestoreOptions, picture: Any, tiny_grey_prior: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("a.png")
    picture("mask.png", "1", 10, 10)
    Image.new("1", (24, 20)).save("nothing.png")
    np.save("large.npy", np.ones((41, 3)))
    picture("tiny.png", "RGB", 3, 3)

    def error(**changes: Any) -> str:
        assert restore.run(replace(options, **changes)) == 2
        err = capsys.readouterr().err.strip()
        assert err.startswith("error: ")
        assert "\n" not in err
        assert not any(Path("restored").iterdir())
        return err

    message = error(task="inpaint", mask=Path("mask.png"))
    assert "10 x 10" in message
    assert "24 x 20" in message
    assert "keeps no pixel" in error(task="inpaint", mask=Path("nothing.png"))
    assert "larger than the image" in error(task="deblur", kernel=Path("large.npy"))
    assert "does not fit" in error(task="sr", scale=4, degrade=True, inputs=("tiny.png",))
    assert "megapixels" in error(task="sr", scale=8, max_megapixels=0.01)
    assert "grey" in error(prior=str(tiny_grey_prior))
    assert "does not exist" in error(inputs=("missing.png",))


def test_grey_prior_restores_grey(options: RestoreOptions, picture: Any, tiny_grey_prior: Path) -> None:
    picture("a.png", "L")
    assert restore.run(replace(options, prior=str(tiny_grey_prior))) == 0


def test_masks_from_a_folder(options: RestoreOptions, picture: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("in/a.jpg", "in/sub/b.png", "in/c.png"):
        picture(name)
    for name in ("masks/a.png", "masks/sub/b.png"):
        picture(name, "L")
    assert restore.run(replace(options, inputs=("in",), task="inpaint", mask=Path("masks"))) == 2
    assert "holds no mask for" in capsys.readouterr().err
    assert {"a.png", "sub/b.png"} <= files()


def test_mask_hole_colour(options: RestoreOptions, picture: Any) -> None:
    picture("a.png")
    known = np.zeros((20, 24), np.uint8)
    known[:, :20] = 255
    Image.fromarray(known).save("known.png")
    Image.fromarray(255 - known).save("holes.png")
    settings = replace(options, task="inpaint", noise_std="0.01")
    assert restore.run(replace(settings, mask=Path("known.png"), out=Path("one"))) == 0
    assert restore.run(replace(settings, mask=Path("holes.png"), mask_hole="white", out=Path("two"))) == 0
    assert Path("one/a.png").read_bytes() == Path("two/a.png").read_bytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_disk_full_half_way(
    options: RestoreOptions,
    picture: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    picture("a.png")
    assert restore.run(options) == 0
    before = {name: Path("restored", name).read_bytes() for name in files()}

    def full(path: Path, values: np.ndarray, *rest: Any) -> None:
        if "_sample" in path.name:
            path.write_bytes(b"half")
            raise OSError(code, "no")
        writing_eight_bits(path, values, *rest)

    writing_eight_bits = writing._write_eight_bits
    monkeypatch.setattr(writing, "_write_eight_bits", full)
    assert restore.run(replace(options, samples=2)) == 2
    assert "writing restored/a_sample01.png failed: the" in capsys.readouterr().err
    assert {name: Path("restored", name).read_bytes() for name in files()} == before


def test_output_that_cannot_be_made(options: RestoreOptions, picture: Any) -> None:
    picture("a.png")
    Path("file").touch()
    with pytest.raises(UserError, match="file"):
        restore.run(replace(options, out=Path("file/sub")))


def test_unexpected_errors_are_reported_with_their_kind(
    options: RestoreOptions, picture: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture("a.png")
    picture("b.png")

    def broken(*args: Any) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(restore, "restore_photo", broken)
    assert restore.run(replace(options, inputs=("a.png", "b.png"))) == 2
    assert capsys.readouterr().err.count("ZeroDivisionError: odd") == 2


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:119] err == 0. "
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."
            ),
            "use a smaller --tile or fewer --samples.",
        ),
        (MemoryError(), "use a smaller --tile or fewer --samples."),
        (torch.OutOfMemoryError("CUDA out of memory."), "use a smaller --tile or fewer --samples or --device cpu."),
    ],
)
def test_too_little_memory(
    options: RestoreOptions,
    picture: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    remedy: str,
) -> None:
    picture("a.png")

    def large(*args: Any) -> None:
        raise error

    monkeypatch.setattr(restore, "restore_photo", large)
    assert restore.run(replace(options, samples=4)) == 2
    assert capsys.readouterr().err == f"error: a.png needs more memory than there is; {remedy}\n"
    assert restore.run(options) == 2
    assert "--samples" not in capsys.readouterr().err


def test_what_torch_says_without_memory(
    options: RestoreOptions, picture: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture("a.png")
    monkeypatch.setattr(restore, "restore_photo", lambda *args: torch.empty(1 << 60, dtype=torch.uint8))
    assert restore.run(options) == 2
    assert "more memory than there is; use a smaller --tile." in capsys.readouterr().err


@pytest.mark.parametrize("samples", [1, 3])
def test_samples_are_not_copied(
    options: RestoreOptions, picture: Any, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    from invsolve.cli import one_photo
    from invsolve.cli.progress import Reporter
    from invsolve.cli.tasks import LoadedPrior
    from invsolve.inference import Posterior, SolveInfo
    from invsolve.problems.photo import Denoise

    drawn = torch.rand(samples, 1, 3, 20, 24)
    info = SolveInfo("fixed", {}, 0, 0, 0.0, 0, 0.1, [[1.0]] * samples, "", "cpu", "auto", "0")
    monkeypatch.setattr(one_photo, "solve", lambda *args, **rest: Posterior(drawn, info))
    settings = replace(options, samples=samples)
    photo, prior = read_photo(picture("a.png")), LoadedPrior.of(options.prior)
    with Reporter(True, 1) as reporter:
        restored = one_photo.restore_photo(photo, Denoise(), settings, prior, "a.png", reporter)
    memory = drawn.numpy()
    assert all(np.shares_memory(image, memory) for image in restored.samples)
    assert np.shares_memory(restored.mean, memory) == (samples == 1)
    np.testing.assert_array_equal(restored.samples[-1], memory[-1, 0].transpose(1, 2, 0))
    np.testing.assert_allclose(restored.mean, memory[:, 0].mean(0).transpose(1, 2, 0), rtol=1e-6)
    np.testing.assert_allclose(restored.spread, _spread(memory).transpose(1, 2, 0), atol=1e-6)


def _spread(samples: np.ndarray) -> np.ndarray:
    return samples[:, 0].std(0, ddof=1) if len(samples) > 1 else np.zeros(samples.shape[2:])
