"""Families: every Fisher information against the covariance of the score, the divergence, series
and quadratures."""

import math
from decimal import Decimal, getcontext
from functools import cache

import numpy as np
import pytest
import torch
from likelihoods import CASES, Z, free, positive
from scipy.integrate import quad, quad_vec
from scipy.stats import beta, nbinom
from scipy.stats import f as snedecor
from scipy.stats import t as student
from spaces import rand
from torch import distributions as td
from torch.testing import assert_close

from riemae import Manifold
from riemae.ambient import FisherRao
from riemae.distributions import numerical as information
from riemae.distributions.closed_form import NAMED
from riemae.distributions.numerical import Divergence, Score
from riemae.distributions.special import (
    arsinh_exp,
    degrees_information,
    dispersion_information,
    resultant_slope,
    tilted_variance,
    trigamma_excess,
)
from riemae.exceptions import AmbientError, ApproximationWarning, DecoderError, FallbackWarning
from riemae.testing import check_manifold


@cache
def manifold(name):
    """One for all tests: it looks at its decoder once."""
    return Manifold(CASES[name].decoder)


def scores(decoder, z, samples):
    """``∂ log p(y)/∂z`` for draws y at one point: by forward mode on torch's own densities."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = decoder(z).sample((samples,))
    log_prob = lambda z: decoder(z).log_prob(y).flatten(1).sum(1)  # noqa: E731
    return torch.stack(
        [torch.func.jvp(log_prob, (z,), (e[None],))[1] for e in torch.eye(2).double()], -1
    )


@pytest.mark.filterwarnings(
    "ignore:Singular sample detected"
)  # torch's Wishart, of matrices that rounding unsettles
@pytest.mark.parametrize("name", CASES)
class TestFisherInformation:
    def test_is_the_covariance_of_the_score(self, name):
        decoder, z, n = CASES[name].decoder, Z[:1], 20_000
        s = scores(decoder, z, n)
        products = s[:, :, None] * s[:, None, :]
        mean, error = products.mean(0), products.std(0) / n**0.5
        metric = manifold(name).metric(z)[0]
        assert bool((error < 0.1 * mean.trace()).all())  # sharp enough to say something
        assert bool(((metric - mean).abs() <= 4 * error).all())

    def test_obeys_the_laws(self, name):
        M = manifold(name)
        check_manifold(M, Z[:2])
        assert M.ambient.has_features == CASES[name].has_features

    def test_rebuilt_distributions_have_the_same_density(self, name):
        decoder = CASES[name].decoder
        with torch.random.fork_rng():
            torch.manual_seed(0)
            y = decoder(Z).sample()
        assert_close(manifold(name).distribution(Z).log_prob(y), decoder(Z).log_prob(y))


class TestDivergence:
    @pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.divergence])
    def test_metric_is_its_hessian(self, name):
        case, z = CASES[name], Z[1:2]
        divergence = lambda y: td.kl_divergence(case.decoder(z), case.decoder(y)).sum()  # noqa: E731
        hessian = torch.autograd.functional.hessian(divergence, z)[0, :, 0]
        assert_close(manifold(name).metric(z)[0], hessian, rtol=1e-8, atol=1e-10)


# One case a formula: variants by other parameters, and classes that share a formula, are left out.
SAME = (
    "one-hot",
    "chi2",
    "inverse gamma",
    "log-normal",
    "logit-normal",
    "half-cauchy",
    "cauchy",
    "independent",
)
EVERY = [
    name for name in CASES if "probs" not in name and name not in SAME and "covariance" not in name
]

# The distance is the length of that geodesic, whatever the family: with features, without, and by
# quadrature.
DISTANCES = {"bernoulli", "normal", "student", "multivariate normal, fixed"}


@pytest.mark.parametrize("name", EVERY)
class TestEveryQuantity:
    def test_short_geodesics_minimise(self, name):
        M = manifold(name)
        z, v = Z[:1], 0.05 * rand(torch.Generator().manual_seed(2), 1, 2)
        end = M.exp(z, v, rtol=1e-6)
        result = M.geodesic(z, end, rtol=1e-5)
        assert_close(result.length, M.norm(z, v), rtol=2e-5, atol=0.0)
        if not bool(result.lower_bound.isnan().all()):
            assert bool((result.lower_bound <= result.length * (1 + 1e-9)).all())
        if name in DISTANCES:
            assert_close(M.distance(z, end, rtol=1e-5), result.length)

    def test_curvature_and_distortion(self, name):
        M = manifold(name)
        # S = 2K on a surface, by two roads: R_0110/det G and the trace of Ricci.
        assert_close(
            M.scalar_curvature(Z[:1]), 2 * M.gaussian_curvature(Z[:1]), rtol=1e-8, atol=1e-10
        )
        assert bool((M.extrinsic_curvature(Z[:1]) > 0).all())
        g = M.metric(Z)
        assert_close(M.distortion(Z), (g - torch.eye(2).double()).square().sum((1, 2)).mean())


class TestSpecialFunctions:
    def test_dispersion_information_is_the_series(self):
        # ψ'(r) − E ψ'(r + Y) = Σ_j P(Y > j)/(r + j)², as ψ'(r) − ψ'(r + y) = Σ_{j<y} (r + j)^{−2}

        for r, logits in ((0.05, 2.0), (0.5, -3.0), (2.0, 0.0), (30.0, 1.0), (4.0, 5.0)):
            j = torch.arange(200_000).double()
            tail = torch.as_tensor(nbinom.sf(j.numpy(), r, 1 / (1 + math.exp(logits))))
            truth = (tail / (r + j) ** 2).sum()
            found = dispersion_information(
                *(torch.tensor([x], dtype=torch.float64) for x in (r, logits))
            )[0]
            assert_close(found, truth, rtol=1e-9, atol=0.0)

    @pytest.mark.parametrize("kappa", [1e-3, 0.5, 20.0, 149.0, 151.0, 1e4, 1e6])
    def test_slope_of_the_mean_resultant_length(self, kappa):
        # A' = Var(cos θ) = E u² − (E u)², u = 1 − cos θ = 2 sin² θ/2: no cancellation, by scipy's
        # quadrature.

        width = min(math.pi, 14 / kappa**0.5)

        def moment(n):
            def integrand(t):
                u = 2 * math.sin(t / 2) ** 2
                return u**n * math.exp(-kappa * u)

            return quad(integrand, 0, width, epsabs=0, epsrel=1e-12)[0]

        truth = moment(2) / moment(0) - (moment(1) / moment(0)) ** 2
        found = float(resultant_slope(torch.tensor(kappa, dtype=torch.float64)))
        assert found == pytest.approx(truth, rel=1e-9)

    def test_tilted_variance(self):
        # 1/l² − 1/(4 sinh² l/2) in 50 digits

        getcontext().prec = 50
        logits = [-30.0, -1.5, -1.0, -0.999, -1e-3, 1e-8, 0.3, 0.9999, 1.0001, 4.0, 700.0]
        truth = []
        for x in map(Decimal, logits):
            sinh = ((x / 2).exp() - (-x / 2).exp()) / 2
            truth.append(float(1 / x**2 - 1 / (4 * sinh**2)))
        found = tilted_variance(torch.tensor(logits, dtype=torch.float64))
        assert_close(found, torch.tensor(truth, dtype=torch.float64), rtol=1e-12, atol=0.0)
        assert float(tilted_variance(torch.zeros(()).double())) == pytest.approx(1 / 12)

    def test_arsinh_exp(self):
        a = torch.tensor([-800.0, -30.0, -1.0, 0.0, 1.0, 300.0, 5e3], dtype=torch.float64)
        assert_close(arsinh_exp(a)[1:-1], a[1:-1].exp().asinh())
        assert_close(arsinh_exp(a)[-1], a[-1] + math.log(2))


class Unknown(td.StudentT):
    """Student's t as a class that nobody knows: with a density of its own, it counts as another
    family."""

    def log_prob(self, value):
        return super().log_prob(value)


def expected(log_density, point, low, high):
    """``E s sᵀ`` by scipy's quadrature, with scores by central differences of the log density."""
    point, h = np.array(point), 1e-5
    steps = h * np.eye(len(point))
    parameters = np.concatenate([point[None], point + steps, point - steps]).T

    def weighted(x):
        here, *around = log_density(x, *parameters)
        after, before = np.split(np.array(around), 2)
        score = (after - before) / (2 * h)
        return math.exp(here) * np.outer(score, score)

    return sum(
        quad_vec(weighted, a, b, epsabs=1e-10, limit=400)[0] for a, b in ((low, 1.0), (1.0, high))
    )


