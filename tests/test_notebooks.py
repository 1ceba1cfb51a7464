"""Notebooks are stored without outputs and run from top to bottom."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Any:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.fixture
def executed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook of that name with its outputs, run far from the checkout with folders of its own for settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of Jupyter's own
        from nbclient import NotebookClient

        folder = tmp_path_factory.mktemp("notebook")
        notebook = read(FOLDER / f"{request.param}.ipynb")
        with pytest.MonkeyPatch.context() as patch:
            for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
                patch.setenv(name, str(folder / name.lower()))
            patch.delenv("MPLBACKEND", raising=False)
            client = NotebookClient(
                notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
            )
            client.execute()
    return notebook


def printed(notebook: Any) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def pictures(notebook: Any) -> int:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"quickstart", "samplers"}


@pytest.mark.parametrize("executed", ["quickstart"], indirect=True)
def test_quickstart(executed: Any) -> None:
    text = printed(executed)
    residuals = re.search(r"of each sample: \[(.*)\]", text)
    assert residuals is not None
    # DiffPIR's data step is a mode, not a draw: it follows the noise of the known pixels to some degree.
    assert all(0.4 < float(value) < 1.1 for value in residuals[1].split(","))
    decibels = [float(value) for value in re.findall(r"([\d.]+) dB", text)]
    measured, *samples, mean = decibels
    assert len(samples) == 4
    assert mean > max(samples) > min(samples) > measured + 5
    errors = re.search(r"spread is least ([\d.]+), where it is largest ([\d.]+)", text)
    assert errors is not None
    assert 2 * float(errors[1]) < float(errors[2])
    assert pictures(executed) == 1


@pytest.mark.parametrize("executed", ["samplers"], indirect=True)
def test_samplers(executed: Any) -> None:
    text = printed(executed)
    wrong = {name: float(share) for name, share in re.findall(r"(\w+|exact samples): ([\d.]+) of the weight", text)}
    assert len(wrong) == 7
    assert wrong.pop("exact samples") < 0.05  # the floor
    assert wrong.pop("tds") < 0.05 < min(wrong.values())
    (measured,) = re.findall(r"measured: ([\d.]+) dB", text)
    rows = re.findall(r"(\w+): ([\d.]+) dB, residual ([\d.]+), (\d+) evaluations forward, (\d+) backward", text)
    assert [row[0] for row in rows] == ["dps", "pigdm", "ddrm", "dds", "diffpir", "daps"]
    assert all(0.8 < float(row[2]) < 1.3 for row in rows)
    assert all(0 < int(row[3]) <= 25 for row in rows)
    assert max(float(row[1]) for row in rows) > float(measured) + 2
    assert pictures(executed) == 2
