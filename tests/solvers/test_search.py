"""Global search: start curves, distinct geodesics, independence of the batch."""

import math

import pytest
import spaces
import torch

from riemae import Manifold, solvers
from riemae.exceptions import NotConvergedError, OptionError
from riemae.solvers import Curve, Newton, Status
from riemae.solvers.search import perturbed, routes, start_curves


def hill(z):
    """A hill in a plane: two equal ways around it, one over the top that is longer and no
    minimum."""
    return torch.cat([z, 1.5 * (-4 * z.square().sum(-1, keepdim=True)).exp()], -1)


LEFT, RIGHT = torch.tensor([-1.0, 0.05]).double(), torch.tensor([1.0, 0.05]).double()


def ring(n=24, radius=1.0):
    u = 2 * torch.pi * torch.arange(n).double() / n
    return radius * torch.stack([u.cos(), u.sin()], -1)


def polar_plane(z):
    """Longitude and latitude of a sphere; longitudes that differ by 2π are one place."""
    u, v = z.unbind(-1)
    return torch.stack([v.cos() * u.cos(), v.cos() * u.sin(), v.sin()], -1)


class TestDistinct:
    def test_both_ways_around_a_hill(self):
        r = Manifold(hill).geodesic(LEFT, RIGHT, n_starts=7, rtol=1e-6)
        lengths = r.alternatives.length
        # By reflection in y, the way below from (±1, 0.05) is the way above from (±1, −0.05).
        below = Manifold(hill).geodesic(
            LEFT,
            RIGHT,
            init=torch.stack([LEFT, torch.tensor([0.0, -0.7]).double(), RIGHT]),
            rtol=1e-6,
        )
        assert lengths.shape == (2,)
        assert r.length == lengths[0]
        assert torch.allclose(lengths[1], below.length, rtol=1e-6)
        assert (r.alternatives.index == 0).all()
        assert r.curve(0.5)[1] > 0.3
        assert r.alternatives.curve(0.5)[1, 1] < -0.3

    def test_one_geodesic_is_found_once(self):
        # On a hyperbolic plane there is exactly one between two points.
        z0, z1, d = spaces.CATALOGUE[9].pairs(torch.Generator().manual_seed(0), 6)
        r = solvers.geodesic(spaces.CATALOGUE[9].space(), z0, z1, n_starts=5, rtol=1e-6)
        assert r.alternatives.length.shape == (1, 6)
        assert torch.allclose(r.length, d, rtol=1e-6)

    def test_places_without_a_geodesic_are_absent(self):
        z0, z1 = (
            torch.stack([LEFT, LEFT + 5]),
            torch.stack([RIGHT, RIGHT + 5]),
        )  # the second pair is far from the hill
        r = Manifold(hill).geodesic(z0, z1, n_starts=7)
        second = r.alternatives[1]
        assert second.status.tolist() == [Status.CONVERGED, Status.ABSENT]
        assert second.length[1].isnan()
        assert r.alternatives[:, 1].curve.nodes[1].isnan().all()
        assert torch.allclose(r.length[1], torch.tensor(2.0).double(), rtol=1e-6)
        assert "3 distinct geodesics found" in repr(r)
        assert r[0].alternatives.length.shape == (2,)
        assert r[1].alternatives.status.tolist() == [Status.CONVERGED, Status.ABSENT]
        assert r.alternatives.residual[1, 1].isnan()

    def test_never_longer_than_from_one_start(self):
        z0, z1, _ = spaces.CATALOGUE[2].pairs(torch.Generator().manual_seed(0), 8)
        M = Manifold(spaces.torus)
        one, several = (M.geodesic(z0, z1, n_starts=n, rtol=1e-6).length for n in (1, 5))
        assert (several <= one * (1 + 1e-6)).all()

    def test_failures_count_only_where_there_is_nothing_else(self):
        # The straight line leaves the domain of the logarithm; ways around the hole do not.
        hole = Manifold(lambda z: torch.cat([z, (z.square().sum(-1, keepdim=True) - 1).log()], -1))
        z0, z1 = torch.tensor([-2.0, 0.0]).double(), torch.tensor([2.0, 0.0]).double()
        assert hole.geodesic(z0, z1, throw=False).status == Status.NON_FINITE
        r = hole.geodesic(z0, z1, graph=hole.graph(ring(radius=2.5), k=2), n_starts=3, throw=False)
        assert r.status == Status.CONVERGED
        assert (r.alternatives.status == Status.CONVERGED).all()
        with pytest.raises(NotConvergedError, match="NON_FINITE"):
            hole.geodesic(z0, z1, n_starts=1)


