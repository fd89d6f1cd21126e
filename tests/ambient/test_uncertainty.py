"""Uncertain decoders: expected metrics, ensembles, dropout masks, posterior samples."""

import copy

import pytest
import torch
from spaces import paraboloid, rand, sphere
from torch import distributions as td
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from riemae import Ensemble, Manifold
from riemae.ambient import Averaged, Custom, Diagonal, Euclidean, Expected, FisherRao
from riemae.distributions.layout import Members
from riemae.exceptions import AmbientError, DecoderError, DTypeError, OptionError, ShapeError
from riemae.testing import check_manifold

Z = rand(torch.Generator().manual_seed(0), 4, 2)
A, B = rand(torch.Generator().manual_seed(1), 2, 2, 3)
ENSEMBLE = (sphere, lambda z: 2 * sphere(z), paraboloid)


def mean(z):
    return (z @ A).tanh()


def spread(z):
    return F.softplus(z @ B)


def factor(z):
    return torch.diag_embed(spread(z)) + z[:, :1, None] * torch.ones(3, 3).to(z).tril(-1)


def network(seed=0, dropout=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(2, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)]
        return nn.Sequential(*layers).double().eval()


class TestExpected:
    @pytest.mark.parametrize(
        "decoder",
        [
            lambda z: td.Normal(mean(z), spread(z)),
            lambda z: td.Independent(td.Normal(mean(z), spread(z)), 1),
            lambda z: td.Normal(mean(z), 0.3),
            lambda z: td.Laplace(mean(z), spread(z)),
            lambda z: td.MultivariateNormal(mean(z), scale_tril=factor(z)),
        ],
        ids=["normal", "independent", "fixed scale", "laplace", "multivariate"],
    )
    def test_is_the_mean_metric_of_samples(self, decoder):
        # torch's rsample is μ(z) + σ(z) ε: the same ε at every z, by the same seed.
        def sample(z, n=20_000):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return decoder(z).rsample((n,)).flatten(1)

        z = Z[:1]
        j = torch.stack(
            [
                torch.func.jvp(sample, (z,), (e[None],))[1]
                for e in torch.eye(2, dtype=torch.float64)
            ],
            -1,
        )
        g = j.mT @ j
        error = g.std(0) / len(g) ** 0.5
        metric = Manifold(decoder, Expected()).metric(z)[0]
        assert bool((error < 0.1 * metric.trace()).all())
        assert bool(((metric - g.mean(0)).abs() <= 4 * error + 1e-12).all())

    def test_is_the_map_of_mean_and_scale(self):
        M = Manifold(lambda z: td.Normal(mean(z), spread(z)), Expected())
        other = Manifold(lambda z: torch.cat([mean(z), spread(z)], -1))
        check_manifold(M, Z)
        assert_close(M.metric(Z), other.metric(Z))
        assert_close(M.distance(Z[0], Z[1]), other.distance(Z[0], Z[1]))
        assert_close(M.scalar_curvature(Z), other.scalar_curvature(Z))
        assert_close(
            M.as_space().ambient_distance(Z[:2], Z[2:]),
            other.as_space().ambient_distance(Z[:2], Z[2:]),
        )

    def test_geodesics_avoid_uncertainty(self):
        # A flat plane with a hill of uncertainty between two points.
        hill = lambda z: 2 * (-4 * z.square().sum(-1, keepdim=True)).exp() + 0.1  # noqa: E731
        M = Manifold(lambda z: td.Normal(z, hill(z).expand_as(z)), Expected())
        a, b = torch.tensor([[-1.5, 0.05], [1.5, 0.05]], dtype=torch.float64)
        curve = M.geodesic(a, b).curve(torch.linspace(0, 1, 21))
        assert float(curve.norm(dim=-1).min()) > 0.5
        assert float(torch.lerp(a, b, 0.5).norm()) < 0.1

    def test_several_heads(self):
        M = Manifold(
            lambda z: (td.Normal(mean(z), spread(z)), td.Laplace(mean(z), 1.0)), Expected()
        )
        parts = [lambda z: td.Normal(mean(z), spread(z)), lambda z: td.Laplace(mean(z), 1.0)]
        assert_close(M.metric(Z), sum(Manifold(f, Expected()).metric(Z) for f in parts))

    @pytest.mark.parametrize(
        ("decoder", "got"), [(mean, "tensors"), (lambda z: td.Poisson(spread(z)), "poisson"),
                             (lambda z: td.LogNormal(mean(z), spread(z)), "log_normal")]
    )  # fmt: skip
    def test_other_decoders_are_refused(self, decoder, got):
        with pytest.raises(AmbientError, match=f"distributions among normal.*got {got}"):
            Manifold(decoder, Expected()).metric(Z)

    def test_needs_a_manifold(self):
        with pytest.raises(AmbientError, match="got none"):
            Expected().features(Z)


