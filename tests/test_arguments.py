"""Arguments that are nearly right work, or raise a typed error with where, expected, got, try."""

import math

import pytest
import spaces
import torch

from riemae import Manifold, solvers
from riemae.exceptions import DeviceError, DTypeError, GraphError, NotConvergedError, OptionError
from riemae.solvers.progress import reported

F64 = torch.float64
SPHERE = Manifold(spaces.sphere)


def draw(seed, n, m=2, low=-0.8, high=0.8):
    return spaces.rand(torch.Generator().manual_seed(seed), n, m, low=low, high=high)


Z, W = draw(1, 5), draw(2, 5)


class TestAccuracy:
    calls = {
        "geodesic": lambda r: SPHERE.geodesic(Z, W, rtol=r),
        "distance": lambda r: SPHERE.distance(Z, W, rtol=r),
        "length": lambda r: SPHERE.length(Z, rtol=r),
        "energy": lambda r: SPHERE.energy(Z, rtol=r),
        "exp": lambda r: SPHERE.exp(Z, W, rtol=r),
        "log": lambda r: solvers.log(SPHERE, Z, W, rtol=r),
        "shoot": lambda r: SPHERE.shoot(Z, W, rtol=r),
        "transport": lambda r: SPHERE.transport(Z, W[0], rtol=r),
        "jacobi_field": lambda r: SPHERE.jacobi_field(Z, W, rtol=r),
        "graph": lambda r: SPHERE.graph(Z, k=2, rtol=r),
        "distance_matrix": lambda r: SPHERE.distance_matrix(Z, rtol=r),
    }

    @pytest.mark.parametrize("call", calls.values(), ids=calls)
    def test_what_is_no_accuracy(self, call):
        for rtol in ("1e-3", torch.tensor([1e-3, 1e-4]), [1e-3], True, 1e-3 + 0j):
            with pytest.raises(DTypeError, match="rtol > 0 as a number"):
                call(rtol)
        for rtol in (0.0, -1, float("nan"), math.inf):
            with pytest.raises(OptionError, match="rtol > 0"):
                call(rtol)

    @pytest.mark.parametrize("rtol", [torch.tensor(1e-3), torch.tensor([1e-3], dtype=F64)])
    def test_a_tensor_with_one_number_is_one(self, rtol):
        for name in ("length", "energy"):
            assert torch.equal(self.calls[name](rtol), self.calls[name](float(rtol)))


class TestSolvers:
    @pytest.mark.parametrize(
        "solver", [solvers.Newton, solvers.NewtonCG, solvers.Adam, solvers.LBFGS, solvers.BVP]
    )
    def test_a_class_is_no_solver(self, solver):
        for call in (
            SPHERE.geodesic,
            SPHERE.distance,
            lambda *z, **o: solvers.log(SPHERE, *z, **o),
        ):
            with pytest.raises(DTypeError, match=rf"Make an instance: {solver.__name__}\(\)"):
                call(Z, W, solver=solver)
        with pytest.raises(DTypeError, match="Make an instance"):
            SPHERE.distance_matrix(Z, solver=solver)

    @pytest.mark.parametrize("solver", ["newton", 5, object(), {}, lambda: None])
    def test_other_things_are_none(self, solver):
        with pytest.raises(DTypeError, match=r"a solver such as solvers\.Newton\(\)"):
            SPHERE.geodesic(Z, W, solver=solver)


class TestManifold:
    @pytest.mark.parametrize("name", ["chunk_size", "latent_dim"])
    @pytest.mark.parametrize("value", [2.5, "2", 0, -1, True, [2], torch.tensor(2.0)])
    def test_sizes_are_integers(self, name, value):
        with pytest.raises(OptionError, match=f"{name} of at least 1"):
            Manifold(spaces.sphere, **{name: value})


class TestPoints:
    sparse = [Z.to_sparse()]

    @pytest.mark.parametrize(
        "call",
        [
            lambda z: SPHERE.geodesic(z, W),
            lambda z: SPHERE.distance(W, z),
            lambda z: SPHERE.exp(z, W),
            lambda z: SPHERE.exp(W, z),
            lambda z: SPHERE.distance_matrix(z),
            lambda z: SPHERE.distance_matrix(W, z),
            lambda z: SPHERE.graph(z, k=2),
            lambda z: solvers.geodesic(SPHERE, z, W),
            lambda z: solvers.distance_matrix(SPHERE, z),
        ],
    )
    def test_sparse_ones_are_refused(self, call):
        for z in self.sparse:
            with pytest.raises(
                DTypeError, match=r"as a dense tensor, got torch\.sparse_coo\. Try .*to_dense\(\)"
            ):
                call(z)

    @pytest.mark.parametrize(
        "call",
        [
            lambda z: SPHERE.geodesic(z, z),
            lambda z: SPHERE.distance(z, z),
            lambda z: SPHERE.distance_matrix(z),
            lambda z: SPHERE.graph(z, k=2),
            lambda z: solvers.distance_matrix(SPHERE, z),
        ],
    )
    def test_without_values_nothing_can_be_solved(self, call):
        with pytest.raises(DeviceError, match="meta device"):
            call(Z.to("meta"))


