"""Priors whose denoiser and whose posterior under a linear-Gaussian measurement are known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from invsolve.priors.base import Prior, expand_sigma


class GaussianMixturePrior(Prior):
    """p(x0) = sum_k w_k N(mu_k, C_k), with every derived quantity in closed form.

    Covariances are held by their eigenvalues, and eigenvectors where they are full matrices, so that C_k + sigma^2 I
    costs nothing. Meant for tests, calibration and small problems.

    Args:
        weights: shape (K,), positive; normalised here.
        means: shape (K, *image shape).
        covariances: a number or (K,) variances of isotropic components, (K, *image shape) diagonal variances, or
            (K, n, n) full matrices over the flattened image. >= 0.
        data_range: see `Prior`.

    Raises:
        ValueError: shapes that do not belong together, or negative weights or variances.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    basis: Tensor | None

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor,
        covariances: Tensor | float,
        data_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__(tuple(means.shape[1:]), data_range, 1e-3, 1e3)
        flat = means.flatten(1)
        count, size = flat.shape
        w = torch.as_tensor(weights, dtype=flat.dtype, device=flat.device)
        if w.shape != (count,) or not bool((w > 0).all()):
            raise ValueError(f"weights of shape {tuple(w.shape)} for {count} components; expected ({count},), all > 0.")
        c = torch.as_tensor(covariances, dtype=flat.dtype, device=flat.device)
        basis = None
        if c.numel() in (1, count) and c.ndim <= 1:
            variances = c.reshape(-1, 1).expand(count, size)
        elif c.shape == (count, size, size):
            variances, basis = torch.linalg.eigh(c)
            variances = variances.clamp_min(0)
        elif c.numel() == count * size:
            variances = c.reshape(count, size)
        else:
            raise ValueError(f"covariances of shape {tuple(c.shape)} do not fit {count} components of size {size}.")
        if not bool((variances >= 0).all()):
            raise ValueError("a component has a negative variance.")
        self.register_buffer("weights", w / w.sum())
        self.register_buffer("means", flat.clone())
        self.register_buffer("variances", variances.clone())
        self.register_buffer("basis", basis)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.shape  # type: ignore[return-value]

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """sum_k r_k (mu_k + C_k (C_k + sigma^2 I)^-1 (x - mu_k)), exact; its autograd Jacobian is Cov[x0|x]/sigma^2."""
        flat = x.flatten(1)
        level = expand_sigma(sigma, flat)[:, None]
        centred = self._into_basis(flat[:, None] - self.means)
        shrunk = self.means + self._out_of_basis(self.variances / (self.variances + level**2) * centred)
        share = self._log_responsibilities(centred, level).softmax(1)
        return (share[..., None] * shrunk).sum(1).reshape(x.shape)

    def log_density(self, x: Tensor, sigma: float | Tensor = 0.0) -> Tensor:
        """log p_sigma(x), the density of x0 + sigma n, shape (B,)."""
        flat = x.flatten(1)
        level = expand_sigma(sigma, flat)[:, None]
        log_terms = self._log_responsibilities(self._into_basis(flat[:, None] - self.means), level)
        return log_terms.logsumexp(1) - 0.5 * flat.shape[1] * math.log(math.tau)

    def mean(self) -> Tensor:
        """Mean image, shape (*image shape)."""
        return (self.weights[:, None] * self.means).sum(0).reshape(self.image_shape)

    def covariance(self) -> Tensor:
        """Covariance of the flattened image, shape (n, n)."""
        centred = self.means - (self.weights[:, None] * self.means).sum(0)
        between = torch.einsum("k,ki,kj->ij", self.weights, centred, centred)
        return between + torch.einsum("k,kij->ij", self.weights, self.component_covariances())

    def component_covariances(self) -> Tensor:
        """Covariance matrices of the components, shape (K, n, n)."""
        if self.basis is None:
            return torch.diag_embed(self.variances)
        return self.basis @ (self.variances[..., None] * self.basis.mT)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact draws, shape (count, *image shape)."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(
            (count, 1, self.means.shape[1]), generator=generator, dtype=self.means.dtype, device=self.means.device
        )
        scaled = self.variances[component].sqrt() * noise[:, 0]
        if self.basis is not None:
            scaled = torch.einsum("bij,bj->bi", self.basis[component], scaled)
        return (self.means[component] + scaled).reshape(count, *self.image_shape)

    def posterior(self, operator: Any, y: Tensor, noise_std: float) -> GaussianMixturePrior:
        """Exact p(x0 | y) for y = A x0 + noise_std n, itself a mixture: sample it, take its mean, covariance, density.

        Args:
            operator: a linear operator; its matrix is built column by column, so keep the image small.
            y: one measurement, shape (*operator.out_shape) or (1, *operator.out_shape); complex y counts as two
                real parts, each with standard deviation `noise_std`.
            noise_std: > 0, or 0 where A C A^H is invertible.
        """
        matrix = dense_matrix(operator, self.image_shape, self.means)
        data = real_vector(y.reshape(1, -1)).to(self.means)[0]
        if data.numel() != matrix.shape[0]:
            raise ValueError(f"y has {data.numel()} real entries, the operator gives {matrix.shape[0]}.")
        covariances = self.component_covariances()
        gain_base = covariances @ matrix.T
        innovation = matrix @ gain_base + noise_std**2 * torch.eye(len(data)).to(matrix)
        factor = torch.linalg.cholesky(innovation)
        surprise = (data - self.means @ matrix.T)[..., None]
        means = self.means + (gain_base @ torch.cholesky_solve(surprise, factor))[..., 0]
        posterior_covariances = covariances - gain_base @ torch.cholesky_solve(gain_base.mT, factor)
        whitened = torch.linalg.solve_triangular(factor, surprise, upper=False)[..., 0]
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(1)
        log_weights = self.weights.log() - 0.5 * whitened.square().sum(1) - log_det
        # A component that the data rule out keeps a representable weight: the mixture wants all of them > 0.
        weights = log_weights.softmax(0).clamp_min(torch.finfo(means.dtype).tiny)
        symmetric = 0.5 * (posterior_covariances + posterior_covariances.mT)
        return GaussianMixturePrior(weights, means.reshape(-1, *self.image_shape), symmetric, self.data_range)

    def _log_responsibilities(self, centred: Tensor, level: Tensor) -> Tensor:
        total = self.variances + level**2
        return self.weights.log() - 0.5 * (centred**2 / total + total.log()).sum(-1)

    def _into_basis(self, vectors: Tensor) -> Tensor:
        return vectors if self.basis is None else torch.einsum("kij,bki->bkj", self.basis, vectors)

    def _out_of_basis(self, vectors: Tensor) -> Tensor:
        return vectors if self.basis is None else torch.einsum("kij,bkj->bki", self.basis, vectors)


