"""Shared set-up."""

import os

import pytest
import torch
from sampling import sampled

# numba compiles whole libraries for milliseconds of work; it is faster when it does not optimise.
os.environ.setdefault("NUMBA_OPT", "0")
# The tensors of the tests are tiny. A second thread would not help, and would slow other processes.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--device", default="cpu", help="where the tests in tests/device compute: cpu, cuda, cuda:1"
    )


def pytest_configure(config):
    """Say at once that the device cannot be used, and not once for every test."""
    name = config.getoption("--device")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as reason:
        raise pytest.UsageError(f"--device={name}: torch cannot use it ({reason})") from reason


def pytest_collection_modifyitems(config, items):
    named = any("::" in argument for argument in config.args)  # whoever names a test gets it
    elsewhere = config.getoption("--device") != "cpu"
    items[:], left = sampled(items, everything=named or elsewhere)
    if left:
        config.hook.pytest_deselected(items=left)


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    """Where tests/device computes; with its number, as tensors that are there have it."""
    return torch.zeros(1, device=request.config.getoption("--device")).device


@pytest.fixture
def generator(device) -> torch.Generator:
    """A seeded source of random numbers on the device."""
    return torch.Generator(device).manual_seed(0)
