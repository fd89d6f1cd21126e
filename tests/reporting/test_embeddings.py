"""Decoders for coordinates that somebody else has made."""

import math

import numpy as np
import pytest
import torch

import riemae
from riemae.exceptions import DataError, DTypeError, NonFiniteError, OptionError, ShapeError
from riemae.reporting import Fit, FittedDecoder, fit_decoder
from riemae.testing import check_manifold


def half_circle(n=80):
    t = torch.linspace(0, 3, n, dtype=torch.float64)[:, None]
    return t, torch.cat([t.cos(), t.sin()], 1)


def roll(n=400):
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(n, 2, generator=generator, dtype=torch.float64) * torch.tensor([6.0, 2.0])
    t = 1 + z[:, :1]
    return z, torch.cat([t * t.cos(), t * t.sin(), z[:, 1:]], 1)


class TestFit:
    def test_follows_smooth_data_closely(self):
        z, x = roll()
        M = fit_decoder(z, x)
        fit = M.decoder.summary
        assert isinstance(fit, Fit)
        assert fit.loo_r2 > 0.999
        assert fit.r2 >= fit.loo_r2
        # The metric of the roll: |∂f/∂t|² = 1 + t², and 1 along the axis.
        inner = z[(z > 0.5).all(1) & (z[:, 0] < 5) & (z[:, 1] < 1.5)]
        g = M.metric(inner)
        assert g[:, 0, 0].numpy() == pytest.approx((1 + (1 + inner[:, 0]) ** 2).numpy(), rel=0.05)
        assert g[:, 1, 1].numpy() == pytest.approx(1, rel=0.05)

    def test_lengths_are_those_of_the_data(self):
        t, x = half_circle()
        M = fit_decoder(t, x)
        assert float(M.distance(t[0], t[-1])) == pytest.approx(3, rel=1e-2)

    def test_leaving_one_out_is_what_it_says(self):
        z, x = roll(40)
        x = x + 0.3 * torch.randn(40, 3, generator=torch.Generator().manual_seed(1)).double()
        given = {"length": 2.0, "penalty": 0.05}
        fit = fit_decoder(z, x, **given).decoder.summary
        # With all coordinates as centres, and the same ones, refitting without a sample has to use
        # the same functions: a weight of 0 does that.
        centres = riemae.plotting.spread_points(torch.unique(z, dim=0), 400)
        kernel = 1 / (1 + torch.cdist(z, centres).square() / 4)
        among = 1 / (1 + torch.cdist(centres, centres).square() / 4)
        functions = torch.cat([torch.ones(40, 1).double(), z, kernel], 1)
        stiff = torch.zeros(43, 43, dtype=torch.float64)
        stiff[3:, 3:] = 0.05 * among
        left = []
        for k in range(40):
            keep = torch.arange(40) != k
            a = functions[keep]
            w = torch.linalg.solve(a.T @ a + stiff, a.T @ x[keep])
            left.append(x[k] - functions[k] @ w)
        total = (x - x.mean(0)).square().sum()
        expected = 1 - torch.stack(left).square().sum() / total
        assert fit.loo_r2 == pytest.approx(float(expected), abs=1e-6)

    def test_coordinates_that_say_nothing_explain_nothing(self):
        z = torch.rand(150, 2, generator=torch.Generator().manual_seed(0))
        x = torch.randn(150, 5, generator=torch.Generator().manual_seed(1))
        assert fit_decoder(z, x).decoder.summary.loo_r2 < 0.1

    def test_is_a_smooth_manifold_of_the_right_shape(self):
        z, x = roll(60)
        M = fit_decoder(z.numpy().astype("float32"), torch.stack([x, x], 1))
        assert M.decode(z[:4]).shape == (4, 2, 3)
        assert M.latent_dim == 2
        assert M.kinks(z[:4]) is None
        check_manifold(M, z[:8])

    def test_the_same_input_gives_the_same_decoder(self):
        z, x = roll(60)
        a, b = fit_decoder(z, x), fit_decoder(z, x)
        torch.testing.assert_close(a.decode(z), b.decode(z), rtol=1e-9, atol=1e-9)
        assert a.decoder.summary.length == b.decoder.summary.length
        assert a.decoder.summary.penalty == pytest.approx(b.decoder.summary.penalty)

    def test_landmarks_and_repeated_coordinates(self):
        z, x = roll(200)
        M = fit_decoder(torch.cat([z, z]), torch.cat([x, x]), max_centres=50)
        assert M.decoder.summary.centres == 50
        assert M.decoder.summary.loo_r2 > 0.99

    def test_far_from_the_data_the_metric_does_not_vanish(self):
        z, x = roll(60)
        assert (
            float(fit_decoder(z, x).eigenvalues(torch.tensor([[500.0, 300.0]]).double()).min()) > 0
        )

    def test_a_state_dict_holds_the_decoder_and_not_the_data(self):
        z, x = roll(30)
        decoder = fit_decoder(z, x).decoder
        assert isinstance(decoder, FittedDecoder)
        assert set(decoder.state_dict()) == {"centres", "weights", "linear", "offset"}

    def test_a_report_judges_it_against_its_data(self, tmp_path):
        z, x = roll(120)
        r = riemae.report(fit_decoder(z, x), z, path=tmp_path / "r.html", pairs=10)
        assert r.numbers["loo_r2"] > 0.99
        assert r.numbers["overlap"] < 0.05

    def test_many_features(self):
        z, x = roll(60)
        wide = x @ torch.randn(3, 90, generator=torch.Generator().manual_seed(0)).double()
        fit = fit_decoder(z, wide).decoder.summary
        assert fit.data_dim == 90
        assert fit.loo_r2 > 0.99


class TestErrors:
    @pytest.mark.parametrize(
        ("embedding", "data", "error", "words"),
        [
            (np.zeros((9, 2)), np.zeros((8, 2)), ShapeError, "data of 9 samples"),
            (np.zeros((9, 2, 2)), np.zeros((9, 2)), ShapeError, "embedding"),
            (np.zeros((4, 2)), np.zeros((4, 2)), OptionError, "at least 5 samples"),
            (np.full((9, 2), np.nan), np.zeros((9, 2)), NonFiniteError, "embedding"),
            (np.eye(9, 2), np.full((9, 2), math.inf), NonFiniteError, "data"),
            (np.ones((9, 2)), np.zeros((9, 2)), DataError, "span 2 dimensions"),
            (np.eye(9, 2), np.zeros((9, 2)), DataError, "differ"),
            (np.array([["a", "b"]] * 9), np.zeros((9, 2)), DTypeError, "embedding"),
        ],
    )
    def test_what_cannot_be_fitted_is_refused(self, embedding, data, error, words):
        with pytest.raises(error, match=words):
            fit_decoder(embedding, data)

    @pytest.mark.parametrize("options", [{"max_centres": 1}, {"length": 0.0}, {"penalty": -1.0}])
    def test_options_out_of_range(self, options):
        with pytest.raises(OptionError, match=next(iter(options))):
            fit_decoder(*roll(30), **options)
