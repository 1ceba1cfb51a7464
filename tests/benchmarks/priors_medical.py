"""The parts `mri` and `ct` of tests/benchmarks/priors.py."""

from __future__ import annotations

import argparse
import math
import warnings
from pathlib import Path

import torch
from baselines import fista, tuned, tuned_fbp, tv_prox, wavelet_prox
from skimage.metrics import structural_similarity
from torch import Tensor

import invsolve
from invsolve.operators import ParallelBeamCT
from invsolve.operators.ct_geometry import uniform_angles
from invsolve.operators.ct_noise import line_integrals
from invsolve.operators.noise_counts import StarvedRaysWarning
from invsolve.problems.mri import MRI_TASKS, accelerate, read_kspace
from invsolve.training.slices import Slice, held_out, read_slices

MU_WATER = 0.02
"""Attenuation of water in 1/mm."""

PIXEL_SIZES = {
    "A002304_19001231": 0.8262,
    "A002304_19010112": 0.6406,
    "A027284_19000925": 0.8789,
    "A027284_19001231": 0.9375,
    "A048383_19001231": 0.8125,
    "A048383_19010410": 0.7031,
    "A056642_19001229": 0.8008,
    "A056642_19010107": 0.7246,
    "A058062_19001231": 0.8359,
    "A058062_19010108": 0.9023,
    "A067967_19001006": 0.8730,
    "A067967_19001231": 0.9530,
    "A072894_19001203": 0.9531,
    "A072894_19010103": 0.8379,
}
"""mm, of the TCIA slices; 0.8 is taken for others."""


def psnr(estimate: Tensor, truth: Tensor, peak: float) -> float:
    return 20 * math.log10(peak) - 10 * math.log10(float((estimate - truth).square().mean()))


def magnitude(image: Tensor) -> Tensor:
    return image.square().sum(1).sqrt()[0]


def figures(db: float, similarity: tuple[float, float]) -> str:
    return f"{db:.2f} / {similarity[0]:.4f} ({similarity[1]:.4f})"


def mri(args: argparse.Namespace) -> None:
    kspace = read_kspace(args.kspace)
    prior = args.mri_prior
    print(
        f"\nMRI: {Path(args.kspace).name}, method {args.method}, preset {args.preset}, {args.samples} sample(s); "
        "PSNR in dB of the magnitude, with the largest value as peak, and SSIM with a range of the 99th percentile "
        "(of the largest value); weights tuned against the reference; "
        "goal: 2 dB and 0.02 over both"
    )
    names = [name for name in MRI_TASKS if not args.tasks or any(part in name for part in args.tasks)]
    for name in names:
        scan = accelerate(MRI_TASKS[name], kspace)
        truth = magnitude(scan.reference)
        peak = float(truth.max())

        def score(x: Tensor, truth: Tensor = truth, peak: float = peak) -> float:
            return psnr(magnitude(x), truth, peak)

        def similarity(x: Tensor, truth: Tensor = truth, peak: float = peak) -> tuple[float, float]:
            ours, theirs, bright = magnitude(x).numpy(), truth.numpy(), float(truth.quantile(0.99))
            ranges = (bright, peak)  # a few bright pixels of fat make the second one say little
            return tuple(float(structural_similarity(ours, theirs, data_range=r)) for r in ranges)

        # The corners of k-space hold next to no signal; those that were measured tell the noise.
        corners = scan.scale * torch.cat(
            [kspace[:, r, c].flatten() for r in (slice(16), slice(-16, None)) for c in (slice(16), slice(-16, None))]
        )
        noise_std = float(torch.view_as_real(corners).std())
        rows: dict[str, tuple[float, tuple[float, float], str]] = {}
        zero_filled = scan.operator.adjoint(scan.y)
        rows["zero-filled"] = (score(zero_filled), similarity(zero_filled), "")
        grid = (0.002, 0.004, 0.008, 0.016)
        proximals = {"l1-wavelet": wavelet_prox(scan.reference.shape[-1]), "TV": tv_prox()}
        for rival, prox in proximals.items():
            best, image, weight = tuned(
                grid,
                lambda w, prox=prox, scan=scan, start=zero_filled: fista(
                    scan.operator, scan.y, prox, w, start, args.iterations
                ),
                score,
            )
            rows[rival] = (best, similarity(image), f"weight {weight:g}")
        posterior = invsolve.solve(
            scan.y,
            scan.operator,
            noise_std=noise_std,
            prior=prior,
            method=args.method,
            preset=args.preset,
            num_samples=args.samples,
        )
        info = posterior.info
        ours = (score(posterior.mean), similarity(posterior.mean))
        single = (score(posterior.samples[0]), similarity(posterior.samples[0]))
        gains = (
            ours[0] - max(rows[k][0] for k in proximals),
            ours[1][0] - max(rows[k][1][0] for k in proximals),
        )
        verdict = "reached" if gains[0] >= 2 and gains[1] >= 0.02 else "MISSED"
        rivals = "; ".join(f"{k} {figures(*v[:2])} {v[2]}".rstrip() for k, v in rows.items())
        print(
            f"  {name:24s} invsolve {figures(*ours)}, a single sample {figures(*single)} "
            f"({info.method}, {info.evaluations} evaluations, {info.seconds:.0f} s, noise {noise_std:.4f}); {rivals}; "
            f"gain {gains[0]:+.2f} / {gains[1]:+.4f} {verdict}",
            flush=True,
        )


