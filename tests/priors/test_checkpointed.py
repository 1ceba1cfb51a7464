"""Recomputing activations: equal results and gradients, less kept for the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invsolve.inference import CountedPrior, solve
from invsolve.operators import Blur, gaussian_kernel
from invsolve.priors import CheckpointedPrior, Prior, TiledPrior, UNetConfig, UNetPrior
from invsolve.samplers.presets import SAMPLERS, choose


def unet() -> UNetPrior:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = UNetPrior(UNetConfig(1, (8, 12), (2, 1), 16), torch.float32)
        for parameter in prior.parameters():  # zeros at first: the gradient would not see the blocks
            nn.init.normal_(parameter, std=0.05)
    return prior.eval().requires_grad_(False)


class Plain(Prior):
    """A network without lists of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 1, 3, padding=1))

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        output: Tensor = self.network(x)
        return output


@pytest.mark.parametrize("wrapper", [CheckpointedPrior, TiledPrior, CountedPrior])
def test_a_wrapped_prior_is_for_the_same_images(wrapper: type[Prior]) -> None:
    prior = UNetPrior(UNetConfig(1, (8,), (1,), 16, (0.0, 1.0), 0.3, 0.01, 40.0, (0.0, 0.04)))
    wrapped = wrapper(prior)  # type: ignore[arg-type]
    for name in ("shape", "data_range", "image_range", "sigma_min", "sigma_max"):
        assert getattr(wrapped, name) == getattr(prior, name)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradient(prior: Prior, evaluations: int = 1) -> tuple[Tensor, Tensor, int]:
    """D after so many evaluations, a gradient through them, and the bytes kept for it besides the weights."""
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in prior.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = noise(2, 1, 32, 24).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        denoised = x
        for _ in range(evaluations):
            denoised = prior.denoise(denoised, 0.5)
    before = sum(kept.values())
    (product,) = torch.autograd.grad(denoised, x, noise(2, 1, 32, 24, seed=1))
    return denoised.detach(), product, before


@pytest.mark.parametrize(("make", "evaluations"), [(unet, 1), (unet, 2), (Plain, 3)])
def test_equal_gradients_from_less_memory(make: Any, evaluations: int) -> None:
    prior = make()
    expected, product, kept = gradient(prior, evaluations)
    ours, our_product, our_kept = gradient(CheckpointedPrior(prior), evaluations)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    torch.testing.assert_close(our_product, product, rtol=1e-6, atol=1e-6)
    assert our_kept < 0.45 * kept


def test_the_prior_is_left_as_it_was() -> None:
    prior = unet()
    block = prior.network.encoder[0][0]  # type: ignore[index]
    CheckpointedPrior(prior).denoise(noise(1, 1, 8, 8).requires_grad_(), 0.5)
    assert "forward" not in vars(block)

    calls: list[int] = []

    def own(x: Tensor, embedding: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("fails")
        return x

    block.forward = own  # a hook of somebody else's
    CheckpointedPrior(prior).denoise(noise(1, 1, 8, 8).requires_grad_(), 0.5)
    assert calls == [1]
    with pytest.raises(RuntimeError, match="fails"):
        CheckpointedPrior(prior).denoise(noise(1, 1, 8, 8).requires_grad_(), 0.5)
    assert vars(block)["forward"] is own


def test_no_second_pass_without_gradients() -> None:
    prior = unet()
    with torch.no_grad():
        ours, plain = (p.denoise(noise(1, 1, 8, 8), 0.5) for p in (CheckpointedPrior(prior), prior))
    assert torch.equal(ours, plain)
    assert ours.grad_fn is None


@pytest.mark.parametrize("name", [name for name, cls in SAMPLERS.items() if cls.needs_gradient])
def test_every_gradient_sampler_takes_it(name: str) -> None:
    """Also those that go back through one evaluation several times."""
    operator = Blur(gaussian_kernel(1.0, 5), (1, 8, 8), "circular")
    y = operator(noise(1, 1, 8, 8) / 4 + 0.5)
    prior = unet()
    results = [
        solve(y, operator, noise_std=0.1, prior=prior, method=name, preset="fast", dtype="float32", checkpoint=flag)
        for flag in (False, True)
    ]
    torch.testing.assert_close(results[0].samples, results[1].samples, rtol=1e-4, atol=1e-4)
    assert results[0].info.evaluations == results[1].info.evaluations
    assert results[0].info.backward_evaluations == results[1].info.backward_evaluations > 0
    assert choose(name, "fast", _measurement(y, operator)).settings() == results[1].info.settings


def _measurement(y: Tensor, operator: Any) -> Any:
    from invsolve.operators import GaussianNoise, Measurement

    return Measurement(y, operator, GaussianNoise(0.1))
