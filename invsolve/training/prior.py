"""Training of a `UNetPrior` with the EDM loss, resumable after a kill."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from invsolve.priors.unet import UNetConfig, UNetPrior
from invsolve.training.data import CropSource, load_images
from invsolve.training.medical import AttenuationSource, ComplexSource, ct_planes, mri_planes
from invsolve.training.scenes import dead_leaves, mixed_scenes
from invsolve.training.slices import held_out, read_slices

Images = Literal["photographs", "mri", "ct"]
SceneStyle = Literal["leaves", "mixed"]

TABLE_SIGMAS = (5 / 255, 15 / 255, 25 / 255, 50 / 255, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides the result of a training run.

    Args:
        network: architecture and data range.
        steps: optimiser steps; may be changed when a run is resumed.
        batch_size: crops per step.
        crop: side of the square crops in pixels; a multiple of the network's stride.
        learning_rate: peak of the cosine schedule (linear warm-up over `warmup` steps).
        warmup: warm-up steps.
        ema_decay: decay of the exponential moving average of the weights, reached gradually.
        log_sigma_mean: mean of log(sigma), P_mean of arXiv 2206.00364, Table 1.
        log_sigma_std: standard deviation of log(sigma), P_std there.
        gradient_clip: largest norm of a gradient.
        scenes: number of procedurally generated scenes to mix in: dead leaves, or simulated anatomy.
        scene_share: share of the crops that come from them.
        seed: decides initial weights, crops and noise.
        images: "photographs", "mri" (complex slices) or "ct" (attenuation); how data are read, augmented and simulated.
        scene_style: of photographs: "leaves", or "mixed" with text, lines, checks and gradients as well.
    """

    network: UNetConfig = field(default_factory=UNetConfig)
    steps: int = 20_000
    batch_size: int = 16
    crop: int = 64
    learning_rate: float = 1e-3
    warmup: int = 500
    ema_decay: float = 0.9995
    log_sigma_mean: float = -1.2
    log_sigma_std: float = 1.2
    gradient_clip: float = 1.0
    scenes: int = 300
    scene_share: float = 0.15
    seed: int = 0
    # A state from before a field was there counts as made with the field's default, so it must mean what was done then.
    images: Images = "photographs"
    scene_style: SceneStyle = "leaves"

    def __post_init__(self) -> None:
        stride = 2 ** (len(self.network.widths) - 1)
        if self.crop < stride or self.crop % stride:
            raise ValueError(f"crop is {self.crop}; expected a positive multiple of {stride}.")
        for name in ("steps", "batch_size", "learning_rate", "gradient_clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number.")
        for name, known in (("images", get_args(Images)), ("scene_style", get_args(SceneStyle))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}.")
        channels = {"mri": 2, "ct": 1}.get(self.images, self.network.channels)
        if self.network.channels != channels:
            raise ValueError(f"a network for {self.images} has {channels} channels, not {self.network.channels}.")

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then half a cosine down to a hundredth of the peak."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


Report = Callable[[int, int, float, float], None]


