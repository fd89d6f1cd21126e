"""Shared set-up."""

import os

import pytest
import torch

# numba compiles whole libraries for milliseconds of work; it is faster when it does not optimise.
os.environ.setdefault("NUMBA_OPT", "0")
# The tensors of the tests are tiny. A second thread would not help, and would slow other processes.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--device", default="cpu", help="where the tests in tests/device compute: cpu, cuda, cuda:1"
    )


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    """Where tests/device computes; with its number, as tensors that are there have it."""
    name = request.config.getoption("--device")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as reason:
        raise pytest.UsageError(f"--device={name}: torch cannot use it ({reason})") from reason


@pytest.fixture
def generator(device) -> torch.Generator:
    """A seeded source of random numbers on the device."""
    return torch.Generator(device).manual_seed(0)
