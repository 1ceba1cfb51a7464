"""The JSON beside each output: how it was made, and whether it must be made again."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

from invsolve.cli.errors import explain_os_error, show_path


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise explain_os_error(error, f"reading {show_path(path)}") from error
    return digest.hexdigest()


def settings_hash(settings: dict[str, Any]) -> str:
    """SHA-256 of settings, independent of their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> dict[str, Any] | None:
    """A sidecar, or None if there is none that can be understood."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    versions = content.get("versions") if isinstance(content, dict) else None
    return content if isinstance(versions, dict) and "invsolve" in versions else None


def recorded(path: Path) -> set[str]:
    """Names of the files that a sidecar says invsolve made, itself included; none if it is no sidecar."""
    record = read(path)
    if record is None:
        return set()
    lists = [record.get(key) for key in ("outputs", "earlier_outputs")]
    names = [name for found in lists if isinstance(found, list) for name in found]
    return {path.name} | {name for name in names if isinstance(name, str) and Path(name).name == name != ""}


def is_done(path: Path, settings_digest: str, input_digest: str, outputs: list[Path]) -> bool:
    """Whether these outputs exist and were made from this input with these settings."""
    record = read(path)
    return (
        record is not None
        and record.get("settings_hash") == settings_digest
        and record.get("input_sha256") == input_digest
        and all(output.is_file() for output in outputs)
    )


def write(path: Path, record: dict[str, Any], *, final: Path) -> None:
    """Write a record as JSON."""
    try:
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise explain_os_error(error, f"writing {show_path(final)}") from error


def versions() -> dict[str, str]:
    """What computed a result."""
    import numpy
    import PIL
    import torch

    from invsolve import __version__

    return {
        "invsolve": __version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
