"""Fisher-Rao: distances in closed form, both methods, heads, named families, and the limits of
parameters' ranges."""

import math
import threading

import pytest
import torch
from likelihoods import CASES, COVARIANCE, Z, classes, free, positive
from spaces import half_plane, rand
from torch import distributions as td
from torch.nn import functional as F
from torch.testing import assert_close

from riemae import Manifold, solvers
from riemae.ambient import Euclidean, FisherRao
from riemae.distributions.layout import parameters
from riemae.distributions.numerical import unvalidated
from riemae.exceptions import AmbientError, DecoderError, NonFiniteError
from riemae.testing import check_manifold


class TestTruths:
    """Decoders whose image is the whole space of parameters: distances are those of the family
    itself."""

    PAIRS = rand(torch.Generator().manual_seed(3), 2, 5, 2)

    def solve(self, decoder, truth, **options):
        z0, z1 = self.PAIRS
        M = Manifold(decoder)
        result = M.geodesic(z0, z1, rtol=1e-6)
        assert_close(result.length, truth(z0, z1), rtol=1e-5, atol=0.0)
        if options.get("known", True):
            assert_close(result.lower_bound, truth(z0, z1), rtol=1e-9, atol=1e-12)
        return M

    def test_normal_is_a_hyperbolic_plane(self):
        # ds² = (dμ² + 2dσ²)/σ²: √2 times the half plane of (μ/√2, σ), so K = −1/2.
        truth = lambda a, b: 2**0.5 * half_plane(*(self.normal(z) for z in (a, b)))  # noqa: E731
        M = self.solve(lambda z: td.Normal(z[:, :1], z[:, 1:].exp()), truth)
        assert_close(M.gaussian_curvature(Z), torch.full((4,), -0.5).double(), rtol=1e-9, atol=0.0)

    @staticmethod
    def normal(z):
        return torch.stack([z[:, 0] / 2**0.5, z[:, 1].exp()], -1)

    def test_log_normal_has_the_same_geometry(self):
        self.solve(
            lambda z: td.LogNormal(z[:, :1], z[:, 1:].exp()),
            lambda a, b: 2**0.5 * half_plane(self.normal(a), self.normal(b)),
        )

    def test_laplace_is_the_half_plane(self):
        point = lambda z: torch.stack([z[:, 0], z[:, 1].exp()], -1)  # noqa: E731
        M = self.solve(
            lambda z: td.Laplace(z[:, :1], z[:, 1:].exp()),
            lambda a, b: half_plane(point(a), point(b)),
        )
        assert_close(M.gaussian_curvature(Z), torch.full((4,), -1.0).double(), rtol=1e-9, atol=0.0)

    @pytest.mark.parametrize("family", [td.Categorical, td.OneHotCategorical])
    def test_categorical_is_a_sphere_of_radius_two(self, family):
        def logits(z):
            return F.pad(z, (0, 1))

        def truth(a, b):
            return 2 * (logits(a).softmax(-1) * logits(b).softmax(-1)).sqrt().sum(-1).acos()

        M = self.solve(lambda z: family(logits=logits(z)), truth)
        assert_close(M.gaussian_curvature(Z), torch.full((4,), 0.25).double(), rtol=1e-9, atol=0.0)

    # One variable per coordinate is flat, with the arc length ∫ √I dθ of each family.
    FLAT = {
        "bernoulli": (lambda z: td.Bernoulli(logits=z), lambda z: 2 * z.sigmoid().sqrt().asin()),
        "binomial": (lambda z: td.Binomial(9, logits=z), lambda z: 6 * z.sigmoid().sqrt().asin()),
        "poisson": (lambda z: td.Poisson(z.exp()), lambda z: 2 * (z / 2).exp()),
        "exponential": (lambda z: td.Exponential((2 * z).exp()), lambda z: 2 * z),
        # I(μ) = 1/(μ + μ²/r), ∫ dμ/√(μ + μ²/r) = 2 √r arsinh √(μ/r)
        "negative binomial": (
            lambda z: td.NegativeBinomial(3.0, logits=z - math.log(3.0)),  # μ = e^z
            lambda z: 2 * 3**0.5 * (z.exp() / 3).sqrt().asinh(),
        ),
        "gamma": (lambda z: td.Gamma(4.0, z.exp()), lambda z: 2 * z),
        "normal": (lambda z: td.Normal(z, 0.5), lambda z: 2 * z),
        "half-normal": (lambda z: td.HalfNormal(z.exp()), lambda z: 2**0.5 * z),
    }

    @pytest.mark.parametrize("name", FLAT)
    def test_flat_families(self, name):
        decoder, arc = self.FLAT[name]
        M = self.solve(decoder, lambda a, b: (arc(a) - arc(b)).norm(dim=-1))
        assert_close(M.gaussian_curvature(Z), torch.zeros(4).double(), rtol=0.0, atol=1e-9)

    def test_mahalanobis(self):
        decoder = lambda z: td.MultivariateNormal(F.pad(z, (0, 1)), COVARIANCE)  # noqa: E731
        inverse = COVARIANCE.inverse()[:2, :2]
        # The third coordinate stays 0 along the decoder's plane: straight lines there.
        truth = lambda a, b: torch.einsum("ki,ij,kj->k", a - b, inverse, a - b).sqrt()  # noqa: E731
        self.solve(decoder, truth)

    def test_circles_know_the_short_way_round(self):
        M = Manifold(lambda z: td.VonMises(torch.atan2(z[:, 1:], z[:, :1]), 2.0))
        turn = lambda t: torch.tensor([[math.cos(t), math.sin(t)]], dtype=torch.float64)  # noqa: E731
        radius = float(
            Manifold(lambda z: td.VonMises(z, 2.0)).metric(torch.zeros(1, 1).double()).sqrt()
        )
        assert_close(
            M.as_space().ambient_distance(turn(3.0), turn(-3.0)),
            torch.tensor([(2 * math.pi - 6) * radius], dtype=torch.float64),
        )


