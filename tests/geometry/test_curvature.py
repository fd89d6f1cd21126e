"""Curvature against closed forms, by two methods, and in other coordinates."""

import warnings

import pytest
import spaces
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riemae import Manifold, ambient
from riemae.exceptions import OptionError, ShapeError, SingularMetricError, SmoothnessWarning
from riemae.scores import Estimate

SEEDS = st.integers(0, 2**16)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, low=-1.0, high=1.0):
    return spaces.rand(gen(seed), *shape, low=low, high=high)


def catenoid(z):
    u, v = z.unbind(-1)
    return torch.stack([u.cosh() * v.cos(), u.cosh() * v.sin(), u], -1)


def helicoid(z):
    u, v = z.unbind(-1)
    return torch.stack([u.sinh() * v.cos(), u.sinh() * v.sin(), v], -1)


def network(m, d, seed=0, width=12):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = torch.nn.Linear(m, width), torch.nn.Tanh(), torch.nn.Linear(width, d)
        return torch.nn.Sequential(*layers).double().requires_grad_(False)


def by_connection(decoder):
    """The same manifold by the other method: the identity as a metric without a feature map."""
    return Manifold(decoder, ambient=ambient.Custom(operator=lambda x, v: v))


class TestExtrinsic:
    @pytest.mark.parametrize("m", [1, 2, 3, 5])
    @pytest.mark.parametrize("radius", [0.5, 3.0])
    def test_spheres(self, m, radius):
        # Tr(G⁻¹C) = 2m/r²; the mean curvature vector points to the centre with length 1/r.
        M = Manifold(lambda z: spaces.sphere(z, radius))
        z = draw(6, m)
        assert torch.allclose(
            M.extrinsic_curvature(z), torch.tensor(2 * m / radius**2).double(), atol=1e-8
        )
        assert torch.allclose(M.mean_curvature(z), -M.decode(z) / radius**2, atol=1e-8)
        outward = M.principal_curvatures(z, M.decode(z))
        assert torch.allclose(outward, torch.tensor(-1 / radius).double().expand(6, m), atol=1e-8)

    def test_cylinder_plane_and_affine(self):
        z = draw(5, 2)
        tube = Manifold(spaces.cylinder)  # radius 1.5
        assert torch.allclose(
            tube.extrinsic_curvature(z), torch.tensor(2 / 1.5**2).double(), atol=1e-8
        )
        x = tube.decode(z)
        inward = torch.stack([-x[:, 0], -x[:, 1], 0 * x[:, 2]], -1)
        assert torch.allclose(
            tube.principal_curvatures(z, inward), torch.tensor([0, 1 / 1.5]).double(), atol=1e-8
        )
        assert torch.allclose(
            Manifold(spaces.affine).extrinsic_curvature(z), torch.zeros(5).double(), atol=1e-12
        )

    @pytest.mark.parametrize(("m", "d"), [(1, 3), (2, 5), (3, 7)])
    def test_curvature_form_is_that_of_the_projection(self, m, d):
        # C_ij = Tr(∂_i T̂ ∂_j T̂) with the D × D projection differentiated as it stands (equations
        # 6, 9).
        f = network(m, d)
        z = draw(m, seed=1)

        def projection(point):
            j = torch.autograd.functional.jacobian(f, point, create_graph=True)
            return j @ torch.linalg.inv(j.T @ j) @ j.T

        slopes = torch.autograd.functional.jacobian(projection, z)
        expected = torch.einsum("abi,baj->ij", slopes, slopes)
        assert torch.allclose(Manifold(f).curvature_form(z), expected, rtol=1e-9)

    def test_second_fundamental_form_is_normal_and_symmetric(self):
        M = Manifold(network(3, 6))
        z, u, v = draw(4, 3), draw(4, 3, seed=1), draw(4, 3, seed=2)
        bend = M.second_fundamental_form(z, u, v)
        assert torch.allclose(M.pullback(z, bend), torch.zeros(4, 3).double(), atol=1e-12)
        assert torch.allclose(bend, M.second_fundamental_form(z, v, u), atol=1e-12)

    def test_ambient_metric_enters_the_trace_only(self):
        # Scaling H by 4 divides Tr(G⁻¹C) by 4, by either method.
        z = draw(3, 2)
        plain = Manifold(spaces.torus).extrinsic_curvature(z)
        for H in (
            ambient.Diagonal(torch.full((3,), 4.0).double()),
            lambda x: 4 * torch.ones_like(x),
        ):
            assert torch.allclose(
                Manifold(spaces.torus, ambient=H).extrinsic_curvature(z), plain / 4, rtol=1e-10
            )


