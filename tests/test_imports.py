"""Imports: one direction, cheap, and under one name."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "invsolve.operators": {"invsolve.operators"},
    "invsolve.priors": {"invsolve.priors"},
    "invsolve.samplers": {"invsolve.operators", "invsolve.priors", "invsolve.samplers"},
    "invsolve.problems": {"invsolve.operators", "invsolve.problems"},
    "invsolve.training": {"invsolve.operators", "invsolve.priors", "invsolve.training"},
}
"""Parts of the project that a package may import, at any depth of its code. `solve`, `bench` and `cli` sit on top."""

LATE = {"deepinv", "diffusers", "lpips", "matplotlib", "ray", "scipy", "skimage"}
"""Imported where they are used, never while a module is loaded."""


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of the package."""
    for prefix, top in (
        ("invsolve", "invsolve"),
        ("invsolve.operators", "operators"),
        ("invsolve.problems", "problems"),
    ):
        for path in sorted((ROOT / top).rglob("*.py")):  # rglob does not enter the two links
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            yield ".".join([prefix, *parts]).removesuffix(".__init__"), path


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Names of all modules that a syntax tree imports; `from a import b` may mean a.b, and counts as that."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def at_load(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run while the module is loaded: not those in functions, nor those for type checkers only."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            yield from at_load(node.orelse)
            continue
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        inner += [s for child in ast.iter_child_nodes(node) if isinstance(child, ast.ExceptHandler) for s in child.body]
        if inner:
            yield from at_load(inner)
        else:
            yield node


def package_of(name: str, path: Path) -> str:
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_point_one_way(layer: str) -> None:
    seen, wrong = 0, []
    for name, path in modules():
        if not f"{name}.".startswith(f"{layer}."):
            continue
        seen += 1
        for target in imported(ast.parse(path.read_text(encoding="utf-8")), package_of(name, path)):
            allowed = any(f"{target}.".startswith(f"{other}.") for other in MAY_IMPORT[layer])
            if target.split(".")[0] in {"invsolve", "operators", "problems"} and not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {target}")
    assert seen > 0
    assert wrong == []


def test_heavy_modules_are_imported_where_used() -> None:
    wrong = []
    for name, path in modules():
        for node in at_load(ast.parse(path.read_text(encoding="utf-8")).body):
            heavy = {target.split(".")[0] for target in imported(node, package_of(name, path))} & LATE
            wrong += [f"{path.relative_to(ROOT)}:{node.lineno} imports {target}" for target in sorted(heavy)]
    assert wrong == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import scipy.ndimage", {"scipy"}),
        ("try:\n    import ray\nexcept ImportError:\n    import lpips", {"ray", "lpips"}),
        ("if True:\n    from skimage import io\nelse:\n    import deepinv", {"skimage", "deepinv"}),
        ("class A:\n    import matplotlib", {"matplotlib"}),
        ("def f():\n    import scipy", set()),
        ("if TYPE_CHECKING:\n    import deepinv", set()),
        ("class A:\n    def f(self):\n        import scipy", set()),
    ],
)
def test_what_counts_as_load_time(code: str, expected: set[str]) -> None:
    found = {target.split(".")[0] for node in at_load(ast.parse(code).body) for target in imported(node, "invsolve")}
    assert found == expected


def test_relative_imports_are_resolved() -> None:
    tree = ast.parse("from . import base\nfrom ..priors.unet import UNet")
    assert list(imported(tree, "invsolve.samplers")) == ["invsolve.samplers.base", "invsolve.priors.unet.UNet"]


LOADED = """
import json, sys
import torch
before = set(sys.modules)
import invsolve
bare = set(sys.modules)
invsolve.solve, invsolve.operators, invsolve.priors, invsolve.samplers, invsolve.problems
print(json.dumps([sorted(bare - before), sorted(set(sys.modules) - before)]))
"""


def test_import_is_cheap(tmp_path: Path) -> None:
    """Neither `import invsolve` nor the front door and all packages behind it load what is slow to load."""
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=tmp_path, capture_output=True, text=True, check=True)
    bare, whole = (set(names) for names in json.loads(done.stdout))
    assert {name for name in bare if name.startswith("invsolve.")} == set()
    assert {name.split(".")[0] for name in whole} & (LATE | {"PIL", "rich", "tifffile", "typer"}) == set()


@pytest.mark.parametrize("name", ["operators", "problems"])
def test_wrong_top_level_name_is_refused(name: str) -> None:
    """From the checkout `import operators` would load every class a second time, under another name."""
    code = f"import {name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"ImportError: import invsolve.{name}, not {name!r}" in done.stderr


@pytest.mark.parametrize("first", ["invsolve.Posterior", "from invsolve.inference import SolveInfo"])
def test_solve_is_the_function(first: str, tmp_path: Path) -> None:
    """Importing the module of the same name must not put it in the function's place."""
    code = f"import invsolve\n{first}\nassert callable(invsolve.solve), invsolve.solve"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names() -> None:
    import invsolve

    for name in [*invsolve.__all__, "operators", "priors", "problems", "samplers"]:
        assert getattr(invsolve, name) is not None
        assert name in dir(invsolve)
    with pytest.raises(AttributeError, match="no attribute 'slove'"):
        _ = invsolve.slove
