"""Which files are restored and what their outputs are called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from invsolve.cli import sidecar
from invsolve.cli.errors import UserError
from invsolve.cli.naming import plan
from invsolve.cli.writing import Transaction


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("in/a.jpg", "in/a.png", "in/B.TIF", "in/deep/er/c.webp", "in/notes.txt", "in/.hidden/d.png", "e.bmp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(*inputs: str, out: str | None = None, **options: object) -> dict[str, str]:
    jobs = plan(inputs, Path(out) if out else None, **options)  # type: ignore[arg-type]
    return {job.source.as_posix(): job.output.as_posix() for job in jobs}


def test_one_file_defaults_to_the_restored_folder(here: Path) -> None:
    assert outputs("in/a.jpg") == {"in/a.jpg": "restored/a.png"}
    assert outputs("e.bmp", out="x.tif") == {"e.bmp": "x.tif"}
    assert outputs("e.bmp", out="folder") == {"e.bmp": "folder/e.png"}


def test_folder_is_mirrored_without_collisions(here: Path) -> None:
    assert outputs("in", out="o") == {
        "in/a.jpg": "o/a_jpg.png",
        "in/a.png": "o/a.png",
        "in/B.TIF": "o/B.TIF",
        "in/deep/er/c.webp": "o/deep/er/c.png",
    }


def test_glob_keeps_what_follows_its_fixed_part(here: Path) -> None:
    assert outputs("in/**/*.webp", out="o") == {"in/deep/er/c.webp": "o/deep/er/c.png"}
    assert set(outputs("in/*.*g").values()) == {"restored/a.png", "restored/a_jpg.png"}


def test_several_inputs_are_relative_to_their_common_folder(here: Path) -> None:
    assert outputs("in/a.png", "in/deep/er/c.webp", out="o") == {
        "in/a.png": "o/a.png",
        "in/deep/er/c.webp": "o/deep/er/c.png",
    }
    assert outputs("in/a.png", "in/a.png", out="o") == {"in/a.png": "o/a.png"}


def test_output_folder_inside_the_input_is_not_an_input(here: Path) -> None:
    (here / "in/out").mkdir()
    (here / "in/out/a.png").write_bytes(b"x")
    assert "in/out/a.png" not in outputs("in", out="in/out")


@pytest.mark.parametrize(("samples", "degraded", "name"), [(1, True, "a_degraded.png"), (3, False, "a_sample02.png")])
def test_side_outputs_do_not_collide_either(here: Path, samples: int, degraded: bool, name: str) -> None:
    (here / "in" / name).write_bytes(b"x")
    jobs = plan(["in"], Path("o"), samples=samples, degraded=degraded)
    everything = [path for job in jobs for path in job.outputs(samples, degraded)]
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize(
    ("inputs", "out", "options", "message"),
    [
        (["in/a.png"], "in", {}, "overwritten"),
        (["in/a.png"], "in/a.png", {}, "overwritten"),
        (["in"], "in", {}, "overwritten"),
        (["in"], "x.png", {}, "4 inputs"),
        (["nothing*.png"], None, {}, "no file matches"),
        (["in/.hidden/.."], "o.png", {"wanted": "jpg"}, "inputs"),
        (["e.bmp"], "x.png", {"wanted": "tiff"}, "--format"),
    ],
)
def test_impossible_outputs(
    here: Path, inputs: list[str], out: str | None, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan(inputs, Path(out) if out else None, **options)


def test_empty_folder(here: Path) -> None:
    (here / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        plan(["empty"], None)


def test_formats(here: Path) -> None:
    assert outputs("in/a.png", wanted="jpg") == {"in/a.png": "restored/a.jpg"}
    assert outputs("in/B.TIF", wanted="png") == {"in/B.TIF": "restored/B.png"}


def test_transaction_writes_all_or_nothing(tmp_path: Path) -> None:
    old = tmp_path / "b.txt"
    old.write_text("old")

    def fail_half_way() -> None:
        with Transaction() as files:
            files.path(tmp_path / "a.txt").write_text("new")
            files.path(old).write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert [p.name for p in tmp_path.iterdir()] == ["b.txt"]
    assert old.read_text() == "old"
    with Transaction() as files:
        files.path(tmp_path / "new/a.txt").write_text("new")
        files.path(old).write_text("new")
        files.commit()
    assert old.read_text() == (tmp_path / "new/a.txt").read_text() == "new"
    assert not list(tmp_path.rglob("*.tmp"))


def test_is_done_needs_the_same_settings_input_and_outputs(tmp_path: Path) -> None:
    out, record = tmp_path / "a.png", tmp_path / "a.png.json"
    out.write_bytes(b"x")
    content = {"settings_hash": "s", "input_sha256": "i", "versions": {"invsolve": "0"}}
    record.write_text(json.dumps(content))
    assert sidecar.is_done(record, "s", "i", [out])
    assert not sidecar.is_done(record, "other", "i", [out])
    assert not sidecar.is_done(record, "s", "other", [out])
    assert not sidecar.is_done(record, "s", "i", [out, tmp_path / "missing.png"])
    record.write_text("{broken")
    assert not sidecar.is_done(record, "s", "i", [out])
    assert sidecar.settings_hash({"a": 1, "b": 2}) == sidecar.settings_hash({"b": 2, "a": 1})
