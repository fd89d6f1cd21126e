"""The bounded look for a shorter geodesic: what it finds, when it looks, and where it ends."""

import pytest
import torch
from torch import nn

from riemae import Manifold, solvers
from riemae.solvers import Newton, Status
from riemae.solvers.budget import limited, metered
from riemae.solvers.space import space_of

F64 = torch.float64
# West and east of two hills: the straight line slides into the valley between them, and the way
# round in the north is shorter.
WEST = torch.tensor([[-1.5, 0.0], [-1.2, 0.05]], dtype=F64)
EAST = torch.tensor([[1.5, 0.0], [1.4, 0.0]], dtype=F64)
NORTH = torch.tensor([[[-1.5, 1.5], [1.5, 1.5]]], dtype=F64)


def hills(z):
    x, y = z.unbind(-1)
    near = 2 * torch.exp(-(x.square() + (y - 0.15).square()) / 0.15)
    south = 2.5 * torch.exp(-(x.square() + (y + 1.2).square()) / 0.3)
    return torch.stack([x, y, near + south], -1)


def metric_of_hills(z):
    x, y = z.unbind(-1)
    near = 2 * torch.exp(-(x.square() + (y - 0.15).square()) / 0.15)
    south = 2.5 * torch.exp(-(x.square() + (y + 1.2).square()) / 0.3)
    slope = torch.stack(
        [
            -2 * x * (near / 0.15 + south / 0.3),
            -2 * ((y - 0.15) * near / 0.15 + (y + 1.2) * south / 0.3),
        ],
        -1,
    )
    return torch.eye(2).to(z) + slope[:, :, None] * slope[:, None]


def single(M, z0, z1, **options):
    return M.geodesic(z0, z1, n_starts=1, **options)


def decodings(M, z0, z1, **options):
    with limited("geodesic", 10**9, None) as budget:
        solvers.geodesic(metered(space_of(M, z0, z1), budget), z0, z1, **options)
        return budget.used


class TestWhatItFinds:
    def test_the_way_round(self):
        M = Manifold(hills)
        best = M.geodesic(WEST, EAST, rtol=1e-6, n_starts=16).length
        alone = single(M, WEST, EAST, rtol=1e-6)
        assert bool((alone.length > 1.01 * best).all())
        assert bool((alone.index == 0).all())
        r = M.geodesic(WEST, EAST, rtol=1e-6)
        torch.testing.assert_close(r.length, best, rtol=1e-6, atol=0)
        assert bool(r.converged.all())
        assert bool((r.curve(torch.tensor(0.5))[:, 1] > 0.3).all())

    def test_both_ways_are_kept(self):
        M = Manifold(hills)
        alone = single(M, WEST, EAST)
        r = M.geodesic(WEST, EAST)
        assert r.alternatives.length.shape == (2, 2)
        torch.testing.assert_close(r.alternatives.length[0], r.length, rtol=0, atol=0)
        torch.testing.assert_close(r.alternatives.length[1], alone.length, rtol=1e-4, atol=0)
        torch.testing.assert_close(r.gap, alone.length / r.length - 1, rtol=1e-2, atol=0)

    def test_distances_are_those_of_the_way_round(self):
        M = Manifold(hills)
        torch.testing.assert_close(
            M.distance(WEST, EAST), M.geodesic(WEST, EAST).length, rtol=1e-12, atol=0
        )

    def test_in_single_precision(self):
        M = Manifold(hills)
        fine = M.geodesic(WEST, EAST)
        r = M.geodesic(WEST.float(), EAST.float())
        torch.testing.assert_close(r.length.double(), fine.length, rtol=1e-3, atol=0)

    def test_without_an_ambient_distance(self):
        M = Manifold(hills)
        space = solvers.MetricSpace(metric_of_hills)
        r = solvers.geodesic(space, WEST, EAST)
        assert bool(r.lower_bound.isnan().all())
        torch.testing.assert_close(r.length, M.geodesic(WEST, EAST).length, rtol=2e-4, atol=0)

    def test_with_a_condition_for_each_pair(self):
        def decoder(z, c):
            x = hills(z)
            return torch.cat([x[:, :2], x[:, 2:] * c], -1)

        M = Manifold(decoder)
        c = torch.tensor([[1.0], [0.0]], dtype=F64)
        r = M.geodesic(WEST[:1].expand(2, 2), EAST[:1].expand(2, 2), condition=c)
        expected = Manifold(hills).geodesic(WEST[:1], EAST[:1]).length
        torch.testing.assert_close(r.length[:1], expected, rtol=2e-4, atol=0)
        torch.testing.assert_close(float(r.length[1]), 3.0, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("seed", range(4))
    def test_never_longer(self, seed):
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 6)).double()
        net[0].weight.data *= 4
        M = Manifold(net)
        z0, z1 = 1.5 * torch.randn(2, 12, 2, generator=generator, dtype=F64)
        r = M.geodesic(z0, z1, throw=False)
        alone = single(M, z0, z1, throw=False)
        assert bool((r.length <= alone.length * (1 + 1e-12)).all())
        assert bool((r.length >= r.lower_bound * (1 - 1e-9)).all())
        assert bool((r.converged | ~alone.converged).all())


