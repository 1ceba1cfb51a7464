"""One photograph through `invsolve.solve`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invsolve.cli.errors import UserError
from invsolve.cli.noise import estimate_noise, parse_noise, rounding_noise
from invsolve.cli.options import RestoreOptions
from invsolve.cli.photo import Floats, Photo, check_size
from invsolve.cli.progress import Reporter
from invsolve.cli.tasks import LoadedPrior, operator_for
from invsolve.inference import SolveInfo, solve
from invsolve.operators import GaussianNoise, Grayscale
from invsolve.problems.photo import Colorize, Inpaint, PhotoTask, SuperResolve

SIMULATED_NOISE = {"denoise": 0.1}
SIMULATED_NOISE_OTHERWISE = 0.02


@dataclass(frozen=True, eq=False)
class Restored:
    """A restored photograph.

    Args:
        photo: the photograph whose depth, profile and EXIF the outputs take.
        samples: (H, W, C) each, on [0, 1]; views of one tensor, not to be changed.
        mean: their mean.
        spread: their standard deviation.
        alpha: opacity in the size of the result.
        degraded: what was restored, if the degradation was simulated.
        record: how it was made, for the sidecar.
        summary: the same in a few words.
    """

    photo: Photo
    samples: list[Floats]
    mean: Floats
    spread: Floats
    alpha: Floats | None
    degraded: Floats | None
    record: dict[str, Any]
    summary: str


def restore_photo(
    photo: Photo, task: PhotoTask, options: RestoreOptions, prior: LoadedPrior, shown: str, reporter: Reporter
) -> Restored:
    """Restore one photograph in memory.

    Raises:
        UserError: the task, the prior or the options do not fit this photograph.
    """
    photo = _prepare(photo, task, options, shown, reporter)
    if options.degrade:
        image_shape = _fit(lambda: task.usable_shape(_chw(photo.pixels)), shown)
        if image_shape != _chw(photo.pixels):
            reporter.say(f"cut from {photo.size} to {image_shape[2]} x {image_shape[1]} pixels to fit --scale")
            cut = (slice(image_shape[1]), slice(image_shape[2]))
            photo = replace(photo, pixels=photo.pixels[cut], alpha=None if photo.alpha is None else photo.alpha[cut])
    else:
        image_shape = task.image_shape(_chw(photo.pixels))
        check_size(f"the result for {shown}", image_shape[2], image_shape[1], options.max_pixels)
    operator, in_colour = operator_for(task, image_shape, prior, shown)
    frame = task.frame(image_shape)

    clean = _to_tensor(photo.pixels) if options.degrade else None
    if clean is not None:
        noise_std = parse_noise(options.noise_std)
        if noise_std is None:
            noise_std = SIMULATED_NOISE.get(task.name, SIMULATED_NOISE_OTHERWISE)
            reporter.say(f"degraded with noise of standard deviation {noise_std:g} (black = 0, white = 1)")
        generator = torch.Generator().manual_seed(_stream(options.seed))
        y = GaussianNoise(noise_std).sample(task.operator(image_shape)(clean), generator)
    else:
        noise_std = _noise_level(photo, task, options, reporter)
        y = _to_tensor(photo.pixels)
    if isinstance(task, Inpaint):
        y = y * task.known

    samples, info, messages = _solve(y, operator, noise_std, options, prior, shown, reporter)
    for message in messages:
        reporter.say(message)
    if in_colour:
        samples = torch.stack([Grayscale((3, *image_shape[1:]))(sample) for sample in samples])
    samples = samples[..., *frame]
    if not all(bool(torch.isfinite(sample).all()) for sample in samples):  # one by one: it makes copies
        raise UserError(f"{shown}: the result is not finite; try another --method, or --dtype float32.")
    images = [_to_floats(sample[0]) for sample in samples]
    if len(images) > 1:
        mean, spread = _to_floats(samples.mean(0)[0]), _to_floats(samples.std(0)[0])
    else:
        mean, spread = images[0], np.broadcast_to(np.float32(0), images[0].shape)
    record, summary = _record(info, noise_std, prior)
    if clean is not None:
        clean = clean[..., *frame]
        before, after = psnr(_comparable(y, clean), clean), psnr(_to_tensor(mean), clean)
        record["psnr_before"], record["psnr_after"] = round(before, 3), round(after, 3)
        summary = f"PSNR {before:.2f} dB before, {after:.2f} dB after; {summary}"
    alpha = photo.alpha
    if alpha is not None and options.degrade:
        alpha = alpha[frame]
    elif alpha is not None and isinstance(task, SuperResolve):
        alpha = _enlarge_alpha(alpha, task.scale)
    return Restored(photo, images, mean, spread, alpha, _to_floats(y[0]) if options.degrade else None, record, summary)


def _prepare(photo: Photo, task: PhotoTask, options: RestoreOptions, shown: str, reporter: Reporter) -> Photo:
    """The photograph as the task takes it: colourising starts from grey."""
    if not isinstance(task, Colorize):
        return photo
    channels = photo.pixels.shape[-1]
    if options.degrade and channels == 1:
        raise UserError(f"{shown} is grey already; --degrade with --task colorize needs a colour photograph.")
    if not options.degrade and channels == 3:
        reporter.say("has colours, which are ignored")
        return replace(photo, pixels=_to_floats(Grayscale(_chw(photo.pixels))(_to_tensor(photo.pixels))[0]))
    return photo


def _noise_level(photo: Photo, task: PhotoTask, options: RestoreOptions, reporter: Reporter) -> float:
    given = parse_noise(options.noise_std)
    if given is not None:
        return given
    known = None
    if isinstance(task, Inpaint) and task.known.shape == photo.pixels.shape[:2]:
        known = task.known.numpy() != 0
    estimate = estimate_noise(photo.pixels, known)
    level = max(estimate, rounding_noise(photo.depth))
    reporter.say(f"noise standard deviation estimated as {level:.4f} (black = 0, white = 1), {255 * level:.1f}/255")
    return min(level, 1.0)


def _solve(
    y: Tensor,
    operator: Any,
    noise_std: float,
    options: RestoreOptions,
    prior: LoadedPrior,
    shown: str,
    reporter: Reporter,
) -> tuple[Tensor, SolveInfo, list[str]]:
    def callback(step: int, total: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        reporter.step(step, total)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            posterior = solve(
                y,
                operator,
                noise_std=noise_std,
                prior=prior.prior,
                method=options.method,
                preset=options.preset,
                num_samples=options.samples,
                seed=options.seed,
                device=options.device,
                dtype=options.dtype,
                data_range=(0.0, 1.0),
                tile=options.tile_size(),
                checkpoint=options.checkpoint,
                callback=callback,
            )
        except (ValueError, FileNotFoundError) as error:
            raise UserError(f"{shown}: {error}") from error
    messages = sorted({str(w.message).splitlines()[0] for w in caught if issubclass(w.category, UserWarning)})
    return posterior.samples, posterior.info, messages


def _record(info: SolveInfo, noise_std: float, prior: LoadedPrior) -> tuple[dict[str, Any], str]:
    residuals = [row[0] for row in info.residual]
    record = {
        "method": info.method,
        "method_settings": info.settings,
        "evaluations": info.evaluations,
        "backward_evaluations": info.backward_evaluations,
        "seconds": round(info.seconds, 3),
        "seed": info.seed,
        "noise_std": noise_std,
        "noise_std_unit": "black = 0, white = 1",
        "data_residual": [round(r, 5) for r in residuals],
        "data_residual_meaning": "||A x - y|| / (noise_std sqrt(m)), near 1 where the result explains the data"
        if noise_std > 0
        else "||A x - y||",
        **({"diagnostics": info.diagnostics} if info.diagnostics else {}),
        "prior": prior.name,
        "prior_sha256": prior.sha256,
        "device": info.device,
        "dtype": info.dtype,
    }
    mean = sum(residuals) / len(residuals)
    return record, f"{info.method}, {info.evaluations} evaluations, residual {mean:.2f}, {info.seconds:.1f} s"


def psnr(image: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio in dB for images on [0, 1], which are clipped to it first."""
    error = float((image.clamp(0, 1) - clean.clamp(0, 1)).square().mean(dtype=torch.float64))
    return -10 * float(np.log10(max(error, 1e-12)))