class TestGraphs:
    def test_of_another_manifold(self):
        other = Manifold(lambda z: z).graph(draw(3, 10, 3), k=2)
        for call in (SPHERE.geodesic, SPHERE.distance):
            with pytest.raises(GraphError, match="2 coordinates .*, got 3 .*another manifold"):
                call(Z, W, graph=other)
        with pytest.raises(GraphError, match="float32"):
            SPHERE.geodesic(Z.float(), W.float(), graph=SPHERE.graph(draw(3, 10), k=3))

    @pytest.mark.parametrize("graph", ["graph", 5, torch.zeros(3), {}, object()])
    def test_that_are_none(self, graph):
        with pytest.raises(DTypeError, match=r"M\.graph\(points\)"):
            SPHERE.geodesic(Z, W, graph=graph)

    @pytest.mark.parametrize("weight", ["a", None, 1, ["length"], "Length"])
    def test_weights(self, weight):
        for call in (
            lambda: SPHERE.graph(Z, k=2, weight=weight),
            lambda: SPHERE.distance_matrix(Z, weight=weight),
        ):
            with pytest.raises(OptionError, match="weight among 'length', 'chord'"):
                call()

    def relu(self):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU()]
        return Manifold(torch.nn.Sequential(*layers, torch.nn.Linear(16, 20)).double())

    @pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
    def test_edges_have_the_accuracy_that_was_asked_for(self, rtol):
        z = draw(4, 12, low=-2, high=2)
        M = self.relu()
        g = M.graph(z, k=3, rtol=rtol)
        rows, columns = g.adjacency.nonzero()
        true = M.length(torch.stack([z[rows], z[columns]], 1), rtol=1e-7, throw=False)
        assert torch.allclose(
            torch.as_tensor(g.adjacency.data), true.detach(), rtol=max(rtol, 1e-4), atol=0
        )

    def test_the_default_takes_few_points_and_distances_pass_it_on(self):
        counts = []

        def decode(z):
            counts.append(len(z))
            return net(z)

        net, z = self.relu().decoder, draw(5, 30, low=-2, high=2)
        M, seen = Manifold(decode), {}
        M.metric(z)
        for rtol in (1e-2, None, 1e-2, 1e-5):
            counts.clear()
            d = M.distance_matrix(z, method="graph", k=4, rtol=rtol)
            seen[rtol] = sum(counts)
            assert torch.allclose(d, M.graph(z, k=4, rtol=rtol or 1e-2).distances(), rtol=1e-14)
        assert seen[None] == seen[1e-2] < seen[1e-5] / 4
        chords = M.distance_matrix(z, method="graph", k=4, weight="chord")
        assert torch.allclose(chords, M.graph(z, k=4, weight="chord").distances(), rtol=1e-14)
        assert (chords <= d * (1 + 1e-9)).all()

    def test_progress_counts_edges(self):
        calls = []
        g = SPHERE.graph(draw(6, 400), k=4, progress=lambda *c: calls.append(c))
        edges = calls[-1][1]
        assert edges == g.adjacency.nnz // 2
        assert [done for done, _ in calls] == [*range(256, edges, 256), edges]
        calls.clear()
        SPHERE.distance_matrix(
            draw(6, 400), method="graph", k=4, progress=lambda *c: calls.append(c)
        )
        done = [d for d, _ in calls]
        assert done == sorted(done)
        assert done[0] > 0
        assert sum(0 < d <= 80_000 for d in done) >= 4  # while the graph was built
        assert calls[-1] == (160_000, 160_000)


