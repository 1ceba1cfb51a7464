"""Posterior samplers: frozen hyper-parameters and one call each."""

from invsolve.samplers.base import Callback, DivergenceError, Sampler
from invsolve.samplers.daps import DAPS
from invsolve.samplers.dds import DDS
from invsolve.samplers.diffpir import DiffPIR
from invsolve.samplers.dps import DPS
from invsolve.samplers.mcg import MCG

__all__ = ["DAPS", "DDS", "DPS", "MCG", "Callback", "DiffPIR", "DivergenceError", "Sampler"]
