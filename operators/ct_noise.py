"""From photon counts of a CT scanner to line integrals and their weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from invsolve.operators.base import LinearOperator
from invsolve.operators.noise_counts import StarvedRaysWarning
from invsolve.operators.weighted import Weighted


@dataclass(frozen=True, eq=False)
class LineIntegrals:
    """Line integrals with what is known about their certainty.

    Args:
        y: -log(counts / i0), shape of the counts.
        std: standard deviation of `y` to first order.
        starved: where at most one count arrived, bool; there `y` is only a lower bound.
    """

    y: Tensor
    std: Tensor
    starved: Tensor

    @property
    def num_starved(self) -> int:
        return int(self.starved.sum())

    @property
    def starved_fraction(self) -> float:
        return self.num_starved / self.starved.numel()

    def weighted(self, operator: LinearOperator) -> tuple[Weighted, Tensor]:
        """(W A, W y) with W = 1 / std: their least squares are the weighted ones, and their noise is white of level 1.

        Counts of a batch of one give an operator for any batch; of more, one set of weights per entry.
        """
        operator.check_output(self.y)
        weights = 1 / self.std
        return Weighted(operator, weights[0] if len(weights) == 1 else weights), self.y * weights


def line_integrals(
    counts: Tensor, i0: float | Tensor, *, dark: float | Tensor = 0.0, electronic_std: float = 0.0
) -> LineIntegrals:
    """The logarithm of measured photon counts, with its standard deviation sqrt(N + electronic_std^2) / N.

    Counts below 1 are taken as 1; such starved rays are reported. Nothing is rescaled: N / i0 is the transmission.

    Args:
        counts: photons, not detector units, shape (B, C, views, bins).
        i0: counts without an object (the flat field, less the dark one), > 0: a number, or broadcastable to `counts`.
        dark: counts without beam, subtracted from `counts`.
        electronic_std: standard deviation of the electronic noise in counts.

    Raises:
        ValueError: an i0 that is not positive and finite, or counts that are not finite.

    Warns:
        StarvedRaysWarning: number and share of the rays with at most one count.
    """
    flat = torch.as_tensor(i0, dtype=counts.dtype, device=counts.device)
    if not bool((torch.isfinite(flat) & (flat > 0)).all()):
        raise ValueError(f"i0 reaches {float(flat.min()):g}; expected positive counts without an object.")
    if not bool(torch.isfinite(counts).all()):
        raise ValueError("counts contain NaN or infinity; replace dead detector bins, or leave them out with a Mask.")
    net = counts - dark
    starved = net <= 1
    net = net.clamp_min(1)
    result = LineIntegrals(-torch.log(net / flat), (net + electronic_std**2).sqrt() / net, starved)
    if result.num_starved:
        warnings.warn(
            f"{result.num_starved} of {counts.numel()} rays ({100 * result.starved_fraction:.2g} %) are starved: at "
            "most one count arrived, and their line integral is only known to be at least log(i0); they get the "
            "smallest weight.",
            StarvedRaysWarning,
            stacklevel=2,
        )
    return result
