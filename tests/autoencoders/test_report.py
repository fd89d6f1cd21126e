"""Diagnostics of constructed autoencoders, whose numbers are known: values, and which sentences are
written."""

import math
import sys

import pytest
import spaces
import torch
from sklearn.datasets import load_digits
from sklearn.manifold import trustworthiness
from torch import nn

from riemae import Manifold, ambient, datasets, scores
from riemae.autoencoders.report import Report, report
from riemae.exceptions import MissingExtraError, OptionError, ShapeError

F64 = torch.float64


def rand(*shape, seed=0, low=-1.0, high=1.0):
    return spaces.rand(torch.Generator().manual_seed(seed), *shape, low=low, high=high)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def plane(z):
    return torch.cat([z, 0 * z[:, :1]], -1)


def first_two(x):
    return x[:, :2]


def said(r, start):
    return [s for s in r.sentences if s.startswith(start)]


FOLDS, DEAD, MISSES = (
    "The encoder folds",
    "1 of 2 latent dimensions are dead",
    "The reconstruction misses",
)
SMOOTHER, DISTORTED, TORN, KINKS = (
    "The manifold is smoother",
    "The latent space is distorted",
    "Neighbours",
    "The decoder",
)


class TestNumbers:
    def test_a_perfect_chart(self):
        r = report(Manifold(plane), first_two, plane(rand(300, 2)))
        assert r.reconstruction == r.unexplained == r.residual_correlation == 0
        assert r.mcn == pytest.approx(1, abs=1e-12)
        assert r.vor == pytest.approx(0, abs=1e-12)
        assert r.extrinsic_curvature == pytest.approx(0, abs=1e-12)
        assert (r.kinks, r.folded, r.dead) == (None, 0, 0)
        assert r.trustworthiness == r.continuity == 1
        assert (r.samples, r.latent_dim, r.data_dim) == (300, 2, 3)
        assert r.sentences == ()

    def test_the_cylinder(self):
        # An isometric chart of a surface with Tr(G⁻¹C) = 2/r².
        data = datasets.cylinder(400, radius=1.5, noise=0.05, dtype=F64)
        r = report(Manifold(data.surface), None, data.x, data.z)
        assert r.extrinsic_curvature == pytest.approx(2 / 1.5**2, rel=1e-9)
        assert r.mcn == pytest.approx(1, abs=1e-9)
        assert r.reconstruction == pytest.approx(3 * 0.05**2, rel=0.15)
        assert abs(r.residual_correlation) < 0.15  # noise
        assert r.folded < 0.01
        assert r.sentences == ()

    def test_scores_are_those_of_the_other_modules(self):
        f = (
            nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5))
            .double()
            .requires_grad_(False)
        )
        z = rand(120, 2)
        M, x = Manifold(f), f(z) + 0.1 * randn(120, 5)
        r = report(M, None, x, z, k=7)
        assert r.mcn == pytest.approx(float(scores.condition_number(M, z).mean()), rel=1e-12)
        assert r.vor == pytest.approx(float(scores.vor(M, z)), rel=1e-12)
        assert r.extrinsic_curvature == pytest.approx(
            float(M.extrinsic_curvature(z).mean()), rel=1e-12
        )
        assert r.trustworthiness == trustworthiness(x.numpy(), z.numpy(), n_neighbors=7)
        assert r.continuity == trustworthiness(z.numpy(), x.numpy(), n_neighbors=7)
        error = (x - f(z)).square().sum(1).mean()
        assert r.reconstruction == pytest.approx(float(error), rel=1e-12)
        assert r.unexplained == pytest.approx(
            float(error / x.var(0, unbiased=False).sum()), rel=1e-12
        )

    def test_spread_is_the_decoded_variance_in_any_linear_coordinates(self):
        # f(z) = diag(3, 1) A z with codes A⁻¹ w: shares 9 Var(w₁) and Var(w₂) along orthogonal
        # axes.
        w = randn(500, 2)
        w = (w - w.mean(0)) @ torch.linalg.inv(
            torch.linalg.cholesky(torch.cov((w - w.mean(0)).T, correction=0))
        ).mT
        a = torch.tensor([[1.0, 2.0], [-0.5, 1.0]], dtype=F64)
        z = w @ torch.linalg.inv(a).T
        r = report(
            Manifold(lambda z: (z @ a.T) * torch.tensor([3.0, 1.0], dtype=F64)),
            None,
            w * torch.tensor([3.0, 1]),
            z,
        )
        assert r.spread == pytest.approx((0.9, 0.1), abs=1e-9)

    def test_curvature_of_many_dimensions_is_estimated(self):
        # The sphere S⁴ of radius 2: 2m/r² = 2.
        z = rand(300, 4, low=-0.5, high=0.5)
        M = Manifold(lambda z: spaces.sphere(z, 2.0))
        a, b, c = (
            report(M, None, spaces.sphere(z, 2.0), z, seed=s).extrinsic_curvature for s in (0, 0, 1)
        )
        assert a == b != c
        assert a == pytest.approx(2, rel=0.1)

    def test_ambient_metric_counts(self):
        z = rand(100, 2)
        M = Manifold(plane, ambient=ambient.Diagonal(torch.tensor([9.0, 1.0, 1.0], dtype=F64)))
        assert report(M, first_two, plane(z)).mcn == pytest.approx(9, rel=1e-12)

    def test_images_and_samples(self):
        f = nn.Sequential(nn.Linear(2, 16), nn.Unflatten(1, (1, 4, 4))).requires_grad_(False)
        z = rand(150, 2).float()
        r = report(Manifold(f), None, f(z), z)
        assert (r.samples, r.data_dim, r.reconstruction) == (150, 16, 0)
        a, b, c = (report(Manifold(f), None, f(z), z, max_samples=60, seed=s) for s in (0, 0, 1))
        assert a.samples == 60
        assert a == b != c


