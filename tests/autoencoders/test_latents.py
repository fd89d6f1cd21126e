"""Latent spaces that are not R^m: codes, posteriors, priors, and the manifolds that know them."""

import math

import geoopt
import numpy as np
import pytest
import torch
from scipy import integrate
from torch import nn

from riemae import Manifold, load
from riemae.autoencoders import AE, IRAE, IRVAE, NRAE, VAE, Objective, Variation, losses
from riemae.autoencoders.latents import (
    LATENTS,
    Features,
    from_ball,
    from_plane,
    latent_of,
    to_ball,
    to_plane,
)
from riemae.exceptions import OptionError, ShapeError

F64 = torch.float64
SMALL = {"hidden": (8,), "epochs": 2, "batch_size": 16}
SPACES = sorted(LATENTS)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=gen(seed), dtype=F64)


def ring(n=120):
    t = np.linspace(-math.pi, math.pi, n, endpoint=False)
    return np.stack([np.cos(t), np.sin(t), 0.3 * np.cos(2 * t)], 1)


def globe(n=150):
    u = randn(n, 3)
    return (u / u.norm(dim=1, keepdim=True)).numpy()


def raw_of(name, m, k, seed=0):
    """What a variational encoder might return, with k codes of the same posterior."""
    space = latent_of(name)
    return randn(1, space.outputs(m, True), seed=seed).expand(k, -1).contiguous()


class TestCoordinates:
    @pytest.mark.parametrize("m", [1, 2, 4])
    def test_the_ball_is_geoopt_s(self, m):
        v = randn(20, m)
        v[0] = 0
        v[1] *= 1e-4
        ball = geoopt.PoincareBall()
        assert torch.allclose(to_ball(v), ball.expmap0(v), rtol=1e-10)
        assert torch.allclose(from_ball(to_ball(v)), v, rtol=1e-8)

    @pytest.mark.parametrize("m", [1, 2, 4])
    def test_the_sphere_is_geoopt_s(self, m):
        z = randn(20, m)
        u = from_plane(z)
        assert torch.allclose(u.norm(dim=1), torch.ones(20, dtype=F64))
        assert torch.allclose(to_plane(u), z, rtol=1e-9)
        # Distances of the chart are angles.
        chart = geoopt.SphereProjection()
        angle = (u[:10] * u[10:]).sum(1).acos()
        assert torch.allclose(chart.dist(z[:10], z[10:]), angle, rtol=1e-6)

    @pytest.mark.parametrize("f", [to_ball, from_ball])
    def test_series_at_the_centre_have_right_derivatives(self, f):
        for size in (0.0, 1e-8, 2e-3, 3.1e-3, 3.3e-3):
            v = torch.tensor([[size, 0.5 * size]], dtype=F64)
            assert torch.autograd.gradcheck(f, (v.requires_grad_(),))
            assert torch.autograd.gradgradcheck(f, (v,))

    def test_far_points_stay_inside(self):
        for dtype in (torch.float32, F64):
            z = to_ball(torch.tensor([[50.0, 0.0], [1e4, 1e4]], dtype=dtype))
            assert (z.norm(dim=1) < 1).all()
            assert from_ball(z).isfinite().all()

    @pytest.mark.parametrize("name", SPACES)
    def test_features_have_taylor_derivatives(self, name):
        layer = Features(name)
        z = 0.3 * randn(5, 2)
        z[0] = 0
        M = Manifold(nn.Sequential(layer).double())
        j = torch.func.vmap(torch.func.jacfwd(lambda p: layer(p[None])[0]))(z)
        assert torch.allclose(M.metric(z), j.mT @ j, rtol=1e-9, atol=1e-12)
        assert M.christoffel(z).isfinite().all()

    def test_features_are_isometric_where_the_spaces_are_round(self):
        z = randn(6, 2)
        for name in ("torus", "sphere"):
            M = Manifold(Features(name).double(), latent=latent_of(name).space(2))
            assert float(M.distortion(z, "scaled_isometry")) == pytest.approx(0, abs=1e-20)
            assert float(M.distortion(z)) == pytest.approx(0, abs=1e-20)

    @pytest.mark.parametrize("name", SPACES)
    def test_geodesics_between_codes(self, name):
        space = latent_of(name)
        z0, z1 = to_ball(0.5 * randn(8, 2)), to_ball(0.5 * randn(8, 2, seed=1))
        t = torch.linspace(0, 1, 8, dtype=F64)[:, None]
        found = Manifold(lambda z: z, latent=space.space(2)).latent.between(z0, z1, t)
        assert torch.allclose(found[0], z0[0])
        assert torch.allclose(found[-1], z1[-1])
        if name != "torus":
            chart = space.space(2)
            whole = chart.dist(z0, z1)
            assert torch.allclose(chart.dist(z0, found), t[:, 0] * whole, rtol=1e-6, atol=1e-9)

    def test_the_short_way_round(self):
        M = Manifold(Features("torus").double(), latent=(2 * math.pi,))
        a, b = torch.tensor([[3.0]], dtype=F64), torch.tensor([[-3.0]], dtype=F64)
        half = torch.full((1, 1), 0.5, dtype=F64)
        found = M.latent.between(a, b, half)
        assert float(found.cos()) == pytest.approx(-1, abs=1e-12)

    @pytest.mark.parametrize("name", ["poincare", "sphere"])
    def test_mixed_with_itself_has_a_gradient(self, name):
        M = Manifold(Features(name).double(), latent=latent_of(name).space(2))
        z = (0.4 * randn(1, 2)).requires_grad_()
        value = losses.relaxed_distortion(M, z, mixup=0.2, generator=gen())
        (slope,) = torch.autograd.grad(value, z)
        assert slope.isfinite().all()


