"""Neighbours that are kept on disk while they are found: killed runs, other runs, damage."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from riemae import Manifold, solvers
from riemae.exceptions import FileError, OptionError
from riemae.solvers import MetricSpace, Neighbors
from riemae.storage.blocks import BlockFolder

F64 = torch.float64
BLOCKS = sys.modules["riemae.storage.blocks"]
SEARCH = sys.modules["riemae.solvers.candidates"]


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8))
    return net.double().requires_grad_(False)


def points(n, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Killed:
    """Writes descriptions of runs, and ends the process where that of a result is due."""

    def __init__(self):
        self.write = BLOCKS.as_json

    def __call__(self, content):
        in_keep = sys._getframe(1).f_code.co_name == "keep"
        if in_keep:
            raise KeyboardInterrupt
        return self.write(content)


def assert_same(a, b):
    for name in a.tensors:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    for name in a.values:
        assert getattr(a, name) == getattr(b, name), name


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(SEARCH, "_BLOCK", 16)


@pytest.mark.usefixtures("small_blocks")
class TestKept:
    M = Manifold(network())
    z = points(40)

    def test_the_result_and_nothing_else_is_left(self, tmp_path):
        found = self.M.neighbors(self.z, 4, out=tmp_path / "n")
        assert_same(found, self.M.neighbors(self.z, 4))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["n", "n.json"]
        assert_same(Neighbors.load(tmp_path / "n"), found)

    def test_a_complete_result_is_read_not_computed(self, tmp_path, monkeypatch):
        found = self.M.radius_neighbors(self.z, 0.4, out=tmp_path / "n")
        monkeypatch.setattr(SEARCH, "geodesic", None)
        calls = []
        again = self.M.radius_neighbors(
            self.z, 0.4, out=tmp_path / "n", progress=lambda *count: calls.append(count)
        )
        assert_same(again, found)
        assert calls == [(40, 40)]
        assert len(again.query(self.z[:0]).certified) == 0

    def test_an_interrupted_run_goes_on(self, tmp_path, monkeypatch):
        out = tmp_path / "n"
        solve = SEARCH.geodesic
        counts = []

        def counted(*args, **kwargs):
            counts.append(len(args[1]))
            if len(counts) == 4:
                raise KeyboardInterrupt
            return solve(*args, **kwargs)

        monkeypatch.setattr(SEARCH, "geodesic", counted)
        space = MetricSpace(lambda z: torch.eye(2).to(z) * (1 + z.square().sum(-1))[:, None, None])
        with pytest.raises(KeyboardInterrupt):
            solvers.neighbors(space, self.z, 3, out=out)
        assert not out.exists()
        # The list of candidates, the first plan, and what was solved of it.
        assert len(list((tmp_path / "n.blocks").glob("*.safetensors"))) == 2 + 3
        monkeypatch.setattr(SEARCH, "geodesic", solve)
        found = solvers.neighbors(space, self.z, 3, out=out)
        assert_same(found, solvers.neighbors(space, self.z, 3))

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"k": 3}, "settings.k: expected 3, got 4"),
            ({"rtol": 1e-3}, "settings.rtol"),
            ({"points": points(40, 1)}, "points.a"),
            ({"M": Manifold(network(1))}, "space.decoder|metric has other values"),
        ],
    )
    def test_another_run_is_refused(self, tmp_path, options, says):
        out = tmp_path / "n"
        self.M.neighbors(self.z, 4, out=out)
        M, z, k = (options.pop(n, d) for n, d in (("M", self.M), ("points", self.z), ("k", 4)))
        with pytest.raises(FileError, match=says) as caught:
            M.neighbors(z, k, out=out, **options)
        assert caught.value.where == "neighbors"

    def test_damage_is_refused(self, tmp_path):
        out = tmp_path / "n"
        self.M.neighbors(self.z, 4, out=out)
        (tensors,) = out.glob("*.safetensors")
        tensors.write_bytes(tensors.read_bytes()[:-8])
        with pytest.raises(FileError, match="a whole result"):
            self.M.neighbors(self.z, 4, out=out)
        (tmp_path / "n.json").unlink()
        with pytest.raises(FileError, match="n.json"):
            self.M.neighbors(self.z, 4, out=out)

    def test_more_points_than_a_folder_holds(self, tmp_path, monkeypatch):
        first = self.M.neighbors(self.z[:30], 4, out=tmp_path / "first")
        more = self.M.neighbors(self.z, 4, kept=tmp_path / "first", out=tmp_path / "more")
        assert_same(more, first.add(self.z[30:]))
        monkeypatch.setattr(SEARCH, "geodesic", None)
        again = self.M.neighbors(self.z, 4, kept=tmp_path / "first", out=tmp_path / "more")
        assert_same(again, more)
        with pytest.raises(FileError, match="kept: expected None"):
            self.M.neighbors(self.z, 4, out=tmp_path / "more")
        with pytest.raises(FileError, match="points.a"):
            self.M.neighbors(points(40, 1), 4, kept=tmp_path / "first")
        with pytest.raises(FileError, match="space.decoder|metric has other values"):
            Manifold(network(1)).neighbors(self.z, 4, kept=tmp_path / "first")
        with pytest.raises(FileError, match="whole result"):
            self.M.neighbors(self.z, 4, kept=tmp_path / "nothing")

    def test_a_killed_run_with_more_points_goes_on(self, tmp_path, monkeypatch):
        first = self.M.neighbors(self.z[:30], 4)
        whole = first.add(self.z[30:])
        write = BlockFolder.write
        written = []

        def cut_short(folder, block, tensors):
            write(folder, block, tensors)
            written.append(block)
            if len(written) == 4:
                raise KeyboardInterrupt

        monkeypatch.setattr(BlockFolder, "write", cut_short)
        with pytest.raises(KeyboardInterrupt):
            first.add(self.z[30:], out=tmp_path / "n")
        monkeypatch.setattr(BlockFolder, "write", write)
        with pytest.raises(FileError, match="kept: expected None"):
            self.M.neighbors(self.z, 4, out=tmp_path / "n")
        assert_same(first.add(self.z[30:], out=tmp_path / "n"), whole)

    def test_no_place(self, tmp_path):
        with pytest.raises(FileError, match="existing folder"):
            self.M.neighbors(self.z, 4, out=tmp_path / "none/n")
        with pytest.raises(FileError, match="path of a file"):
            self.M.neighbors(self.z, 4, out=3)
        with pytest.raises(OptionError, match="There are 39 points"):
            self.M.neighbors(self.z, 40, out=tmp_path / "n")
        assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_full_disk_at_any_write_loses_nothing(tmp_path, monkeypatch, call):
    M, z = Manifold(network()), points(20)
    whole = M.neighbors(z, 3)
    real = getattr(os, call)
    left = [10**9]

    def limited(*arguments, **options):
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, limited)
    out = tmp_path / "n"
    M.neighbors(z, 3, out=out)
    writes = 10**9 - left[0]
    for number in {1, 2, writes // 2, writes - 1, writes} - {0}:
        shutil.rmtree(out)
        out.with_suffix(".json").unlink()
        left[0] = number
        with pytest.raises(FileError, match="No space left"):
            M.neighbors(z, 3, out=out)
        left[0] = 10**9
        assert_same(M.neighbors(z, 3, out=out), whole)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["n", "n.json"]


@pytest.mark.usefixtures("small_blocks")
def test_of_two_writers_one_is_refused(tmp_path):
    M, z = Manifold(network()), points(20)
    refused = []

    def second(done, total):
        if not refused:
            with pytest.raises(FileError, match="nobody else is writing"):
                M.neighbors(z, 3, out=tmp_path / "n")
            refused.append(done)

    found = M.neighbors(z, 3, out=tmp_path / "n", progress=second)
    assert refused
    assert_same(found, M.neighbors(z, 3))


def test_a_process_killed_between_result_and_description_goes_on(tmp_path, monkeypatch):
    M, z = Manifold(network()), points(20)
    expected = M.neighbors(z, 3)
    with monkeypatch.context() as patched:
        # What SIGKILL leaves there: the result, the blocks, and no description.
        patched.setattr(BLOCKS, "as_json", Killed())
        with pytest.raises(KeyboardInterrupt):
            M.neighbors(z, 3, out=tmp_path / "n")
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["n", "n.blocks"]
    with pytest.raises(FileError, match="settings.k"):
        M.neighbors(z, 4, out=tmp_path / "n")
    assert_same(M.neighbors(z, 3, out=tmp_path / "n"), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n", "n.json"]


def test_a_killed_process_loses_no_block(tmp_path):
    """SIGKILL in the middle; the same call goes on, with the same bits."""
    out = tmp_path / "n"
    program = (
        "import sys, torch\n"
        "from torch import nn\n"
        "from riemae import Manifold\n"
        "torch.manual_seed(0)\n"
        "net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8)).double()\n"
        "z = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)\n"
        "import riemae.solvers\n"
        "sys.modules['riemae.solvers.candidates']._BLOCK = 4\n"
        "Manifold(net.requires_grad_(False)).neighbors(z, 4, out=sys.argv[1])\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(out)])
    blocks = tmp_path / "n.blocks"
    while child.poll() is None and len(list(blocks.glob("*.safetensors"))) < 2:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = len(list(blocks.glob("*.safetensors"))) if blocks.exists() else 0
    assert kept >= 2 or out.exists()
    subprocess.run([sys.executable, "-c", program, str(out)], check=True, env=os.environ)
    assert not blocks.exists()
    assert_same(Neighbors.load(out), Manifold(network()).neighbors(points(40), 4))
