"""The Python blocks of the README run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert blocks
    with Image.open(ROOT / "invsolve" / "data" / "demo.png") as image:
        image.convert("RGB").crop((96, 64, 128, 96)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["posterior"].samples.shape == (4, 1, 3, 32, 32)
    assert capsys.readouterr().out.startswith("(1, 3, 32, 32)")
    assert all(0.5 < row[0] < 1.5 for row in names["posterior"].info.residual)


def test_first_screen() -> None:
    """What it is, and the two commands, within what a terminal or a repository page shows first."""
    first = "\n".join(README.splitlines()[:25])
    for text in ("make demo", "make test", 'pip install -e ".[test]"', "pip install -e ."):
        assert text in first


def test_local_links_exist() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{page} links to {target}"


def test_the_table_is_what_exists() -> None:
    """The table of what is in the box names everything that is registered, and nothing that cannot be imported."""
    from invsolve import operators, priors, samplers
    from invsolve.operators.registry import entries
    from invsolve.samplers.presets import SAMPLERS

    rows = [
        line for line in README.splitlines() if line.startswith(("| operators", "| noise", "| samplers", "| priors"))
    ]
    assert {row.split()[1].rstrip(":") for row in rows} == {"operators", "noise", "samplers", "priors"}
    named = {name for row in rows for name in re.findall(r"`([A-Z]\w+)`", row)}
    assert named <= {*operators.__all__, *samplers.__all__, *priors.__all__}
    registered = {entry.cls.__name__ for entry in entries()} | {cls.__name__ for cls in SAMPLERS.values()}
    assert registered <= named


def test_commands_exist() -> None:
    """The shell examples name real commands and options, each as `--help` knows them."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    lines = [line.split("#")[0] for block in blocks for line in block.splitlines() if line.startswith("invsolve ")]
    assert lines
    wide = os.environ | {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    for line in lines:
        words = line.split()
        done = subprocess.run(
            [sys.executable, "-m", "invsolve", words[1], "--help"], capture_output=True, text=True, env=wide, check=True
        )
        for option in (word for word in words if word.startswith("--")):
            assert re.search(rf"(?<!\S){option}(?!\S)", done.stdout), f"invsolve {words[1]} has no {option}"
