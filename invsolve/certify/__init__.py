"""Samplers measured against posteriors that are known exactly; `invsolve certify` on the command line."""

from invsolve.certify.calibration import Calibration, calibrate
from invsolve.certify.mixture import MixtureProblem, Score, benchmark, score

__all__ = ["Calibration", "MixtureProblem", "Score", "benchmark", "calibrate", "score"]
