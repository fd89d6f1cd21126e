"""The search on a lattice: the shortest geodesic, and a bracket of the distance."""

import itertools
import math

import pytest
import torch

from riemae import Manifold, solvers
from riemae.exceptions import OptionError, ShapeError
from riemae.solvers import GeodesicResult, MetricSpace
from riemae.solvers.brackets import _bases, _edges

F64 = torch.float64
SKEW = torch.tensor([[1.0, 0.9, 0.2], [0.9, 1.2, 0.1], [0.2, 0.1, 0.7]], dtype=F64)
# Two hills: the straight line slides into the valley between them, and the way round in the north
# is shorter.
WEST = torch.tensor([[-1.5, 0.0], [-1.2, 0.05]], dtype=F64)
EAST = torch.tensor([[1.5, 0.0], [1.4, 0.0]], dtype=F64)


def point(*values):
    return torch.tensor(values, dtype=F64)


def hills(z):
    x, y = z.unbind(-1)
    near = 2 * torch.exp(-(x.square() + (y - 0.15).square()) / 0.15)
    south = 2.5 * torch.exp(-(x.square() + (y + 1.2).square()) / 0.3)
    return torch.stack([x, y, near + south], -1)


def sphere(z):
    """The inverse of the stereographic projection."""
    s = z.square().sum(-1, keepdim=True)
    return torch.cat([2 * z, s - 1], -1) / (1 + s)


def torus(z):
    u, v = z.unbind(-1)
    out = 2 + v.cos()
    return torch.stack([out * u.cos(), out * u.sin(), v.sin()], -1)


HALF_PLANE = MetricSpace(lambda z: torch.eye(2).to(z) / z[:, 1, None, None].square())


def by_lattice(space, z0, z1, **options):
    return solvers.geodesic(space, z0, z1, method="lattice", **options)


class TestClosedForms:
    def brackets(self, r, d, width):
        """The truth lies between the two, which are no further apart than asked."""
        low, high = r.bracket.unbind(-1)
        assert bool((low <= d * (1 + 1e-12)).all())
        assert bool((high >= d * (1 - 1e-9)).all())
        assert bool((low >= (1 - width) * d).all())
        torch.testing.assert_close(r.length, d, rtol=2e-4, atol=0)

    def test_the_hyperbolic_plane(self):
        generator = torch.Generator().manual_seed(0)
        z0, z1 = torch.rand(2, 6, 2, generator=generator, dtype=F64) + point(0.0, 0.5)
        d = torch.arccosh(1 + (z0 - z1).square().sum(-1) / (2 * z0[:, 1] * z1[:, 1]))
        r = by_lattice(HALF_PLANE, z0, z1)
        self.brackets(r, d, 0.05)
        assert bool((r.lower_bound.isnan()).all())

    def test_the_sphere(self):
        z0, z1 = point(-0.8, 0.1), point(0.7, 0.4)
        x, y = sphere(torch.stack([z0, z1]))
        r = by_lattice(Manifold(sphere), z0, z1)
        self.brackets(r, (x @ y).arccos(), 0.08)

    def test_the_outer_equator_of_a_torus(self):
        r = by_lattice(Manifold(torus), point(0.0, 0.0), point(0.5, 0.0))
        self.brackets(r, point(1.5)[0], 0.06)

    @pytest.mark.parametrize("m", [1, 2, 3])
    def test_constant_metrics(self, m):
        metric = SKEW[:m, :m]
        z0, z1 = point(0.0, 0.3, -0.1)[:m], point(1.0, 0.7, 0.4)[:m]
        d = (z1 - z0) @ metric @ (z1 - z0)
        r = by_lattice(MetricSpace(lambda z: metric.expand(len(z), m, m)), z0, z1)
        self.brackets(r, d.sqrt(), {1: 1e-3, 2: 0.04, 3: 0.25}[m])


