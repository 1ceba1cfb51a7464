"""MRI tasks: patterns, retrospective acceleration, k-space files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from invsolve.operators.mri_fourier import KSpaceWarning, centred_fft2
from invsolve.operators.mri_masks import acceleration
from invsolve.problems.mri import MRI_TASKS, accelerate, mri_problem, read_kspace

HEAD = next(
    (
        p / "shared/data/mri/brain_head_8coil_full_ksp.npy"
        for p in Path(__file__).resolve().parents
        if (p / "shared").is_dir()
    ),
    None,
)


def phantom(coils=6, size=(64, 201)):
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    image = ((rows / 0.8) ** 2 + (columns / 0.6) ** 2 < 1) * (1 + 0.3 * torch.cos(7 * rows + 3 * columns))
    maps = []
    for c in range(coils):
        angle = torch.tensor(2 * torch.pi * c / coils)
        near = (rows - angle.sin()) ** 2 + (columns - angle.cos()) ** 2
        maps.append(torch.polar(torch.exp(-near / 1.5), angle + rows * angle.cos()))
    return centred_fft2(50 * torch.stack(maps) * image)


@pytest.mark.parametrize("name", MRI_TASKS)
def test_patterns_have_the_acceleration_in_their_name(name):
    task, rate = MRI_TASKS[name], int(name.rsplit("-", 1)[1])
    for shape in ((256, 256), (213, 320)):
        assert acceleration(task.mask(shape)) == pytest.approx(rate, rel=0.04)
        assert torch.equal(task.mask(shape, 3), task.mask(shape, 3))
    operator = task.operator((64, 80), seed=1)
    assert operator.in_shape == (2, 64, 80)
    assert operator.acceleration == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize("name", MRI_TASKS)
def test_accelerated_scan_is_consistent(name):
    kspace = phantom()
    scan = accelerate(mri_problem(name), kspace)
    assert scan.y.shape == (1, 6, 64, 201)
    assert torch.equal(scan.operator.restrict(scan.y), scan.y)
    explained = scan.operator(scan.reference)
    assert float((explained - scan.y).norm() / scan.y.norm()) < 0.15
    assert 0.5 < float(scan.reference.norm(dim=1).max()) < 3
    linear = scan.operator.solve_cg(scan.operator.adjoint(scan.y), 1e-2, rtol=1e-3).x
    zero_filled = scan.operator.adjoint(scan.y)
    error = [float((x - scan.reference).norm() / scan.reference.norm()) for x in (linear, zero_filled)]
    assert error[0] < 0.8 * error[1]


def test_one_coil_needs_no_maps():
    scan = accelerate(mri_problem("mri-equispaced-4"), phantom(coils=1))
    assert scan.operator.coil_maps is None
    assert torch.allclose(scan.operator(scan.reference), scan.y, atol=1e-5)


def test_the_seed_changes_the_pattern():
    task = mri_problem("mri-variable-density-8")
    assert not torch.equal(task.mask((64, 64), 0), task.mask((64, 64), 1))


def test_unknown_task():
    with pytest.raises(KeyError, match="mri-equispaced-4"):
        mri_problem("mri-equispaced-5")


def test_files_come_back(tmp_path):
    kspace = phantom().numpy()
    np.save(tmp_path / "a.npy", kspace)
    np.savez(tmp_path / "b.npz", ksp=kspace, traj=np.zeros(3))
    np.savez(tmp_path / "c.npz", other=kspace.astype(np.complex128))
    np.save(tmp_path / "d.npy", kspace[0])
    for name in "a.npy", "b.npz", "c.npz":
        assert np.array_equal(read_kspace(tmp_path / name).numpy(), kspace)
    assert read_kspace(tmp_path / "d.npy").shape == (1, 64, 201)


def test_files_that_are_something_else(tmp_path):
    np.save(tmp_path / "real.npy", np.ones((2, 8, 8)))
    np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(3))
    np.save(tmp_path / "shifted.npy", np.fft.ifftshift(phantom().numpy(), axes=(-2, -1)))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no numbers")
    with pytest.raises(TypeError, match="complex64"):
        read_kspace(tmp_path / "real.npy")
    with pytest.raises(ValueError, match="a, b; name that of k-space"):
        read_kspace(tmp_path / "two.npz")
    with pytest.warns(KSpaceWarning, match="not centred"):
        read_kspace(tmp_path / "shifted.npy")
    for name in "object.npy", "text.npy":
        with pytest.raises(ValueError, match=r"no \.npy or \.npz file of numbers"):
            read_kspace(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_kspace(tmp_path / "none.npy")


@pytest.mark.skipif(HEAD is None or not HEAD.is_file(), reason="the measured head slice is not here")
def test_a_measured_head():
    scan = accelerate(mri_problem("mri-equispaced-4"), read_kspace(HEAD))
    x = scan.operator.solve_cg(scan.operator.adjoint(scan.y), 1e-3, rtol=1e-3).x
    assert float((x - scan.reference).norm() / scan.reference.norm()) < 0.25
