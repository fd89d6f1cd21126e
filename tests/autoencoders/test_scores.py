"""Scores over other measures, and their standard errors."""

import math

import pytest
import torch
from torch import nn

from riemae import Manifold, scores
from riemae.exceptions import DTypeError, OptionError, ShapeError
from riemae.scores import Estimate

F64 = torch.float64


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def decoder():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5))
    return net.double().requires_grad_(False)


class TestEstimate:
    def test_weights_are_repetitions_of_the_mean(self):
        values = torch.tensor([1.0, 4.0, 9.0], dtype=F64)
        w = torch.tensor([2.0, 0.0, 1.0], dtype=F64)
        assert float(Estimate.of(values, w).mean) == pytest.approx((2 + 9) / 3)

    def test_equal_weights_give_the_plain_error(self):
        values = torch.randn(50, 3, generator=gen(), dtype=F64)
        a, b = Estimate.of(values), Estimate.of(values, torch.full((50,), 7.0, dtype=F64))
        assert torch.allclose(a.mean, b.mean)
        assert torch.allclose(a.standard_error, b.standard_error)
        assert Estimate.of(values[:1], torch.ones(1, dtype=F64)).standard_error.isnan().all()

    def test_the_error_is_the_spread_over_samples(self):
        # Mean of x² under the density 2x on [0, 1], from uniform points: 1/2.
        found = []
        for seed in range(300):
            x = torch.rand(200, generator=gen(seed), dtype=F64)
            found.append(Estimate.of(x.square(), x))
        means = torch.stack([e.mean for e in found])
        errors = torch.stack([e.standard_error for e in found])
        assert float(means.mean()) == pytest.approx(0.5, abs=0.005)
        assert float(errors.mean()) == pytest.approx(float(means.std()), rel=0.15)

    def test_the_jackknife_of_a_mean_is_its_standard_error(self):
        values = torch.randn(40, generator=gen(), dtype=F64)
        found = Estimate.jackknife(lambda rows: values[rows].mean(), 40, blocks=40)
        plain = Estimate.of(values)
        assert float(found.mean) == pytest.approx(float(plain.mean))
        assert float(found.standard_error) == pytest.approx(float(plain.standard_error), rel=1e-9)
        with pytest.raises(OptionError, match="blocks"):
            Estimate.jackknife(lambda rows: values[rows].mean(), 40, blocks=1)

    @pytest.mark.parametrize(
        "wrong", [torch.ones(3), -torch.ones(4), torch.zeros(4), torch.full((4,), math.nan)]
    )
    def test_wrong_weights(self, wrong):
        with pytest.raises((ShapeError, OptionError), match="weights"):
            Estimate.of(torch.ones(4), wrong)


class TestSummary:
    def test_it_is_the_scores_one_by_one(self):
        M = Manifold(decoder())
        z = torch.randn(60, 2, generator=gen(), dtype=F64)
        s = scores.summary(M, z)
        assert float(s.mcn.mean) == pytest.approx(float(scores.condition_number(M, z).mean()))
        assert float(s.vor.mean) == pytest.approx(float(scores.vor(M, z)))
        distortion = M.distortion(z, kind="scaled_isometry")
        assert float(s.distortion.mean) == pytest.approx(float(distortion))
        assert float(s.curvature.mean) == pytest.approx(float(M.extrinsic_curvature(z).mean()))
        assert "VoR" in repr(s)
        assert "±" in repr(s)

    def test_weights_are_repetitions(self):
        M = Manifold(decoder())
        z = torch.randn(8, 2, generator=gen(), dtype=F64)
        w = torch.tensor([1.0, 2, 0, 1, 3, 1, 0, 2], dtype=F64)
        many = z.repeat_interleave(w.long(), 0)
        a, b = scores.summary(M, z, weights=w), scores.summary(M, many)
        for name in a._fields:
            assert float(getattr(a, name).mean) == pytest.approx(float(getattr(b, name).mean))
        assert float(scores.vor(M, z, weights=w)) == pytest.approx(float(scores.vor(M, many)))

    def test_the_jackknife_s_error_is_the_spread_over_samples(self):
        M = Manifold(decoder())
        found = []
        for seed in range(60):
            z = torch.randn(200, 2, generator=gen(seed), dtype=F64)
            r = scores.summary(M, z)
            found.append((r.vor, r.distortion))
        for column in zip(*found, strict=True):
            means = torch.stack([e.mean for e in column])
            errors = torch.stack([e.standard_error for e in column])
            assert float(errors.mean()) == pytest.approx(float(means.std()), rel=0.3)

    def test_standard_errors_are_those_of_the_bootstrap(self):
        # Efron 1979: the spread of a score over samples drawn with replacement from the points.
        M = Manifold(decoder())
        z = torch.randn(300, 2, generator=gen(), dtype=F64)
        r = scores.summary(M, z)
        drawn = {name: [] for name in r._fields}
        for seed in range(200):
            rows = torch.randint(300, (300,), generator=gen(seed))
            drawn["mcn"].append(scores.condition_number(M, z[rows]).mean())
            drawn["vor"].append(scores.vor(M, z[rows]))
            drawn["distortion"].append(M.distortion(z[rows], kind="scaled_isometry"))
            drawn["curvature"].append(M.extrinsic_curvature(z[rows]).mean())
        for name, values in drawn.items():
            error = float(getattr(r, name).standard_error)
            assert error == pytest.approx(float(torch.stack(values).std()), rel=0.4), name

    def test_wrong_weights(self):
        M = Manifold(decoder())
        z = torch.randn(8, 2, generator=gen(), dtype=F64)
        with pytest.raises(ShapeError, match="weights"):
            scores.vor(M, z, weights=torch.ones(7, dtype=F64))
        with pytest.raises(OptionError, match="not all 0"):
            scores.summary(M, z, weights=torch.zeros(8, dtype=F64))


