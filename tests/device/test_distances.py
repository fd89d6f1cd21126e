"""Geodesics on a device: known distances, every solver, all ways to say which start."""

import pytest
import torch
from closed_forms import CLOSED_FORMS
from flat_spaces import FLAT_ONTO
from on_device import (
    ALONE,
    DTYPES,
    F32,
    F64,
    RTOL,
    assert_near,
    assert_placed,
    converged,
    elsewhere,
    network,
)
from spaces import CATALOGUE, great_circle, half_plane, half_plane_tensor, sphere

from riemae import Manifold, solvers
from riemae.exceptions import DeviceError

LAID = ("sine .2 m=2", "square m=2", "linear 1e3 m=5")
KNOWN = [
    *CATALOGUE,
    *(s for s in CLOSED_FORMS if s.name in ("cone", "categorical", "rotations", "SPD(2)")),
    *(s for s in FLAT_ONTO if s.name in LAID),
]
SOLVERS = {
    "Newton": solvers.Newton(),
    "NewtonCG": solvers.NewtonCG(),
    "QuasiNewton": solvers.QuasiNewton(),
    "Spectral": solvers.Spectral(),
    "GaussNewton": solvers.GaussNewton(),
    "LBFGS": solvers.LBFGS(),
    "Adam": solvers.Adam(max_steps=400),
    "GEORCE": solvers.GEORCE(),
    "CubicSpline": solvers.CubicSpline(),
    "Shooting": solvers.Shooting(),
    "BVP": solvers.BVP(),
}


def there(tensors, device):
    return tuple(x.to(device) for x in tensors)


