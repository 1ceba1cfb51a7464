"""Forward operators A, their adjoints, the noise of a measurement, and the solves of data consistency."""

if __name__ != "invsolve.operators":
    raise ImportError(f"import invsolve.operators, not {__name__!r}")

from invsolve.operators.algebra import Stack, stack
from invsolve.operators.base import LinearOperator, Operator, SolveWarning, dot_test
from invsolve.operators.basic import (
    Grayscale,
    Identity,
    Mask,
    MatrixOperator,
    box_mask,
    random_mask,
)
from invsolve.operators.blur import Blur
from invsolve.operators.bridges import ChannelsToComplex, ComplexToChannels
from invsolve.operators.cg import SolveResult, conjugate_gradient
from invsolve.operators.compressed_sensing import CompressedSensing
from invsolve.operators.crop import Crop, Pad
from invsolve.operators.ct import FanBeamCT, ParallelBeamCT
from invsolve.operators.ct_geometry import GeometryWarning, limited_angles, sparse_views, uniform_angles
from invsolve.operators.demosaic import Demosaic
from invsolve.operators.function import FunctionOperator, check_adjoint
from invsolve.operators.hdr import HDR
from invsolve.operators.interop import from_deepinv
from invsolve.operators.interop_scipy import SparseOperator, from_scipy
from invsolve.operators.jpeg import JPEG
from invsolve.operators.kernels import (
    check_kernel,
    disk_kernel,
    gaussian_kernel,
    motion_kernel,
    random_motion_kernel,
)
from invsolve.operators.measurement import Measurement
from invsolve.operators.mri import CartesianMRI
from invsolve.operators.mri_nufft import NonCartesianMRI
from invsolve.operators.noise import GaussianNoise, Noise, PoissonNoise, standard_normal
from invsolve.operators.noise_counts import PoissonGaussianNoise, StarvedRaysWarning, TransmissionNoise
from invsolve.operators.nonlinear_blur import CameraBlur, NonlinearBlur
from invsolve.operators.phase_retrieval import PhaseRetrieval
from invsolve.operators.resize import Downsample
from invsolve.operators.varying_blur import SpatiallyVaryingBlur
from invsolve.operators.weighted import Weighted, Whitening

__all__ = [
    "HDR",
    "JPEG",
    "Blur",
    "CameraBlur",
    "CartesianMRI",
    "ChannelsToComplex",
    "ComplexToChannels",
    "CompressedSensing",
    "Crop",
    "Demosaic",
    "Downsample",
    "FanBeamCT",
    "FunctionOperator",
    "GaussianNoise",
    "GeometryWarning",
    "Grayscale",
    "Identity",
    "LinearOperator",
    "Mask",
    "MatrixOperator",
    "Measurement",
    "Noise",
    "NonCartesianMRI",
    "NonlinearBlur",
    "Operator",
    "Pad",
    "ParallelBeamCT",
    "PhaseRetrieval",
    "PoissonGaussianNoise",
    "PoissonNoise",
    "SolveResult",
    "SolveWarning",
    "SparseOperator",
    "SpatiallyVaryingBlur",
    "Stack",
    "StarvedRaysWarning",
    "TransmissionNoise",
    "Weighted",
    "Whitening",
    "box_mask",
    "check_adjoint",
    "check_kernel",
    "conjugate_gradient",
    "disk_kernel",
    "dot_test",
    "from_deepinv",
    "from_scipy",
    "gaussian_kernel",
    "limited_angles",
    "motion_kernel",
    "random_mask",
    "random_motion_kernel",
    "sparse_views",
    "stack",
    "standard_normal",
    "uniform_angles",
]