class TestFixedParameters:
    """A parameter that does not depend on z is taken as fixed.

    A parameter that autograd connects to z is taken as varying.
    """

    FIXED = {
        "normal": lambda z, c: td.Normal(free(z), 0.3 + c),
        "normal, mean": lambda z, c: td.Normal(0.3 + c, positive(z)),
        "laplace": lambda z, c: td.Laplace(free(z), 0.3 + c),
        "gamma": lambda z, c: td.Gamma(2 + c, positive(z)),
        "negative binomial": lambda z, c: td.NegativeBinomial(2 + c, logits=free(z)),
        "von mises": lambda z, c: td.VonMises(free(z), 2 + c),
        "multivariate": lambda z, c: td.MultivariateNormal(
            free(z), scale_tril=torch.eye(3).to(z) + c[..., None]
        ),
    }

    @pytest.mark.parametrize("name", FIXED)
    def test_both_agree(self, name):
        make = self.FIXED[name]
        fast = Manifold(lambda z: make(z, torch.zeros(len(z), 1).to(z)))
        general = Manifold(lambda z: make(z, 0 * z[:, :1]))
        assert_close(fast.metric(Z), general.metric(Z), rtol=1e-10, atol=1e-12)
        assert fast.ambient.has_features
        assert not general.ambient.has_features
        assert_close(fast.scalar_curvature(Z), general.scalar_curvature(Z), rtol=1e-7, atol=1e-9)
        pair = (Z[0], Z[1])
        assert_close(
            fast.distance(*pair, rtol=1e-6), general.distance(*pair, rtol=1e-6), rtol=2e-6, atol=0.0
        )

    def test_a_learned_constant_has_a_gradient(self):
        scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        M = Manifold(lambda z: td.Normal(free(z), scale))
        d = M.distance(Z[0], Z[1])
        d.backward()
        assert M.ambient.has_features
        assert_close(scale.grad, -d.detach() / scale.detach())  # d ∝ 1/σ


