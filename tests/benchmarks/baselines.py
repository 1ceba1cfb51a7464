"""Classical reconstructions to compare with: l1-wavelet and total variation by FISTA, filtered back-projection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from invsolve.operators import LinearOperator
from invsolve.operators.ct import CTOperator
from invsolve.operators.ct_fbp import Window, filtered_backprojection

Prox = Callable[[Tensor, float], Tensor]
"""(image (1, C, H, W), threshold) -> argmin_z ||z - image||^2 / 2 + threshold R(z)."""

# Daubechies' orthogonal filter with four vanishing moments (Ten Lectures on Wavelets, table 6.1).
_DB4 = (
    0.2303778133088965,
    0.7148465705529157,
    0.6308807679298589,
    -0.0279837694168599,
    -0.1870348117190930,
    0.0308413818355607,
    0.0328830116668852,
    -0.0105974017850690,
)


def wavelet_matrix(size: int) -> Tensor:
    """One level of the periodic transform along an axis of even size: orthogonal, low-pass rows first."""
    matrix = torch.zeros(size, size)
    for row in range(size // 2):
        for tap, value in enumerate(_DB4):
            matrix[row, (2 * row + tap) % size] += value
            matrix[size // 2 + row, (2 * row + tap) % size] += (-1) ** tap * _DB4[len(_DB4) - 1 - tap]
    return matrix


def wavelet_prox(size: int, levels: int = 4) -> Prox:
    """Soft thresholds on the details of a complex square image, by their magnitudes, with a random shift every time."""
    matrices = [wavelet_matrix(size >> level) for level in range(levels)]
    generator = torch.Generator().manual_seed(0)

    def prox(image: Tensor, threshold: float) -> Tensor:
        shift = torch.randint(size, (2,), generator=generator).tolist()
        x = image.roll(shift, (-2, -1)).clone()
        for matrix in matrices:
            n = len(matrix)
            x[..., :n, :n] = matrix @ x[..., :n, :n] @ matrix.T
        n = size >> levels
        coarse = x[..., :n, :n].clone()
        magnitude = x.square().sum(1, keepdim=True).sqrt()
        x *= (1 - threshold / magnitude.clamp_min(1e-12)).clamp_min(0)
        x[..., :n, :n] = coarse
        for matrix in reversed(matrices):
            n = len(matrix)
            x[..., :n, :n] = matrix.T @ x[..., :n, :n] @ matrix
        return x.roll([-s for s in shift], (-2, -1))

    return prox


def _gradient(x: Tensor) -> Tensor:
    """Forward differences (..., 2), 0 at the far edges."""
    g = x.new_zeros((*x.shape, 2))
    g[..., :-1, :, 0] = x.diff(dim=-2)
    g[..., :-1, 1] = x.diff(dim=-1)
    return g


def _divergence(g: Tensor) -> Tensor:
    """Minus the transpose of `_gradient`."""
    rows, columns = g[..., :-1, :, 0], g[..., :-1, 1]
    d = torch.zeros_like(g[..., 0])
    d[..., :-1, :] += rows
    d[..., 1:, :] -= rows
    d[..., :-1] += columns
    d[..., 1:] -= columns
    return d


def tv_prox(iterations: int = 15, lowest: float | None = None) -> Prox:
    """Isotropic total variation over all channels together; fast gradient projection on the dual (Beck, Teboulle 2009).

    The dual variable of a call is where the next one begins. `lowest` bounds the image from below.
    """
    dual: list[Tensor] = []

    def prox(image: Tensor, threshold: float) -> Tensor:
        if threshold == 0:
            return image
        p = dual[0] if dual and dual[0].shape[:-1] == image.shape else image.new_zeros((*image.shape, 2))
        q, momentum = p, 1.0
        for _ in range(iterations):
            primal = image + threshold * _divergence(q)
            primal = primal if lowest is None else primal.clamp_min(lowest)
            step = q + _gradient(primal) / (8 * threshold)
            new = step / step.square().sum((1, -1), keepdim=True).sqrt().clamp_min(1)
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            q, p, momentum = new + (momentum - 1) / following * (new - p), new, following
        dual[:] = [p]
        result = image + threshold * _divergence(p)
        return result if lowest is None else result.clamp_min(lowest)

    return prox


@torch.no_grad()
def fista(operator: LinearOperator, y: Tensor, prox: Prox, weight: float, start: Tensor, iterations: int) -> Tensor:
    """argmin ||A x - y||^2 / 2 + weight R(x), restarted where the momentum points uphill (O'Donoghue, Candes 2015)."""
    step = 1 / (1.02 * operator.norm()) ** 2
    x, z, momentum, target = start, start, 1.0, operator.adjoint(y)
    for _ in range(iterations):
        new = prox(z - step * (operator.normal(z) - target), step * weight)
        if float(((z - new) * (new - x)).sum()) > 0:
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        z, x, momentum = new + (momentum - 1) / following * (new - x), new, following
    return x


def tuned(weights: Sequence[float], solve: Callable[[float], Tensor], score: Callable[[Tensor], float]) -> tuple:
    """(best score, its image, its weight), chosen with the truth at hand from a grid, or from beyond its ends."""
    ratio = weights[1] / weights[0]
    results = {w: solve(w) for w in weights}
    scores = {w: score(x) for w, x in results.items()}
    for _ in range(4):
        best = max(scores, key=scores.__getitem__)
        if best == min(scores):
            new = best / ratio
        elif best == max(scores):
            new = best * ratio
        else:
            break
        results[new] = solve(new)
        scores[new] = score(results[new])
    best = max(scores, key=scores.__getitem__)
    return scores[best], results[best], best


def tuned_fbp(operator: CTOperator, y: Tensor, score: Callable[[Tensor], float]) -> tuple:
    """(best score, its image, (window, cutoff)) of filtered back-projection, chosen with the truth at hand."""
    windows: tuple[Window, ...] = ("ram-lak", "shepp-logan", "cosine", "hann")
    trials = []
    for window in windows:
        for cutoff in (0.25, 0.35, 0.5, 0.7, 1.0):
            x = filtered_backprojection(operator, y, window, cutoff=cutoff).clamp_min(0)
            trials.append((score(x), x, (window, cutoff)))
    return max(trials, key=lambda trial: trial[0])