def _comparable(y: Tensor, clean: Tensor) -> Tensor:
    """A degraded photograph in the size and channels of the clean one."""
    if y.shape[-2:] != clean.shape[-2:]:
        y = F.interpolate(y, clean.shape[-2:], mode="bicubic", align_corners=False)
    return y.expand_as(clean)


def _enlarge_alpha(alpha: Floats, scale: int) -> Floats:
    large = F.interpolate(torch.from_numpy(alpha)[None, None], scale_factor=scale, mode="bicubic", align_corners=False)
    enlarged: Floats = large[0, 0].clamp(0, 1).numpy()
    return enlarged


def _fit(shape: Any, shown: str) -> tuple[int, ...]:
    try:
        found: tuple[int, ...] = shape()
    except ValueError as error:
        raise UserError(f"{shown}: {error}") from error
    return found


def _stream(seed: int) -> int:
    """Seed of the simulated noise, apart from those of the samples."""
    state = np.random.SeedSequence((seed, 0xDE6)).generate_state(2, np.uint32)
    return int(state[0]) << 32 | int(state[1])


def _chw(pixels: Floats) -> tuple[int, ...]:
    return (pixels.shape[2], pixels.shape[0], pixels.shape[1])


def _to_tensor(pixels: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]


def _to_floats(image: Tensor) -> Floats:
    """(C, H, W) -> (H, W, C), a view of the same memory where that is the CPU's."""
    array: Floats = image.detach().cpu().permute(1, 2, 0).numpy()
    return array