class TestHeads:
    BERNOULLI, NORMAL = (staticmethod(CASES[name].decoder) for name in ("bernoulli", "normal"))

    @pytest.mark.parametrize(
        "join",
        [lambda a, b: (a, b), lambda a, b: [a, b], lambda a, b: {"gate": a, "size": b}],
        ids=["tuple", "list", "dict"],
    )
    def test_information_adds_up(self, join):
        M = Manifold(lambda z: join(self.BERNOULLI(z), self.NORMAL(z)))
        parts = [Manifold(f) for f in (self.BERNOULLI, self.NORMAL)]
        assert_close(M.metric(Z), sum(part.metric(Z) for part in parts))
        squared = [part.as_space().ambient_distance(Z[:2], Z[2:]) ** 2 for part in parts]
        assert_close(M.as_space().ambient_distance(Z[:2], Z[2:]), sum(squared).sqrt())
        check_manifold(M, Z)

    def test_heads_with_features_have_a_joint_feature_map(self):
        M = Manifold(lambda z: {"a": self.BERNOULLI(z), "b": td.Poisson(positive(z))})
        M.metric(Z)
        assert M.ambient.has_features

    def test_distributions_come_back_as_they_were(self):
        M = Manifold(
            lambda z: {"gate": self.BERNOULLI(z), "size": td.Independent(self.NORMAL(z), 1)}
        )
        found = M.distribution(Z.expand(5, 4, 2))
        assert list(found) == ["gate", "size"]
        assert found["gate"].batch_shape == (5, 4, 3)
        assert found["size"].batch_shape == (5, 4)
        assert_close(found["size"].mean[0], free(Z))
        assert_close(found["gate"].logits[0], 2 * free(Z))

    def test_decode_returns_parameters_and_jacobian_their_derivative(self):
        M = Manifold(lambda z: td.Normal(free(z), positive(z)))
        assert_close(M.decode(Z), torch.cat([free(Z), positive(Z)], -1))
        expected = torch.autograd.functional.jacobian(
            lambda z: torch.cat([free(z), positive(z)], -1)[0], Z[:1]
        )
        assert_close(M.jacobian(Z[0]), expected[:, 0])
        assert M.jacobian(Z).shape == (4, 6, 2)

    def test_one_parameter_keeps_its_shape(self):
        image = lambda z: td.Independent(td.Bernoulli(logits=classes(z)[:, None]), 3)  # noqa: E731
        assert Manifold(image).decode(Z.expand(5, 4, 2)).shape == (5, 4, 1, 3, 3)

    def test_tensors_have_no_distribution(self):
        with pytest.raises(DecoderError, match="returns torch distributions.*returns tensors"):
            Manifold(free).distribution(Z)

    def test_heads_of_different_batches_are_refused(self):
        with pytest.raises(DecoderError, match="one row per point"):
            Manifold(lambda z: (td.Normal(z, 1.0), td.Normal(torch.zeros(7, 2).to(z), 1.0))).metric(
                Z
            )

    def test_structure_must_not_depend_on_the_point(self):
        M = Manifold(
            lambda z: td.Normal(z, 1.0) if float(z.detach().sum()) < 50 else td.Laplace(z, 1.0)
        )
        M.metric(Z)
        with pytest.raises(DecoderError, match="same structure"):
            M.decode(100 + Z)


