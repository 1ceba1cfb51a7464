"""Pretrained models behind one contract, the denoiser D(x, sigma)."""

from invsolve.priors.base import Prior
from invsolve.priors.checkpointed import CheckpointedPrior
from invsolve.priors.conversions import NetworkPrior, wrap
from invsolve.priors.gaussian import GaussianMixturePrior, GaussianPrior
from invsolve.priors.registry import load_prior
from invsolve.priors.tiled import TiledPrior
from invsolve.priors.unet import UNetConfig, UNetPrior

__all__ = [
    "CheckpointedPrior",
    "GaussianMixturePrior",
    "GaussianPrior",
    "NetworkPrior",
    "Prior",
    "TiledPrior",
    "UNetConfig",
    "UNetPrior",
    "load_prior",
    "wrap",
]
