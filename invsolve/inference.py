"""The front door: a measurement and its operator in, posterior samples out."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from invsolve.drawing import Drawing
from invsolve.operators.base import LinearOperator, Operator
from invsolve.operators.function import check_adjoint
from invsolve.operators.interop import as_operator
from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import GaussianNoise, Noise
from invsolve.operators.weighted import Weighted, WeightedNonlinear
from invsolve.priors.base import Prior, WrappedPrior
from invsolve.priors.checkpointed import CheckpointedPrior
from invsolve.priors.conversions import Prediction, Schedule, wrap
from invsolve.priors.registry import load_prior
from invsolve.priors.tiled import TiledPrior
from invsolve.priors.unet import UNetPrior
from invsolve.samplers.base import Callback, Sampler
from invsolve.samplers.presets import choose
from invsolve.units import ModelUnits

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
M = TypeVar("M", bound=nn.Module)
TILE = 768
"""Images with more than TILE^2 pixels are denoised in tiles of this side."""


@dataclass(frozen=True)
class SolveInfo:
    """How a posterior was made.

    Args:
        method: sampler.
        settings: its hyper-parameters.
        evaluations: network evaluations per sample.
        backward_evaluations: backward passes through the network per sample.
        seconds: wall-clock time of the whole call.
        seed: as given.
        noise_std: noise standard deviation in the units of y (of a Gaussian approximation for other noise; its mean
            if it varies).
        residual: || A x - y || / (noise_std sqrt(m)) of each sample, [sample][image]; near 1 where the samples explain
            the data, with real and imaginary parts counted apart. Norms alone where the noise is 0.
        prior: class of the prior, or the name or path it was loaded from.
        device: where it ran.
        dtype: arithmetic of the network as asked for.
        version: of invsolve.
        diagnostics: what the method says of its own samples, named, [sample][image] each. Particle filters give
            "smallest_ess", the least effective sample size on the way: near 1 where one particle stood for all.
    """

    method: str
    settings: dict[str, Any]
    evaluations: int
    backward_evaluations: int
    seconds: float
    seed: int | list[int]
    noise_std: float
    residual: list[list[float]]
    prior: str
    device: str
    dtype: str
    version: str
    diagnostics: dict[str, list[list[float]]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Posterior:
    """Samples of p(x | y), in the kind (tensor or numpy array), units and device of the data.

    Args:
        samples: shape (S, B, C, H, W).
        info: how they were made.
    """

    samples: Any
    info: SolveInfo

    @property
    def mean(self) -> Any:
        """Mean over the samples, (B, C, H, W): the estimate of least squared error."""
        return self.samples.mean(0)

    @property
    def std(self) -> Any:
        """Spread over the samples, (B, C, H, W); zero for a single one."""
        if len(self.samples) == 1:
            return self.samples[0] * 0
        return self.samples.std(0, ddof=1) if isinstance(self.samples, np.ndarray) else self.samples.std(0)


class CountedPrior(WrappedPrior):
    """Counts the evaluations of a prior, forward and backward, in images."""

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        self.forward_count = self.backward_count = 0

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        self.forward_count += len(x)
        denoised = self.prior.denoise(x, sigma).to(x.dtype)
        if denoised.requires_grad:
            denoised.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return denoised

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward_count += len(gradient)


def solve(
    y: Tensor | np.ndarray,
    operator: Operator | nn.Module,
    *,
    noise_std: float | Tensor | np.ndarray | None = None,
    noise: Noise | None = None,
    prior: Prior | nn.Module | str | os.PathLike[str] = "natural",
    method: str | Sampler = "auto",
    preset: str = "balanced",
    num_samples: int = 1,
    seed: int | Sequence[int] = 0,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    data_range: tuple[float, float] | None = None,
    prediction: Prediction | None = None,
    schedule: Schedule | str | None = None,
    tile: int | str | None = "auto",
    batch_size: int | None = None,
    checkpoint: bool = False,
    callback: Callback | None = None,
) -> Posterior:
    """Draw samples of the posterior p(x | y) for y = A(x) + noise.

    Args:
        y: measurements, shape (B, *operator.out_shape); one without batch dimension counts as B = 1.
        operator: forward operator A, in the units of `data_range`; or a deepinv Physics, see
            `invsolve.operators.from_deepinv`. The adjoint of an operator from elsewhere is dot-tested first.
        noise_std: standard deviation of Gaussian noise in the units of y, >= 0; 0 for noiseless data. An array that
            broadcasts to y where it varies.
        noise: another noise model; give this or `noise_std`, or leave both out for a deepinv Physics that has one.
        prior: a `Prior`, the name of a shipped one, a checkpoint path, or a bare network together with `prediction` and
            `schedule`.
        method: "auto", a sampler's name ("dps", "mcg", "dds", "daps", "diffpir"), or a sampler object with its own
            settings. "auto" gives a point estimate for one sample of a mask or of denoising, and random draws
            otherwise; see `invsolve.samplers.presets.choose`.
        preset: "fast", "balanced" or "best"; how many evaluations a method given by name may spend.
        num_samples: posterior samples per image.
        seed: image b uses seed + b, or the b-th of a sequence. Sample k of an image depends on the image's seed and k
            alone, not on the batch or on how many samples are drawn. The exception is method "auto" with a
            mask or with denoising: a point estimate for one sample, random draws for several.
        device: "auto" (CUDA if there is one), "cpu", "cuda", ...
        dtype: arithmetic of a shipped or loaded network: "auto" (bfloat16 where the hardware computes it), "float32",
            "bfloat16". Physics is always at least float32.
        data_range: (low, high), what black and white are in x. None takes the prior's `image_range`: (0, 1) for
            photographs, attenuation per mm for "ct", and complex images as they are for "mri".
        prediction: what a bare network returns; see `invsolve.priors.wrap`.
        schedule: noise schedule of a bare network.
        tile: pixels; larger images are denoised in overlapping tiles inside the sampler. "auto" decides, None never
            does.
        batch_size: samples that are computed together, of one image or of several. If None, as many as are fastest:
            about 400 000 pixel values on a CPU (2 colour images of 256 x 256), 16 million on a GPU. A GPU that runs
            out of memory halves it and goes on. Where the noise differs from image to image, as counting noise does,
            a batch holds samples of one image.
        checkpoint: for methods that need the network's gradient: compute activations a second time instead of keeping
            them: a quarter of them is kept, the peak is about 40 % lower, and a step takes a third longer. See
            `invsolve.priors.CheckpointedPrior`.
        callback: called as callback(step, total, sigma, x, denoised) after every step, in model units, with steps
            counted over all batches; a true return value stops the current batch early.

    Returns:
        Posterior, with samples of the same kind as `y` (tensor on its device, or numpy array).

    Raises:
        ValueError: anything that does not fit: shapes, NaN, noise levels, names, a prior for other images, a method
            that cannot serve this operator.
        FileNotFoundError: no such checkpoint.
    """
    started = time.perf_counter()
    as_numpy = isinstance(y, np.ndarray)
    data = torch.from_numpy(y.copy()) if isinstance(y, np.ndarray) else torch.as_tensor(y)  # y may be read-only
    home = data.device
    target = _device(device)
    operator = _moved(as_operator(operator, data), target)
    _check_foreign(operator, target)
    data, likelihood = _validate(data, operator, noise_std, noise, num_samples, target)
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}.")
    seeds = [int(seed) + b for b in range(len(data))] if isinstance(seed, int | np.integer) else [int(s) for s in seed]
    if len(seeds) != len(data):
        raise ValueError(f"{len(seeds)} seeds for {len(data)} images; pass one number, or one per image.")
    if min(seeds) < 0:
        raise ValueError(f"seed is {min(seeds)}; expected a number >= 0.")

    blank = torch.zeros((1, *operator.in_shape), dtype=operator.dtype, device=target)
    if operator(blank).is_complex() != data.is_complex():
        have, want = ("complex", "real") if data.is_complex() else ("real", "complex")
        raise ValueError(f"y is {have}, but {type(operator).__name__} gives {want} measurements.")
    groups, noise_level = _gaussian(Measurement(data, operator, likelihood))
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")

    network = _moved(_as_prior(prior, DTYPES[dtype], prediction, schedule), target)
    network.check_shape(operator.in_shape)
    inner = CheckpointedPrior(network) if checkpoint else network
    counted = CountedPrior(_tiled(inner, operator.in_shape, tile))
    image_range = network.image_range if data_range is None else data_range
    units = [ModelUnits.between(image_range, network.data_range, group) for group in groups]
    sampler = choose(method, preset, units[0].measurement, num_samples)

    drawing = Drawing(sampler, counted, seeds, num_samples, batch_size, home, callback)
    with _frozen(network):
        draws = drawing.draw(groups, units)

    from invsolve import __version__

    info = SolveInfo(
        method=sampler.name(),
        settings=sampler.settings(),
        evaluations=round(counted.forward_count / (num_samples * len(data))),
        backward_evaluations=round(counted.backward_count / (num_samples * len(data))),
        seconds=time.perf_counter() - started,
        seed=int(seed) if isinstance(seed, int | np.integer) else seeds,
        noise_std=noise_level,
        residual=draws.residual.tolist(),
        prior=os.fspath(prior) if isinstance(prior, str | os.PathLike) else type(prior).__name__,
        device=str(target),
        dtype=dtype,
        version=__version__,
        diagnostics={name: values.tolist() for name, values in draws.diagnostics.items()},
    )
    return Posterior(draws.samples.numpy() if as_numpy else draws.samples, info)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradients for weights: backward passes then keep a fifth less."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _moved(module: M, target: torch.device) -> M:
    """The module itself if all its arrays lie on `target`, otherwise a copy there: the caller's stays where it is."""
    device = torch.empty(0, device=target).device  # "cuda" with its index
    if all(array.device == device for array in chain(module.parameters(), module.buffers())):
        return module
    return copy.deepcopy(module).to(target)


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; expected 'auto', 'cpu', 'cuda', ...") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {str(name)!r}, but PyTorch finds no CUDA device here; use 'cpu' or 'auto'.")
    return target