class TestTensors:
    """The same family, named, on a decoder that returns its parameters."""

    SAME = {
        "bernoulli": (FisherRao("bernoulli"), lambda z: 2 * free(z), "bernoulli"),
        "categorical": (FisherRao("categorical"), classes, "categorical"),
        "poisson": (FisherRao("poisson"), positive, "poisson"),
        "normal": (FisherRao("normal"), lambda z: torch.stack([free(z), positive(z)], 1), "normal"),
        "normal, scale": (FisherRao("normal", scale=0.4), free, "normal, fixed scale"),
        "normal, mean": (FisherRao("normal", loc=torch.ones(3)), positive, "normal, fixed mean"),
        "binomial": (FisherRao("binomial", total_count=7), free, "binomial"),
        "negative binomial": (
            FisherRao("negative_binomial", total_count=3.0),
            free,
            "negative binomial",
        ),
        "gamma": (
            FisherRao("gamma"),
            lambda z: torch.cat([positive(z), free(z).exp()], -1),
            "gamma",
        ),
        "dirichlet": (
            FisherRao("dirichlet"),
            lambda z: torch.stack([positive(z), free(z).exp()], -1),
            "dirichlet",
        ),
        "multinomial": (FisherRao("multinomial", total_count=5), classes, "multinomial"),
    }

    @pytest.mark.parametrize("name", SAME)
    def test_named_family(self, name):
        ambient, decoder, case = self.SAME[name]
        M, reference = Manifold(decoder, ambient), Manifold(CASES[case].decoder)
        assert_close(M.metric(Z), reference.metric(Z))
        assert M.ambient.has_features == reference.ambient.has_features
        expected = reference.as_space().ambient_distance(Z[:2], Z[2:])
        assert (M.as_space().ambient_distance(Z[:2], Z[2:]) is None) == (expected is None)
        if expected is not None:
            assert_close(M.as_space().ambient_distance(Z[:2], Z[2:]), expected)

    @pytest.mark.parametrize(
        ("make", "match"),
        [
            (lambda: FisherRao("bernouli"), "a family among bernoulli, beta.*'bernouli'"),
            (lambda: FisherRao("multivariate_normal"), "a family among"),
            (lambda: FisherRao("normal", sigma=1.0), "constants among loc, scale.*sigma"),
            (lambda: FisherRao("poisson", rate=1.0), "constants among rate"),
            (lambda: FisherRao(scale=1.0), "a family together with constants"),
            (lambda: FisherRao("binomial"), "the constant total_count"),
            (lambda: Manifold(free, FisherRao()).metric(Z), "returns torch distributions.*tensor"),
            (lambda: Manifold(free, FisherRao("normal")).metric(Z), "2 n numbers"),
            (
                lambda: Manifold(CASES["poisson"].decoder, FisherRao("normal")).metric(Z),
                "normal, got poisson",
            ),
            (lambda: FisherRao().product(Z, Z), "a family"),
            (lambda: FisherRao("gamma").features(Z), "a feature map"),
        ],
    )
    def test_refused(self, make, match):
        with pytest.raises(AmbientError, match=match):
            make()

    def test_names_and_constants_show(self):
        assert repr(FisherRao("normal", scale=0.5)) == "FisherRao(normal, scale=0.5)"
        M = Manifold(CASES["poisson"].decoder)
        M.metric(Z)
        assert repr(M.ambient) == "FisherRao(poisson)"

    def test_constants_follow_the_dtype(self):
        M = Manifold(free, FisherRao("normal", scale=torch.full((3,), 0.4))).to(dtype=torch.float32)
        assert M.metric(Z.float()).dtype == torch.float32