class TestWhenItLooks:
    def test_the_straight_costs_nothing(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 32)).double()
        M = Manifold(net)
        z0, z1 = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
        assert decodings(M, z0, z1) == decodings(M, z0, z1, n_starts=1)

    def test_its_share_is_bounded(self):
        """As much as the pair has cost at most, and what solving the other way costs."""
        M = Manifold(hills)
        M.geodesic(WEST, EAST)  # what is asked of a new decoder
        assert decodings(M, WEST, EAST) < 3.5 * decodings(M, WEST, EAST, n_starts=1)

    @pytest.mark.parametrize(
        "options",
        [{"n_starts": 1}, {"solver": Newton()}, {"init": torch.stack([WEST, EAST], 1)}],
        ids=lambda options: next(iter(options)),
    )
    def test_not_where_the_start_is_chosen(self, options):
        r = Manifold(hills).geodesic(WEST, EAST, **options)
        assert r.alternatives is None
        assert bool(r.gap.isnan().all())
        assert bool((r.length > 1.01 * Manifold(hills).geodesic(WEST, EAST).length).all())

    def test_a_line_has_no_way_round(self):
        M = Manifold(lambda t: torch.cat([t, (9 * t).sin(), (9 * t).cos()], -1))
        r = M.geodesic(torch.tensor([[0.0]], dtype=F64), torch.tensor([[2.0]], dtype=F64))
        torch.testing.assert_close(float(r.length), 2 * 82**0.5, rtol=1e-4, atol=0)

    def test_alone_and_in_a_batch(self):
        M = Manifold(hills)
        z0 = torch.cat([WEST, NORTH[:, 0]])
        z1 = torch.cat([EAST, NORTH[:, 1]])
        together = M.geodesic(z0, z1)
        for row in range(len(z0)):
            alone = M.geodesic(z0[row], z1[row])
            assert torch.equal(alone.length, together.length[row])
            t = torch.tensor(0.3)
            torch.testing.assert_close(
                alone.curve(t), together.curve(t)[row], rtol=1e-12, atol=1e-12
            )

    def test_a_seed_decides(self):
        M = Manifold(hills)
        first = M.geodesic(WEST, EAST, generator=3)
        assert torch.equal(first.length, M.geodesic(WEST, EAST, generator=3).length)


class TestWhereItEnds:
    def test_where_the_decoder_refuses(self):
        """Scouts in the south leave its domain, which the way from west to east does not."""

        def guarded(z):
            if bool((z[:, 1] < -0.75).any()):
                raise ValueError("outside")
            return hills(z)

        r = Manifold(guarded).geodesic(WEST, EAST)
        alone = single(Manifold(guarded), WEST, EAST)
        assert torch.equal(r.length, alone.length)

    def test_where_there_is_nothing(self):
        def torn(z):
            return torch.where(z[:, 1:] > -0.75, hills(z), torch.nan)

        M = Manifold(torn)
        r = M.geodesic(WEST, EAST)
        torch.testing.assert_close(
            r.length, Manifold(hills).geodesic(WEST, EAST).length, rtol=2e-4, atol=0
        )

    @pytest.mark.parametrize("share", [0.5, 1.1, 1.3, 1.6])
    def test_a_budget(self, share):
        M = Manifold(hills)
        whole = decodings(M, WEST, EAST, n_starts=1)
        r = M.geodesic(WEST, EAST, max_decodings=int(share * whole), throw=False)
        assert bool(((r.status == Status.CONVERGED) | (r.status == Status.BUDGET)).all())
        if share > 1:
            alone = single(M, WEST, EAST)
            assert bool(r.converged.all())
            assert bool((r.length <= alone.length).all())