class TestPosteriors:
    def test_the_wrapped_normal_angle(self):
        # Its divergence from the uniform law by quadrature.
        raw = torch.tensor([[math.cos(1.0), math.sin(1.0), -0.5]], dtype=F64).expand(40_000, 3)
        code, estimate = latent_of("torus").draw(raw, gen())
        sigma = float(latent_of("torus").deviation(raw[:1]))
        turns = 2 * math.pi * np.arange(-20, 21)

        def density(a):
            gaps = a - 1.0 + turns
            return np.exp(-((gaps / sigma) ** 2) / 2).sum() / sigma / math.sqrt(2 * math.pi)

        def integrand(a):
            return density(a) * math.log(2 * math.pi * density(a))

        exact, _ = integrate.quad(integrand, -math.pi, math.pi)
        assert float(estimate.mean()) == pytest.approx(exact, abs=0.02)
        assert (code.abs() <= math.pi).all()
        # Circular mean and resultant length of a wrapped normal.
        mean = torch.complex(code.cos(), code.sin()).mean()
        assert float(mean.angle()) == pytest.approx(1.0, abs=0.03)
        assert float(mean.abs()) == pytest.approx(math.exp(-(sigma**2) / 2), abs=0.01)

    @pytest.mark.parametrize("m", [1, 2, 5])
    def test_the_power_spherical_law(self, m):
        # p(t) of t = μᵀu is ∝ (1 + t)^(κ + m/2 − 1) (1 − t)^(m/2 − 1).
        space = latent_of("sphere")
        raw = raw_of("sphere", m, 40_000)
        center = from_plane(space.mean(raw, True))[0]
        kappa = float(nn.functional.softplus(raw[0, -1]))
        code, divergence = space.draw(raw, gen())
        t = from_plane(code) @ center

        def weight(s, k=kappa):
            return (1 + s) ** (k + m / 2 - 1) * (1 - s) ** (m / 2 - 1)

        whole, _ = integrate.quad(weight, -1, 1)
        mean, _ = integrate.quad(lambda s: s * weight(s) / whole, -1, 1)
        assert float(t.mean()) == pytest.approx(mean, abs=0.015)
        uniform, _ = integrate.quad(lambda s: weight(s, 0.0), -1, 1)

        def integrand(s):
            ratio = (1 + s) ** kappa * uniform / whole
            return weight(s) / whole * math.log(ratio)

        exact, _ = integrate.quad(integrand, -1, 1)
        assert torch.allclose(divergence, torch.full_like(divergence, exact), rtol=1e-5)
        spread = (2 * (1 - mean) / m) ** 0.5
        assert float(space.deviation(raw[:1])) == pytest.approx(spread, rel=1e-6)

    def test_the_wrapped_normal_point_of_the_ball(self):
        # Densities relative to the ball's area integrate to 1: over the prior, E_p q/p = 1.
        space = latent_of("poincare")
        raw = torch.tensor([[0.3, -0.2, -1.0, -0.5]], dtype=F64).expand(60_000, 4)
        code, estimate = space.draw(raw, gen())
        assert float((-estimate).exp().mean()) == pytest.approx(1, abs=0.05)
        # The prior at the posterior's place: the divergence is that of its two normal laws.
        same = torch.zeros(10, 4, dtype=F64)
        assert space.draw(same, gen())[1].abs().max() < 1e-12
        # Distances from the mean are those of the tangent vectors.
        ball = geoopt.PoincareBall()
        away = ball.dist(space.mean(raw, True), code).square().mean()
        assert float(away) == pytest.approx(math.exp(-1.0) + math.exp(-0.5), rel=0.02)

    @pytest.mark.parametrize("name", SPACES)
    def test_gradients_reach_all_numbers(self, name):
        space = latent_of(name)
        raw = randn(6, space.outputs(2, True)).requires_grad_()
        code, divergence = space.draw(raw, gen())
        (slope,) = torch.autograd.grad(code.square().sum() + divergence.sum(), raw)
        assert slope.isfinite().all()
        assert (slope != 0).any(0).all()

    def test_priors(self):
        like = torch.zeros(20_000, 2, dtype=F64)
        angles = latent_of("torus").sample(like, gen())
        assert float(angles.mean()) == pytest.approx(0, abs=0.05)
        assert float(angles.var()) == pytest.approx(math.pi**2 / 3, rel=0.02)
        u = from_plane(latent_of("sphere").sample(like, gen()))
        assert torch.allclose(u.mean(0), torch.zeros(3, dtype=F64), atol=0.02)
        assert torch.allclose(u.square().mean(0), torch.full((3,), 1 / 3, dtype=F64), atol=0.01)
        z = latent_of("poincare").sample(like, gen())
        square = geoopt.PoincareBall().dist0(z).square().mean()
        assert float(square) == pytest.approx(2, rel=0.03)


