"""`invsolve certify`: samplers against exact posteriors."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from invsolve.certify import closed_forms, report
from invsolve.certify.calibration import Calibration, calibrate, calibrated_problem
from invsolve.certify.closed_forms import Moments, measure
from invsolve.certify.mixture import CELLS, MixtureProblem, Score, score
from invsolve.certify.pictures import PointCloud, picture, pictured_problem, point_cloud
from invsolve.certify.settings import REFERENCE, reference
from invsolve.cli.errors import UserError, explain_os_error, show_path
from invsolve.cli.progress import Reporter
from invsolve.cli.writing import Transaction, check_writable
from invsolve.samplers.base import Sampler
from invsolve.samplers.presets import PRESETS, SAMPLERS, choose

DIMENSIONS = (8, 80, 800)
Make = Callable[[MixtureProblem], Sampler]
"""The sampler for a problem: settings of the preset "reference" follow its size."""


@dataclass(frozen=True)
class CertifyOptions:
    """What `invsolve certify` was asked for; see its --help."""

    methods: tuple[str, ...]
    preset: str = "best"
    settings: tuple[str, ...] = ()
    problems: int = 20
    samples: int = 2000
    dims: str = "8,80,800"
    quick: bool = False
    out: Path = Path("certify")
    quiet: bool = False


@dataclass
class Findings:
    """Everything measured so far."""

    rows: list[dict[str, object]] = dataclasses.field(default_factory=list)
    moments: dict[str, Moments] = dataclasses.field(default_factory=dict)
    calibration: dict[str, Calibration] = dataclasses.field(default_factory=dict)
    clouds: dict[str, PointCloud] = dataclasses.field(default_factory=dict)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)

    def text(self) -> str:
        """The report for reading."""
        parts = []
        if self.rows:
            parts = [report.as_text(self.rows), report.moments_text(self.moments)]
            parts.append(report.calibration_text(self.calibration))
        parts += [f"{name}: {reason}" for name, reason in self.refused.items()]
        return "\n\n".join(parts) + "\n"


def run(options: CertifyOptions) -> int:
    """Certify one method after another; the report is rewritten after each, so that a stopped run keeps its results."""
    everything = REFERENCE if options.preset == "reference" else SAMPLERS
    samplers = [_named(name, options) for name in options.methods or tuple(sorted(everything))]
    labels = [label for label, _ in samplers]
    if len(set(labels)) < len(labels):
        raise UserError(f"methods are named twice: {', '.join(labels)}.")
    dims = _dims(options)
    problems, samples = (3, 500) if options.quick else (options.problems, options.samples)
    for flag, value, least in (("--problems", problems, 1), ("--samples", samples, 50)):
        if value < least:
            raise UserError(f"{flag} is {value}; expected at least {least}.")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"-o {show_path(options.out)} is a file; name a folder.")
    check_writable(options.out)
    cells = [cell for cell in CELLS if cell[0] in dims]
    findings = Findings()
    with Reporter(options.quiet, total=len(samplers)) as reporter:
        for label, make in samplers:
            reporter.start(label)
            started = time.monotonic()
            try:
                scores = _scores(make, cells, problems, samples, reporter)
                _record(findings, label, make, scores, options.quick)
                _write(findings, label, make, options.out)
            except ValueError as error:  # the method cannot serve this problem, or diverged; the others go on
                findings.refused[label] = str(error)
                if len(samplers) == 1:
                    raise UserError(f"{label}: {error}") from error
                reporter.say(f"left out: {error}")
                continue
            reporter.say(f"done in {time.monotonic() - started:.0f} s")
    if not findings.rows:
        raise UserError(f"none of {', '.join(labels)} can be certified: {next(iter(findings.refused.values()))}")
    if not options.quiet:
        print(findings.text(), end="")
        print(f"written: certify.txt, certify.csv and a picture of each method in {show_path(options.out)}")
    return 0


def _scores(
    make: Make, cells: Sequence[tuple[int, int]], problems: int, samples: int, reporter: Reporter
) -> dict[tuple[int, int], list[Score]]:
    done, total = 0, problems * sum(d for d, _ in cells)
    scores: dict[tuple[int, int], list[Score]] = {}
    for d, m in cells:
        scores[d, m] = []
        for seed in range(problems):
            problem = MixtureProblem.make(d, m, seed)
            scores[d, m].append(score(make(problem), problem, samples, seed))
            done += d
            reporter.step(done, total, f"d={d}, d_y={m}, problem {seed + 1} of {problems}")
    return scores


def _record(
    findings: Findings, label: str, make: Make, scores: dict[tuple[int, int], list[Score]], quick: bool
) -> None:
    moments = measure(make(closed_forms.problem()))
    calibration = calibrate(make(calibrated_problem()), truths=100 if quick else 200)
    name = make(calibrated_problem()).name()
    findings.rows += [report.row(name, cell, found) | {"method": label} for cell, found in scores.items()]
    findings.moments[label] = moments
    findings.calibration[label] = calibration


def _write(findings: Findings, label: str, make: Make, folder: Path) -> None:
    findings.clouds[label] = point_cloud(make(pictured_problem()))
    try:
        with Transaction() as files:
            files.path(folder / "certify.csv").write_text(report.as_csv(findings.rows), encoding="utf-8")
            files.path(folder / "certify.txt").write_text(findings.text(), encoding="utf-8")
            file = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', label)}.png"
            picture({label: findings.clouds[label]}, files.path(file))
            if len(findings.clouds) > 1:
                picture(findings.clouds, files.path(folder / "clouds.png"))
            files.commit()
    except OSError as error:
        raise explain_os_error(error, f"writing into {show_path(folder)}") from error


def _dims(options: CertifyOptions) -> tuple[int, ...]:
    text = "8" if options.quick else options.dims
    try:
        dims = tuple(int(part) for part in text.split(","))
    except ValueError:
        dims = ()
    if not dims or not set(dims) <= set(DIMENSIONS):
        raise UserError(f"--dims is {text!r}; expected some of 8,80,800.")
    return dims


def _named(name: str, options: CertifyOptions) -> tuple[str, Make]:
    """(label, maker) for a shipped name or module:Class."""
    if options.preset not in (*PRESETS, "reference"):
        raise UserError(f"unknown preset {options.preset!r}; expected one of {', '.join(PRESETS)}, reference.")
    if ":" in name:
        own = _with(_imported(name), options.settings)
        return name.rpartition(":")[2], lambda _: own

    def make(problem: MixtureProblem) -> Sampler:
        if options.preset == "reference" and name in REFERENCE:
            return _with(reference(name, problem), options.settings)
        preset = "best" if options.preset == "reference" else options.preset
        return _with(choose(name, preset, problem.measurement(1), num_samples=2), options.settings)

    try:
        make(calibrated_problem())
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{error} A sampler of your own is named module:Class.") from error
    return name, make


def _imported(name: str) -> Sampler:
    module, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:  # as `python -m` does
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise UserError(f"{name}: the module {module!r} cannot be imported ({error}).") from error
    except AttributeError as error:
        raise UserError(f"{name}: the module {module!r} has no {attribute!r}.") from error
    if isinstance(found, type) and issubclass(found, Sampler):
        try:
            return found()
        except TypeError as error:
            raise UserError(
                f"{name} needs arguments ({error}); name a sampler object of the module instead."
            ) from error
    if isinstance(found, Sampler):
        return found
    raise UserError(f"{name} is no invsolve.samplers.Sampler; derive the class from it.")


def _with(sampler: Sampler, settings: tuple[str, ...]) -> Sampler:
    changes = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or key not in sampler.settings():
            raise UserError(
                f"--set {text!r} is not NAME=VALUE with a setting of {sampler.name()}: {', '.join(sampler.settings())}."
            )
        try:
            changes[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            changes[key] = value
    try:
        return dataclasses.replace(sampler, **changes)
    except (ValueError, TypeError) as error:
        raise UserError(f"--set {' '.join(settings)}: {error}") from error
