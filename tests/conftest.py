"""Rules for every test: one thread, torch's globals stay as they were, and tests of the GPU need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """One thread here and in the processes that tests start: on tiny images more only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")
        yield
    torch.set_num_threads(before)


def torch_globals() -> dict[str, object]:
    """The settings of torch that outlive a call."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradient mode": torch.is_grad_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "cuDNN benchmark": torch.backends.cudnn.benchmark,
        "cuDNN TF32": torch.backends.cudnn.allow_tf32,
    }


@pytest.fixture(autouse=True)
def _torch_globals_stay() -> Iterator[None]:
    """Fail a test after which torch's globals differ, and put back those that later tests would notice."""
    before = torch_globals()
    yield
    after = torch_globals()
    if after == before:
        return
    torch.set_default_dtype(before["default dtype"])
    torch.set_grad_enabled(bool(before["gradient mode"]))
    torch.set_num_threads(int(str(before["number of threads"])))
    torch.use_deterministic_algorithms(bool(before["deterministic algorithms"]))
    changed = [f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after[name]]
    pytest.fail(f"torch's globals changed, {'; '.join(changed)}", pytrace=False)
