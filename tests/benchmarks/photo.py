"""Photographs: PSNR of the default method beside scikit-image's classical methods, overhead, time and memory.

    python tests/benchmarks/photo.py DATA [--sets val set14 mcmaster] [--limit N]
                                          [--only quality overhead restore memory]

DATA holds one folder of photographs per set. Every photograph is cut to its central 256 x 256 pixels. Noise levels are
on [0, 1]. The classical methods' strengths are tuned on the first set, by PSNR against the truth, and kept for all.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import restoration
from torch import Tensor

import invsolve
from invsolve.operators import (
    Blur,
    Downsample,
    GaussianNoise,
    Identity,
    LinearOperator,
    Mask,
    Measurement,
    gaussian_kernel,
    random_mask,
)
from invsolve.samplers import DAPS, DDS, DPS, Sampler
from invsolve.units import ModelUnits

SIZE = 256
SHAPE = (3, SIZE, SIZE)
Classical = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""(y, kernel or mask, strength) -> estimate, both (H, W, 3) on [0, 1]."""


@dataclass(frozen=True)
class Task:
    """An operator, its noise, the classical methods to beat with their strengths to try, and by how much."""

    name: str
    operator: LinearOperator
    noise_std: float
    side: np.ndarray
    rivals: dict[str, tuple[Classical, tuple[float, ...]]]
    margin: float


def wiener(y: np.ndarray, kernel: np.ndarray, balance: float) -> np.ndarray:
    return np.stack([restoration.wiener(y[..., c], kernel, balance, clip=False) for c in range(3)], -1)


def unsupervised_wiener(y: np.ndarray, kernel: np.ndarray, _: float) -> np.ndarray:
    channels = [restoration.unsupervised_wiener(y[..., c], kernel, clip=False, rng=0)[0] for c in range(3)]
    return np.stack(channels, -1)


def biharmonic(y: np.ndarray, mask: np.ndarray, _: float) -> np.ndarray:
    return restoration.inpaint_biharmonic(y, mask == 0, channel_axis=-1)


def bicubic(y: np.ndarray, _: np.ndarray, __: float) -> np.ndarray:
    low = torch.from_numpy(y).permute(2, 0, 1)[None]
    high = torch.nn.functional.interpolate(low, scale_factor=4, mode="bicubic", align_corners=False)
    return high[0].permute(1, 2, 0).numpy()


def nl_means(y: np.ndarray, _: np.ndarray, strength: float) -> np.ndarray:
    return restoration.denoise_nl_means(y, h=strength, sigma=0.1, fast_mode=True, patch_size=5, channel_axis=-1)


def total_variation(y: np.ndarray, _: np.ndarray, weight: float) -> np.ndarray:
    return restoration.denoise_tv_chambolle(y, weight=weight, channel_axis=-1)


def tasks() -> list[Task]:
    kernel = gaussian_kernel(3.0, 61)
    mask = random_mask((SIZE, SIZE), 0.7, torch.Generator().manual_seed(0))
    balances = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6)
    return [
        Task(
            "Gaussian deblur (std 3, 61 taps, noise 0.025)",
            Blur(kernel, SHAPE, "circular"),
            0.025,
            kernel.numpy(),
            {"Wiener": (wiener, balances), "unsupervised Wiener": (unsupervised_wiener, (0.0,))},
            1.5,
        ),
        Task(
            "inpainting (70 % random, noise 0.025)",
            Mask(mask, SHAPE),
            0.025,
            mask.numpy(),
            {"biharmonic": (biharmonic, (0.0,))},
            2.0,
        ),
        Task(
            "super-resolution x4 (noise 0.025)",
            Downsample(4, SHAPE),
            0.025,
            mask.numpy(),
            {"bicubic": (bicubic, (0.0,))},
            0.8,
        ),
        Task(
            "denoising (noise 0.1)",
            Identity(SHAPE),
            0.1,
            mask.numpy(),
            {
                "non-local means": (nl_means, (0.04, 0.06, 0.08, 0.1)),
                "total variation": (total_variation, (0.06, 0.09, 0.12, 0.16)),
            },
            0.5,
        ),
    ]


