"""Training of the priors that ship with invsolve, and of a user's own."""

from invsolve.training.prior import TrainingSettings, psnr_by_sigma, train_prior
from invsolve.training.recipes import RECIPES, find_recipe

__all__ = ["RECIPES", "TrainingSettings", "find_recipe", "psnr_by_sigma", "train_prior"]
