"""Files of distance matrices: which matrix they hold, which process writes them, and full disks."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import spaces
import torch

from riemae import Manifold, ambient, solvers
from riemae.exceptions import FileError
from riemae.storage import atomic
from riemae.storage import blocks as checkpoint
from riemae.storage import lock as locks
from riemae.storage.identity import fingerprint, parts
from riemae.storage.lock import Lock

F64 = torch.float64


def draw(seed, n, low=-0.8, high=0.8):
    return spaces.rand(torch.Generator().manual_seed(seed), n, 2, low=low, high=high)


def torus(z):
    return torch.cat([z.cos(), z.sin()], -1)


def bumped(bump, place=(0.31, -0.17), width=0.01):
    """A plane with a bump that no point sees and few lines cross."""
    center = torch.tensor(place, dtype=F64)

    def decode(z):
        height = bump * torch.exp(-((z - center) / width).square().sum(-1, keepdim=True))
        return torch.cat([z, height], -1)

    return decode


class Scaled:
    """A decoder that is a plain object."""

    def __init__(self, factor):
        self.factor = torch.tensor(factor, dtype=F64)

    def __call__(self, z):
        return torch.cat([z, self.factor * z.square()], -1)

    def decode(self, z):
        return self(z)


def scaled(z, factor=1.0):
    return torch.cat([z, factor * z.square()], -1)


def with_default(net):
    def decode(z, net=net):
        return net(z)

    return decode


def module(value=0.5):
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 4)
    ).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.linspace(-1, value, p.numel(), dtype=F64).view(p.shape))
    return net


@pytest.fixture
def out(tmp_path):
    return tmp_path / "d.npy"


class TestIdentity:
    z = draw(1, 6)

    def refused(self, out, first, second, match, **options):
        options = {"method": "chord", **options}
        kept = first.distance_matrix(self.z, out=out, **options)
        assert torch.equal(first.distance_matrix(self.z, out=out, **options), kept)
        with pytest.raises(FileError, match=match):
            second.distance_matrix(self.z, out=out, **options)

    def test_a_periodic_latent_space(self, out):
        a = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.1, 3.1]], dtype=F64)
        plain, round_ = Manifold(torus), Manifold(torus, latent=(2 * torch.pi, 2 * torch.pi))
        long = plain.distance_matrix(a, out=out)
        with pytest.raises(FileError, match=r"space\.latent"):
            round_.distance_matrix(a, out=out)
        short = round_.distance_matrix(a)
        assert abs(long[0, 1] - 6.0) < 1e-3
        assert abs(short[0, 1] - (2 * np.pi - 6.0)) < 1e-3

    @pytest.mark.parametrize("latent", [(6.0, None), (None, 6.0), (6.0, 6.0), (6.5, None), None])
    def test_every_latent_space_is_another(self, out, latent):
        def decode(z):
            return torch.cat([z[:, :1] * 0, z[:, 1:] * 0, z], -1)

        self.refused(
            out,
            Manifold(decode, latent=(5.0, 5.0)),
            Manifold(decode, latent=latent),
            r"space\.latent",
        )

    def test_the_version(self, out, monkeypatch):
        first = Manifold(torus)
        first.distance_matrix(self.z, out=out, method="chord")
        monkeypatch.setattr("riemae.version.__version__", "99.0")
        with pytest.raises(FileError, match=r"space\.riemae: expected 99\.0"):
            first.distance_matrix(self.z, out=out, method="chord")

    @pytest.mark.parametrize(
        ("one", "two"),
        [
            (bumped(1.0), bumped(2.0)),
            (bumped(1.0), bumped(1.0, place=(0.2, 0.2))),
            (partial(scaled, factor=1.0), partial(scaled, factor=1.5)),
            (Scaled(1.0), Scaled(1.5)),
            (Scaled(1.0).decode, Scaled(1.5).decode),
            (module(0.5), module(0.5000001)),
            (with_default(module(0.5)), with_default(module(0.6))),
        ],
        ids=[
            "captured number",
            "captured tensor",
            "partial",
            "object",
            "method",
            "module",
            "default",
        ],
    )
    def test_other_numbers_in_a_decoder(self, out, one, two):
        self.refused(out, Manifold(one), Manifold(two), r"space\.decoder")

    @pytest.mark.parametrize(
        ("one", "two"),
        [
            (None, torch.tensor([1.0, 1.0, 1.0, 2.0], dtype=F64)),
            (torch.ones(4, dtype=F64), torch.tensor([1.0, 1.0, 1.0, 1.0 + 1e-12], dtype=F64)),
            (torch.eye(4, dtype=F64), 2 * torch.eye(4, dtype=F64)),
            (ambient.Euclidean(), ambient.Diagonal(torch.ones(4, dtype=F64))),
            (lambda x, c=1.0: c + x**2, lambda x, c=1.0 + 1e-13: c + x**2),
        ],
    )
    def test_other_ambient_metrics(self, out, one, two):
        one, two = Manifold(torus, ambient=one), Manifold(torus, ambient=two)
        self.refused(out, one, two, r"space\.ambient", method="graph", k=3)

    def test_a_decoder_that_differs_between_the_points_only(self, out):
        # The same code by name, with nothing captured: values between the points differ.
        def decoder(height):
            bump = "torch.exp(-(z / 0.3).square().sum(-1, keepdim=True))"
            text = f"lambda z: torch.cat([z, {height} * {bump}], -1)"
            return eval(text, {"torch": torch})

        z = torch.tensor([[-2.0, -2.0], [2.0, 2.0], [-2.0, 2.0], [2.0, -2.0]], dtype=F64)
        Manifold(decoder(1)).distance_matrix(z, out=out)
        assert Manifold(decoder(1)).distance_matrix(z, out=out).shape == (4, 4)
        with pytest.raises(FileError, match="probe: the metric has other values"):
            Manifold(decoder(2)).distance_matrix(z, out=out)

    @pytest.mark.parametrize(
        "changes",
        [{"rtol": 1e-3}, {"k": 4}, {"weight": "chord"}, {"block_size": 13}, {"method": "chord"}],
        ids=lambda c: next(iter(c)),
    )
    def test_other_settings_of_a_graph(self, out, changes):
        M, options = Manifold(torus), {"method": "graph", "k": 3}
        M.distance_matrix(self.z, out=out, **options)
        with pytest.raises(FileError, match=r"settings\."):
            M.distance_matrix(self.z, out=out, **{**options, **changes})

    def test_counters_records_and_caches_are_no_parameters(self, out):
        seen, counts = [], {"calls": 0}

        class Counting(torch.nn.Module):
            calls = 0

            def forward(self, z):
                self.calls += 1
                return torus(z)

        net = Counting()

        def decode(z):
            seen.append(z.detach().clone())
            counts["calls"] += 1
            return net(z)

        M = Manifold(decode)
        first = M.distance_matrix(self.z, out=out, method="chord")
        assert len(seen) > 2
        assert torch.equal(M.distance_matrix(self.z, out=out, method="chord"), first)
        assert torch.equal(Manifold(decode).distance_matrix(self.z, out=out, method="chord"), first)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Manifold(torus),
            lambda: Manifold(module(), ambient=lambda x: 1 + x**2),
            lambda: Manifold(module(), ambient=ambient.FeatureMap(torch.tanh)),
            lambda: Manifold(lambda z: torch.distributions.Normal(z, 1 + z.square())),
            lambda: Manifold(torus, ambient=ambient.Density(torus(draw(2, 30)))),
            lambda: Manifold(torus, latent=(2 * torch.pi, None)),
        ],
        ids=["plain", "function", "features", "Fisher", "density", "periodic"],
    )
    def test_use_changes_no_identity(self, out, make):
        M = make()
        first = M.distance_matrix(self.z, out=out, throw=False, rtol=1e-2)
        M.christoffel(self.z)
        M.metric(draw(3, 300))
        for again in (M, make()):
            assert torch.equal(
                again.distance_matrix(self.z, out=out, throw=False, rtol=1e-2), first
            )

    def test_a_metric_written_by_hand(self, out):
        def space(c):
            return solvers.MetricSpace(lambda z: c * torch.eye(2).to(z).expand(len(z), 2, 2))

        one = solvers.distance_matrix(space(1.0), self.z, out=out)
        assert torch.equal(solvers.distance_matrix(space(1.0), self.z, out=out), one)
        with pytest.raises(FileError, match=r"space\.contents"):
            solvers.distance_matrix(space(1.0 + 1e-13), self.z, out=out)

    def test_bad_points_hide_nothing(self, out):
        def decoder(c):
            return lambda z: torch.cat([z, c * (0.9 - z[:, :1]).log()], -1)

        z = torch.cat(
            [self.z, torch.tensor([[2.0, 0.0]], dtype=F64)]
        )  # the logarithm of a negative number
        M = Manifold(decoder(1.0))
        M.distance_matrix(self.z, rtol=1e-2)
        kept = solvers.distance_matrix(M, z, out=out, rtol=1e-2, throw=False, return_result=True)
        assert kept.distances[:6, :6].isfinite().all()
        assert len(kept.failed) == 6
        with pytest.raises(FileError):
            solvers.distance_matrix(Manifold(decoder(1.1)), z, out=out, rtol=1e-2, throw=False)


class TestParts:
    @pytest.mark.parametrize(
        ("one", "two"),
        [
            (torch.zeros(2), torch.zeros(3)),
            (np.zeros(2), np.ones(2)),
            ((1, 2.0), (1, 2.5)),
            ({"a": torch.zeros(1)}, {"a": torch.ones(1)}),
            (torch.nn.LeakyReLU(0.1), torch.nn.LeakyReLU(0.2)),
            (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
            (torch.sin, torch.cos),
        ],
    )
    def test_differences_show(self, one, two):
        assert parts(one) == parts(one)
        assert fingerprint(parts(one), parts(one)) != fingerprint(parts(two), parts(two))

    def test_rings_and_depth_end(self):
        ring = []
        ring.append(ring)
        deep = ()
        for _ in range(50):
            deep = (deep, 1)
        assert parts(ring)
        assert len(parts(deep)) < 50

    def test_what_moves_is_left_out_with_what_it_holds(self):
        grown, kept = [torch.zeros(1)], [torch.ones(1)]
        before = parts((grown, kept))
        grown.append(torch.zeros(1))
        assert fingerprint(before, parts((grown, kept))) == fingerprint(
            parts(([], kept)), parts(([1], kept))
        )


FULL = """
import sys, torch, spaces
from riemae import Manifold
from riemae.exceptions import FileError
torch.set_num_threads(1)
z = spaces.rand(torch.Generator().manual_seed(9), 120, 2)
try:
    Manifold(spaces.sphere).distance_matrix(z, out=sys.argv[1], method="chord")
