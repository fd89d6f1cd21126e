"""Distance matrices against closed forms, for every way of computing them.

Files survive a killed process, and are refused for another matrix.
"""

import importlib.util
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import spaces
import torch
from scipy.spatial.distance import cdist
from watching import watch

from riemae import Manifold, ambient, solvers
from riemae.exceptions import (
    AmbientError,
    DTypeError,
    FileError,
    GraphError,
    NonFiniteError,
    NotConvergedError,
    OptionError,
    ShapeError,
    TransferError,
)
from riemae.solvers import Newton, Status, matrix_work

F64 = torch.float64
SPHERE = Manifold(spaces.sphere)
HALF_PLANE = solvers.MetricSpace(spaces.half_plane_tensor)
METHODS = ["geodesic", "graph", "chord"]


def draw(seed, n, m=2, low=-0.8, high=0.8):
    return spaces.rand(torch.Generator().manual_seed(seed), n, m, low=low, high=high)


def network(dtype=F64):
    """A small decoder that needs no module of ours to be unpickled."""
    layers = torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)
    generator = torch.Generator().manual_seed(3)
    net = torch.nn.Sequential(*layers).to(dtype)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=F64))
    return net


class Eager(Executor):
    """Runs at once, and remembers the blocks it was given."""

    def __init__(self, only=None):
        self.blocks, self.only = [], only

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        if self.only is not None and len(self.blocks) == self.only:
            future.set_exception(KeyboardInterrupt())
            return future
        self.blocks.append(args[-1])
        future.set_result(fn(*args, **kwargs))
        return future


class TestBlocks:
    @pytest.mark.parametrize("block_size", [None, 1, 7, 10**6])
    def test_geodesics_have_their_closed_form_in_blocks_of_any_size(self, block_size):
        a, b = draw(1, 6), draw(2, 3)
        d = SPHERE.distance_matrix(a, rtol=1e-7, block_size=block_size)
        cross = SPHERE.distance_matrix(a, b, rtol=1e-7, block_size=block_size)
        assert torch.allclose(d, spaces.great_circle(a[:, None], a[None]), rtol=1e-7, atol=1e-12)
        assert torch.allclose(cross, spaces.great_circle(a[:, None], b[None]), rtol=1e-7, atol=0)
        assert torch.equal(d, d.T)
        assert (d.diagonal() == 0).all()

    @pytest.mark.parametrize("block_size", [None, 1, 25, 10**6])
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_chords_are_those_of_scipy(self, block_size, symmetric):
        a, b = draw(3, 11), None if symmetric else draw(4, 6)
        expected = cdist(spaces.sphere(a), spaces.sphere(a if b is None else b))
        d = SPHERE.distance_matrix(a, b, method="chord", block_size=block_size)
        assert np.allclose(d.numpy(), expected, rtol=1e-13, atol=1e-15)
        if symmetric:
            assert torch.equal(d, d.T)

    def test_chords_of_near_points_keep_their_digits(self):
        a = draw(5, 6)
        step = torch.tensor([1e-9, 0.0], dtype=F64)
        d = SPHERE.distance_matrix(a, a + step, method="chord").diagonal()
        assert torch.allclose(d, SPHERE.norm(a, step.expand_as(a)), rtol=1e-6)

    @pytest.mark.parametrize("block_size", [None, 1, 25, 10**6])
    @pytest.mark.parametrize("symmetric", [True, False])
    def test_graph_distances_are_those_of_the_graph(self, block_size, symmetric):
        a, b = draw(6, 30), None if symmetric else draw(7, 12)
        d = SPHERE.distance_matrix(a, b, method="graph", k=5, block_size=block_size)
        joint = a if b is None else torch.cat([a, b])
        expected = SPHERE.graph(joint, k=5).distances(range(30))[:, -d.shape[1] :]
        assert torch.allclose(d, expected, rtol=1e-14)
        if symmetric:
            assert torch.equal(d, d.T)

    def test_a_pair_is_solved_once(self, monkeypatch):
        seen = []

        watch(monkeypatch, expand=lambda nodes, second: seen.append(nodes[:, [0, -1]]))
        a = draw(8, 6)
        Manifold(spaces.sphere).distance_matrix(a)
        ends = {tuple(map(tuple, pair)) for pair in torch.cat(seen).tolist()}
        assert len(ends) == 15
        assert not any((q, p) in ends for p, q in ends)

    def test_spaces_without_a_decoder(self):
        a = draw(9, 5) + torch.tensor([0.0, 1.5], dtype=F64)
        result = solvers.distance_matrix(HALF_PLANE, a, rtol=1e-8, return_result=True)
        assert torch.allclose(
            result.distances, spaces.half_plane(a[:, None], a[None]), rtol=1e-8, atol=1e-12
        )
        assert repr(result) == "DistanceMatrix(5 x 5: all converged at rtol=1e-08)"

    @pytest.mark.parametrize("method", METHODS)
    def test_float32_stays(self, method):
        d = SPHERE.distance_matrix(draw(10, 8).float(), method=method, rtol=1e-3, k=3)
        assert d.dtype == torch.float32

    @pytest.mark.parametrize("method", METHODS)
    def test_progress_counts_to_the_end(self, method):
        calls = []
        d = SPHERE.distance_matrix(
            draw(11, 9),
            draw(12, 5),
            method=method,
            k=3,
            block_size=10,
            progress=lambda *c: calls.append(c),
        )
        assert calls[-1] == (d.numel(), d.numel())
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)
        assert len(calls) >= 5

    def test_threads_of_the_caller_are_left_alone(self):
        torch.set_num_threads(2)
        try:
            SPHERE.distance_matrix(draw(13, 3))
            with ThreadPoolExecutor(2) as pool:
                SPHERE.distance_matrix(draw(13, 3), executor=pool)
                assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(1)

    def test_rounding_does_not_depend_on_the_callers_threads(self):
        M, z = Manifold(network(torch.float32)), draw(14, 12).float()
        one = M.distance_matrix(z, rtol=1e-3)
        torch.set_num_threads(2)
        try:
            assert torch.equal(M.distance_matrix(z, rtol=1e-3), one)
        finally:
            torch.set_num_threads(1)


