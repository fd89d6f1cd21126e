"""Counts: negative binomials and zero inflation against sums over counts, series, integrals, and
their limits."""

import functools
import math

import numpy as np
import pytest
import torch
from count_distributions import (
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from scipy.special import digamma
from scipy.stats import nbinom
from spaces import rand
from torch import distributions as td
from torch.testing import assert_close

from riemae import Manifold
from riemae.ambient import FisherRao
from riemae.distributions.dispersion import (
    _AT_ONCE,
    excess_information,
    log_odds_excess,
    ratio_by_quadrature,
)
from riemae.exceptions import AmbientError, ApproximationWarning, NonFiniteError
from riemae.solvers import Newton
from riemae.testing import check_manifold

F64 = torch.float64


def tensor(*values, dtype=F64):
    return torch.tensor(values, dtype=dtype)


def excess(mu, theta, dtype=F64):
    mu, theta = torch.as_tensor(mu, dtype=F64), torch.as_tensor(theta, dtype=F64)
    return excess_information((mu.log() - theta.log()).to(dtype), theta.log().to(dtype))


def by_scores(mu, theta, top):
    """``E (∂ log p/∂θ)²`` as a sum over counts: scipy's probabilities, and the score by digamma
    functions."""
    y = np.arange(top, dtype=float)
    score = digamma(y + theta) - digamma(theta) - np.log1p(mu / theta) + (mu - y) / (mu + theta)
    return float((nbinom.pmf(y, theta, theta / (mu + theta)) * score**2).sum())


def by_series(mu, theta, terms=4000):
    """``Σ pᵏ B(k, θ)/k``, k ≥ 2, by logarithms of gamma functions.

    For p that leave a short series.
    """
    k = np.arange(2, terms, dtype=float)
    lgamma = np.vectorize(math.lgamma)
    beta = lgamma(k) + math.lgamma(theta) - lgamma(k + theta)
    return float(np.exp(k * math.log(mu / (mu + theta)) + beta - np.log(k)).sum())


def net(outputs, features, dtype=F64, seed=0):
    """A small network whose outputs are moderate, as so many tensors ``(k, features)``."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(2, 16, generator=generator, dtype=F64).to(dtype)
    last = torch.randn(16, outputs * features, generator=generator, dtype=F64).to(dtype) / 3
    return lambda z: (torch.tanh(z @ first) @ last).split(features, -1)


def by_sum(decoder, z, top=400):
    """The metric at one point: ``Σ_y p(y) s sᵀ`` over counts, of every variable, with scores by
    autograd."""
    y = torch.arange(top, dtype=F64).view(-1, 1, 1)
    with torch.no_grad():
        chance = decoder(z).log_prob(y).exp()
        assert_close(chance.sum(0), torch.ones_like(chance[0]), rtol=1e-7, atol=0.0)
    columns = [
        torch.func.jvp(lambda z: decoder(z).log_prob(y), (z,), (e[None],))[1]
        for e in torch.eye(2, dtype=F64)
    ]
    scores = torch.stack(columns, -1)  # (top, 1, D, 2)
    return torch.einsum("ykd,ykdi,ykdj->kij", chance, scores, scores)


NET_1, NET_2, NET_3 = (net(count, 4) for count in (1, 2, 3))


def negative_binomial(z, outputs=NET_2):
    mu, theta = outputs(z)
    return NegativeBinomial(mu=mu.exp(), theta=theta.exp())


def zero_inflated(z, outputs=NET_3):
    mu, theta, gate = outputs(z)
    return ZeroInflatedNegativeBinomial(mu=mu.exp(), theta=theta.exp(), zi_logits=gate)


def zero_inflated_poisson(z, outputs=NET_2):
    rate, gate = outputs(z)
    return ZeroInflatedPoisson(rate.exp(), gate_logits=gate)


def torch_negative_binomial(z, outputs=NET_2):
    logits, count = outputs(z)
    return td.NegativeBinomial(count.exp(), logits=logits)


def inflated_with_one_dispersion(z, outputs=NET_2):
    mu, gate = outputs(z)
    return ZeroInflatedNegativeBinomial(
        mu=mu.exp(), theta=torch.full((4,), 2.0).to(z), zi_logits=gate
    )


def inflated_with_one_mean(z, outputs=NET_2):
    theta, gate = outputs(z)
    return ZeroInflatedNegativeBinomial(
        mu=torch.full((4,), 2.0).to(z), theta=theta.exp(), zi_logits=gate
    )


def one_mean(z, outputs=NET_1):
    (theta,) = outputs(z)
    return NegativeBinomial(mu=torch.full((4,), 3.0).to(z), theta=theta.exp())


DECODERS = {
    "negative binomial": negative_binomial,
    "zero-inflated negative binomial": zero_inflated,
    "zero-inflated poisson": zero_inflated_poisson,
    "torch's negative binomial": torch_negative_binomial,
    "zero-inflated, one dispersion": inflated_with_one_dispersion,
    "zero-inflated, one mean": inflated_with_one_mean,
    "one mean": one_mean,
}
Z = rand(torch.Generator().manual_seed(5), 6, 2)


class TestDispersion:
    @pytest.mark.parametrize(
        ("mu", "theta", "top"),
        [
            (0.3, 0.2, 400),
            (1.0, 1.0, 400),
            (5.0, 0.5, 4000),
            (20.0, 3.0, 4000),
            (100.0, 10.0, 8000),
            (2.0, 40.0, 400),
        ],
    )
    def test_is_the_variance_of_the_score(self, mu, theta, top):
        assert float(excess(mu, theta)) == pytest.approx(by_scores(mu, theta, top), rel=1e-8)

    @pytest.mark.parametrize(
        ("mu", "theta"),
        [
            (1e-6, 1e-4),
            (1e-6, 1.0),
            (1e-6, 1e6),
            (1e-3, 1e-3),
            (1.0, 1e6),
            (30.0, 1e3),
            (1e3, 1e3),
            (1e6, 1e6),
        ],
    )
    def test_is_the_series(self, mu, theta):
        assert float(excess(mu, theta)) == pytest.approx(by_series(mu, theta), rel=1e-8)

    # By mpmath with 50 digits: ∫ e^{−θt} [−log(1 − ps) − ps]/s dt, s = 1 − e^{−t}, in pieces.
    MPMATH = {
        (1e-06, 0.0001): 0.49335804199794927,
        (1e-06, 0.01): 4.9498334160801917e-7,
        (1e-06, 1): 2.4999961111159025e-13,
        (1e-06, 30.0): 5.9737152611841418e-19,
        (1e-06, 1000000.0): 4.9999949999949996e-37,
        (0.01, 0.0001): 36239.567563983678,
        (0.01, 0.01): 19.077158939458843,
        (0.01, 1): 2.4615849029880542e-5,
        (0.01, 30.0): 5.9698180516313041e-11,
        (0.01, 1000000.0): 4.9999949000051684e-29,
        (1, 0.0001): 82063.001757340889,
        (1, 0.01): 352.06536984888949,
        (1, 1): 0.082240526465012506,
        (1, 30.0): 5.6020669062929639e-7,
        (1, 1000000.0): 4.9999850000366666e-25,
        (50.0, 0.0001): 121137.61510223207,
        (50.0, 0.01): 716.60502754547925,
        (50.0, 1): 0.56697662539585439,
        (50.0, 30.0): 0.00021573043023511334,
        (50.0, 1000000.0): 1.2498737595839361e-21,
        (1000000.0, 0.0001): 219993.62128951153,
        (1000000.0, 0.01): 1582.6151502147951,
        (1000000.0, 1): 0.64492025134332622,
        (1000000.0, 30.0): 0.00056169254323659504,
        (1000000.0, 1000000.0): 1.2499995833330208e-13,
    }

    @pytest.mark.parametrize(("mu", "theta"), MPMATH)
    def test_is_the_integral(self, mu, theta):
        assert float(excess(mu, theta)) == pytest.approx(self.MPMATH[mu, theta], rel=1e-8)

    def test_sweep(self):
        # Everywhere against the same integral with half the step, one point at a time.
        rng = np.random.default_rng(0)
        mu, theta = np.exp(rng.uniform(-14, 14, 300)), np.exp(rng.uniform(-9.3, 14, 300))
        found = excess(mu, theta).numpy()
        for i in range(300):
            x, y = np.array([[math.log(mu[i] / theta[i])]]), np.array([[math.log(theta[i])]])
            p = 1 / (1 + theta[i] / mu[i])
            truth = ratio_by_quadrature(x, y)[0, 0] * p**2 / (2 * theta[i] * (theta[i] + 1))
            assert found[i] == pytest.approx(truth, rel=1e-8), (mu[i], theta[i])

    @pytest.mark.parametrize("mu", [0.1, 1.0, 100.0, 1e4])
    def test_limits(self, mu):
        # Poisson: I_θ → μ²/(2θ⁴). Without dispersion at θ → 0: Σ pᵏ/(k θ) = (−log(1 − p) − p)/θ.
        assert float(excess(mu, 1e10)) == pytest.approx(mu**2 / 2e40, rel=1e-4)
        theta = 1e-9
        p = mu / (mu + theta)
        assert float(excess(mu, theta)) == pytest.approx(
            (-math.log(theta / (mu + theta)) - p) / theta, rel=1e-6
        )

    def test_beyond_the_table_is_no_number(self):
        found = excess_information(tensor(50.1, 49.9, math.nan, -60.0), tensor(0.0, 0.0, 0.0, 0.0))
        assert found.isnan().tolist() == [True, False, True, False]

    @pytest.mark.parametrize("axis", [0, 1])
    def test_derivatives(self, axis):
        # Against central differences of the quadrature itself, in logarithms.
        x, y = torch.linspace(-12, 25, 40, dtype=F64), torch.linspace(-8, 12, 40, dtype=F64).flip(0)
        h = 1e-3

        def truth(shift):
            a, b = (x + shift, y) if axis == 0 else (x, y + shift)
            log_ratio = [
                math.log(ratio_by_quadrature(np.array([[float(i)]]), np.array([[float(j)]]))[0, 0])
                for i, j in zip(a, b, strict=True)
            ]
            size = (
                2 * torch.nn.functional.logsigmoid(a)
                - b
                - torch.nn.functional.softplus(b)
                - math.log(2)
            )
            return size + torch.tensor(log_ratio, dtype=F64)

        f = (
            (lambda t: excess_information(x + t, y).log())
            if axis == 0
            else (lambda t: excess_information(x, y + t).log())
        )
        t, one = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
        first = lambda t: torch.func.jvp(f, (t,), (one,))[1]  # noqa: E731
        assert_close(first(t), (truth(h) - truth(-h)) / (2 * h), rtol=1e-5, atol=1e-6)
        second = (truth(10 * h) - 2 * truth(0) + truth(-10 * h)) / (10 * h) ** 2
        assert_close(torch.func.jvp(first, (t,), (one,))[1], second, rtol=1e-4, atol=1e-4)

    def test_gradcheck(self):
        x, y = (
            tensor(-3.0, 0.1, 4.0, 12.0).requires_grad_(),
            tensor(0.3, -2.0, 5.0, 1.0).requires_grad_(),
        )
        assert torch.autograd.gradcheck(
            excess_information, (x, y), rtol=1e-5, check_forward_ad=True
        )
        assert torch.autograd.gradgradcheck(excess_information, (x, y), rtol=1e-4)

    @pytest.mark.parametrize("count", [7, _AT_ONCE + 1])
    def test_all_modes_agree(self, count):
        x, y = torch.linspace(-9, 9, count, dtype=F64), torch.linspace(8, -4, count, dtype=F64)
        for f in (lambda x: excess_information(x, y), lambda y: excess_information(x, y)):
            ones = torch.ones_like(x)
            forward = lambda x, f=f, v=ones: torch.func.jvp(f, (x,), (v,))[1]  # noqa: E731
            reverse = torch.func.grad(lambda x, f=f: f(x).sum())
            assert_close(reverse(x), forward(x), rtol=1e-10, atol=0.0)
            second = torch.func.jvp(forward, (x,), (ones,))[1]
            assert_close(torch.func.jvp(reverse, (x,), (ones,))[1], second, rtol=1e-9, atol=1e-14)
            assert_close(
                torch.func.grad(lambda x, f=reverse: f(x).sum())(x), second, rtol=1e-9, atol=1e-14
            )

    def test_vmap_and_compositions(self):
        x, y = rand(torch.Generator().manual_seed(0), 2, 5, 3)
        assert_close(torch.func.vmap(excess_information)(x, y), excess_information(x, y))
        assert_close(
            torch.func.vmap(excess_information, (1, None))(x, y[:, 0]).T,
            excess_information(x, y[:, :1]),
        )
        hessians = torch.func.vmap(torch.func.hessian(lambda x: excess_information(x, y[0]).sum()))(
            x
        )
        assert_close(
            hessians[2], torch.func.hessian(lambda x: excess_information(x, y[0]).sum())(x[2])
        )

    @pytest.mark.parametrize("seed", range(5))
    def test_float32(self, seed):
        x, y = 8 * rand(torch.Generator().manual_seed(seed), 2, 50) - 2
        found = excess_information(x.float(), y.float())
        assert found.dtype == torch.float32
        assert_close(
            found.double(),
            excess_information(x.float().double(), y.float().double()),
            rtol=2e-7,
            atol=0.0,
        )

    def test_a_graph_takes_a_bounded_memory(self):
        x, held = torch.zeros(50_000, dtype=F64, requires_grad=True), {}
        keep = lambda t: held.setdefault(t.data_ptr(), t) if t.numel() > 1000 else t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            excess_information(x, x.detach()).sum().backward()
        assert sum(t.numel() * t.element_size() for t in held.values()) < 1000 * x.numel()

    def test_log_odds_excess(self):
        for odds in (-30.0, -5.0, -2.01, -1.99, 0.0, 5.0, 40.0):
            p = 1 / (1 + math.exp(-odds))
            series = (
                sum(p**k / k for k in range(2, 4000))
                if odds < 2
                else math.log1p(math.exp(odds)) - p
            )
            assert float(log_odds_excess(tensor(odds))) == pytest.approx(series, rel=1e-12)


@functools.cache
def manifold(name):
    """One for all tests: it looks at its decoder once."""
    return Manifold(DECODERS[name])


@pytest.mark.parametrize("name", DECODERS)
class TestMetric:
    def test_is_the_sum_over_counts(self, name):
        for i in range(2):
            z = 0.7 * Z[i : i + 1]
            assert_close(
                manifold(name).metric(z),
                by_sum(DECODERS[name], z, 3000),
                rtol=1e-6,
                atol=1e-9,
            )

    def test_obeys_the_laws(self, name):
        check_manifold(manifold(name), Z[:2])

    def test_float32(self, name):
        outputs = {
            3: net(3, 4, torch.float32),
            2: net(2, 4, torch.float32),
            1: net(1, 4, torch.float32),
        }
        count = len(DECODERS[name].__defaults__[0](Z[:1]))
        low = Manifold(lambda z: DECODERS[name](z, outputs[count])).metric(Z.float())
        assert low.dtype == torch.float32
        assert_close(low.double(), manifold(name).metric(Z), rtol=1e-4, atol=1e-5)

    def test_short_geodesics_minimise(self, name):
        M = manifold(name)
        v = 0.05 * rand(torch.Generator().manual_seed(2), 1, 2)
        result = M.geodesic(Z[:1], M.exp(Z[:1], v, rtol=1e-6), rtol=1e-5)
        assert_close(result.length, M.norm(Z[:1], v), rtol=2e-5, atol=0.0)

    def test_default_geodesic(self, name):
        M = manifold(name)
        result = M.geodesic(Z[0], Z[1])
        assert bool(result.converged)
        straight = M.length(
            torch.stack([Z[0] + t * (Z[1] - Z[0]) for t in torch.linspace(0, 1, 65, dtype=F64)])
        )
        assert 0 < float(result.length) <= float(straight) * (1 + 1e-4)

    def test_rebuilt_distributions_have_the_same_density(self, name):
        y = torch.arange(4.0, dtype=F64)
        distribution = manifold(name).distribution(Z)
        assert_close(distribution.log_prob(y), DECODERS[name](Z).log_prob(y))


class TestRelations:
    def test_parametrisations_agree(self):
        counts = Manifold(torch_negative_binomial)

        def by_mean(z):
            d = torch_negative_binomial(z)
            return NegativeBinomial(mu=d.mean, theta=d.total_count)

        assert_close(counts.metric(Z), Manifold(by_mean).metric(Z), rtol=1e-9, atol=1e-12)
        assert_close(
            counts.distance(Z[0], Z[1]), Manifold(by_mean).distance(Z[0], Z[1]), rtol=1e-4, atol=0.0
        )

    def test_a_fixed_dispersion_is_flat(self):
        # φ = 2 √θ arsinh √(μ/θ)
        M = Manifold(lambda z: NegativeBinomial(mu=z.exp(), theta=torch.full((2,), 3.0).to(z)))
        assert M.ambient.has_features
        arc = lambda z: 2 * 3**0.5 * (z.exp() / 3).sqrt().asinh()  # noqa: E731
        assert_close(M.distance(Z[0], Z[1]), (arc(Z[0]) - arc(Z[1])).norm(), rtol=1e-4, atol=0.0)

    @pytest.mark.parametrize("gate", [-60.0, -40.0])
    def test_without_inflation_it_is_the_count_itself(self, gate):
        mu, theta = net(2, 4)(Z)
        plain = Manifold(negative_binomial).metric(Z)

        def inflated(z):
            d = negative_binomial(z)
            return ZeroInflatedNegativeBinomial(
                mu=d.mu, theta=d.theta, zi_logits=torch.full_like(d.mu, gate)
            )

        assert_close(Manifold(inflated).metric(Z), plain, rtol=1e-9, atol=0.0)
        assert mu.shape == theta.shape

    def test_large_dispersion_is_poisson(self):
        nb = Manifold(
            lambda z: ZeroInflatedNegativeBinomial(
                mu=z.exp(), theta=torch.tensor(1e8).to(z), zi_logits=-z
            )
        )
        poisson = Manifold(lambda z: ZeroInflatedPoisson(z.exp(), gate_logits=-z))
        assert_close(nb.metric(Z), poisson.metric(Z), rtol=1e-6, atol=0.0)

    def test_all_zeros_say_nothing_of_the_count(self):
        M = Manifold(lambda z: ZeroInflatedPoisson(z[:, :1].exp(), gate_logits=40 + z[:, 1:]))
        assert float(M.metric(Z[:1]).abs().max()) < 1e-12

    @pytest.mark.parametrize("dtype", [F64, torch.float32])
    def test_geodesics_of_many_genes_take_gradients_alone(self, dtype):
        parameters = net(2, 80, dtype)

        def decoder(z):
            mu, gate = parameters(z)
            theta = torch.tensor(2.0).to(z)
            return ZeroInflatedNegativeBinomial(mu=mu.exp(), theta=theta, zi_logits=gate)

        M = Manifold(decoder)
        z0, z1 = (rand(torch.Generator().manual_seed(k), 3, 2).to(dtype) for k in (5, 6))
        said = M.explain(z0)
        assert said.modes["contraction"] == "Taylor mode"
        r = M.geodesic(z0, z1, rtol=1e-3)
        assert r.index.tolist() == [-1] * 3  # no Hessian was made
        exact = M.geodesic(z0, z1, rtol=1e-5 if dtype == F64 else 1e-4, solver=Newton())
        assert_close(r.length, exact.length, rtol=1e-3, atol=0.0)

    def test_poisson_of_another_package(self):
        M = Manifold(lambda z: Poisson(z.exp(), scale=z.exp()))
        assert_close(M.metric(Z), torch.diag_embed(Z.exp()))
        assert M.ambient.has_features

    @pytest.mark.parametrize(
        ("family", "decoder"),
        [
            ("negative_binomial_mean", negative_binomial),
            ("zero_inflated_negative_binomial", zero_inflated),
            ("zero_inflated_poisson", zero_inflated_poisson),
        ],
    )
    def test_tensors_name_the_family(self, family, decoder):
        outputs = decoder.__defaults__[0]

        def tensors(z):
            *positive, last = outputs(z)
            return torch.cat(
                [*(v.exp() for v in positive), last.exp() if family.endswith("mean") else last], -1
            )

        M = Manifold(tensors, ambient=FisherRao(family))
        assert_close(M.metric(Z), Manifold(decoder).metric(Z))
        assert bool(M.geodesic(Z[0], Z[1]).converged)

    @pytest.mark.parametrize("seed", range(5))
    def test_extremes_are_finite_and_positive(self, seed):
        generator = torch.Generator().manual_seed(seed)
        mu, theta = (
            (lo + (hi - lo) * torch.rand(40, generator=generator, dtype=F64))
            for lo, hi in ((-13, 13), (-9, 13))
        )
        gate = 8 * torch.randn(40, generator=generator, dtype=F64)

        def decoder(z):
            a, b, c = z.split(1, -1)
            return ZeroInflatedNegativeBinomial(
                mu=(mu + a).exp(), theta=(theta + b).exp(), zi_logits=gate + c
            )

        g = Manifold(decoder).metric(torch.zeros(1, 3, dtype=F64))
        assert bool(g.isfinite().all())
        assert bool((torch.linalg.eigvalsh(g) > 0).all())

    def test_a_ratio_beyond_the_table_is_announced(self):
        M = Manifold(lambda z: td.NegativeBinomial((-z).exp(), logits=60 + z))
        with pytest.raises((NonFiniteError, AmbientError), match="NaN"):
            M.metric(Z)

    def test_many_variables(self):
        outputs = net(2, 728)
        M = Manifold(lambda z: negative_binomial(z, outputs))
        g = M.metric(Z)
        assert g.shape == (6, 2, 2)
        assert_close(g[3], M.metric(Z[3]), rtol=1e-12, atol=0.0)

    def test_a_changed_density_is_another_family(self):
        class Tempered(NegativeBinomial):
            def log_prob(self, value):
                return super().log_prob(value) / 2

            def sample(self, shape=()):
                return torch.poisson(td.Gamma(self.theta, self.theta / self.mu).sample(shape))

        M = Manifold(lambda z: Tempered(mu=z.exp(), theta=z.exp()))
        with pytest.warns(ApproximationWarning, match="Tempered"):
            M.metric(Z[:1])


class TestScvi:
    """The real package, where it is installed."""

    @pytest.fixture(scope="class", params=["nb", "zinb"])
    def decoder(self, request):
        scvi = pytest.importorskip("scvi")
        anndata = pytest.importorskip("anndata")
        torch.manual_seed(0)
        counts = np.random.default_rng(0).poisson(3.0, (64, 6)).astype("float32")
        data = anndata.AnnData(counts)
        scvi.model.SCVI.setup_anndata(data)
        model = scvi.model.SCVI(
            data,
            n_latent=2,
            n_hidden=16,
            n_layers=1,
            gene_likelihood=request.param,
            dispersion="gene-cell",
        )
        module = model.module.double().eval()

        def decode(z):
            library = torch.full((len(z), 1), math.log(20.0), dtype=z.dtype)
            batch = torch.zeros(len(z), 1, dtype=torch.long)
            return module.generative(z=z, library=library, batch_index=batch)["px"]

        return decode

    @pytest.mark.filterwarnings("ignore")
    def test_metric_is_the_sum_over_counts(self, decoder):
        M = Manifold(decoder)
        assert_close(M.metric(Z[:1]), by_sum(decoder, Z[:1], 3000), rtol=1e-4, atol=1e-7)

    @pytest.mark.filterwarnings("ignore")
    def test_default_geodesic(self, decoder):
        result = Manifold(decoder).geodesic(Z[0], Z[1])
        assert bool(result.converged)
        assert float(result.length) > 0