def _validate(
    y: Tensor,
    operator: Operator,
    noise_std: float | Tensor | np.ndarray | None,
    noise: Noise | None,
    num_samples: int,
    target: torch.device,
) -> tuple[Tensor, Noise]:
    """y as a batch on `target` in the operator's precision, with 0 where no image reaches it; and its noise."""
    if tuple(y.shape) == operator.out_shape:
        y = y[None]
    operator.check_output(y)
    if not (y.is_floating_point() or y.is_complex()):
        raise ValueError(f"y has type {y.dtype}; convert it to floating point in the units the operator gives.")
    double = operator.dtype == torch.float64
    if y.is_complex():
        y = y.to(torch.complex128 if double else torch.complex64)
    else:
        y = y.to(torch.float64 if double else torch.float32)
    if len(y) == 0:
        raise ValueError("y is an empty batch.")
    y = operator.restrict(y.to(target))
    if not bool(torch.isfinite(y).all()):
        raise ValueError("y holds NaN or Inf; mask lost entries with a Mask operator instead.")
    if noise_std is None and noise is None:
        noise = getattr(operator, "noise", None)  # what a deepinv physics brings
    if (noise_std is None) == (noise is None):
        raise ValueError("give the noise of y: either noise_std=... (Gaussian, in the units of y) or noise=...")
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; expected at least 1.")
    if isinstance(noise_std, np.ndarray):
        noise_std = torch.as_tensor(noise_std)
    return y, noise if noise is not None else GaussianNoise(noise_std if noise_std is not None else 0.0)