class TestTwoValleys:
    def test_the_shorter_one_is_found(self):
        M = Manifold(hills)
        best = M.geodesic(WEST, EAST, n_starts=16).length
        alone = M.geodesic(WEST, EAST, n_starts=1).length
        assert bool((alone > 1.01 * best).all())
        r = M.geodesic(WEST, EAST, method="lattice")
        torch.testing.assert_close(r.length, best, rtol=2e-4, atol=0)
        low = r.bracket[:, 0]
        assert bool((low <= best).all())
        assert bool((low > 0.88 * best).all())
        assert bool((low > r.lower_bound).all())
        torch.testing.assert_close(r.alternatives.length[1], alone, rtol=2e-4, atol=0)

    def test_a_box_without_the_way_round_says_so(self):
        M = Manifold(hills)
        best = M.geodesic(WEST, EAST, n_starts=16).length
        region = point(-2.0, -1.0), point(2.0, 0.5)
        r = M.geodesic(WEST, EAST, method="lattice", region=region, n_starts=2)
        assert bool((r.bracket[:, 0] <= best).all())
        assert bool((r.stats["inside"] > r.stats["leaving"]).all())

    def test_alone_and_in_a_batch(self):
        M = Manifold(hills)
        both = M.geodesic(WEST, EAST, method="lattice")
        for row in range(2):
            alone = M.geodesic(WEST[row], EAST[row], method="lattice")
            torch.testing.assert_close(alone.length, both.length[row], rtol=1e-12, atol=0)
            torch.testing.assert_close(alone.bracket, both.bracket[row], rtol=1e-12, atol=0)

    def test_in_single_precision(self):
        M = Manifold(hills)
        fine = M.geodesic(WEST, EAST, method="lattice")
        r = M.geodesic(WEST.float(), EAST.float(), method="lattice")
        assert r.bracket.dtype == torch.float32
        torch.testing.assert_close(r.bracket.double(), fine.bracket, rtol=2e-3, atol=0)


class TestWhatIsKnown:
    def test_without_a_lattice_the_ambient_distance_is_the_bound(self):
        r = Manifold(hills).geodesic(WEST, EAST, n_starts=1)
        assert torch.equal(r.bracket, torch.stack([r.lower_bound, r.length], -1))

    def test_where_the_metric_ends_nothing(self):
        """Beyond the coast there is no metric, and nothing is said of what passes there."""

        def metric(z):
            return torch.where(z[:, 1, None, None] > -0.5, 1.0, torch.nan) * torch.eye(2).to(z)

        r = by_lattice(MetricSpace(metric), point(0.0, 0.0), point(1.0, 0.0))
        torch.testing.assert_close(float(r.length), 1.0)
        assert bool(r.bracket[0].isnan())

    def test_it_is_saved(self, tmp_path):
        r = Manifold(hills).geodesic(WEST, EAST, method="lattice")
        again = GeodesicResult.load(r.save(tmp_path / "r"))
        assert torch.equal(again.bracket, r.bracket)

    def test_shapes(self):
        M = Manifold(hills)
        z0, z1 = WEST.view(2, 1, 2), EAST.view(1, 2, 2)
        assert M.geodesic(z0, z1, method="lattice").bracket.shape == (2, 2, 2)
        assert M.geodesic(WEST[:0], EAST[:0], method="lattice").bracket.shape == (0, 2)


class TestErrors:
    def test_options(self):
        M = Manifold(hills)
        with pytest.raises(OptionError, match="lattice"):
            M.geodesic(WEST, EAST, method="grid")
        with pytest.raises(OptionError, match="method='lattice'"):
            M.geodesic(WEST, EAST, region=(WEST[0], EAST[0]))
        region = point(-1.4, -1.0), point(2.0, 1.0)
        with pytest.raises(OptionError, match="Widen"):
            M.geodesic(WEST, EAST, method="lattice", region=region)
        with pytest.raises(ShapeError, match="region"):
            M.geodesic(WEST, EAST, method="lattice", region=(point(0.0), point(1.0)))
        with pytest.raises(OptionError, match="graph"):
            M.geodesic(WEST, EAST, method="lattice", graph=M.graph(torch.cat([WEST, EAST]), k=2))

    def test_dimensions(self):
        z = torch.zeros(2, 4, dtype=F64)
        with pytest.raises(OptionError, match="1 to 3"):
            Manifold(lambda z: z).geodesic(z, z + 1, method="lattice")


class TestEdges:
    @pytest.mark.parametrize("m", [1, 2, 3])
    def test_every_displacement_is_a_sum_of_edges_next_to_it(self, m):
        """With whole numbers, of one basis: the bases fill the space and have determinant 1."""
        every = [torch.tensor(basis, dtype=F64) for basis in _bases(m)]
        assert all(abs(abs(float(torch.linalg.det(b))) - 1) < 1e-9 for b in every)
        for v in itertools.product(range(-3, 4), repeat=m):
            if m == 1 and v[0] < 0:
                continue  # the opposite of an edge is an edge
            weights = [torch.linalg.solve(b.T, torch.tensor(v, dtype=F64)) for b in every]
            assert any(bool((w > -1e-9).all()) for w in weights)

    def test_opposites(self):
        for m in (1, 2, 3):
            assert all(tuple(-x for x in v) in _edges(m) for v in _edges(m))
            assert all(math.gcd(*v) == 1 for v in _edges(m))