class TestDefault:
    def test_distributions_are_measured_by_fisher_rao(self):
        decoder = CASES["gamma"].decoder
        assert_close(Manifold(decoder).metric(Z), Manifold(decoder, FisherRao()).metric(Z))

    def test_euclidean_on_request_measures_parameters(self):
        M = Manifold(CASES["normal"].decoder, Euclidean())
        j = M.jacobian(Z)
        assert_close(M.metric(Z), j.mT @ j)

    def test_a_metric_serves_several_decoders(self):
        metric = FisherRao()
        for name in ("poisson", "normal", "bernoulli"):
            decoder = CASES[name].decoder
            assert_close(Manifold(decoder, metric).metric(Z), Manifold(decoder).metric(Z))

    def test_before_first_use_the_solver_may_ask(self):
        M = Manifold(CASES["poisson"].decoder)
        assert_close(
            solvers.geodesic(M, Z[0], Z[1]).length,
            Manifold(CASES["poisson"].decoder).distance(Z[0], Z[1]),
        )

    def test_inside_vmap_nobody_can_look(self):
        decoder = CASES["normal, fixed scale"].decoder
        inside = torch.func.vmap(Manifold(decoder).metric)(Z[:, None])
        assert_close(inside[:, 0], Manifold(decoder).metric(Z))

    def test_in_inference_mode(self):
        decoder = CASES["normal"].decoder
        with torch.inference_mode():
            inside = Manifold(decoder).metric(Z)
        assert_close(inside.clone(), Manifold(decoder).metric(Z))


class TestValidation:
    def test_torch_checks_parameters_at_first_use(self, monkeypatch):
        monkeypatch.setattr(
            td.Distribution, "_validate_args", True
        )  # torch.compile, once used, switches it off
        with pytest.raises(DecoderError, match="rate"):
            Manifold(lambda z: td.Poisson(z - 10)).metric(Z)

    def test_later_a_parameter_out_of_range_is_no_number(self):
        M = Manifold(lambda z: td.Poisson(z.sum(-1, keepdim=True)))
        M.decode(1 + Z[:1].abs())
        with pytest.raises(NonFiniteError):
            M.metric(-1 - Z[:1].abs())

    @pytest.mark.parametrize("family", [td.Normal, td.Bernoulli])
    def test_a_decoder_may_insist_on_it(self, family):
        # Values cannot be read under vmap, so directions are taken one after the other.
        name = "logits" if family is td.Bernoulli else "loc"
        rest = {} if family is td.Bernoulli else {"scale": 0.5}
        insisting = Manifold(lambda z: family(**{name: free(z)}, **rest, validate_args=True))
        assert_close(
            insisting.metric(Z), Manifold(lambda z: family(**{name: free(z)}, **rest)).metric(Z)
        )

    def test_is_switched_on_again_whatever_happens_in_other_threads(self):
        before = td.Distribution._validate_args
        inside, leave = threading.Event(), threading.Event()

        def other():
            with unvalidated():
                inside.set()
                leave.wait(10)

        thread = threading.Thread(target=other)
        with unvalidated():
            thread.start()
            inside.wait(10)
        assert not td.Distribution._validate_args
        leave.set()
        thread.join(10)
        assert td.Distribution._validate_args == before


