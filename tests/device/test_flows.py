"""Exponential maps, Jacobi fields and transport on a device, on the sphere."""

import math

import pytest
import torch
from on_device import DTYPES, F32, RTOL, Given, assert_near, assert_placed, elsewhere
from spaces import great_circle, half_plane, half_plane_tensor, sphere

from riemae import Manifold, solvers
from riemae.exceptions import DeviceError

ROUND = Manifold(sphere)
FAST = {"rtol": 1e-4}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def given(device, dtype):
    return Given.drawn(3, 2, 3, device, dtype)


def test_a_geodesic_is_as_long_as_its_velocity(given, device, dtype):
    end = ROUND.exp(given.z, given.v, **FAST)
    assert_placed(end, device, dtype)
    assert_near(great_circle(given.z.double(), end.double()), ROUND.norm(given.z, given.v), 1e-3)


def test_times(given, device, dtype):
    times = torch.linspace(0, 1, 3, dtype=dtype, device=device)
    on_the_way = ROUND.exp(given.z, given.v, times, **FAST)
    assert_placed(on_the_way, device, dtype)
    assert_near(on_the_way[:, 0], given.z, 1e-6)
    assert_near(on_the_way[:, -1], ROUND.exp(given.z, given.v, **FAST), 1e-3)


def test_logarithm_is_the_inverse(given, device, dtype):
    v = ROUND.log(given.z, given.end, rtol=RTOL[dtype])
    assert_placed(v, device, dtype)
    assert_near(ROUND.norm(given.z, v), great_circle(given.z.double(), given.end.double()), 3e-3)
    assert_near(ROUND.exp(given.z, v, **FAST), given.end, 3e-3)


def test_shot_curves_keep_their_speed(given, device, dtype):
    curve = ROUND.shoot(given.z, given.v, segments=8, **FAST)
    assert_placed(curve.nodes, device, dtype)
    assert_near(ROUND.length(curve), ROUND.norm(given.z, given.v), 1e-3)


def test_jacobi_field(given, device, dtype):
    # Perpendicular to a unit-speed geodesic of the sphere, |J(t)| = sin t for |DJ(0)| = 1.
    z = given.z
    unit = given.v / ROUND.norm(z, given.v)[:, None]
    turned = torch.stack([-unit[:, 1], unit[:, 0]], -1)  # the chart is conformal
    field = ROUND.jacobi_field(z, unit, slope=turned, t=1.0, rtol=1e-3)
    assert_placed(field, device, dtype)
    size = ROUND.norm(field.points, field.values)
    assert_near(size, torch.full((3,), math.sin(1)), 1e-2)


def test_conjugate_points_are_half_a_turn_away(device):
    given = Given.drawn(1, 2, 3, device, F32)
    unit = given.v / ROUND.norm(given.z, given.v)[:, None]
    found = ROUND.conjugate_points(given.z, unit, t=3.4, rtol=1e-2)
    assert_placed(found, device, F32)
    assert_near(found.times, torch.full((1, 1), math.pi), 3e-2)
    assert found.index.tolist() == [1]


def test_transport_keeps_inner_products(given, device, dtype):
    curve = ROUND.shoot(given.z, given.v, segments=8, **FAST)
    moved = ROUND.transport(curve, given.u, rtol=1e-4)
    assert_placed(moved, device, dtype)
    last = curve.nodes[:, -1]
    assert_near(ROUND.norm(last, moved), ROUND.norm(given.z, given.u), 1e-3)


CALLS = {
    "exp": lambda s, z, v: solvers.exp(s, z, v, rtol=1e-3),
    "shoot": lambda s, z, v: solvers.shoot(s, z, v, segments=4, rtol=1e-3),
    "log": lambda s, z, v: solvers.log(s, z, z + v, rtol=1e-3),
    "jacobi": lambda s, z, v: solvers.jacobi(s, z, v, t=0.2, rtol=1e-2),
    "conjugate_points": lambda s, z, v: solvers.conjugate_points(s, z, v, t=0.2, rtol=1e-2),
    "transport": lambda s, z, v: solvers.transport(s, torch.stack([z, z + 0.1], 1), v, rtol=1e-3),
}


@pytest.mark.parametrize("name", [name for name in CALLS if name != "conjugate_points"])
def test_flows_of_a_metric_tensor(name, device, dtype):
    space = solvers.MetricSpace(half_plane_tensor)
    z = torch.tensor([[0.0, 1.0], [0.2, 1.2]], dtype=dtype, device=device)
    v = torch.tensor([[0.3, 0.1], [-0.1, 0.2]], dtype=dtype, device=device)
    found = CALLS[name](space, z, v)
    assert_placed(found, device, dtype)
    if name == "exp":
        assert_near(half_plane(z, found), space.norm(z, v), 3e-3)


@pytest.mark.parametrize("name", [name for name in CALLS if name != "log"])
def test_vectors_elsewhere_are_refused(name, device):
    space = solvers.MetricSpace(half_plane_tensor)
    z = torch.tensor([[0.0, 1.0]], dtype=F32, device=device)
    with pytest.raises(DeviceError, match="Move"):
        CALLS[name](space, z, torch.ones_like(z, device=elsewhere(device)))
