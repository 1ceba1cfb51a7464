"""The shipped priors: denoising, samples from noise, faces, MRI, CT and time, beside the figures to reach.

    python tests/benchmarks/priors.py [--only denoise sampling faces mri ct time] [--limit N] [--samples S]
        [--natural DATA] [--faces FOLDER] [--kspace FILE] [--ct FOLDER]

DATA holds one folder of photographs each for `--sets` and `--train`. None of the images measured here may have been
trained on. A prior may be named by its checkpoint: --natural-prior, --mri-prior, --ct-prior.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from priors_medical import ct, mri
from torch import Tensor

import invsolve
from invsolve.operators import SolveWarning
from invsolve.priors import Prior
from invsolve.problems.ffhq import DATA_RANGE, NOISE_STD, ffhq_problem

PUBLISHED = {
    "mcmaster": "CDnCNN 33.45 / 31.52 / 28.62, FFDNet 34.66 / 32.35 / 29.18",
    "cbsd68": "CDnCNN 33.89 / 31.23 / 27.92, FFDNet 33.87 / 31.21 / 27.96",
}
"""PSNR in dB at 15, 25 and 50, from the papers' tables for colour images (FFDNet: arXiv 1710.04026)."""

FACE_GOALS = {"ffhq-sr4": 28.5, "ffhq-random": 30.0, "ffhq-gaussian": 28.5, "ffhq-motion": 28.5}


def load(folder: Path, limit: int | None = None) -> list[Tensor]:
    """Photographs as (1, 3, H, W) on [0, 1]."""
    images = []
    for path in sorted(p for p in folder.iterdir() if p.is_file())[:limit]:
        array = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255
        images.append(torch.from_numpy(array).permute(2, 0, 1)[None])
    return images


def psnr(estimate: Tensor, truth: Tensor) -> float:
    return -10 * math.log10(float((estimate.clamp(0, 1) - truth).square().mean()))


@torch.inference_mode()
def denoise(args: argparse.Namespace) -> None:
    prior = invsolve.load_prior(args.natural_prior)
    print("\nDenoising, colour, noise on the whole image and not clipped; PSNR in dB at 15 / 25 / 50 (over 255)")
    for name in args.sets:
        images = load(args.natural / name, args.limit)
        scores = []
        for level in (15, 25, 50):
            std, values = level / 255, []
            for index, clean in enumerate(images):
                noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(index))
                denoised = prior.denoise(2 * (clean + std * noise) - 1, 2 * std)
                values.append(psnr((denoised + 1) / 2, clean))
            scores.append(float(np.mean(values)))
        ours = " / ".join(f"{score:.2f}" for score in scores)
        print(
            f"  {name:10s} ({len(images)}) {ours}; {PUBLISHED.get(name, 'nothing published at these levels')}",
            flush=True,
        )


def statistics(images: Tensor) -> tuple[float, float, float]:
    """(slope of the power spectrum, kurtosis of the gradients pooled, median of it over the images), of grey values.

    The slope is that of a line through log power over log frequency from 0.03 to 0.4 cycles per pixel.
    """
    grey = images.mean(1).double()
    size = grey.shape[-1]
    window = torch.hann_window(size, periodic=False, dtype=torch.float64)
    centred = (grey - grey.mean((-2, -1), keepdim=True)) * window * window[:, None]
    power = torch.fft.fft2(centred).abs().square().mean(0)
    frequency = torch.fft.fftfreq(size, dtype=torch.float64)
    radius = torch.hypot(frequency[:, None], frequency)
    edges = torch.logspace(math.log10(0.03), math.log10(0.4), 13, dtype=torch.float64)
    points = []
    for low, high in pairwise(edges):
        ring = (radius >= low) & (radius < high)
        if bool(ring.any()):
            points.append((float(radius[ring].log().mean()), float(power[ring].mean().log())))
    slope = float(np.polyfit(*zip(*points, strict=True), 1)[0])
    gradients = torch.cat((grey.diff(dim=-1).flatten(1), grey.diff(dim=-2).flatten(1)), 1)
    pooled = gradients.flatten()
    each = gradients.pow(4).mean(1) / gradients.square().mean(1).square().clamp_min(1e-24)
    return slope, float(pooled.pow(4).mean() / pooled.square().mean() ** 2), float(each.median())


