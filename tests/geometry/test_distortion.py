"""Distortion measures, scores, and the hierarchy of maps; world maps are the test bed."""

import geoopt
import numpy as np
import pytest
import spaces
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riemae import Manifold, ambient, scores
from riemae.exceptions import OptionError, ShapeError, SingularMetricError
from riemae.scores import MapClass


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, low=-1.0, high=1.0):
    return spaces.rand(gen(seed), *shape, low=low, high=high)


def on_the_sphere(lon, lat):
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], -1)


# Maps of the earth as decoders: from the plane of the map to the unit sphere.
def equirectangular(z):
    return on_the_sphere(z[:, 0], z[:, 1])


def mercator(z):  # y = artanh(sin lat)
    return on_the_sphere(z[:, 0], z[:, 1].tanh().asin())


def lambert_cylindrical(z):  # y = sin lat
    return on_the_sphere(z[:, 0], z[:, 1].asin())


def gall_peters(z):  # x = lon/√2, y = √2 sin lat
    return on_the_sphere(z[:, 0] * 2**0.5, (z[:, 1] / 2**0.5).asin())


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        f = torch.nn.Sequential(torch.nn.Linear(3, 12), torch.nn.Tanh(), torch.nn.Linear(12, 7))
    return f.double().requires_grad_(False)


KINDS = ("isometry", "scaled_isometry", "conformal", "area")


@pytest.mark.parametrize("kind", KINDS)
def test_against_the_eigenvalues(kind):
    # Equations (14)-(16) as they stand, with numpy's eigenvalues.
    M = Manifold(network())
    z = draw(9, 3)
    lam = torch.as_tensor(np.linalg.eigvalsh(M.metric(z).numpy()))
    local = {
        "isometry": (1 - lam).square().sum(1),
        "scaled_isometry": (1 - lam / lam.mean()).square().sum(1),
        "conformal": (1 - lam / lam.mean(1, keepdim=True)).square().sum(1),
        "area": (lam.log().sum(1) / 2 - (lam.log().sum(1) / 2).mean()).square(),
    }[kind]
    assert torch.allclose(M.distortion(z, kind=kind, local=True), local, rtol=1e-9)
    assert torch.allclose(M.distortion(z, kind=kind), local.mean(), rtol=1e-9)


def test_relaxed_distortion_is_the_quotient_of_the_paper():
    # m² E Tr G² / (E Tr G)² − m (section 3.3)
    M = Manifold(network())
    z = draw(9, 3)
    g = M.metric(z)
    trace = g.diagonal(dim1=1, dim2=2).sum(1).mean()
    expected = 9 * (g @ g).diagonal(dim1=1, dim2=2).sum(1).mean() / trace**2 - 3
    assert torch.allclose(M.distortion(z, kind="scaled_isometry"), expected, rtol=1e-10)


class TestHierarchy:
    @pytest.mark.parametrize(
        ("decoder", "expected"),
        [
            (lambda z: torch.cat([z, 0 * z], -1), MapClass.ISOMETRY),
            (spaces.clifford_torus, MapClass.ISOMETRY),
            (lambda z: 3 * spaces.clifford_torus(z), MapClass.SCALED_ISOMETRY),
            (spaces.sphere, MapClass.CONFORMAL),  # stereographic
            (mercator, MapClass.CONFORMAL),
            (lambert_cylindrical, MapClass.EQUAL_AREA),
            (gall_peters, MapClass.EQUAL_AREA),
            (equirectangular, MapClass.NONE),
        ],
        ids=[
            "plane",
            "clifford",
            "scaled",
            "stereographic",
            "mercator",
            "lambert",
            "gall-peters",
            "equirectangular",
        ],
    )
    def test_is_recognised(self, decoder, expected):
        assert scores.hierarchy(Manifold(decoder), draw(20, 2, low=-0.9, high=0.9)) is expected

    def test_tolerance(self):
        nearly = Manifold(lambda z: torch.cat([z, 1e-4 * z.square()], -1))
        z = draw(20, 2)
        assert scores.hierarchy(nearly, z, tol=1e-3) is MapClass.ISOMETRY
        assert scores.hierarchy(nearly, z, tol=1e-12) is MapClass.NONE

    def test_networks_whose_weights_are_trained(self):
        # A warning of torch's about numbers that require a gradient would be an error here.
        assert scores.hierarchy(Manifold(network().requires_grad_()), draw(9, 3)) is MapClass.NONE

    def test_one_dimension_is_conformal(self):
        assert (
            scores.hierarchy(Manifold(lambda z: torch.cat([z, z**2], -1)), draw(9, 1))
            is MapClass.CONFORMAL
        )