class TestEstimators:
    @pytest.mark.parametrize("kind", [AE, VAE, NRAE, IRAE, IRVAE])
    @pytest.mark.parametrize("name", SPACES)
    def test_train_save_load(self, kind, name, tmp_path):
        x = globe(60).astype(np.float32)
        m = kind(**SMALL, latent=name).fit(x)
        assert np.isfinite(m.history_["loss"]).all()
        z = m.transform(x)
        assert z.shape == (60, 2)
        assert z.dtype == np.float32
        assert m.inverse_transform(z).shape == (60, 3)
        assert m.manifold_.latent is not None
        again = load(m.save(tmp_path))
        assert np.array_equal(again.transform(x), z)
        assert repr(again.manifold_.latent) == repr(m.manifold_.latent)
        assert again.latent == name
        if isinstance(m, VAE):
            mean, deviation = m.posterior(x)
            assert np.allclose(mean, z)
            assert (deviation > 0).all()
            drawn = m.sample(9, generator=0)
            assert drawn.shape == (9, 3)
            assert torch.equal(drawn, m.sample(9, generator=0))
            assert torch.equal(again.sample(9, generator=0), drawn)

    def test_a_ring_needs_no_cut(self):
        x = ring()
        m = AE(latent_dim=1, latent="torus", hidden=(32, 32), epochs=150, lr=5e-3).fit(x)
        assert m.score(x) > 0.99
        # Neighbours on the ring are neighbours also across the seam: the geodesic distance of
        # each to the next is the arc between them.
        z = m.transform(x)
        d = m.manifold_.distance(z, np.roll(z, -1, 0), rtol=1e-3)
        arc = np.linalg.norm(x - np.roll(x, -1, 0), axis=1)
        assert np.abs(np.asarray(d) / arc - 1).max() < 0.35

    def test_a_sphere_on_a_sphere(self):
        x = globe()
        options = {"hidden": (32, 32), "epochs": 200, "lr": 5e-3}
        m = IRAE(**options, latent="sphere", weight=0.01).fit(x)
        assert m.score(x) > 0.98
        plain = IRAE(**options, weight=0.01).fit(x)
        z, flat = torch.as_tensor(m.transform(x)), torch.as_tensor(plain.transform(x))
        own = float(m.manifold_.distortion(z, "scaled_isometry"))
        # No part of the plane is isometric to a whole sphere.
        assert own < 0.5 * float(plain.manifold_.distortion(flat, "scaled_isometry"))

    @pytest.mark.parametrize(
        "terms", [{"distance_matching": 0.1}, {"topology": 0.1}, {"embedding_pull": 0.1}]
    )
    def test_losses_of_flat_distances_are_refused(self, terms):
        with pytest.raises(OptionError, match=next(iter(terms))):
            AE(**SMALL, latent="torus", terms=terms).fit(globe(40))

    def test_refused(self):
        x = globe(40)
        with pytest.raises(OptionError, match="torus"):
            AE(**SMALL, latent="klein").fit(x)
        with pytest.raises(OptionError, match="prior"):
            VAE(**SMALL, latent="sphere", prior="vamp").fit(x)
        with pytest.raises(OptionError, match="init"):
            NRAE(**SMALL, latent="sphere", init="isomap").fit(x)
        encoder = nn.Linear(3, 3).double()
        with pytest.raises(ShapeError, match="torus"):
            AE(**SMALL, latent="torus", encoder=encoder).fit(x)

    def test_own_networks(self):
        x = torch.as_tensor(globe(40))
        encoder, decoder = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
        decoder = nn.Sequential(Features("sphere"), decoder)
        objective = Objective(encoder, decoder, x, latent="sphere")
        assert objective.latent_dim == 2
        assert objective.encode(x).shape == (40, 2)
        varied = nn.Linear(3, 4).double()
        other = Objective(varied, decoder, x, latent="sphere", variation=Variation(beta=1.0))
        loss, parts = other(x, generator=gen())
        assert loss.isfinite()
        assert float(parts["divergence"].detach()) > 0