class TestIntrinsic:
    @pytest.mark.parametrize("make", [Manifold, by_connection], ids=["gauss", "connection"])
    @pytest.mark.parametrize("m", [2, 3])
    def test_spheres(self, make, m):
        M = make(lambda z: spaces.sphere(z, 2.0))
        z, u, v = draw(4, m), draw(4, m, seed=1), draw(4, m, seed=2)
        g = M.metric(z)
        k = 1 / 4
        assert torch.allclose(M.sectional_curvature(z, u, v), torch.tensor(k).double(), atol=1e-8)
        assert torch.allclose(M.ricci(z), (m - 1) * k * g, atol=1e-8)
        assert torch.allclose(
            M.scalar_curvature(z), torch.tensor(m * (m - 1) * k).double(), atol=1e-8
        )
        # Constant curvature: R_ijkl = K (g_jk g_il − g_ik g_jl)
        expected = k * (torch.einsum("bjk,bil->bijkl", g, g) - torch.einsum("bik,bjl->bijkl", g, g))
        assert torch.allclose(M.riemann(z), expected, atol=1e-8)

    @pytest.mark.parametrize("make", [Manifold, by_connection], ids=["gauss", "connection"])
    def test_surfaces(self, make):
        z = draw(6, 2)
        u, v = z.unbind(-1)
        truths = {
            # torus (2, 1): cos v/(2 + cos v); paraboloid: 1/(1 + ρ²)²; catenoid and helicoid:
            # −1/cosh⁴ u
            spaces.torus: v.cos() / (2 + v.cos()),
            spaces.paraboloid: (1 + z.square().sum(-1)) ** -2,
            catenoid: -(u.cosh() ** -4),
            helicoid: -(u.cosh() ** -4),
            spaces.cylinder: 0 * u,
            spaces.clifford_torus: 0 * u,
        }
        for surface, k in truths.items():
            M = make(surface)
            assert torch.allclose(M.gaussian_curvature(z), k, atol=1e-8), surface.__name__
            assert torch.allclose(M.scalar_curvature(z), 2 * k, atol=1e-8), surface.__name__

    def test_same_inside_different_outside(self):
        # ds² = cosh² u (du² + dv²) for both; their normals turn equally fast, but in other
        # directions, so compare the second fundamental forms: diag(−1, 1) against the antidiagonal.
        z = draw(4, 2)
        e = torch.eye(2).double()
        cat, hel = Manifold(catenoid), Manifold(helicoid)
        assert torch.allclose(cat.metric(z), hel.metric(z), atol=1e-12)
        assert torch.allclose(cat.riemann(z), hel.riemann(z), atol=1e-10)
        size = [
            M.second_fundamental_form(z, e[0].expand_as(z), e[0].expand_as(z)).norm(dim=-1)
            for M in (cat, hel)
        ]
        assert torch.allclose(size[0], torch.ones(4).double(), atol=1e-10)
        assert torch.allclose(size[1], torch.zeros(4).double(), atol=1e-10)

    @pytest.mark.parametrize("name", ["poincaré", "half plane", "normal"])
    def test_curved_ambient_spaces(self, name):
        z = draw(5, 2, low=0.2, high=0.6)
        metrics = {
            # K = −1, −1, and −1/2 for the Fisher metric diag(1/σ², 2/σ²) of Normal(μ, σ)
            "poincaré": (lambda x: spaces.poincare_tensor(x), -1.0),
            "half plane": (lambda x: (1 / x[:, 1:] ** 2).expand_as(x), -1.0),
            "normal": (lambda x: torch.tensor([1.0, 2.0]).double() / x[:, 1:] ** 2, -0.5),
        }
        H, k = metrics[name]
        M = Manifold(lambda z: z, ambient=H)
        assert torch.allclose(M.gaussian_curvature(z), torch.tensor(k).double(), atol=1e-8)

    @pytest.mark.parametrize("m", [2, 3])
    def test_both_roads_agree_and_have_the_symmetries(self, m):
        f = network(m, 6)
        z = draw(3, m)
        r = Manifold(f).riemann(z)
        assert torch.allclose(by_connection(f).riemann(z), r, atol=1e-9)
        assert torch.allclose(r, -r.transpose(1, 2), atol=1e-12)
        assert torch.allclose(r, -r.transpose(3, 4), atol=1e-12)
        assert torch.allclose(r, r.permute(0, 3, 4, 1, 2), atol=1e-12)
        assert torch.allclose(
            r + r.permute(0, 2, 3, 1, 4) + r.permute(0, 3, 1, 2, 4), 0 * r, atol=1e-12
        )  # Bianchi

    @pytest.mark.parametrize("m", [2, 4])
    def test_scalar_curvature_from_the_second_fundamental_form(self, m):
        # S = |tr II|² − |II|² with |II|² = Tr(g⁻¹C)/2 and tr II = m × mean curvature.
        M = Manifold(network(m, 9))
        z = draw(4, m)
        expected = (m * M.mean_curvature(z)).square().sum(-1) - M.extrinsic_curvature(z) / 2
        assert torch.allclose(M.scalar_curvature(z), expected, rtol=1e-8)

    def test_one_dimension_is_flat(self):
        curve = Manifold(lambda z: torch.cat([z.cos(), z.sin()], -1))
        assert torch.equal(curve.scalar_curvature(draw(3, 1)), torch.zeros(3).double())
        assert torch.allclose(
            curve.extrinsic_curvature(draw(3, 1)), torch.full((3,), 2.0).double(), atol=1e-10
        )

    def test_gauss_bonnet(self):
        # ∫ K dA = 0 on the torus (trapezoid on a period converges exponentially) and 4π on the
        # sphere (Gauss-Legendre).
        t = torch.arange(48).double() * 2 * torch.pi / 48
        z = torch.cartesian_prod(t, t)
        M = Manifold(spaces.torus)
        total = (M.gaussian_curvature(z) * M.volume_density(z)).sum() * (2 * torch.pi / 48) ** 2
        assert abs(float(total)) < 1e-6
        import numpy as np

        s, w = np.polynomial.legendre.leggauss(24)
        v = torch.as_tensor(s * np.pi / 2)
        polar = Manifold(
            lambda z: torch.stack(
                [z[:, 1].cos() * z[:, 0].cos(), z[:, 1].cos() * z[:, 0].sin(), z[:, 1].sin()], -1
            )
        )
        z = torch.stack([torch.zeros_like(v), v], -1)
        total = (
            2
            * torch.pi
            * (
                (polar.gaussian_curvature(z) * polar.volume_density(z))
                * torch.as_tensor(w * np.pi / 2)
            ).sum()
        )
        assert abs(float(total) - 4 * torch.pi) < 1e-6


