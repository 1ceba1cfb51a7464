"""Samplers: time spent outside the network, deepinv's samplers beside ours, and memory per image.

    python tests/benchmarks/samplers.py [--only overhead,deepinv,memory] [--methods dps,ddrm] [--side 256]
                                        [--repeats 3] [--steps 10] [--device auto] [--clock auto]

overhead  whole run / the network's own time in the same run, forward and backward. The measurement is made ready before
          the clock starts; what a sampler computes before its first step counts.
deepinv   the same network and number of steps in deepinv's DPS, DDRM, DiffPIR and PiGDM (needs deepinv): overhead per
          step, which is a run minus the network's own time in it, over the number of
          evaluations.
memory    peak memory of one image above what the process holds before, with activations kept and computed twice.

Runs that are compared take turns; tables hold medians. --clock cpu counts processor time of one thread (start with
OMP_NUM_THREADS=1), which other work on the machine does not disturb; wall is the default, and what a GPU needs.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from invsolve.operators import Blur, Downsample, GaussianNoise, LinearOperator, Measurement, gaussian_kernel
from invsolve.priors import CheckpointedPrior, Prior, load_prior
from invsolve.samplers import DDRM, DPS, DiffPIR, PiGDM, Sampler
from invsolve.samplers.presets import SAMPLERS, choose
from invsolve.units import ModelUnits

NOISE = 0.025
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


class Clock:
    """Seconds from a mark to another, on the processor or on a GPU without waiting for it in between."""

    def __init__(self, kind: str, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.read = time.process_time if kind == "cpu" else time.perf_counter

    def mark(self) -> Any:
        if not self.cuda:
            return self.read()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, second: Any) -> float:
        """Seconds; on a GPU it waits for the second mark."""
        if not self.cuda:
            return float(second - first)
        second.synchronize()
        return float(first.elapsed_time(second)) / 1000


@dataclass
class Timer:
    """Marks around every forward and backward pass of a network."""

    clock: Clock
    forward: list[tuple[Any, Any]] = field(default_factory=list)
    backward: list[tuple[Any, Any]] = field(default_factory=list)

    def around(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        graph = torch.is_grad_enabled() and x.requires_grad
        if graph:
            x = x.view_as(x)  # a node of its own, whose gradient is the last thing the network computes
        start = self.clock.mark()
        out = network(x)
        self.forward.append((start, self.clock.mark()))
        if graph:
            starts: list[Any] = []
            out.register_hook(lambda _: starts.append(self.clock.mark()))  # type: ignore[no-untyped-call]
            x.register_hook(lambda _: self.backward.append((starts[-1], self.clock.mark())))  # type: ignore[no-untyped-call]
        return out

    def seconds(self) -> float:
        return sum(self.clock.between(*pair) for pair in [*self.forward, *self.backward])

    def passes(self) -> str:
        """How many, forward + backward."""
        return f"{len(self.forward)} + {len(self.backward)}" if self.backward else f"{len(self.forward)}"


class TimedPrior(Prior):
    """A prior whose passes are timed."""

    def __init__(self, prior: Prior, timer: Timer) -> None:
        super().__init__(prior.shape, prior.data_range, prior.sigma_min, prior.sigma_max)
        self.prior, self.timer = prior, timer

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return self.timer.around(lambda image: self.prior.denoise(image, sigma), x)


def network(device: torch.device, dtype: str = "auto") -> Prior:
    """The shipped network, as `invsolve.solve` runs it."""
    prior = load_prior("natural", dtype=DTYPES[dtype]).to(device)
    return prior.eval().requires_grad_(False)


def operators(side: int) -> dict[str, LinearOperator]:
    shape = (3, side, side)
    taps = min(61, side // 2 - 1)
    return {
        "blur": Blur(gaussian_kernel(3.0, taps), shape, "circular"),
        "x4": Downsample(4, shape),
        "blur, reflecting": Blur(gaussian_kernel(3.0, taps), shape, "reflect"),
    }


def clean(side: int, device: torch.device) -> Tensor:
    """A smooth picture with edges; the network does the same work on any."""
    axis = torch.linspace(-1, 1, side, device=device)
    rings = (torch.sin(9 * (axis[:, None] ** 2 + axis[None] ** 2)) > 0).float()
    return torch.stack([rings, axis[None].expand(side, -1), axis[:, None].expand(-1, side)])[None] * 0.4 + 0.4


def in_model_units(operator: LinearOperator, device: torch.device) -> Measurement:
    x = clean(operator.in_shape[-1], device)
    y = GaussianNoise(NOISE).sample(operator(x), torch.Generator().manual_seed(0))
    return ModelUnits.between((0.0, 1.0), (-1.0, 1.0), Measurement(y, operator, GaussianNoise(NOISE))).measurement


def timed(run: Callable[[], object], clock: Clock) -> float:
    """Seconds of a run."""
    start = clock.mark()
    run()
    return clock.between(start, clock.mark())


def short(name: str, measurement: Measurement, steps: int) -> Sampler:
    """The method with few steps, and few particles: their number changes the batch, not what is done to each."""
    sampler = choose(name, "fast", measurement)
    wanted = {"num_steps": steps, "num_particles": 2, "num_candidates": 2}
    return replace(sampler, **{key: value for key, value in wanted.items() if key in sampler.settings()})


def overhead(args: argparse.Namespace, device: torch.device, clock: Clock) -> None:
    prior = network(device)
    problems = {name: operator.to(device) for name, operator in operators(args.side).items()}
    measurements = {name: in_model_units(operator, device) for name, operator in problems.items()}
    print(f"\nRun / network, {args.side} x {args.side}, {args.steps} steps, median of {args.repeats}")
    print("goal 1.05 with closed forms (blur: FFT), 1.15 with conjugate gradients (reflecting blur)\n")
    print("| method | evaluations | " + " | ".join(problems) + " |")
    print("|---|---|" + "---|" * len(problems))
    with torch.no_grad():
        prior.denoise(clean(args.side, device), 0.5)  # warm
    for name in args.methods or SAMPLERS:
        cells: list[str] = []
        evaluations = ""
        for measurement in measurements.values():
            sampler = short(name, measurement, args.steps)
            ratios = []
            try:
                for _ in range(args.repeats):
                    timer = Timer(clock)
                    total = timed(
                        lambda sampler=sampler, m=measurement, t=timer: sampler(
                            m, TimedPrior(prior, t), generator=torch.Generator().manual_seed(0)
                        ),
                        clock,
                    )
                    ratios.append(total / timer.seconds())
                    evaluations = timer.passes()
                cells.append(f"{statistics.median(ratios):.3f}")
            except ValueError as error:
                cells.append("diverged" if "not finite" in str(error) else "-")
        print(f"| {name} | {evaluations} | " + " | ".join(cells) + " |", flush=True)


def rivals(side: int, device: torch.device, steps: int) -> dict[tuple[str, str], tuple[Any, Any]]:
    """(method, task) -> ours and deepinv's as functions of a timer."""
    import deepinv
    from deepinv.sampling import PiGDMDataFidelity, PosteriorDiffusion, VariancePreservingDiffusion

    prior = network(device)
    ours = {"blur": operators(side)["blur"].to(device), "x4": operators(side)["x4"].to(device)}
    measurements = {task: in_model_units(operator, device) for task, operator in ours.items()}
    noise_model = deepinv.physics.GaussianNoise(NOISE)
    kernel = gaussian_kernel(3.0, min(61, side // 2 - 1))[None, None].float()
    size = (3, side, side)
    physics = {
        "blur": deepinv.physics.BlurFFT(size, filter=kernel, device=device, noise_model=noise_model),
        "x4": deepinv.physics.Downsampling(
            img_size=size, filter="bicubic", factor=4, padding="circular", device=device, noise_model=noise_model
        ),
    }
    data = {task: p(clean(side, device)) for task, p in physics.items()}

    class Network(deepinv.models.Denoiser):  # type: ignore[misc]
        """Our network on [0, 1]."""

        def __init__(self, timer: Timer) -> None:
            super().__init__()
            self.timer = timer

        def forward(self, x: Tensor, sigma: Any, *_: Any, **__: Any) -> Tensor:
            level = 2 * torch.as_tensor(sigma, device=x.device, dtype=torch.float32).flatten()
            return (self.timer.around(lambda image: prior.denoise(image, level), 2 * x - 1) + 1) / 2

    def vp(timer: Timer) -> Any:
        fidelity = PiGDMDataFidelity()
        solver = deepinv.sampling.DDPMSolver(timesteps=torch.linspace(1, 0, steps, device=device, dtype=torch.float64))
        sde = VariancePreservingDiffusion(device=device, dtype=torch.float64)
        return PosteriorDiffusion(fidelity, Network(timer), sde, solver, device=device)

    sigmas = torch.linspace(1, 0, steps + 1)[:-1].tolist()
    theirs: dict[str, Callable[[Timer], Any]] = {
        "dps": lambda timer: deepinv.sampling.DPS(Network(timer), num_steps=steps, device=device),
        "ddrm": lambda timer: deepinv.sampling.DDRM(Network(timer), sigmas=sigmas),
        "diffpir": lambda timer: deepinv.sampling.DiffPIR(
            Network(timer), deepinv.optim.data_fidelity.L2(), sigma=NOISE, max_iter=steps, device=device
        ),
        "pigdm": vp,
    }
    samplers: dict[str, Sampler] = {
        "dps": DPS(steps, step_size=300 / steps),
        "ddrm": DDRM(steps),
        "diffpir": DiffPIR(steps),
        "pigdm": PiGDM(steps),
    }
    pairs: dict[tuple[str, str], tuple[Any, Any]] = {}
    for name, sampler in samplers.items():
        for task in ours:

            def our_run(timer: Timer, sampler: Sampler = sampler, task: str = task) -> Tensor:
                generator = torch.Generator().manual_seed(0)
                return sampler(measurements[task], TimedPrior(prior, timer), generator=generator)

            def their_run(timer: Timer, name: str = name, task: str = task) -> Any:
                with torch.set_grad_enabled(False):
                    return theirs[name](timer)(data[task], physics[task])

            pairs[name, task] = our_run, their_run
    return pairs


def deepinv_table(args: argparse.Namespace, device: torch.device, clock: Clock) -> None:
    import deepinv

    print(f"\nOverhead per step in ms, {args.side} x {args.side}, {args.steps} steps, deepinv {deepinv.__version__}")
    print(f"median of {args.repeats} runs in turns\n")
    print("| method | task | ours | deepinv | deepinv / ours | whole step, ours | whole step, deepinv |")
    print("|---|---|---|---|---|---|---|")
    for (name, task), pair in rivals(args.side, device, args.steps).items():
        if args.methods and name not in args.methods:
            continue
        results: list[list[tuple[float, float]]] = [[], []]
        reason = ""
        for _ in range(args.repeats):
            for side, run in enumerate(pair):
                if side == 1 and reason:
                    continue
                try:
                    timer = Timer(clock)
                    total = timed(lambda run=run, timer=timer: run(timer), clock)
                    steps = len(timer.forward)  # deepinv's DPS and PiGDM count the noise levels, one more
                    results[side].append((1000 * (total - timer.seconds()) / steps, 1000 * total / steps))
                except (AttributeError, RuntimeError, TypeError, ValueError) as error:
                    if side == 0:
                        raise
                    reason = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
        mine, step = (statistics.median(values) for values in zip(*results[0], strict=True))
        if reason:
            print(f"| {name} | {task} | {mine:.1f} | cannot ({reason}) | | {step:.0f} | |", flush=True)
            continue
        other, their_step = (statistics.median(values) for values in zip(*results[1], strict=True))
        print(
            f"| {name} | {task} | {mine:.1f} | {other:.1f} | {other / mine:.1f} | {step:.0f} | {their_step:.0f} |",
            flush=True,
        )


def memory(args: argparse.Namespace, device: torch.device, clock: Clock) -> None:
    names = args.methods or [name for name, cls in SAMPLERS.items() if cls.needs_gradient]
    print(f"\nPeak memory of one image, {args.side} x {args.side}, MiB (two steps, one particle more than the least)\n")
    print("| method | float32 | computed twice | bfloat16 | computed twice |")
    print("|---|---|---|---|---|")
    for name in names:
        cells = []
        for dtype in ("float32", "bfloat16"):
            for flag in ("kept", "twice"):
                command = [sys.executable, __file__, "--one", name, dtype, flag]
                command += ["--side", str(args.side), "--device", str(device)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                cells.append(done.stdout.strip() if done.returncode == 0 else "failed")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def one_memory(name: str, dtype: str, flag: str, side: int, device: torch.device) -> None:
    """Print the peak of one run, in a process of its own."""
    prior = network(device, dtype)
    used = CheckpointedPrior(prior) if flag == "twice" else prior
    before = 0.0
    for size in (32, side):
        before = peak(device)
        measurement = in_model_units(operators(size)["blur"].to(device), device)
        short(name, measurement, 2)(measurement, used, generator=torch.Generator().manual_seed(0))
    print(f"{peak(device) - before:.0f}")


def peak(device: torch.device) -> float:
    """Most memory so far, MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


PARTS = {"overhead": overhead, "deepinv": deepinv_table, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="samplers, with commas; all if not given")
    parser.add_argument("--side", type=int, default=256, help="of the images in pixels")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clock", choices=("auto", "wall", "cpu"), default="auto")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    device = torch.device(device)
    warnings.simplefilter("ignore")  # solves that stop early in a run of few steps
    if args.one:
        one_memory(*args.one, args.side, device)
        return
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    clock = Clock("wall" if args.clock == "auto" else args.clock, device)
    print(f"{where}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"clock: {args.clock}")
    for part in args.only.split(","):
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; expected some of {', '.join(PARTS)}")
        PARTS[part](args, device, clock)


if __name__ == "__main__":
    main()
