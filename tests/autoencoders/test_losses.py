"""Geometric losses against dense formulas, exact cases, invariances and unbiasedness.

Nothing is compared with earlier output of this package.
"""

import pytest
import spaces
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riemae import Manifold, ambient
from riemae.autoencoders import losses
from riemae.exceptions import OptionError, ShapeError, SingularMetricError, SmoothnessWarning


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, low=-1.0, high=1.0):
    return spaces.rand(gen(seed), *shape, low=low, high=high)


def network(m=2, d=5, seed=0, act=torch.nn.SiLU):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        f = torch.nn.Sequential(
            torch.nn.Linear(m, 9), act(), torch.nn.Linear(9, 9), act(), torch.nn.Linear(9, d)
        )
    return f.double()


SPD = torch.eye(5, dtype=torch.float64) + 0.3 * torch.ones(5, 5, dtype=torch.float64)
METRICS = {
    "euclidean": None,
    "constant": ambient.Constant(SPD),
    "varying": ambient.Custom(diagonal=lambda x: 1 + x.square()),
}


def dense_metric(f, metric, z):
    """G at each point from torch.autograd.functional, row by row."""
    rows = []
    for point in z:
        j = torch.autograd.functional.jacobian(lambda y: f(y[None])[0], point, create_graph=True)
        x = f(point[None])
        h = {"euclidean": torch.eye(5).to(z), "constant": SPD}.get(metric)
        h = torch.diag(1 + x[0].square()) if h is None else h
        rows.append(j.T @ h @ j)
    return torch.stack(rows)