class TestEstimators:
    @pytest.mark.parametrize("m", [2, 8, 32])
    @pytest.mark.parametrize("estimator", ["hutchinson", "paper"])
    @pytest.mark.parametrize("H", [None, "diagonal"])
    def test_extrinsic_is_unbiased(self, m, estimator, H):
        f = network(m, 40, width=48)
        H = None if H is None else ambient.Diagonal(draw(40, low=0.5, high=2.0))
        M = Manifold(f, ambient=H)
        z = draw(1, m)
        e = Estimate.of(M.extrinsic_curvature(z.expand(600, m), estimator, generator=gen(5)))
        exact = M.extrinsic_curvature(z)
        assert abs(float(e.mean - exact)) <= 4 * float(e.standard_error)
        assert float(e.standard_error) < float(exact)

    @pytest.mark.parametrize("m", [2, 8, 32])
    def test_scalar_curvature_is_unbiased(self, m):
        M = Manifold(network(m, 40, width=48))
        z = draw(1, m)
        e = Estimate.of(M.scalar_curvature(z.expand(800, m), "hutchinson", generator=gen(6)))
        assert abs(float(e.mean - M.scalar_curvature(z))) <= 4 * float(e.standard_error)

    def test_whitened_is_never_negative_and_varies_less(self):
        # A skewed chart of the sphere: the paper's estimator goes below zero,
        # ours cannot.
        skew = torch.tensor([[1.0, 0.9], [0.0, 0.3]]).double()
        M = Manifold(lambda z: spaces.sphere(z @ skew))
        z = draw(1, 2).expand(2000, 2)
        ours, theirs = (
            M.extrinsic_curvature(z, e, generator=gen(1)) for e in ("hutchinson", "paper")
        )
        assert (ours >= 0).all()
        assert (theirs < 0).any()
        assert ours.std() < theirs.std()

    def test_seeded(self):
        M = Manifold(network(3, 6))
        z = draw(4, 3)
        a, b, c = (M.extrinsic_curvature(z, "hutchinson", generator=gen(s)) for s in (1, 1, 2))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    def test_samples_average(self):
        M = Manifold(network(3, 6))
        z, g = draw(1, 3), gen(3)
        one_by_one = Estimate.repeated(
            lambda: M.extrinsic_curvature(z, "hutchinson", generator=g), 3
        )
        at_once = M.extrinsic_curvature(z, "hutchinson", samples=3, generator=gen(3))
        assert torch.allclose(one_by_one.mean, at_once, rtol=1e-12)
        assert one_by_one.standard_error.shape == (1,)

    def test_estimate(self):
        e = Estimate.of(torch.tensor([1.0, 2.0, 3.0]))
        assert (float(e.mean), round(float(e.standard_error), 6)) == (2.0, round(1 / 3**0.5, 6))
        assert Estimate.of(torch.tensor([1.0])).standard_error.isnan()

    @pytest.mark.parametrize(
        "call",
        [lambda M, z: M.extrinsic_curvature(z, "x"), lambda M, z: M.scalar_curvature(z, "paper")],
    )
    def test_unknown(self, call):
        with pytest.raises(OptionError, match="estimator among"):
            call(Manifold(spaces.sphere), draw(2, 2))

    def test_samples(self):
        with pytest.raises(OptionError, match="samples of at least 1"):
            Manifold(spaces.sphere).extrinsic_curvature(draw(2, 2), "hutchinson", samples=0)

    def test_no_feature_map(self):
        with pytest.raises(OptionError, match="feature map"):
            by_connection(spaces.sphere).scalar_curvature(draw(2, 2), "hutchinson")


