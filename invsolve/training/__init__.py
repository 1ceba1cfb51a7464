"""Training of the priors that ship with invsolve, and of a user's own."""

from invsolve.training.prior import TrainingSettings, psnr_by_sigma, train_prior

__all__ = ["TrainingSettings", "psnr_by_sigma", "train_prior"]