class TestExecutors:
    z = draw(20, 7)

    @pytest.mark.parametrize("method", METHODS)
    def test_a_pool_of_threads_changes_no_bit(self, method):
        M = Manifold(network())
        alone = M.distance_matrix(self.z, method=method, k=4, block_size=4)
        with ThreadPoolExecutor(3) as pool:
            assert torch.equal(
                M.distance_matrix(self.z, method=method, k=4, block_size=4, executor=pool), alone
            )

    @pytest.mark.parametrize("start", ["spawn", "fork"])
    @pytest.mark.filterwarnings(
        "ignore:This process:DeprecationWarning"
    )  # Python 3.12 warns of fork in a process with threads
    def test_a_pool_of_processes_changes_no_bit(self, start):
        if start not in multiprocessing.get_all_start_methods():
            pytest.skip(f"no {start} on this system")
        M = Manifold(network(), ambient=ambient.Diagonal(torch.arange(1, 6, dtype=F64)))
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(start)) as pool:
            for method in METHODS:
                alone = M.distance_matrix(self.z, method=method, k=4, block_size=4)
                assert torch.equal(
                    M.distance_matrix(self.z, method=method, k=4, block_size=4, executor=pool),
                    alone,
                )
            # With cloudpickle, lambdas can be sent as well.
            if start == "spawn" and importlib.util.find_spec("cloudpickle"):
                shift = torch.tensor([0.3, -0.1], dtype=F64)
                M = Manifold(lambda z: spaces.sphere(z + shift))
                assert torch.equal(
                    M.distance_matrix(self.z[:4], executor=pool), M.distance_matrix(self.z[:4])
                )

    @pytest.mark.filterwarnings(
        "ignore"
    )  # warnings of a cluster that starts and stops are not from this package
    def test_a_dask_cluster_changes_no_bit(self, tmp_path):
        distributed = pytest.importorskip("distributed")
        M = Manifold(network())
        cluster = distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            processes=True,
            dashboard_address=None,
            local_directory=str(tmp_path),
        )
        with cluster, distributed.Client(cluster) as client:
            pool = client.get_executor()
            for method in METHODS:
                alone = M.distance_matrix(self.z, method=method, k=4, block_size=4)
                out = tmp_path / f"{method}.npy"
                d = M.distance_matrix(
                    self.z, method=method, k=4, block_size=4, executor=pool, out=out
                )
                assert torch.equal(d, alone)

    def test_lambdas_without_it_are_refused_with_a_remedy(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cloudpickle", None)
        with pytest.raises(
            TransferError, match=r"sent to other processes, got .*lambda.*top level.*riemae\[dask\]"
        ):
            Manifold(lambda z: z).distance_matrix(self.z, executor=Eager())
        # Functions with a name, and networks, need no more than Python's own pickle.
        for decoder in (spaces.sphere, network()):
            M = Manifold(decoder)
            assert torch.equal(
                M.distance_matrix(self.z[:3], executor=Eager()), M.distance_matrix(self.z[:3])
            )

    def test_what_no_pickle_can_carry_is_refused(self):
        lock = threading.Lock()
        with pytest.raises(TransferError, match="ThreadPoolExecutor"):
            Manifold(lambda z: (lock, spaces.sphere(z))[1]).distance_matrix(
                self.z, executor=Eager()
            )

    def test_errors_of_a_worker_arrive_and_the_rest_is_cancelled(self, monkeypatch):
        def breaks(*_):
            raise ZeroDivisionError("inside")

        watch(monkeypatch, expand=breaks)
        pool = ThreadPoolExecutor(1)
        with pytest.raises(ZeroDivisionError, match="inside"):
            Manifold(spaces.sphere).distance_matrix(self.z, block_size=1, executor=pool)
        pool.shutdown(wait=True)
        assert torch.get_num_threads() == 1

    @pytest.mark.parametrize(
        "metric",
        [None, ambient.Diagonal(torch.arange(1, 6, dtype=F64))],
        ids=["euclid", "diagonal"],
    )
    def test_manifolds_are_pickled(self, metric):
        M = Manifold(network(), ambient=metric, chunk_size=32)
        M.metric(self.z)
        again = pickle.loads(pickle.dumps(M))
        assert torch.equal(again.metric(self.z), M.metric(self.z))
        assert again.latent_dim == 2
        assert (again._pullback.chunk_size, type(again)) == (32, Manifold)


def diverging():
    """One pair of four points stays unsolved: two steps are enough for the others only."""
    z = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1], [40.0, 60.0]], dtype=F64)
    return Manifold(spaces.swiss_roll), z + torch.tensor([3.0, 0.0], dtype=F64)


