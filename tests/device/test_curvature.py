"""Curvatures on a device: spheres of any radius, flat and linear surfaces, a torus."""

import pytest
import torch
from on_device import DTYPES, Given, assert_near, assert_placed, assert_true
from spaces import CATALOGUE, sphere, torus

from riemae import Manifold

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)
R = 1.5
BALL = Manifold(lambda z: sphere(z, R))
FLAT = [space for space in CATALOGUE if space.name in ("cylinder", "clifford torus", "affine")]


@pytest.fixture
def given(device, dtype):
    return Given.drawn(4, 2, 3, device, dtype)


def test_a_sphere_bends_alike_everywhere(given):
    # II(u, v) = −⟨u, v⟩ x/r², with the outward position x
    z, u, v = given.z, given.u, given.v
    x = BALL.decode(z)
    expected = -BALL.inner(z, u, v)[:, None] * x / R**2
    assert_true(BALL.second_fundamental_form(z, u, v), expected, "second")
    assert_true(BALL.mean_curvature(z), -x / R**2, "second")
    assert_true(BALL.principal_curvatures(z, -x), 1 / R, "second")


@pytest.mark.parametrize("estimator", ["exact", "hutchinson", "paper"])
def test_extrinsic_curvature(estimator, given, generator):
    z = given.z
    expected = 2 * 2 / R**2
    if estimator == "exact":
        assert_true(BALL.extrinsic_curvature(z), expected, "second")
        assert_true(BALL.curvature_form(z), 2 / R**2 * BALL.metric(z), "second")
        return
    drawn = BALL.extrinsic_curvature(z[:1], estimator, 60, generator)
    assert_placed(drawn, z.device, z.dtype)
    assert (drawn / expected - 1).abs() < 1


def test_intrinsic_curvature(given):
    # K = 1/r²: R_ijkl = K (g_il g_jk − g_ik g_jl)
    z = given.z
    g = BALL.metric(z)
    tensor = torch.einsum("nil,njk->nijkl", g, g) - torch.einsum("nik,njl->nijkl", g, g)
    assert_true(BALL.riemann(z), tensor / R**2, "second")
    assert_true(BALL.ricci(z), g / R**2, "second")
    assert_true(BALL.scalar_curvature(z), 2 / R**2, "second")
    assert_true(BALL.gaussian_curvature(z), 1 / R**2, "second")
    assert_true(BALL.sectional_curvature(z, given.u, given.v), 1 / R**2, "second", scale=10)


@pytest.mark.parametrize("m", [3, 5])
def test_spheres_of_more_dimensions(m, dtype, device, generator):
    z = Given.drawn(3, m, 3, device, dtype).z
    assert_true(BALL_OF[m].scalar_curvature(z), m * (m - 1) / R**2, "second")
    assert_true(BALL_OF[m].extrinsic_curvature(z), 2 * m / R**2, "second")
    drawn = BALL_OF[m].scalar_curvature(z, "hutchinson", 2, generator)
    assert_placed(drawn, device, dtype)


BALL_OF = {m: Manifold(lambda z: sphere(z, R), latent_dim=m) for m in (3, 5)}


@pytest.mark.parametrize("space", FLAT, ids=lambda space: space.name)
def test_flat_surfaces_have_no_curvature(space, dtype, device):
    z = Given.drawn(4, 2, 3, device, dtype).z
    curvature = Manifold(space.decoder).gaussian_curvature(z)
    assert_near(1 + curvature, torch.ones(4), 1e-4)
    assert_placed(curvature, device, dtype)


def test_a_torus_has_all_signs(given):
    # K = cos v/(r (R + r cos v)), R = 2 and r = 1
    z = 2 * given.z
    expected = z[:, 1].cos() / (2 + z[:, 1].cos())
    assert_true(Manifold(torus).gaussian_curvature(z), expected, "second")