class TestMeasures:
    """Weights are repetitions of points, in every measure that takes them."""

    def points(self):
        z = torch.randn(2, 4, 2, generator=gen(), dtype=F64)
        w = torch.tensor([[1.0, 2, 0, 1], [3, 1, 0, 2]], dtype=F64)
        return z, w, z.flatten(0, 1).repeat_interleave(w.long().flatten(), 0)

    @pytest.mark.parametrize("kind", ["isometry", "scaled_isometry", "conformal", "area"])
    def test_distortion(self, kind):
        M = Manifold(decoder())
        z, w, many = self.points()
        found = M.distortion(z, kind, weights=5 * w)
        assert float(found) == pytest.approx(float(M.distortion(many, kind)), rel=1e-12)
        local = M.distortion(z, kind, local=True, weights=w)
        assert local.shape == (2, 4)
        rest = M.distortion(many, kind, local=True)
        assert float((w * local).sum() / w.sum()) == pytest.approx(float(rest.mean()), rel=1e-12)

    def test_distortion_by_probes(self):
        M = Manifold(decoder())
        z, w, _ = self.points()
        options = {"estimator": "hutchinson", "samples": 4000, "weights": w}
        for kind in ("isometry", "scaled_isometry", "conformal"):
            found = M.distortion(z, kind, generator=0, **options)
            exact = M.distortion(z, kind, weights=w)
            assert float(found) == pytest.approx(float(exact), rel=0.1), kind

    def test_condition_number_and_vor(self):
        M = Manifold(decoder())
        z, w, many = self.points()
        found = scores.condition_number(M, z, weights=w)
        assert float(found) == pytest.approx(float(scores.condition_number(M, many).mean()))
        assert float(scores.vor(M, z, weights=w)) == pytest.approx(float(scores.vor(M, many)))
        latent = lambda z: torch.diag_embed(1 + z.square())  # noqa: E731
        relative = scores.condition_number(M, z, latent, weights=w)
        one_by_one = scores.condition_number(M, many, latent)
        assert float(relative) == pytest.approx(float(one_by_one.mean()))

    def test_singular_points_without_weight_do_not_count(self):
        M = Manifold(lambda z: z.square())  # singular where a coordinate is 0
        z = torch.tensor([[0.0, 1], [1, 1], [1, 2]], dtype=F64)
        w = torch.tensor([0.0, 1, 1], dtype=F64)
        assert float(scores.condition_number(M, z, weights=w)) == pytest.approx(2.5)
        assert float(M.distortion(z[1:], "area")) == pytest.approx(
            float(M.distortion(z, "area", weights=w))
        )

    @pytest.mark.parametrize(
        ("wrong", "error"),
        [
            (torch.ones(3), ShapeError),
            (-torch.ones(4), OptionError),
            (torch.zeros(4), OptionError),
            ("heavy", DTypeError),
        ],
    )
    def test_wrong_weights(self, wrong, error):
        M = Manifold(decoder())
        z = torch.randn(4, 2, generator=gen(), dtype=F64)
        for call in (
            lambda: M.distortion(z, weights=wrong),
            lambda: scores.condition_number(M, z, weights=wrong),
            lambda: scores.vor(M, z, weights=wrong),
            lambda: scores.summary(M, z, weights=wrong),
        ):
            with pytest.raises(error, match="weights"):
                call()
