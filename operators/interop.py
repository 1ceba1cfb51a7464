"""Operators from deepinv and back. deepinv itself is imported inside the functions, by those who have it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from invsolve.operators.algebra import Stack
from invsolve.operators.base import LinearOperator, Operator
from invsolve.operators.bridges import ChannelsToComplex
from invsolve.operators.cg import inner, per_entry
from invsolve.operators.function import TOLERANCE, check_adjoint
from invsolve.operators.noise import GaussianNoise, Noise, PoissonNoise
from invsolve.operators.noise_counts import PoissonGaussianNoise, TransmissionNoise

Adjoint = Literal["given", "autograd"]


def is_deepinv(value: object) -> bool:
    """Whether `value` is an object of deepinv or of a class derived from one of its classes; does not import it."""
    return any(cls.__module__.partition(".")[0] == "deepinv" for cls in type(value).__mro__)


def from_deepinv(
    physics: Any,
    in_shape: Sequence[int],
    *,
    adjoint: Adjoint = "given",
    complex_images: bool = False,
    check: bool = True,
) -> DeepinvPhysics | Stack:
    """An operator from any `deepinv.physics.Physics`: a LinearOperator from a LinearPhysics, else a plain Operator.

    Its noise model becomes the operator's `noise`, which `invsolve.solve` uses if no other is given; None for those
    without a counterpart. Physics with a singular value decomposition keep their closed-form solve, a stacked one
    becomes a `Stack` of operators.

    Args:
        physics: the object itself; it is not copied, and its parameters must be those of a single image.
        in_shape: shape of one image.
        adjoint: "given" takes `A_adjoint`; "autograd" derives the exact one from `A`, for projectors whose own is only
            close to it.
        complex_images: whether `A` takes complex tensors (C, H, W), as that of RandomPhaseRetrieval does; `in_shape` is
            then that of the two channels (real, imag), (2 C, H, W).
        check: whether to dot-test the adjoint here.

    Raises:
        TypeError: not a deepinv Physics.
        ValueError: the adjoint fails the dot test, or `A` does not take one image of `in_shape`.
    """
    from deepinv.physics import LinearPhysics, Physics, StackedLinearPhysics

    if not isinstance(physics, Physics):
        raise TypeError(f"expected a deepinv Physics, got {type(physics).__name__}.")
    if adjoint not in get_args(Adjoint):
        raise ValueError(f"adjoint is {adjoint!r}; expected one of {', '.join(get_args(Adjoint))}.")
    if isinstance(physics, StackedLinearPhysics):
        return Stack([_linear(part, in_shape, adjoint, complex_images, check) for part in physics.physics_list])
    if isinstance(physics, LinearPhysics):
        return _linear(physics, in_shape, adjoint, complex_images, check)
    return DeepinvPhysics(physics, in_shape, complex_images)


def as_operator(value: object, y: Tensor) -> Operator:
    """`value` as an operator whose measurement is `y`: itself, or a deepinv physics with the image shape it implies.

    Raises:
        TypeError: neither of both.
        ValueError: a physics that is not linear and does not tell its image size.
    """
    if isinstance(value, Operator):
        return value
    if not is_deepinv(value):
        raise TypeError(
            f"operator is a {type(value).__name__}; expected an invsolve Operator or a deepinv Physics "
            "(FunctionOperator takes your own functions, from_scipy a scipy operator)."
        )
    physics: Any = value
    if hasattr(physics, "A_adjoint"):
        first = y[:1].to(_device(physics), torch.complex64 if y.is_complex() else torch.float32)
        try:
            with torch.no_grad():
                shape = physics.A_adjoint(first).shape[1:]
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{type(physics).__name__} does not take y of shape {tuple(y.shape)} ({error}); y needs a batch "
                "dimension and the physics' own measurement shape."
            ) from error
    elif getattr(physics, "img_size", None) is not None:
        shape = physics.img_size
    else:
        raise ValueError(
            f"{type(physics).__name__} does not tell the shape of its images; pass from_deepinv(physics, in_shape)."
        )
    return from_deepinv(physics, tuple(shape))


class DeepinvPhysics(Operator):
    """A deepinv Physics as a differentiable operator.

    Args:
        physics: its `A` is used, without noise or sensor model.
        in_shape: shape of one image, in two channels where `A` takes complex ones.
        complex_images: whether it does.
    """

    def __init__(self, physics: Any, in_shape: Sequence[int], complex_images: bool = False) -> None:
        shape = tuple(in_shape)
        if complex_images and (len(shape) < 2 or shape[0] % 2):
            raise ValueError(f"complex images have an even number of real channels, got in_shape {shape}.")
        blank = torch.zeros((1, *shape), device=_device(physics))
        bridge = ChannelsToComplex((shape[0] // 2, *shape[1:])) if complex_images else None
        with torch.no_grad():
            try:
                y = physics.A(bridge(blank) if bridge else blank)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise ValueError(
                    f"{type(physics).__name__} does not take one float32 image of shape {shape} ({error}); is in_shape "
                    "right, and does it want complex_images=True?"
                ) from error
        if not isinstance(y, Tensor) or len(y) != 1:
            given = f"a batch of {len(y)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"{type(physics).__name__} gives {given} for one image of shape {tuple(in_shape)}; pass a physics with "
                "the parameters of a single image and one tensor as measurement."
            )
        super().__init__(in_shape, y.shape[1:])
        self.bridge: ChannelsToComplex | None = bridge
        self.physics = physics
        self.noise = noise_from_deepinv(physics.noise_model, self.out_shape)

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return self.physics.A(self._image(x))  # type: ignore[no-any-return]

    def _image(self, x: Tensor) -> Tensor:
        """x as the physics takes it."""
        return x if self.bridge is None else self.bridge(x)

    def _channels(self, x: Tensor) -> Tensor:
        """An image of the physics as real channels."""
        return x if self.bridge is None else self.bridge.adjoint(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> DeepinvPhysics:
        # A physics may hold a torch.Generator, which only its own method copies.
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        rest = {name: value for name, value in self.__getstate__().items() if name != "_modules"}
        twin.__dict__.update(copy.deepcopy(rest, memo))
        twin.__dict__["_modules"] = {"bridge": copy.deepcopy(self.bridge, memo), "physics": self.physics.clone()}
        return twin


class DeepinvLinearPhysics(DeepinvPhysics, LinearOperator):
    """A deepinv LinearPhysics with the adjoint it brings, or the one that autograd derives.

    Args:
        physics: see `from_deepinv`.
        in_shape: shape of one image.
        adjoint: "given" or "autograd".
        complex_images: as for `DeepinvPhysics`.
    """

    def __init__(
        self, physics: Any, in_shape: Sequence[int], adjoint: Adjoint = "given", complex_images: bool = False
    ) -> None:
        super().__init__(physics, in_shape, complex_images)
        self.adjoint_from = adjoint
        self._fused = adjoint == "given" and self._agrees(self._fused_normal, self.normal)
        # With the singular value decomposition U diag(mask) V^H of DecomposablePhysics, where V is unitary.
        decomposed = adjoint == "given" and hasattr(physics, "V_adjoint") and hasattr(physics, "mask")
        if decomposed and self._agrees(lambda x: self._decomposed(x, 0.5), None):
            self.solve_method = "closed form (SVD)"

    def adjoint(self, y: Tensor) -> Tensor:
        self.check_output(y)
        if self.adjoint_from == "given":
            return self._channels(self.physics.A_adjoint(y))
        real = y.real.dtype if y.is_complex() else y.dtype
        with torch.enable_grad():
            x = torch.zeros((len(y), *self.in_shape), dtype=real, device=y.device, requires_grad=True)
            (image,) = torch.autograd.grad(self.physics.A(self._image(x)), x, y, create_graph=y.requires_grad)
        return image

    def normal(self, x: Tensor) -> Tensor:
        return self._fused_normal(x) if self.__dict__.get("_fused") else super().normal(x)

    def _fused_normal(self, x: Tensor) -> Tensor:
        return self._channels(self.physics.A_adjoint_A(self._image(x)))

    def solve(
        self,
        rhs: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        if self.solve_method == LinearOperator.solve_method:
            return super().solve(rhs, damping, x0=x0, rtol=rtol, max_iter=max_iter)
        return self._decomposed(rhs, damping)

    def _decomposed(self, rhs: Tensor, damping: float | Tensor) -> Tensor:
        coefficients, mask = self.physics.V_adjoint(self._image(rhs)), torch.as_tensor(self.physics.mask)
        values = mask.abs().square().to(rhs.device, rhs.dtype)
        return self._channels(self.physics.V(coefficients / (values + per_entry(damping, coefficients))))

    @torch.no_grad()
    def _agrees(self, first: Any, second: Any) -> bool:
        """Whether two maps of images agree, or `first` inverts A^H A + 0.5, on white noise."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn((2, *self.in_shape), generator=generator).to(self.device, self.dtype)
        try:
            value = first(x)
            wanted = second(x) if second else x
            value = value if second else self.adjoint(self(value)) + 0.5 * value
        except (RuntimeError, ValueError, AttributeError, NotImplementedError):
            return False
        error = inner(value - wanted, value - wanted).sqrt() / inner(wanted, wanted).sqrt().clamp_min(1e-30)
        return bool((error < TOLERANCE).all())