class TestFailures:
    solver = Newton(max_segments=16)

    def test_the_error_carries_all_distances_and_what_failed(self):
        M, z = diverging()
        with pytest.raises(
            NotConvergedError, match=r"3 .*first pairs: \(0, 3\), \(1, 3\), \(2, 3\)"
        ) as caught:
            M.distance_matrix(z, solver=self.solver)
        result = caught.value.result
        assert result.failed.tolist() == [[0, 3], [1, 3], [2, 3]]
        assert (result.status != Status.CONVERGED).all()
        assert result.distances.shape == (4, 4)
        true = torch.hypot(
            spaces.roll_arc(z[:, 0, None]) - spaces.roll_arc(z[None, :, 0]),
            z[:, None, 1] - z[None, :, 1],
        )
        assert torch.allclose(result.distances[:3, :3], true[:3, :3], rtol=1e-4)

    def test_without_throwing_the_distances_come_back(self):
        M, z = diverging()
        result = M.distance_matrix(z, solver=self.solver, throw=False, return_result=True)
        assert torch.equal(M.distance_matrix(z, solver=self.solver, throw=False), result.distances)
        assert result.failed.tolist() == [[0, 3], [1, 3], [2, 3]]
        assert "first pairs: (0, 3)" in repr(result)

    def test_the_file_is_complete_and_raises_again(self, tmp_path):
        M, z = diverging()
        out = tmp_path / "d.npy"
        for _ in range(2):
            with pytest.raises(NotConvergedError) as caught:
                M.distance_matrix(z, solver=self.solver, out=out, block_size=2)
            assert caught.value.result.failed.tolist() == [[0, 3], [1, 3], [2, 3]]
        kept = M.distance_matrix(z, solver=self.solver, out=out, block_size=2, throw=False)
        assert torch.equal(kept, caught.value.result.distances)


