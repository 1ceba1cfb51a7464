"""Base classes of all forward operators; `algebra` holds what their arithmetic makes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import Tensor, nn

from invsolve.operators.cg import Map, SolveResult, conjugate_gradient, inner, per_entry
from invsolve.operators.graphs import ITERATIONS, GraphCache
from invsolve.operators.guards import guard_methods, report
from invsolve.operators.implicit import differentiable
from invsolve.operators.lsqr import lsqr
from invsolve.operators.spectra import largest_eigenvalue

if TYPE_CHECKING:
    from invsolve.operators.noise import Noise

Shape = tuple[int, ...]
T = TypeVar("T")

# What an operator keeps of its computations: neither stored, copied nor pickled with it.
_KEPT = ("_norms", "_derived", "_graphs")


class Operator(nn.Module):
    """A differentiable map y = A(x) from images to noiseless measurements.

    A subclass sets the two shapes and writes `forward`. Calling an operator changes nothing in it. Images are float32
    or float64; inside `torch.autocast` operators compute in the type of their input all the same.

    `reduced_precision` says that bfloat16 and float16 images are welcome too, as for masks, which sum nothing. All
    other operators refuse them.

    Args:
        in_shape: shape of one image, without the batch dimension.
        out_shape: shape of one measurement, likewise.
    """

    reduced_precision: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        guard_methods(cls)

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shape: Shape = tuple(int(n) for n in in_shape)
        self.out_shape: Shape = tuple(int(n) for n in out_shape)
        if any(n < 1 for n in (*self.in_shape, *self.out_shape)):
            raise ValueError(f"{type(self).__name__}: shapes must be positive, got {self.in_shape}, {self.out_shape}.")

    def forward(self, x: Tensor) -> Tensor:
        """Noiseless measurement of a batch: (B, *in_shape) -> (B, *out_shape)."""
        raise NotImplementedError(f"{type(self).__name__} must write forward(x)")

    @property
    def device(self) -> torch.device:
        """Where the operator's arrays lie (CPU if it has none)."""
        return next(self.buffers(), torch.empty(0)).device

    @property
    def dtype(self) -> torch.dtype:
        """Real floating-point type of the operator's arrays (float32 if it has none)."""
        for buffer in self.buffers():
            if buffer.is_floating_point():
                return buffer.dtype
            if buffer.is_complex():
                return buffer.real.dtype
        return torch.float32

    @property
    def num_measured(self) -> int:
        """Entries of one measurement that depend on the image."""
        return math.prod(self.out_shape)

    def restrict(self, y: Tensor) -> Tensor:
        """`y` with the entries that no image can reach set to 0, such as the lost pixels of a mask."""
        return y

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError unless `x` is a batch of images for this operator. For front doors, not for loops."""
        _check(self, "x", x, self.in_shape)

    def check_output(self, y: Tensor) -> None:
        """Raise ValueError unless `y` is a batch of measurements of this operator."""
        _check(self, "y", y, self.out_shape)

    def to_deepinv(self, noise: Noise | None = None) -> Any:
        """A `deepinv.physics.Physics` (LinearPhysics if linear) that runs this operator; see `interop.to_deepinv`."""
        from invsolve.operators.interop import to_deepinv

        return to_deepinv(self, noise)

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}"

    def _load_from_state_dict(self, *args: Any) -> None:
        """Take over stored arrays, and forget what had been computed from the old ones."""
        super()._load_from_state_dict(*args)
        for name in _KEPT:
            self.__dict__.pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _KEPT}


def derived(operator: Operator, name: str, like: Tensor, make: Callable[[], T]) -> T:
    """`make()`, arrays that follow from the operator's tensors, kept for the type and device of `like`.

    They are no part of the operator's state. Only those for the latest type, device and values are kept. Where one of
    the operator's tensors requires a gradient (a learned kernel), they are made anew, with a graph.
    """
    tensors = [*operator.parameters(), *operator.buffers()]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return make()
    values = tuple((id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)
    key = (like.dtype, like.device, values)
    memo = operator.__dict__.setdefault("_derived", {})
    if name not in memo or memo[name][0] != key:
        # An array made in inference mode could not take part in a later call that needs gradients.
        with torch.inference_mode(False), torch.no_grad():
            memo[name] = (key, make())
    return memo[name][1]  # type: ignore[no-any-return]


def _check(operator: Operator, name: str, value: Tensor, shape: Shape) -> None:
    if tuple(value.shape[1:]) != shape:
        want = ", ".join(str(n) for n in shape)
        raise ValueError(f"{name} has shape {tuple(value.shape)}, {type(operator).__name__} expects (batch, {want}).")


class LinearOperator(Operator):
    """A linear map with its exact adjoint.

    A subclass writes `forward` and `adjoint`; `normal`, `solve` and `norm` follow, and are overridden where the
    structure allows something cheaper. Images may be real while measurements are complex: the adjoint is then the
    one of the real inner product Re<A x, y> = <x, A^H y>.

    `pixelwise` says that every entry of y comes from a single pixel (one or all of its channels), as for masks.
    `row_gram` is c where A A^H = c I is known (masks aside from their zero rows, orthonormal transforms, averages
    of disjoint pixels); solves of compositions use it. None elsewhere.
    `capturable` says that `normal` does the same work on the GPU whatever the numbers, and never waits for it, so that
    repeated solves may replay it as a CUDA graph.
    """

    row_gram: float | None = None
    pixelwise: bool = False
    solve_method: str = "conjugate gradient"
    capturable: bool = False

    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y: (B, *out_shape) -> (B, *in_shape), the transpose of `forward` to round-off."""
        raise NotImplementedError(f"{type(self).__name__} must write adjoint(y)")

    def normal(self, x: Tensor) -> Tensor:
        """A^H A x."""
        return self.adjoint(self.forward(x))

    def solve(
        self,
        rhs: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        """Solution of (A^H A + damping I) x = rhs.

        Differentiable with respect to `rhs`, `damping` and those parameters and buffers of the operator that require a
        gradient. In closed form where the operator has the structure for it (`solve_method` says which); by conjugate
        gradients otherwise, and only then do `x0`, `rtol` and `max_iter` matter. `solve_cg` tells how it went.

        Args:
            rhs: right-hand side, shape (B, *in_shape).
            damping: > 0, or >= 0 where A^H A is invertible; a number or one per batch entry, shape (B,).
            x0: warm start of the iteration.
            rtol: relative residual at which an entry stops; 1e-6 (float32) or 1e-12 (float64) if None.
            max_iter: largest number of iterations.

        Returns:
            Tensor of the shape of `rhs`.

        Raises:
            ValueError: a negative or NaN damping, or damping 0 on a singular operator.

        Warns:
            SolveWarning: the iteration broke down for some entries, or did not reach its tolerance although `max_iter`
                was the default or larger; a smaller one is a wish to stop early.
        """
        shift = per_entry(damping, rhs)
        if self.row_gram is not None:
            return coisometry_solve(self, rhs, shift, self.row_gram)
        result = self.solve_cg(rhs, shift.detach().flatten(), x0=x0, rtol=rtol, max_iter=max_iter)
        report(self, result, shift.detach().flatten(), max_iter)
        return differentiable(self, result.x, rhs, shift, rtol, max_iter)

    def preconditioner(self, damping: Tensor) -> Map | None:
        """A map r -> M r with M close to (A^H A + damping I)^-1, for the iterative solves; None does without.

        M is Hermitian positive definite and acts on every batch entry by itself. See `precondition` for the usual ones.

        Args:
            damping: shape (B, 1, ..., 1), in the real type and on the device of the right-hand side.
        """
        return None

    def pseudo_inverse(
        self,
        y: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> Tensor:
        """A^H (A A^H + damping I)^-1 y, which is (A^H A + damping I)^-1 A^H y; differentiable as `solve` is.

        In closed form this keeps its relative accuracy however small the damping, whereas `solve(adjoint(y), damping)`
        divides the difference of two nearly equal images by it. An entry on which the conjugate gradients break down
        or run out of digits, since they square the condition number of A, is left to `solve_lsqr`.

        Args:
            y: measurements, shape (B, *out_shape).
            damping: as in `solve`.
            x0: as in `solve`.
            rtol: as in `solve`.
            max_iter: as in `solve`.

        Returns:
            Images, shape (B, *in_shape).
        """
        rhs = self.adjoint(y)
        shift = per_entry(damping, rhs)
        if self.row_gram is not None:
            return rhs / (self.row_gram + shift)
        if self.solve_method != LinearOperator.solve_method:
            return self.solve(rhs, damping, x0=x0, rtol=rtol, max_iter=max_iter)
        flat = shift.detach().flatten()
        # A preconditioner leaves the range of A^H, and what it leaves behind outside is the residual over the damping.
        with torch.no_grad():
            preconditioned = bool((inner(rhs, rhs) <= 1e3 * flat * inner(y, y)).all())
        result = self.solve_cg(rhs, flat, x0=x0, rtol=rtol, max_iter=max_iter, preconditioned=preconditioned)
        x = result.x
        failed = result.breakdown | result.stalled
        if bool(failed.any()):
            result = self.solve_lsqr(y.detach(), flat, rtol=rtol, max_iter=max_iter)
            x = torch.where(failed.reshape(shift.shape), result.x, x)
        report(self, result, flat, max_iter)
        return differentiable(self, x, rhs, shift, rtol, max_iter)

    @torch.no_grad()
    def solve_cg(
        self,
        rhs: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
        preconditioned: bool = True,
    ) -> SolveResult:
        """The same system by conjugate gradients whatever the structure, with a report per batch entry.

        Without the operator's preconditioner, the iterates stay in the range of A^H if `rhs` (and `x0`) lie there.
        """
        capture = None
        if rhs.is_cuda and self.capturable and preconditioned:
            graphs: GraphCache = self.__dict__.setdefault("_graphs", GraphCache())
            capture = functools.partial(graphs.find, self)
        return conjugate_gradient(
            self.normal,
            rhs,
            damping,
            x0=x0,
            rtol=rtol,
            max_iter=max_iter,
            check_every=ITERATIONS if rhs.is_cuda else None,
            preconditioner=self.preconditioner(per_entry(damping, rhs)) if preconditioned else None,
            capture=capture,
        )

    def solve_lsqr(
        self,
        y: Tensor,
        damping: float | Tensor,
        *,
        x0: Tensor | None = None,
        rtol: float | None = None,
        max_iter: int = 500,
    ) -> SolveResult:
        """Minimiser of ||A x - y||^2 + damping ||x||^2 from products with A and A^H, never A^H A; see `lsqr`.

        Slower per iteration than `solve_cg`, but with the condition number of A instead of its square.
        """
        return lsqr(self.forward, self.adjoint, y, damping, rtol=rtol, max_iter=max_iter)

    def norm(self, iterations: int = 100, rtol: float = 1e-4, *, device: torch.device | None = None) -> float:
        """Largest singular value, by the Lanczos iteration on A^H A from a fixed start; computed once per accuracy.

        Args:
            iterations: largest number of products with A^H A.
            rtol: stop when the residual of the eigenpair is this small against the eigenvalue.
            device: where to compute; the operator's own if None. For operators without arrays.
        """
        known: dict[tuple[int, float], float] = self.__dict__.setdefault("_norms", {})
        key = iterations, rtol
        if key not in known:
            known[key] = self._lanczos(iterations, rtol, device or self.device)
        return known[key]

    def _lanczos(self, iterations: int, rtol: float, device: torch.device) -> float:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn((1, *self.in_shape), generator=generator, dtype=torch.float64).to(device, self.dtype)
        return math.sqrt(largest_eigenvalue(self.normal, start, iterations, rtol))

    def to_scipy(self) -> Any:
        """A real `scipy.sparse.linalg.LinearOperator` that runs this operator; see `interop_scipy.to_scipy`."""
        from invsolve.operators.interop_scipy import to_scipy

        return to_scipy(self)

    @property
    def T(self) -> LinearOperator:  # noqa: N802 - the field's notation
        """The adjoint as an operator."""
        from invsolve.operators.algebra import Transposed

        return Transposed(self)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        from invsolve.operators.algebra import Composed

        return Composed(self, other)

    @overload
    def __mul__(self, other: float) -> LinearOperator: ...
    @overload
    def __mul__(self, other: Any) -> Any: ...
    def __mul__(self, other: Any) -> Any:
        from invsolve.operators.algebra import Scaled

        return Scaled(float(other), self) if isinstance(other, int | float) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        from invsolve.operators.algebra import Scaled

        return Scaled(-1.0, self)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        from invsolve.operators.algebra import Sum

        return Sum(self, other)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        from invsolve.operators.algebra import Scaled, Sum

        return Sum(self, Scaled(-1.0, other))


def coisometry_solve(operator: LinearOperator, rhs: Tensor, damping: Tensor, gram: float) -> Tensor:
    """(A^H A + damping I)^-1 rhs where A A^H = gram I, by the Woodbury identity; damping is (B, 1, ...)."""
    if operator.num_measured == math.prod(operator.in_shape):  # orthogonal: A^H A = gram I as well
        return rhs / (gram + damping)
    return (rhs - operator.normal(rhs) / (gram + damping)) / damping