class TestFolds:
    def test_half_a_plane_on_the_other(self):
        # (u, v) and (−u, v) share the code (|u|, v). Of random points the nearest code is on either
        # side alike.
        x = plane(rand(600, 2))
        r = report(Manifold(plane), lambda x: torch.stack([x[:, 0].abs(), x[:, 1]], 1), x)
        assert 0.3 < r.folded < 0.6
        assert said(r, FOLDS)
        assert "Start the encoder from a graph embedding" in said(r, FOLDS)[0]

    @pytest.mark.parametrize("stretch", [1.0, 30.0])
    def test_distortion_is_no_fold(self, stretch):
        # Stretched 30-fold, the nearest code is far in the data; by the metric it is not.
        scale = torch.tensor([1.0, stretch], dtype=F64)
        x = plane(rand(600, 2))
        r = report(Manifold(lambda z: plane(z * scale)), lambda x: x[:, :2] / scale, x)
        assert r.folded < 0.01
        assert not said(r, FOLDS)
        assert bool(said(r, DISTORTED)) == (stretch > 1)

    def test_noise_and_duplicates_are_no_folds(self):
        z = rand(300, 2)
        x = plane(z) + 0.3 * randn(300, 3)
        assert not said(report(Manifold(plane), None, x, z), FOLDS)
        twice = z.repeat_interleave(14, 0)[:600]  # more copies than neighbours
        r = report(Manifold(plane), None, plane(twice), twice)
        assert r.folded == 0

    def test_a_projection_overlaps_but_does_not_fold(self):
        # Ten digits in a plane: what is left over would be noise if it were not so much.
        x = torch.as_tensor(load_digits().data)[:600]
        away = x - x.mean(0)
        _, _, axes = torch.linalg.svd(away, full_matrices=False)
        z = away @ axes[:2].mT
        r = report(Manifold(lambda z: x.mean(0) + z @ axes[:2]), None, x, z)
        assert r.folded < 0.01
        assert 0.3 < r.overlap < 0.6
        assert any(s.startswith("Different data share places") for s in r.sentences)
        assert not said(r, FOLDS)
        near = report(Manifold(plane), None, plane(rand(300, 2)), rand(300, 2))
        assert near.overlap == 0

    def test_few_stray_pairs_are_no_fold(self):
        x = plane(rand(600, 2))
        z = first_two(x).clone()
        z[:10, 0] *= -1
        r = report(Manifold(plane), None, x, z)
        assert 0 < r.folded < 0.05
        assert not said(r, FOLDS)