except FileError as error:
    print(error)
    sys.exit(7)
"""


class TestFullDisk:
    @pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
    def test_no_room_for_the_result_is_an_error_and_the_same_call_goes_on(self, out):
        import resource

        M, z = Manifold(torus), draw(9, 120)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # 120 x 120 float64 have 115200 bytes; every block fits.
        resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, before[1]))
        try:
            with pytest.raises(FileError, match="File too large.*Finished blocks are kept"):
                M.distance_matrix(z, out=out, method="chord")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert [p.name for p in out.parent.iterdir()] == ["d.npy.blocks"]
        blocks = {
            p: p.stat().st_mtime_ns for p in out.with_name("d.npy.blocks").glob("*.safetensors")
        }
        assert len(blocks) == 60
        assert torch.equal(
            M.distance_matrix(z, out=out, method="chord"), M.distance_matrix(z, method="chord")
        )
        assert sorted(p.name for p in out.parent.iterdir()) == ["d.npy", "d.npy.json"]

    @pytest.mark.skipif(sys.platform != "linux", reason="tmpfs of Linux")
    def test_a_file_system_that_is_full_kills_nobody(self, tmp_path):
        if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
            pytest.skip("no user namespaces")
        # Room for all blocks in whole pages, and not for the matrix as well.
        shell = f'mount -t tmpfs -o size=320k none {tmp_path} && exec "$@"'
        paths = os.pathsep.join([str(Path(__file__).parent), *(p for p in sys.path if p)])
        done = subprocess.run(
            [
                "unshare",
                "-rm",
                "sh",
                "-c",
                shell,
                "sh",
                sys.executable,
                "-c",
                FULL,
                str(tmp_path / "d.npy"),
            ],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=False,
        )
        if "mount:" in done.stderr:
            pytest.skip("no tmpfs in a user namespace")
        assert done.returncode == 7, done
        assert "No space left on device" in done.stdout

    @pytest.mark.parametrize("stage", ["fallocate", "zeros", "block", "description", "replace"])
    def test_every_stage(self, out, monkeypatch, stage):
        M, z = Manifold(torus), draw(4, 8)

        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            if stage == "fallocate":
                patch.setattr(os, "posix_fallocate", full)
            elif stage == "zeros":
                patch.delattr(os, "posix_fallocate")
                patch.setattr(atomic, "PIECE", 10**15)  # bytes(…) of the size asked for
                patch.setattr(os, "fsync", lambda handle: full() if _length(handle) > 600 else None)
            elif stage == "block":
                patch.setattr(os, "fsync", full)
            elif stage == "description":
                patch.setattr(checkpoint, "file_digest", full)
            else:
                replace = os.replace
                patch.setattr(
                    os, "replace", lambda a, b: full() if str(b).endswith(".npy") else replace(a, b)
                )
            with pytest.raises(FileError, match="No space left") as caught:
                M.distance_matrix(z, out=out, block_size=4)
            assert "repeat the same call" in caught.value.hint
        assert not out.exists()
        assert not out.with_name("d.npy.lock").exists()
        assert torch.equal(
            M.distance_matrix(z, out=out, block_size=4), M.distance_matrix(z, block_size=4)
        )

    def test_without_fallocate_zeros_are_written(self, out, monkeypatch):
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        M, z = Manifold(torus), draw(4, 8)
        assert torch.equal(
            M.distance_matrix(z, out=out, block_size=4), M.distance_matrix(z, block_size=4)
        )


def _length(handle):
    return os.fstat(handle).st_size


# What riemae.storage.lock does, without importing torch for it.
HOLDER = """
import fcntl, json, os, socket, sys, time
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
about = {"pid": os.getpid(), "host": socket.gethostname(), "since": "today"}
os.write(handle, json.dumps(about).encode())
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    path = tmp_path / "d.npy.lock"
    job = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert job.stdout.readline() == "held\n"
    yield job
    job.kill()
    job.wait()
    job.stdout.close()


