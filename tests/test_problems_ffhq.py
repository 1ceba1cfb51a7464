"""The FFHQ suite: what each task does to an image, noise, repetition, refusals."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from invsolve.operators import CameraBlur, LinearOperator, gaussian_kernel
from invsolve.operators.nonlinear_blur import BlurNetwork
from invsolve.problems.ffhq import FFHQ_TASKS, ffhq_problem

READY = [name for name, task in FFHQ_TASKS.items() if task.make is not None]


def images(batch=1):
    x = torch.rand((batch, 3, 32, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(x, (256, 256), mode="bilinear")


def test_names():
    assert set(FFHQ_TASKS) - set(READY) == {"ffhq-nonlinear"}
    for name in ("sr4", "box", "random", "gaussian", "motion", "phase", "hdr", "nonlinear"):
        assert f"ffhq-{name}" in FFHQ_TASKS


@pytest.mark.parametrize("name", READY)
def test_measurement(name):
    problem = ffhq_problem(name, seed=3)
    x = images()
    measurement = problem.measure(x, torch.Generator().manual_seed(1))
    clean = problem.operator(x)
    assert measurement.operator is problem.operator
    assert problem.data_range == (-1.0, 1.0)
    noise = measurement.y - clean
    assert float(noise.std()) == pytest.approx(0.05, rel=0.03)
    assert torch.equal(ffhq_problem(name, seed=3).operator(x), clean), "the seed makes the operator"
    random = name in ("ffhq-box", "ffhq-random", "ffhq-random92", "ffhq-motion", "ffhq-nonlinear-standin")
    assert torch.equal(ffhq_problem(name, seed=4).operator(x), clean) != random
    nonlinear = name in ("ffhq-phase", "ffhq-hdr", "ffhq-nonlinear-standin")
    assert isinstance(problem.operator, LinearOperator) != nonlinear


def test_super_resolution_takes_the_right_taps():
    x = torch.zeros(1, 3, 256, 256)
    x[..., 4 * 20 - 6 : 4 * 20 + 10, 101] = 1  # all rows that output row 20 sees: their weights add up to 1
    y = ffhq_problem("ffhq-sr4").operator(x)
    assert y.shape == (1, 3, 64, 64)
    taps = [-0.0017, -0.0110, -0.0183, -0.0120, 0.0227, 0.0974, 0.1819, 0.2410]
    taps = torch.tensor(taps + taps[::-1])
    for column in range(64):  # output column j sees 4j - 6 ... 4j + 9
        place = 101 - (4 * column - 6)
        want = float(taps[place]) if 0 <= place < 16 else 0.0
        assert float(y[0, 0, 20, column]) == pytest.approx(want, abs=6e-5)


def test_box():
    corners = []
    for seed in range(40):
        lost = ffhq_problem("ffhq-box", seed=seed).operator(torch.ones(1, 3, 256, 256))[0] == 0
        assert torch.equal(lost[0], lost[2])
        rows, columns = lost[0].any(1).nonzero().flatten(), lost[0].any(0).nonzero().flatten()
        assert len(rows) == len(columns) == 128
        assert int(lost[0].sum()) == 128**2
        corners += [int(rows[0]), int(columns[0])]
    assert 16 <= min(corners) < 30
    assert 97 < max(corners) <= 111


@pytest.mark.parametrize(("name", "share"), [("ffhq-random", 0.7), ("ffhq-random92", 0.92)])
def test_lost_pixels(name, share):
    lost = ffhq_problem(name).operator(torch.ones(1, 3, 256, 256))[0] == 0
    assert torch.equal(lost[0], lost[1])
    assert int(lost[0].sum()) == math.floor(65536 * share)


def test_gaussian_blur_reflects():
    x = images()
    kernel = gaussian_kernel(3.0, 61).expand(3, 1, 61, 61)
    want = F.conv2d(F.pad(x, (30, 30, 30, 30), mode="reflect"), kernel, groups=3)
    assert torch.allclose(ffhq_problem("ffhq-gaussian").operator(x), want, atol=1e-5)


def test_motion_blur_keeps_brightness():
    operator = ffhq_problem("ffhq-motion", seed=1).operator
    assert operator.kernel.shape == (61, 61)
    assert torch.allclose(operator(torch.full((1, 3, 256, 256), 0.3)), torch.tensor(0.3), atol=1e-5)


def test_phase_retrieval_is_that_of_daps():
    x = images()
    padded = F.pad((x + 1) / 2, (64, 64, 64, 64))
    want = torch.fft.fftshift(torch.fft.fft2(padded, norm="ortho"), dim=(-2, -1)).abs()
    assert torch.allclose(ffhq_problem("ffhq-phase").operator(x), want, atol=1e-4)


def test_hdr():
    x = images()
    assert torch.equal(ffhq_problem("ffhq-hdr").operator(x), (2 * x).clamp(-1, 1))


def test_nonlinear_needs_its_weights(tmp_path):
    with pytest.raises(ValueError, match=r"ffhq-nonlinear needs checkpoint=..., the file GOPRO_wVAE.pth"):
        ffhq_problem("ffhq-nonlinear")
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in BlurNetwork(2, 1, 1, 3).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save(state, tmp_path / "small.pth")
    first, again, other = (
        ffhq_problem("ffhq-nonlinear", seed=seed, checkpoint=tmp_path / "small.pth").operator for seed in (0, 0, 1)
    )
    x = images()
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))
    assert first.data_range == (-1.0, 1.0)
    assert isinstance(ffhq_problem("ffhq-nonlinear-standin").operator, CameraBlur)


def test_refusals():
    with pytest.raises(ValueError, match="no FFHQ task 'ffhq-sr'; did you mean 'ffhq-sr4'"):
        ffhq_problem("ffhq-sr")
    with pytest.raises(ValueError, match=r"ffhq-hdr needs no checkpoint, got a.pth"):
        ffhq_problem("ffhq-hdr", checkpoint="a.pth")
    with pytest.raises(ValueError, match=r"x has shape \(1, 3, 64, 64\)"):
        ffhq_problem("ffhq-hdr").measure(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"values 0 ... 2; the FFHQ tasks expect -1 ... 1"):
        ffhq_problem("ffhq-hdr").measure(torch.linspace(0, 2, 3 * 256**2).reshape(1, 3, 256, 256))


def test_listed(capsys):
    from invsolve.cli.listing import run

    assert run("problems") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in FFHQ_TASKS)
    assert 'ffhq_problem("ffhq-phase")' in printed