def load(folder: Path, limit: int) -> list[Tensor]:
    images = []
    for path in sorted(p for p in folder.iterdir() if p.is_file())[:limit]:
        array = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255
        top, left = ((n - SIZE) // 2 for n in array.shape[:2])
        if top >= 0 and left >= 0:
            images.append(torch.from_numpy(array[top : top + SIZE, left : left + SIZE].copy()).permute(2, 0, 1)[None])
    return images


def psnr(estimate: Tensor, truth: Tensor) -> float:
    return -10 * math.log10(float((estimate.clamp(0, 1) - truth).square().mean()))


def to_numpy(x: Tensor) -> np.ndarray:
    return x[0].permute(1, 2, 0).double().numpy()


def from_numpy(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None].float()


def quality(args: argparse.Namespace) -> None:
    sets = {name: load(args.data / name, args.limit) for name in args.sets}
    print(
        f"\nPSNR in dB, means over {', '.join(f'{len(v)} of {k}' for k, v in sets.items())}; "
        f"method {args.method}, preset {args.preset}, {args.samples} sample(s)"
    )
    for task in tasks():
        measured = {
            name: [
                task.operator.restrict(
                    GaussianNoise(task.noise_std).sample(task.operator(x), torch.Generator().manual_seed(k))
                )
                for k, x in enumerate(images)
            ]
            for name, images in sets.items()
        }
        tuned = {}
        first = args.sets[0]
        for name, (method, strengths) in task.rivals.items():
            scores = [
                np.mean(
                    [
                        psnr(from_numpy(method(to_numpy(y), task.side, s)), x)
                        for x, y in zip(sets[first], measured[first], strict=True)
                    ]
                )
                for s in strengths
            ]
            tuned[name] = strengths[int(np.argmax(scores))]
        print(f"\n{task.name}; goal: {task.margin} dB over the best classical method")
        for name, images in sets.items():
            classical = {
                rival: np.mean(
                    [
                        psnr(from_numpy(method(to_numpy(y), task.side, tuned[rival])), x)
                        for x, y in zip(images, measured[name], strict=True)
                    ]
                )
                for rival, (method, _) in task.rivals.items()
            }
            ours, residuals, seconds, info = [], [], [], None
            for x, y in zip(images, measured[name], strict=True):
                posterior = invsolve.solve(
                    y,
                    task.operator,
                    noise_std=task.noise_std,
                    method=args.method,
                    preset=args.preset,
                    num_samples=args.samples,
                    prior=args.prior,
                )
                info = posterior.info
                ours.append(psnr(posterior.mean, x))
                residuals.append(np.mean(info.residual))
                seconds.append(info.seconds)
            gain = np.mean(ours) - max(classical.values())
            rivals = ", ".join(f"{rival} {value:.2f}" for rival, value in classical.items())
            how = f"{info.method}, {info.evaluations} evaluations a sample" if info else "nothing run"
            print(
                f"  {name:10s} invsolve {np.mean(ours):.2f} ({how}, "
                f"{np.median(seconds):.1f} s, residual {np.mean(residuals):.2f}); {rivals}; "
                f"gain {gain:+.2f} {'reached' if gain >= task.margin else 'MISSED'}",
                flush=True,
            )


def overhead(args: argparse.Namespace) -> None:
    """Time of a run over (evaluations x time of one evaluation alone), measured in turns; medians of the ratios."""
    prior = invsolve.load_prior(args.prior)
    x = torch.rand(1, *SHAPE)
    print("\nSampler overhead at 256 x 256: total time / (evaluations x time of one evaluation), goal 1.10")
    cases: list[tuple[str, Sampler, LinearOperator, bool]] = []
    for task in tasks():
        cases.append((f"DDS, {task.name}", DDS(num_steps=12), task.operator, False))
        cases.append((f"DAPS, {task.name}", DAPS(num_steps=6, ode_steps=2), task.operator, False))
    cases.append(("DPS (forward + backward), inpainting", DPS(num_steps=12), tasks()[1].operator, True))
    for name, sampler, operator, backward in cases:
        units = ModelUnits.between((0, 1), prior.data_range, Measurement(operator(x), operator, GaussianNoise(0.025)))
        ratios = []
        for _ in range(5):
            calls = 12
            state = torch.randn(1, *SHAPE)
            started = time.perf_counter()
            for _ in range(calls):
                if backward:
                    state.requires_grad_()
                    torch.autograd.grad(prior.denoise(state, 0.3).square().sum(), state)
                else:
                    with torch.no_grad():
                        prior.denoise(state, 0.3)
            alone = time.perf_counter() - started
            started = time.perf_counter()
            sampler(units.measurement, prior)
            ratios.append((time.perf_counter() - started) / alone)
        print(f"  {name:62s} {np.median(ratios):.3f}  (one evaluation {alone / calls * 1000:.0f} ms)", flush=True)


def run_restore(size: tuple[int, int], extra: list[str]) -> tuple[float, float]:
    """Seconds and peak memory (GiB) of one `invsolve restore` as its user runs it."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        small = (rng.random((max(2, size[1] // 16), max(2, size[0] // 16), 3)) * 255).astype(np.uint8)
        photo = Path(folder, "photo.png")
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(photo)
        command = [sys.executable, "-m", "invsolve", "restore", str(photo), "-o", str(Path(folder, "out.png")), *extra]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return seconds, max(peak, before) / 2**20


def restore(args: argparse.Namespace) -> None:
    print("\ninvsolve restore, one process from start to end")
    for name, extra in (
        ("denoise", ["--task", "denoise", "--noise-std", "0.05"]),
        ("deblur (Gaussian 3)", ["--task", "deblur", "--blur-sigma", "3", "--noise-std", "0.025"]),
    ):
        seconds, peak = run_restore((256, 256), extra)
        print(f"  256 x 256 {name}: {seconds:.1f} s (goal 15), peak {peak:.2f} GiB", flush=True)


def memory(args: argparse.Namespace) -> None:
    seconds, peak = run_restore(
        (4000, 3000),
        ["--task", "deblur", "--blur-sigma", "3", "--boundary", "circular", "--noise-std", "0.025", "--preset", "fast"],
    )
    print(f"\n4000 x 3000 circular deblur, preset fast: {seconds:.0f} s, peak {peak:.2f} GiB (goal 6)")


PARTS = {"quality": quality, "overhead": overhead, "restore": restore, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=["val", "set14", "mcmaster"])
    parser.add_argument("--limit", type=int, default=6, help="photographs per set")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--method", default="auto")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--prior", default="natural")
    args = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    for part in args.only:
        PARTS[part](args)


if __name__ == "__main__":
    main()