AMBIENTS = {
    "default": None,
    "Euclidean": Euclidean(),
    "Diagonal": Diagonal(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)),
    "Custom": Custom(diagonal=lambda x: 1 + x**2),
    "operator": Custom(operator=lambda x, v: v * (1 + x.square().sum(-1, keepdim=True))),
}


class TestEnsemble:
    @pytest.mark.parametrize("name", AMBIENTS)
    def test_metric_is_the_mean_of_the_members(self, name):
        ambient = AMBIENTS[name]
        M = Manifold(Ensemble(ENSEMBLE), ambient)
        parts = [Manifold(f, ambient) for f in ENSEMBLE]
        assert_close(M.metric(Z), torch.stack([part.metric(Z) for part in parts]).mean(0))
        check_manifold(M, Z)
        bounds = [part.as_space().ambient_distance(Z[:2], Z[2:]) for part in parts]
        if bounds[0] is None:
            assert M.as_space().ambient_distance(Z[:2], Z[2:]) is None
        else:
            truth = torch.stack(bounds).square().mean(0).sqrt()
            assert_close(M.as_space().ambient_distance(Z[:2], Z[2:]), truth)

    @pytest.mark.parametrize(
        "ambient", [None, FisherRao(), Expected()], ids=["default", "FisherRao", "Expected"]
    )
    def test_of_distributions(self, ambient):
        members = [
            lambda z: td.Normal(mean(z), spread(z)),
            lambda z: td.Normal(2 * mean(z), spread(-z)),
        ]
        M = Manifold(Ensemble(members), ambient)
        parts = [Manifold(f, ambient) for f in members]
        assert_close(M.metric(Z), (parts[0].metric(Z) + parts[1].metric(Z)) / 2)
        check_manifold(M, Z)
        found = M.distribution(Z[0])
        assert len(found) == 2
        assert_close(found[1].loc, 2 * mean(Z)[0])

    def test_of_families_with_features_has_features(self):
        M = Manifold(
            Ensemble([lambda z: td.Normal(mean(z), 0.5), lambda z: td.Normal(mean(-z), 0.5)])
        )
        M.metric(Z)
        assert M.ambient.has_features
        assert M.ambient.base.has_features

    def test_a_parameter_that_varies_in_one_member_varies(self):
        members = [lambda z: td.Normal(mean(z), 0.5), lambda z: td.Normal(mean(z), spread(z))]
        M = Manifold(Ensemble(members))
        parts = [Manifold(f) for f in members]
        assert_close(M.metric(Z), (parts[0].metric(Z) + parts[1].metric(Z)) / 2)
        assert not M.ambient.has_features

    def test_decode_has_an_axis_of_members(self):
        M = Manifold(Ensemble(ENSEMBLE))
        assert_close(M.decode(Z[:, None]), torch.stack([f(Z) for f in ENSEMBLE], 1)[:, None])
        assert M.jacobian(Z).shape == (4, 9, 2)

    def test_any_decoder_may_return_members(self):
        M = Manifold(lambda z: Members((sphere(z), paraboloid(z))))
        assert_close(M.metric(Z), Manifold(Ensemble([sphere, paraboloid])).metric(Z))

    def test_equal_members_are_one_decoder(self):
        M, one = Manifold(Ensemble([sphere] * 3)), Manifold(sphere)
        assert_close(M.distance(Z[0], Z[1]), one.distance(Z[0], Z[1]))
        assert_close(M.gaussian_curvature(Z), torch.ones(4, dtype=torch.float64))
        # Tr(G⁻¹C) of an unscaled copy in R⁹: the projection turns as before.
        assert_close(M.extrinsic_curvature(Z), one.extrinsic_curvature(Z))

    def test_follows_device_and_dtype(self):
        M = Manifold(Ensemble([network(0), network(1)]))
        narrow = M.to(dtype=torch.float32)
        assert_close(narrow.metric(Z.float()).double(), M.metric(Z), rtol=1e-5, atol=1e-6)
        assert M.metric(Z).dtype == torch.float64

    def test_gradients_reach_every_member(self):
        members = [network(0), network(1)]
        Manifold(Ensemble(members)).distance(Z[0], Z[1]).backward()
        assert all(bool((m[0].weight.grad != 0).all()) for m in members)

    def test_training_mode_of_a_member_is_refused(self):
        members = [network(0, 0.5), network(1, 0.5).train()]
        with pytest.raises(DecoderError, match="training mode"):
            Manifold(Ensemble(members)).metric(Z)

    @pytest.mark.parametrize(
        ("make", "error", "match"),
        [
            (lambda: Ensemble([]), OptionError, "at least one member"),
            (lambda: Ensemble([3]), DTypeError, "modules or functions"),
            (lambda: Ensemble([nn.Linear]), DTypeError, "modules or functions"),
            (
                lambda: Manifold(Ensemble([sphere, lambda z: z])).metric(Z),
                DecoderError,
                "same structure.*shapes",
            ),
            (
                lambda: Manifold(
                    Ensemble([lambda z: td.Normal(z, 1.0), lambda z: td.Laplace(z, 1.0)])
                ).metric(Z),
                DecoderError,
                "same structure.*different distributions",
            ),
            (
                lambda: Manifold(Ensemble([Ensemble([sphere])])).metric(Z),
                DecoderError,
                "ensemble of ensembles",
            ),
            (
                lambda: Manifold(sphere, Averaged(Euclidean(), 2)).metric(Z),
                AmbientError,
                "a single decoder",
            ),
        ],
    )
    def test_refused(self, make, error, match):
        with pytest.raises(error, match=match):
            make()