class TestProgress:
    @pytest.mark.parametrize("method", ["geodesic", "graph", "chord"])
    def test_true_shows_a_bar_on_stderr(self, method, capsys):
        M, options = SPHERE, {"method": method, "k": 2, "block_size": 4}
        assert torch.equal(
            M.distance_matrix(Z, progress=True, **options), M.distance_matrix(Z, **options)
        )
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "distances" in shown.err
        M.distance_matrix(Z, progress=False, **options)
        assert capsys.readouterr().err == ""

    def test_of_geodesics_and_graphs(self, capsys):
        SPHERE.graph(Z, k=2, progress=True)
        assert "edges" in capsys.readouterr().err
        solvers.geodesic(SPHERE, Z, W, progress=True)
        assert "geodesics" in capsys.readouterr().err

    @pytest.mark.parametrize("progress", [5, "yes", [], 1.0, {}])
    def test_other_things(self, progress):
        for call in (SPHERE.distance_matrix, lambda z, **o: SPHERE.graph(z, k=2, **o)):
            with pytest.raises(DTypeError, match="progress as a function"):
                call(Z, progress=progress)

    def test_a_bar_is_closed_when_the_call_fails(self, capsys):
        def work():
            with reported("test", True, "things") as update:
                update(1, 2)
                update(1, 0 / 0)

        with pytest.raises(ZeroDivisionError):
            work()
        assert "1/2" in capsys.readouterr().err


class TestTimes:
    v = 0.3 * draw(7, 5)

    @pytest.mark.parametrize(
        "t",
        [
            torch.tensor([0.2, 0.5, 1.0], dtype=F64),
            torch.tensor([0.0, 0.1]),
            torch.tensor([-0.3, -0.6, -0.6]),
            torch.tensor([0.7]),
            torch.tensor([1, 2, 3]),
        ],
        ids=["three", "from 0", "backwards", "one", "integers"],
    )
    def test_several_times_are_points_along_one_geodesic(self, t):
        points = SPHERE.exp(Z, self.v, t)
        assert points.shape == (5, len(t), 2)
        for i, time in enumerate(t.tolist()):
            assert torch.allclose(points[:, i], SPHERE.exp(Z, self.v, time), atol=1e-8)
        # The sphere's own: distances grow with time, at the speed of the start.
        speed = SPHERE.norm(Z, self.v)
        away = spaces.great_circle(Z[:, None].expand_as(points), points)
        assert torch.allclose(away, speed[:, None] * t.to(F64).abs(), atol=1e-7)

    @pytest.mark.parametrize("shape", [(2,), (1, 2), (3, 4, 2)])
    def test_batches(self, shape):
        z, v = (
            draw(8, math.prod(shape[:-1])).view(shape),
            0.2 * draw(9, math.prod(shape[:-1])).view(shape),
        )
        t = torch.tensor([0.1, 0.4], dtype=F64)
        points = SPHERE.exp(z, v, t)
        assert points.shape == (*shape[:-1], 2, 2)
        assert torch.equal(solvers.exp(SPHERE, z, v, t), points)
        assert torch.equal(SPHERE.exp(z, v, torch.tensor(0.4, dtype=F64)), SPHERE.exp(z, v, 0.4))

    def test_gradients_pass(self):
        v = self.v.clone().requires_grad_()
        t = torch.tensor([0.5, 1.0], dtype=F64)
        (g,) = torch.autograd.grad(SPHERE.exp(Z, v, t)[:, 1].sum(), v)
        w = self.v.clone().requires_grad_()
        (h,) = torch.autograd.grad(SPHERE.exp(Z, w, 1.0).sum(), w)
        assert torch.allclose(g, h, atol=1e-7)

    @pytest.mark.parametrize(
        ("t", "error"),
        [
            (torch.tensor([0.5, 0.2]), OptionError),
            (torch.tensor([-0.5, 0.5]), OptionError),
            (torch.zeros(0), OptionError),
            (torch.zeros(2, 2), OptionError),
            (torch.tensor([0.1, float("nan")]), OptionError),
            (float("inf"), OptionError),
            ("1", DTypeError),
            ([0.1, 0.2], DTypeError),
            (None, DTypeError),
            (True, DTypeError),
            (torch.tensor([1j]), DTypeError),
        ],
    )
    def test_times_that_are_none(self, t, error):
        with pytest.raises(error):
            SPHERE.exp(Z, self.v, t)

    def test_failures_keep_all_times(self):
        flat = solvers.MetricSpace(
            lambda z: torch.eye(2).to(z) * torch.where(z[:, :1, None] < 1, 1.0, math.nan)
        )
        z, v = torch.zeros(2, 2, dtype=F64), torch.tensor([[1.0, 0.0], [0.1, 0.0]], dtype=F64)
        with pytest.raises(NotConvergedError) as caught:
            solvers.exp(flat, z, v, torch.tensor([0.5, 2.0], dtype=F64), max_steps=40)
        assert caught.value.result.shape == (2, 2, 2)
        assert torch.allclose(caught.value.result[1, :, 0], torch.tensor([0.05, 0.2], dtype=F64))