class TestRelaxedDistortion:
    @pytest.mark.parametrize("metric", METRICS)
    def test_one_probe_is_the_formula_of_the_paper(self, metric):
        # m² mean|Gv|² / (mean vᵀGv)² − m with the same probes (equation 21, shifted)
        f, z = network(), draw(7, 2)
        v = losses.gaussian(z, gen(3))
        g = dense_metric(f, metric, z)
        gv = (g @ v[..., None])[..., 0]
        expected = 4 * gv.square().sum(1).mean() / (v * gv).sum(1).mean() ** 2 - 2
        M = Manifold(f, METRICS[metric])
        actual = losses.relaxed_distortion(M, z, probe="gaussian", generator=gen(3))
        assert torch.allclose(actual, expected, rtol=1e-10)

    @pytest.mark.parametrize("metric", METRICS)
    def test_gradients_are_those_of_autograd_functional(self, metric):
        # pytorch#145356 reports gradients of this very loss that differ between torch.func and
        # autograd.functional.
        f = network()
        z = draw(6, 2).requires_grad_()
        leaves = [z, *f.parameters()]
        actual = torch.autograd.grad(
            losses.relaxed_distortion(Manifold(f, METRICS[metric]), z, probes=1, generator=gen(1)),
            leaves,
            allow_unused=True,
        )
        v = losses.signs(z, gen(1))
        g = dense_metric(f, metric, z)
        gv = (g @ v[..., None])[..., 0]
        dense = 4 * gv.square().sum(1).mean() / (v * gv).sum(1).mean() ** 2 - 2
        expected = torch.autograd.grad(dense, leaves, allow_unused=True)
        for a, b in zip(actual, expected, strict=True):
            if b is None:
                assert a is None or not a.any()
            else:
                assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize(
        "options", [{}, {"probes": 1}, {"probes": 3}, {"probes": None}, {"mixup": 0.2}]
    )
    def test_scaled_isometries_give_exactly_zero(self, options):
        # z ↦ 3 Q z + b with orthonormal columns Q has G = 9 I everywhere.
        q = torch.linalg.qr(draw(5, 2))[0]
        M = Manifold(lambda z: 3 * z @ q.T + 1)
        assert losses.relaxed_distortion(M, draw(8, 2), generator=gen(), **options).abs() < 1e-12
        roll = Manifold(
            lambda z: torch.stack([2 * (z[:, 0]).sin(), 2 * z[:, 0].cos(), 2 * z[:, 1]], -1)
        )
        assert losses.relaxed_distortion(roll, draw(8, 2), generator=gen(), **options).abs() < 1e-12

    @settings(derandomize=True, deadline=None, max_examples=20)
    @given(seed=st.integers(0, 10**6), m=st.integers(1, 4))
    def test_with_signs_no_draw_is_negative(self, seed, m):
        # |Gv|² ≥ (vᵀGv)²/|v|² = (vᵀGv)²/m, and a mean square is at least the squared mean.
        f = network(m, seed=seed % 7)
        assert (
            losses.relaxed_distortion(
                Manifold(f), draw(5, m, seed=seed), probes=1, generator=gen(seed)
            )
            > -1e-12
        )

    def test_scale_of_latent_and_data_space_do_not_matter(self):
        f, z = network(), draw(20, 2)
        one = losses.relaxed_distortion(Manifold(f), z, generator=gen())
        data = losses.relaxed_distortion(Manifold(lambda z: 100 * f(z)), z, generator=gen())
        latent = losses.relaxed_distortion(Manifold(lambda z: f(z / 7)), 7 * z, generator=gen())
        rotated = torch.linalg.qr(draw(8, 5, seed=4))[0]
        lifted = losses.relaxed_distortion(Manifold(lambda z: f(z) @ rotated.T), z, generator=gen())
        for other in (data, latent, lifted):
            assert torch.allclose(one, other, rtol=1e-9)

    @pytest.mark.parametrize("probe", ["signs", "gaussian"])
    def test_estimates_of_many_points_are_the_truth(self, probe):
        # E (wᵀGv)² = E|Gv|² = Tr G² and E vᵀGv = Tr G: with very many points under one constant
        # metric, both means are sharp and the quotient is the truth, by both estimators and with
        # either kind of probe.
        g = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        half = torch.linalg.cholesky(g)
        M = Manifold(lambda z: z @ half)
        z = draw(200_000, 2)
        value = losses.relaxed_distortion(M, z, probe=probe, independent=True, generator=gen())
        truth = 4 * (g @ g).trace() / g.trace() ** 2 - 2
        assert abs(value - truth) < 0.03
        shared = losses.relaxed_distortion(M, z, probes=1, probe=probe, generator=gen())
        assert abs(shared - truth) < 0.03

    def test_the_default_is_exact_up_to_two_dimensions_and_a_probe_beyond(self):
        for m in (1, 2, 3):
            f, z = network(m), draw(6, m)
            g = torch.stack(
                [j.T @ j for j in (torch.autograd.functional.jacobian(f, p) for p in z)]
            )
            exact = m * m * (g @ g).diagonal(dim1=1, dim2=2).sum(1).mean()
            exact = exact / g.diagonal(dim1=1, dim2=2).sum(1).mean() ** 2 - m
            value = losses.relaxed_distortion(Manifold(f), z, generator=gen())
            assert torch.allclose(value, exact, rtol=1e-10) == (m < 3)
            if m == 3:
                assert torch.equal(
                    value, losses.relaxed_distortion(Manifold(f), z, probes=1, generator=gen())
                )

    def test_gaussian_probes_can_fall_below_the_minimum_where_signs_cannot(self):
        M = Manifold(lambda z: torch.cat([z, z * 0], -1))
        values = [
            losses.relaxed_distortion(M, draw(4, 2), probe="gaussian", generator=gen(s))
            for s in range(20)
        ]
        assert min(values) < -0.1

    def test_mixup_draws_within_the_bounds_and_from_the_lines(self):
        z = draw(500, 1)
        mixed = losses.latent_mixup(z, 0.2, gen())
        low, high = z.min(), z.max()
        assert mixed.min() >= low - 0.2 * (high - low)
        assert mixed.max() <= high + 0.2 * (high - low)
        assert mixed.max() > high  # 0.2 beyond the data is reached
        line = torch.stack([torch.linspace(0, 1, 9), 2 * torch.linspace(0, 1, 9)], -1)
        mixed = losses.latent_mixup(line, 0.2, gen())
        assert torch.allclose(mixed[:, 1], 2 * mixed[:, 0])

    @pytest.mark.parametrize("options", [{"probes": 0}, {"probe": "other"}, {"mixup": -0.1}])
    def test_wrong_options_are_refused(self, options):
        with pytest.raises(OptionError):
            losses.relaxed_distortion(Manifold(network()), draw(4, 2), **options)