def attenuation(item: Slice, size: int) -> Tensor:
    """A slice in 1/mm, (1, 1, size, size), by averaging blocks of pixels; air is 0."""
    hounsfield = torch.from_numpy(item.pixels).float().clamp(-1000, 3071)[None, None]
    return MU_WATER * (1 + torch.nn.functional.avg_pool2d(hounsfield, hounsfield.shape[-1] // size) / 1000)


def ct(args: argparse.Namespace) -> None:
    _, validation = held_out(read_slices(args.ct, "ct"))
    patients = sorted({item.patient for item in validation})
    chosen = validation[: args.limit] if args.limit else validation
    print(
        f"\nCT: {len(chosen)} slices of the held-out patients {', '.join(patients)}; {args.i0:g} photons per ray, "
        f"method {args.method}, preset {args.preset}, mean of {args.samples} sample(s); "
        "PSNR in dB with a peak of 2000 HU, means over the slices; window, cutoff and weight tuned on every slice "
        "against the truth; "
        "goal: 3 dB over filtered back-projection, 1.5 dB over TV"
    )
    for size in args.sizes:
        for views in args.views:
            totals: dict[str, list[float]] = {"invsolve": [], "FBP": [], "TV": []}
            seconds, notes = [], []
            for index, item in enumerate(chosen):
                truth = attenuation(item, size)
                pixel = (
                    PIXEL_SIZES.get(item.name.removeprefix("tcia_covid19nysbu_"), 0.8) * item.pixels.shape[-1] / size
                )
                operator = ParallelBeamCT((1, size, size), uniform_angles(views), pixel_size=pixel)
                generator = torch.Generator().manual_seed(index)
                counts = torch.poisson(args.i0 * torch.exp(-operator(truth)), generator)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", StarvedRaysWarning)
                    integrals = line_integrals(counts, args.i0)

                def score(x: Tensor, truth: Tensor = truth) -> float:
                    return psnr(x, truth, 2 * MU_WATER)

                weighted, data = integrals.weighted(operator)
                best, image, how = tuned_fbp(operator, integrals.y, score)
                totals["FBP"].append(best)
                # In Hounsfield units over 1000, so that weights are comparable: x = mu / mu_water.
                scaled = MU_WATER * weighted
                start = image / MU_WATER
                best, _, weight = tuned(
                    (5.0, 10.0, 20.0, 40.0),
                    lambda w, scaled=scaled, data=data, start=start: fista(
                        scaled, data, tv_prox(lowest=0.0), w, start, args.iterations
                    ),
                    lambda x, score=score: score(x * MU_WATER),
                )
                totals["TV"].append(best)
                posterior = invsolve.solve(
                    data,
                    weighted,
                    noise_std=1.0,
                    prior=args.ct_prior,
                    method=args.method,
                    preset=args.preset,
                    num_samples=args.samples,
                )
                totals["invsolve"].append(score(posterior.mean.clamp_min(0)))
                seconds.append(posterior.info.seconds)
                notes.append(f"{item.name[-16:]}: FBP {how[0]} {how[1]}, TV {weight:g}")
            means = {k: sum(v) / len(v) for k, v in totals.items()}
            gains = means["invsolve"] - means["FBP"], means["invsolve"] - means["TV"]
            verdict = "reached" if gains[0] >= 3 and gains[1] >= 1.5 else "MISSED"
            print(
                f"  {size} x {size}, {views} views: "
                + ", ".join(f"{k} {v:.2f} ({', '.join(f'{x:.2f}' for x in totals[k])})" for k, v in means.items())
                + f"; gain {gains[0]:+.2f} over FBP, {gains[1]:+.2f} over TV {verdict}; "
                f"{sum(seconds) / len(seconds):.0f} s a slice; {'; '.join(notes)}",
                flush=True,
            )
