"""What is shipped: every package, every data file, free licences, nothing of the machine it was made on."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import invsolve
from invsolve.priors.registry import SHIPPED

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONFIG = PROJECT["tool"]["setuptools"]


def test_every_package_directory_is_listed() -> None:
    on_disk = {
        ".".join([name, *init.parent.relative_to(ROOT / top).parts])
        for name, top in CONFIG["package-dir"].items()
        for init in (ROOT / top).rglob("__init__.py")  # rglob does not enter the two links
    }
    assert on_disk == set(CONFIG["packages"])


def test_every_module_lies_in_a_package() -> None:
    """A folder without __init__.py imports fine from the checkout, and is missing from the wheel."""
    for top in set(CONFIG["package-dir"].values()):
        lost = {path.parent for path in (ROOT / top).rglob("*.py") if not (path.parent / "__init__.py").exists()}
        assert not lost


def test_data_files_are_listed() -> None:
    folder = ROOT / "invsolve" / "data"
    listed = {path for pattern in CONFIG["package-data"]["invsolve.data"] for path in folder.glob(pattern)}
    present = {path for path in folder.iterdir() if path.is_file() and path.suffix not in {".py", ".state"}}
    assert present == listed
    weights = {f"{name}.{suffix}" for name in SHIPPED for suffix in ("safetensors", "md")}
    assert {"demo.png", *weights} <= {path.name for path in listed}
    assert (ROOT / "invsolve" / "py.typed").exists()


@pytest.mark.parametrize("name", ["operators", "problems"])
def test_links_are_relative(name: str) -> None:
    link = ROOT / "invsolve" / name
    if not link.is_symlink():
        pytest.skip("an unpacked sdist, or a file system without links")
    assert link.readlink() == Path("..", name)


def test_versions_agree() -> None:
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation is not None
    assert citation[1] == invsolve.__version__
    assert f"## [{invsolve.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert metadata.version("invsolve") == invsolve.__version__


def closure(roots: list[str]) -> dict[str, metadata.Distribution]:
    """Installed distributions that these requirements pull in, by name."""
    found: dict[str, metadata.Distribution] = {}
    pending = [Requirement(text) for text in roots]
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # needed elsewhere only, or a part of an extra
        pending += [Requirement(text) for text in found[name].requires or []]
    return found


def is_gpl(distribution: metadata.Distribution) -> bool:
    """Whether the metadata name the GPL or AGPL, without the LGPL and without an exception that frees the user."""
    meta = distribution.metadata
    short = [text for text in meta.get_all("License") or [] if len(text) < 200]  # longer ones are whole licence texts
    texts = [*(meta.get_all("License-Expression") or []), *short, *(meta.get_all("Classifier") or [])]
    gpl = re.compile(r"(?<![A-Za-z])A?GPL(?!\S* WITH )|(?<!Lesser )General Public License", re.IGNORECASE)
    return any(gpl.search(re.sub(r"Library or Lesser", "Lesser", text)) for text in texts)


@pytest.mark.parametrize("extra", ["", "test"])
def test_no_gpl(extra: str) -> None:
    project = PROJECT["project"]
    found = closure(project["optional-dependencies"][extra] if extra else project["dependencies"])
    assert {"torch", "numpy"} <= found.keys() or extra
    assert [name for name, distribution in found.items() if is_gpl(distribution)] == []


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("License-Expression", "GPL-3.0-or-later", True),
        ("License-Expression", "MIT AND GPL-2.0-only", True),
        ("License-Expression", "BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1", False),
        ("License-Expression", "LGPL-2.1-or-later", False),
        ("License", "GPLv3", True),
        ("License", "AGPL-3.0", True),
        ("Classifier", "License :: OSI Approved :: GNU General Public License v3 (GPLv3)", True),
        ("Classifier", "License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)", False),
        ("Classifier", "License :: OSI Approved :: GNU Library or Lesser General Public License (LGPL)", False),
        ("Classifier", "License :: OSI Approved :: BSD License", False),
    ],
)
def test_gpl_is_recognised(tmp_path: Path, field: str, value: str, expected: bool) -> None:
    (tmp_path / "METADATA").write_text(f"Metadata-Version: 2.4\nName: some\nVersion: 1\n{field}: {value}\n")
    assert is_gpl(metadata.PathDistribution(tmp_path)) is expected


def test_torchvision_is_not_pulled_in() -> None:
    """It pins torch to one version, so that installing it replaces a CPU-only build."""
    assert "torchvision" not in closure(PROJECT["project"]["dependencies"])


def test_no_path_of_a_machine() -> None:
    """Files in the repository name no folder of the machine that they were written on."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    private = re.compile(r"(?<![\w.*)}$-])/(work|root|opt|home|Users|mnt)/\w|file:/{2}")
    hits = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_symlink() or not path.is_file() or path.suffix in {".png", ".safetensors", ".npz", ".npy"}:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if private.search(line):
                hits.append(f"{name}:{number}: {line.strip()}")
    assert hits == []