class TestSentences:
    def test_dead_dimensions(self):
        z = rand(200, 2)
        for thin, dead in (
            (0.0, 1),
            (0.01, 1),
            (0.1, 0),
        ):  # a share of thin²/(1 + thin²) of the variance
            f = Manifold(
                lambda z, thin=thin: torch.stack([z[:, 0], thin * z[:, 1], 0 * z[:, 0]], 1)
            )
            r = report(f, None, f.decode(z), z)
            assert r.dead == dead
            assert bool(said(r, DEAD)) == bool(dead)
            assert not (dead and said(r, DISTORTED))  # one fault has one sentence
            assert math.isnan(r.extrinsic_curvature) == (thin == 0)

    def test_a_collapsed_encoder(self):
        x = plane(rand(100, 2))
        r = report(Manifold(plane), lambda x: 0 * x[:, :2], x)
        assert r.dead == 2
        assert said(r, "2 of 2 latent dimensions are dead")
        assert said(r, MISSES)

    @pytest.mark.parametrize("layer", [nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.Tanh])
    def test_kinks(self, layer):
        torch_state = torch.Generator().manual_seed(0)
        f = (
            nn.Sequential(nn.Linear(2, 32), layer(), nn.Linear(32, 3))
            .double()
            .requires_grad_(False)
        )
        for p in f.parameters():
            p.copy_(torch.randn(p.shape, generator=torch_state, dtype=F64))
        z = rand(100, 2)
        M = Manifold(f)
        r = report(M, None, f(z), z)  # the report says it, so there is no warning
        kinked = "ReLU" in layer.__name__
        assert bool(said(r, KINKS)) == kinked
        assert (r.kinks is not None) == kinked
        assert M.kinks(z) == r.kinks
        if kinked:
            assert f"a layer {layer.__name__}" in said(r, KINKS)[0]
            assert "unreliable" in repr(r)

    def test_kinks_of_a_function(self):
        z = rand(100, 2)
        assert report(Manifold(lambda z: plane(z.relu() + z)), None, plane(z.relu() + z), z).kinks

    def test_a_manifold_that_is_too_stiff(self):
        t = rand(300, 1)
        x = torch.cat([t, t.square()], 1)
        stiff = Manifold(lambda t: torch.cat([t, 0 * t + 1 / 3], 1))
        r = report(stiff, lambda x: x[:, :1], x)
        assert r.residual_correlation > 0.9
        assert said(r, SMOOTHER)
        assert "Lower the weight" in said(r, SMOOTHER)[0]
        exact = Manifold(lambda t: torch.cat([t, t.square()], 1))
        assert not said(report(exact, lambda x: x[:, :1], x), SMOOTHER)

    def test_noise_is_not_stiffness(self):
        t = rand(300, 1)
        x = torch.cat([t, 0 * t], 1) + 0.2 * randn(300, 2)
        r = report(Manifold(lambda t: torch.cat([t, 0 * t], 1)), None, x, t)
        assert r.unexplained > 0.1
        assert abs(r.residual_correlation) < 0.2
        assert not said(r, SMOOTHER)

    def test_a_missing_dimension_is_not_stiffness(self):
        # A strip, coded by its length alone: what is missing across it looks like noise.
        x = rand(300, 2) * torch.tensor([1.0, 0.3], dtype=F64)
        r = report(Manifold(lambda t: torch.cat([t, 0 * t], 1)), lambda x: x[:, :1], x)
        assert r.unexplained > 0.05
        assert not said(r, SMOOTHER)

    def test_a_network_that_learned_nothing(self):
        x = plane(rand(300, 2))
        r = report(Manifold(lambda z: 0.1 * plane(z)), first_two, x)
        assert r.unexplained == pytest.approx(0.81, abs=0.01)
        assert said(r, MISSES)
        assert not said(r, SMOOTHER)
        assert not said(report(Manifold(lambda z: 0.9 * plane(z)), first_two, x), MISSES)

    def test_torn_neighbourhoods(self):
        # A line in 40 pieces, coded in another order: neighbours in latent space are right but at
        # the seams.
        order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        t = torch.linspace(0, 1, 800, dtype=F64)[:-1]
        piece, rest = (t * 40).floor().long(), t * 40 - (t * 40).floor()
        z = ((order[piece] + rest) / 40)[:, None]
        x = torch.stack([t, 0 * t], 1)

        def decoder(z):
            place = (z[:, 0].detach() * 40).floor().clamp(0, 39)
            s = (order.argsort()[place.long()] + z[:, 0] * 40 - place) / 40
            return torch.stack([s, 0 * s], 1)

        r = report(Manifold(decoder), None, x, z)
        assert r.continuity < 0.95
        assert said(r, TORN)
        assert not said(
            report(Manifold(lambda z: torch.cat([z, 0 * z], 1)), None, x, t[:, None]), TORN
        )