class TestTwoWriters:
    z = draw(5, 8)
    M = Manifold(torus)

    @pytest.mark.skipif(locks.posix is None, reason="no record locks on this system")
    def test_the_second_hears_who_the_first_is_and_the_first_loses_nothing(self, out, holder):
        with pytest.raises(
            FileError, match=f"written by process {holder.pid} on .*, since"
        ) as caught:
            self.M.distance_matrix(self.z, out=out)
        assert "Wait for it" in caught.value.hint
        assert sorted(p.name for p in out.parent.iterdir()) == ["d.npy.lock"]
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        # The kernel has dropped the lock; the file that was left stops nobody.
        assert self.M.distance_matrix(self.z, out=out).shape == (8, 8)
        assert sorted(p.name for p in out.parent.iterdir()) == ["d.npy", "d.npy.json"]

    def test_threads_of_one_process(self, out):
        errors, started, go_on = [], threading.Event(), threading.Event()

        def wait(done, total):
            started.set()
            go_on.wait(20)

        first = threading.Thread(
            target=lambda: self.M.distance_matrix(self.z, out=out, block_size=4, progress=wait)
        )
        first.start()
        assert started.wait(20)
        try:
            self.M.distance_matrix(self.z, out=out, block_size=4)
        except FileError as error:
            errors.append(str(error))
        go_on.set()
        first.join()
        assert len(errors) == 1
        assert f"process {os.getpid()}" in errors[0]
        assert torch.equal(
            self.M.distance_matrix(self.z, out=out, block_size=4), self.M.distance_matrix(self.z)
        )

    def test_a_complete_file_is_read_while_somebody_holds_the_lock(self, out, tmp_path):
        first = self.M.distance_matrix(self.z, out=out)
        lock = Lock(tmp_path / "d.npy.lock", "test", "a thing")
        lock.acquire()
        assert torch.equal(self.M.distance_matrix(self.z, out=out), first)
        lock.release()

    @pytest.mark.parametrize("kernel", [True, False])
    def test_locks_exclude_and_come_back(self, tmp_path, monkeypatch, kernel):
        if not kernel:
            monkeypatch.setattr(locks, "posix", None)
        one, two = (Lock(tmp_path / "x.lock", "test", "a thing") for _ in range(2))
        one.acquire()
        with pytest.raises(FileError, match=f"process {os.getpid()}"):
            two.acquire()
        one.release()
        one.release()
        two.acquire()
        with pytest.raises(FileError):
            one.acquire()
        two.release()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(locks.posix is None, reason="locks of the kernel")
    def test_a_refusal_in_the_same_process_does_not_give_the_lock_away(self, tmp_path):
        # The kernel drops the lock when its process closes the file, even one that it has only
        # read.
        one, two = (Lock(tmp_path / "x.lock", "test", "a thing") for _ in range(2))
        one.acquire()
        with pytest.raises(FileError):
            two.acquire()
        other = (
            "import sys; from pathlib import Path; from riemae.storage.lock import Lock;"
            "Lock(Path(sys.argv[1]), 'test', 'a thing').acquire()"
        )
        job = subprocess.run(
            [sys.executable, "-c", other, one.path], capture_output=True, text=True
        )
        one.release()
        assert f"process {os.getpid()}" in job.stderr

    @pytest.mark.parametrize(
        ("content", "free"),
        [
            ({"pid": 2**22 + 7, "host": "here", "since": "x"}, True),  # more than Linux counts to
            ({"pid": 1, "host": "here", "since": "x"}, False),
            ({"pid": 2**22 + 7, "host": "elsewhere", "since": "x"}, False),
            ("old", True),
            ("young", False),
        ],
        ids=["dead", "alive", "other machine", "no signature", "no signature yet"],
    )
    def test_without_the_kernel_dead_owners_are_recognised(
        self, tmp_path, monkeypatch, content, free
    ):
        monkeypatch.setattr(locks, "posix", None)
        monkeypatch.setattr(locks.socket, "gethostname", lambda: "here")
        path = tmp_path / "x.lock"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        if content == "old":
            os.utime(path, (0, time.time() - 60))
        lock = Lock(path, "test", "a thing")
        if free:
            lock.acquire()
            assert json.loads(path.read_text())["pid"] == os.getpid()
            lock.release()
        else:
            with pytest.raises(FileError, match="remove .*x.lock"):
                lock.acquire()


