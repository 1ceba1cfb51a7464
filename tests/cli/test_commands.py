"""The real command: exit statuses, signals, what is left on disk. Each runs in a process of its own at least once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from invsolve.cli.app import app
from invsolve.priors.registry import SHIPPED

LIMITED = (
    "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)); from invsolve.cli import main; main()"
)


def command(*arguments: object, run: Sequence[str] = ("-m", "invsolve")) -> list[str]:
    return [sys.executable, *run, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}


def invsolve(*arguments: object, status: int = 0, run: Sequence[str] = ("-m", "invsolve")) -> tuple[str, str]:
    done = subprocess.run(
        command(*arguments, run=run), capture_output=True, text=True, env=environment(), timeout=120, check=False
    )
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def here_invsolve(*arguments: object, status: int = 0) -> str:
    """What the command prints in this process, for repeats that need none of their own."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result.output


def leftovers() -> list[Path]:
    return list(Path().rglob("*.tmp"))


def test_help_is_quick_and_teaches() -> None:
    code = "import sys, invsolve.cli.app; sys.exit(bool({'torch', 'PIL', 'rich.progress'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
    for arguments in ([], ["restore"], ["demo"], ["train", "prior"], ["list"], ["doctor"]):
        out, _ = invsolve(*arguments, "--help")
        assert "Usage" in out
    out, _ = invsolve("restore", "--help")
    assert "invsolve restore torn.png -t inpaint --mask mask.png --samples 8" in out
    assert "JPEG and all else" in out
    assert invsolve("--version")[0].startswith("invsolve 0")


def test_usage_errors_are_status_two(here: Path) -> None:
    invsolve("restoree", status=2)
    invsolve("restore", "a.png", "--samples", "many", status=2)
    here_invsolve("demo", "--seed", -1, status=2)
    _, err = invsolve("restore", "a.png", "--method", "diffpirr", status=2)
    assert err.strip() == "error: --method 'diffpirr' is unknown; did you mean 'diffpir'?"


def test_restore_a_folder_then_again(tiny_prior: Path, picture: Any) -> None:
    picture("in/a.jpg", "RGB", 40, 33)
    picture("in/sub/b.png", "LA", 17, 30)
    Path("in/c.png").write_bytes(b"no image")
    arguments = ("restore", "in", "-o", "out", "--preset", "fast", "--prior", tiny_prior, "--samples", 2)
    out, err = invsolve(*arguments, status=2)
    assert "2 restored, 0 already done, 1 failed." in out
    assert err.strip() == "error: in/c.png is damaged or not an image." or "c.png is not an image" in err
    assert Path("out/sub/b_spread.png").is_file()
    made = json.loads(Path("out/sub/b.png.json").read_text())
    assert made["outputs"] == ["b.png", "b_sample01.png", "b_sample02.png", "b_spread.png"]
    Path("in/c.png").unlink()
    out, _ = invsolve(*arguments)
    assert "0 restored, 2 already done, 0 failed." in out
    assert not leftovers()


def test_quiet_says_nothing(tiny_prior: Path, picture: Any) -> None:
    picture("a.png")
    assert here_invsolve("restore", "a.png", "-q", "--preset", "fast", "--prior", tiny_prior) == ""