class TestFile:
    z = draw(30, 7)
    M = Manifold(network())

    def run(self, out, M=None, z=None, **options):
        options = {"block_size": 4, **options}
        return (M or self.M).distance_matrix(self.z if z is None else z, out=out, **options)

    @pytest.mark.parametrize("method", METHODS)
    def test_holds_the_matrix_as_numpy_reads_it(self, tmp_path, method):
        out = tmp_path / "d.npy"
        d = self.run(out, method=method, k=3)
        assert torch.equal(d, self.M.distance_matrix(self.z, method=method, k=3, block_size=4))
        assert np.array_equal(np.load(out, allow_pickle=False), d.numpy())
        assert sorted(p.name for p in tmp_path.iterdir()) == ["d.npy", "d.npy.json"]
        about = json.loads((tmp_path / "d.npy.json").read_text())
        assert (about["shape"], about["dtype"], about["failed"]) == ([7, 7], "float64", [])

    def test_a_complete_file_is_read_not_computed(self, tmp_path, monkeypatch):
        first, calls = self.run(tmp_path / "d.npy"), []
        monkeypatch.setattr(matrix_work, "geodesic", None)
        again = self.run(tmp_path / "d.npy", progress=lambda *count: calls.append(count))
        assert torch.equal(again, first)
        assert calls == [(21, 21)]

    def test_changing_the_tensor_leaves_the_file_alone(self, tmp_path):
        d = self.run(tmp_path / "d.npy")
        kept = d.clone()
        d.zero_()
        assert torch.equal(self.run(tmp_path / "d.npy"), kept)

    def test_an_interrupted_run_resumes_with_the_missing_blocks_only(self, tmp_path):
        out, calls = tmp_path / "d.npy", []
        with pytest.raises(KeyboardInterrupt):
            self.run(out, executor=Eager(only=2))
        assert not out.exists()
        rest = Eager()
        d = self.run(out, executor=rest, progress=lambda *count: calls.append(count))
        assert rest.blocks == [2, 3, 4, 5]
        assert calls[0] == (12, 21)
        assert torch.equal(d, self.M.distance_matrix(self.z, block_size=4))

    def test_the_executor_may_change_between_runs(self, tmp_path):
        out = tmp_path / "d.npy"
        with pytest.raises(KeyboardInterrupt):
            self.run(out, executor=Eager(only=3))
        assert torch.equal(self.run(out), self.M.distance_matrix(self.z, block_size=4))

    def test_a_block_cut_short_by_a_kill_is_no_block(self, tmp_path):
        out = tmp_path / "d.npy"
        with pytest.raises(KeyboardInterrupt):
            self.run(out, executor=Eager(only=2))
        (tmp_path / "d.npy.blocks" / "00000002.safetensors.part").write_bytes(b"half a bl")
        assert torch.equal(self.run(out), self.M.distance_matrix(self.z, block_size=4))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["d.npy", "d.npy.json"]

    def test_killed_before_the_first_line(self, tmp_path):
        (tmp_path / "d.npy.blocks").mkdir()
        (tmp_path / "d.npy.blocks" / "run.json.part").write_bytes(b"{")
        assert torch.equal(
            self.run(tmp_path / "d.npy"), self.M.distance_matrix(self.z, block_size=4)
        )

    def test_killed_between_description_and_result(self, tmp_path):
        out = tmp_path / "d.npy"
        with pytest.raises(KeyboardInterrupt):
            self.run(out, executor=Eager(only=2))
        (tmp_path / "d.npy.part").write_bytes(b"x")
        (tmp_path / "d.npy.json").write_bytes(b"{}")
        assert torch.equal(self.run(out), self.M.distance_matrix(self.z, block_size=4))


VICTIM = """
import sys, time, torch
from test_distance_matrix import draw, network
from riemae import Manifold
torch.set_num_threads(1)
M, out = Manifold(network()), sys.argv[1]
slowly = lambda done, n: time.sleep(0.05)
M.distance_matrix(draw(40, 24), out=out, block_size=16, rtol=1e-6, progress=slowly)
"""