class TestTails:
    """Student's t, Fisher-Snedecor, Wishart and LKJ."""

    @pytest.mark.parametrize(
        "point",
        [(0.7, 0.0, 1.0), (2.0, 1.0, 0.5), (5.0, -1.0, 2.0), (9.5, 0.3, 1.0), (30.0, 0.0, 3.0)],
    )
    def test_student_is_the_covariance_of_the_score(self, point):
        density = lambda x, *p: student.logpdf(x, p[0], p[1], p[2])  # noqa: E731
        truth = torch.as_tensor(expected(density, point, -math.inf, math.inf))
        M = Manifold(lambda z: td.StudentT(*z.split(1, -1)))
        assert_close(
            M.metric(torch.tensor([point], dtype=torch.float64))[0], truth, rtol=1e-4, atol=1e-7
        )

    @pytest.mark.parametrize(
        "point", [(3.0, 5.0), (1.5, 4.0), (8.0, 2.5), (20.0, 20.0), (2.0, 60.0)]
    )
    def test_fisher_snedecor_is_the_covariance_of_the_score(self, point):
        density = lambda x, *p: snedecor.logpdf(x, *p)  # noqa: E731
        truth = torch.as_tensor(expected(density, point, 0.0, math.inf))
        M = Manifold(lambda z: td.FisherSnedecor(*z.split(1, -1)))
        assert_close(
            M.metric(torch.tensor([point], dtype=torch.float64))[0], truth, rtol=1e-3, atol=1e-8
        )

    @pytest.mark.parametrize(("dim", "eta"), [(2, 1.5), (3, 2.0), (4, 2.5), (6, 7.0), (8, 1.7)])
    def test_lkj_is_the_variance_of_its_statistic(self, dim, eta):
        # The density is ∝ Π L_ii^{2η}, L_ii² = 1 − y with y ~ Beta(i/2, η + (d − 1 − i)/2), rows i
        # independent.
        def variance(a, b):
            moment = lambda n: beta(a, b).expect(lambda y: math.log1p(-min(y, 1 - 1e-16)) ** n)  # noqa: E731
            return moment(2) - moment(1) ** 2

        truth = sum(variance(i / 2, eta + (dim - 1 - i) / 2) for i in range(1, dim))
        found = Manifold(lambda z: td.LKJCholesky(dim, z[:, 0])).metric(
            torch.tensor([[eta]], dtype=torch.float64)
        )
        assert float(found) == pytest.approx(truth, rel=1e-5)

    @pytest.mark.parametrize("df", [3.5, 6.0, 20.0])
    def test_wishart_is_its_gamma_in_one_dimension(self, df):
        # Wishart(ν, v) in one dimension is Gamma(ν/2, 1/(2v)).
        z = torch.tensor([[df, 0.7]], dtype=torch.float64)
        M = Manifold(lambda z: td.Wishart(z[:, 0], scale_tril=z[:, 1, None, None]))
        gamma = Manifold(lambda z: td.Gamma(z[:, 0] / 2, 1 / (2 * z[:, 1].square())))
        assert_close(M.metric(z), gamma.metric(z), rtol=1e-8, atol=0.0)

    def test_degrees_keep_their_digits(self):
        # By mpmath with 40 digits
        truth = {
            0.01: 9916.796678241028,
            3.0: 0.01691147786855766,
            23.9: 9.248137228034244e-06,
            24.1: 8.955482915722801e-06,
            100.0: 3.3738345280847354e-08,
            1e6: 3.4999870000395e-24,
        }
        found = degrees_information(torch.tensor(list(truth), dtype=torch.float64))
        assert_close(
            found, torch.tensor(list(truth.values()), dtype=torch.float64), rtol=1e-8, atol=0.0
        )

    def test_trigamma_excess_is_continuous_and_right(self):
        # ψ'(x) − 1/x = 1/(2x²) + 1/(6x³) − …; at 1: π²/6 − 1
        x = torch.tensor([1.0, 19.999999, 20.000001, 1e8], dtype=torch.float64)
        found = trigamma_excess(x)
        assert_close(found[0], torch.tensor(math.pi**2 / 6 - 1, dtype=torch.float64))
        assert_close(found[1], found[2], rtol=1e-6, atol=0.0)
        assert_close(
            found[3], torch.tensor(0.5e-16 + 1e-24 / 6, dtype=torch.float64), rtol=1e-12, atol=0.0
        )

    def test_student_with_fixed_degrees_is_a_hyperbolic_plane(self):
        # K = −1/b with b = 2ν/(ν + 3)
        M = Manifold(lambda z: td.StudentT(5.0, z[:, :1], z[:, 1:].exp()))
        assert_close(
            M.gaussian_curvature(Z),
            torch.full((4,), -0.8, dtype=torch.float64),
            rtol=1e-8,
            atol=0.0,
        )
        r = M.geodesic(Z[0], Z[1], rtol=1e-6)
        assert_close(r.length, r.lower_bound, rtol=1e-5, atol=0.0)

    @pytest.mark.parametrize(
        "name", ["student", "fisher-snedecor", "wishart", "lkj", "student, fixed scale"]
    )
    def test_float32_and_default_geodesics(self, name):
        M = manifold(name)
        assert_close(M.metric(Z.float()).double(), M.metric(Z), rtol=1e-3, atol=1e-4)
        assert bool(M.geodesic(Z[0], Z[1]).converged)

    def test_student_in_tensors(self):
        z = torch.tensor([[4.0, 0.5, 2.0]], dtype=torch.float64)
        named = Manifold(lambda z: z, ambient=FisherRao("student_t")).metric(z)
        assert_close(named, Manifold(lambda z: td.StudentT(*z.split(1, -1))).metric(z))


