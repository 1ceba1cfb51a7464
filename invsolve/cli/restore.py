"""`invsolve restore`: photographs in, restored photographs and the record of how they were made out."""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from invsolve.cli import sidecar
from invsolve.cli.errors import UserError, explain_os_error, show_path
from invsolve.cli.naming import Job, plan
from invsolve.cli.one_photo import Restored, restore_photo
from invsolve.cli.options import RestoreOptions
from invsolve.cli.progress import Reporter
from invsolve.cli.reading import read_photo
from invsolve.cli.spread import spread_map
from invsolve.cli.tasks import LoadedPrior, TaskSource, check_names
from invsolve.cli.writing import Transaction, check_writable, write_photo
from invsolve.priors.registry import SHIPPED
from invsolve.samplers.presets import SAMPLERS


@dataclass
class Tally:
    """How a run is going."""

    done: int = 0
    skipped: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"{self.done} restored, {self.skipped} already done, {self.failed} failed"


def run(options: RestoreOptions) -> int:
    """Restore everything that was asked for.

    Returns:
        Exit status: 0, or 2 if anything failed.

    Raises:
        UserError: nothing could be started.
    """
    check_names(options)
    options.check()
    jobs = plan(options.inputs, options.out, options.format, samples=options.samples, degraded=options.degrade)
    tasks = TaskSource.of(options)
    for folder in sorted({job.output.parent for job in jobs}):
        check_writable(folder)
    prior = LoadedPrior.of(options.prior)
    tally = Tally()
    with Reporter(options.quiet, len(jobs)) as reporter:
        try:
            for job in jobs:
                reporter.start(show_path(job.source))
                _guarded(job, options, tasks, prior, reporter, tally)
        except KeyboardInterrupt:
            reporter.line(f"{tally}; the same command goes on from here.")
            raise
        if len(jobs) > 1:
            reporter.line(f"{tally}.")
    return 2 if tally.failed else 0


def _guarded(
    job: Job, options: RestoreOptions, tasks: TaskSource, prior: LoadedPrior, reporter: Reporter, tally: Tally
) -> None:
    """One photograph, whose failure must not stop the others."""
    try:
        if _one(job, options, tasks, prior, reporter):
            tally.done += 1
        else:
            tally.skipped += 1
        return
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = str(explain_os_error(error, f"restoring {show_path(job.source)}"))
    except Exception as error:  # one odd file among thousands must not cost the rest
        if "INVSOLVE_DEBUG" in os.environ:
            traceback.print_exc()
        first = (str(error).strip() or "no message").splitlines()[0]
        message = _out_of_memory(error, job, options) or (
            f"{show_path(job.source)}: {type(error).__name__}: {first} (INVSOLVE_DEBUG=1 shows where)"
        )
    tally.failed += 1
    reporter.error(message)


def _out_of_memory(error: Exception, job: Job, options: RestoreOptions) -> str | None:
    """What to do if there was not enough memory; None for any other error.

    PyTorch has a class of its own for this on CUDA alone; elsewhere only the message tells.
    """
    text = str(error)
    graphics = isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in text
    if not (graphics or isinstance(error, MemoryError) or "DefaultCPUAllocator" in text):
        return None
    remedies = ["use a smaller --tile"]
    if not options.checkpoint and getattr(SAMPLERS.get(options.method), "needs_gradient", False):
        remedies.append("--checkpoint")
    if options.samples > 1:
        remedies.append("fewer --samples")
    if graphics:
        remedies.append("--device cpu")
    return f"{show_path(job.source)} needs more memory than there is; {' or '.join(remedies)}."


def _one(job: Job, options: RestoreOptions, tasks: TaskSource, prior: LoadedPrior, reporter: Reporter) -> bool:
    """Restore one photograph; False if that was done before."""
    shown = show_path(job.source)
    if not job.source.exists():
        raise UserError(f"{shown} does not exist.")
    settings = _settings(job, options, tasks, prior)
    settings_digest, input_digest = sidecar.settings_hash(settings), sidecar.file_hash(job.source)
    outputs = job.outputs(options.samples, options.degrade)
    earlier = sidecar.recorded(job.sidecar)
    if not options.force:
        if sidecar.is_done(job.sidecar, settings_digest, input_digest, outputs):
            reporter.say(f"already done, {show_path(job.output)} (--force redoes it)")
            return False
        _check_owned(job, outputs, earlier)
    photo = read_photo(job.source, white=options.white, max_pixels=options.max_pixels)
    for note in photo.notes:
        reporter.say(note)
    restored = restore_photo(photo, tasks.task(job), options, prior, shown, reporter)
    names = [path.name for path in outputs]
    left = sorted(name for name in earlier - {*names, job.sidecar.name} if os.path.lexists(job.output.with_name(name)))
    record = {
        "input": shown,
        "input_sha256": input_digest,
        "outputs": names,
        **({"earlier_outputs": left} if left else {}),
        **restored.record,
        "settings": settings,
        "settings_hash": settings_digest,
        "versions": sidecar.versions(),
    }
    _write(job, options, restored, record)
    reporter.say(f"{show_path(job.output)} ({restored.summary})")
    return True


def _check_owned(job: Job, outputs: list[Path], recorded: set[str]) -> None:
    """Raise UserError for a file in the way that the sidecar of this job does not account for."""
    for path in (*outputs, job.sidecar):
        if os.path.lexists(path) and path.name not in recorded:
            raise UserError(
                f"{show_path(path)} exists and was not made by invsolve for this photograph; "
                "choose another -o, or --force to replace it."
            )


def _settings(job: Job, options: RestoreOptions, tasks: TaskSource, prior: LoadedPrior) -> dict[str, Any]:
    """Everything that decides what is written, and nothing that does not (where, on which device, how loud)."""
    return {
        **tasks.settings(job),
        "noise_std": options.noise_std.strip().lower(),
        "degrade": options.degrade,
        "method": options.method,
        "preset": options.preset,
        "samples": options.samples,
        "seed": options.seed,
        "prior": prior.name if prior.name in SHIPPED else "file",
        "prior_sha256": prior.sha256,
        "dtype": options.dtype,
        "tile": options.tile,
        "format": job.kind,
        "white": options.white,
        "invsolve": sidecar.versions()["invsolve"],
    }


def _write(job: Job, options: RestoreOptions, restored: Restored, record: dict[str, Any]) -> None:
    """All files of one photograph, or none."""
    like = restored.photo
    finals = job.outputs(options.samples, options.degrade)
    with Transaction() as files:
        write_photo(files.path(finals[0]), restored.mean, like, job.kind, final=finals[0], alpha=restored.alpha)
        if options.samples > 1:
            for sample, final in zip(restored.samples, finals[1 : 1 + options.samples], strict=True):
                write_photo(files.path(final), sample, like, job.kind, final=final, alpha=restored.alpha)
            final = finals[1 + options.samples]
            picture, top = spread_map(restored.spread)
            record["spread_map"] = {"file": final.name, "darkest": 0.0, "brightest": top, "unit": "std, white = 1"}
            write_photo(files.path(final), picture.pixels, picture, "png", final=final)
        if options.degrade and restored.degraded is not None:
            alpha = restored.alpha if restored.degraded.shape[:2] == restored.mean.shape[:2] else None
            write_photo(files.path(finals[-1]), restored.degraded, like, job.kind, final=finals[-1], alpha=alpha)
        sidecar.write(files.path(job.sidecar), record, final=job.sidecar)
        files.commit(first_remove=job.sidecar)