class TestPerMember:
    M = Manifold(Ensemble(ENSEMBLE))
    SINGLE = tuple(Manifold(f) for f in ENSEMBLE)

    def test_distances(self):
        found = self.M.distance(Z[:2], Z[2:], rtol=1e-6, per_member=True)
        truth = torch.stack([single.distance(Z[:2], Z[2:], rtol=1e-6) for single in self.SINGLE])
        assert_close(found, truth)
        assert_close(found[1], 2 * found[0], rtol=1e-5, atol=0.0)  # a sphere of twice the radius

    def test_distances_are_differentiable(self):
        z = Z[0].clone().requires_grad_()
        self.M.distance(z, Z[1], per_member=True).std(0).backward()
        assert bool((z.grad != 0).all())

    def test_curvature(self):
        # The spheres of radius 1 and 2: S = 2/r², Tr(G⁻¹C) = 4/r²; the paraboloid has K = 1/(1 +
        # ρ²)².
        scalar = self.M.scalar_curvature(Z, per_member=True)
        rho = Z.square().sum(-1)
        truth = torch.stack(
            [torch.full_like(rho, 2.0), torch.full_like(rho, 0.5), 2 / (1 + rho) ** 2]
        )
        assert_close(scalar, truth)
        assert_close(self.M.extrinsic_curvature(Z, per_member=True)[:2], 2 * truth[:2])

    def test_members_are_manifolds_under_the_given_metric(self):
        weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        M = Manifold(Ensemble(ENSEMBLE), Diagonal(weights))
        M.metric(Z)
        assert_close(M.members[2].metric(Z), Manifold(paraboloid, Diagonal(weights)).metric(Z))

    @pytest.mark.parametrize("method", ["distance", "scalar_curvature", "extrinsic_curvature"])
    def test_needs_an_ensemble(self, method):
        points = (Z, Z) if method == "distance" else (Z,)
        with pytest.raises(DecoderError, match="an ensemble of decoders, got sphere"):
            getattr(Manifold(sphere), method)(*points, per_member=True)


