"""Decoders with conditions: the batch of a cell, a class, covariates."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from riemae import Manifold, load
from riemae.autoencoders import AE, IRAE, MCAE, NRAE, VAE, Objective, Term
from riemae.autoencoders.covariates import Conditioned, Covariates
from riemae.exceptions import DTypeError, NonFiniteError, OptionError, ShapeError

F64 = torch.float64
SMALL = {"hidden": (8,), "epochs": 2, "batch_size": 16}


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def two_batches(n=120):
    """A curve measured twice, the second time moved by (0, 0, 3)."""
    t = np.linspace(-2, 2, n)
    donor = np.where(np.arange(n) % 2, "b", "a")
    x = np.stack([t, np.sin(t), 3.0 * (donor == "b")], 1)
    return x, donor, t


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3).double()

    def forward(self, z, c):
        return self.layer(torch.cat([z.sin(), c], -1))


class TestCovariates:
    def test_labels(self):
        found = Covariates.of("fit", ["b", "a", "b"])
        assert found == Covariates(2, ("a", "b"))
        rows = found.encode("fit", np.array(["b", "a"]), 2, torch.zeros((), dtype=F64))
        assert rows.tolist() == [[0, 1], [1, 0]]
        assert rows.dtype == F64
        assert found.encode("fit", "b", 3, torch.zeros(())).tolist() == [[0, 1]] * 3
        assert Covariates.of("fit", torch.tensor([3, 1, 3])).categories == (1, 3)
        assert Covariates.read(found.described()) == found

    def test_numbers(self):
        found = Covariates.of("fit", torch.randn(5, 3))
        assert found == Covariates(3)
        assert found.encode("fit", [1, 2, 3], 2, torch.zeros(())).tolist() == [[1, 2, 3]] * 2

    @pytest.mark.parametrize(
        ("wrong", "error"),
        [
            (np.zeros(5), DTypeError),
            (np.zeros((5, 2, 2)), ShapeError),
            ([], ShapeError),
            (np.array([["a", "b"]]), DTypeError),
            (np.array([1j]), DTypeError),
        ],
    )
    def test_refused(self, wrong, error):
        with pytest.raises(error, match="fit"):
            Covariates.of("fit", wrong)

    def test_refused_later(self):
        like = torch.zeros(())
        labels, numbers = Covariates(2, ("a", "b")), Covariates(2)
        with pytest.raises(OptionError, match="among 'a', 'b'"):
            labels.encode("score", ["c"], 1, like)
        with pytest.raises(OptionError, match="none"):
            labels.encode("score", None, 1, like)
        with pytest.raises(ShapeError):
            labels.encode("score", ["a", "b"], 3, like)
        with pytest.raises(DTypeError):
            labels.encode("score", [["a"]], 3, like)
        with pytest.raises(ShapeError):
            numbers.encode("score", np.zeros((3, 3)), 3, like)
        with pytest.raises(NonFiniteError):
            numbers.encode("score", [np.nan, 0], 1, like)


class TestObjective:
    def test_terms_see_each_sample_s_own_condition(self):
        x = torch.randn(12, 3, generator=gen(), dtype=F64)
        c = torch.eye(2, dtype=F64)[torch.arange(12) % 2]
        encoder, decoder = nn.Linear(3, 2).double(), Decoder()
        seen = {}

        def volume(manifold, z, decoded):
            seen["decoded"] = decoded
            seen["plain"] = manifold.latent_dim
            return manifold.log_volume(z).mean() + manifold.eigenvalues(z).mean()

        terms = {"relaxed_distortion": Term(1.0, options={"mixup": None}), "own": Term(1.0, volume)}
        objective = Objective(encoder, decoder, x, terms=terms, condition=c)
        _, parts = objective(x, condition=c)
        z = encoder(x)
        M = Manifold(decoder)
        assert torch.equal(seen["decoded"], decoder(z, c))
        g = M.metric(z, condition=c)
        expected = g.det().log().mean() / 2 + torch.linalg.eigvalsh(g).mean()
        assert torch.allclose(parts["own"], expected)
        expected = M.distortion(z, "scaled_isometry", condition=c)
        assert torch.allclose(parts["relaxed_distortion"], expected)

    def test_another_condition_comes_first(self):
        M = Manifold(lambda z, c: z * c)
        z = torch.ones(3, 2, dtype=F64)
        own = Conditioned(M, 2 * torch.ones(3, 1, dtype=F64))
        assert torch.allclose(own.metric(z), 4 * torch.eye(2, dtype=F64).expand(3, 2, 2))
        other = own.metric(z, condition=torch.ones(1, 1, dtype=F64))
        assert torch.allclose(other, torch.eye(2, dtype=F64).expand(3, 2, 2))

    def test_batches_without_conditions(self):
        x = torch.randn(12, 3, generator=gen(), dtype=F64)
        objective = Objective(
            nn.Linear(3, 2).double(), Decoder(), x, condition=torch.ones(12, 2).double()
        )
        with pytest.raises(OptionError, match="condition"):
            objective(x)


class TestFits:
    def test_the_decoder_takes_the_batch_from_the_condition(self):
        x, donor, t = two_batches()
        options = {"hidden": (32, 32), "epochs": 150, "lr": 5e-3, "latent_dim": 1}
        plain = AE(**options).fit(x)
        own = AE(**options).fit(x, condition=donor)
        assert own.score(x, condition=donor) > max(0.99, plain.score(x))
        # The same code under the other donor is higher by 3.
        z = own.transform(x)
        a, b = (own.inverse_transform(z, condition=name) for name in "ab")
        assert (b - a)[:, 2].mean() == pytest.approx(3, abs=0.1)

    @pytest.mark.parametrize(
        "model",
        [
            VAE(**SMALL),
            IRAE(**SMALL, validation_fraction=0.2, early_stopping=2),
            MCAE(**SMALL),
            IRAE(**SMALL, latent="torus"),
            VAE(**SMALL, likelihood="zero_inflated_negative_binomial", ambient="fisher"),
        ],
        ids=str,
    )
    def test_train_save_load(self, model, tmp_path):
        x, donor, _ = two_batches(40)
        if model.likelihood != "squared_error":
            x = np.round(np.exp(x / 2))
        m = model.fit(x, condition=donor)
        z = m.transform(x)
        again = load(m.save(tmp_path))
        assert again.conditions_ == m.conditions_
        assert again.score(x, condition=donor) == m.score(x, condition=donor)
        c = m.condition(donor, 40)
        g = m.manifold_.metric(torch.as_tensor(z), condition=c)
        assert torch.equal(again.manifold_.metric(torch.as_tensor(z), condition=c), g)
        # One condition for all is a plain manifold.
        first = m.manifold("a").metric(torch.as_tensor(z[:4]))
        assert torch.allclose(
            first, m.manifold_.metric(torch.as_tensor(z[:4]), condition=m.condition("a"))
        )
        assert repr(m.manifold("a").latent) == repr(m.manifold_.latent)
        assert m.report_.samples == 40
        assert "plain" in m.costs(x, condition="a")
        if isinstance(m, VAE):
            drawn = m.sample(5, generator=0, condition="b", noise=True)
            assert drawn.shape == (5, 3)
            assert torch.equal(again.sample(5, generator=0, condition="b", noise=True), drawn)

    def test_covariates_and_further_fits(self):
        x, donor, t = two_batches(40)
        c = np.stack([t, donor == "b"], 1).astype(float)
        m = AE(**SMALL, warm_start=True).fit(x, condition=c)
        m.fit(x, condition=c).partial_fit(x, condition=c)
        assert m.n_epochs_ == 5
        assert m.score(x, condition=c) < 1
        with pytest.raises(OptionError, match="condition"):
            m.partial_fit(x)

    def test_resumed(self, tmp_path):
        x, donor, _ = two_batches(40)
        whole = AE(**{**SMALL, "epochs": 4}).fit(x, condition=donor)
        options = {"directory": tmp_path, "checkpoint_every": 1}
        AE(**SMALL, **options).fit(x, condition=donor)
        again = AE(**{**SMALL, "epochs": 4}, **options).fit(x, condition=donor)
        assert np.array_equal(whole.transform(x), again.transform(x))

    def test_refused(self):
        x, donor, _ = two_batches(40)
        m = AE(**SMALL).fit(x, condition=donor)
        for call in (
            lambda: m.score(x),
            lambda: m.inverse_transform(m.transform(x)),
            lambda: m.manifold("c"),
            lambda: AE(**SMALL).fit(x).score(x, condition=donor),
            lambda: NRAE(**SMALL).fit(x, condition=donor),
            lambda: AE(**SMALL).fit(x, condition=donor, validation=x),
            lambda: AE(**SMALL).fit(DataLoader(TensorDataset(torch.as_tensor(x))), condition=donor),
        ):
            with pytest.raises(OptionError, match="condition"):
                call()
        with pytest.raises(ShapeError, match="condition"):
            AE(**SMALL).fit(x, condition=donor[:5])