class TestConformalDistortion:
    def test_against_the_dense_formula(self):
        f, z = network(), draw(6, 2)
        g = dense_metric(f, "euclidean", z)
        expected = (
            4 * (g @ g).diagonal(dim1=1, dim2=2).sum(1) / g.diagonal(dim1=1, dim2=2).sum(1) ** 2
        ).mean() - 2
        assert torch.allclose(losses.conformal_distortion(Manifold(f), z), expected, rtol=1e-10)

    def test_stereographic_projection_is_conformal_and_no_scaled_isometry(self):
        M = Manifold(spaces.sphere)
        z = draw(30, 2)
        assert losses.conformal_distortion(M, z).abs() < 1e-12
        assert losses.relaxed_distortion(M, z, generator=gen()) > 0.05

    def test_no_probes_are_refused(self):
        with pytest.raises(OptionError):
            losses.conformal_distortion(Manifold(network()), draw(4, 2), probes=0)


class TestCurvature:
    @pytest.mark.parametrize("estimator", ["exact", "hutchinson", "paper"])
    def test_extrinsic_curvature_of_the_sphere_is_2m_over_r_squared(self, estimator):
        M = Manifold(lambda z: spaces.sphere(z, 2.0))
        value = losses.extrinsic_curvature(
            M, draw(3000, 2), estimator=estimator, probes=2, generator=gen()
        )
        assert abs(value - 1.0) < (1e-10 if estimator == "exact" else 0.1)

    def test_dense_definition(self):
        # Σ G⁻¹_ij Tr(∂_i T̂ ∂_j T̂), T̂ = J (JᵀJ)⁻¹ Jᵀ by autograd.functional, with H in G alone
        f, z = network(), draw(3, 2)
        M = Manifold(f, ambient.Constant(SPD))

        def projection(y):
            j = torch.autograd.functional.jacobian(lambda p: f(p[None])[0], y, create_graph=True)
            return j @ torch.linalg.inv(j.T @ j) @ j.T

        values = []
        for point, g in zip(z, dense_metric(f, "constant", z), strict=True):
            d = torch.autograd.functional.jacobian(projection, point)  # (5, 5, 2)
            c = torch.einsum("abi,baj->ij", d, d)
            values.append((torch.linalg.inv(g) * c).sum())
        actual = losses.extrinsic_curvature(M, z, estimator="exact")
        assert torch.allclose(actual, torch.stack(values).mean(), rtol=1e-8)

    def test_hutchinson_is_unbiased(self):
        M = Manifold(network())
        z = draw(1, 2).expand(4000, 2)
        exact = losses.extrinsic_curvature(M, z[:1], estimator="exact")
        draws = M.extrinsic_curvature(z, estimator="hutchinson", generator=gen())
        assert abs(draws.mean() - exact) < 4 * draws.std() / 4000**0.5
        assert draws.min() >= 0

    @pytest.mark.parametrize("metric", METRICS)
    def test_hutchinson_is_the_squared_norm_along_random_normals(self, metric):
        # 2 Tr(G⁻¹ B g⁻¹ B), B = n·∂²f, n = (I − J g⁻¹ Jᵀ) a, with the same signs a and all
        # derivatives by autograd
        f, z = network(3), draw(4, 3)
        a = losses.signs(z.new_empty(4, 1, 5), gen(2))[:, 0]
        values = []
        for point, probe, outer in zip(z, a, dense_metric(f, metric, z), strict=True):
            j = torch.autograd.functional.jacobian(f, point)
            g = j.T @ j
            n = probe - j @ torch.linalg.solve(g, j.T @ probe)
            b = torch.autograd.functional.hessian(lambda p, n=n: f(p) @ n, point)
            values.append(2 * (torch.linalg.solve(outer, b) @ torch.linalg.solve(g, b)).trace())
        M = Manifold(f, METRICS[metric])
        actual = losses.extrinsic_curvature(M, z, estimator="hutchinson", generator=gen(2))
        assert torch.allclose(actual, torch.stack(values).mean(), rtol=1e-9)

    def test_hutchinson_is_the_mean_of_its_probes(self):
        f, z = network(3), draw(4, 3)
        M, split = Manifold(f), Manifold(f, chunk_size=3)
        a, b = (losses.extrinsic_curvature(N, z, probes=5, generator=gen(1)) for N in (M, split))
        assert torch.allclose(a, b, rtol=1e-12)
        many = M.extrinsic_curvature(z, "hutchinson", samples=4000, generator=gen(1))
        assert torch.allclose(many, M.extrinsic_curvature(z), rtol=0.1)

    def test_the_default_is_exact_up_to_two_dimensions_and_an_estimate_beyond(self):
        for m in (1, 2, 3):
            M, z = Manifold(network(m)), draw(4, m)
            estimator = "exact" if m < 3 else "hutchinson"
            expected = losses.extrinsic_curvature(M, z, estimator=estimator, generator=gen(4))
            assert torch.equal(losses.extrinsic_curvature(M, z, generator=gen(4)), expected)

    @pytest.mark.parametrize("estimator", ["exact", "hutchinson", "paper"])
    @pytest.mark.parametrize("metric", METRICS)
    def test_the_decoded_data_come_from_the_same_pass(self, metric, estimator):
        f = torch.nn.Sequential(network(d=6), torch.nn.Unflatten(1, (2, 3)))
        H = None if metric == "euclidean" else ambient.Diagonal(draw(6, low=0.5, high=2.0))
        M, e = Manifold(f, H), network(5, 2, seed=1)
        x, parameters = draw(7, 5), [*e.parameters(), *f.parameters()]
        options = {"estimator": estimator, "ridge": 1e-4}
        both = losses.extrinsic_curvature(M, e(x), generator=gen(), decoded=True, **options)
        apart = losses.extrinsic_curvature(M, e(x), generator=gen(), **options), f(e(x))
        for ours, theirs in zip(both, apart, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-12)
        total = [value + data.square().mean() for value, data in (both, apart)]
        grads = [torch.autograd.grad(t, parameters) for t in total]
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*grads, strict=True))

    def test_coordinates_do_not_matter(self):
        # f∘h with h(z) = A z + (small cubic): the same surface in other coordinates.
        f = network()
        a = torch.tensor([[1.0, 0.4], [0.2, 0.8]], dtype=torch.float64)
        h = lambda z: z @ a.T + 0.05 * z**3  # noqa: E731
        z = draw(6, 2)
        for loss in (
            lambda M, z: losses.extrinsic_curvature(M, z, estimator="exact"),
            lambda M, z: losses.intrinsic_curvature(M, z),
            lambda M, z: losses.intrinsic_curvature(M, z, kind="ricci"),
            lambda M, z: losses.intrinsic_curvature(M, z, kind="scalar"),
        ):
            assert torch.allclose(
                loss(Manifold(f), h(z)), loss(Manifold(lambda z: f(h(z))), z), rtol=1e-8
            )

    @pytest.mark.parametrize(("kind", "truth"), [("riemann", 4.0), ("ricci", 2.0), ("scalar", 4.0)])
    def test_intrinsic_curvature_of_the_unit_sphere(self, kind, truth):
        # K = 1: four components ±K of R in an orthonormal frame; Ric = K g; S = 2K
        value = losses.intrinsic_curvature(Manifold(spaces.sphere), draw(9, 2), kind=kind)
        assert torch.allclose(value, torch.tensor(truth).double(), rtol=1e-9)

    @pytest.mark.parametrize(
        ("kind", "truth"), [("riemann", 12.0), ("ricci", 12.0), ("scalar", 36.0)]
    )
    def test_intrinsic_curvature_of_the_three_sphere(self, kind, truth):
        # ‖R‖² = 2 m (m − 1), ‖Ric‖² = m (m − 1)², S = m (m − 1)
        value = losses.intrinsic_curvature(Manifold(spaces.sphere), draw(4, 3), kind=kind)
        assert torch.allclose(value, torch.tensor(truth).double(), rtol=1e-9)

    def test_planes_and_a_share_of_the_points_have_the_exact_mean(self):
        f, z = network(5, 8), draw(6, 5)
        M = Manifold(f)
        weights = torch.tensor([1.0, 2, 1, 1, 0.5, 0.5]).double()
        exact = losses.intrinsic_curvature(M, z, estimator="exact", ridge=1e-3)
        g = gen()
        many = z.repeat(60, 1)  # of which half are looked at
        found = torch.stack(
            [losses.intrinsic_curvature(M, many, ridge=1e-3, generator=g) for _ in range(40)]
        ).detach()
        error = found.std() / 40**0.5
        assert (found.mean() - exact).abs() < 4 * error
        assert error < 0.06 * exact
        # Half of the points, all of whose subsets are equally likely.
        halves = torch.stack(
            [
                losses.intrinsic_curvature(M, z, estimator="exact", share=0.5, generator=g)
                for _ in range(100)
            ]
        ).detach()
        truth = losses.intrinsic_curvature(M, z, estimator="exact")
        assert (halves.mean() - truth).abs() < 4 * halves.std() / 100**0.5
        assert halves.std() > 0
        one = losses.intrinsic_curvature(M, z[:1], estimator="exact")
        own = losses.intrinsic_curvature(
            M, z[:1].expand(6, 5), estimator="exact", share=0.5, weights=weights, generator=g
        )
        assert torch.allclose(own, one)

    def test_planes_are_the_default_where_the_exact_value_is_expensive(self):
        for m, drawn in ((2, False), (4, False), (5, True)):
            M, z = Manifold(network(m, 8)), draw(6, m)
            a, b = (losses.intrinsic_curvature(M, z, generator=gen(seed)) for seed in (0, 1))
            assert bool(a != b) == drawn
        M = Manifold(lambda z: z.sin(), ambient=ambient.Custom(operator=lambda x, v: v))
        a, b = (losses.intrinsic_curvature(M, draw(1, 5), generator=gen(seed)) for seed in (0, 1))
        assert a == b
        z = draw(4, 5)
        for options in ({"kind": "ricci", "estimator": "planes"}, {"share": 0.0}, {"share": 2.0}):
            with pytest.raises(OptionError):
                losses.intrinsic_curvature(Manifold(network(5)), z, **options)

    def test_a_cylinder_bends_outside_and_not_inside(self):
        M = Manifold(lambda z: spaces.cylinder(z, 2.0))
        z = draw(9, 2)
        assert losses.intrinsic_curvature(M, z).abs() < 1e-20
        assert torch.allclose(
            losses.extrinsic_curvature(M, z, estimator="exact"), torch.tensor(0.5).double()
        )

    def test_units_are_inverse_lengths(self):
        f, z = network(), draw(6, 2)
        M, big = Manifold(f), Manifold(lambda z: 10 * f(z))
        one = losses.extrinsic_curvature(M, z, generator=gen())
        assert torch.allclose(
            losses.extrinsic_curvature(big, z, generator=gen()) * 100, one, rtol=1e-9
        )
        assert torch.allclose(
            losses.intrinsic_curvature(big, z) * 1e4, losses.intrinsic_curvature(M, z), rtol=1e-8
        )

    def test_gradients_reach_encoder_and_decoder(self):
        f, e = network(), network(5, 2, seed=1)
        z = e(draw(6, 5))
        for value in (
            losses.extrinsic_curvature(Manifold(f), z, generator=gen()),
            losses.intrinsic_curvature(Manifold(f), z),
            losses.relaxed_distortion(Manifold(f), z, generator=gen(), mixup=0.2),
            losses.conformal_distortion(Manifold(f), z),
        ):
            # The last bias moves the manifold and does not change its shape.
            parameters = [*e.parameters(), *list(f.parameters())[:-1]]
            grads = torch.autograd.grad(value, parameters, retain_graph=True)
            assert all(bool(g.isfinite().all()) and bool(g.any()) for g in grads)

    def test_ridge_bounds_what_a_singular_metric_would_end(self):
        M = Manifold(
            lambda z: torch.stack([z.sum(-1), z.sum(-1).square(), z[:, 0] * 0], -1)
        )  # rank 1
        z = draw(5, 2)
        with pytest.raises(SingularMetricError):
            losses.extrinsic_curvature(M, z, generator=gen())
        assert losses.extrinsic_curvature(M, z, generator=gen(), ridge=1e-4).isfinite()

    def test_ridge_changes_a_sound_metric_by_its_size(self):
        f, z = network(), draw(8, 2)
        a, b = (
            losses.extrinsic_curvature(Manifold(f), z, estimator="exact", ridge=r)
            for r in (0.0, 1e-9)
        )
        assert torch.allclose(a, b, rtol=1e-6)
        assert a != b
        with pytest.raises(OptionError):
            losses.extrinsic_curvature(Manifold(f), z, ridge=-1.0)

    def test_a_curve_has_no_intrinsic_curvature_to_ask_for(self):
        with pytest.raises(OptionError, match="dimension 2"):
            losses.intrinsic_curvature(Manifold(network(1)), draw(4, 1))
        with pytest.raises(OptionError, match="kind"):
            losses.intrinsic_curvature(Manifold(network()), draw(4, 2), kind="weyl")

    def test_relu_is_announced(self):
        with pytest.warns(SmoothnessWarning):
            losses.extrinsic_curvature(
                Manifold(network(act=torch.nn.ReLU)), draw(4, 2), ridge=1e-4, generator=gen()
            )


