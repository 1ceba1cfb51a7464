"""`invsolve doctor`: is everything there, and does it compute?"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-image",
    "pillow",
    "tifffile",
    "safetensors",
    "typer",
    "rich",
    "matplotlib",
)
LITTLE_MEMORY, LITTLE_DISK = 2e9, 0.5e9


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        what: subject.
        text: what was found.
        broken: whether invsolve cannot work so.
        remedy: what to do, if something is to be done.
    """

    what: str
    text: str
    broken: bool = False
    remedy: str = ""


def run() -> int:
    """Print the report; 1 if something is broken."""
    broken = 0
    for check in (_versions, _device, _memory, _disk, _priors, _self_test):
        for finding in _safely(check):
            status = "problem" if finding.broken else ("note" if finding.remedy else "OK")
            print(f"{status:8}{finding.what:14}{finding.text}", flush=True)
            if finding.remedy:
                print(f"{'':8}{'':14}-> {finding.remedy}", flush=True)
            broken += finding.broken
    print("everything works." if not broken else f"{broken} problem(s).")
    return 1 if broken else 0


def _safely(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # the doctor must survive whatever is broken
        name = check.__name__.strip("_").replace("_", " ")
        first = (str(error).strip() or "no message").splitlines()[0]
        yield Finding(
            name, f"{type(error).__name__}: {first}", True, "reinstall: pip install --force-reinstall invsolve"
        )


def _versions() -> Iterator[Finding]:
    from invsolve import __version__

    yield Finding("invsolve", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            yield Finding(package, "is not installed", True, f"pip install {package}")
    yield Finding("packages", ", ".join(found))


def _device() -> Iterator[Finding]:
    import torch

    from invsolve.priors.unet import fast_dtype

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        device = torch.device("cuda")
        yield Finding("device", f"cuda: {properties.name}, {properties.total_memory / 1e9:.1f} GB")
    else:
        device = torch.device("cpu")
        yield Finding("device", f"cpu, {torch.get_num_threads()} of {os.cpu_count()} threads (no CUDA device)")
    native = fast_dtype(device) is torch.bfloat16
    yield Finding("bfloat16", "native, networks use it" if native else "not native, networks run in float32")


def _memory() -> Iterator[Finding]:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        yield Finding("memory", "unknown on this system")
        return
    available = _available() or free
    remedy = "close other programs; images above a few megapixels will not fit" if available < LITTLE_MEMORY else ""
    yield Finding("memory", f"{available / 1e9:.1f} GB available of {total / 1e9:.1f} GB", remedy=remedy)


def _available() -> int | None:
    """Memory that Linux would give without swapping; "free" alone leaves out the caches."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _disk() -> Iterator[Finding]:
    for what, folder in (("disk here", Path.cwd()), ("disk, temp", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        remedy = "free some space" if free < LITTLE_DISK else ""
        yield Finding(what, f"{free / 1e9:.1f} GB free in {folder}", remedy=remedy)


def _priors() -> Iterator[Finding]:
    from invsolve.priors.registry import SHIPPED, load_prior

    for name, shipped in SHIPPED.items():
        try:
            prior = load_prior(name)
        except (ValueError, OSError) as error:
            yield Finding(f"prior {name}", str(error), True, "reinstall invsolve; the file belongs to the package")
        else:
            count = sum(p.numel() for p in prior.parameters())
            yield Finding(f"prior {name}", f"{shipped.path.stat().st_size / 1e6:.1f} MB, {count / 1e6:.1f} M weights")


def _self_test() -> Iterator[Finding]:
    import torch

    from invsolve.operators.blur import Blur
    from invsolve.operators.kernels import gaussian_kernel
    from invsolve.priors.registry import SHIPPED, load_prior
    from invsolve.priors.unet import UNetConfig, UNetPrior

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((1, 3, 64, 64), generator=generator).to(device)
    operator = Blur(gaussian_kernel(1.0), (3, 64, 64), boundary="reflect").to(device)
    started = time.perf_counter()
    solution = operator.solve(operator.normal(x) + 0.1 * x, 0.1)
    seconds = time.perf_counter() - started
    error = float((solution - x).norm() / x.norm())
    wrong = not error < 1e-3
    text = f"relative error {error:.1e}, {1000 * seconds:.0f} ms"
    yield Finding("CG solve", text, wrong, "report this as a bug" if wrong else "")
    there = SHIPPED["natural"].path.is_file()
    prior = (load_prior("natural") if there else UNetPrior(UNetConfig())).to(device).eval()
    x = 2 * torch.rand((1, 3, 256, 256), generator=generator).to(device) - 1
    with torch.inference_mode():
        prior.denoise(x, 0.5)
        started = time.perf_counter()
        denoised = prior.denoise(x, 0.5)
        finite = bool(torch.isfinite(denoised).all())
        seconds = time.perf_counter() - started
    text = f"{1000 * seconds:.0f} ms for 256 x 256 pixels" + ("" if there else ", with random weights")
    yield Finding("denoiser", text, not finite, "" if finite else "try --dtype float32")