class GaussianPrior(GaussianMixturePrior):
    """p(x0) = N(mean, covariance).

    Args:
        mean: image, shape (C, H, W) or any other without batch dimension.
        covariance: a variance, a tensor of variances shaped like `mean`, or an (n, n) matrix.
        data_range: see `Prior`.
    """

    def __init__(
        self, mean: Tensor, covariance: Tensor | float = 1.0, data_range: tuple[float, float] = (-1.0, 1.0)
    ) -> None:
        matrix = torch.as_tensor(covariance, dtype=mean.dtype, device=mean.device)
        super().__init__([1.0], mean[None], matrix[None] if matrix.ndim else matrix, data_range)


def dense_matrix(operator: Callable[[Tensor], Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Matrix of a linear map on flattened images, real rows then imaginary rows where it is complex: (m, n)."""
    size = math.prod(shape)
    basis = torch.eye(size, dtype=like.dtype, device=like.device).reshape(size, *shape)
    return real_vector(operator(basis)).T


def real_vector(y: Tensor) -> Tensor:
    """(B, ...) real or complex -> (B, m) real, imaginary parts behind the real ones."""
    flat = y.flatten(1) if y.ndim > 1 else y[None]
    return torch.cat([flat.real, flat.imag], dim=1) if flat.is_complex() else flat