class TestMalformed:
    z = draw(6, 5)
    M = Manifold(torus)

    @pytest.mark.parametrize("out", [3, "", type(None), b"d.npy", ".", 2.5])
    def test_out_that_is_no_path(self, out, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileError, match="out as the path of a file"):
            self.M.distance_matrix(self.z, out=out)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "failed",
        [
            [["x"]],
            [[99, 99, 3]],
            [[0, 0]],
            [[0, -1, 3]],
            [[0, 1, 77]],
            [[0.0, 1, 3]],
            [[True, 1, 3]],
            {},
            "x",
            None,
            3,
        ],
    )
    def test_failures_that_cannot_be(self, out, failed):
        self.M.distance_matrix(self.z, out=out)
        path = out.with_name("d.npy.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "failed": failed}))
        with pytest.raises(FileError, match=r"\[row, column, status\] of a 5 x 5 matrix"):
            self.M.distance_matrix(self.z, out=out)

    @pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "nan", "[1", "\0", "{}"])
    def test_json_that_is_none(self, out, text):
        self.M.distance_matrix(self.z, out=out)
        out.with_name("d.npy.json").write_text(text)
        with pytest.raises(FileError, match="d.npy.json to hold"):
            self.M.distance_matrix(self.z, out=out)

    @pytest.mark.parametrize(
        "name", [".DS_Store", "._x", "Thumbs.db", "desktop.ini", ".nfs0001", "x.part"]
    )
    def test_strays_stop_nobody(self, out, name):
        blocks = out.with_name("d.npy.blocks")
        blocks.mkdir()
        (blocks / name).write_bytes(b"stray")

        def stop(done, total):
            raise KeyboardInterrupt

        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                self.M.distance_matrix(self.z, out=out, block_size=4, progress=stop)
            (blocks / name).write_bytes(b"stray")
        assert torch.equal(
            self.M.distance_matrix(self.z, out=out, block_size=4), self.M.distance_matrix(self.z)
        )
        assert sorted(p.name for p in out.parent.iterdir()) == ["d.npy", "d.npy.json"]