class TestNeighborhoodReconstruction:
    def setup_method(self):
        self.z, self.dz = draw(9, 2), draw(9, 2, seed=1)
        self.a, self.b = draw(5, 2, seed=2), draw(5, 2, 2, seed=3)

    def affine(self, z):
        return z @ self.a.T + 1

    def quadratic(self, z):
        return self.affine(z) + torch.einsum("dij,ki,kj->kd", self.b, z, z)

    def test_linear_is_exact_on_affine_decoders(self):
        z, other = self.z, self.z + self.dz
        loss = losses.neighborhood_reconstruction(
            Manifold(self.affine), z, other, self.affine(other), order=1
        )
        assert loss < 1e-24

    def test_quadratic_is_exact_on_quadratic_decoders_and_linear_is_not(self):
        z, other = self.z, self.z + self.dz
        x = self.quadratic(other)
        M = Manifold(self.quadratic)
        assert losses.neighborhood_reconstruction(M, z, other, x, order=2) < 1e-24
        # The error of NRAE-L is b(dz, dz).
        missed = torch.einsum("dij,ki,kj->kd", self.b, self.dz, self.dz).square().sum(1).mean()
        assert torch.allclose(losses.neighborhood_reconstruction(M, z, other, x, order=1), missed)

    @pytest.mark.parametrize("order", [1, 2])
    @pytest.mark.parametrize("metric", METRICS)
    def test_value_and_gradients_against_autograd_functional(self, order, metric):
        f, e = network(), network(5, 2, seed=1)
        x, other = draw(4, 5), draw(4, 5, seed=8)
        leaves = [*e.parameters(), *f.parameters()]
        M = Manifold(f, METRICS[metric])
        loss = losses.neighborhood_reconstruction(
            M, e(x), e(other), other, order=order, x=x, weight=3.0
        )
        actual = torch.autograd.grad(loss, leaves)
        total = 0.0
        for a, b in zip(x, other, strict=True):
            z, dz = e(a[None])[0], (e(b[None]) - e(a[None]))[0]
            g = lambda y: f(y[None])[0]  # noqa: E731
            j = torch.autograd.functional.jvp(g, z, dz, create_graph=True)[1]
            value = g(z)
            predicted = value + j
            if order == 2:

                def push(y, g=g, d=dz):
                    return torch.autograd.functional.jvp(g, y, d, create_graph=True)[1]

                bend = torch.autograd.functional.jvp(push, z, dz, create_graph=True)[1]
                predicted = predicted + bend / 2

            def h(p):
                constant = {"euclidean": torch.eye(5).double(), "constant": SPD}
                return constant.get(metric, torch.diag(1 + p**2))

            for weight, true, guess in ((1.0, a, value), (3.0, b, predicted)):
                total = total + weight * (true - guess) @ h(true) @ (true - guess)
        expected = torch.autograd.grad(total / 4, leaves)
        assert torch.allclose(loss, total / 4, rtol=1e-9)
        for a, b in zip(actual, expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-10)

    def test_the_centre_is_the_reconstruction(self):
        f = network()
        x = draw(9, 5)
        loss = losses.neighborhood_reconstruction(
            Manifold(f), self.z, self.z, x, order=2, x=x, weight=2.0
        )
        assert torch.allclose(loss, 3 * (f(self.z) - x).square().sum(1).mean())

    def test_a_distance_of_ones_own(self):
        f, x = network(), draw(9, 5)
        absolute = lambda predicted, true: (predicted - true).abs().sum(1)  # noqa: E731
        loss = losses.neighborhood_reconstruction(Manifold(f), self.z, self.z, x, distance=absolute)
        assert torch.allclose(loss, (f(self.z) - x).abs().sum(1).mean())

    def test_shapes_that_do_not_belong_together_are_refused(self):
        with pytest.raises(ShapeError):
            losses.neighborhood_reconstruction(Manifold(network()), self.z, self.z[:4], draw(9, 5))
        with pytest.raises(OptionError):
            losses.neighborhood_reconstruction(
                Manifold(network()), self.z, self.z, draw(9, 5), order=3
            )

    def test_relu_makes_the_quadratic_form_linear_and_is_announced(self):
        M = Manifold(network(act=torch.nn.ReLU))
        with pytest.warns(SmoothnessWarning):
            losses.neighborhood_reconstruction(M, self.z, self.z, draw(9, 5), order=2)


