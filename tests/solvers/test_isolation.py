"""The result of a pair has the same bits alone, in any batch, and beside any neighbours."""

import platform
from functools import partial

import pytest
import spaces
import torch
from torch.nn import functional as F
from watching import watch

from riemae import Manifold, ambient, solvers
from riemae.differential.derivatives import Differential
from riemae.numerics.batch_invariance import (
    aligned,
    apply_constant,
    batch_invariant,
    row_multiple,
)
from riemae.solvers import Curve, Status, path
from riemae.solvers.linear import BlockTridiagonal

F32, F64 = torch.float32, torch.float64

# Checked with the kernels of torch for x86 (MKL, oneDNN); others promise nothing of the kind.
pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkl.is_available(),
    reason="needs MKL on x86",
)


def mlp(m, width, size, dtype=F64, activation=torch.nn.Tanh, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.nn.Linear(m, width), activation(), torch.nn.Linear(width, size)]
    with torch.no_grad():
        for layer in layers[::2]:
            for p in layer.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / layer.in_features**0.5)
    return torch.nn.Sequential(*layers).to(dtype)


def draw(seed, *shape, low=-1.0, high=1.0):
    return spaces.rand(torch.Generator().manual_seed(seed), *shape, low=low, high=high)


def _numbers(*arguments):
    return draw(*arguments).numpy()


def solve(space, z0, z1, rtol, solver=None):
    return solvers.geodesic(space, z0, z1, rtol=rtol, solver=solver, throw=False)


def assert_same_bits(alone, batch, i):
    """The result ``alone`` of one pair is entry ``i`` of ``batch``, bit for bit."""
    for field in ("length", "error", "status", "index", "lower_bound"):
        assert torch.equal(
            getattr(alone, field).nan_to_num(-1.0),
            getattr(batch, field)[i : i + 1].nan_to_num(-1.0),
        ), field
    for name, value in alone.stats.items():
        assert torch.equal(value, batch.stats[name][i : i + 1]), name
    # Subdividing a curve to the finest grid of its batch changes no point of it, and rounds the
    # same way.
    assert torch.equal(
        alone.curve.resample(batch.curve.segments).nodes, batch.curve.nodes[i : i + 1]
    )


class TestAlone:
    """The strong form: alone in a batch of one."""

    @pytest.mark.parametrize("known", spaces.CATALOGUE, ids=spaces.NAMES)
    @pytest.mark.parametrize("rtol", [1e-4, 1e-7])
    def test_closed_forms(self, known, rtol):
        z0, z1, _ = known.pairs(torch.Generator().manual_seed(1), 5)
        batch = solve(known.space(), z0, z1, rtol)
        # Another space, which looks at its decoder with one pair.
        space = known.space()
        for i in range(5):
            assert_same_bits(solve(space, z0[i : i + 1], z1[i : i + 1], rtol), batch, i)

    @pytest.mark.parametrize(
        ("m", "width", "size", "dtype", "activation"),
        [
            (2, 32, 8, F64, torch.nn.Tanh),
            (2, 32, 8, F32, torch.nn.Tanh),
            (8, 64, 64, F64, torch.nn.SiLU),
            (8, 64, 64, F32, torch.nn.SiLU),
            (4, 50, 784, F64, torch.nn.Softplus),
            (4, 50, 784, F32, torch.nn.GELU),
        ],
    )
    def test_networks(self, m, width, size, dtype, activation):
        M = Manifold(mlp(m, width, size, dtype, activation))
        z = draw(2, 2, 9, m).to(dtype)
        rtol = 1e-6 if dtype == F64 else 1e-3
        batch = solve(M, *z, rtol)
        assert int((batch.status == Status.CONVERGED).sum()) >= 8
        for i in range(9):
            assert_same_bits(solve(M, z[0, i : i + 1], z[1, i : i + 1], rtol), batch, i)

    def test_networks_behind_a_metric_that_mixes_the_data(self):
        root = draw(3, 8, 8)
        M = Manifold(
            mlp(2, 32, 8), ambient=ambient.Constant(root @ root.T + torch.eye(8, dtype=F64))
        )
        z = draw(4, 2, 5, 2)
        batch = solve(M, *z, 1e-6)
        for i in range(5):
            assert_same_bits(solve(M, z[0, i : i + 1], z[1, i : i + 1], 1e-6), batch, i)


def broken_in_places(net):
    """A decoder without a value for |z_0| < 1, and constant in z_0 beyond 5."""

    def decoder(z):
        u = torch.where(z[:, :1] > 5, 5.0, z[:, :1])
        return torch.cat([net(torch.cat([u, z[:, 1:]], -1)), (u.square() - 1).sqrt()], -1)

    return decoder