def _linear(
    physics: Any, in_shape: Sequence[int], adjoint: Adjoint, complex_images: bool, check: bool
) -> DeepinvLinearPhysics:
    operator = DeepinvLinearPhysics(physics, in_shape, adjoint, complex_images)
    if check:
        remedy = "Look for an option of the physics (adjoint_via_backprop=True for Tomography)"
        if adjoint == "given":
            remedy += ", or take from_deepinv(..., adjoint='autograd'), which derives one from A"
        try:
            check_adjoint(
                operator,
                torch.empty(0, device=operator.device, dtype=operator.dtype),
                remedy=f"{remedy}.",
            )
        except ValueError as error:
            raise ValueError(f"{type(physics).__name__}: {error}") from None
    return operator


def noise_from_deepinv(model: Any, out_shape: Sequence[int]) -> Noise | None:
    """The noise of a deepinv noise model; None for those that have no counterpart here, and for ZeroNoise."""
    name = type(model).__name__ if is_deepinv(model) else ""

    def number(value: Any) -> float | None:
        return float(value) if torch.as_tensor(value).numel() == 1 else None

    if name == "GaussianNoise":
        sigma = torch.as_tensor(model.sigma)
        return GaussianNoise(float(sigma) if sigma.numel() == 1 else sigma.reshape(-1, *[1] * len(out_shape)))
    if name == "PoissonNoise" and bool(model.normalize) and (gain := number(model.gain)) is not None:
        return PoissonNoise(gain)
    if name == "PoissonGaussianNoise":
        gain, std = number(model.gain), number(model.sigma)
        if gain is not None and std is not None:
            return PoissonGaussianNoise(gain, std) if std > 0 else PoissonNoise(gain)
    if name == "LogPoissonNoise" and number(model.mu) == 1.0 and (i0 := number(model.N0)) is not None:
        return TransmissionNoise(i0)
    return None


