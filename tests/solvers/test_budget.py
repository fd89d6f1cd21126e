"""What a call may spend: decodings are counted, solvers stop in time, what is left is honest."""

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from riemae import Manifold, solvers
from riemae.exceptions import NotConvergedError, OptionError
from riemae.solvers import Status
from riemae.solvers.budget import Budget, Exhausted, Metered, limited, metered, strict

METHODS = [
    solvers.Newton(),
    solvers.NewtonCG(),
    solvers.QuasiNewton(),
    solvers.Adam(),
    solvers.LBFGS(),
    solvers.CubicSpline(),
    solvers.GEORCE(),
    solvers.Shooting(),
    solvers.BVP(),
]


def half_plane(z):
    return torch.eye(2).to(z) / z[..., 1:2, None] ** 2


def half_plane_pairs():
    z0 = torch.tensor([[0.0, 1.0], [0.5, 0.3], [-2.0, 1.0]], dtype=torch.float64)
    z1 = torch.tensor([[1.0, 2.0], [2.0, 0.4], [2.0, 1.5]], dtype=torch.float64)
    # d(p, q) = arcosh(1 + |p − q|² / (2 p_y q_y))
    gap = (z1 - z0).square().sum(-1)
    return z0, z1, torch.acosh(1 + gap / (2 * z0[:, 1] * z1[:, 1]))


def bowl(z):  # (k, 2) -> (k, 3)
    return torch.cat([z, (1.5 * z).square().sum(-1, keepdim=True)], -1)


@pytest.mark.parametrize("solver", METHODS, ids=lambda s: type(s).__name__)
def test_every_method_ends(solver):
    z0, z1, true = half_plane_pairs()
    space = solvers.MetricSpace(half_plane)
    straight = solvers.length(space, solvers.Curve.line(z0, z1, 32))
    for most in (1, 500, 2000):
        runs = [
            solvers.geodesic(space, z0, z1, solver=solver, max_decodings=most, throw=False)
            for _ in range(2)
        ]
        r = runs[0]
        assert set(r.status.tolist()) <= {Status.BUDGET, Status.CONVERGED}
        known = ~r.length.isnan()
        assert bool((r.length[known] >= (1 - 1e-6) * true[known]).all())
        assert bool((r.length[known] <= (1 + 1e-6) * straight[known]).all())
        sure = ~r.error.isnan()
        assert bool(((r.length - true).abs()[sure] <= r.error[sure] + 1e-9).all())
        assert bool(r.curve.nodes.isfinite().all())
        torch.testing.assert_close(r.curve.nodes[:, 0], z0)
        torch.testing.assert_close(r.curve.nodes[:, -1], z1)
        assert torch.equal(r.length.nan_to_num(), runs[1].length.nan_to_num())
        assert torch.equal(r.curve.nodes, runs[1].curve.nodes)
    frugal = (solvers.Newton, solvers.QuasiNewton)  # these are done before
    assert bool((runs[0].status == Status.BUDGET).any()) or isinstance(solver, frugal)


def test_work_is_kept():
    """More decodings, no longer curves; in the end the ones without a budget, bit for bit."""
    z0 = torch.tensor([[1.0, 0.2]], dtype=torch.float64)
    z1 = torch.tensor([[-1.0, 0.3]], dtype=torch.float64)
    space = Manifold(bowl)
    whole = space.geodesic(z0, z1, rtol=1e-7)
    lengths = []
    for most in (1, 50, 120, 200, 400, 100_000):
        r = space.geodesic(z0, z1, rtol=1e-7, max_decodings=most, throw=False)
        lengths.append(float(r.length))
        assert float((r.length - whole.length).abs()) <= float(r.error) + 1e-9
        assert float(r.length) >= float(r.lower_bound)
    assert all(b <= a + 1e-9 for a, b in zip(lengths, lengths[1:], strict=False))
    assert torch.equal(r.length, whole.length)
    assert torch.equal(r.curve.nodes, whole.curve.nodes)
    assert r.space is whole.space


