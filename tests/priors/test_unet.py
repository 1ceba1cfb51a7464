"""The U-Net prior: sizes, channels, files, precision, and what a tile of it computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from invsolve.priors import UNetConfig, UNetPrior
from invsolve.priors.unet import FORMAT, fast_dtype

TINY = UNetConfig(channels=1, widths=(4, 8, 8), blocks=(1, 1, 1), embedding=16)
MakePrior = Callable[..., UNetPrior]


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (8, 8), (13, 6), (31, 17)])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_any_size_and_number_of_channels(randomised: MakePrior, size: tuple[int, int], channels: int) -> None:
    prior = randomised(UNetConfig(channels=channels, widths=(4, 8, 8), blocks=(1, 1, 1), embedding=16))
    x = noise(2, channels, *size)
    denoised = prior.denoise(x, 0.5)
    assert denoised.shape == x.shape
    assert bool(torch.isfinite(denoised).all())
    prior.check_shape((channels, *size))
    with pytest.raises(ValueError, match="the prior models images of shape"):
        prior.check_shape((channels + 1, *size))


def test_a_side_that_is_no_multiple_of_the_stride_is_continued_by_its_edge(randomised: MakePrior) -> None:
    prior = randomised()
    x = noise(1, 1, 6, 10)
    padded = torch.nn.functional.pad(x, (0, 2, 0, 2), mode="replicate")
    torch.testing.assert_close(prior.denoise(x, 0.5), prior.denoise(padded, 0.5)[..., :6, :10])


def test_an_untrained_network_is_the_skip_connection_alone() -> None:
    """Its last layer starts at zero: D = sigma_data^2 / (sigma^2 + sigma_data^2) x."""
    x = noise(3, 1, 8, 8)
    sigma = torch.tensor([0.1, 0.5, 4.0])
    expected = x * (0.25 / (0.25 + sigma**2)).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(UNetPrior(TINY, torch.float32).denoise(x, sigma), expected)


def test_edm_preconditioning(randomised: MakePrior) -> None:
    prior = randomised(UNetConfig(1, (4, 8), (1, 1), embedding=16, sigma_data=0.7))
    x, sigma = noise(2, 1, 8, 8), torch.tensor([0.2, 3.0])
    s, data = sigma.reshape(-1, 1, 1, 1), 0.7
    inner = prior.network(x / (s**2 + data**2).sqrt(), sigma.log() / 4)
    expected = data**2 / (s**2 + data**2) * x + s * data / (s**2 + data**2).sqrt() * inner
    torch.testing.assert_close(prior.denoise(x, sigma), expected)


def test_limits(randomised: MakePrior) -> None:
    prior, x = randomised(), noise(1, 1, 8, 8)
    torch.testing.assert_close(prior.denoise(x, 1e-4), x, rtol=0, atol=1e-3)
    # |D| <= c_out |F| + tiny: bounded however large the input
    assert float(prior.denoise(1e4 * x, 1e4).abs().max()) < 100


def test_each_entry_has_its_own_level(randomised: MakePrior) -> None:
    prior, x = randomised(), noise(4, 1, 4, 4)  # as many images as pixels on a side
    sigma = torch.tensor([0.01, 0.3, 2.0, 50.0])
    together = prior.denoise(x, sigma)
    for k in range(4):
        torch.testing.assert_close(together[k : k + 1], prior.denoise(x[k : k + 1], float(sigma[k])))
    assert not torch.allclose(prior.denoise(x, 0.3), prior.denoise(x, 0.5))


def test_type_of_the_input_is_kept(randomised: MakePrior) -> None:
    prior, x = randomised(), noise(1, 1, 8, 8).double()
    ours = prior.denoise(x, 0.5)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours.float(), prior.denoise(x.float(), 0.5))


def test_bfloat16_is_close_to_float32(randomised: MakePrior) -> None:
    full, x = randomised(), noise(2, 1, 16, 16)
    half = randomised(dtype=torch.bfloat16)
    for sigma in (0.05, 0.5, 5.0):
        exact, approximate = full.denoise(x, sigma), half.denoise(x, sigma)
        assert approximate.dtype == torch.float32
        error = (exact - approximate).norm() / exact.norm()
        assert 0 < float(error) < 0.02


def test_automatic_precision(randomised: MakePrior) -> None:
    assert fast_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)
    assert fast_dtype(torch.device("meta")) == torch.float32
    randomised(dtype=None).denoise(noise(1, 1, 8, 8), 0.5)


def test_the_gradient_is_that_of_the_denoiser(randomised: MakePrior) -> None:
    prior = randomised()
    x, direction, h = noise(1, 1, 7, 6).requires_grad_(), 2 * noise(1, 1, 7, 6), 1e-2
    (gradient,) = torch.autograd.grad(prior.denoise(x, 0.5).sum(), x)
    with torch.no_grad():
        slope = (prior.denoise(x + h * direction, 0.5) - prior.denoise(x - h * direction, 0.5)).sum() / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-2)
    assert bool((gradient != 0).all())


# --- files ------------------------------------------------------------------------------------------------------------

ODD = UNetConfig(2, (4, 6), (1, 2), 16, (0.0, 1.0), 0.3, 0.01, 40.0, (0.0, 0.04))


@pytest.mark.parametrize("half", [True, False])
def test_a_file_gives_the_same_prior_back(randomised: MakePrior, tmp_path: Path, half: bool) -> None:
    prior, path = randomised(ODD), tmp_path / "prior.safetensors"
    prior.save(path, half=half, notes={"licence": "CC0", "data": "none"})
    before = torch.random.get_rng_state()
    loaded = UNetPrior.load(str(path), torch.float32)
    assert torch.equal(before, torch.random.get_rng_state())
    assert loaded.config == ODD
    assert not loaded.training
    assert (loaded.shape, loaded.data_range, loaded.image_range) == ((2, None, None), (0.0, 1.0), (0.0, 0.04))
    assert (loaded.sigma_min, loaded.sigma_max) == (0.01, 40.0)
    x = noise(2, 2, 9, 5)
    tolerance = 5e-3 if half else 0.0
    torch.testing.assert_close(loaded.denoise(x, 0.4), prior.denoise(x, 0.4), rtol=tolerance, atol=tolerance)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        dtypes = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert dtypes == {torch.float16 if half else torch.float32}
    assert metadata["licence"] == "CC0"
    assert metadata["format"] == FORMAT
    assert json.loads(metadata["config"])["widths"] == [4, 6]


def test_notes_cannot_break_the_file(randomised: MakePrior, tmp_path: Path) -> None:
    randomised().save(tmp_path / "a.safetensors", notes={"format": "mine", "config": "none"})
    assert UNetPrior.load(tmp_path / "a.safetensors").config == TINY


def test_saving_replaces_the_file_at_the_end(
    randomised: MakePrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prior.safetensors"
    randomised().save(path)
    before = path.read_bytes()
    randomised(seed=2).save(path)
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

    before = path.read_bytes()

    def broken(tensors: Any, target: Path, **_: Any) -> None:
        Path(target).write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr("invsolve.priors.unet.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        randomised().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.safetensors"):
        UNetPrior.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        UNetPrior.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100)])
def test_a_file_of_another_format(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        UNetPrior.load(path)


def test_a_truncated_file(randomised: MakePrior, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    randomised().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        UNetPrior.load(path)


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"without invsolve's U-Net configuration .*invsolve\.priors\.wrap"):
        UNetPrior.load(path)


@pytest.mark.parametrize("config", ["not json", '{"depth": 3}', '{"channels": 4}', "[1]"])
def test_a_configuration_of_another_version(tmp_path: Path, config: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": FORMAT, "config": config})
    with pytest.raises(ValueError, match="configuration is not one this version knows"):
        UNetPrior.load(path)


def test_weights_that_do_not_match_their_configuration(randomised: MakePrior, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    randomised().save(path)
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    other = json.dumps({"channels": 1, "widths": [4, 4], "blocks": [1, 1], "embedding": 16})
    save_file(tensors, path, metadata={"format": FORMAT, "config": other})
    with pytest.raises(ValueError, match="weights do not match the configuration"):
        UNetPrior.load(path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"channels": 4}, "channels is 4; expected 1"),
        ({"widths": ()}, "need one entry per level"),
        ({"widths": (4, 8), "blocks": (1,)}, "need one entry per level"),
    ],
)
def test_bad_configurations(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        UNetConfig(**settings)