def interpreter(*arguments):
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([here, *(p for p in sys.path if p)])
    return subprocess.Popen(
        [sys.executable, "-c", VICTIM, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
class TestKill:
    def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(self, tmp_path):
        whole, broken = tmp_path / "whole.npy", tmp_path / "broken.npy"
        z = draw(40, 24)
        Manifold(network()).distance_matrix(z, out=whole, block_size=16, rtol=1e-6)
        blocks = tmp_path / "broken.npy.blocks"
        victim = interpreter(broken)
        give_up = time.monotonic() + 60
        while len(list(blocks.glob("*.safetensors"))) < 3 and time.monotonic() < give_up:
            time.sleep(0.005)
        victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
        finished = {p: p.stat().st_mtime_ns for p in blocks.glob("*.safetensors")}
        assert 3 <= len(finished) < 18
        assert not broken.exists()

        rest = Eager()
        d = Manifold(network()).distance_matrix(
            z, out=broken, block_size=16, rtol=1e-6, executor=rest
        )
        assert set(rest.blocks) == set(range(18)) - {int(p.stem) for p in finished}
        assert broken.read_bytes() == whole.read_bytes()
        assert (tmp_path / "broken.npy.json").read_bytes() == (
            tmp_path / "whole.npy.json"
        ).read_bytes()
        assert np.array_equal(d.numpy(), np.load(whole))


class TestForeignFiles:
    z = draw(50, 6)
    M = Manifold(network())

    @pytest.fixture(params=["complete", "unfinished"])
    def out(self, request, tmp_path):
        out = tmp_path / "d.npy"
        if request.param == "complete":
            self.M.distance_matrix(self.z, out=out, block_size=4)
        else:
            with pytest.raises(KeyboardInterrupt):
                self.M.distance_matrix(self.z, out=out, block_size=4, executor=Eager(only=2))
        return out

    def refused(self, out, match, M=None, z=None, **options):
        before = sorted((p, p.read_bytes()) for p in out.parent.rglob("*") if p.is_file())
        with pytest.raises(FileError, match=match) as caught:
            (M or self.M).distance_matrix(
                self.z if z is None else z, out=out, **{"block_size": 4, **options}
            )
        assert str(out) in str(caught.value)
        assert "Give another out=" in caught.value.hint
        assert sorted((p, p.read_bytes()) for p in out.parent.rglob("*") if p.is_file()) == before

    def test_other_points(self, out):
        self.refused(out, r"another one: points\.a: expected", z=self.z + 1e-12)
        self.refused(out, "shape: expected", z=self.z[:5])
        self.refused(
            out,
            "dtype: expected float32, got float64",
            z=self.z.float(),
            M=Manifold(network(torch.float32)),
        )

    def test_other_settings(self, out):
        self.refused(out, r"settings\.rtol: expected 1e-06, got 0\.0001", rtol=1e-6)
        self.refused(out, r"settings\.block_size: expected 5, got 4", block_size=5)
        self.refused(out, r"settings\.method: expected chord, got geodesic", method="chord")
        self.refused(out, r"settings\.solver", solver=Newton(max_segments=64))

    def test_other_parameters(self, out):
        other = network()
        with torch.no_grad():
            other[2].bias += 1.0  # moves the decoded points and changes no distance
        self.refused(out, r"space\.decoder: expected", M=Manifold(other))
        other = torch.nn.Sequential(network(), torch.nn.Identity())
        self.refused(out, r"space\.decoder", M=Manifold(other))

    def test_another_ambient_metric(self, out):
        self.refused(
            out,
            r"space\.ambient",
            M=Manifold(network(), ambient=ambient.Diagonal(torch.ones(5, dtype=F64))),
        )

    def test_another_function_of_the_same_name(self, tmp_path):
        def sphere(radius):
            return Manifold(lambda z: spaces.sphere(z, radius))

        out = tmp_path / "d.npy"
        sphere(1.0).distance_matrix(self.z, out=out, block_size=4)
        assert sphere(1.0).distance_matrix(self.z, out=out, block_size=4).shape == (6, 6)
        self.refused(out, "probe: the metric has other values", M=sphere(1.0 + 1e-6))

    def test_a_description_that_is_none(self, out):
        for file in [*out.parent.rglob("*.json")]:
            for text in ("{", "[]", "null"):
                file.write_text(text)
                self.refused(out, str(file.name))


class TestDamagedFiles(TestForeignFiles):
    def test_results_cut_short_changed_or_alone(self, tmp_path):
        out = tmp_path / "d.npy"
        self.M.distance_matrix(self.z, out=out, block_size=4)
        whole = out.read_bytes()
        flipped = bytearray(whole)
        flipped[-3] ^= 1
        for content, match in (
            (b"", "a whole .npy file"),
            (whole[:100], "a whole .npy file"),
            (whole[:-8], "a whole .npy file"),
            (b"no array", "a whole .npy file"),
            (flipped, r"unchanged contents \(sha256"),
            (whole.replace(b"<f8", b"<i8"), "shape and dtype"),
        ):
            out.write_bytes(content)
            self.refused(out, match)
        out.write_bytes(whole)
        (tmp_path / "d.npy.json").unlink()
        self.refused(out, "d.npy.json to hold the description")

    def test_an_array_that_holds_objects_is_not_unpickled(self, tmp_path):
        out = tmp_path / "d.npy"
        self.M.distance_matrix(self.z, out=out, block_size=4)
        np.save(out, np.array([[print]], dtype=object), allow_pickle=True)
        self.refused(out, "a whole .npy file")

    def test_blocks_cut_short_changed_or_exchanged(self, tmp_path):
        out = tmp_path / "d.npy"
        with pytest.raises(KeyboardInterrupt):
            self.M.distance_matrix(self.z, out=out, block_size=4, executor=Eager(only=3))
        blocks = tmp_path / "d.npy.blocks"
        block, other = blocks / "00000001.safetensors", blocks / "00000002.safetensors"
        whole = block.read_bytes()
        flipped = bytearray(whole)
        flipped[-3] ^= 1
        for content, match in (
            (b"", "a whole safetensors file"),
            (whole[:50], "a whole safetensors file"),
            (whole[:-1], "a whole safetensors file"),
            (flipped, r"unchanged contents \(sha256"),
            (other.read_bytes(), "this block"),
        ):
            block.write_bytes(content)
            self.refused(out, match)
        # A block of another run, by the same name.
        with pytest.raises(KeyboardInterrupt):
            self.M.distance_matrix(
                self.z + 0.1, out=tmp_path / "e.npy", block_size=4, executor=Eager(only=3)
            )
        block.write_bytes((tmp_path / "e.npy.blocks" / block.name).read_bytes())
        self.refused(out, "a block of this run")
        block.write_bytes(whole)
        (blocks / "notes.txt").write_text("mine")
        self.refused(out, "notes.txt")
        (blocks / "notes.txt").unlink()
        (blocks / "00000099.safetensors").write_bytes(whole)
        self.refused(out, "blocks 0 to 3 of a run")

    def test_a_folder_that_is_missing(self, tmp_path):
        with pytest.raises(FileError, match=r"an existing folder for out=.*Make the folder first"):
            self.M.distance_matrix(self.z, out=tmp_path / "nowhere" / "d.npy")


class TestMistakes:
    a = draw(60, 5)

    @pytest.mark.parametrize(
        ("error", "match", "options"),
        [
            (OptionError, "among 'geodesic', 'graph', 'chord', got 'euclid'", {"method": "euclid"}),
            (OptionError, "block_size of at least 1, got 0", {"block_size": 0}),
            (OptionError, "block_size", {"block_size": 2.5}),
            (OptionError, "rtol > 0", {"rtol": 0.0}),
            (DTypeError, "client.get_executor", {"executor": object()}),
            (DTypeError, "a solver such as", {"solver": "newton"}),
        ],
    )
    def test_options(self, error, match, options):
        for call in (
            SPHERE.distance_matrix,
            lambda a, **o: solvers.distance_matrix(HALF_PLANE, a, **o),
        ):
            with pytest.raises(error, match=match):
                call(self.a + 1.0, **options)

    def test_points(self):
        for call in (SPHERE.distance_matrix, lambda *p: solvers.distance_matrix(HALF_PLANE, *p)):
            with pytest.raises(ShapeError, match=r"b of shape \(n, m\)"):
                call(self.a, self.a[0])
            with pytest.raises(ShapeError):
                call(self.a, draw(61, 4, 3))
            with pytest.raises(DTypeError, match="one dtype"):
                call(self.a, self.a.float())
            with pytest.raises(NonFiniteError):
                call(self.a, self.a / 0)
        with pytest.raises(DTypeError, match="as_tensor"):
            solvers.distance_matrix(HALF_PLANE, self.a.numpy())

    def test_chords_that_do_not_exist(self):
        with pytest.raises(AmbientError, match="Use method='geodesic' or 'graph'"):
            spaces.half_plane_as_ambient().distance_matrix(self.a + 2, method="chord")
        with pytest.raises(GraphError, match="Use method='geodesic' or 'graph'"):
            solvers.distance_matrix(HALF_PLANE, self.a + 2, method="chord")