class TestTaylor:
    @pytest.mark.parametrize("grad", [True, False])
    def test_coefficients_are_the_derivatives_along_the_line(self, grad):
        f, z, v = network(), draw(6, 2), draw(6, 2, seed=1)
        with torch.set_grad_enabled(grad):
            value, first, second = Manifold(f).taylor(z, v)
        line = lambda t: f(z + t * v)  # noqa: E731
        t = torch.zeros((), dtype=torch.float64)
        one = torch.func.jacfwd(line)(t)
        two = torch.func.jacfwd(torch.func.jacfwd(line))(t)
        assert torch.allclose(value, f(z), rtol=1e-12)
        assert torch.allclose(first, one, rtol=1e-10)
        assert torch.allclose(second, two / 2, rtol=1e-9)
        assert second.requires_grad == grad

    def test_remainder_falls_with_the_order(self):
        # f(z + hv) − Taylor = O(h^{order + 1}): slope of the error, not its size
        f, z, v = network(), draw(6, 2), draw(6, 2, seed=1)
        M = Manifold(f)
        for order in (1, 2):
            errors = [(f(z + h * v) - sum(M.taylor(z, h * v, order))).norm() for h in (1e-2, 5e-3)]
            assert abs(torch.log2(errors[0] / errors[1]) - (order + 1)) < 0.05

    def test_batch_axes_and_data_shapes(self):
        image = torch.nn.Sequential(network(2, 6), torch.nn.Unflatten(1, (2, 3)))
        out = Manifold(image).taylor(draw(4, 3, 2), draw(3, 2, seed=1))
        assert [tuple(x.shape) for x in out] == [(4, 3, 6)] * 3


