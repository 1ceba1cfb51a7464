"""RED-diff: an image fitted to the data, regularised by denoising."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import Generators, standard_normal
from invsolve.priors.base import Prior
from invsolve.samplers import schedules
from invsolve.samplers.base import Callback, Sampler, report
from invsolve.samplers.daps import likelihood_gradient
from invsolve.samplers.lift import lift

WEIGHTINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda sigma: sigma,
    "sqrt": lambda sigma: sigma**0.5,
    "square": lambda sigma: sigma**2,
    "constant": lambda _: 1.0,
}


@dataclass(frozen=True)
class REDDiff(Sampler):
    """Optimises one image for data and prior together; a sharp point estimate for any operator, not a sample.

    RED-diff: Mardani et al., ICLR 2024, arXiv 2305.04391, Algorithm 1. The variational approximation of the posterior
    is a narrow Gaussian around mu. Each step noises mu to a level, and moves it along the gradient of the data term and
    of the regulariser <eps_hat - n, mu> by one step of Adam; nothing is backpropagated through the network. As in the
    released code both terms are means, so that their balance depends on the number of measurements, and the noise level
    is not in the method beyond the start.

    Because Adam divides each pixel's gradient by its own size, only the ratio of `lam` to `data_weight` matters, and
    the spread of the results is that of the optimiser: near zero where something was measured.

    Cost per step: one network evaluation, one product with A and A^H.

    Args:
        num_steps: levels of the DDPM schedule, one step each, 100 to 1000.
        step_size: Adam's learning rate, model units; 0.1 in the paper. With few steps the image travels at most
            num_steps * step_size.
        lam: weight of the regulariser; 0.25 in the paper.
        weighting: its dependence on the noise level: "linear" (the paper), "sqrt", "square" or "constant".
        data_weight: weight of the data term.
        spread: standard deviation of the variational Gaussian; 0 in all published settings.
        damping: of the pseudo-inverse that makes the first image; None for one that follows from the noise level.
    """

    num_steps: int = 1000
    step_size: float = 0.1
    lam: float = 0.25
    weighting: Literal["linear", "sqrt", "square", "constant"] = "linear"
    data_weight: float = 1.0
    spread: float = 0.0
    damping: float | None = None

    paper: ClassVar[str] = "2305.04391"
    nonlinear: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward, 1 operator gradient"

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting is {self.weighting!r}; expected one of {', '.join(WEIGHTINGS)}.")

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        prior: Prior,
        *,
        generator: Generators = None,
        callback: Callback | None = None,
    ) -> Tensor:
        mu = lift(self, measurement, self.damping)
        size, measured = mu[0].numel(), measurement.y[0].numel()
        adam = Adam(self.step_size)
        for step, sigma in enumerate(schedules.ddim(self.num_steps).tolist(), start=1):
            # 1. a noisy sample of the variational Gaussian
            x0 = mu if self.spread == 0 else mu + self.spread * standard_normal(mu, generator)
            noise = standard_normal(mu, generator)
            # 2. what the network takes for noise
            denoised = prior.denoise(x0 + sigma * noise, sigma)
            epsilon = (x0 + sigma * noise - denoised) / sigma
            # 3. gradient of data term and regulariser
            gradient = -self.data_weight * likelihood_gradient(measurement, x0) / measured
            gradient = gradient + self.lam * WEIGHTINGS[self.weighting](sigma) * (epsilon - noise) / size
            # 4. step of the optimiser
            mu = mu - adam.step(gradient)
            if report(callback, step, self.num_steps, sigma, mu, denoised, "step_size"):
                return denoised
        return mu


class Adam:
    """Adam's step for one batch (Kingma and Ba 2015, arXiv 1412.6980); every number has its own scale.

    Args:
        step_size: learning rate.
        decay: of the first and second moment; RED-diff's (0.9, 0.99).
        epsilon: added to the root of the second moment.
    """

    def __init__(self, step_size: float, decay: tuple[float, float] = (0.9, 0.99), epsilon: float = 1e-8) -> None:
        self.step_size, self.decay, self.epsilon = step_size, decay, epsilon
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0
        self.count = 0

    def step(self, gradient: Tensor) -> Tensor:
        """What to subtract."""
        a, b = self.decay
        self.count += 1
        self.first = a * self.first + (1 - a) * gradient
        self.second = b * self.second + (1 - b) * gradient**2
        scale = (self.second / (1 - b**self.count)).sqrt() + self.epsilon
        return self.step_size * self.first / (1 - a**self.count) / scale