class TestBadNeighbours:
    bad0 = torch.tensor([[torch.nan, 0.0], [6.0, 0.0], [2.0, 0.0]], dtype=F64)
    bad1 = torch.tensor([[2.0, 1.0], [7.0, 1.0], [-2.0, 0.0]], dtype=F64)
    statuses = (Status.INVALID_POINT, Status.SINGULAR, Status.NON_FINITE)

    @pytest.mark.parametrize("dtype", [F64, F32])
    @pytest.mark.parametrize("net", [lambda z: z, "mlp"], ids=["closed form", "network"])
    def test_a_nan_a_singular_region_and_a_missing_path(self, dtype, net):
        M = Manifold(broken_in_places(mlp(2, 32, 7, dtype) if net == "mlp" else net))
        good = torch.cat([draw(5, 2, 6, 1, low=2.5, high=4.0), draw(6, 2, 6, 1)], -1)
        z0, z1 = (
            torch.cat([g[:2], b, g[2:]]).to(dtype)
            for g, b in zip(good, (self.bad0, self.bad1), strict=True)
        )
        newton = solvers.Newton()  # the default would take another one for the singular pair
        rtol = 1e-6 if dtype == F64 else 1e-3
        batch = solve(M, z0, z1, rtol, newton)
        assert tuple(Status(code) for code in batch.status[2:5].tolist()) == self.statuses
        rows = [0, 1, 5, 6, 7, 8]
        assert batch.converged[rows].all()
        without = solve(M, z0[rows], z1[rows], rtol, newton)
        for place, i in enumerate(rows):
            alone = solve(M, z0[i : i + 1], z1[i : i + 1], rtol, newton)
            assert_same_bits(alone, batch, i)
            assert_same_bits(alone, without, place)

    def test_the_comparison_can_fail(self):
        z0, z1 = draw(7, 2, 3, 2)
        batch = solve(Manifold(spaces.sphere), z0, z1, 1e-4)
        with pytest.raises(AssertionError):
            assert_same_bits(solve(Manifold(spaces.sphere), z0[:1] + 1e-15, z1[:1], 1e-4), batch, 0)

    def test_they_leave_a_distance_matrix_alone(self):
        M = Manifold(broken_in_places(lambda z: z))
        good = torch.cat([draw(8, 5, 1, low=2.5, high=4.0), draw(9, 5, 1)], -1)
        bad = torch.tensor([[6.0, 0.0], [-2.0, 0.0]], dtype=F64)
        d = M.distance_matrix(torch.cat([good, bad]), throw=False)
        assert torch.equal(d[:5, :5], M.distance_matrix(good))