def noise_to_deepinv(noise: Noise | None) -> Any:
    """The deepinv noise model of a noise; ZeroNoise for None.

    Raises:
        ValueError: a noise that deepinv does not have.
    """
    from deepinv.physics import noise as models

    if noise is None:
        return models.ZeroNoise()
    if isinstance(noise, GaussianNoise) and not (isinstance(noise.std, Tensor) and noise.std.numel() > 1):
        return models.GaussianNoise(float(noise.std))
    if isinstance(noise, PoissonNoise):
        return models.PoissonNoise(noise.gain, clip_positive=True)
    if isinstance(noise, PoissonGaussianNoise):
        return models.PoissonGaussianNoise(noise.gain, noise.std, clip_positive=True)
    scalar = isinstance(noise, TransmissionNoise) and not isinstance(noise.i0, Tensor)
    if isinstance(noise, TransmissionNoise) and scalar and noise.electronic_std == 0:
        return models.LogPoissonNoise(N0=float(noise.i0), mu=1.0)
    raise ValueError(f"deepinv has no counterpart of {noise}; leave it out and set the physics' noise_model yourself.")


def to_deepinv(operator: Operator, noise: Noise | None = None) -> Any:
    """A `deepinv.physics.LinearPhysics` (`Physics` if nonlinear) that runs this operator.

    Its `prox_l2` and `A_dagger` go through `solve` and `pseudo_inverse`, in closed form where the operator has one.

    Args:
        operator: any operator; its arrays move with the physics.
        noise: becomes the physics' noise model.
    """
    linear = isinstance(operator, LinearOperator)
    return _physics_classes()[0 if linear else 1](operator, noise_to_deepinv(noise))


@functools.cache
def _physics_classes() -> tuple[Any, Any]:
    """The two classes, made once deepinv has been imported."""
    from deepinv.physics import LinearPhysics, Physics

    class LinearOperatorPhysics(LinearPhysics):  # type: ignore[misc]
        """An invsolve LinearOperator as a deepinv LinearPhysics."""

        def __init__(self, operator: LinearOperator, noise_model: nn.Module) -> None:
            device = operator.device
            super().__init__(img_size=operator.in_shape, noise_model=noise_model, device=device)
            self.operator = operator

        def A(self, x: Tensor, **_: Any) -> Tensor:  # noqa: N802 - deepinv's name
            return self.operator(x)  # type: ignore[no-any-return]

        def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:  # noqa: N802
            return self.operator.adjoint(y)

        def A_adjoint_A(self, x: Tensor, **_: Any) -> Tensor:  # noqa: N802
            return self.operator.normal(x)

        def prox_l2(self, z: Any, y: Tensor, gamma: float | Tensor, **_: Any) -> Tensor:
            """argmin over x of gamma / 2 ||A x - y||^2 + 1/2 ||x - z||^2; gamma a number or one per batch entry."""
            back = self.operator.adjoint(y)
            start = torch.full_like(back, float(z or 0)) if z is None or isinstance(z, int | float) else z
            return self.operator.solve(back + start / per_entry(gamma, back), 1 / per_entry(gamma, back).flatten())

        def A_dagger(self, y: Tensor, **_: Any) -> Tensor:  # noqa: N802
            """Pseudo-inverse, damped by round-off."""
            real = y.real.dtype if y.is_complex() else y.dtype
            return self.operator.pseudo_inverse(y, torch.finfo(real).eps * self.operator.norm() ** 2)

    class OperatorPhysics(Physics):  # type: ignore[misc]
        """An invsolve Operator as a deepinv Physics."""

        def __init__(self, operator: Operator, noise_model: nn.Module) -> None:
            super().__init__(noise_model=noise_model)
            self.operator, self.img_size = operator, operator.in_shape

        def A(self, x: Tensor, **_: Any) -> Tensor:  # noqa: N802
            return self.operator(x)  # type: ignore[no-any-return]

    return LinearOperatorPhysics, OperatorPhysics


def _device(physics: nn.Module) -> torch.device:
    arrays = [*physics.buffers(), *physics.parameters()]
    return arrays[0].device if arrays else torch.device("cpu")