def interrupted(number: int, *arguments: object, waits_for: str) -> tuple[int, str, str]:
    """(exit status, rest of stdout, stderr) of a command that gets a signal once it has printed `waits_for`."""
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # A suite that a script started in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if waits_for in line:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, out, err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing_half_written(tiny_prior: Path, picture: Any, number: int, status: int) -> None:
    picture("a.png", "RGB", 256, 256)
    arguments = ("restore", "a.png", "--preset", "best", "--method", "dps", "--prior", tiny_prior)
    code, _, err = interrupted(number, *arguments, waits_for="estimated")
    assert code == status
    assert ("interrupted" in err) == (number == signal.SIGINT)
    assert not list(Path("restored").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_files_that_cannot_grow_leave_nothing(tiny_prior: Path, picture: Any) -> None:
    picture("a.png", "RGB", 64, 64)
    # A picture of many colours: what "auto" makes of this prior compresses to less than the limit.
    arguments = ("restore", "a.png", "--preset", "fast", "--method", "dds", "--prior", tiny_prior, "-q")
    out, err = invsolve(*arguments, status=2, run=("-c", LIMITED))
    assert out == ""
    assert err.startswith("error: writing restored/a.png failed: the file grew larger")
    assert len(err.strip().splitlines()) == 1
    assert not list(Path("restored").iterdir())


def test_output_path_that_is_not_writable(tiny_prior: Path, picture: Any) -> None:
    picture("a.png")
    Path("file").touch()
    printed = here_invsolve("restore", "a.png", "-o", "file/x", "--prior", tiny_prior, status=2)
    assert printed.startswith("error: writing into file/x failed:")


def test_demo(here: Path, tiny_prior: Path) -> None:
    out, _ = invsolve("demo", "--prior", tiny_prior, "--method", "dds", "-o", "d.png")
    assert "PSNR before" in out
    assert "d.png" in out
    with Image.open("d.png") as sheet:
        assert sheet.size == (3 * 264 + 8, 256 + 34)


@pytest.mark.parametrize("what", ["operators", "samplers", "priors", "problems"])
def test_list(here: Path, what: str) -> None:
    expected = {"operators": "Mask", "samplers": "daps", "priors": "natural", "problems": "colorize"}
    printed = invsolve("list", what)[0] if what == "samplers" else here_invsolve("list", what)
    assert expected[what] in printed


def test_list_of_nothing(here: Path) -> None:
    assert "did you mean 'samplers'" in here_invsolve("list", "sampler", status=2)


def test_doctor(here: Path) -> None:
    healthy = SHIPPED["natural"].path.is_file()
    out, _ = invsolve("doctor", status=0 if healthy else 1)
    for word in ("torch", "bfloat16", "memory", "disk", "prior natural", "CG solve", "denoiser"):
        assert word in out
    assert ("everything works" in out) == healthy


TRAIN = ("--channels", 1, "--batch-size", 2, "--crop", 16, "--widths", "4,8", "--blocks", "1,1", "--scenes", 0)


@pytest.fixture
def training_data(here: Path) -> Path:
    (here / "data").mkdir()
    values = np.random.default_rng(0).integers(0, 255, (4, 24, 24), dtype=np.uint8)
    np.save(here / "data/pack.npy", values)
    return here / "data"


def test_train_prior_and_go_on(training_data: Path) -> None:
    arguments = ("train", "prior", "--data", "data", "--out", "p.safetensors", *TRAIN)
    out, _ = invsolve(*arguments, "--steps", 10, "--validation", "data")
    assert "noise std" in out
    assert "p.safetensors" in out
    assert "going on from p.safetensors.state" in here_invsolve(*arguments, "--steps", 20)
    assert not leftovers()


def test_a_trained_prior_restores_and_other_settings_are_refused(training_data: Path) -> None:
    arguments = ("train", "prior", "--data", "data", "--out", "p.safetensors", *TRAIN)
    here_invsolve(*arguments, "--steps", 2)
    Image.fromarray(np.full((20, 20), 90, np.uint8)).save("a.png")
    here_invsolve("restore", "a.png", "--preset", "fast", "--prior", "p.safetensors")
    assert "--fresh" in here_invsolve(*arguments, "--lr", 0.5, status=2)
    missing = here_invsolve("train", "prior", "--data", "missing", "--out", "x.safetensors", status=2)
    assert "missing is not a folder" in missing
    assert not leftovers()


def test_train_a_recipe_from_a_packed_file(here: Path) -> None:
    (here / "scans").mkdir()
    values = np.random.default_rng(0).integers(-1000, 1000, (24, 24)).astype(np.float32)
    for patient in "abc":
        np.save(here / f"scans/{patient}_1.npy", values)
    assert "wrote 3 images to ct.npz" in here_invsolve("train", "pack", "scans", "--recipe", "ct", "-o", "ct.npz")
    small = ("--batch-size", 1, "--crop", 16, "--widths", "4,8", "--blocks", "1,1", "--scenes", 0, "--steps", 2)
    arguments = ("train", "prior", "--data", "ct.npz", "--recipe", "ct", *small)
    assert "noise std" in here_invsolve(*arguments, "-o", "p.safetensors", "--validation", "ct.npz")
    here_invsolve(*arguments, "-o", "q.safetensors", "--start", "p.safetensors")
    for extra, sentence in (
        (("--start", "none.safetensors"), "there is no such checkpoint"),
        (("--recipe", "cat"), "did you mean 'ct'"),
        (("--channels", 3), "a network for ct has 1 channels, not 3"),
    ):
        assert sentence in here_invsolve(*arguments, "-o", "r.safetensors", *extra, status=2)
    assert "name an .npz file" in here_invsolve("train", "pack", "scans", "--recipe", "ct", "-o", "ct.npy", status=2)
    assert "neither a folder" in here_invsolve("train", "pack", "none", "--recipe", "ct", "-o", "x.npz", status=2)
    assert not leftovers()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_keeps_the_training_state(training_data: Path) -> None:
    arguments = ("train", "prior", "--data", "data", "--out", "p.safetensors", *TRAIN)
    here_invsolve(*arguments, "--steps", 10)
    long = (*arguments, "--steps", 1_000_000, "--checkpoint-every", 1e9)
    code, out, err = interrupted(signal.SIGINT, *long, waits_for="going on")
    assert code == 130
    assert "the same command goes on from it" in out
    assert "interrupted" in err
    step = torch.load("p.safetensors.state", weights_only=True)["step"]
    assert step >= 10
    assert "going on" in here_invsolve(*arguments, "--steps", step + 1)
    assert not leftovers()