@pytest.mark.filterwarnings("ignore::riemae.exceptions.ApproximationWarning")
class TestDraws:
    def test_chunks_of_draws_estimate_the_same(self, monkeypatch):
        M = Manifold(lambda z: Unknown(5.0, 0.0, positive(z)))
        whole = M.metric(Z)
        monkeypatch.setattr(information, "_NUMBERS_AT_ONCE", 3 * 500)
        assert_close(M.metric(Z), whole, rtol=0.2, atol=0.05)

    def test_chunks_of_points_change_nothing(self, monkeypatch):
        M = Manifold(lambda z: Unknown(5.0, 0.0, positive(z)))
        whole = M.metric(Z)
        monkeypatch.setattr(
            information, "_NUMBERS_AT_ONCE", 3 * 4096
        )  # one point at a time, with all its draws
        assert_close(M.metric(Z), whole, rtol=1e-12, atol=0.0)

    def test_what_is_held_is_bounded(self, monkeypatch):
        monkeypatch.setattr(information, "_NUMBERS_AT_ONCE", 5000)
        sizes = []
        sample = td.StudentT.sample
        monkeypatch.setattr(
            Unknown,
            "sample",
            lambda self, shape: sizes.append(shape[0]) or sample(self, shape),
            False,
        )
        Manifold(lambda z: Unknown(5.0, 0.0, positive(z).repeat(1, 20))).metric(Z[:2])
        assert max(sizes) * 60 <= 5000

    def test_a_hopeless_graph_is_refused(self, monkeypatch):
        M = Manifold(lambda z: Unknown(5.0, 0.0, positive(z)))
        M.metric(Z)
        monkeypatch.setattr(information, "_GRAPH_BYTES", 10**6)
        M.metric(Z)
        with pytest.raises(AmbientError, match=r"Unknown.*GiB.*random numbers.*register_family"):
            M.metric(Z.clone().requires_grad_())

    def test_a_hopeless_time_is_refused(self, monkeypatch):
        monkeypatch.setattr(information, "_NUMBERS", 1e4)
        with pytest.raises(AmbientError, match=r"points of 3 numbers.*random numbers.*chunk_size"):
            Manifold(lambda z: Unknown(5.0, 0.0, positive(z))).metric(Z)

    @pytest.mark.parametrize("missing", ["log_prob", "sample"])
    def test_without_density_or_draws(self, missing):
        class Broken(td.Distribution):
            arg_constraints = {"scale": td.constraints.positive}

            def __init__(self, scale, validate_args=None):
                self.scale = scale
                super().__init__(scale.shape, validate_args=validate_args)

            if missing == "sample":

                def log_prob(self, value):
                    return -value / self.scale

            else:

                def rsample(self, shape=()):
                    return torch.ones(shape + self.scale.shape)

        with pytest.raises(DecoderError, match="Broken: NotImplementedError.*register_family"):
            Manifold(lambda z: Broken(positive(z))).metric(Z)


