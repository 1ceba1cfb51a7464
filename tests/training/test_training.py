"""Training of a tiny prior: files, resuming after a kill, learning at all, and settings that do not fit.

Mutants tried, each caught here: optimiser state not restored, average not restored, step off by one
on resume, crops drawn from a running generator, the same noise in every step, a finished run's file not written again,
settings not compared, loss weight left out, learning rate constant, scenes smaller than the crops, noise of the PSNR
table not scaled to the model's range, Ctrl-C taken between the optimiser's step and the average's, or not saved, a
fresh run that leaves the old state until its first checkpoint.
"""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from invsolve.priors import UNetConfig, UNetPrior
from invsolve.training import TrainingSettings, psnr_by_sigma, train_prior
from invsolve.training.prior import _loss

TINY = UNetConfig(channels=3, widths=(8, 16), blocks=(1, 1), embedding=16)
SETTINGS = TrainingSettings(network=TINY, steps=24, batch_size=2, crop=16, warmup=5, scenes=1, scene_share=0.3)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        ramp = np.linspace(0, 200, 24)[:, None, None] + rng.integers(0, 50, (1, 30, 3))
        Image.fromarray(ramp.astype(np.uint8)).save(folder / f"{index}.png")
    return folder


class KilledError(Exception):
    """Stands for a kill between two checkpoints."""