@pytest.mark.parametrize(
    ("space", "dtype"), [pytest.param(s, DTYPES[i % 2], id=s.name) for i, s in enumerate(KNOWN)]
)
def test_distances_are_the_known_ones(space, dtype, device):
    z0, z1, d = there(space.draw(2, seed=3, dtype=dtype), device)
    rtol = RTOL[dtype]
    made = space.space()
    if isinstance(made, Manifold):
        made = made.to(device, dtype)
    result = solvers.geodesic(made, z0, z1, rtol=rtol, throw=False)
    assert converged(result)
    assert_placed((result.length, result.error, result.curve.nodes, result.status), device, dtype)
    torch.testing.assert_close(result.length.double(), d, rtol=3 * rtol, atol=0.0)


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, DTYPES[i % 2]) for i, name in enumerate(SOLVERS)]
)
def test_every_solver(name, dtype, device):
    z0 = torch.tensor([[0.0, 1.0], [0.2, 0.8]], dtype=dtype, device=device)
    z1 = torch.tensor([[0.6, 1.3], [-0.3, 1.1]], dtype=dtype, device=device)
    space = solvers.MetricSpace(half_plane_tensor)
    result = solvers.geodesic(space, z0, z1, rtol=1e-3, solver=SOLVERS[name], throw=False)
    assert converged(result)
    assert_placed((result.length, result.curve.nodes, result.stats), device, dtype)
    torch.testing.assert_close(result.length, half_plane(z0, z1), rtol=3e-3, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("decoder", ["sphere", "network"])
def test_a_pair_alone_has_the_length_that_it_has_in_a_batch(decoder, dtype, device):
    M = Manifold(sphere if decoder == "sphere" else network(dtype).to(device))
    z = 0.5 * torch.randn(2, 9, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    z0, z1 = z.to(dtype).to(device)
    rtol = RTOL[dtype]
    together = M.geodesic(z0, z1, rtol=rtol)
    for i in (0, 4, 8):
        alone = M.geodesic(z0[i], z1[i], rtol=rtol)
        assert_near(alone.length, together.length[i], ALONE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_distances(dtype, device):
    # A great circle's distance in the chart: by torch from the formula.
    z0, z1, _ = there(CATALOGUE[0].draw(3, dtype=dtype), device)
    ends = [z.clone().requires_grad_() for z in (z0, z1)]
    Manifold(sphere).distance(*ends, rtol=1e-4).sum().backward()
    known = [z.double().requires_grad_() for z in (z0, z1)]
    great_circle(*known).sum().backward()
    for a, b in zip(ends, known, strict=True):
        assert_placed(a.grad, device, dtype)
        assert_near(a.grad, b.grad, 5e-3)


def test_gradients_of_a_decoders_weights(device):
    f = network(F32).to(device).requires_grad_()
    z = 0.5 * torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(1)).to(device)
    Manifold(f).distance(z[0], z[1]).sum().backward()
    for p in f.parameters():
        if p.grad is not None:
            assert p.grad.device == device
            assert p.grad.isfinite().all()
    assert f[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize("where", ["device", "cpu", "seed"])
def test_a_search_draws_where_its_generator_lives(where, device, generator):
    source = {"device": generator, "cpu": torch.Generator().manual_seed(0), "seed": 0}[where]
    z0, z1, d = there(CATALOGUE[0].draw(2, dtype=F32), device)
    result = Manifold(sphere).geodesic(z0, z1, n_starts=3, generator=source)
    assert_placed((result.length, result.alternatives.length), device, F32)
    torch.testing.assert_close(result.length.double(), d, rtol=3e-3, atol=0.0)


@pytest.mark.parametrize("init", ["nodes", "curve", "graph"])
def test_starts_on_the_device(init, device):
    z0, z1, d = there(CATALOGUE[0].draw(2, dtype=F32), device)
    M = Manifold(sphere)
    points = torch.cat([z0, z1, torch.zeros(1, 2, device=device)])
    start = {
        "nodes": torch.stack([z0, (z0 + z1) / 2, z1], 1),
        "curve": solvers.Curve.line(z0, z1, 8),
        "graph": M.graph(points, k=2).curves([0, 1], [2, 3]),
    }[init]
    assert_near(M.distance(z0, z1, init=start), d, 3e-3)
    away = start.to(elsewhere(device)) if init == "nodes" else None
    if away is not None:
        with pytest.raises(DeviceError, match="init"):
            M.geodesic(z0, z1, init=away)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lengths_and_energies_of_curves(dtype, device):
    # A meridian from the origin to radius 1 is a quarter of a great circle.
    t = torch.linspace(0, 1, 9, dtype=dtype, device=device)
    nodes = torch.stack([t, 0 * t], -1)
    M = Manifold(sphere)
    length, error = M.length(nodes, return_error=True)
    assert_placed((length, error), device, dtype)
    assert_near(length, torch.tensor(torch.pi / 2), 2e-4)
    assert M.energy(nodes) >= length**2 * (1 - 1e-4)
    assert_placed((solvers.length(M, nodes), solvers.energy(M, nodes)), device, dtype)
    curve = M.geodesic(nodes[0], nodes[-1], rtol=1e-3).curve
    residual = solvers.geodesic_residual(M, curve)
    assert_placed(residual, device, dtype)
    assert residual < 0.3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", ["geodesic", "graph", "chord"])
def test_distance_matrices(method, dtype, device):
    z0, z1, _ = there(CATALOGUE[0].draw(4, dtype=dtype), device)
    M = Manifold(sphere)
    matrix = M.distance_matrix(z0, z1, method=method, k=3, rtol=1e-3)
    assert_placed(matrix, device, dtype)
    known = great_circle(z0[:, None].double(), z1[None].double())
    if method == "geodesic":
        torch.testing.assert_close(matrix.double(), known, rtol=3e-3, atol=0.0)
        whole = solvers.distance_matrix(M, z0, z1, rtol=1e-3)
        assert_placed(whole, device, dtype)
    elif method == "graph":
        assert (matrix > known * (1 - 1e-2)).all()
    else:
        assert_near(matrix, 2 * (known / 2).sin(), 1e-5)