class TestEdges:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        "family", [td.Bernoulli, td.Geometric, lambda logits: td.Binomial(3, logits=logits)]
    )
    def test_certain_logits(self, family, dtype):
        z = torch.tensor([[-1e4], [-200.0], [0.0], [200.0], [1e4]], dtype=dtype)
        M = Manifold(lambda z: family(logits=z))
        g = M.metric(z)[:, 0, 0]
        p = z.double()[:, 0].sigmoid()
        truth = p * (1 - p) if family is not td.Geometric else 1 - p
        truth = 3 * truth if family not in (td.Bernoulli, td.Geometric) else truth
        assert_close(g.double(), truth, rtol=1e-5, atol=1e-30)
        # From nearly certain to nearly certain: the whole arc but its ends.
        ends = torch.tensor([[-12.0], [12.0]], dtype=dtype)
        result = M.geodesic(ends[:1], ends[1:])
        assert_close(result.length, result.lower_bound, rtol=2e-4, atol=0.0)

    def test_saturated_logits_keep_their_digits(self):
        # I = p(1 − p) = e^{−|l|} to 1e-16, where p itself has long been rounded to 1.
        z = torch.tensor([[-60.0], [60.0]], dtype=torch.float64)
        g = Manifold(lambda z: td.Bernoulli(logits=z)).metric(z)[:, 0, 0]
        assert_close(g, torch.full((2,), math.exp(-60), dtype=torch.float64), rtol=1e-12, atol=0.0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_certain_classes(self, dtype):
        z = torch.tensor([[500.0, 0.0], [0.0, 500.0], [-500.0, -500.0]], dtype=dtype)
        M = Manifold(lambda z: td.Categorical(logits=F.pad(z, (0, 1))))
        assert bool(M.metric(z).isfinite().all())
        # From one corner to another of the octant: a quarter of the circle of radius 2.
        assert_close(
            M.as_space().ambient_distance(z[:1], z[1:2]), torch.full((1,), math.pi, dtype=dtype)
        )

    @pytest.mark.parametrize("decoder", [
        lambda z: td.Bernoulli(probs=torch.cat([z, 1000 * (z - 2), 1000 * (z + 3)], -1).sigmoid()),
        lambda z: td.OneHotCategorical(probs=torch.cat([z, -z, 0 * z - 2000], -1).softmax(-1)),
        lambda z: td.Poisson(torch.cat([z.exp(), (1000 * (z - 2)).exp()], -1)),
        lambda z: td.NegativeBinomial(2.0, probs=torch.cat([z, 1000 * (z - 2)], -1).sigmoid()),
    ])  # fmt: skip
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_probabilities_and_rates_of_exactly_zero(self, decoder, dtype):
        z = torch.tensor([[-1.0], [0.8], [1.0]], dtype=dtype)
        M = Manifold(decoder)
        for x in (M.metric(z), M.christoffel(z), M.distance(z[:1], z[1:2], rtol=1e-3)):
            assert bool(x.isfinite().all())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
    @pytest.mark.parametrize("family", [td.Normal, td.Laplace, td.LogNormal])
    def test_scales(self, family, scale, dtype):
        z = Z[:2].to(dtype)
        b = {td.Laplace: 1.0}.get(family, 2.0)
        M = Manifold(lambda z: family(scale * z[:, :1], scale * z[:, 1:].exp()))
        sigma = z[:, 1].exp()
        truth = torch.stack([sigma**-2, torch.full_like(sigma, b)], -1).diag_embed()
        assert_close(M.metric(z), truth)
        assert bool(M.geodesic(z[:1], z[1:], rtol=1e-4).converged.all())
        fixed = Manifold(lambda z: family(scale * z, scale))
        assert_close(fixed.metric(z), M.metric(0 * z)[:, :1, :1] * torch.eye(2, dtype=dtype))

    @pytest.mark.parametrize("decoder", [
        lambda z: td.Normal(F.pad(z, (0, 9_998)), F.pad(z, (0, 9_998)).exp()),
        lambda z: td.Bernoulli(logits=F.pad(z, (0, 9_998))),
        lambda z: td.NegativeBinomial(2.0, logits=F.pad(z, (0, 9_998))),
        lambda z: td.Gamma(F.pad(z, (0, 9_998)).exp(), F.pad(z, (0, 9_998)).exp()),
    ])  # fmt: skip
    def test_ten_thousand_dimensions(self, decoder):
        small = Manifold(
            lambda z: decoder(z).__class__(
                **{n: v[:, :2] for n, v in parameters(decoder(z)).items()}
            )
        )
        z = Z[:2].float()
        M = Manifold(decoder)
        assert_close(M.metric(z), small.metric(z))  # the other variables do not move
        assert bool(M.geodesic(z[:1], z[1:], rtol=1e-3).converged.all())

    def test_float32_agrees_with_float64(self):
        for name, case in CASES.items():
            wide, narrow = (
                Manifold(case.decoder).metric(Z),
                Manifold(case.decoder).metric(Z.float()),
            )
            assert narrow.dtype == torch.float32
            assert_close(narrow.double(), wide, rtol=2e-4, atol=1e-5, msg=name)