class TestSmoothness:
    def relu(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return torch.nn.Sequential(
                torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
            )

    def test_relu_module_warns_once(self):
        M = Manifold(self.relu())
        with pytest.warns(SmoothnessWarning, match="ReLU"):
            M.extrinsic_curvature(torch.randn(3, 2, generator=gen()))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            M.scalar_curvature(torch.randn(3, 2, generator=gen()))

    def test_relu_function_warns(self):
        f = self.relu()
        with pytest.warns(SmoothnessWarning, match="a function relu"):
            Manifold(lambda z: f(z)).curvature_form(torch.randn(3, 2, generator=gen()))

    @pytest.mark.parametrize("decoder", [spaces.affine, spaces.sphere], ids=["affine", "sphere"])
    def test_smooth_decoders_do_not_warn(self, decoder):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Manifold(decoder).scalar_curvature(draw(3, 2))


class TestBadInput:
    def test_gaussian_curvature_needs_a_surface(self):
        with pytest.raises(ShapeError, match="dimension 2"):
            Manifold(spaces.sphere).gaussian_curvature(draw(2, 3))

    def test_dependent_directions(self):
        z, u = draw(3, 2), draw(3, 2, seed=1)
        v = torch.stack([2 * u[0], u[1].flip(0), -u[2]])
        with pytest.raises(OptionError, match=r"2 of 3 points \(first: \[0, 2\]\)"):
            Manifold(spaces.sphere).sectional_curvature(z, u, v)

    def test_singular_metric_names_the_places(self):
        cusp = Manifold(lambda z: torch.stack([z[:, 0] ** 3, z[:, 1], z[:, 0] * z[:, 1] ** 2], -1))
        z = torch.tensor([[1.0, 0.5], [0.0, 0.0]]).double()
        for call in (
            cusp.extrinsic_curvature,
            cusp.curvature_form,
            cusp.riemann,
            cusp.scalar_curvature,
        ):
            with pytest.raises(SingularMetricError, match=r"1 of 2 points \(first: \[1\]\)"):
                call(z)

    def test_tangent_normal(self):
        M = Manifold(spaces.sphere)
        z = draw(2, 2)
        with pytest.raises(OptionError, match="tangent to the manifold"):
            M.principal_curvatures(z, M.jacobian(z)[..., 0])
        with pytest.raises(ShapeError, match="normal of shape"):
            M.principal_curvatures(z, draw(2, 2))

    def test_axes_and_empty(self):
        M = Manifold(spaces.sphere)
        z = draw(2, 3, 2)
        assert M.riemann(z).shape == (2, 3, 2, 2, 2, 2)
        assert M.scalar_curvature(z[0, 0]).shape == ()
        assert M.mean_curvature(z).shape == (2, 3, 3)
        assert M.extrinsic_curvature(z[:0]).shape == (0, 3)
        assert M.riemann(z[:0]).shape == (0, 3, 2, 2, 2, 2)


class TestInvariance:
    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(SEEDS)
    def test_under_changes_of_coordinates(self, seed):
        # Propositions 2.1 and 2.2: z = h⁻¹(y) with h(z) = arsinh(Az); curvatures at corresponding
        # points are equal.
        a = torch.eye(2).double() + 0.4 * draw(2, 2, seed=seed)
        back = torch.linalg.inv(a)
        f = network(2, 5, seed=seed)
        z = draw(3, 2, seed=seed + 1)
        y = (z @ a.T).asinh()
        M, other = Manifold(f), Manifold(lambda y: f(y.sinh() @ back.T))
        for quantity in (
            "extrinsic_curvature",
            "scalar_curvature",
            "gaussian_curvature",
            "mean_curvature",
        ):
            assert torch.allclose(
                getattr(other, quantity)(y), getattr(M, quantity)(z), rtol=1e-7, atol=1e-9
            ), quantity

    @settings(max_examples=10, deadline=None, derandomize=True)
    @given(SEEDS)
    def test_under_orthogonal_lifts(self, seed):
        q, _ = torch.linalg.qr(draw(8, 5, seed=seed))
        f = network(2, 5, seed=seed)
        z = draw(3, 2, seed=seed)
        M, lifted = Manifold(f), Manifold(lambda z: f(z) @ q.T)
        assert torch.allclose(lifted.riemann(z), M.riemann(z), atol=1e-10)
        assert torch.allclose(lifted.curvature_form(z), M.curvature_form(z), atol=1e-10)

    def test_gradients(self):
        f = network(2, 4)
        assert torch.autograd.gradcheck(
            lambda z: Manifold(f).extrinsic_curvature(z), draw(2, 2).requires_grad_()
        )
        assert torch.autograd.gradcheck(
            lambda z: Manifold(f).scalar_curvature(z), draw(2, 2).requires_grad_()
        )

    def test_float32(self):
        M = Manifold(spaces.sphere)
        z = draw(4, 2).float()
        assert torch.allclose(M.extrinsic_curvature(z), torch.tensor(4.0), rtol=1e-4)
        assert torch.allclose(M.gaussian_curvature(z), torch.tensor(1.0), rtol=1e-4)


class TestKretschmann:
    @pytest.mark.parametrize("m", [1, 2, 3, 5])
    def test_spheres(self, m):
        # R_ijkl = (g_il g_jk − g_ik g_jl)/r², so ‖R‖² = 2m(m − 1)/r⁴.
        M = Manifold(lambda z: spaces.sphere(z, 2.0))
        truth = torch.tensor(2 * m * (m - 1) / 16).double().expand(6)
        assert torch.allclose(M.kretschmann(draw(6, m)), truth, atol=1e-9)

    def test_it_is_the_contraction_of_the_tensor_by_either_method(self):
        f, z = network(3, 6), draw(5, 3)
        M = Manifold(f)
        inverse = torch.linalg.inv(M.metric(z))
        r = M.riemann(z)
        raised = torch.einsum("bijkl,bip,bjq,bkr,bls->bpqrs", r, inverse, inverse, inverse, inverse)
        truth = (r * raised).sum((1, 2, 3, 4))
        assert torch.allclose(M.kretschmann(z), truth, rtol=1e-8)
        assert torch.allclose(by_connection(f).kretschmann(z), truth, rtol=1e-6)

    @pytest.mark.parametrize(("m", "ridge", "samples"), [(3, 0.0, 1), (5, 0.1, 2)])
    def test_the_mean_of_planes_is_the_exact_value(self, m, ridge, samples):
        draws = 20_000
        M = Manifold(network(m, m + 3))
        z = draw(1, m)
        exact = M.kretschmann(z, ridge=ridge)
        many = M.kretschmann(z.expand(draws, m), "planes", samples, gen(), ridge)
        assert many.min() >= 0
        error = many.std() / draws**0.5
        assert error < 0.05 * exact
        assert (many.mean() - exact).abs() < 4 * error

    def test_a_plane_is_enough_for_a_surface(self):
        M = Manifold(network(2, 4))
        z = draw(7, 2)
        assert torch.equal(M.kretschmann(z, "planes", generator=1), M.kretschmann(z))

    def test_flat_manifolds_have_none_in_any_draw(self):
        M = Manifold(lambda z: torch.cat([z[:, :1].cos(), z[:, :1].sin(), z[:, 1:]], -1))
        assert M.kretschmann(draw(9, 3), "planes", generator=0).abs().max() < 1e-24

    def test_ill_posed_calls_are_refused(self):
        z = draw(4, 3)
        for M, options in (
            (Manifold(network(3, 5)), {"estimator": "hutchinson"}),
            (Manifold(network(3, 5)), {"estimator": "planes", "samples": 0}),
            (Manifold(network(3, 5)), {"ridge": -1.0}),
            (by_connection(network(3, 5)), {"estimator": "planes"}),
            (by_connection(network(3, 5)), {"ridge": 0.1}),
        ):
            with pytest.raises(OptionError, match="kretschmann"):
                M.kretschmann(z, **options)
        flat = Manifold(
            lambda z: torch.stack([z[:, 0], z[:, 0].square(), z[:, 1] * 0, z[:, 2]], -1)
        )
        with pytest.raises(SingularMetricError, match="4 of 4"):
            flat.kretschmann(z, "planes")