def _check_foreign(operator: Operator, target: torch.device) -> None:
    """Dot-test operators of classes that are not this project's."""
    parts = [type(part).__module__ for part in operator.modules() if isinstance(part, Operator)]
    if isinstance(operator, LinearOperator) and any(name.partition(".")[0] != "invsolve" for name in parts):
        check_adjoint(operator, torch.empty(0, dtype=operator.dtype, device=target))


def _as_prior(
    prior: Prior | nn.Module | str | os.PathLike[str],
    dtype: torch.dtype | None,
    prediction: Prediction | None,
    schedule: Schedule | str | None,
) -> Prior:
    if isinstance(prior, str | os.PathLike):
        return load_prior(prior, dtype=dtype)
    if isinstance(prior, UNetPrior) and dtype is not None and prior.dtype != dtype:
        with torch.random.fork_rng(devices=[]):  # initial weights draw from the global generator
            twin = UNetPrior(prior.config, dtype)
        twin.load_state_dict(prior.state_dict())
        return twin
    if isinstance(prior, Prior):
        return prior
    if prediction is None or schedule is None:
        raise ValueError(
            "a bare network needs prediction= (epsilon, x0, v, score, velocity or edm) "
            "and schedule= (vp, ve, edm, flow, ...)."
        )
    return wrap(prior, prediction=prediction, schedule=schedule)


