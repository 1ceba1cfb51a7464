"""Speed of the operators and their solves beside deepinv 0.5, in one process and at the same measured accuracy.

    python tests/benchmarks/operators.py [--only ct mri circular noncircular decimated inpainting]
                                         [--repeats 7] [--threads 2] [--device cpu] [--clock wall]

Each line is the median of interleaved repetitions: ours, theirs, ours, theirs, ..., so that noise meets both. A solve
is x = argmin ||A x - y||^2 + damping ||x - z||^2, started at z, with each side's own A; its accuracy is the relative
residual of the normal equations, computed here for both in the same way. On a GPU the conjugate-gradient iteration is
timed as well, with its share of the memory-bandwidth floor: bytes that must move (see `Floor`) over copy speed.
"""

from __future__ import annotations

import argparse
import functools
import math
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invsolve.operators import Blur, CartesianMRI, Downsample, LinearOperator, Mask, ParallelBeamCT, gaussian_kernel

SIZE = 256
DAMPING = 0.01
RTOL = 1e-4
Call = Callable[[], Any]


@dataclass
class Line:
    """One line of the table.

    Args:
        what: operator and operation.
        ours: the call to time.
        theirs: deepinv's.
        goal: ratio of times to reach.
        residuals: relative residual of what each call returned, where it is a solve.
        repeats: fewer repetitions for slow calls; None for the option's.
        floor: seconds that memory traffic alone would take, on a GPU.
        per: calls of the loop inside `ours` and `theirs`, to divide by.
    """

    what: str
    ours: Call
    theirs: Call | None
    goal: float | None = None
    residuals: tuple[Callable[[Tensor], float], Callable[[Tensor], float]] | None = None
    repeats: int | None = None
    floor: float | None = None
    per: int = 1


@dataclass
class Floor:
    """Seconds that one conjugate-gradient iteration's memory traffic takes at the bandwidth of a plain copy.

    Counted: eight passes over the image vectors (direction read and written, product, solution, residual) and what the
    product itself must move: for MRI the coil maps twice and four passes over the coil images (transforms of several
    coils don't stay on the chip), for CT the stored matrix twice.
    """

    bandwidth: float  # bytes per second

    def seconds(self, image: int, extra: int) -> float:
        return (8 * image + extra) / self.bandwidth