class TestClosedForms:
    def test_equirectangular(self):
        # G = diag(cos² lat, 1): isometry (1 − cos²)² = sin⁴, conformal 2 ((1 − c)/(1 + c))² with c
        # = cos² lat.
        z = draw(30, 2)
        M = Manifold(equirectangular)
        c = z[:, 1].cos().square()
        assert torch.allclose(M.distortion(z, local=True), z[:, 1].sin() ** 4, atol=1e-10)
        assert torch.allclose(
            M.distortion(z, "conformal", local=True), 2 * ((1 - c) / (1 + c)).square(), atol=1e-10
        )
        assert torch.allclose(scores.condition_number(M, z), 1 / c, rtol=1e-10)

    def test_scores(self):
        # Two points with G = I and G = 4 I in m = 2: Ḡ = 2.5 I, VoR = mean of 2 log²(0.4) and 2
        # log²(1.6).
        M = Manifold(
            lambda z: torch.cat([z.square() / 2 + z, z.square() / 2 + z], -1) / 2**0.5
        )  # G = diag((1 + z)²)
        z = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double()
        logs = torch.tensor([0.4, 1.6], dtype=torch.float64).log()
        assert torch.allclose(scores.vor(M, z), (2 * logs.square()).mean(), rtol=1e-10)
        assert torch.allclose(scores.condition_number(M, z).mean(), torch.tensor(1.0).double())

    def test_ambient_metric_counts(self):
        z = draw(5, 2)
        M = Manifold(lambda z: z, ambient=ambient.Diagonal(torch.tensor([4.0, 4.0]).double()))
        assert torch.allclose(M.distortion(z), torch.tensor(18.0).double())  # 2 (1 − 4)²
        assert torch.allclose(
            M.distortion(z, "scaled_isometry"), torch.tensor(0.0).double(), atol=1e-12
        )


class TestHutchinson:
    @pytest.mark.parametrize(
        "H", [None, lambda x: 1 + x.square()], ids=["features", "inner product"]
    )
    def test_isometry_is_unbiased(self, H):
        M = Manifold(network(), ambient=H)
        z = draw(1, 3).expand(4000, 3)
        values = M.distortion(z, local=True, estimator="hutchinson", generator=gen(1))
        error = values.std() / 4000**0.5
        assert abs(float(values.mean() - M.distortion(z[:1]))) <= 4 * float(error)

    @pytest.mark.parametrize("kind", ["scaled_isometry", "conformal"])
    def test_scaled_kinds_converge(self, kind):
        M = Manifold(network())
        z = draw(40, 3)
        exact = M.distortion(z, kind)
        rough, fine = (
            M.distortion(z, kind, estimator="hutchinson", samples=s, generator=gen(2))
            for s in (4, 1000)
        )
        assert abs(float(fine - exact)) < 0.05 * float(exact)
        assert abs(float(fine - exact)) < abs(float(rough - exact))

    def test_latent_metric(self):
        M = Manifold(network())
        z = draw(1, 3).expand(4000, 3)
        L = draw(3, 3, seed=3) + 2 * torch.eye(3).double()
        options = {"latent_metric": lambda z: (L @ L.T).expand(len(z), 3, 3)}
        values = M.distortion(z, local=True, estimator="hutchinson", generator=gen(4), **options)
        assert abs(float(values.mean() - M.distortion(z[:1], **options))) <= 4 * float(
            values.std() / 4000**0.5
        )

    def test_area_has_no_estimate(self):
        with pytest.raises(OptionError, match="exact"):
            Manifold(network()).distortion(draw(2, 3), "area", estimator="hutchinson")