def test_limits_hold():
    """A solver is stopped before the call that is too much; only looks come on top."""
    z0, z1, _ = half_plane_pairs()
    space = solvers.MetricSpace(half_plane)
    for most in (1, 700, 1500):
        budget = Budget(decodings=most)
        charged = []
        view = Metered(space, budget, strict=True)
        view._charge = lambda n, b=budget, c=charged: (b.charge(n, True), c.append(n))
        ends = torch.stack([z0, z1], 1)
        with pytest.raises(Exhausted):
            deque(view.squared_chords(ends) for _ in range(most))
        assert sum(charged) == budget.used <= most
        with pytest.raises(Exhausted):  # nothing more, however little
            view.norm(z0[:1], z0[:1])
    with limited("here", 3000, None) as budget:
        r = solvers.geodesic(space, z0, z1, rtol=1e-9, throw=False)
    assert bool((r.status == Status.BUDGET).any())
    finest = int(r.stats["segments"].max())
    looks = 3 * 2 * (3 * finest + 1 + 33)  # speeds at three points per segment, and the start
    assert budget.used <= 3000 + looks


def test_what_is_counted():
    """One decoding per point and value: the points that the space's own function gets."""
    points = []

    def counted(z):
        points.append(len(z))
        return half_plane(z)

    z0, z1, _ = half_plane_pairs()
    space = solvers.MetricSpace(counted)
    nodes = solvers.Curve.line(z0, z1, 8).nodes
    space.metric(nodes)  # looked at once
    points.clear()
    budget = Budget()
    with torch.no_grad():
        metered(space, budget).squared_chords(nodes)
    assert budget.used == 27 <= sum(points) < 27 + 16  # padded to a multiple of 16 rows
    view = metered(space, budget)
    view.energy_and_gradient(nodes)
    assert budget.used == 27 + 2 * 27
    view.expand(nodes, False)
    assert (
        budget.used == 27 + 2 * 27 + 27 + 2 * 21
    )  # a value, and two tangents at the interior nodes
    view.expand(nodes, True)
    assert budget.used == 27 + 2 * 27 + 2 * 27 + 2 * 21 + 4 * 21
    before = budget.used
    found = view.products(nodes)
    found.hessian(found.gradient)
    assert budget.used == before + 4 * 27


def test_no_time_at_all():
    z0, z1, _ = half_plane_pairs()
    space = solvers.MetricSpace(half_plane)
    r = solvers.geodesic(space, z0, z1, max_seconds=1e-9, throw=False)
    assert r.status.tolist() == [Status.BUDGET] * 3
    assert bool(r.length.isnan().all())
    assert bool(r.error.isnan().all())
    torch.testing.assert_close(r.curve(0.5), (z0 + z1) / 2)
    with pytest.raises(NotConvergedError, match="max_decodings or max_seconds") as found:
        solvers.geodesic(space, z0, z1, max_seconds=1e-9)
    assert found.value.result.status.tolist() == [Status.BUDGET] * 3


def test_points_keep_their_verdict():
    """Pairs that are settled before anything is solved are settled without a budget."""
    z = torch.tensor([[0.0, 1.0], [math.nan, 1.0]], dtype=torch.float64)
    space = solvers.MetricSpace(half_plane)
    r = solvers.geodesic(space, z, z, max_seconds=1e-9, throw=False)
    assert r.status.tolist() == [Status.CONVERGED, Status.INVALID_POINT]