@torch.inference_mode()
def generate(prior: Prior, count: int, size: int, steps: int, churn: float) -> Tensor:
    """Samples on [0, 1] from pure noise: Heun's method of arXiv 2206.00364, algorithm 2."""
    rho, high, low = 7.0, 80.0, 0.01
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = [*((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho).tolist(), 0.0]
    images = []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        x = high * torch.randn((1, 3, size, size), generator=generator)
        for sigma, following in pairwise(levels):
            gamma = min(churn / steps, math.sqrt(2) - 1) if 0.05 <= sigma <= 50 else 0.0
            raised = sigma * (1 + gamma)
            x = x + math.sqrt(raised**2 - sigma**2) * torch.randn(x.shape, generator=generator)
            slope = (x - prior.denoise(x, raised)) / raised
            new = x + (following - raised) * slope
            if following > 0:
                slope = (slope + (new - prior.denoise(new, following)) / following) / 2
                new = x + (following - raised) * slope
            x = new
        images.append((x + 1) / 2)
    return torch.cat(images)


def sampling(args: argparse.Namespace) -> None:
    prior = invsolve.load_prior(args.natural_prior)
    rng, size, crops = np.random.default_rng(0), args.sample_size, []
    for image in load(args.natural / args.train):
        for _ in range(4):
            top, left = (int(rng.integers(n - size + 1)) for n in image.shape[-2:])
            crops.append(image[..., top : top + size, left : left + size])
    training = statistics(torch.cat(crops))
    samples = generate(prior, args.count, size, args.sampling_steps, args.churn)
    ours = statistics(samples.clamp(0, 1))
    print(
        f"\n{args.count} samples of {size} x {size} from pure noise, {args.sampling_steps} steps, churn {args.churn:g}"
    )
    names = ("slope of the power spectrum", "kurtosis of the gradients", "the same, median image")
    for name, mine, theirs in zip(names, ours, training, strict=True):
        off = mine / theirs - 1
        verdict = "reached" if abs(off) <= 0.15 else "MISSED"
        print(f"  {name:28s} {mine:8.2f}, training set {theirs:8.2f}, {100 * off:+.0f} % (goal 15 %) {verdict}")
    pixels = (samples.clamp(0, 1) * 255 + 0.5).byte().permute(0, 2, 3, 1)
    columns = math.ceil(math.sqrt(args.count))
    sheet = Image.new("RGB", (columns * size, math.ceil(args.count / columns) * size))
    for index, picture in enumerate(pixels):
        sheet.paste(Image.fromarray(picture.numpy()), (index % columns * size, index // columns * size))
    sheet.save(args.grid)
    print(f"  grid: {args.grid}", flush=True)


def faces(args: argparse.Namespace) -> None:
    images = [2 * image - 1 for image in load(args.faces, args.limit)]
    print(
        f"\nFaces ({len(images)}), 256 x 256, noise {NOISE_STD} on [-1, 1], method {args.method}, preset {args.preset};"
        f" PSNR in dB of the mean of {args.samples} samples (single samples)"
    )
    for name, goal in FACE_GOALS.items():
        if args.tasks and not any(part in name for part in args.tasks):
            continue
        problem = ffhq_problem(name)
        means, singles, seconds = [], [], []
        for index, image in enumerate(images):
            measured = problem.measure(image, torch.Generator().manual_seed(index))
            posterior = invsolve.solve(
                measured.y,
                problem.operator,
                noise_std=NOISE_STD,
                prior=args.natural_prior,
                data_range=DATA_RANGE,
                method=args.method,
                preset=args.preset,
                num_samples=args.samples,
            )
            truth = (image + 1) / 2
            means.append(psnr((posterior.mean + 1) / 2, truth))
            singles.append(float(np.mean([psnr((sample + 1) / 2, truth) for sample in posterior.samples])))
            seconds.append(posterior.info.seconds)
        mean = float(np.mean(means))
        verdict = "reached" if mean >= goal else "MISSED"
        how = f"{posterior.info.method}, {posterior.info.evaluations} evaluations a sample"
        print(
            f"  {name:14s} {mean:.2f} ({np.mean(singles):.2f}), goal {goal} {verdict}; {how}, "
            f"{np.mean(seconds):.0f} s an image",
            flush=True,
        )


@torch.inference_mode()
def evaluation_time(args: argparse.Namespace) -> None:
    print(f"\nOne evaluation at 256 x 256, {torch.get_num_threads()} threads, shortest of 20 (goal: 100 ms)")
    for name in (args.natural_prior, args.mri_prior, args.ct_prior):
        prior = invsolve.load_prior(name)
        x, times = torch.randn(1, int(prior.shape[0]), 256, 256), []
        for _ in range(20):
            started = time.perf_counter()
            prior.denoise(x, 0.3)
            times.append(time.perf_counter() - started)
        print(f"  {name}: {1000 * min(times):.0f} ms (median {1000 * float(np.median(times)):.0f})", flush=True)


PARTS = {"denoise": denoise, "sampling": sampling, "faces": faces, "mri": mri, "ct": ct, "time": evaluation_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", type=int, help="images, faces or slices of each kind")
    parser.add_argument("--natural", type=Path, default=Path("data/natural"))
    parser.add_argument("--sets", nargs="+", default=["mcmaster", "set5"])
    parser.add_argument("--train", default="train", help="folder of the training photographs, for their statistics")
    parser.add_argument("--faces", type=Path, default=Path("data/faces/ffhq"))
    parser.add_argument("--kspace", type=Path, default=Path("data/mri/brain_head_8coil_full_ksp.npy"))
    parser.add_argument("--ct", type=Path, default=Path("data/ct"))
    for name in ("natural", "mri", "ct"):
        parser.add_argument(f"--{name}-prior", default=name, help="name or checkpoint")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tasks", nargs="+", help="parts of task names of faces and mri, to run only those")
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 256], help="of CT images")
    parser.add_argument("--views", nargs="+", type=int, default=[60, 30])
    parser.add_argument("--i0", type=float, default=1e5, help="photons per ray")
    parser.add_argument("--iterations", type=int, default=200, help="of the classical methods")
    parser.add_argument("--count", type=int, default=16, help="samples from pure noise")
    parser.add_argument("--sample-size", type=int, default=256)
    parser.add_argument("--sampling-steps", type=int, default=40)
    parser.add_argument("--churn", type=float, default=0.0, help="S_churn of the sampling from noise; 0 for an ODE")
    parser.add_argument("--grid", type=Path, default=Path("samples.png"))
    args = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    # Short inner solves are how the samplers are meant to run.
    warnings.simplefilter("ignore", SolveWarning)
    for part in args.only:
        PARTS[part](args)


if __name__ == "__main__":
    main()