class TestDropout:
    def test_masks_are_those_of_dropout(self):
        decoder = network(dropout=0.5)
        ensemble = Ensemble.from_dropout(decoder, Z[:1], members=200, seed=1)
        hidden = decoder[:2](Z)
        masks = torch.stack([member[2](hidden) / hidden for member in ensemble.members])
        assert bool(((masks == 0) | ((masks - 2).abs() < 1e-12)).all())  # 1/(1 − p)
        assert bool((masks == masks[:, :1]).all())  # the same for every point
        # 1600 fair coins: 4 standard deviations are 0.05.
        assert float((masks[:, 0] == 0).double().mean()) == pytest.approx(0.5, abs=0.05)

    def test_every_kind_of_dropout(self):
        channels = nn.Sequential(
            nn.Linear(2, 24),
            nn.Unflatten(1, (6, 4)),
            nn.Dropout1d(0.5),
            nn.Flatten(),
            nn.AlphaDropout(0.3),
        ).double()
        member = Ensemble.from_dropout(channels, Z[:1], members=1).members[0]
        kept = member[:3](Z) != 0
        assert bool((kept == kept[:1, :, :1]).all())  # whole channels
        assert 0 < float(kept.double().mean()) < 1
        # AlphaDropout sends dropped inputs to one constant: the slope is 0 there.
        slopes = torch.autograd.functional.jacobian(member[4], member[:4](Z[:1]))[
            0, :, 0
        ].diagonal()
        assert len(set(slopes.round(decimals=9).tolist())) == 2

    def test_seeded(self):
        decoder = network(dropout=0.5)
        first, again, other = (Ensemble.from_dropout(decoder, Z[:1], 3, seed) for seed in (1, 1, 2))
        assert_close(torch.stack(first(Z)), torch.stack(again(Z)))
        assert not torch.equal(torch.stack(first(Z)), torch.stack(other(Z)))

    def test_decoder_and_global_randomness_are_left_alone(self):
        decoder = network(dropout=0.5).train()
        state, weights = torch.random.get_rng_state(), copy.deepcopy(decoder.state_dict())
        Ensemble.from_dropout(decoder, Z[:1])
        assert torch.equal(state, torch.random.get_rng_state())
        assert all(layer.training for layer in decoder.modules())
        assert isinstance(decoder[2], nn.Dropout)
        assert_close(decoder.state_dict(), weights)

    def test_members_share_parameters(self):
        decoder = network(dropout=0.5)
        ensemble = Ensemble.from_dropout(decoder, Z[:1])
        assert all(member[0].weight is decoder[0].weight for member in ensemble.members)

    def test_geometry(self):
        M = Manifold(Ensemble.from_dropout(network(dropout=0.2), Z[:1], members=5))
        check_manifold(M, Z)
        assert bool((M.distance(Z[0], Z[1], per_member=True).std(0) > 0).all())

    def test_without_dropout(self):
        with pytest.raises(DecoderError, match="dropout layers in use"):
            Ensemble.from_dropout(network(), Z[:1])
        with pytest.raises(ShapeError, match="one example point"):
            Ensemble.from_dropout(network(dropout=0.5), Z)


class TestStates:
    def test_state_dicts(self):
        decoder = network()
        states = [network(seed).state_dict() for seed in (1, 2)]
        ensemble = Ensemble.from_states(decoder, states)
        for state, x in zip(states, ensemble(Z), strict=True):
            assert_close(x, torch.func.functional_call(decoder, state, (Z,)))
        check_manifold(Manifold(ensemble), Z)

    def test_vectors(self):
        decoder = network()
        vectors = torch.stack(
            [nn.utils.parameters_to_vector(network(seed).parameters()) for seed in (1, 2)]
        )
        for seed, x in zip((1, 2), Ensemble.from_states(decoder, vectors)(Z), strict=True):
            assert_close(x, network(seed)(Z))

    def test_a_part_of_the_weights(self):
        decoder = network()
        last = {"3.weight": 2 * decoder[3].weight.detach(), "3.bias": decoder[3].bias.detach()}
        ensemble = Ensemble.from_states(decoder, [last])
        assert ensemble.members[0][0].weight is decoder[0].weight
        assert_close(ensemble(Z)[0], 2 * decoder(Z) - decoder[3].bias)

    def test_decoder_is_left_as_it_is(self):
        decoder = network()
        before = copy.deepcopy(decoder.state_dict())
        Ensemble.from_states(decoder, [network(1).state_dict()])
        assert_close(decoder.state_dict(), before)

    @pytest.mark.parametrize(
        ("state", "match"),
        [
            ({"4.weight": torch.zeros(3)}, "unknown .*4.weight"),
            ({"3.bias": torch.zeros(4)}, "size mismatch"),
            (torch.zeros(5), "vectors of 51 parameters"),
        ],
    )
    def test_other_states_are_refused(self, state, match):
        with pytest.raises(DecoderError, match=match):
            Ensemble.from_states(network(), [state])