@pytest.mark.filterwarnings("ignore::riemae.exceptions.FallbackWarning")
class TestOtherFamilies:
    def test_divergence_is_announced(self):
        with pytest.warns(FallbackWarning, match="Gumbel.*divergence"):
            Manifold(lambda z: td.Gumbel(free(z), positive(z))).metric(Z)

    def test_gumbel(self):
        # I = 1/β² [1, γ − 1; ·, π²/6 + (1 − γ)²] with Euler's γ
        M = Manifold(lambda z: td.Gumbel(z[:, :1], z[:, 1:].exp()))
        euler, beta = 0.5772156649015329, Z[:, 1].exp()
        block = torch.tensor(
            [[1.0, euler - 1], [euler - 1, math.pi**2 / 6 + (1 - euler) ** 2]], dtype=torch.float64
        )
        stretch = torch.stack([1 / beta, torch.ones_like(beta)], -1)  # dβ = β dz
        assert_close(
            M.metric(Z), block * stretch[:, :, None] * stretch[:, None, :], rtol=1e-9, atol=1e-12
        )
        check_manifold(M, Z)

    def test_low_rank_normal_is_the_dense_one(self):
        diagonal = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
        low = Manifold(
            lambda z: td.LowRankMultivariateNormal(
                free(z), positive(z)[..., None], diagonal.expand(len(z), 3)
            )
        )
        dense = lambda z: positive(z)[..., None] @ positive(z)[:, None] + diagonal.diag_embed()  # noqa: E731
        assert_close(
            low.metric(Z), Manifold(lambda z: td.MultivariateNormal(free(z), dense(z))).metric(Z)
        )

    def test_weibull(self):
        # Weibull(λ, k): I = [k²/λ², −(1 − γ)/λ; ·, (π²/6 + (1 − γ)²)/k²], by its quantiles
        M = Manifold(lambda z: td.Weibull(z[:, :1].exp(), z[:, 1:].exp()))
        euler, k = 0.5772156649015329, Z[:, 1].exp()  # dλ = λ dz₀, dk = k dz₁
        mixed, last = -k * (1 - euler), torch.full_like(k, math.pi**2 / 6 + (1 - euler) ** 2)
        truth = torch.stack([torch.stack([k**2, mixed], -1), torch.stack([mixed, last], -1)], -1)
        assert_close(M.metric(Z), truth, rtol=1e-8, atol=1e-10)
        assert_close(M.metric(Z.float()).double(), truth, rtol=1e-3, atol=1e-3)
        check_manifold(M, Z)

    def test_geodesics_from_quantiles(self):
        M = Manifold(lambda z: td.Weibull(z.exp(), 2.0))  # d = 2 |Δz|
        assert_close(
            M.distance(Z[0], Z[1], rtol=1e-6), 2 * (Z[0] - Z[1]).norm(), rtol=1e-6, atol=0.0
        )

    def test_quantiles_are_announced(self):
        with pytest.warns(FallbackWarning, match="Weibull.*quantiles"):
            Manifold(lambda z: td.Weibull(positive(z), 2.0)).metric(Z)

    def test_score_is_announced_and_near(self):
        # Student's t: I_σσ = 2ν/((ν + 3) σ²)
        M = Manifold(lambda z: Unknown(5.0, 0.0, z.exp()))
        with pytest.warns(ApproximationWarning, match="Unknown.*draws of the score"):
            found = M.metric(Z[:2, :1])[:, 0, 0]
        assert_close(found, torch.full((2,), 1.25, dtype=torch.float64), rtol=0.08, atol=0.0)

    @pytest.mark.filterwarnings("ignore::riemae.exceptions.ApproximationWarning")
    def test_score_of_a_point_does_not_depend_on_its_neighbours(self):
        M = Manifold(lambda z: Unknown(5.0, 0.0, positive(z)))
        assert_close(M.metric(Z)[2], M.metric(Z[2]), rtol=1e-12, atol=0.0)
        assert_close(torch.func.vmap(M.metric)(Z[:, None])[:, 0], M.metric(Z), rtol=1e-12, atol=0.0)

    def test_no_global_randomness_is_touched(self):
        before = torch.random.get_rng_state()
        with pytest.warns(ApproximationWarning):
            Manifold(lambda z: Unknown(5.0, 0.0, positive(z))).metric(Z)
        assert torch.equal(before, torch.random.get_rng_state())

    @pytest.mark.parametrize("road", [Divergence, Score])
    def test_both_and_their_derivatives_agree_with_a_known_family(self, road):
        known, p = NAMED["poisson"], {"rate": torch.tensor([[0.7], [5.0]], dtype=torch.float64)}
        other, v = road("poisson", td.Poisson, ("rate",)), {"rate": torch.ones(2, 1).double()}
        tolerances = {"rtol": 1e-10 if road is Divergence else 0.2, "atol": 0.0}
        pairs = [
            torch.func.jvp(lambda q, f=f: f.product(q, v)["rate"], (p,), (v,))
            for f in (other, known)
        ]
        for found, truth in zip(*pairs, strict=True):
            assert_close(found, truth, **tolerances)

    @pytest.mark.parametrize(
        ("decoder", "match"),
        [
            (lambda z: td.Uniform(free(z) - 5, free(z) + 5), "Uniform.*bounds that depend on z"),
            (lambda z: td.Binomial(5 + 0 * z, logits=z), "total_count that depend on z"),
        ],
    )
    def test_moving_supports_are_refused(self, decoder, match):
        with pytest.raises(AmbientError, match=match):
            Manifold(decoder).metric(Z)

    def test_a_fixed_support_is_not(self):
        # Pareto: I_αα = 1/α²
        M = Manifold(lambda z: td.Pareto(1.0, z.exp()))
        assert_close(M.metric(Z[:1])[0], torch.eye(2).double())

    @pytest.mark.parametrize(
        "decoder",
        [
            lambda z: td.MixtureSameFamily(td.Categorical(logits=z), td.Normal(z, 1.0)),
            lambda z: td.TransformedDistribution(
                td.Normal(0 * z, 1.0), [td.AffineTransform(z, 1.0)]
            ),
        ],
        ids=["mixture", "moving transform"],
    )
    def test_without_parameters_of_its_own(self, decoder):
        with pytest.raises(DecoderError, match="one row of parameters per point"):
            Manifold(decoder).metric(Z)

    @pytest.mark.filterwarnings("ignore::riemae.exceptions.ApproximationWarning")
    def test_a_subclass_with_a_density_of_its_own_is_another_family(self):
        class Tempered(td.Poisson):
            def log_prob(self, value):
                return super().log_prob(value) / 2

        M = Manifold(lambda z: Tempered(z.exp()))
        M.metric(Z)
        assert repr(M.ambient) == "FisherRao(Tempered)"