def _tiled(prior: Prior, shape: tuple[int, ...], tile: int | str | None) -> Prior:
    if tile is None or len(shape) < 2 or (tile == "auto" and shape[-1] * shape[-2] <= TILE**2):
        return prior
    side = TILE if tile == "auto" else int(tile)
    if prior.shape is not None and prior.shape[-2:] != (None, None):
        return prior  # made for one size, which the shape check has already compared
    return TiledPrior(prior, side, min(64, side // 3))


def _gaussian(measurement: Measurement) -> tuple[list[Measurement], float]:
    """The measurement with one Gaussian noise level, and the level of y as it was given (its mean if it varies).

    Noise that varies from entry to entry becomes white of level 1 when each entry is divided by its standard deviation.
    Where it varies from image to image, every image becomes a measurement of its own.
    """
    noise = measurement.noise.gaussian(measurement.y)
    if not isinstance(noise.std, Tensor) or noise.std.numel() == 1:
        return [Measurement(measurement.y, measurement.operator, GaussianNoise(float(noise.std)))], float(noise.std)
    if noise.std.ndim == measurement.y.ndim and len(noise.std) == len(measurement.y) > 1:
        pairs = [
            _gaussian(Measurement(y[None], measurement.operator, GaussianNoise(std[None])))
            for y, std in zip(measurement.y, noise.std, strict=True)
        ]
        return [group for groups, _ in pairs for group in groups], sum(level for _, level in pairs) / len(pairs)
    std = noise.std.to(measurement.y.real if measurement.y.is_complex() else measurement.y)
    shape = measurement.operator.out_shape
    if std.ndim > len(shape) + 1 or not _broadcasts(std.shape, (1, *shape)):
        raise ValueError(f"noise_std has shape {tuple(std.shape)}, which does not broadcast to y, {(1, *shape)}.")
    if not bool((std > 0).all()):
        raise ValueError("noise_std is 0 for some entries of y and not for others; give those a small positive one.")
    weights = (1 / std).expand(1, *shape)[0]
    if not isinstance(measurement.operator, LinearOperator):
        # Weights of mean square 1: a nonlinear operator keeps its scale, which model units cannot set right.
        level = float(weights.square().mean().rsqrt())
        balanced = WeightedNonlinear(measurement.operator, level * weights)
        return [Measurement(measurement.y * (level * weights), balanced, GaussianNoise(level))], float(std.mean())
    whitened = Measurement(measurement.y * weights, Weighted(measurement.operator, weights), GaussianNoise(1.0))
    return [whitened], float(std.mean())


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return all(have in (1, want) for have, want in pairs)
