"""Forward operators A, their adjoints, the noise of a measurement, and the solves of data consistency."""

if __name__ != "invsolve.operators":
    raise ImportError(f"import invsolve.operators, not {__name__!r}")

from invsolve.operators.algebra import Stack, stack
from invsolve.operators.base import LinearOperator, Operator
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
from invsolve.operators.ct import CTOperator, FanBeamCT, ParallelBeamCT, ct_operator
from invsolve.operators.ct_convert import from_astra, from_odl, from_skimage, to_astra
from invsolve.operators.ct_fbp import filtered_backprojection
from invsolve.operators.ct_geometry import (
    FanGeometry,
    GeometryWarning,
    ParallelGeometry,
    limited_angles,
    sparse_views,
    uniform_angles,
)
from invsolve.operators.ct_noise import LineIntegrals, line_integrals
from invsolve.operators.demosaic import Demosaic
from invsolve.operators.function import FunctionOperator, check_adjoint
from invsolve.operators.guards import SolveWarning
from invsolve.operators.hdr import HDR
from invsolve.operators.interop import from_deepinv
from invsolve.operators.interop_scipy import SciPyOperator, SparseOperator, from_scipy
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
from invsolve.operators.mri_coils import compress_coils, espirit, root_sum_of_squares, sum_of_squares_maps
from invsolve.operators.mri_fourier import KSpaceWarning, centred_fft2, centred_ifft2, check_kspace
from invsolve.operators.mri_masks import (
    acceleration,
    equispaced_mask,
    poisson_disc_mask,
    random_line_mask,
    variable_density_line_mask,
    variable_density_mask,
)
from invsolve.operators.mri_nufft import NonCartesianMRI, density_compensation
from invsolve.operators.mri_trajectories import radial_trajectory, spiral_trajectory
from invsolve.operators.noise import GaussianNoise, Noise, PoissonNoise, standard_normal
from invsolve.operators.noise_counts import PoissonGaussianNoise, StarvedRaysWarning, TransmissionNoise
from invsolve.operators.nonlinear_blur import CameraBlur, NonlinearBlur
from invsolve.operators.phase_retrieval import PhaseRetrieval
from invsolve.operators.resize import Downsample
from invsolve.operators.spectra import dot_test
from invsolve.operators.varying_blur import SpatiallyVaryingBlur
from invsolve.operators.weighted import Weighted
from invsolve.operators.whitening import Whitening

__all__ = [
    "HDR",
    "JPEG",
    "Blur",
    "CTOperator",
    "CameraBlur",
    "CartesianMRI",
    "ChannelsToComplex",
    "ComplexToChannels",
    "CompressedSensing",
    "Crop",
    "Demosaic",
    "Downsample",
    "FanBeamCT",
    "FanGeometry",
    "FunctionOperator",
    "GaussianNoise",
    "GeometryWarning",
    "Grayscale",
    "Identity",
    "KSpaceWarning",
    "LineIntegrals",
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
    "ParallelGeometry",
    "PhaseRetrieval",
    "PoissonGaussianNoise",
    "PoissonNoise",
    "SciPyOperator",
    "SolveResult",
    "SolveWarning",
    "SparseOperator",
    "SpatiallyVaryingBlur",
    "Stack",
    "StarvedRaysWarning",
    "TransmissionNoise",
    "Weighted",
    "Whitening",
    "acceleration",
    "box_mask",
    "centred_fft2",
    "centred_ifft2",
    "check_adjoint",
    "check_kernel",
    "check_kspace",
    "compress_coils",
    "conjugate_gradient",
    "ct_operator",
    "density_compensation",
    "disk_kernel",
    "dot_test",
    "equispaced_mask",
    "espirit",
    "filtered_backprojection",
    "from_astra",
    "from_deepinv",
    "from_odl",
    "from_scipy",
    "from_skimage",
    "gaussian_kernel",
    "limited_angles",
    "line_integrals",
    "motion_kernel",
    "poisson_disc_mask",
    "radial_trajectory",
    "random_line_mask",
    "random_mask",
    "random_motion_kernel",
    "root_sum_of_squares",
    "sparse_views",
    "spiral_trajectory",
    "stack",
    "standard_normal",
    "sum_of_squares_maps",
    "to_astra",
    "uniform_angles",
    "variable_density_line_mask",
    "variable_density_mask",
]
