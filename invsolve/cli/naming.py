"""Which files are restored, and what their outputs are called."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from invsolve.cli.errors import UserError, show_path
from invsolve.cli.writing import FORMATS, SUFFIX_FORMATS

IMAGE_SUFFIXES = {*SUFFIX_FORMATS, ".bmp", ".gif", ".ppm", ".pgm", ".pnm"}
DEFAULT_FOLDER = "restored"


@dataclass(frozen=True)
class Job:
    """One photograph and where its results go.

    Args:
        source: the photograph.
        output: the main output.
        kind: its file type, "png", "tiff", "jpg" or "webp".
        relative: the source below what was asked for; masks of a folder are found by it.
    """

    source: Path
    output: Path
    kind: str
    relative: Path

    def sibling(self, ending: str, suffix: str | None = None) -> Path:
        """Another output of this job: restored/a.png -> restored/a_spread.png."""
        return self.output.with_name(self.output.stem + ending + (suffix or self.output.suffix))

    @property
    def sidecar(self) -> Path:
        """The record of how the output was made."""
        return self.output.with_name(self.output.name + ".json")

    def outputs(self, samples: int, degraded: bool) -> list[Path]:
        """All images this job writes."""
        paths = [self.output]
        if samples > 1:
            digits = max(2, len(str(samples)))
            paths += [self.sibling(f"_sample{k + 1:0{digits}d}") for k in range(samples)]
            paths.append(self.sibling("_spread", ".png"))
        if degraded:
            paths.append(self.sibling("_degraded"))
        return paths


def plan(
    inputs: Sequence[str], out: Path | None, wanted: str = "same", *, samples: int = 1, degraded: bool = False
) -> list[Job]:
    """Jobs for files, folders and globs, with outputs that collide neither with each other nor with any input.

    Args:
        inputs: what the user named.
        out: output file (only for one input, by an image suffix) or folder; `restored/` if None.
        wanted: file type of the outputs, or "same".
        samples: posterior samples that will be written.
        degraded: whether a simulated degradation is written too.

    Raises:
        UserError: nothing to restore, or outputs that cannot be.
    """
    is_file = out is not None and out.suffix.lower() in SUFFIX_FORMATS and not out.is_dir()
    folder = (out.parent if is_file else out) if out is not None else Path(DEFAULT_FOLDER)
    sources = find(inputs, None if is_file else folder)
    if is_file and out is not None:
        if len(sources) != 1:
            raise UserError(f"-o {show_path(out)} names one file, but there are {len(sources)} inputs; name a folder.")
        kind = SUFFIX_FORMATS[out.suffix.lower()]
        if wanted not in ("same", kind):
            raise UserError(f"-o {show_path(out)} asks for {kind}, --format for {wanted}; leave one of them out.")
        jobs = [Job(sources[0][0], out, kind, sources[0][1])]
    else:
        jobs = _in_folder(sources, folder, wanted, samples, degraded)
    originals = {_key(job.source): job.source for job in jobs}
    for job in jobs:
        for path in (*job.outputs(samples, degraded), job.sidecar):
            if _key(path) in originals:
                raise UserError(
                    f"{show_path(path)} is an input and would be overwritten; choose another -o than its own folder."
                )
    return jobs


def _in_folder(sources: list[tuple[Path, Path]], folder: Path, wanted: str, samples: int, degraded: bool) -> list[Job]:
    jobs: list[Job] = []
    taken: set[str] = set()
    # A file that keeps its type keeps its name; the others make room.
    ordered = sorted(sources, key=lambda pair: (_kind(pair[1], wanted)[1] != pair[1].suffix, str(pair[1])))
    for source, relative in ordered:
        kind, suffix = _kind(relative, wanted)
        original = relative.suffix.lstrip(".")
        stems = [relative.stem, f"{relative.stem}_{original}"]
        stems += [f"{relative.stem}_{original}{n}" for n in range(2, len(sources) + 3)]
        for stem in stems:
            job = Job(source, folder / relative.parent / (stem + suffix), kind, relative)
            keys = {_key(path) for path in job.outputs(samples, degraded)}
            if not keys & taken:
                break
        taken |= keys
        jobs.append(job)
    return sorted(jobs, key=lambda job: str(job.relative))


def _kind(path: Path, wanted: str) -> tuple[str, str]:
    """(file type, suffix) of the output: TIFF stays TIFF, all else becomes PNG, unless a type is asked for."""
    own = SUFFIX_FORMATS.get(path.suffix.lower())
    kind = ("tiff" if own == "tiff" else "png") if wanted == "same" else wanted
    return kind, path.suffix if own == kind else FORMATS[kind]


def find(inputs: Sequence[str], out: Path | None) -> list[tuple[Path, Path]]:
    """(file, its path below what the user named) for every photograph.

    One folder, or the fixed part of one glob, is left out of the output's path; of several inputs their common folder
    is.

    Args:
        inputs: files, folders and globs.
        out: output folder; what lies in it is not an input, unless it was named itself.
    """
    found: list[Path] = []
    roots: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            below = _below(path, out)
            if not below:
                raise UserError(f"{show_path(path)} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
            found += below
            roots.append(path if len(inputs) == 1 else path.parent)
        elif glob.has_magic(text) and not path.exists():
            matches = [p for p in map(Path, sorted(glob.glob(text, recursive=True))) if p.is_file()]
            matches = [p for p in matches if out is None or not _inside(p, out)]
            if not matches:
                raise UserError(f"no file matches {text!r}.")
            found += matches
            roots.append(_fixed_part(path))
        else:
            found.append(path)  # a missing file is reported with the others, when its turn comes
            roots.append(path.parent)
    base = Path(os.path.commonpath([os.path.abspath(root) for root in roots]))
    unique = {_key(path): path for path in found}
    return [(path, Path(os.path.relpath(os.path.abspath(path), base))) for path in unique.values()]


def _below(folder: Path, out: Path | None) -> list[Path]:
    skip_out = out is not None and _key(out) != _key(folder)
    files = []
    for top, folders, names in os.walk(folder):
        here = Path(top)
        folders[:] = sorted(
            n for n in folders if not n.startswith(".") and not (skip_out and out and _key(here / n) == _key(out))
        )
        files += [here / n for n in sorted(names) if not n.startswith(".") and Path(n).suffix.lower() in IMAGE_SUFFIXES]
    return files


def _fixed_part(pattern: Path) -> Path:
    parts = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts) if parts else Path(".")


def _inside(path: Path, folder: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _key(path: Path) -> str:
    """Equal for two names of one file, also where the file system ignores case."""
    return os.path.realpath(path).casefold()