def train_prior(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: TrainingSettings,
    *,
    device: torch.device | str = "cpu",
    checkpoint_every: float = 300.0,
    fresh: bool = False,
    start: str | os.PathLike[str] | None = None,
    report: Report | None = None,
) -> UNetPrior:
    """Train a denoiser on a folder of images and write it to `out` (float16 safetensors).

    The resumable state lies beside it, in `<out>.state`, rewritten every `checkpoint_every` seconds, at the end, and on
    Ctrl-C or `SystemExit`, which lose no step; a call that finds one goes on from there.

    Args:
        data: folder of images or a packed file, see `load_images` and `read_slices`; of CT, the patients of `held_out`
            are left out.
        out: safetensors file to write.
        settings: hyper-parameters.
        device: where to train; bfloat16 autocast is used where the device computes it natively.
        checkpoint_every: seconds between checkpoints.
        fresh: start over although a state file is there, and replace it at once.
        start: checkpoint of the same network that a new run begins with, instead of random weights.
        report: called as report(step, steps, mean loss, images per second) every ten steps.

    Returns:
        The averaged (EMA) model.

    Raises:
        ValueError: unusable data, or a state file of a run with other settings.
    """
    out, device = Path(out), torch.device(device)
    state_path = out.with_name(out.name + ".state")
    network = settings.network
    source = _source(data, settings)

    with torch.random.fork_rng(devices=[]):  # initial weights draw from the global generator
        torch.manual_seed(settings.seed)
        model, average = UNetPrior(network).to(device).train(), UNetPrior(network).to(device).eval()
    if start is not None:
        _start(model, start, network)
    average.load_state_dict(model.state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    first = 0
    if state_path.exists() and fresh:
        _checkpoint(state_path, 0, settings, model, average, optimiser)
    elif state_path.exists():
        first = _resume(state_path, settings, model, average, optimiser, device)
    if first >= settings.steps:  # finished before, perhaps killed between writing the state and writing `out`
        average.save(out)

    def save() -> None:
        _checkpoint(state_path, done, settings, model, average, optimiser)
        average.save(out)

    done = first
    saved = reported = time.monotonic()
    losses: list[Tensor] = []
    try:
        for step in range(first, settings.steps):
            for group in optimiser.param_groups:
                group["lr"] = settings.rate(step)
            batch = source.batch(settings.batch_size, settings.seed, step).to(device)
            loss = _loss(model, batch, settings, step)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            decay = min(settings.ema_decay, (1 + step) / (10 + step))
            with _signals_held(), torch.no_grad():
                optimiser.step()
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
                done = step + 1
            losses.append(loss.detach())

            now = time.monotonic()
            if report and len(losses) == 10:
                mean = float(torch.stack(losses).mean())
                if not math.isfinite(mean):
                    raise ValueError(f"the loss is {mean} at step {step}; lower the learning rate.")
                report(done, settings.steps, mean, 10 * settings.batch_size / (now - reported))
                reported, losses = now, []
            if now - saved > checkpoint_every or done == settings.steps:
                save()
                saved = time.monotonic()
    except (KeyboardInterrupt, SystemExit):
        if done > first:
            save()
        raise
    return average


@contextmanager
def _signals_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is done, so that what it changes is never half-changed."""
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, lambda number, frame: came.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler or signal.SIG_DFL)
        for late in came:
            signal.raise_signal(late)


class Source(Protocol):
    """Where batches come from: photographs as uint8, everything else as float32 in model units."""

    def batch(self, size: int, seed: int, step: int) -> Tensor: ...


def _source(data: str | os.PathLike[str], settings: TrainingSettings) -> Source:
    crop, share, seed = settings.crop, settings.scene_share, settings.seed
    if settings.images == "mri":
        return ComplexSource(read_slices(data, "mri"), settings.scenes, crop, share, seed)
    if settings.images == "ct":
        training, _ = held_out(read_slices(data, "ct"))
        return AttenuationSource(training, settings.scenes, crop, share, seed)
    channels = settings.network.channels
    make = mixed_scenes if settings.scene_style == "mixed" else dead_leaves
    scenes = make(settings.scenes, max(256, crop), channels, seed)
    return CropSource(load_images(data, channels), scenes, crop, share)


def _start(model: UNetPrior, path: str | os.PathLike[str], network: UNetConfig) -> None:
    first = UNetPrior.load(path)
    shape = ("channels", "widths", "blocks", "embedding")
    differing = [name for name in shape if getattr(first.config, name) != getattr(network, name)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{path} cannot start this run: its {name} are {getattr(first.config, name)}, "
            f"asked are {getattr(network, name)}."
        )
    model.load_state_dict(first.state_dict())


def _loss(model: UNetPrior, batch: Tensor, settings: TrainingSettings, step: int) -> Tensor:
    """EDM loss (arXiv 2206.00364, eq. 8 with the weight of Table 1) on one batch of a `Source`."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence((settings.seed, step)).generate_state(1)[0]))
    low, high = settings.network.data_range
    clean = batch.float() / 255 * (high - low) + low if batch.dtype == torch.uint8 else batch
    log_sigma = settings.log_sigma_mean + settings.log_sigma_std * torch.randn(
        clean.shape[0], 1, 1, 1, generator=generator
    )
    sigma = log_sigma.exp().to(clean.device)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    weight = (sigma**2 + settings.network.sigma_data**2) / (sigma * settings.network.sigma_data) ** 2
    return (weight * (model.precondition(clean + sigma * noise, sigma) - clean) ** 2).mean()


def _fixed(settings: TrainingSettings) -> dict[str, Any]:
    """The settings that a resumed run must share; `steps` may grow or shrink."""
    fixed = {key: value for key, value in asdict(settings).items() if key != "steps"}
    del fixed["network"]["image_range"]  # for users of the result alone
    return fixed


def _checkpoint(
    path: Path,
    step: int,
    settings: TrainingSettings,
    model: UNetPrior,
    average: UNetPrior,
    optimiser: torch.optim.Optimizer,
) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    state = {
        "step": step,
        "settings": _fixed(settings),
        "model": model.network.state_dict(),
        "average": average.network.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _resume(
    path: Path,
    settings: TrainingSettings,
    model: UNetPrior,
    average: UNetPrior,
    optimiser: torch.optim.Optimizer,
    device: torch.device,
) -> int:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        stored = _with_defaults(state["settings"])
    except Exception as error:
        raise ValueError(f"{path} is not a readable training state; start over with --fresh.") from error
    wanted = _fixed(settings)
    differing = [key for key in wanted if stored.get(key) != wanted[key]]
    if differing:
        raise ValueError(
            f"{path} belongs to a run with another {', '.join(differing)} "
            f"({stored.get(differing[0])} there, {wanted[differing[0]]} asked); "
            "use the same settings, another output, or --fresh."
        )
    model.network.load_state_dict(state["model"])
    average.network.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _with_defaults(stored: dict[str, Any]) -> dict[str, Any]:
    """Settings of a state that an earlier version wrote: fields that came later have the value they had in effect."""
    current = _fixed(TrainingSettings())
    return {**current, **stored, "network": {**current["network"], **stored["network"]}}


@torch.inference_mode()
def psnr_by_sigma(
    prior: UNetPrior,
    folder: str | os.PathLike[str],
    sigmas: tuple[float, ...] = TABLE_SIGMAS,
    limit: int = 24,
    images: Images = "photographs",
) -> list[tuple[float, float, float]]:
    """Denoising quality on a folder of images, with noise that is the same in every call.

    Args:
        prior: model to measure.
        folder: validation images; of CT data, only the patients of `held_out` are taken.
        sigmas: noise standard deviations as a share of the range from black to white (that of the model, 2).
        limit: at most so many images, each cut to its central 256 x 256 pixels.
        images: what they are, as in `TrainingSettings`.

    Returns:
        One (sigma, PSNR of the noisy image, PSNR of the denoised image) per level, in dB, means over the images.
    """
    low, high = prior.data_range
    device = next(prior.parameters()).device
    planes = _validation(folder, prior, images)[:limit]
    rows = []
    for sigma in sigmas:
        noisy_db, denoised_db = 0.0, 0.0
        for index, image in enumerate(planes):
            top, left = (max(0, (n - 256) // 2) for n in image.shape[-2:])
            clean = image[None, :, top : top + 256, left : left + 256].to(device)
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(index)).to(device)
            noisy = clean + sigma * noise
            denoised = (prior.denoise(noisy * (high - low) + low, sigma * (high - low)) - low) / (high - low)
            if images == "photographs":
                denoised = denoised.clamp(0, 1)
            noisy_db += -10 * math.log10(float((noisy - clean).square().mean()))
            denoised_db += -10 * math.log10(float((denoised - clean).square().mean()))
        rows.append((sigma, noisy_db / len(planes), denoised_db / len(planes)))
    return rows


def _validation(folder: str | os.PathLike[str], prior: UNetPrior, images: Images) -> list[Tensor]:
    """Images as shares of the range from black to white."""
    low, high = prior.data_range
    if images == "photographs":
        return [image.float() / 255 for image in load_images(folder, prior.config.channels)]
    slices = read_slices(folder, images)
    planes = [ct_planes(item) for item in held_out(slices)[1]] if images == "ct" else [mri_planes(s) for s in slices]
    return [(plane - low) / (high - low) for plane in planes]