class TestChunks:
    def test_chunks_change_no_bit(self, monkeypatch):
        z0, z1, _ = spaces.CATALOGUE[0].pairs(torch.Generator().manual_seed(1), 20)
        calls = []
        whole = solve(Manifold(spaces.sphere), z0, z1, 1e-6)
        monkeypatch.setattr(path, "_FEWEST_PAIRS", 3)
        monkeypatch.setattr(path, "_BYTES", 1)
        parts = solvers.geodesic(
            Manifold(spaces.sphere),
            z0.view(4, 5, 2),
            z1.view(4, 5, 2),
            rtol=1e-6,
            progress=lambda *c: calls.append(c),
        )
        assert parts.length.shape == (4, 5)
        for i in range(20):
            assert_same_bits(parts[i // 5][None, i % 5], whole, i)
        assert calls[-1] == (20, 20)
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)
        assert len({done for done, _ in calls}) >= 7

    def test_start_curves_follow_their_pairs(self, monkeypatch):
        # Round the long way of a cylinder, whose unrolled lines stay what they are.
        z0, turns = draw(21, 7, 2), torch.arange(7, dtype=F64)
        z1 = z0 + torch.stack([turns, torch.ones(7, dtype=F64)], -1)
        init = Curve.line(z0, z1, 16)
        monkeypatch.setattr(path, "_FEWEST_PAIRS", 2)
        monkeypatch.setattr(path, "_BYTES", 1)
        r = solvers.geodesic(Manifold(spaces.cylinder), z0, z1, init=init, rtol=1e-8)
        assert torch.allclose(
            r.length, torch.hypot(1.5 * turns, torch.ones(7, dtype=F64)), rtol=1e-8
        )

    def test_lengths_of_many_vectors_hold_the_outputs_of_one_chunk(self):
        sizes = []

        def metric(x, v):
            sizes.append(len(x))
            return 2 * v

        M = Manifold(spaces.sphere, ambient=ambient.Custom(operator=metric), chunk_size=16)
        z, v = draw(3, 200, 2), draw(4, 200, 2)
        assert torch.allclose(M.norm(z, v), 2**0.5 * Manifold(spaces.sphere).norm(z, v))
        assert max(sizes) == 16

    def test_fine_levels_take_some_pairs_at_a_time(self, monkeypatch):
        z0, z1, _ = spaces.CATALOGUE[0].pairs(torch.Generator().manual_seed(1), 9)
        whole = solve(Manifold(spaces.sphere), z0, z1, 1e-8)
        sizes = []

        watch(monkeypatch, energy_and_gradient=lambda nodes: sizes.append(len(nodes)))
        monkeypatch.setattr(path, "_FEWEST_PAIRS", 2)
        monkeypatch.setattr(path, "_BLOCKS_A_STEP", 2**27)
        parts = solve(Manifold(spaces.sphere), z0, z1, 1e-8)
        assert max(sizes) == 2
        for i in range(9):
            assert_same_bits(parts[i : i + 1], whole, i)

    def test_saddles_beside_curves_that_are_none(self):
        # Arcs of a great circle beyond the antipode, bent a little and much: some are kept, the
        # others minimise.
        u = torch.linspace(0, 1.1 * torch.pi, 17, dtype=F64)
        size = 1 + torch.tensor([0.003, 0.02, 0.3, -0.4], dtype=F64)[:, None] * torch.sin(u / 1.1)
        init = torch.stack([u.cos(), u.sin()], -1) * size[..., None]
        M = Manifold(spaces.sphere)
        options = {"rtol": 1e-4, "throw": False}
        batch = solvers.geodesic(M, init[:, 0], init[:, -1], init=init, **options)
        assert 1 in batch.index
        assert 0 in batch.index
        for i in range(4):
            alone = solvers.geodesic(
                M, init[i : i + 1, 0], init[i : i + 1, -1], init=init[i : i + 1], **options
            )
            assert_same_bits(alone, batch, i)

    def test_memory_grows_with_the_chunk_not_with_the_batch(self, monkeypatch):
        # What the decoder sees at once stands for what is held at once.
        sizes = []

        watch(monkeypatch, expand=lambda nodes, second_order=True: sizes.append(len(nodes)))
        monkeypatch.setattr(path, "_FEWEST_PAIRS", 4)
        monkeypatch.setattr(path, "_BYTES", 1)
        z0, z1, _ = spaces.CATALOGUE[0].pairs(torch.Generator().manual_seed(2), 30)
        assert Manifold(spaces.sphere).geodesic(z0, z1).converged.all()
        assert max(sizes) == 4


class TestPieces:
    """What the solver is built of, each against itself on one row."""

    @pytest.mark.parametrize("dtype", [F64, F32])
    @pytest.mark.parametrize(
        "f",
        [torch.sigmoid, F.silu, F.softplus, F.gelu, torch.tanh, torch.exp],
        ids=lambda f: f.__name__,
    )
    def test_functions(self, f, dtype):
        x = draw(10, 61, 5).to(dtype)
        for rows in (5, 9, 33):
            for first in (0, 1, 28):
                assert torch.equal(
                    batch_invariant(f)(x[first : first + rows].clone()),
                    batch_invariant(f)(x)[first : first + rows],
                )

    def test_rows_are_filled_up_to_a_multiple_of_16(self):
        counts = []
        f = batch_invariant(lambda z: (counts.append(len(z)), z)[1])
        for k in (0, 1, 5, 16, 17):
            z = draw(11, k, 2)
            assert torch.equal(f(z), z)
        assert counts == [0, 16, 16, 16, 32]

    def test_as_many_rows_as_the_widths_ask_for(self):
        assert row_multiple([8, 256, 64], 8) == 8
        assert row_multiple([2, 6], 8) == 8
        assert row_multiple([2, 3], 8) == 16
        assert row_multiple([8, 256, 64], 4) == 8
        assert row_multiple([2, 256], 4) == 16
        assert row_multiple([256, 5], 4) == 32
        assert row_multiple([256, 5], 2) == 32  # no more than that

    @pytest.mark.parametrize("dtype", [F64, F32])
    @pytest.mark.parametrize("width", [2, 4, 6, 8, 3])
    def test_a_map_is_run_on_so_many_rows(self, width, dtype):
        seen = []
        map_ = Differential(
            lambda z: (seen.append(len(z)), F.silu(z[:, :1].expand(-1, width) * z[:, 1:]))[1]
        ).batch_invariant()
        x = draw(13, 40, 1 + width).to(dtype)
        whole = map_.value(x)
        rows = row_multiple([1 + width, width], x.element_size())
        del seen[:]
        for first, count in ((0, 1), (3, 7), (17, 12)):
            assert torch.equal(map_.value(x[first : first + count]), whole[first : first + count])
        assert seen == [rows, rows, rows * -(-12 // rows)]

    @pytest.mark.parametrize("dtype", [F64, F32])
    def test_convolutions(self, dtype):
        torch.manual_seed(0)
        layers = [
            torch.nn.Linear(2, 32),
            torch.nn.Unflatten(1, (8, 2, 2)),
            torch.nn.ConvTranspose2d(8, 4, 4, 2, 1),
        ]
        net = (
            torch.nn.Sequential(*layers, torch.nn.SiLU(), torch.nn.Conv2d(4, 1, 3, padding=1))
            .to(dtype)
            .eval()
        )
        map_, z = (
            Differential(net.requires_grad_(False)).batch_invariant(),
            draw(15, 60, 2).to(dtype),
        )
        looks = (map_.value, map_.jacobian, lambda z: map_.slope(z, lambda x: x)[1])
        for look in looks:
            whole = look(z)
            for first, count in ((0, 1), (5, 7), (20, 33)):
                assert torch.equal(
                    look(z[first : first + count].clone()), whole[first : first + count]
                )

    def test_outputs_of_a_wrong_shape_are_shown_as_they_are(self):
        assert batch_invariant(lambda z: z[:-1])(draw(12, 7, 2)).shape == (6, 2)
        assert batch_invariant(lambda z: z.sum())(draw(12, 7, 2)).shape == ()

    def test_gradients_do_not_see_the_padding(self):
        z = draw(13, 7, 2).requires_grad_()
        batch_invariant(lambda z: z**3)(z).sum().backward()
        assert torch.allclose(z.grad, 3 * z.detach() ** 2, rtol=1e-15)

    @pytest.mark.parametrize("dtype", [F64, F32])
    def test_products_with_one_matrix(self, dtype):
        for j in (9, 17, 33):
            matrix, x = draw(14, j - 2, j).to(dtype), draw(15, 11, j, 3).to(dtype)
            product = partial(apply_constant, _numbers, (14, j - 2, j))
            y = product(x)
            assert torch.allclose(y, matrix @ x, rtol=1e-12 if dtype == F64 else 1e-4, atol=1e-6)
            assert all(torch.equal(product(x[i : i + 1]), y[i : i + 1]) for i in range(11))
        assert product(x[0]).shape == (31, 3)
        assert product(x[:0]).shape == (0, 31, 3)

    @pytest.mark.parametrize("dtype", [F64, F32])
    @pytest.mark.parametrize(("i", "j", "m"), [(16, 10, 8), (7, 12, 16), (24, 5, 9)])
    def test_products_of_other_shapes(self, dtype, i, j, m):
        matrix, x = draw(14, i, j).to(dtype), draw(15, 2, 3, m, j).to(dtype).mT
        product = partial(apply_constant, _numbers, (14, i, j))
        y = product(x)
        assert torch.allclose(y, matrix @ x, rtol=1e-12 if dtype == F64 else 1e-4, atol=1e-6)
        assert torch.equal(product(x[1, 2]), y[1, 2])
        assert torch.equal(product(x[1:, :1]), y[1:, :1])

    def test_alignment_appends_zeros(self):
        x = draw(16, 3, 37)
        y = aligned(x, -1, 3)
        assert (y.shape, y[:, 37:].abs().sum()) == ((3, 48), 0)
        assert torch.equal(y[:, :37], x)
        assert aligned(x, -1, 16) is x
        assert aligned(x, -2).shape == (16, 37)

    @pytest.mark.parametrize("dtype", [F64, F32])
    @pytest.mark.parametrize(("n", "m"), [(7, 2), (31, 3), (31, 8), (15, 14)])
    def test_systems(self, n, m, dtype):
        root = draw(17, 6, n, m, m)
        systems = BlockTridiagonal(
            root @ root.mT + 3 * m * torch.eye(m, dtype=F64), draw(18, 6, n - 1, m, m)
        )
        systems = BlockTridiagonal(systems.diagonal.to(dtype), systems.upper.to(dtype))
        b = draw(19, 6, n, m).to(dtype)
        factor = systems.cholesky()
        x = factor.solve(b)
        assert factor.ok.all()
        assert torch.allclose(systems.product(x), b, rtol=1e-9 if dtype == F64 else 1e-3, atol=1e-6)
        for i in range(6):
            alone = systems.select(torch.tensor([i])).cholesky()
            assert torch.equal(alone.solve(b[i : i + 1]), x[i : i + 1])

    def test_splines(self):
        nodes = draw(20, 9, 33, 3)
        slopes = Curve.from_nodes(nodes).slopes
        assert all(torch.equal(Curve.from_nodes(nodes[i]).slopes, slopes[i]) for i in range(9))
