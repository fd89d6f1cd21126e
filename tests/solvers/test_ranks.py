"""Several processes of one group share a folder: the bits of one process, and no pair twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from riemae import Manifold
from riemae.solvers import Neighbors

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="torch has no gloo here",
)
PROGRAM = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def alone():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8)).double()
    M = Manifold(net.requires_grad_(False))
    z = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return M.neighbors(z, 4), M.distance_matrix(z, block_size=64)


def run(folder, mode):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, str(PROGRAM), str(rank), str(folder), mode], env=env)
        for rank in (0, 1)
    ]
    return [rank.wait(timeout=300) for rank in ranks]


def assert_same(found, alone):
    for name in found.tensors:
        assert torch.equal(getattr(found, name), getattr(alone, name)), name
    assert found.solved == alone.solved


def test_two_share_the_work(tmp_path, alone):
    assert run(tmp_path, "works") == [0, 0]
    near, distances = alone
    solved = [json.loads((tmp_path / f"solved{rank}.json").read_text()) for rank in (0, 1)]
    assert min(counts["neighbors"] for counts in solved) >= 16
    assert min(counts["matrix"] for counts in solved) >= 16
    assert sum(counts["neighbors"] for counts in solved) == near.solved
    assert sum(counts["matrix"] for counts in solved) == 40 * 39 // 2
    for rank in (0, 1):
        assert_same(Neighbors.load(tmp_path / f"n{rank}"), near)
        assert torch.equal(torch.load(tmp_path / f"d{rank}.pt"), distances)
    left = {path.name for path in tmp_path.iterdir()}
    assert not {name for name in left if "lock" in name or "blocks" in name}


@pytest.mark.skipif(os.name != "posix", reason="only a POSIX system drops locks of the dead")
def test_one_goes_on_when_the_other_dies(tmp_path, alone):
    codes = run(tmp_path, "dies")
    assert codes[0] == 0
    assert codes[1] != 0
    assert_same(Neighbors.load(tmp_path / "n0"), alone[0])
