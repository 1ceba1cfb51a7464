"""Many samples of many images as few runs of a sampler, as large as the memory allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve.operators.measurement import Measurement
from invsolve.operators.noise import GaussianNoise
from invsolve.priors.base import Prior
from invsolve.samplers.base import Callback, Sampler
from invsolve.samplers.batches import MicroBatches, largest_piece
from invsolve.units import ModelUnits


@dataclass(frozen=True)
class Draws:
    """What runs of a sampler left.

    Args:
        samples: in image units, shape (S, B, *image shape).
        residual: || A x - y || / (noise_std sqrt(m)) of each sample, shape (S, B); norms alone where the noise is 0.
        diagnostics: named numbers of the method's own, shape (S, B) each.
    """

    samples: Tensor
    residual: Tensor
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawing:
    """How to draw: `draw` runs the sampler on batches of (image, sample) pairs.

    Args:
        sampler: which.
        prior: in model units.
        seeds: of each image.
        num_samples: S, per image.
        batch_size: pairs per run; `largest_piece` if None. Halved when a GPU runs out of memory.
        home: device of the results.
        callback: see `invsolve.solve`.
    """

    sampler: Sampler
    prior: Prior
    seeds: Sequence[int]
    num_samples: int
    batch_size: int | None
    home: torch.device
    callback: Callback | None = None

    def draw(self, groups: Sequence[Measurement], units: Sequence[ModelUnits]) -> Draws:
        """Samples of all images.

        Args:
            groups: measurements in image units, with the same number of images each.
            units: the same in model units.
        """
        first = groups[0]
        real = first.y.real.dtype if first.y.is_complex() else first.y.dtype
        images, count = len(self.seeds), self.num_samples
        draws = Draws(
            torch.empty((count, images, *first.operator.in_shape), dtype=real, device=self.home),
            torch.empty((count, images), dtype=torch.float64),
        )
        # A row is what may not be torn apart: one sample of an image, or all of them where they see each other.
        each = images // len(groups)
        samples = torch.arange(count)
        together = samples[None, :] if self.sampler.interacting else samples[:, None]
        rows = together[:, None].expand(-1, each, -1).flatten(0, 1)
        owners = torch.arange(each).repeat(len(together))
        size = self.batch_size
        if size is None:
            entry = first.y.new_empty(()).expand(first.operator.in_shape)
            size = largest_piece(entry) // int(getattr(self.sampler, "num_particles", 1))
        batches = MicroBatches(max(1, size // rows.shape[1]))
        progress = _Progress(self.callback, len(rows) * len(groups))
        for index, (group, unit) in enumerate(zip(groups, units, strict=True)):
            batches(partial(self._run, group, unit, index * each, draws, progress), rows, owners)
        return draws

    def _run(
        self,
        group: Measurement,
        unit: ModelUnits,
        offset: int,
        draws: Draws,
        progress: _Progress,
        rows: Tensor,
        owners: Tensor,
    ) -> tuple[Tensor]:
        """One run for the samples `rows` of the group's images `owners`; its results go into `draws`."""
        sample, local = rows.flatten(), owners.repeat_interleave(rows.shape[1])
        image = offset + local
        seeds = [self.seeds[b] for b in image.tolist()]
        x, notes = self.sampler.diagnosed(
            unit.part(local),
            self.prior,
            generator=[_generator(seed, k) for seed, k in zip(seeds, sample.tolist(), strict=True)],
            callback=progress.of_run(len(rows)),
        )
        x = unit.to_image(x.detach())
        draws.samples[sample, image] = x.to(self.home)
        draws.residual[sample, image] = _residual(x, group, local)
        for name, values in notes.items():
            known = draws.diagnostics.setdefault(name, torch.empty_like(draws.residual))
            known[sample, image] = values.to(known)
        progress.finished(len(rows))
        return (owners,)


class _Progress:
    """Counts the steps of one run on into those of all runs."""

    def __init__(self, callback: Callback | None, rows: int) -> None:
        self.callback, self.left, self.runs = callback, rows, 0

    def finished(self, size: int) -> None:
        """A run of so many rows is done."""
        self.left -= size
        self.runs += 1

    def of_run(self, size: int) -> Callback | None:
        """The callback for a run of so many rows. How many runs follow is an estimate: memory may halve them."""
        if self.callback is None:
            return None
        callback, before = self.callback, self.runs
        runs = before + -(-self.left // size)

        def counted(step: int, total: int, sigma: float, x: Tensor, denoised: Tensor) -> Any:
            return callback(before * total + step, runs * total, sigma, x, denoised)

        return counted


def _generator(seed: int, sample: int) -> torch.Generator:
    """Noise of one sample of one image, from its seed and index alone; on the CPU, so that it repeats on any device."""
    state = np.random.SeedSequence((seed, sample)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


@torch.no_grad()
def _residual(x: Tensor, measurement: Measurement, part: Tensor) -> Tensor:
    difference = (measurement.operator(x) - measurement.y[part]).flatten(1)
    count = measurement.operator.num_measured * (2 if difference.is_complex() else 1)
    noise = measurement.noise.std if isinstance(measurement.noise, GaussianNoise) else 0.0
    scale = float(noise) * count**0.5 if noise > 0 else 1.0
    norms: Tensor = torch.linalg.vector_norm(difference, dim=1).double().cpu()
    return norms / scale