class TestLatentMetric:
    def test_own_metric_makes_an_isometry(self):
        M = Manifold(network())
        for kind in KINDS:
            assert float(M.distortion(draw(6, 3), kind, latent_metric=M.metric)) < 1e-12
        assert scores.hierarchy(M, draw(6, 3), latent_metric=M.metric) is MapClass.ISOMETRY

    def test_geoopt(self):
        # The Poincaré ball as latent space: the identity to the Euclidean plane has λ = (1 −
        # |z|²)²/4.
        z = draw(5, 2, low=-0.6, high=0.6)
        lam = (1 - z.square().sum(1)) ** 2 / 4
        ball = geoopt.PoincareBall()
        found = Manifold(lambda z: z).distortion(z, local=True, latent_metric=ball)
        assert torch.allclose(found, 2 * (1 - lam) ** 2, rtol=1e-10)
        assert scores.hierarchy(Manifold(lambda z: z), z, latent_metric=ball) is MapClass.CONFORMAL

    def test_bad_ones(self):
        M = Manifold(network())
        with pytest.raises(ShapeError, match="latent metric"):
            M.distortion(draw(4, 3), latent_metric=lambda z: torch.eye(3).double())
        with pytest.raises(SingularMetricError, match="positive definite latent metric"):
            M.distortion(
                draw(4, 3), latent_metric=lambda z: -torch.eye(3).double().expand(len(z), 3, 3)
            )


class TestInvariance:
    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(st.integers(0, 2**16))
    def test_under_changes_of_latent_coordinates(self, seed):
        # f → f∘h⁻¹ with h(z) = arsinh(Az); the Euclidean latent metric becomes DᵀD with D =
        # ∂h⁻¹/∂y.
        a = torch.eye(3).double() + 0.3 * draw(3, 3, seed=seed)
        back = torch.linalg.inv(a)
        f = network(seed)
        z = draw(6, 3, seed=seed + 1)
        y = (z @ a.T).asinh()

        def pushed(y):
            d = back * y.cosh()[:, None, :]
            return d.mT @ d

        M, other = Manifold(f), Manifold(lambda y: f(y.sinh() @ back.T))
        for kind in KINDS:
            assert torch.allclose(
                other.distortion(y, kind, latent_metric=pushed), M.distortion(z, kind), rtol=1e-8
            )

    @settings(max_examples=10, deadline=None, derandomize=True)
    @given(st.integers(0, 2**16), st.floats(0.01, 100.0))
    def test_scale(self, seed, scale):
        f, z = network(seed), draw(6, 3, seed=seed)
        M, scaled = Manifold(f), Manifold(lambda z: scale * f(z))
        for kind in KINDS[1:]:
            assert torch.allclose(scaled.distortion(z, kind), M.distortion(z, kind), rtol=1e-8)


class TestInterface:
    def test_shapes(self):
        M = Manifold(network())
        z = draw(2, 4, 3)
        assert M.distortion(z).shape == ()
        assert M.distortion(z, local=True).shape == (2, 4)
        assert scores.condition_number(M, z).shape == (2, 4)

    def test_gradients_reach_the_points(self):
        M = Manifold(network())
        assert torch.autograd.gradcheck(
            lambda z: M.distortion(z, "scaled_isometry"), draw(3, 3).requires_grad_()
        )

    @pytest.mark.parametrize("options", [{"kind": "x"}, {"estimator": "x"}, {"samples": 0}])
    def test_unknown_options(self, options):
        with pytest.raises(OptionError, match="Manifold.distortion"):
            Manifold(network()).distortion(draw(2, 3), **options)
