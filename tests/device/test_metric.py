"""The metric and what follows from it on a device: the sphere, a linear map, and a flat torus."""

import pytest
import torch
from on_device import DTYPES, Given, assert_placed, assert_true
from spaces import AFFINE, affine, clifford_torus, sphere

from riemae import Manifold, scores

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)
ROUND = Manifold(sphere)


@pytest.fixture
def given(device, dtype):
    return Given.drawn(4, 2, 3, device, dtype)


def scale(z):  # stereographic: G = (2/(1 + |z|²))² I
    return (2 / (1 + z.square().sum(-1))).square()


def test_points_of_the_sphere_have_length_one(given):
    assert_true(ROUND.decode(given.z).norm(dim=-1), 1.0, "value")


def test_metric(given):
    expected = scale(given.z)[:, None, None] * torch.eye(2).to(given.z)
    assert_true(ROUND.metric(given.z), expected, "value")
    assert_true(ROUND.metric_product(given.z, given.v), scale(given.z)[:, None] * given.v, "value")


def test_lengths_and_angles(given):
    z, u, v = given.z, given.u, given.v
    assert_true(ROUND.inner(z, u, v), scale(z) * (u * v).sum(-1), "value")
    assert_true(ROUND.norm(z, v), scale(z).sqrt() * v.norm(dim=-1), "value")


def test_spectrum(given):
    size = scale(given.z)
    assert_true(ROUND.eigenvalues(given.z), size[:, None].expand(-1, 2), "value")
    r = ROUND.metric_factor(given.z)
    assert_true(r.mT @ r, ROUND.metric(given.z), "value")
    assert_true(ROUND.volume_density(given.z), size, "value")
    assert_true(ROUND.log_volume(given.z), size.log(), "value", scale=10)


def test_jacobian_of_a_linear_map(given):
    M = Manifold(affine)
    j = AFFINE.to(given.z)
    assert_true(M.jacobian(given.z), j.expand(4, 4, 2), "value")
    assert_true(M.pushforward(given.z, given.v), given.v @ j.T, "value")
    w = torch.cat([given.x, given.x[:, :1]], 1)
    assert_true(M.pullback(given.z, w), w @ j, "value")
    value, first, second = M.taylor(given.z, given.v)
    assert_true(value + first, affine(given.z + given.v), "value")
    assert second.abs().max() == 0


def test_connection_of_a_conformal_metric(given):
    # G = e^{2s} I with ∂s = −2z/(1 + |z|²): Γᵏ_ij = δᵏ_i ∂_j s + δᵏ_j ∂_i s − δ_ij ∂_k s
    z, v = given.z, given.v
    slope = -2 * z / (1 + z.square().sum(-1, keepdim=True))
    eye = torch.eye(2).to(z)
    symbols = torch.einsum("ki,nj->nkij", eye, slope) + torch.einsum("kj,ni->nkij", eye, slope)
    symbols = symbols - torch.einsum("ij,nk->nkij", eye, slope)
    assert_true(ROUND.christoffel(z), symbols, "second")
    acceleration = -torch.einsum("nkij,ni,nj->nk", symbols, v, v)
    assert_true(ROUND.acceleration(z, v), acceleration, "second")


@pytest.mark.parametrize("kind", ["isometry", "scaled_isometry", "conformal", "area"])
def test_distortion(kind, given):
    # Of the sphere: λ = (2/(1 + |z|²))² twice. Of the flat torus: none of any kind.
    size = scale(given.z)
    expected = {
        "isometry": 2 * (1 - size).square().mean(),
        "scaled_isometry": 2 * (size.square().mean() / size.mean().square() - 1),
        "conformal": torch.zeros(()),
        "area": size.log().var(unbiased=False),
    }
    found = ROUND.distortion(given.z, kind)
    assert_placed(found, given.z.device, given.z.dtype)
    assert abs(float(found - expected[kind].to(found))) < 1e-5
    assert abs(float(Manifold(clifford_torus).distortion(given.z, kind))) < 1e-5


def test_scores(given, generator):
    z = given.z
    assert_true(scores.condition_number(ROUND, z), 1.0, "second")
    assert scores.hierarchy(ROUND, z, tol=1e-2) == scores.MapClass.CONFORMAL
    assert scores.hierarchy(Manifold(clifford_torus), z, tol=1e-2) == scores.MapClass.ISOMETRY
    # Both eigenvalues of Ḡ⁻¹G are λ/λ̄.
    size = scale(z)
    expected = 2 * (size / size.mean()).log().square().mean()
    found = scores.vor(ROUND, z)
    assert_true(found, expected, "second")

    def drawn():
        return ROUND.distortion(z, "isometry", True, "hutchinson", 16, generator)

    assert_placed(scores.summary(ROUND, z, blocks=2).vor, z.device, z.dtype)
    estimate = scores.Estimate.repeated(drawn, 16)
    assert_placed(estimate, z.device, z.dtype)
    exact = ROUND.distortion(z, "isometry", True)
    assert ((estimate.mean - exact).abs() < 8 * estimate.standard_error).all()
    assert_placed(scores.Estimate.of(exact), z.device, z.dtype)


def test_gradients_arrive_where_the_points_are(given):
    # Of the volume: ∂ (2/(1 + |z|²))² = −4 z/(1 + |z|²) times it.
    z = given.z.clone().requires_grad_()
    ROUND.volume_density(z).sum().backward()
    expected = -4 * given.z / (1 + given.z.square().sum(-1, keepdim=True))
    assert_placed(z.grad, given.z.device, given.z.dtype)
    assert_true(z.grad, expected * scale(given.z)[:, None], "second")