def photographs(batch: int, channels: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand((batch, channels, SIZE // 8, SIZE // 8), generator=generator)
    smooth = torch.nn.functional.interpolate(rough, scale_factor=8, mode="bicubic")
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).to(device)


def residual(forward: Call, adjoint: Call, y: Tensor, z: Tensor, damping: float) -> Callable[[Tensor], float]:
    """Worst ||A^H A x + d x - A^H y - d z|| / ||A^H y + d z|| of the batch."""

    def measure(x: Tensor) -> float:
        rhs = adjoint(y) + damping * z
        error = adjoint(forward(x)) + damping * x - rhs
        return float((error.flatten(1).norm(dim=1) / rhs.flatten(1).norm(dim=1)).max())

    return measure


def solves(
    name: str, ours: LinearOperator, theirs: Any, x: Tensor, goal: float | None, damping: float, **more: Any
) -> Line:
    """The line of a solve with data from each side's own operator."""
    z = 0.9 * x
    y = ours(x)

    def our_solve() -> Tensor:
        return ours.solve(ours.adjoint(y) + damping * z, damping, x0=z, rtol=RTOL)

    here = residual(ours, ours.adjoint, y, z, damping)
    if theirs is None:
        return Line(name, our_solve, None, goal, (here, here), **more)
    their_y = theirs.A(x)

    def their_solve() -> Tensor:
        return theirs.prox_l2(z, their_y, 1 / damping, tol=RTOL, max_iter=1000)

    there = residual(theirs.A, theirs.A_adjoint, their_y, z, damping)
    return Line(name, our_solve, their_solve, goal, (here, there), **more)


def iteration(name: str, ours: LinearOperator, theirs: Any, x: Tensor, goal: float, floor: float) -> Line:
    """Forty iterations that never meet their tolerance, without preconditioners."""
    y, rhs, steps = ours(x), ours.normal(x), 40

    def our_run() -> Tensor:
        return ours.solve_cg(rhs, DAMPING, rtol=0.0, max_iter=steps).x

    their_run = None
    if theirs is not None:
        their_y = theirs.A(x)
        their_run = functools.partial(theirs.prox_l2, 0 * x, their_y, 1 / DAMPING, tol=0.0, max_iter=steps)
    del y
    return Line(name, our_run, their_run, goal, floor=floor, per=steps)


def products(
    name: str, ours: LinearOperator, theirs: Any, x: Tensor, goals: tuple[float | None, float | None]
) -> list[Line]:
    y = ours(x)
    if theirs is None:
        return [
            Line(f"{name} A", lambda: ours(x), None, goals[0]),
            Line(f"{name} A^T", lambda: ours.adjoint(y), None, goals[1]),
        ]
    their_y = theirs.A(x)
    return [
        Line(f"{name} A", lambda: ours(x), lambda: theirs.A(x), goals[0]),
        Line(f"{name} A^T", lambda: ours.adjoint(y), lambda: theirs.A_adjoint(their_y), goals[1]),
    ]


def ct(physics: Any, device: torch.device, floor: Floor | None) -> Iterator[Line]:
    angles = torch.arange(180, dtype=torch.float64) * math.pi / 180
    ours = ParallelBeamCT((1, SIZE, SIZE), angles).to(device)
    scale = 1 / ours.norm()  # both with norm about 1, so that one damping means the same
    scaled = scale * ours
    theirs = None
    if physics is not None:
        theirs = physics.Tomography(angles=180, img_width=SIZE, circle=False, normalize=True, device=device)
    one = photographs(1, 1, device)
    yield from products("CT 256, 180 views:", scaled, theirs, one, (None, None))
    for batch, goal in ((1, 4.0), (8, 15.0)):
        x = photographs(batch, 1, device)
        if device.type == "cpu":
            few = 3 if batch == 1 else 1  # deepinv takes a minute and more for the batch
            yield solves(f"CT 256, 180 views: solve, batch {batch}", scaled, theirs, x, goal, DAMPING, repeats=few)
    if floor is not None:
        for batch, goal in ((1, 4.0), (16, 2.0)):
            x = photographs(batch, 1, device)
            entries = 180 * SIZE * SIZE * 2  # about two rays per pixel and view
            bound = floor.seconds(4 * x.numel(), 2 * 8 * entries)
            yield iteration(f"CT 256: CG iteration, batch {batch}", scaled, theirs, x, goal, bound)
    large = torch.arange(180, dtype=torch.float64) * math.pi / 180
    probe = torch.zeros((1, 1, 2 * SIZE, 2 * SIZE), device=device)

    def our_build() -> None:
        built = ParallelBeamCT((1, 2 * SIZE, 2 * SIZE), large).to(device)
        built.adjoint(built(probe))

    def their_build() -> None:
        built = physics.Tomography(angles=180, img_width=2 * SIZE, circle=False, normalize=True, device=device)
        built.A_adjoint(built.A(probe))

    yield Line("CT 512, 180 views: build", our_build, None if physics is None else their_build, 5.0, repeats=1)


def mri(physics: Any, device: torch.device, floor: Floor | None) -> Iterator[Line]:
    generator = torch.Generator().manual_seed(1)
    coils = 8
    line = (torch.rand(SIZE, generator=generator) < 0.25).float()
    line[SIZE // 2 - 10 : SIZE // 2 + 10] = 1
    points = (torch.rand((SIZE, SIZE), generator=generator) < 0.25).float()
    points[SIZE // 2 - 10 : SIZE // 2 + 10, SIZE // 2 - 10 : SIZE // 2 + 10] = 1
    rows = torch.linspace(-1, 1, SIZE)
    centres = torch.polar(torch.ones(coils), torch.arange(coils) * 2 * math.pi / coils)
    distance = (rows[:, None, None] - centres.imag) ** 2 + (rows[:, None] - centres.real) ** 2
    maps = torch.polar(torch.exp(-distance), distance).permute(2, 0, 1).contiguous()
    maps = maps / maps.abs().square().sum(0, keepdim=True).sqrt()
    masks = {"columns": line[None, :], "rows": line[:, None], "points": points}
    for kind, mask in masks.items():
        full = mask.expand(SIZE, SIZE)
        ours, theirs, name = CartesianMRI(full, maps).to(device), None, f"MRI 256, 8 coils, {kind}:"
        if physics is not None:
            theirs = physics.MultiCoilMRI(
                mask=full.expand(1, 1, SIZE, SIZE).clone(), coil_maps=maps[None], img_size=(SIZE, SIZE), device=device
            )
        yield from products(name, ours, theirs, photographs(1, 2, device), (None, None))
        for batch in (1, 16):
            few = 2 if batch > 1 and floor is None else None  # seconds each on a CPU
            x = photographs(batch, 2, device)
            yield solves(f"{name} solve, batch {batch}", ours, theirs, x, 3.0, DAMPING, repeats=few)
        for batch, goal in ((1, 4.0), (16, 2.0)):
            if floor is not None:  # on a CPU the solves say the same
                x = photographs(batch, 2, device)
                bound = floor.seconds(4 * x.numel(), 8 * coils * SIZE * SIZE * (2 + 4 * batch))
                yield iteration(f"{name} CG iteration, batch {batch}", ours, theirs, x, goal, bound)


def circular(physics: Any, device: torch.device, floor: Floor | None) -> Iterator[Line]:
    kernel = gaussian_kernel(3.0, 61).float().to(device)
    shape, x = (3, SIZE, SIZE), photographs(1, 3, device)
    ours = Blur(kernel.cpu(), shape).to(device)
    theirs = None if physics is None else physics.BlurFFT(img_size=shape, filter=kernel[None, None], device=device)
    yield from products("circular blur:", ours, theirs, x, (None, 3.0))
    yield solves("circular blur: solve", ours, theirs, x, 1.5, DAMPING)


def noncircular(physics: Any, device: torch.device, floor: Floor | None) -> Iterator[Line]:
    shape, x = (3, SIZE, SIZE), photographs(1, 3, device)
    generator = torch.Generator().manual_seed(2)
    kernels = {
        "Gaussian 61 x 61": gaussian_kernel(3.0, 61),
        "Gaussian 9 x 9": gaussian_kernel(1.5, 9),
        "random 15 x 15": torch.rand((15, 15), generator=generator, dtype=torch.float64),
    }
    names = {"zero": "constant"}
    for name, values in kernels.items():
        kernel = (values / values.sum()).float().to(device)
        for boundary in ("valid", "reflect", "replicate", "zero"):
            ours = Blur(kernel.cpu(), shape, boundary).to(device)  # type: ignore[arg-type]
            theirs = None
            if physics is not None:
                padding = names.get(boundary, boundary)
                theirs = physics.Blur(filter=kernel[None, None], padding=padding, device=device)
            yield solves(f"{boundary} blur, {name}: solve", ours, theirs, x, 3.0, DAMPING, repeats=3)


def decimated(physics: Any, device: torch.device, floor: Floor | None) -> Iterator[Line]:
    kernel = gaussian_kernel(2.0, 17).float().to(device)
    shape, x = (3, SIZE, SIZE), photographs(1, 3, device)
    ours = (Downsample(4, shape, "none") @ Blur(kernel.cpu(), shape)).to(device)
    theirs = None
    if physics is not None:
        theirs = physics.Downsampling(
            img_size=shape, filter=kernel[None, None], factor=4, padding="circular", device=device
        )
    yield from products("decimated blur:", ours, theirs, x, (None, 3.0))
    yield solves("decimated blur: solve", ours, theirs, x, 1.5, DAMPING)


def inpainting(physics: Any, device: torch.device, floor: Floor | None) -> Iterator[Line]:
    shape, x = (3, SIZE, SIZE), photographs(1, 3, device)
    mask = (torch.rand((SIZE, SIZE), generator=torch.Generator().manual_seed(3)) > 0.7).float()
    ours = Mask(mask, shape).to(device)
    theirs = (
        None if physics is None else physics.Inpainting(img_size=shape, mask=mask.expand(shape).clone(), device=device)
    )
    yield solves("inpainting: solve", ours, theirs, x, 1.0, DAMPING)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SECTIONS = {f.__name__: f for f in (ct, mri, circular, noncircular, decimated, inpainting)}


def seconds(call: Call, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    value = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start, value


def measure(line: Line, repeats: int, device: torch.device, clock: Callable[[], float]) -> str:
    """The finished line of the table."""
    count = line.repeats or repeats
    calls = [line.ours] if line.theirs is None else [line.ours, line.theirs]
    spent: list[list[float]] = [[] for _ in calls]
    results: list[Any] = [None] * len(calls)
    if count > 1:
        for call in calls:
            call()
            call()  # graphs are captured at the second call of a kind
    for _ in range(count):
        for index, call in enumerate(calls):
            taken, results[index] = seconds(call, device, clock)
            spent[index].append(taken / line.per)
    times = [statistics.median(values) for values in spent]
    cells = [line.what, f"{1e3 * times[0]:.2f} ms"]
    cells.append(f"{1e3 * times[1]:.2f} ms" if len(times) > 1 else "-")
    cells.append(f"{times[1] / times[0]:.1f}x" if len(times) > 1 else "-")
    cells.append("-" if line.goal is None or math.isnan(line.goal) else f">= {line.goal:g}x")
    accuracy = "-"
    if line.residuals is not None:
        accuracy = " / ".join(f"{f(x):.0e}" for f, x in zip(line.residuals, results, strict=False))
    cells.append(accuracy)
    cells.append(f"{line.floor / times[0]:.0%}" if line.floor else "-")
    return "| " + " | ".join(cells) + " |"


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a large copy reads and writes."""
    source = torch.empty(1 << 28, device=device)
    target = torch.empty_like(source)
    taken = min(seconds(lambda: target.copy_(source), device)[0] for _ in range(10))
    return 2 * 4 * source.numel() / taken


def load_deepinv() -> Any:
    try:
        import deepinv
    except ImportError:
        print("deepinv is not installed: its columns stay empty (pip install deepinv).\n")
        return None
    print(f"deepinv {deepinv.__version__}")
    return deepinv.physics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    parser.add_argument("--repeats", type=int, default=7, help="repetitions of each side")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both sides")
    parser.add_argument("--device", default="", help="cpu or cuda; both, one after the other, if there is a GPU")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: with one thread, on a busy machine")
    options = parser.parse_args()
    if options.clock == "cpu" and (options.threads > 1 or options.device == "cuda"):
        parser.error("--clock cpu adds up all threads' time; it needs --threads 1 --device cpu")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="deepinv")
    physics = load_deepinv()
    print(f"torch {torch.__version__}, {options.threads} threads, {platform.processor() or platform.machine()}, seed 0")
    print(f"{options.clock} time, medians of {options.repeats} or the fewer that slow lines take")
    names = [options.device] if options.device else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for name in names:
        device = torch.device(name)
        floor = Floor(copy_bandwidth(device)) if device.type == "cuda" else None
        where = torch.cuda.get_device_name(device) if floor else "CPU"
        speed = f", copies {floor.bandwidth / 1e9:.0f} GB/s" if floor else ""
        print(f"\n{where}{speed}; damping {DAMPING}, tolerance {RTOL:.0e}\n")
        print("| | invsolve | deepinv | ratio | goal | residual, ours / theirs | share of the bandwidth floor |")
        print("|---|---|---|---|---|---|---|")
        for section in options.only:
            for line in SECTIONS[section](physics, device, floor):
                print(measure(line, options.repeats, device, CLOCKS[options.clock]))
                sys.stdout.flush()


if __name__ == "__main__":
    main()
