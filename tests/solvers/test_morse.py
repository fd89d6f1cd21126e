"""The Morse index of curves found by gradients: against great circles, which everybody knows."""

import pytest
import spaces
import torch
from torch import nn

from riemae import Manifold, solvers
from riemae.solvers import Curve
from riemae.solvers.morse import certified
from riemae.solvers.space import space_of

F64 = torch.float64


def cylinder_over_sphere(d, m):
    """The product of a sphere of dimension d and flat space, in m coordinates."""

    def decoder(z):
        return torch.cat([spaces.sphere(z[:, :d]), 0.3 * z[:, d:]], -1)

    return Manifold(decoder)


def arc(angle, m, n=32):
    """A great circle through the south pole, at constant speed, in stereographic coordinates."""
    t = torch.linspace(-angle / 2, angle / 2, n + 1, dtype=F64)
    z = torch.zeros(1, n + 1, m, dtype=F64)
    z[0, :, 0] = torch.tan(t / 2)
    return z


def with_curves(M, nodes):
    """A result that claims to have converged on these curves."""
    z0, z1 = nodes[:, 0], nodes[:, -1]
    r = M.geodesic(z0, z1, rtol=1e-2, throw=False, solver=solvers.QuasiNewton())
    object.__setattr__(r, "curve", Curve.from_nodes(nodes))
    object.__setattr__(r, "status", torch.zeros_like(r.status))
    return r


@pytest.mark.parametrize("m", [4, 70])
@pytest.mark.parametrize(
    ("d", "angle", "index"), [(2, 2.5, 0), (2, 4.0, 1), (3, 4.0, 2), (4, 4.5, 3)]
)
def test_beyond_the_antipode_of_a_sphere(m, d, angle, index):
    # The antipode is conjugate to a point of a d-sphere d − 1 times: do Carmo, chapter 11.
    M = cylinder_over_sphere(d, m)
    r = with_curves(M, arc(angle, m))
    assert r.index.tolist() == [-1]
    found = certified(space_of(M, r.curve.nodes[:, 0]), r)
    assert found.index.tolist() == [index]


@pytest.mark.parametrize("m", [20, 66])
def test_on_demand(m):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = nn.Sequential(nn.Linear(m, 80), nn.SiLU(), nn.Linear(80, 90)).double()
    M = Manifold(decoder.requires_grad_(False))
    z0, z1 = torch.randn(2, 2, m, generator=torch.Generator().manual_seed(1), dtype=F64)
    plain = M.geodesic(z0, z1, rtol=1e-3)
    assert plain.index.tolist() == [-1, -1]
    r = M.geodesic(z0, z1, rtol=1e-3, certify=True)
    assert r.index.tolist() == [0, 0]
    assert torch.equal(r.length, plain.length)


def test_what_is_known_stays():
    M = cylinder_over_sphere(2, 2)
    z0, z1 = arc(1.0, 2)[:, 0], arc(1.0, 2)[:, -1]
    r = M.geodesic(z0, z1)
    assert certified(space_of(M, z0), r) is r