class TestLikelihoods:
    """Heads whose parameters are not the data: their means are the reconstruction."""

    X = datasets.counts(n=60, genes=8).x

    @pytest.mark.parametrize("ambient", [None, "fisher"])
    @pytest.mark.parametrize(
        "likelihood", ["squared_error", "bernoulli", "poisson", "negative_binomial", "categorical"]
    )
    def test_both_metrics_reconstruct_the_same(self, likelihood, ambient):
        from riemae.autoencoders import AE

        x = torch.as_tensor(self.X)
        if likelihood == "bernoulli":
            x = (x > 0).to(x)
        elif likelihood == "categorical":
            x = nn.functional.one_hot(x.argmax(-1), 8).to(x)
        model = AE(epochs=2, likelihood=likelihood, ambient=ambient, seed=0).fit(x)
        found = model.report_
        assert found.data_dim == 8
        error = (
            (torch.as_tensor(model.inverse_transform(model.transform(x))) - x)
            .square()
            .sum(1)
            .mean()
        )
        assert found.reconstruction == pytest.approx(float(error), rel=1e-4)

    def test_heads_are_joined(self):
        from torch import distributions as td

        z = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        M = Manifold(lambda z: {"a": td.Normal(z, 0.1), "b": td.Bernoulli(logits=z)})
        found = report(M, None, torch.cat([z, z.sigmoid()], 1), z)
        assert found.reconstruction == pytest.approx(0.0, abs=1e-10)


class TestInterface:
    def test_repr_is_a_table_with_the_sentences(self):
        x = plane(rand(600, 2))
        text = repr(report(Manifold(plane), lambda x: torch.stack([x[:, 0].abs(), x[:, 1]], 1), x))
        lines = text.splitlines()
        assert lines[0] == "Report(600 samples, 3 -> 2 dimensions)"
        assert [line.split("  ")[1] for line in lines[1:11]] == [
            "reconstruction error",
            "residual correlation",
            "MCN",
            "VoR",
            "extrinsic curvature",
            "folded neighbours",
            "overlapping codes",
            "dead dimensions",
            "trustworthiness",
            "continuity",
        ]
        assert any(line.startswith("- The encoder folds") for line in lines)
        assert max(map(len, lines[:11])) < 90

    def test_leaves_no_gradients_and_no_random_numbers(self):
        f = nn.Linear(2, 3).double()
        z = rand(50, 2)
        state = torch.get_rng_state()
        report(Manifold(f), None, f(z), z)
        assert torch.equal(torch.get_rng_state(), state)
        assert f.weight.grad is None

    @pytest.mark.parametrize(
        ("options", "error", "text"),
        [
            ({"encoder": None}, OptionError, "neither"),
            ({"z": torch.zeros(29, 2, dtype=F64)}, ShapeError, "30 codes, got 29"),
            ({"k": 15}, OptionError, "32 samples for k=15"),
            ({"k": 0}, OptionError, "k of at least 1"),
            ({"max_samples": 5}, OptionError, "max_samples=5"),
            ({"encoder": lambda x: x[:, None, :2]}, ShapeError, "codes"),
            (
                {"manifold": Manifold(lambda z: z)},
                ShapeError,
                r"decoder back to the data \(30, 3\)",
            ),
        ],
    )
    def test_refuses(self, options, error, text):
        arguments = {
            "manifold": Manifold(plane),
            "encoder": first_two,
            "x": plane(rand(30, 2)),
            **options,
        }
        with pytest.raises(error, match=text):
            report(**arguments)

    def test_missing_scikit_learn_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
        with pytest.raises(MissingExtraError, match=r"riemae\[neighbors\]"):
            report(Manifold(plane), first_two, plane(rand(30, 2)))

    def test_a_report_is_a_value(self):
        r = report(Manifold(plane), first_two, plane(rand(30, 2)))
        assert isinstance(r, Report)
        with pytest.raises(AttributeError):
            r.mcn = 2