class TestBatches:
    def test_a_pair_does_not_depend_on_its_neighbours(self):
        z0 = torch.stack([LEFT, LEFT + 0.1, torch.full_like(LEFT, torch.nan)])
        z1 = torch.stack([RIGHT, RIGHT - 0.2, RIGHT])
        M = Manifold(hill)
        r = M.geodesic(z0, z1, n_starts=5, throw=False)
        assert r.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.INVALID_POINT]
        for k in range(2):
            alone = M.geodesic(z0[k], z1[k], n_starts=5)
            assert torch.allclose(alone.length, r.length[k], rtol=1e-12)
            assert alone.alternatives.length.shape[0] == int(r.alternatives[:, k].converged.sum())

    def test_axes_and_no_pairs(self):
        M = Manifold(spaces.sphere)
        z0, z1, _ = spaces.CATALOGUE[0].pairs(torch.Generator().manual_seed(0), 6)
        r = M.geodesic(z0.view(2, 3, 2), z1.view(2, 3, 2), n_starts=2)
        assert r.length.shape == (2, 3)
        assert r.alternatives.length.shape[1:] == (2, 3)
        assert M.geodesic(z0[:0], z1[:0], n_starts=3).length.shape == (0,)

    def test_equal_end_points(self):
        r = Manifold(spaces.sphere).geodesic(torch.zeros(2, 2), torch.zeros(2, 2), n_starts=4)
        assert (r.length == 0).all()

    def test_seeds(self):
        M = Manifold(hill)
        one, same = (M.geodesic(LEFT, RIGHT, n_starts=4, generator=3) for _ in range(2))
        assert torch.equal(one.curve.nodes, same.curve.nodes)
        drawn = M.geodesic(LEFT, RIGHT, n_starts=4, generator=torch.Generator().manual_seed(3))
        assert torch.equal(one.curve.nodes, drawn.curve.nodes)

    def test_progress(self):
        calls = []
        Manifold(hill).geodesic(
            LEFT[None],
            RIGHT[None],
            n_starts=3,
            progress=lambda done, total: calls.append((done, total)),
        )
        assert calls[-1] == (1, 1)
        assert calls == sorted(calls)

    def test_distance_searches_too(self):
        M = Manifold(hill)
        z = LEFT.clone().requires_grad_()
        d = M.distance(z, RIGHT, n_starts=5, rtol=1e-6)
        assert torch.allclose(d, M.geodesic(LEFT, RIGHT, n_starts=5, rtol=1e-6).length)
        (slope,) = torch.autograd.grad(d, z)
        # Moving away from the other point, the distance grows by the length moved against the
        # initial direction.
        v = M.geodesic(LEFT, RIGHT, n_starts=5, rtol=1e-6).curve.velocity(0.0)
        assert torch.allclose(slope, -M.metric_product(LEFT, v) / M.norm(LEFT, v), rtol=1e-3)


class TestStartCurves:
    def test_a_graph_leads_around_a_hole(self):
        M = Manifold(lambda z: z)
        graph = M.graph(ring(), k=2)
        first = Curve.line(
            torch.tensor([[-1.1, 0.0]]).double(), torch.tensor([[1.1, 0.0]]).double(), 32
        )
        ways = routes(graph, first, 2)
        assert ways.shape == (2, 1, 33, 2)
        # On the ring half-way is its top or its bottom, and the detour takes the other side.
        assert (ways[:, 0, 16, 1].abs() > 0.9).all()
        assert ways[0, 0, 16, 1] * ways[1, 0, 16, 1] < 0
        assert torch.equal(ways[:, :, 0], first.nodes[:, 0].expand(2, 1, 2))
        assert torch.equal(ways[:, :, -1], first.nodes[:, -1].expand(2, 1, 2))

    def test_where_no_path_leads_the_first_curve_stays(self):
        with pytest.warns(UserWarning, match="components"):
            graph = Manifold(lambda z: z).graph(torch.cat([ring(), ring() + 100]), k=2)
        first = Curve.line(
            torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[101.0, 0.0]]).double(), 32
        )
        assert torch.equal(routes(graph, first, 2), first.nodes.expand(2, 1, 33, 2))

    def test_perturbations_come_in_opposite_pairs_across_the_gap(self):
        z0, z1 = (
            torch.zeros(3, 3).double(),
            torch.tensor([[1.0, 0.0, 0.0], [0.0, -2.0, 0.0], [1.0, 1.0, 1.0]]).double(),
        )
        first = Curve.line(z0, z1, 32)
        swing = perturbed(first, 4, 0) - first.nodes
        assert torch.allclose(swing[0], -swing[1], atol=1e-14)
        assert not torch.allclose(swing[0], swing[2], atol=0.01)
        assert (swing[:, :, [0, -1]] == 0).all()
        along = torch.einsum("spnm,pm->spn", swing, z1)
        assert along.abs().max() < 1e-14
        size = swing.norm(dim=-1).amax(-1) / z1.norm(dim=-1)
        assert torch.allclose(size, size[:, :1].expand_as(size))  # the same, turned and scaled
        assert ((size > 0.1) & (size < 0.8)).all()

    def test_on_a_line_there_is_nothing_across(self):
        first = Curve.line(torch.zeros(1, 1).double(), torch.ones(1, 1).double(), 32)
        assert perturbed(first, 2, 0).isfinite().all()
        r = Manifold(lambda z: torch.cat([z, z.square()], -1)).geodesic(
            first.nodes[0, 0], first.nodes[0, -1], n_starts=3
        )
        # Arc length of the parabola y = x² from 0 to 1
        assert math.isclose(float(r.length), math.sqrt(5) / 2 + math.asinh(2) / 4, rel_tol=1e-4)

    @pytest.mark.parametrize("count", [0, -1, 2.0, True, "3"])
    def test_n_starts(self, count):
        with pytest.raises(OptionError, match="n_starts"):
            Manifold(hill).geodesic(LEFT, RIGHT, n_starts=count)

    def test_start_curves_keep_their_number(self):
        first = Curve.line(LEFT[None], RIGHT[None], 32)
        graph = Manifold(hill).graph(ring(), k=2)
        for count in (1, 2, 3, 4, 7):
            nodes = start_curves(first, count, graph, 0)
            assert nodes.shape == (count, 1, 33, 2)
            assert torch.equal(nodes[0], first.nodes)

    def test_search_with_settings(self):
        r = Manifold(hill).geodesic(
            LEFT, RIGHT, n_starts=4, solver=Newton(segments=8, max_segments=24), throw=False
        )
        assert int(r.stats["segments"]) <= 24