def test_an_outer_budget_holds():
    """Calls inside of a call share its budget, as the candidates of periodic coordinates do."""

    def torus(z):
        u, v = z.unbind(-1)
        ring = 2 + v.cos()
        return torch.stack([ring * u.cos(), ring * u.sin(), v.sin()], -1)

    space = Manifold(torus, latent=(2 * torch.pi, 2 * torch.pi))
    z0 = torch.tensor([[0.1, 0.2]], dtype=torch.float64)
    z1 = torch.tensor([[2.9, 3.0]], dtype=torch.float64)
    r = space.geodesic(z0, z1, max_decodings=60, throw=False)
    assert r.status.tolist() == [Status.BUDGET]
    with limited("here", 500, None) as outer, limited("there", 400, None) as inner:
        with pytest.raises(Exhausted):
            strict(metered(space.as_space(z0), inner)).norm(z0.expand(300, 2), z0.expand(300, 2))
        assert inner.spent
        assert not outer.spent
        inner.charge(500, strict=False)
        assert outer.used == 500
        assert outer.spent


def test_search():
    """What the first round has found is kept when the second one does not come to its end."""
    z0 = torch.tensor([[1.0, 0.05]], dtype=torch.float64)
    z1 = torch.tensor([[-1.0, 0.05]], dtype=torch.float64)
    space = Manifold(bowl)
    whole = space.geodesic(z0, z1, n_starts=4, rtol=1e-8)
    seen = set()
    for most in (1, 2000, 5000, 8000, 12_000, 10**7):
        r = space.geodesic(z0, z1, n_starts=4, rtol=1e-8, max_decodings=most, throw=False)
        seen.add(int(r.status))
        if not bool(r.length.isnan()):
            assert float(r.length) >= float(whole.length) - 1e-7
    assert seen == {Status.BUDGET, Status.CONVERGED}
    assert torch.equal(r.length, whole.length)


def test_distance_and_matrix():
    z = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    space = Manifold(bowl)
    short = space.distance(z[:-1], z[1:], max_decodings=1, throw=False)
    assert bool((short >= (bowl(z[1:]) - bowl(z[:-1])).norm(dim=-1)).all())
    options = {"max_decodings": 6000, "throw": False, "block_size": 6, "return_result": True}
    alone = solvers.distance_matrix(space, z, **options)
    with ThreadPoolExecutor(2) as pool:
        shared = solvers.distance_matrix(space, z, executor=pool, **options)
    assert torch.equal(alone.distances.nan_to_num(), shared.distances.nan_to_num())
    assert set(alone.status.tolist()) == {Status.BUDGET}
    whole = solvers.distance_matrix(space, z, max_decodings=10**8)
    assert torch.equal(whole, solvers.distance_matrix(space, z))
    late = space.distance_matrix(z, max_seconds=1e-9, throw=False)
    assert bool(late[~torch.eye(9, dtype=torch.bool)].isnan().all())


def test_wrong_limits(tmp_path):
    z0, z1, _ = half_plane_pairs()
    space = solvers.MetricSpace(half_plane)
    for name, value in (("max_decodings", 0), ("max_decodings", 1.5), ("max_seconds", 0.0)):
        with pytest.raises(OptionError, match=name):
            solvers.geodesic(space, z0, z1, **{name: value})
        with pytest.raises(OptionError, match=name):
            solvers.distance_matrix(space, z0, **{name: value})
    with pytest.raises(OptionError, match="method='geodesic' only"):
        solvers.distance_matrix(space, z0, method="graph", max_decodings=10)
    with pytest.raises(OptionError, match="the problem alone"):
        solvers.distance_matrix(space, z0, max_seconds=1.0, out=tmp_path / "d.npy")


def test_progress_beats_within_a_level():
    """Called after every step: a long level is seen to go on."""
    z0, z1, _ = half_plane_pairs()
    calls = []

    def told(done, total):
        calls.append((done, total))

    r = solvers.geodesic(
        solvers.MetricSpace(half_plane), z0, z1, solver=solvers.LBFGS(), progress=told
    )
    bursts = int(r.stats["steps"].max()) // solvers.LBFGS().burst
    assert len(calls) > bursts
    done = [a for a, _ in calls]
    assert done == sorted(done)
    assert calls[-1] == (3, 3)