def weights(path: Path) -> dict[str, Any]:
    return {key: value.clone() for key, value in UNetPrior.load(path).network.state_dict().items()}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_writes_a_prior_that_loads(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "prior.safetensors"
    reports: list[tuple[int, int, float, float]] = []
    before = torch.random.get_rng_state()
    average = train_prior(photographs, out, SETTINGS, report=lambda *values: reports.append(values))
    assert torch.equal(before, torch.random.get_rng_state())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photographs", out.name, out.name + ".state"]
    loaded = UNetPrior.load(out, torch.float32)
    assert loaded.config == TINY
    x = torch.randn((1, 3, 9, 11), generator=torch.Generator().manual_seed(0))
    average.dtype = torch.float32
    with torch.no_grad():
        torch.testing.assert_close(loaded.denoise(x, 0.4), average.denoise(x, 0.4), rtol=1e-2, atol=1e-2)
    assert [(step, steps) for step, steps, _, _ in reports] == [(10, 24), (20, 24)]
    assert all(loss > 0 and speed > 0 for _, _, loss, speed in reports)
    state = torch.load(tmp_path / (out.name + ".state"), weights_only=True)
    assert state["optimiser"]["param_groups"][0]["lr"] == pytest.approx(SETTINGS.rate(23))


def test_a_killed_run_goes_on_as_if_nothing_had_happened(photographs: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    train_prior(photographs, whole, SETTINGS)

    def kill(step: int, *_: Any) -> None:
        if step == 20:
            raise KilledError

    with pytest.raises(KilledError):
        train_prior(photographs, killed, SETTINGS, checkpoint_every=0.0, report=kill)
    state = torch.load(tmp_path / "killed.safetensors.state", weights_only=True)
    assert state["step"] == 19  # killed before the checkpoint of step 20
    assert not same(weights(killed), weights(whole))
    train_prior(photographs, killed, SETTINGS)
    assert same(weights(killed), weights(whole))
    ours, theirs = (torch.load(p.with_name(p.name + ".state"), weights_only=True) for p in (killed, whole))
    assert ours["step"] == theirs["step"] == 24
    assert same(ours["model"], theirs["model"])
    assert same(ours["average"], theirs["average"])
    for index, moments in theirs["optimiser"]["state"].items():
        assert same(ours["optimiser"]["state"][index], moments)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["loss", "update", "report"])
def test_an_interrupt_loses_no_step(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, number: int
) -> None:
    """Ctrl-C, or SIGTERM as the command turns it into SystemExit, in any part of a step."""
    whole, stopped = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    train_prior(photographs, whole, SETTINGS)
    count = 0

    def interrupt(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == (1 if moment == "report" else 10):
            signal.raise_signal(number)

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    handler = signal.signal(signal.SIGTERM, leave)
    with monkeypatch.context() as patch:
        if moment == "loss":
            patch.setattr("invsolve.training.prior._loss", lambda *values: (interrupt(), _loss(*values))[1])
        elif moment == "update":
            lerp = torch._foreach_lerp_
            patch.setattr(torch, "_foreach_lerp_", lambda *values: (interrupt(), lerp(*values))[1])
        report = interrupt if moment == "report" else None
        try:
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                train_prior(photographs, stopped, SETTINGS, checkpoint_every=1e9, report=report)
        finally:
            signal.signal(signal.SIGTERM, handler)
    state = torch.load(tmp_path / "stopped.safetensors.state", weights_only=True)
    assert state["step"] == (9 if moment == "loss" else 10)
    average = {key: value.half().float() for key, value in state["average"].items()}
    assert same(weights(stopped), average)
    train_prior(photographs, stopped, SETTINGS)
    assert same(weights(stopped), weights(whole))


def test_training_in_another_thread(photographs: Path, tmp_path: Path) -> None:
    """Only the main thread may touch signal handlers."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train_prior, photographs, tmp_path / "a.safetensors", replace(SETTINGS, steps=2)).result()
    assert (tmp_path / "a.safetensors").is_file()


def test_a_finished_run_is_not_repeated_but_its_file_is_made_again(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "prior.safetensors"
    settings = replace(SETTINGS, steps=3)
    train_prior(photographs, out, settings)
    content = weights(out)
    out.unlink()
    train_prior(photographs, out, settings, report=lambda *_: pytest.fail("trained again"))
    assert same(weights(out), content)


def test_a_run_may_be_made_longer(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "prior.safetensors"
    train_prior(photographs, out, replace(SETTINGS, steps=3))
    first = weights(out)
    train_prior(photographs, out, replace(SETTINGS, steps=5))
    assert not same(weights(out), first)
    assert torch.load(tmp_path / "prior.safetensors.state", weights_only=True)["step"] == 5


def test_other_settings_are_refused(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "prior.safetensors"
    settings = replace(SETTINGS, steps=2)
    train_prior(photographs, out, settings)
    content = weights(out)
    with pytest.raises(ValueError, match=r"belongs to a run with another batch_size \(2 there, 3 asked\).*--fresh"):
        train_prior(photographs, out, replace(settings, batch_size=3))
    with pytest.raises(ValueError, match="belongs to a run with another network"):
        train_prior(photographs, out, replace(settings, network=replace(TINY, widths=(8, 8))))
    with pytest.raises(ValueError, match="another learning_rate, seed"):
        train_prior(photographs, out, replace(settings, seed=1, learning_rate=1e-4))
    assert same(weights(out), content)
    train_prior(photographs, out, replace(settings, seed=1), fresh=True)
    assert not same(weights(out), content)


def test_a_state_from_before_a_setting_was_there(photographs: Path, tmp_path: Path) -> None:
    """It counts as made with the setting's default."""
    out, state = tmp_path / "prior.safetensors", tmp_path / "prior.safetensors.state"
    train_prior(photographs, out, replace(SETTINGS, steps=2))
    stored = torch.load(state, weights_only=True)
    for name in ("images", "scene_style"):
        del stored["settings"][name]
    del stored["settings"]["network"]["sigma_max"]
    torch.save(stored, state)
    with pytest.raises(ValueError, match=r"another scene_style \(leaves there, mixed asked\)"):
        train_prior(photographs, out, replace(SETTINGS, steps=3, scene_style="mixed"))
    train_prior(photographs, out, replace(SETTINGS, steps=3))
    assert torch.load(state, weights_only=True)["step"] == 3


def test_a_run_that_starts_from_a_checkpoint(photographs: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    train_prior(photographs, first, replace(SETTINGS, steps=3))
    train_prior(photographs, second, replace(SETTINGS, steps=1, learning_rate=1e-12, seed=5), start=first)
    for key, value in weights(first).items():
        torch.testing.assert_close(weights(second)[key], value, rtol=1e-2, atol=1e-4)
    other = replace(SETTINGS, network=replace(TINY, widths=(8, 24)))
    with pytest.raises(ValueError, match=r"first\.safetensors cannot start this run: its widths are \(8, 16\), asked"):
        train_prior(photographs, tmp_path / "third.safetensors", other, start=first)


def test_fresh_starts_over(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "prior.safetensors"
    settings = replace(SETTINGS, steps=3)
    train_prior(photographs, out, settings)
    content = weights(out)
    train_prior(photographs, out, replace(settings, steps=6))
    train_prior(photographs, out, settings, fresh=True)
    assert same(weights(out), content)


def test_a_fresh_run_killed_at_once_does_not_resume_the_old_one(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "prior.safetensors", tmp_path / "other.safetensors"
    settings = replace(SETTINGS, steps=3)
    train_prior(photographs, out, replace(settings, seed=1))

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("invsolve.training.prior._loss", killed)
        with pytest.raises(KilledError):
            train_prior(photographs, out, settings, fresh=True)
    assert torch.load(tmp_path / "prior.safetensors.state", weights_only=True)["step"] == 0
    train_prior(photographs, out, settings)
    train_prior(photographs, other, settings)
    assert same(weights(out), weights(other))


@pytest.mark.parametrize("content", [b"", b"garbage", "pickle", "other"])
def test_an_unreadable_state(photographs: Path, tmp_path: Path, content: bytes | str) -> None:
    state = tmp_path / "prior.safetensors.state"
    if isinstance(content, bytes):
        state.write_bytes(content)
    else:
        torch.save({"step": 3} if content == "other" else Path("x"), state)
    with pytest.raises(ValueError, match=r"prior\.safetensors\.state is not a readable training state; .*--fresh"):
        train_prior(photographs, tmp_path / "prior.safetensors", replace(SETTINGS, steps=1))


def test_an_interrupted_checkpoint_leaves_the_old_one(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, state = tmp_path / "prior.safetensors", tmp_path / "prior.safetensors.state"
    train_prior(photographs, out, replace(SETTINGS, steps=2))
    content = state.read_bytes()

    def full(value: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="disk full"):
        train_prior(photographs, out, replace(SETTINGS, steps=4))
    assert state.read_bytes() == content
    assert not list(tmp_path.glob(".*"))


def test_it_learns(tmp_path: Path) -> None:
    """Images of one grey level each: after 150 steps the denoiser averages, and gains decibels at every level."""
    folder = tmp_path / "flat"
    folder.mkdir()
    levels = np.random.default_rng(0).integers(30, 226, 40).astype(np.uint8)
    np.save(folder / "flat.npy", np.broadcast_to(levels[:, None, None], (40, 32, 32)))
    network = UNetConfig(channels=1, widths=(8, 16), blocks=(1, 1), embedding=16)
    settings = TrainingSettings(network, steps=150, batch_size=8, crop=16, learning_rate=5e-3, warmup=20, scenes=0)
    losses: list[float] = []
    prior = train_prior(
        folder, tmp_path / "flat.safetensors", settings, report=lambda step, steps, loss, speed: losses.append(loss)
    )
    assert sum(losses[-3:]) / 3 < 0.4 * losses[0]

    table = psnr_by_sigma(prior, folder, sigmas=(0.1, 0.5), limit=5)
    assert table == psnr_by_sigma(prior, folder, sigmas=(0.1, 0.5), limit=5)
    for (sigma, noisy, denoised), wanted in zip(table, (0.1, 0.5), strict=True):
        assert sigma == wanted
        assert noisy == pytest.approx(-20 * np.log10(sigma), abs=0.5)
        assert denoised > noisy + 4
    assert table[0][1:] > table[1][1:]


def test_psnr_of_an_untrained_prior(photographs: Path) -> None:
    """Its D is x sigma_data^2 / (sigma^2 + sigma_data^2), in model units of twice the image's."""
    table = psnr_by_sigma(UNetPrior(TINY, torch.float32).eval(), photographs, sigmas=(0.01, 0.2))
    assert table[0][2] == pytest.approx(table[0][1], abs=0.2)
    image = np.array(Image.open(photographs / "0.png")) / 255
    assert image.shape == (24, 30, 3)
    share = 0.25 / (0.25 + 0.4**2)
    rows = []
    for index in range(3):
        clean = torch.from_numpy(np.array(Image.open(photographs / f"{index}.png"))).permute(2, 0, 1)[None] / 255
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(index))
        denoised = (share * (2 * (clean + 0.2 * noise) - 1) + 1) / 2
        rows.append(-10 * np.log10(float((denoised.clamp(0, 1) - clean).square().mean())))
    assert table[1][2] == pytest.approx(np.mean(rows), abs=0.01)


def test_the_loss_of_an_untrained_network() -> None:
    """lambda(sigma) (D - x0)^2 with D = c_skip x: its mean over noise is 1 for images of the model's own variance."""
    settings = replace(SETTINGS, network=replace(TINY, sigma_data=0.5), log_sigma_mean=0.0, log_sigma_std=0.5)
    pixels = torch.where(torch.rand(400, 3, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5, 64, 191)
    model = UNetPrior(settings.network, torch.float32)
    assert float(_loss(model, pixels.to(torch.uint8), settings, 0).detach()) == pytest.approx(1.0, rel=0.02)
    again = [float(_loss(model, pixels.to(torch.uint8), settings, step).detach()) for step in (3, 3, 4)]
    assert again[0] == again[1] != again[2]


def test_the_learning_rate() -> None:
    settings = replace(SETTINGS, steps=1000, warmup=100, learning_rate=2e-3)
    assert settings.rate(0) == pytest.approx(2e-5)
    assert settings.rate(99) == pytest.approx(2e-3)
    assert settings.rate(100) == pytest.approx(2e-3)
    assert settings.rate(550) == pytest.approx(2e-3 * 0.505)
    assert settings.rate(1000) == pytest.approx(2e-5)
    assert settings.rate(5000) == pytest.approx(2e-5)
    assert replace(settings, warmup=0).rate(0) == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"crop": 15}, "crop is 15; expected a positive multiple of 2"),
        ({"crop": 0}, "crop is 0"),
        ({"steps": 0}, "steps is 0; expected a positive number"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"gradient_clip": 0.0}, "gradient_clip is 0.0"),
        ({"images": "pet"}, "images is 'pet'; expected one of photographs, mri, ct"),
        ({"scene_style": "text"}, "scene_style is 'text'; expected one of leaves, mixed"),
        ({"images": "ct"}, "a network for ct has 1 channels, not 3"),
    ],
)
def test_bad_settings(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(SETTINGS, **changes)


def test_a_rate_at_which_the_loss_explodes(photographs: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, learning_rate=1e30, steps=20, warmup=0)
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d+; lower the learning rate"):
        train_prior(photographs, tmp_path / "a.safetensors", settings, report=lambda *_: None)


def test_crops_larger_than_a_generated_scene(tmp_path: Path) -> None:
    """Scenes are made as large as the crops."""
    np.save(tmp_path / "a.npy", np.zeros((1, 264, 264), np.uint8))
    settings = TrainingSettings(
        UNetConfig(1, (4,), (1,), 16), steps=1, batch_size=2, crop=260, scenes=1, scene_share=1.0
    )
    train_prior(tmp_path, tmp_path / "a.safetensors", settings)