class TestContraction:
    def test_linear_encoders_by_the_formula(self):
        w, x = draw(2, 5), draw(40, 5, seed=1)
        value = losses.contraction(lambda x: x @ w.T, x)
        spread = lambda y: (y - y.mean(0)).square().sum()  # noqa: E731
        assert torch.allclose(value, w.square().sum() * spread(x) / spread(x @ w.T))
        assert value >= 1

    def test_probes_are_unbiased_and_scale_does_not_matter(self):
        e, x = network(5, 2).requires_grad_(False), draw(4000, 5)
        exact = losses.contraction(e, x)
        assert abs(losses.contraction(e, x, probes=1, generator=gen()) / exact - 1) < 0.03
        assert torch.allclose(losses.contraction(lambda x: 5 * e(x / 7), 7 * x), exact)

    def test_it_works_and_leaves_no_graph_without_gradients(self):
        e, x = network(5, 2), draw(6, 5)
        with torch.no_grad():
            value = losses.contraction(e, x)
        assert not value.requires_grad
        assert torch.allclose(value, losses.contraction(e, x))
        with pytest.raises(OptionError):
            losses.contraction(e, x, probes=0)


def test_float32_agrees_with_float64():
    f, z = network(), draw(20, 2)
    single = Manifold(f).to(dtype=torch.float32)
    for loss in (losses.relaxed_distortion, losses.extrinsic_curvature):
        # Signs are drawn as integers in every dtype, so the probes are the same.
        a, b = loss(Manifold(f), z, generator=gen()), loss(single, z.float(), generator=gen())
        assert torch.allclose(a.float(), b, rtol=1e-3)


def test_the_losses_need_neither_scikit_learn_nor_lightning():
    import subprocess
    import sys

    code = (
        "import sys, riemae\nfrom riemae.autoencoders import losses\n"
        "heavy = {'sklearn', 'lightning', 'pytorch_lightning', 'networkx', 'matplotlib'}; "
        "assert not heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
